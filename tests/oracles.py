"""Closed forms: denoisers that are exactly right for Gaussian and mixture data, and what a perfect sampler makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from diffusion_jax.process import Denoised, Denoiser, Process
from diffusion_jax.process.schedules import alpha_sigma_from_log_snr


class Mixture(NamedTuple):
    """Data sum_k weights[k] N(means[k], diag(variances[k])) in D dimensions, rotated; one component is a Gaussian.

    A pytree of float64 arrays: weights [K], means [K, D], variances [K, D], and rotation [D, D] with the axes in
    columns (None: no rotation), which makes the covariances full.
    """

    weights: Any
    means: Any
    variances: Any
    rotation: Any = None

    @classmethod
    def gaussian(cls, mean: Any, variance: Any) -> Mixture:
        return cls(np.ones(1), np.array([mean], float), np.array([variance], float))

    def component(self, k: int) -> Mixture:
        return self._replace(weights=np.ones(1), means=self.means[k : k + 1], variances=self.variances[k : k + 1])

    def along_axes(self, x: Any) -> Any:
        """x [B, D] in the coordinates in which the components are diagonal."""
        return x if self.rotation is None else x @ self.rotation

    def from_axes(self, x: Any) -> Any:
        """The inverse of `along_axes`."""
        return x if self.rotation is None else x @ self.rotation.T

    # Densities and denoisers; alpha and sigma are [B, 1], or scalars --------------------------------------------------

    def log_joint(self, x: Any, alpha: Any, sigma: Any) -> jax.Array:
        """log weights[k] p(x_t | k): [B, K]."""
        mean = alpha[..., None] * self.means
        variance = alpha[..., None] ** 2 * self.variances + sigma[..., None] ** 2
        distance = (self.along_axes(x)[:, None] - mean) ** 2 / variance
        return jnp.log(self.weights) - 0.5 * (distance + jnp.log(2 * jnp.pi * variance)).sum(-1)

    def log_density(self, x: Any, alpha: Any, sigma: Any) -> jax.Array:
        return jax.nn.logsumexp(self.log_joint(x, alpha, sigma), axis=-1)

    def posterior_means(self, x: Any, alpha: Any, sigma: Any) -> tuple[jax.Array, jax.Array]:
        """E[x0 | x_t] and E[eps | x_t], by Gaussian conditioning in every component; alpha may be 0."""
        share = jax.nn.softmax(self.log_joint(x, alpha, sigma), axis=-1)[..., None]
        alpha, sigma = alpha[..., None], sigma[..., None]
        whitened = (self.along_axes(x)[:, None] - alpha * self.means) / (alpha**2 * self.variances + sigma**2)
        x0 = (share * (self.means + alpha * self.variances * whitened)).sum(1)
        return self.from_axes(x0), self.from_axes((share * sigma * whitened).sum(1))

    def denoiser(self, process: Process) -> Denoiser:
        """Exact, by way of the process's parameterisation: encoded as the network's target, and decoded."""

        def function(x: jax.Array, t: jax.Array) -> Denoised:
            x0, eps = self.posterior_means(x, *(value[:, None] for value in process.alpha_sigma(t)))
            return process.decode(process.target(x0, eps, t), x, t)

        return Denoiser(function, process)

    # What a perfect sampler does; float64 -----------------------------------------------------------------------------

    def marginal(self, process: Process, t: float, count: int, seed: int = 0) -> np.ndarray:
        """Draws of x_t, float64 [count, D]."""
        rng = np.random.default_rng(seed)
        alpha, sigma = process.schedule.alpha_sigma(np.float64(t))
        k = rng.choice(len(self.weights), count, p=self.weights)
        spread = np.sqrt(alpha**2 * self.variances[k] + sigma**2)
        return self.from_axes(alpha * self.means[k] + spread * rng.standard_normal((count, self.means.shape[1])))

    def cdf(self, u: np.ndarray, axis: int = 0, alpha: float = 1.0, sigma: float = 0.0) -> np.ndarray:
        """The distribution function of x_t along an axis."""
        spread = np.sqrt(alpha**2 * self.variances[:, axis] + sigma**2)
        return (self.weights * stats.norm.cdf(np.asarray(u)[..., None], alpha * self.means[:, axis], spread)).sum(-1)

    def transported(self, process: Process, t: float, x: np.ndarray, end: float = 0.0) -> np.ndarray:
        """Where the probability-flow ODE takes x_t, [B, D].

        In one dimension it preserves quantiles, and axes do not mix if the components differ along the first alone.
        """
        assert (np.ptp(self.means[:, 1:], 0) == 0).all() and (np.ptp(self.variances[:, 1:], 0) == 0).all()
        (alpha, sigma), (alpha_end, sigma_end) = (process.schedule.alpha_sigma(np.float64(time)) for time in (t, end))
        along = self.along_axes(np.asarray(x, np.float64))
        ratio = np.sqrt((alpha_end**2 * self.variances[0] + sigma_end**2) / (alpha**2 * self.variances[0] + sigma**2))
        moved = alpha_end * self.means[0] + ratio * (along - alpha * self.means[0])
        if len(self.weights) > 1:
            quantiles = self.cdf(along[:, 0], 0, alpha, sigma)
            excess = lambda y, q: self.cdf(y, 0, alpha_end, sigma_end) - q  # noqa: E731
            moved[:, 0] = [optimize.brentq(excess, -300, 300, args=(q,), xtol=1e-12) for q in quantiles]
        return self.from_axes(moved)


def network(process: Process) -> Callable[..., jax.Array]:
    """An apply function whose parameters are a `Mixture`, and whose output is the target of the process, exactly.

    It sees what a network sees, so `process` must tell it the log-SNR (noise_input="log_snr").
    """

    def apply(data: Mixture, x: jax.Array, log_snr: jax.Array, cond: Any = None) -> jax.Array:
        alpha, sigma = (v[:, None] for v in alpha_sigma_from_log_snr(log_snr, process.schedule.family))
        x_t = x / process.prediction.input_scale(alpha, sigma)
        return process.prediction.target(*data.posterior_means(x_t, alpha, sigma), alpha, sigma)

    return apply


def side_by_side(processes: Sequence[Process], sizes: Sequence[int], data: Mixture) -> Denoiser:
    """A denoiser whose first sizes[0] rows go through the parameterisation of the first process, and so on.

    As `bind` with `network`, but the processes, all of one schedule, share the posterior means, which is what
    compiling takes long for.
    """

    def function(x_t: jax.Array, t: jax.Array) -> Denoised:
        alpha, sigma = (v[:, None] for v in processes[0].alpha_sigma(t))
        cut = lambda array: jnp.split(array, np.cumsum(sizes)[:-1])  # noqa: E731
        rows = list(zip(processes, cut(alpha), cut(sigma), strict=True))
        fed = [process.prediction.input_scale(a, s) * x for (process, a, s), x in zip(rows, cut(x_t), strict=True)]
        seen = [x / process.prediction.input_scale(a, s) for (process, a, s), x in zip(rows, fed, strict=True)]
        means = [cut(mean) for mean in data.posterior_means(jnp.concatenate(seen), alpha, sigma)]
        pairs = []
        for (process, a, s), x, x0, eps in zip(rows, cut(x_t), *means, strict=True):
            pairs.append(process.prediction.decode(process.prediction.target(x0, eps, a, s), x, a, s))
        return Denoised(*(jnp.concatenate(parts) for parts in zip(*pairs, strict=True)))

    return Denoiser(function, processes[0])


QUICK = {"xla_backend_optimization_level": 0}
"""Compiler options for programs so small that compiling them is what takes long."""


def covering(*choices: Sequence[Any]) -> list:
    """All combinations, for `parametrize`: a few that meet every value of every choice run always, the others are slow."""
    choices = tuple(tuple(values) for values in choices)
    quick = {tuple(i % len(values) for values in choices) for i in range(max(map(len, choices)))}
    marks = lambda places: [] if places in quick else [pytest.mark.slow]  # noqa: E731
    every = itertools.product(*(range(len(values)) for values in choices))
    return [pytest.param(*(v[i] for v, i in zip(choices, places, strict=True)), marks=marks(places)) for places in every]


def no_noise(name: str) -> jax.Array:
    """The noise of a solver that must not draw any."""
    raise AssertionError(f"a deterministic solver drew the noise {name!r}")


def rotation(angle: float) -> np.ndarray:
    """Axes of the plane turned by an angle in radians, in columns."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


GAUSSIAN = Mixture.gaussian([0.5, -0.3], [0.3**2, 0.6**2])
LINE = Mixture(np.array([0.3, 0.7]), np.array([[-0.6], [0.5]]), np.array([[0.15**2], [0.25**2]]))

# Of one shape, two components in the plane with full covariances, so that they share a compiled program.
CORRELATED = Mixture(np.full(2, 0.5), np.array([[0.3, -0.4]] * 2), np.array([[0.5**2, 0.2**2]] * 2), rotation(0.6))
BIMODAL = Mixture(
    np.array([0.3, 0.7]), np.array([[-0.6, -0.2], [0.6, -0.2]]), np.array([[0.04, 0.04], [0.06, 0.04]]), rotation(-0.8)
)
