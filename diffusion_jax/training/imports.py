"""Parts of a person's own: which modules and files register them, recorded with a run and imported wherever it is used.

An entry of the section `imports` is a module or the path of a .py file. A run's config.json records for each also where the
file lies and a digest of it, {"module": "my.parts", "file": "/home/me/my/parts.py", "sha256": "..."} or without "module", so
that a moved or changed file is named instead of a part that nobody knows. A recipe that registers parts itself, or uses
modules that do, needs no entry: it is recorded as one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusion_jax import registry
from diffusion_jax.errors import ConfigError
from diffusion_jax.files import user_path

logger = logging.getLogger(__name__)

Entry = dict[str, str]
_GIVEN: list[Entry] = []  # what this process was asked to import, beside what runs and recipes record
_WARNED: set[str] = set()


def entries(given: Any, folder: str | Path = ".") -> list[Entry]:
    """Return the section `imports` of a recipe or a run with the file and digest of each entry; nothing is imported.

    Args:
      folder: what paths of files are relative to.

    Raises:
      ConfigError: something else than a list of modules, files, and entries of a config.json.
    """
    if not isinstance(given, list | tuple) or not all(isinstance(entry, str | Mapping) for entry in given):
        raise ConfigError(f"imports must be a list of modules and paths of .py files, got {given!r}")
    return [dict(entry) if isinstance(entry, Mapping) else _entry(entry, folder) for entry in given]


def _entry(text: str, folder: str | Path = ".") -> Entry:
    if not text.endswith(".py"):
        return {"module": text}
    path = (Path(folder) / user_path(text)).resolve()
    if not path.is_file():
        raise ConfigError(f"imports: there is no file {path}")
    return {"file": str(path), "sha256": _digest(path)}


def add(texts: Iterable[str]) -> None:
    """Import modules and files, and have every run of this process record and know them: the flag --import.

    Raises:
      ConfigError: there is no such module or file.
    """
    _GIVEN.extend(entry for entry in load(entries(list(texts))) if entry not in _GIVEN)


def load(recorded: Iterable[Entry]) -> list[Entry]:
    """Import what entries name, once each, and return them as they are now, with what was given by `add`.

    A file that has moved is taken from where `add` says that one of its name lies; one that has changed is named in a warning.

    Raises:
      ConfigError: there is no such module or file.
    """
    found = []
    for entry in recorded:
        module, path = _import(entry)
        name = {"module": entry["module"]} if "module" in entry else {}
        now = name | ({"file": str(path), "sha256": _digest(path)} if path else {})
        if entry.get("sha256", now.get("sha256")) != now.get("sha256") and module.__name__ not in _WARNED:
            _WARNED.add(module.__name__)
            logger.warning("%s has changed since the run was made: parts of it may be others now.", path)
        found.append(now)
    return found + [entry for entry in _GIVEN if entry not in found]


def _import(entry: Entry) -> tuple[ModuleType, Path | None]:
    """A module, and its file unless it is installed with a package of its own."""
    name, path = entry.get("module"), _moved(entry)
    if name is None:
        if path is None or not path.is_file():
            raise ConfigError(f"imports: there is no file {entry['file']}; say where it is now with --import=FILE")
        return load_file(path), path
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and itself imports what is not
        if path is None or not path.is_file():
            raise ConfigError(f"imports: there is no module {name!r}; a file is named by its path, FILE.py") from error
        return load_file(path, name), path
    file = getattr(module, "__file__", None)
    return module, Path(file) if file and file.endswith(".py") else None


def _moved(entry: Entry) -> Path | None:
    """Where the file of an entry lies now."""
    if "file" not in entry:
        return None
    path = Path(entry["file"])
    beside = [Path(given["file"]) for given in _GIVEN if "file" in given and Path(given["file"]).name == path.name]
    return path if path.is_file() or not beside else beside[0]


def load_file(path: Path, name: str | None = None) -> ModuleType:
    """Import a file once for each content it has.

    Args:
      name: of the module; made of the path and the content by default.
    """
    path = Path(path).resolve()
    name = name or f"imported_{hashlib.sha256(f'{path} {_digest(path)}'.encode()).hexdigest()[:12]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def of_recipe(module: ModuleType) -> list[Entry]:
    """Return the entries of what registers parts among a recipe's module and the modules that it uses by name."""
    own = {name for name in registry.modules() if name.split(".")[0] != "diffusion_jax"}
    used = {module.__name__}
    for value in vars(module).values():
        used.add(value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or "")
    found = []
    for name in sorted(own & used):
        file = getattr(sys.modules.get(name), "__file__", None)
        entry = {} if name == module.__name__ else {"module": name}
        found.append(entry | ({"file": str(Path(file).resolve()), "sha256": _digest(Path(file))} if file else {}))
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
