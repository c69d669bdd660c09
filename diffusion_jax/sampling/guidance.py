"""Guidance: functions from denoisers to a denoiser, which compose; all keep the network's variance channels.

Mix first, then rescale or restrict to an interval, then threshold:

    plain = process.bind(network.apply, params, {"label": labels})
    guided = classifier_free(plain, process.bind(network.apply, params, {"label": null}), 3.0)
    denoise = dynamic_threshold(rescale(guided, plain))

`guided` and `plain` share an evaluation of the network: under `jax.jit` it is made once.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError, check_choice
from diffusion_jax.process.types import PIXELS, Data, DataRange, Denoised, Denoiser, Time, expand
from diffusion_jax.values import Percentile, check


def classifier_free(cond: Denoiser, uncond: Denoiser, scale: float | jax.Array) -> Denoiser:
    """Return uncond + scale * (cond - uncond), in (x0, eps); the variance channels are the conditional ones.

    Args:
      cond: bound to the wanted conditioning.
      uncond: bound to no conditioning, or to what should be avoided (a negative prompt).
      scale: one number, or one per sample [B]. 1 is no guidance and, as a Python number, does not evaluate `uncond`;
        0 is `uncond`. Papers that write (1 + w) cond - w uncond have w = scale - 1.

    Raises:
      ConfigError: a number that is not finite.

    Source: Ho & Salimans 2022 (arXiv 2207.12598).
    """
    check("classifier-free guidance: scale", float, scale)
    if isinstance(scale, int | float) and scale == 1:
        return cond

    def function(x_t: Data, t: Time) -> Denoised:
        c, u, factor = cond(x_t, t), uncond(x_t, t), expand(scale, x_t)
        return c.moved(u.x0 + factor * (c.x0 - u.x0), u.eps + factor * (c.eps - u.eps))

    return cond.replace(function)


def autoguidance(denoise: Denoiser, reference: Denoiser, scale: float | jax.Array) -> Denoiser:
    """Return reference + scale * (denoise - reference): away from what another, worse network predicts.

    The reference may be a smaller or less trained network with the same conditioning (autoguidance), or one without
    conditioning; its process may predict something else, but must add noise as `denoise`'s does.

    Args:
      scale: as in `classifier_free`; 1 is no guidance.

    Raises:
      ConfigError: the two processes do not have the same schedule, so that their x_t differ.

    Source: Karras et al. 2024 (arXiv 2406.02507); guidance by an unconditional network of its own: EDM2, section 3.4
    (arXiv 2312.02696).
    """
    check("autoguidance: scale", float, scale)
    ours, theirs = denoise.process.schedule, reference.process.schedule
    times = np.linspace(0.05, 0.95, 7)
    if ours.family != theirs.family or not np.allclose(ours.log_snr(times), theirs.log_snr(times), atol=1e-3):
        raise ConfigError(
            f"guidance by a second model: the schedules {ours.name!r} and {theirs.name!r} differ in noise; both models "
            "need the same schedule"
        )
    return classifier_free(denoise, reference, scale)


RESCALED = ("output", "x0")
"""What `rescale` may pull: the network's output, as published, or the predicted x0."""


def rescale(guided: Denoiser, plain: Denoiser, phi: float = 0.7, of: str = "output") -> Denoiser:
    """Pull the standard deviation of the guided prediction, per sample, back towards that of the plain one.

    Args:
      plain: the conditional prediction without guidance.
      phi: 0 leaves the guided prediction, 1 matches the standard deviation fully.
      of: "output" scales what the network was asked for, be it noise, v or x0, as published code does; "x0" the predicted
        clean data whatever the prediction, which is another picture: 12 % of its deviation for v, 24 % for the noise.

    Raises:
      ConfigError: phi outside of [0, 1], or an unknown `of`.

    Source: Lin et al. 2024, section 3.4 (arXiv 2305.08891).
    """
    if not 0 <= phi <= 1:
        raise ConfigError(f"guidance rescale: phi must lie in [0, 1], got {phi}")
    check_choice("guidance rescale: of", of, RESCALED)
    process = guided.process

    def function(x_t: Data, t: Time) -> Denoised:
        strong, weak = guided(x_t, t), plain(x_t, t)
        if of == "x0":
            return process.with_x0(strong, strong.x0 * _pull(strong.x0, weak.x0, phi), x_t, t)
        output, wanted = (process.target(each.x0, each.eps, t) for each in (strong, weak))
        scaled = process.decode_prediction(output * _pull(output, wanted, phi), x_t, t)
        return strong.moved(*scaled)

    return guided.replace(function)


