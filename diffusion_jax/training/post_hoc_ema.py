"""Averages of the parameters chosen after training: power profiles of any width, out of stored ones.

A run that keeps averages such as {"name": "power", "sigma_rel": 0.05} and 0.10, and checkpoints every so many steps
(`training.keep_every`), holds a basis of profiles. A profile of another width is the combination of these that is nearest to it
in the least-squares sense; the parameters are combined alike.

Source: Karras et al. 2024, section 3.2 and appendix C (arXiv 2312.02696).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import systems
from diffusion_jax.errors import CheckpointError
from diffusion_jax.training import config as configs
from diffusion_jax.training import ema as emas
from diffusion_jax.training.checkpoints import finished_steps, restore_part, restore_weights
from diffusion_jax.training.given_weights import check_empty, save_run
from diffusion_jax.training.state import TrainState
from diffusion_jax.values import check

logger = logging.getLogger(__name__)


class Profile(NamedTuple):
    """The power profile (g + 1) t^g / end^(g + 1) on [0, end].

    Attributes:
      end: the steps taken when the average was stored.
      sigma_rel: its relative width, which sets g: see `ema.power_exponent`.
    """

    end: int
    sigma_rel: float


def overlaps(first: Sequence[Profile], second: Sequence[Profile]) -> np.ndarray:
    """Compute the inner products of profiles, float64 [len(first), len(second)]: integrals of their products over training.

    >>> overlaps([Profile(10, 0.1)], [Profile(10, 0.1)]).round(6).tolist()
    [[0.423541]]
    """
    end_a, g_a = np.array([(p.end, emas.power_exponent(p.sigma_rel)) for p in first], np.float64).T[:, :, None]
    end_b, g_b = np.array([(p.end, emas.power_exponent(p.sigma_rel)) for p in second], np.float64).T[:, None, :]
    until = np.minimum(end_a, end_b)
    powers = (until / end_a) ** g_a * (until / end_b) ** g_b * until / (end_a * end_b)
    return (g_a + 1) * (g_b + 1) / (g_a + g_b + 1) * powers


def coefficients(stored: Sequence[Profile], target: Profile) -> np.ndarray:
    """Find how much of each stored profile makes the target, float64 [len(stored)], summing to 1; profiles beyond it get 0."""
    usable = [profile.end <= target.end for profile in stored]
    basis = [profile for profile, use in zip(stored, usable, strict=True) if use]
    # The same solution in units in which all profiles have length 1, where float64 keeps more digits.
    gram, right = overlaps(basis, basis), overlaps(basis, [target])[:, 0]
    length = np.sqrt(np.diag(gram))
    solution = np.linalg.lstsq(gram / np.outer(length, length), right / length, rcond=None)[0] / length
    found = np.zeros(len(stored))
    found[np.flatnonzero(usable)] = solution / solution.sum()
    return found


def residual(stored: Sequence[Profile], factors: np.ndarray, target: Profile) -> float:
    """Measure the distance of the combination from the target profile, relative to the target's length."""
    both = [*stored, target]
    mixed = np.append(factors, -1.0)
    length = overlaps([target], [target])[0, 0]
    return float(np.sqrt(max(mixed @ overlaps(both, both) @ mixed, 0.0) / length))


class Reconstruction(NamedTuple):
    """Parameters averaged by a profile that training did not keep.

    Attributes:
      params: {group: tree}, float32.
      step: of the checkpoint where the profile ends.
      used: the stored profiles and their factors.
      residual: see `residual`.
    """

    params: Any
    step: int
    used: dict[Profile, float]
    residual: float


