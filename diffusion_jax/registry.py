"""Parts by name: configurations are data (`{"name": "cosine", "shift": 1.0}`), parts are functions or classes."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

from diffusion_jax import values
from diffusion_jax.errors import ConfigError, nearest

PYTHON_OBJECT = "python_object"
"""The field that stands for a part in records of configurations that were given as Python objects."""

_PARTS: dict[str, dict[str, Callable[..., Any]]] = {}


def register(kind: str, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: make a function or class buildable as `build(kind, name)`.

    Its annotations say what its fields may hold; see `diffusion_jax.values`. A part that is registered again from the same
    place, as when its file is loaded twice, takes the place of the former.

    Raises:
      ConfigError: another part has the name.
    """

    def decorate(part: Callable[..., Any]) -> Callable[..., Any]:
        parts = _PARTS.setdefault(kind, {})
        if name in parts and not _same(parts[name], part):
            raise ConfigError(f"{kind} {name!r} is registered twice: {' and '.join(map(_place, (parts[name], part)))}")
        parts[name] = part
        return part

    return decorate


def _same(first: Callable[..., Any], second: Callable[..., Any]) -> bool:
    """Whether two parts are written in one place, or are copies of one another."""
    if _place(first) == _place(second):
        return True
    try:
        return inspect.getsource(inspect.unwrap(first)) == inspect.getsource(inspect.unwrap(second))
    except (OSError, TypeError):
        return False


def part(kind: str, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: as `register`, and hold a function's calls, or a class's construction, in Python to its annotations as well.

    Raises:
      ConfigError: when the part is called with a value of another kind or out of range.
    """

    def decorate(written: Callable[..., Any]) -> Callable[..., Any]:
        makes = written.__init__ if inspect.isclass(written) else written
        signature = inspect.signature(written)

        @functools.wraps(makes)
        def checked(*args: Any, **kwargs: Any) -> Any:
            fields = args[1:] if inspect.isclass(written) else args
            check_fields(f"{kind} {name!r}", written, signature.bind(*fields, **kwargs).arguments)
            return makes(*args, **kwargs)

        if not inspect.isclass(written):
            return register(kind, name)(checked)
        written.__init__ = checked
        return register(kind, name)(written)

    return decorate


def _place(part: Callable[..., Any]) -> str:
    """Where a part is written: its file and its name."""
    code = getattr(inspect.unwrap(part), "__code__", None)
    file = code.co_filename if code else getattr(inspect.getmodule(part), "__file__", part.__module__)
    return f"{part.__qualname__} of {file}"


def modules() -> set[str]:
    """Return the names of the modules in which parts are written."""
    return {inspect.unwrap(part).__module__ for parts in _PARTS.values() for part in parts.values()}


def kinds() -> list[str]:
    """Return the kinds of parts, sorted."""
    return sorted(_PARTS)


def known(kind: str) -> list[str]:
    """The names registered under a kind, sorted."""
    return sorted(_PARTS.get(kind, {}))


@functools.cache
def fields(part: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """The (all, required) keyword names of a part, and whether it takes any other keyword."""
    parameters = [p for p in inspect.signature(part).parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    anything = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(part).parameters.values())
    required = tuple(p.name for p in parameters if p.default is p.empty)
    return tuple(p.name for p in parameters), required, anything


@functools.cache
def annotations(part: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each field of a part; `Any` where there is none, or its names are not to be had."""
    written = inspect.unwrap(part)
    if inspect.isclass(written):  # fields may be inherited, from a class of another module
        names = {
            name: value for each in reversed(written.__mro__) for name, value in vars(sys.modules[each.__module__]).items()
        }
    else:
        names = getattr(written, "__globals__", {})
    found = {}
    for field, parameter in inspect.signature(part).parameters.items():
        annotation = parameter.annotation
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, names)
            except NameError:  # imported for type checkers only
                annotation = Any
        found[field] = Any if annotation is parameter.empty else annotation
    return found


def check_fields(what: str, part: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` for a field that `part` does not take, one that it needs and lacks, or a value of a wrong kind."""
    names, required, anything = fields(part)
    if not anything:
        for field in given:
            if field not in names:
                raise ConfigError(
                    f"{what} has no field {field!r}{nearest(field, names)} (its fields: {', '.join(names) or 'none'})"
                )
    missing = [name for name in required if name not in given]
    if missing:
        raise ConfigError(f"{what} needs the field{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}")
    kinds = annotations(part)
    for field, value in given.items():
        if field in kinds and field in names:
            values.check(f"{what}: {field}", kinds[field], value)


def lookup(kind: str, name: str) -> Callable[..., Any]:
    """The part registered under `name`; an unknown name lists the known ones and the nearest."""
    parts = _PARTS.get(kind, {})
    if name not in parts:
        raise ConfigError(f"unknown {kind} {name!r}{nearest(str(name), parts)} (known: {', '.join(known(kind)) or 'none'})")
    return parts[name]


def build(kind: str, config: Any, **defaults: Any) -> Any:
    """Build a part from its name and fields.

    Args:
      kind: the kind of part, such as "schedule" or "solver".
      config: a name, a mapping with the key "name" and the part's fields, or an already-built part, which is returned
        as it is.
      defaults: fields used where the config does not give them and the part takes them.

    Raises:
      ConfigError: an unknown kind, name or field (the known ones and the nearest are listed), or a missing one.
    """
    if isinstance(config, str):
        config = {"name": config}
    if isinstance(config, int | float | list | tuple):
        raise ConfigError(f"a {kind} must be a name, or a mapping with the key 'name' and fields, got {config!r}")
    if not isinstance(config, Mapping) and not hasattr(config, "items"):
        return config
    given = {key: value for key, value in config.items()}
    if PYTHON_OBJECT in given:
        raise ConfigError(
            f"this {kind} was given to training as a Python object, {given[PYTHON_OBJECT]}, which no file records: "
            "open the run from Python, with Run.open(workdir, config=...), or register it and give its name"
        )
    if "name" not in given:
        raise ConfigError(f"a {kind} needs a 'name' (known: {', '.join(known(kind))}); got the fields {sorted(given)}")
    name = given.pop("name")
    part = lookup(kind, name)
    names, _, anything = fields(part)
    for field, value in defaults.items():
        if anything or field in names:
            given.setdefault(field, value)
    check_fields(f"{kind} {name!r}", part, given)
    return part(**given)