def _pull(strong: Data, weak: Data, phi: float) -> jax.Array:
    """The factor per sample that takes the share phi of the way to the other's standard deviation."""
    axes = tuple(range(1, strong.ndim))
    ratio = jnp.std(weak, axes, keepdims=True) / jnp.maximum(jnp.std(strong, axes, keepdims=True), 1e-8)
    return phi * ratio + 1 - phi


def interval(guided: Denoiser, plain: Denoiser, low: float, high: float) -> Denoiser:
    """Return the guided prediction where low < sigma / alpha <= high, else the plain one.

    Args:
      low, high: noise levels sigma / alpha = exp(-log_snr / 2), in units of the data.

    Source: Kynkaanniemi et al. 2024 (arXiv 2404.07724).
    """
    if not 0 <= low < high:
        raise ConfigError(f"guidance interval: needs 0 <= low < high in units of sigma / alpha, got {low} and {high}")

    def function(x_t: Data, t: Time) -> Denoised:
        strong, weak = guided(x_t, t), plain(x_t, t)
        level = jnp.exp(-0.5 * guided.process.log_snr(t))
        within = expand((level > low) & (level <= high), x_t)
        return strong.moved(jnp.where(within, strong.x0, weak.x0), jnp.where(within, strong.eps, weak.eps))

    return guided.replace(function)


def _check_range(what: str, data_range: DataRange) -> None:
    if not data_range[0] < data_range[1]:
        raise ConfigError(f"{what}: data_range needs low < high, got {data_range[0]} and {data_range[1]}")


def static_threshold(denoise: Denoiser, data_range: DataRange = PIXELS) -> Denoiser:
    """Clip the predicted x0 to the range of the data, that of pixels by default, and derive eps anew."""
    _check_range("static threshold", data_range)

    def function(x_t: Data, t: Time) -> Denoised:
        return denoise.process.clipped(denoise(x_t, t), x_t, t, data_range)

    return denoise.replace(function)


def dynamic_threshold(denoise: Denoiser, percentile: float = 99.5, data_range: DataRange = PIXELS) -> Denoiser:
    """Clip x0 to a percentile of its own distances from the middle of the range, per sample, and scale it back to the range.

    Args:
      percentile: in hundredths, 1 to 100, over all positions and channels of a sample; never is x0 clipped within the range.
      data_range: of the data, that of pixels by default.

    Raises:
      ConfigError: a percentile out of range, as 0.995 is, or a range that is none.

    Source: Saharia et al. 2022, section 2.3 (arXiv 2205.11487).
    """
    check("dynamic threshold: percentile", Percentile, percentile)
    _check_range("dynamic threshold", data_range)
    middle, half = 0.5 * (data_range[0] + data_range[1]), 0.5 * (data_range[1] - data_range[0])

    def function(x_t: Data, t: Time) -> Denoised:
        denoised = denoise(x_t, t)
        distance = denoised.x0 - middle
        reach = jnp.percentile(jnp.abs(distance.reshape(x_t.shape[0], -1)), percentile, axis=-1)
        limit = expand(jnp.maximum(reach, half), x_t)
        return denoise.process.with_x0(denoised, middle + half * (jnp.clip(distance, -limit, limit) / limit), x_t, t)

    return denoise.replace(function)


def classifier(denoise: Denoiser, log_prob: Callable[[Data, Time], jax.Array], scale: float = 1.0) -> Denoiser:
    """Move the predicted score by the gradient of a log-probability of x_t: eps - scale * sigma * grad.

    Args:
      log_prob: (x_t [B, ...], t [B]) -> [B], such as a noisy classifier's log p(label | x_t); differentiable in x_t.
      scale: 0 leaves the denoiser, 1 gives the exact conditional where both are exact. At zero SNR, where x_t says
        nothing of the label, the prediction is left as it is.

    The gradient is taken at x_t. Solvers of the flow take the shifted eps and the x0 that belongs to it, which is not clipped
    again; `ddpm` keeps the mean of the denoiser's own x0 and moves it by its variance times that gradient. Apply thresholds
    before.

    Source: Dhariwal & Nichol 2021, algorithms 1 (`ddpm`) and 2 (all others), arXiv 2105.05233.
    """
    if isinstance(scale, int | float) and scale == 0:
        return denoise

    def function(x_t: Data, t: Time) -> Denoised:
        denoised = denoise(x_t, t)
        gradient = jax.grad(lambda x: log_prob(x, t).sum())(x_t)
        alpha, sigma = (expand(coefficient, x_t) for coefficient in denoise.process.alpha_sigma(t))
        gradient = scale * jnp.where(alpha > 0, gradient, 0.0)
        x0 = denoised.x0 + sigma**2 / jnp.where(alpha > 0, alpha, 1.0) * gradient
        return denoised.moved(x0, denoised.eps - sigma * gradient)._replace(classifier_gradient=gradient)

    return denoise.replace(function)
