"""What training reads and never changes: trained runs or files of weights, found, checked, and loaded once onto the mesh.

The section `frozen` of a configuration names them: {NAME: DIR}, {NAME: {"run": DIR, "step": N, "weights": "ema"}} or
{NAME: {"file": PATH}}, where PATH is a .safetensors file whose tensors are named by their paths ("network/conv_in/kernel").
They are the teachers of students, and whatever else a system's losses read; they are neither averaged nor saved with the run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from diffusion_jax import systems
from diffusion_jax.errors import CheckpointError, ConfigError, nearest
from diffusion_jax.files import read_json, user_path, write_json
from diffusion_jax.registry import check_fields
from diffusion_jax.systems import Distils, System
from diffusion_jax.training import config as configs
from diffusion_jax.training import ema as emas
from diffusion_jax.training.checkpoints import finished_steps, restore_weights
from diffusion_jax.training.mesh import path_name
from diffusion_jax.values import Natural

logger = logging.getLogger(__name__)

_RECORD = "frozen.json"


@dataclasses.dataclass(frozen=True)
class FrozenRun:
    """The weights of a trained run.

    Args:
      run: its directory.
      step: of the checkpoint; None is the newest when training starts (and the same one when it is resumed).
      weights: "ema" (the first average), "raw", or the label of an average.
    """

    run: str
    step: Natural | None = None
    weights: str = "ema"

    @functools.cached_property
    def system(self) -> System:
        """The run's system."""
        return systems.from_config(configs.read(self.run))

    def shapes(self) -> dict[str, Any]:
        """Return the abstract parameters, {group: tree}."""
        return jax.eval_shape(self.system.init, jax.random.key(0))

    def check(self) -> None:
        """Raise a `CheckpointError` if there is no run, no checkpoint of the step, or no such average."""
        labels, steps = self._labels(), finished_steps(self.run)
        if self.weights not in ("ema", "raw", *labels):
            raise CheckpointError(f"{self.run} has no weights {self.weights!r} (it has: ema, raw, {', '.join(labels)})")
        if not steps or (self.step is not None and self.step not in steps):
            wanted = "finished checkpoint" if self.step is None else f"checkpoint of step {self.step}"
            raise CheckpointError(f"the frozen run {self.run} has no {wanted} (it has: {', '.join(map(str, steps)) or 'none'})")

    def _labels(self) -> list[str]:
        return [average.label for average in emas.from_config(configs.read(self.run)["training"]["ema"])]

    def load(self, target: Any, recorded: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """Return (parameters as the target says, identity); of a resumed run, those of the recorded checkpoint.

        Raises:
          CheckpointError: the checkpoint is gone, or cannot be read.
        """
        weights = self._labels()[0] if self.weights == "ema" else self.weights
        step = recorded.get("step", self.step) if recorded else self.step
        params, found = restore_weights(self.run, target, weights, step)
        return params, {"run": str(self.run), "step": found, "weights": weights}


@dataclasses.dataclass(frozen=True)
class FrozenFile:
    """The weights in a .safetensors file, whose tensors are named "GROUP/PATH/OF/LEAF"."""

    file: str

    system = None

    def shapes(self) -> dict[str, Any]:
        """Return the abstract parameters, {group: tree}; floating ones become float32."""
        with self._opened() as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            shapes = {name: (tuple(part.get_shape()), _dtype(part.get_dtype())) for name, part in slices.items()}
        if not shapes or any("/" not in name for name in shapes):
            raise CheckpointError(f"{self.file}: tensors must be named GROUP/PATH/OF/LEAF, found {sorted(shapes)[:3]}")
        return unflatten_dict({tuple(name.split("/")): jax.ShapeDtypeStruct(*of) for name, of in shapes.items()})

    def _opened(self) -> Any:
        try:
            return safe_open(self.file, framework="flax")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"the frozen file {self.file} cannot be read ({error})") from error

    def check(self) -> None:
        """Raise a `CheckpointError` if the file cannot be read."""
        self._opened()

    def load(self, target: Any, recorded: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """Return (parameters as the target says, identity); each device reads its own part of each tensor.

        Raises:
          CheckpointError: the file is not the one that the run began with, or has numbers that are not finite.
        """
        with open(self.file, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if recorded and recorded.get("sha256") != digest:
            raise CheckpointError(f"the frozen file {self.file} has changed since this run began: restore it, or start anew")

        def placed(path: tuple[str, ...], leaf: Any) -> jax.Array:
            name = "/".join(path)
            part = tensors.get_slice(name)
            read = lambda index: self._finite(name, jnp.asarray(part[index], leaf.dtype))  # noqa: E731
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)

        with self._opened() as tensors:
            found = {path: placed(path, leaf) for path, leaf in flatten_dict(target).items()}
        return unflatten_dict(found), {"file": str(self.file), "sha256": digest}

    def _finite(self, name: str, values: jax.Array) -> jax.Array:
        """The values; a `CheckpointError` that names the tensor if one is NaN or infinite."""
        if jnp.issubdtype(values.dtype, jnp.inexact) and not np.isfinite(np.asarray(values, np.float32)).all():
            raise CheckpointError(f"the frozen file {self.file}: {name} has numbers that are not finite")
        return values


def _dtype(name: str) -> Any:
    return jnp.float32 if name[0] in "FB" and name != "BOOL" else jnp.dtype({"I": "int32", "U": "uint8"}.get(name[0], "bool"))


def sources(section: Mapping[str, Any]) -> dict[str, FrozenRun | FrozenFile]:
    """Return what the section `frozen` of a configuration names; entries that are None are left out.

    >>> sources({"teacher": "runs/base", "encoder": {"file": "encoder.safetensors"}})["teacher"]
    FrozenRun(run='runs/base', step=None, weights='ema')

    Raises:
      ConfigError: an entry of another form, unknown fields.
    """
    found: dict[str, FrozenRun | FrozenFile] = {}
    for name, entry in section.items():
        if entry is None:
            continue
        fields = {"run": entry} if isinstance(entry, str) else entry
        if not isinstance(fields, Mapping):
            raise ConfigError(f"frozen.{name} must be a run's directory or a mapping with 'run' or 'file', got {entry!r}")
        kind, place = (FrozenFile, "file") if "file" in fields else (FrozenRun, "run")
        check_fields(f"frozen.{name}", kind, fields)
        found[name] = kind(**{**fields, place: str(user_path(fields[place]))})
    return found


def shapes(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the abstract parameters of all that a section names, {name: {group: tree}}."""
    return {name: source.shapes() for name, source in sources(section).items()}


def check(system: System, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same, having made sure before anything is compiled that it is there and suits the system.

    Raises:
      ConfigError: what the system needs is not named, or is of other data, another process or another network (the first
        parameters that differ are named).
      CheckpointError: there is no run, no checkpoint of the step, no such average, or no file.
    """
    found, needs = sources(section), system.needs if isinstance(system, Distils) else ()
    for name in needs:
        if name not in found:
            hint = nearest(name, found)
            raise ConfigError(f"the system learns from a trained run: name its directory with --config.frozen.{name}=DIR{hint}")
        if found[name].system is not None:
            system.check_frozen(name, found[name].system)
    for source in found.values():
        source.check()
    abstract = {name: source.shapes() for name, source in found.items()}
    if needs:
        whose = ", ".join(f"the {name} {section[name]}" for name in needs)
        _compare(whose, jax.eval_shape(system.init, jax.random.key(0)), jax.eval_shape(system.start, abstract))
    return abstract


def _compare(whose: str, own: Any, start: Any) -> None:
    """Raise a `ConfigError` that names the first parameters in which a student's start differs from its network."""
    ours, theirs = (
        {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]} for tree in (own, start)
    )
    wrong = [name for name in sorted(set(ours) | set(theirs)) if ours.get(name) != theirs.get(name)]
    if wrong and start is not None:
        lines = [f"{name}: {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here" for name in wrong[:3]]
        raise ConfigError(f"{whose} has another network than the student, in {len(wrong)} parameters: {'; '.join(lines)}")


def load(section: Mapping[str, Any], target: Mapping[str, Any], workdir: str | Path | None = None) -> dict[str, Any]:
    """Return {name: {group: tree}} of all that a section names, placed as the target says.

    Args:
      target: `shapes` of the section, with shardings.
      workdir: of the run that reads them. Which checkpoints and files they are is recorded in frozen.json there, and whoever
        goes on with the run, or samples from it, gets the same ones, however much further they have been trained since.

    Raises:
      CheckpointError: a checkpoint or file is gone, cannot be read, or is not the one recorded.
    """
    found, identities = {}, {}
    record = None if workdir is None else Path(workdir) / _RECORD
    resumed = record and finished_steps(workdir) and record.exists()
    recorded = read_json(record, "the record of what is frozen", error=CheckpointError) if resumed else {}
    for name, source in sources(section).items():
        found[name], identities[name] = source.load(target[name], recorded.get(name))
        logger.info("Frozen %s: %s.", name, ", ".join(f"{key} {value}" for key, value in identities[name].items()))
    if record and not identities.items() <= recorded.items() and jax.process_index() == 0:
        write_json(record, {**recorded, **identities})
    return found
