"""A diffusion process: schedule, parameterisation and reverse variance, written once for any pair of times s < t."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import ConfigError, check_choice
from diffusion_jax.process.parameterisations import Mu, Parameterisation
from diffusion_jax.process.schedules import Schedule
from diffusion_jax.process.tables import floating
from diffusion_jax.process.types import PIXELS, Data, DataRange, Denoised, Denoiser, Time, expand
from diffusion_jax.registry import build, known, part

VARIANCES = ("fixed_small", "fixed_large", "learned_range", "learned_diagonal")
NOISE_INPUTS = ("auto", "timestep", "rescaled_timestep", "log_snr", "log_sigma")


def gaussian(process: Any, what: str, instead: str) -> Process:
    """Return the process, if it is Gaussian.

    Args:
      what: what needs it, and `instead` what to use with other processes, for the message.

    Raises:
      ConfigError: it is another one, which has neither log-SNR nor noise to predict.
    """
    if not isinstance(process, Process):
        raise ConfigError(f"{what} needs a Gaussian process, but this one is {type(process).__name__}: use {instead}")
    return process


def log1mexp(x: Any) -> jax.Array:
    """Return log(1 - exp(x)) for x < 0, to float32 precision at both ends; -inf gives 0."""
    return jnp.where(x > -0.6931472, jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))


@part("process", "diffusion")
@dataclasses.dataclass(frozen=True)
class Process:
    """x_t = alpha(t) * x0 + sigma(t) * eps, and what a network predicts of it.

    Args:
      schedule: a `Schedule`, its name or its configuration.
      prediction: "eps", "x0", "v", "score", "velocity", "edm", "mu", or a `Parameterisation`.
      variance: of the reverse step. "fixed_small" is the posterior's variance given x0, "fixed_large" the forward
        variance; "learned_range" interpolates their logarithms by extra output channels (Nichol & Dhariwal 2021,
        arXiv 2102.09672); "learned_diagonal" reads the log-variance from them.
      noise_input: the number that tells the network the noise level. "timestep": the index 0..T-1;
        "rescaled_timestep": that times 1000 / T, or 1000 * t in continuous time; "log_snr"; "log_sigma":
        ln(sigma / alpha) / 4 (EDM). "auto": log_sigma for EDM and consistency models, else rescaled_timestep. Others are
        in `edm_design`, or any function (process, t [B]) -> [B].
      decoder: how the bound, as a loss and as bits per dimension, has the normal distribution function in its term at the
        data, the likelihood of a level's bin: "exact", or by the "tanh" of published code, which differs by up to 3e-4 and
        whose gradients are those of published L_hybrid and L_vlb.

    Raises:
      ConfigError: unknown names, a prediction of noise with a schedule that ends in zero SNR, or "mu" in continuous
        time.

    >>> from diffusion_jax.process import schedules
    >>> process = Process(schedules.cosine(), prediction="v")
    >>> process.num_steps
    1000
    """

    schedule: Any
    prediction: Any = "eps"
    variance: Literal["fixed_small", "fixed_large", "learned_range", "learned_diagonal"] = "fixed_small"
    noise_input: Any = "auto"
    decoder: Literal["exact", "tanh"] = "exact"

    def __post_init__(self) -> None:
        schedule: Schedule = build("schedule", self.schedule)
        prediction: Parameterisation = build("prediction", self.prediction)
        if isinstance(prediction, Mu):
            prediction = prediction.on(schedule)
        noise_input = self.noise_input
        if isinstance(noise_input, str) and noise_input not in NOISE_INPUTS:
            check_choice("process: noise_input", noise_input, (*NOISE_INPUTS, *known("noise_input")))
            noise_input = {"name": noise_input}
        if not isinstance(noise_input, str):
            noise_input = build("noise_input", noise_input)
        if prediction.needs_signal and not np.isfinite(schedule.log_snr(1.0)):
            raise ConfigError(
                f"process: the prediction {prediction.name!r} is undefined at zero SNR, where the schedule "
                f"{schedule.name!r} ends; use 'v', 'x0' or 'velocity'"
            )
        if noise_input == "auto":
            noise_input = "log_sigma" if prediction.name in ("edm", "consistency") else "rescaled_timestep"
        if noise_input == "timestep" and schedule.num_steps is None:
            raise ConfigError(
                f"process: the schedule {schedule.name!r} has no discrete timesteps; use noise_input='rescaled_timestep'"
            )
        object.__setattr__(self, "schedule", schedule)
        object.__setattr__(self, "prediction", prediction)
        object.__setattr__(self, "noise_input", noise_input)

    @property
    def num_steps(self) -> int | None:
        """T of a discrete schedule, or None."""
        return self.schedule.num_steps

    @property
    def learns_variance(self) -> bool:
        """Whether the network outputs a second set of channels for the reverse variance."""
        return self.variance.startswith("learned")

    def output_channels(self, channels: int) -> int:
        """Return how many channels the network must output for data of `channels` channels."""
        return 2 * channels if self.learns_variance else channels

    def log_snr(self, t: Time) -> jax.Array:
        """Return log(alpha^2 / sigma^2), shaped like t."""
        return self.schedule.log_snr(jnp.asarray(t))

    def drop(self, s: Time, t: Time) -> jax.Array:
        """Return log_snr(s) - log_snr(t) for s <= t with all its digits, as s and t broadcast; see `Schedule.drop`."""
        return self.schedule.drop(jnp.asarray(s), jnp.asarray(t))

    def alpha_sigma(self, t: Time) -> tuple[jax.Array, jax.Array]:
        """Return (alpha, sigma), shaped like t, float32 (float64 where t is)."""
        return self.schedule.alpha_sigma(jnp.asarray(t))

    def _coefficients(self, t: Time, x: Data) -> tuple[jax.Array, jax.Array]:
        alpha, sigma = self.alpha_sigma(t)
        return expand(alpha, x), expand(sigma, x)

    # Forward ----------------------------------------------------------------------------------------------------------

    def diffuse(self, x0: Data, t: Time, eps: Data) -> Data:
        """Return a draw of q(x_t | x0): alpha * x0 + sigma * eps."""
        alpha, sigma = self._coefficients(t, x0)
        return alpha * x0 + sigma * eps

    def corrupt(self, key: jax.Array, x0: Data, t: Time) -> tuple[Data, Data]:
        """Draw (x_t, eps): x_t of q(x_t | x0), and the standard normal noise it was made with, both shaped like x0."""
        eps = jax.random.normal(key, x0.shape, jnp.promote_types(x0.dtype, jnp.float32))
        return self.diffuse(x0, t, eps), eps

    def prior(self, key: jax.Array, shape: tuple[int, ...], t: float = 1.0) -> jax.Array:
        """Draw noise to sample from: of unit variance where variance is preserved, else of standard deviation sigma(t).

        Args:
          shape: of the result, float32.
          t: the first time of the sampler's grid, a number.
        """
        noise = jax.random.normal(key, shape)
        return noise if self.schedule.family == "vp" else noise * float(self.schedule.alpha_sigma(np.float64(t))[1])

    def posterior(self, x0: Data, x_t: Data, s: Time, t: Time, later: Time | None = None) -> tuple[jax.Array, jax.Array]:
        """Return mean and log-variance of q(x_s | x_t, x0) for s < t; the log-variance broadcasts against x and is clipped.

        With r = exp(L_t - L_s): mean = r (alpha_s / alpha_t) x_t + (1 - r) alpha_s x0 and variance = (1 - r) sigma_s^2. At T
        neighbouring steps this is DDPM's posterior (Ho et al. 2020, equation 7).

        Args:
          later: the step after t, whose variance stands for the one at s = 0, which vanishes. By default 2 t, the chain's own
            next step where t is its first; of a respaced chain it is the next step that was kept.
        """
        alpha_s, alpha_t = self._coefficients(s, x_t)[0], self._coefficients(t, x_t)[0]
        drop = expand(self.drop(s, t), x_t)
        from_x_t = jnp.where(alpha_t > 0, jnp.exp(-drop) * alpha_s / jnp.where(alpha_t > 0, alpha_t, 1.0), 0.0)
        mean = from_x_t * x_t - jnp.expm1(-drop) * alpha_s * x0
        return mean, expand(self._log_variance_bounds(s, t, later)[0], x_t)

    def _log_variance_bounds(self, s: Time, t: Time, later: Time | None) -> tuple[jax.Array, jax.Array]:
        """Logarithms of the posterior and of the forward variance, (1 - r) sigma_s^2 and (1 - r) sigma_t^2.

        The first vanishes when s is data; it is replaced there by its value one step later, as DDPM does.
        """
        s, t = floating(s), floating(t)
        later = jnp.minimum(2 * t, 1.0) if later is None else floating(later)
        at_data = s <= 0
        early, late = jnp.where(at_data, t, s), jnp.where(at_data, later, t)

        def log_scaled(first, second, sigma):
            return log1mexp(-self.drop(first, second)) + 2 * jnp.log(sigma)

        small = log_scaled(early, late, self.alpha_sigma(early)[1])
        return small, log_scaled(s, t, self.alpha_sigma(t)[1])

    # The network's side -----------------------------------------------------------------------------------------------

    def noise_level(self, t: Time) -> jax.Array:
        """Return what the network is told of the noise level, shaped like t (see `noise_input`)."""
        t = floating(t)
        if callable(self.noise_input):
            return self.noise_input(self, t)
        if self.noise_input == "log_snr":
            return self.log_snr(t)
        if self.noise_input == "log_sigma":
            return -self.log_snr(t) / 8
        if self.num_steps is None:
            return 1000 * t
        index = t * self.num_steps - 1
        return index if self.noise_input == "timestep" else index * (1000 / self.num_steps)

    def network_inputs(self, x_t: Data, t: Time) -> tuple[Data, jax.Array]:
        """Return (scaled x_t, noise level [B]): what the network is fed."""
        alpha, sigma = self._coefficients(t, x_t)
        noise = jnp.broadcast_to(self.noise_level(t), x_t.shape[:1])
        return self.prediction.input_scale(alpha, sigma) * x_t, noise

    def target(self, x0: Data, eps: Data, t: Time) -> Data:
        """Return what the network is asked for."""
        return self.prediction.target(x0, eps, *self._coefficients(t, x0))

    def split(self, output: jax.Array, x_t: Data) -> tuple[jax.Array, jax.Array | None]:
        """Return the network's output [B, ..., C or 2C] as (prediction, variance channels or None), both shaped like x_t.

        Raises:
          ConfigError: another number of channels, or another shape than x_t's.
        """
        channels = x_t.shape[-1]
        if output.shape[-1] != self.output_channels(channels):
            raise ConfigError(
                f"the network outputs {output.shape[-1]} channels, but data of {channels} channels with the variance "
                f"{self.variance!r} needs {self.output_channels(channels)}: set the network's out_channels"
            )
        if output.shape[:-1] != x_t.shape[:-1]:
            raise ConfigError(
                f"the network's output of shape {output.shape} does not fit its input of shape {x_t.shape}: "
                "all axes but the channels must agree"
            )
        return output[..., :channels], output[..., channels:] if self.learns_variance else None

    def decode(self, output: jax.Array, x_t: Data, t: Time) -> Denoised:
        """Return the network's output [B, ..., C or 2C] as (x0, eps, raw variance channels)."""
        prediction, raw = self.split(output, x_t)
        x0, eps = self.decode_prediction(prediction, x_t, t)
        return Denoised(x0, eps, raw, prediction if isinstance(self.prediction, Mu) else None)

    def decode_prediction(self, prediction: Data, x_t: Data, t: Time) -> tuple[Data, Data]:
        """Return (x0, eps) of a prediction shaped like x_t, without variance channels: the inverse of `target`."""
        return self.prediction.decode(prediction, x_t, *self._coefficients(t, x_t))

    def with_x0(self, denoised: Denoised, x0: Data, x_t: Data, t: Time) -> Denoised:
        """Put in another x0 (guided, say), and derive eps anew so that the two stay consistent with x_t."""
        alpha, sigma = self._coefficients(t, x_t)
        return denoised.moved(x0, (x_t - alpha * x0) / sigma)

    def clipped(self, denoised: Denoised, x_t: Data, t: Time, data_range: DataRange = PIXELS) -> Denoised:
        """Clip x0 to a range; a mean that the network itself predicted stays, as DDPM has it."""
        clipped = self.with_x0(denoised, jnp.clip(denoised.x0, *data_range), x_t, t)
        return clipped._replace(mean=denoised.mean)

    def with_eps(self, denoised: Denoised, eps: Data, x_t: Data, t: Time) -> Denoised:
        """Put in another eps (moved by a classifier, say), and derive x0 anew."""
        alpha, sigma = self._coefficients(t, x_t)
        return denoised.moved((x_t - sigma * eps) / alpha, eps)

    def reverse_mean(self, denoised: Denoised, x_t: Data, s: Time, t: Time) -> jax.Array:
        """Return the mean of the reverse step from t to s: the posterior's at the predicted x0.

        Where the network predicts that mean itself ("mu") and s is one step of the chain before t, it is used as it is.
        """
        mean, _ = self.posterior(denoised.x0, x_t, s, t)
        if denoised.mean is None:
            return mean
        one_step = jnp.abs((jnp.asarray(t) - jnp.asarray(s)) * self.num_steps - 1) < 1e-2
        return jnp.where(expand(one_step, x_t), denoised.mean, mean)

    def reverse_log_variance(
        self, denoised: Denoised, s: Time, t: Time, variance: str | None = None, later: Time | None = None
    ) -> jax.Array:
        """Return the log-variance of the reverse step from t to s, broadcasting against x.

        Args:
          denoised: carries the variance channels where they are learned.
          variance: overrides the process's own mode (a learned one must have been trained).
          later: as of `posterior`.
        """
        mode = variance or self.variance
        small, large = (expand(bound, denoised.x0) for bound in self._log_variance_bounds(s, t, later))
        if mode == "fixed_small":
            return small
        if mode == "fixed_large":
            return jnp.where(expand(jnp.asarray(s) <= 0, denoised.x0), small, large)
        if denoised.raw_variance is None:
            raise ConfigError(
                f"the variance {mode!r} needs the network's variance channels, but the process was trained with "
                f"{self.variance!r}; use 'fixed_small' or 'fixed_large'"
            )
        if mode == "learned_diagonal":
            return denoised.raw_variance
        fraction = 0.5 * (denoised.raw_variance + 1)
        return fraction * large + (1 - fraction) * small

    def bind(self, apply: Callable[..., jax.Array], params: Any, cond: Any = None, **kwargs: Any) -> Denoiser:
        """Return a `Denoiser` from a network's apply function, its parameters and its conditioning.

        Args:
          apply: (params, x [B, ...], noise level [B], cond, **kwargs) -> output [B, ..., C or 2C].
          cond: the conditioning dict for the whole batch.
          kwargs: passed on to `apply`, such as `train=True, rngs=...`.
        """

        def function(x_t: Data, t: Time) -> Denoised:
            x, noise = self.network_inputs(x_t, t)
            return self.decode(apply(params, x, noise, cond, **kwargs), x_t, t)

        return Denoiser(function, self)
