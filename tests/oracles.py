"""Closed forms: denoisers that are exactly right for Gaussian and mixture data, and what a perfect sampler makes of them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from diffusion_jax.process import Denoiser, Process


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Data sum_k weights[k] N(means[k], diag(variances[k])) in D dimensions; one component is a Gaussian."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    @classmethod
    def gaussian(cls, mean, variance) -> Mixture:
        return cls(np.ones(1), np.array([mean], float), np.array([variance], float))

    def component(self, k: int) -> Mixture:
        return Mixture.gaussian(self.means[k], self.variances[k])

    def log_joint(self, x, alpha, sigma):
        """log weights[k] p(x_t | k): [B, K]."""
        mean = alpha[..., None] * self.means
        variance = alpha[..., None] ** 2 * self.variances + sigma[..., None] ** 2
        quadratic = -0.5 * ((x[:, None] - mean) ** 2 / variance + jnp.log(2 * jnp.pi * variance)).sum(-1)
        return quadratic + jnp.log(self.weights)

    def log_density(self, x, alpha, sigma):
        return jax.nn.logsumexp(self.log_joint(x, alpha, sigma), axis=-1)

    def posterior_mean(self, x, alpha, sigma):
        """E[x0 | x_t], by Gaussian conditioning in every component."""
        share = jax.nn.softmax(self.log_joint(x, alpha, sigma), axis=-1)
        gain = alpha[..., None] * self.variances / (alpha[..., None] ** 2 * self.variances + sigma[..., None] ** 2)
        means = self.means + gain * (x[:, None] - alpha[..., None] * self.means)
        return (share[..., None] * means).sum(1)

    def denoiser(self, process: Process) -> Denoiser:
        """Exact, by way of the process's parameterisation: encoded as the network's target, and decoded."""

        def function(x, t):
            alpha, sigma = (value[:, None] for value in process.alpha_sigma(t))
            x0 = self.posterior_mean(x, alpha, sigma)
            eps = (x - alpha * x0) / sigma
            return process.decode(process.target(x0, eps, t), x, t)

        return Denoiser(function, process)

    def marginal(self, process: Process, t: float, count: int, seed: int = 0) -> np.ndarray:
        """Draws of x_t, float64 [count, D]."""
        rng = np.random.default_rng(seed)
        alpha, sigma = process.schedule.alpha_sigma(np.float64(t))
        k = rng.choice(len(self.weights), count, p=self.weights)
        spread = np.sqrt(alpha**2 * self.variances[k] + sigma**2)
        return alpha * self.means[k] + spread * rng.standard_normal((count, self.means.shape[1]))

    def transported(self, process: Process, t: float, x: np.ndarray) -> np.ndarray:
        """Where the probability-flow ODE takes x_t at t = 0, in one dimension: it preserves quantiles."""
        alpha, sigma = process.schedule.alpha_sigma(np.float64(t))
        spread, noisy = np.sqrt(self.variances[:, 0]), np.sqrt(alpha**2 * self.variances[:, 0] + sigma**2)
        data = lambda y: (self.weights * stats.norm.cdf(y, self.means[:, 0], spread)).sum()  # noqa: E731
        quantiles = [(self.weights * stats.norm.cdf(v, alpha * self.means[:, 0], noisy)).sum() for v in x[:, 0]]
        return np.array([optimize.brentq(lambda y, q=q: data(y) - q, -20, 20, xtol=1e-12) for q in quantiles])[:, None]

    def gaussian_transported(self, process: Process, t: float, x: np.ndarray, end: float = 0.0) -> np.ndarray:
        """The same for one Gaussian in any dimension, down to any time: an affine map."""
        alpha, sigma = process.schedule.alpha_sigma(np.float64(t))
        alpha_end, sigma_end = process.schedule.alpha_sigma(np.float64(end))
        variance, mean = self.variances[0], self.means[0]
        ratio = np.sqrt((alpha_end**2 * variance + sigma_end**2) / (alpha**2 * variance + sigma**2))
        return alpha_end * mean + ratio * (x - alpha * mean)


GAUSSIAN = Mixture.gaussian([0.5, -0.3], [0.3**2, 0.6**2])
LINE = Mixture(np.array([0.3, 0.7]), np.array([[-0.6], [0.5]]), np.array([[0.15**2], [0.25**2]]))
