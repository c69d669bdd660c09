"""A run's configuration: defaults, errors for what is unknown, and what may change when a run is resumed."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

from diffusion_jax.errors import CheckpointError, ConfigError, check_choice, nearest
from diffusion_jax.files import read_json, write_json
from diffusion_jax.registry import PYTHON_OBJECT, check_fields
from diffusion_jax.training import imports
from diffusion_jax.training.checkpoints import finished_steps, read_meta
from diffusion_jax.training.optimizer import has_groups
from diffusion_jax.training.sections import Mesh, Seed, Training
from diffusion_jax.values import check

logger = logging.getLogger(__name__)

VERSION = 2
"""Of the layout of configurations and checkpoints; those of release 0.1.0 have none."""

DEFAULTS: dict[str, Any] = {
    "version": VERSION,
    "imports": [],  # modules, or paths of .py files, that register parts of one's own; see training/imports.py
    "seed": 0,
    "system": {},
    "frozen": {},  # what training reads and never changes: {name: run or file}, see training/frozen.py
    "data": {},
    "optimizer": {"name": "adamw", "learning_rate": 1e-4, "warmup_steps": 0, "decay": "constant", "clip_norm": 1.0},
    "training": {},
    "mesh": {},
    "sampling": {},
}

_SECTIONS = {"training": Training, "mesh": Mesh}
for _name, _fields in _SECTIONS.items():
    DEFAULTS[_name] = json.loads(json.dumps(dataclasses.asdict(_fields())))

# What a resumed run may change: nothing that alters what the finished steps meant.
_FREE = (
    "imports", "training.steps", "training.max_skipped", "training.log_every", "training.checkpoint_every",
    "training.keep_last", "training.keep_every", "training.grid_every", "training.grid_samples", "training.eval_every",
    "training.eval_examples",
    "training.tensorboard", "mesh", "sampling", "data.num_threads", "data.prefetch", "data.num_workers", "data.cache",
)  # fmt: skip


def plain(value: Any) -> Any:
    """Return configuration values as dicts, lists and scalars, as JSON would bring them back."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value


def recorded(config: Any) -> Any:
    """Return a configuration as config.json holds it: of parts that are Python objects only what they are."""
    if isinstance(config, Mapping):
        return {key: recorded(value) for key, value in config.items()}
    if isinstance(config, list):
        return [recorded(value) for value in config]
    if config is None or isinstance(config, str | int | float | bool):
        return config
    kind = config if isinstance(config, type | FunctionType) else type(config)
    return {PYTHON_OBJECT: f"{kind.__module__}.{kind.__qualname__}"}


def complete(config: Any) -> dict[str, Any]:
    """Lay a recipe over the defaults, as plain data, and import what it says.

    Raises:
      ConfigError: an unknown section, or an unknown field of `training` or `mesh`; a missing `system` or `data`; a value
        of a wrong kind or out of range; another version; an import that is not there.
    """
    given, merged = plain(config), copy.deepcopy(DEFAULTS)
    for section, value in given.items():
        check_choice("configuration: section", section, DEFAULTS)
        if not isinstance(DEFAULTS[section], dict):
            merged[section] = value
            continue
        if section == "system" and hasattr(value, "losses"):
            merged[section] = value  # a Python object, as any part may be
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"the section {section!r} must be a mapping of fields, got {value!r}")
        merged[section].update(value)
    if has_groups(given.get("optimizer", {})):
        merged["optimizer"] = {group: {**DEFAULTS["optimizer"], **fields} for group, fields in given["optimizer"].items()}
    for section in ("system", "data"):
        if not merged[section]:
            raise ConfigError(f"the configuration needs a section {section!r}")
    if merged["version"] != VERSION:
        raise ConfigError(f"version must be {VERSION}, which this release reads and writes, got {merged['version']!r}")
    check("seed", Seed, merged["seed"])
    for section, part in _SECTIONS.items():
        check_fields(section, part, merged[section])
    if not merged["training"]["ema"]:
        raise ConfigError("training.ema must be a list such as [{'name': 'constant', 'decay': 0.9999}], got []")
    merged["imports"] = imports.load(imports.entries(merged["imports"]))
    return merged


