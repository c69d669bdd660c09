"""What the studies of image restoration share: held-out images, regression by a diffusion model, fidelity and sharpness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data, training
from diffusion_jax.inference.run import Run
from diffusion_jax.rng import named
from diffusion_jax.systems import Diffusion, Sampling, to_uint8
from diffusion_jax.training.recipes import load_recipe


def trained(recipe: str, workdir: str) -> Run:
    """The run of a recipe, trained first (or to its end) where it is not finished."""
    training.train(load_recipe(recipe), workdir)
    return Run.open(workdir)


def held_out(config: Mapping[str, Any], num: int, **fields: Any) -> dict[str, np.ndarray]:
    """The first held-out examples of a run's data, with some fields of its pipeline replaced."""
    pipeline = data.from_config({**config["data"], **fields}, seed=config["seed"], split="test")
    return next(iter(pipeline.one_pass(num, limit=num)))


class Drawer:
    """Draws and regresses with one system, compiled once: all requests must have one size."""

    def __init__(self, system: Diffusion, params: Any, sampling: Sampling, draws: int = 8) -> None:
        self._params = params

        @jax.jit
        def sample(params: Any, key: jax.Array, request: Any) -> jax.Array:
            indices = jnp.arange(len(next(iter(request.values()))))
            return to_uint8(system.sample(params, key, request, indices, sampling))

        @jax.jit
        def regress(params: Any, key: jax.Array, request: Any) -> jax.Array:
            count = len(next(iter(request.values())))
            denoise = system.denoiser(params, key, request, jnp.arange(count), Sampling(threshold="static"))
            return denoise(jax.random.normal(named(key, "pure noise"), (count, *system.spec.shape)), jnp.ones(count)).x0

        self._sample, self._regress, self._draws = sample, regress, draws

    def sample(self, request: Any, seed: int = 0) -> np.ndarray:
        """One sample for each request, uint8."""
        return np.asarray(self._sample(self._params, jax.random.key(seed), request))

    def regress(self, request: Any) -> np.ndarray:
        """The model's mean of x0 seen from pure noise, averaged over noises: what a regression would give, uint8."""
        found = [self._regress(self._params, jax.random.key(number), request) for number in range(self._draws)]
        return np.asarray(to_uint8(sum(found) / len(found)))


def psnr(made: np.ndarray, real: np.ndarray, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of bytes, of the mean squared error over all images, or over the pixels `where`."""
    squares = (made.astype(np.float64) - real) ** 2
    error = squares.mean() if where is None else squares[np.broadcast_to(where, squares.shape)].mean()
    return float(10 * np.log10(255**2 / error))


def sharpness(images: np.ndarray) -> float:
    """The mean energy of differences between neighbouring pixels."""
    images = images.astype(np.float64)
    return float(np.mean(np.diff(images, axis=1) ** 2) + np.mean(np.diff(images, axis=2) ** 2))
