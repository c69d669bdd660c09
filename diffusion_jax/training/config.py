"""A run's configuration: defaults, errors for what is unknown, and what may change when a run is resumed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.data.files import write_json
from diffusion_jax.errors import CheckpointError, ConfigError, nearest

DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "system": {},
    "data": {},
    "optimizer": {"name": "adamw", "learning_rate": 1e-4, "warmup_steps": 0, "decay": "constant", "clip_norm": 1.0},
    "training": {
        "steps": 100_000,
        "ema": [{"name": "constant", "decay": 0.9999}],  # the first is what sampling and evaluation use
        "accumulate": 1,  # microbatches a step
        "log_every": 50,
        "checkpoint_every": 1000,
        "keep_last": 3,
        "keep_every": 0,  # steps; 0 keeps the last ones only
        "grid_every": 0,  # steps; 0 draws no grids
        "grid_samples": 16,
        "eval_every": 0,  # steps; 0 computes no held-out loss
        "eval_examples": 256,
        "tensorboard": True,
    },
    "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "rules": []},
    "sampling": {},
}

# What a resumed run may change: nothing that alters what the finished steps meant.
_FREE = (
    "training.steps", "training.log_every", "training.checkpoint_every", "training.keep_last", "training.keep_every",
    "training.grid_every", "training.grid_samples", "training.eval_every", "training.eval_examples",
    "training.tensorboard", "mesh", "sampling", "data.num_threads", "data.prefetch", "data.num_workers", "data.cache",
)  # fmt: skip


def plain(value: Any) -> Any:
    """Configuration values as dicts, lists and scalars, as JSON would bring them back."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value


def complete(config: Any) -> dict[str, Any]:
    """The recipe laid over the defaults, as plain data.

    Raises:
      ConfigError: an unknown section, or an unknown field of `training` or `mesh`; a missing `system` or `data`.
    """
    given, merged = plain(config), copy.deepcopy(DEFAULTS)
    for section, value in given.items():
        if section not in DEFAULTS:
            raise ConfigError(
                f"the configuration has no section {section!r}{nearest(section, DEFAULTS)} "
                f"(its sections: {', '.join(DEFAULTS)})"
            )
        if not isinstance(DEFAULTS[section], dict):
            merged[section] = value
            continue
        for field in value:
            if section in ("training", "mesh") and field not in DEFAULTS[section]:
                known = DEFAULTS[section]
                raise ConfigError(
                    f"{section} has no field {field!r}{nearest(field, known)} (its fields: {', '.join(known)})"
                )
        merged[section].update(value)
    for section in ("system", "data"):
        if not merged[section]:
            raise ConfigError(f"the configuration needs a section {section!r}")
    _check(merged["training"])
    return merged


def _check(training: Mapping[str, Any]) -> None:
    for field in ("steps", "accumulate", "log_every", "checkpoint_every", "grid_samples", "eval_examples"):
        if not isinstance(training[field], int) or training[field] < 1:
            raise ConfigError(f"training.{field} must be a whole number from 1, got {training[field]!r}")
    if training["keep_last"] < 2:
        raise ConfigError("training.keep_last must be at least 2: the one before the last is what saves a broken disk")
    if not training["ema"]:
        raise ConfigError("training.ema is empty: give one such as [{'name': 'constant', 'decay': 0.9999}]")


def apply_overrides(config: dict[str, Any], overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy with dotted fields replaced, such as {"sampling.steps": 10}.

    Raises:
      ConfigError: a section that does not exist.
    """
    config = copy.deepcopy(config)
    for path, value in (overrides or {}).items():
        node, *parts = config, *path.split(".")
        for part in parts[:-1]:
            if not isinstance(node, dict) or part not in node:
                raise ConfigError(f"the configuration has no {path!r}{nearest(part, node)} (at {part!r}: {sorted(node)})")
            node = node[part]
        node[parts[-1]] = plain(value)
    return config


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def difference(before: Mapping[str, Any], after: Mapping[str, Any], free: bool = False) -> list[str]:
    """Lines "field: before -> after" for what differs; with `free`, also what a resumed run may change."""
    old, new = dict(_flat(before)), dict(_flat(after))
    lines = []
    for path in sorted(set(old) | set(new)):
        if not free and any(path == field or path.startswith(f"{field}.") for field in _FREE):
            continue
        first, second = old.get(path, "absent"), new.get(path, "absent")
        if first != second:
            lines.append(f"{path}: {first} -> {second}")
    return lines


def read(workdir: str | Path) -> dict[str, Any]:
    """The configuration of a run.

    Raises:
      CheckpointError: there is no run, or its configuration cannot be read.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise CheckpointError(f"{workdir} holds no run (no config.json); train one there, or check --workdir")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); restore it from the recipe the run was made with") from error


def claim(workdir: str | Path, config: dict[str, Any]) -> None:
    """Record the configuration in the working directory, unless another run lives there.

    Raises:
      CheckpointError: the directory holds another configuration's run (the difference is shown), or is not writable.
    """
    path = Path(workdir) / "config.json"
    if path.exists():
        before = read(workdir)
        changed = difference(before, plain(config))
        if changed:
            raise CheckpointError(
                f"{workdir} holds a run of another configuration; use another --workdir, or the one it was made with. "
                f"Here against there: {'; '.join(changed)}"
            )
        if before == plain(config):
            return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, plain(config))
    except OSError as error:
        raise CheckpointError(f"cannot write to {workdir}: {error.strerror}; choose a writable --workdir") from error


def as_config_dict(config: Mapping[str, Any]) -> ConfigDict:
    """Plain data as a ConfigDict, for flags."""
    return ConfigDict(plain(config))
