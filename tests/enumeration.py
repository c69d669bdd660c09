"""Tiny worlds of bits and categories, enumerated in float64: every state, every transition matrix, no closed form.

An example is N elements of S states each; its S^N states stand in the order of `itertools.product`. Time is a chain of T steps
whose betas are 1 / T, 1 / (T - 1), ..., 1.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.process import Denoiser
from diffusion_jax.process.discrete import Categorical

STEPS = 4


@dataclasses.dataclass(frozen=True)
class World:
    """A chain of T = 4 steps on N elements of K values, and a reverse model of random logits."""

    noise: str
    values: int
    elements: int = 3
    seed: int = 0

    @property
    def process(self) -> Categorical:
        return Categorical(self.values, self.noise)

    @property
    def size(self) -> int:
        return self.values + (self.noise == "absorbing")

    # One element ------------------------------------------------------------------------------------------------------

    def step(self, number: int) -> np.ndarray:
        """The matrix of step 1 to T, [from, to], as the papers write it."""
        beta = 1 / (STEPS - number + 1)
        if self.noise == "uniform":
            return (1 - beta) * np.eye(self.size) + beta / self.size
        matrix = (1 - beta) * np.eye(self.size)
        matrix[:, -1] += beta
        return matrix

    def between(self, s: int, t: int) -> np.ndarray:
        """The matrix of all steps after s up to t."""
        return functools.reduce(np.matmul, [self.step(number) for number in range(s + 1, t + 1)], np.eye(self.size))

    def posterior(self, s: int, t: int) -> np.ndarray:
        """q(x_s | x_t, x0) by Bayes' rule, [x0, x_t, x_s]; NaN where x0 cannot become x_t."""
        joint = np.einsum("ij,jk->ikj", self.between(0, s), self.between(s, t))[: self.values]
        with np.errstate(invalid="ignore"):
            return joint / joint.sum(-1, keepdims=True)

    # All elements -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def states(self) -> np.ndarray:
        """int [S^N, N]."""
        return np.array(list(itertools.product(range(self.size), repeat=self.elements)))

    @functools.cached_property
    def data(self) -> np.ndarray:
        """The places of the states without a mask, in `states`."""
        return np.flatnonzero((self.states < self.values).all(-1))

    def together(self, matrix: np.ndarray) -> np.ndarray:
        """The matrix of all elements from that of one."""
        return functools.reduce(np.kron, [matrix] * self.elements)

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """What the model's network says at times 1 to T of every state: float32 [T, S^N, N, K]."""
        shape = (STEPS, len(self.states), self.elements, self.values)
        return np.random.default_rng(self.seed).normal(0, 1.5, shape).astype(np.float32)

    def clean(self, t: int) -> np.ndarray:
        """p(x0 | x_t) of every element in every state, [S^N, N, K]; 0 where no x0 can become x_t."""
        weight = np.exp(self.logits[t - 1].astype(np.float64)) * self.between(0, t)[: self.values].T[self.states]
        return weight / np.maximum(weight.sum(-1, keepdims=True), 1e-300)

    def reverse(self, s: int, t: int, clean: np.ndarray | None = None) -> np.ndarray:
        """p(x_s | x_t), [x_t, x_s] over whole states; elements are independent given x_t."""
        posterior = np.nan_to_num(self.posterior(s, t))[:, self.states]  # [x0, S^N, N, x_s]
        single = np.einsum("xni,ixnk->xnk", self.clean(t) if clean is None else clean, posterior)
        return np.prod([single[:, n][:, self.states[:, n]] for n in range(self.elements)], axis=0)

    @functools.cached_property
    def model(self) -> np.ndarray:
        """The distribution of the chain's samples, [S^N]."""
        start = np.full(self.size, 1 / self.size) if self.noise == "uniform" else np.eye(self.size)[-1]
        start = functools.reduce(np.kron, [start] * self.elements)
        return functools.reduce(np.matmul, [self.reverse(t - 1, t) for t in range(STEPS, 0, -1)], start)

    @functools.cached_property
    def bound(self) -> np.ndarray:
        """E_q[log q(x_1, ..., x_T | x0) - log p(x_0, ..., x_T)] of every clean state, over all pairs of neighbours; in nats."""
        log = lambda p: np.log(np.where(p > 0, p, 1.0))  # noqa: E731
        total = np.zeros(len(self.data))
        for t in range(1, STEPS + 1):
            before, step = self.together(self.between(0, t - 1))[self.data], self.together(self.step(t))
            pairs = before[:, :, None] * step  # q(x_{t-1}, x_t | x0)
            total += (pairs * (log(step) - log(self.reverse(t - 1, t)).T)).sum((1, 2))
        start = self.together(self.between(0, STEPS))[self.data]  # the prior, whose probabilities are the chain's end
        return total - (start * log(start)).sum(-1)

    # For the library --------------------------------------------------------------------------------------------------

    def place(self, x: jax.Array) -> jax.Array:
        """The place of x [B, N] in `states`."""
        return (x * self.size ** jnp.arange(self.elements - 1, -1, -1)).sum(-1)

    def denoiser(self) -> Denoiser:
        """The model, by the library's `decode`."""
        process, table = self.process, jnp.asarray(self.logits)

        def function(x: jax.Array, t: jax.Array) -> jax.Array:
            index = jnp.round(t * STEPS).astype(int) - 1
            return process.decode(table[index, self.place(x)].reshape(x.shape[0], -1), x, t)

        return Denoiser(function, process)


BITS = World("uniform", 2)
TOKENS = World("uniform", 3, elements=2)
MASKED = World("absorbing", 2)
MASKED_TOKENS = World("absorbing", 3, elements=2)
WORLDS = {"bits": BITS, "tokens": TOKENS, "masked": MASKED, "masked tokens": MASKED_TOKENS}
