"""What studies share: how one runs as a program, trained runs, digits, samples, and the fidelity of restored images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data, programs, training
from diffusion_jax.errors import ConfigError
from diffusion_jax.inference import Run, command_line
from diffusion_jax.rng import named
from diffusion_jax.systems import Diffusion, Sampling, request_of, to_uint8
from diffusion_jax.training.recipes import load_recipe


def run_program(name: str, work: Callable[[], str]) -> None:
    """Parse flags, run a study and exit: its text on stdout, or one line on stderr and status 2.

    Args:
      work: does it, and returns what to print.
    """

    def checked(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
        if overrides:
            raise ConfigError(f"a study takes its recipes as they are: leave out --config.{next(iter(overrides))}")
        programs.configure_logging()
        programs.keep_compiled()
        return work()

    command_line.run_program(name, lambda: None, checked)


def trained(recipe: str, workdir: Any, overrides: Mapping[str, Any] | None = None) -> Run:
    """Return the run of a recipe, trained first (or to its end) where it is not finished."""
    training.train(load_recipe(recipe, overrides), workdir)
    return Run.open(workdir)


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all real digits of a split: images uint8 [N, 8, 8, 1], labels int32 [N]."""
    config = {"source": "digits", "image_size": 8, "channels": 1, "batch_size": 1}
    batch = next(data.from_config(config, split=split).one_pass(2000))
    return batch["image"], batch["label"]


def draw(run: Run, num: int, sampling: Mapping[str, Any], key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Draw ten classes in turn: images uint8 [num, H, W, C] and labels int32 [num]; sample i has the same noise in every run.

    Args:
      sampling: fields of `Sampling`.
    """
    settings = Sampling.from_config(sampling)
    run.system.check_sampling(settings)
    labels, indices = np.arange(num, dtype=np.int32) % 10, jnp.arange(num)
    sample = jax.jit(lambda params: to_uint8(run.system.sample(params, key, {"label": labels}, indices, settings)))
    return np.asarray(sample(run.params())), labels


def held_out(run: Run, num: int, **fields: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the first held-out examples of a run's data, and the request for what is like them.

    Args:
      fields: of the pipeline, in place of the run's.
    """
    batch = next(run.data.pipeline("test", **fields).one_pass(num, limit=num))
    return batch, {name: np.asarray(value) for name, value in request_of(run.system, batch).items()}


class Restorer:
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
        """Draw one sample for each request, uint8."""
        return np.asarray(self._sample(self._params, jax.random.key(seed), request))

    def regress(self, request: Any) -> np.ndarray:
        """Return the model's mean of x0 seen from pure noise, averaged over noises: what a regression would answer, uint8."""
        found = [self._regress(self._params, jax.random.key(number), request) for number in range(self._draws)]
        return np.asarray(to_uint8(sum(found) / len(found)))


def psnr(made: np.ndarray, real: np.ndarray, where: np.ndarray | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB of bytes, of all pixels together, or of those `where`."""
    squares = (made.astype(np.float64) - real) ** 2
    error = squares.mean() if where is None else squares[np.broadcast_to(where, squares.shape)].mean()
    return float(10 * np.log10(255**2 / error))


def sharpness(images: np.ndarray) -> float:
    """Return the mean energy of differences between neighbouring pixels."""
    images = images.astype(np.float64)
    return float(np.mean(np.diff(images, axis=1) ** 2) + np.mean(np.diff(images, axis=2) ** 2))