def reconstruct(workdir: str | Path, sigma_rel: float, step: int | None = None) -> Reconstruction:
    """Combine the parameters averaged by a power profile that training did not keep.

    Args:
      workdir: of a run with one or more "power" averages and several checkpoints.
      sigma_rel: the wanted width, in (0, 0.28).
      step: of the checkpoint where the profile ends; the newest by default.

    Raises:
      ConfigError: a width out of range.
      CheckpointError: no run, no such checkpoint, or no power averages in it.
    """
    check("sigma_rel", emas.Width, sigma_rel)
    config = configs.read(workdir)
    powers = {a.sigma_rel: a.label for a in emas.from_config(config["training"]["ema"]) if isinstance(a, emas.Power)}
    if not powers:
        raise CheckpointError(
            f"{workdir} keeps no power averages, of which others are made: train with training.ema "
            "[{'name': 'power', 'sigma_rel': 0.05}, {'name': 'power', 'sigma_rel': 0.1}] and training.keep_every"
        )
    step = _chosen(workdir, step)
    steps = [found for found in finished_steps(workdir) if found <= step]
    taken = {found: _taken(workdir, found) for found in steps}
    stored = [Profile(taken[found], width) for found in steps for width in powers]
    target = Profile(taken[step], sigma_rel)
    factors = coefficients(stored, target)
    places = [(found, width) for found in steps for width in powers]
    params = _combine(workdir, config, [(found, powers[width]) for found, width in places], factors)
    left = residual(stored, factors, target)
    if left > 0.01:
        logger.warning(
            "The %d stored profiles reach the width %g within %.1f%% only: keep checkpoints more often (training.keep_every).",
            len(stored), sigma_rel, 100 * left,
        )  # fmt: skip
    return Reconstruction(params, step, dict(zip(stored, factors.tolist(), strict=True)), left)


def write_run(workdir: str | Path, out: str | Path, sigma_rel: float, step: int | None = None) -> Reconstruction:
    """Write the reconstruction as a run of its own, for the programs `sample` and `evaluate`: "ema" is the new average.

    The configuration is the run's, with the new average as the only one; "raw" stays the checkpoint's own weights.
    The directory has no optimiser, and cannot be trained on.

    Raises:
      ConfigError, CheckpointError: as `reconstruct`; or `out` holds a run.
    """
    average = emas.Power(sigma_rel)
    config = configs.apply_overrides(configs.read(workdir), {"training.ema": [{"name": "power", "sigma_rel": sigma_rel}]})
    check_empty(out)
    found = reconstruct(workdir, sigma_rel, step)
    raw, _ = restore_weights(workdir, _target(config), "raw", found.step)
    state = TrainState(
        step=jnp.int32(found.step), params=raw, ema={average.label: found.params}, opt_state={}, system_state={},
        skipped=jnp.int32(0),
    )  # fmt: skip
    save_run(config, out, state, found.step)
    return found


def _chosen(workdir: str | Path, step: int | None) -> int:
    steps = finished_steps(workdir)
    if not steps:
        raise CheckpointError(f"{workdir} has no finished checkpoint yet; train first, or check --workdir")
    if step is not None and step not in steps:
        raise CheckpointError(f"{workdir} has no checkpoint of step {step} (it has: {', '.join(map(str, steps))})")
    return steps[-1] if step is None else step


def _device() -> Any:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _target(config: Any) -> Any:
    shapes = jax.eval_shape(systems.from_config(config).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_device()), shapes)


def _taken(workdir: str | Path, step: int) -> int:
    """The steps that changed the averages: skipped ones did not."""
    counts = jax.ShapeDtypeStruct((), jnp.int32, sharding=_device())
    return step - int(restore_part(workdir, {"skipped": counts}, step)["skipped"])


def _combine(workdir: str | Path, config: Any, places: Sequence[tuple[int, str]], factors: np.ndarray) -> Any:
    """The sum of stored averages times their factors: float64 on the host, a snapshot at a time."""
    target, total = _target(config), None
    for (step, label), factor in zip(places, factors, strict=True):
        if not factor:
            continue
        params, _ = restore_weights(workdir, target, label, step)
        part = jax.tree.map(lambda leaf, factor=factor: factor * np.asarray(leaf, np.float64), params)
        total = part if total is None else jax.tree.map(np.add, total, part)
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), total, target)