def apply_overrides(config: dict[str, Any], overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a copy with dotted fields replaced, such as {"sampling.steps": 10}.

    Raises:
      ConfigError: a section that does not exist.
    """
    config = copy.deepcopy(config)
    for path, value in (overrides or {}).items():
        node, *parts = config, *path.split(".")
        for part in parts[:-1]:
            if part not in node:
                raise ConfigError(f"the configuration has no {path!r}{nearest(part, node)} (at {part!r}: {sorted(node)})")
            node = node[part]
            if not isinstance(node, dict):
                raise ConfigError(f"the configuration has no {path!r}: {part!r} is {node!r}, not a section; replace it whole")
        node[parts[-1]] = plain(value)
    return config


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def difference(before: Mapping[str, Any], after: Mapping[str, Any], free: bool = False) -> list[str]:
    """Return lines "field: before -> after" for what differs; with `free`, also what a resumed run may change."""
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
    """Read the configuration of a run, and import what it says.

    Raises:
      CheckpointError: there is no run, its configuration cannot be read, or it is of release 0.1.0.
      ConfigError: an import that is not there.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise CheckpointError(f"{workdir} holds no run (no config.json); train one there, or check --workdir")
    mend = "restore it from the recipe the run was made with"
    config = read_json(path, "the configuration of a run", check=_unlike_a_run, mend=mend, error=CheckpointError)
    _check_version(workdir, config)
    imports.load(imports.entries(config.get("imports") or []))
    return config


def _unlike_a_run(config: Mapping[str, Any]) -> str | None:
    """What is wrong with the JSON of a configuration; what its fields hold is for `complete`."""
    for section in ("system", "data"):
        if not isinstance(config.get(section), dict):
            return f"it has no section {section!r}"
    return None if isinstance(config.get("imports"), list | None) else "its 'imports' are no list"


def _check_version(workdir: str | Path, config: Mapping[str, Any]) -> None:
    found = config.get("version", "0.1.0's")
    if found != VERSION:
        raise CheckpointError(
            f"{workdir} holds a run in another release's layout (version {found}, here {VERSION}), which cannot be read: "
            "train it anew in another directory, or use the release that it was made with"
        )


def check_owner(workdir: str | Path, config: Mapping[str, Any]) -> list[str]:
    """Refuse a directory with another run's checkpoints, and return what a resumed run changes. Nothing is written.

    A directory without a finished checkpoint has nothing to lose, and belongs to whoever comes.

    Args:
      config: complete, of the run about to start.

    Raises:
      CheckpointError: the checkpoints belong to another configuration; the difference is shown.
    """
    steps = finished_steps(workdir)
    if not steps:
        return []
    found = read(workdir) if (Path(workdir) / "config.json").exists() else read_meta(workdir, steps[-1])["config"]
    _check_version(workdir, found)
    # Fields that the defaults have gained since then had what are the defaults now.
    before, after = complete(found), recorded(plain(config))
    changed = difference(before, after)
    if changed:
        raise CheckpointError(
            f"{workdir} holds a run of another configuration; use another --workdir, or the one it was made with. "
            f"There -> here: {'; '.join(changed)}"
        )
    return difference(before, after, free=True)


def claim(workdir: str | Path, config: Mapping[str, Any]) -> None:
    """Record the configuration in the working directory, unless another run lives there.

    Raises:
      CheckpointError: the directory holds another configuration's run (the difference is shown), or is not writable.
    """
    for line in check_owner(workdir, config):
        logger.info("Resuming with %s.", line)
    path = Path(workdir) / "config.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, recorded(plain(config)))
    except OSError as error:
        raise CheckpointError(f"cannot write to {workdir}: {error.strerror}; choose a writable --workdir") from error
