"""What a field may hold: a check of values against annotations, and names for the usual ranges.

A part says with its annotations what it takes, `steps: Count`, `dropout: Fraction`, `path: str | None`, and the registry
holds every field of a configuration to them before anything is built.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import numbers
import types
import typing
from typing import Annotated, Any, Literal

from diffusion_jax.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; an end that is `open` is not among them."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        """Whether a number lies in the range; NaN lies in none."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        """The range in words, such as "above 0" or "in [0, 1)"."""
        if self.high == math.inf:
            return f"{'above' if self.open_low else 'at least'} {self.low:.10g}"
        if self.low == -math.inf:
            return f"{'below' if self.open_high else 'at most'} {self.high:.10g}"
        return f"in {'(' if self.open_low else '['}{self.low:.10g}, {self.high:.10g}{')' if self.open_high else ']'}"


@dataclasses.dataclass(frozen=True)
class Said:
    """The words that a message says for an annotation."""

    words: str


Count = Annotated[int, Range(1)]
"""A whole number from 1."""
Natural = Annotated[int, Range(0)]
"""A whole number from 0."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""A whole number of 32 bits: of larger ones JAX takes the last 32."""
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Probability = Annotated[float, Range(0, 1, open_high=True)]
"""From 0 to less than 1, as of dropout or of a moment's decay."""
Percentile = Annotated[float, Range(1, 100)]
"""In hundredths: 99.5, not 0.995."""


def check(what: str, annotation: Any, value: Any) -> None:
    """Raise a `ConfigError` unless a value is of the kind that an annotation says.

    Whole numbers serve as numbers, lists as sequences, and True and False as nothing but themselves. A number must be
    finite. What JSON and the command line cannot say (arrays, parts already built, functions) is not looked into, and
    neither is an annotation that this module does not know.

    >>> check("solver 'ddim': eta", Fraction, 0.5)
    >>> check("solver 'ddim': eta", Fraction, "high")
    Traceback (most recent call last):
    diffusion_jax.errors.ConfigError: solver 'ddim': eta must be a number in [0, 1], got 'high'

    Args:
      what: the field and the part it is of, for the message.
    """
    if not _fits(annotation, value):
        choices = _choices(annotation)
        hint = nearest(value, choices) if isinstance(value, str) else ""
        raise ConfigError(f"{what} must be {describe(annotation)}, got {value!r}{hint}")


def check_options(options: Any) -> None:
    """Hold every field of a dataclass, the options of a program, to its annotation; the message names it as a flag.

    Raises:
      ConfigError: a value of another kind or out of range.
    """
    for name, annotation in typing.get_type_hints(type(options), include_extras=True).items():
        check(f"--{name}", annotation, getattr(options, name))


def describe(annotation: Any) -> str:
    """Say in words what an annotation takes, such as "a whole number at least 1, or None"."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        said = [note.words for note in inner[1:] if isinstance(note, Said)]
        ranges = [str(note) for note in inner[1:] if isinstance(note, Range)]
        return " ".join(said or [describe(inner[0]), *ranges])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(describe(option) for option in sorted(inner, key=lambda option: option is types.NoneType))
    if origin is tuple and inner[-1:] != (...,):
        return "[" + ", ".join(describe(option) for option in inner) + "]"
    if _is_sequence(origin or annotation):
        return "a list of " + _plural(describe(inner[0])) if inner and inner[0] is not Any else "a list"
    if _is_mapping(origin or annotation):
        return "a mapping of fields"
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", types.NoneType: "None"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plural(text: str) -> str:
    words = {"a whole number": "whole numbers", "a number": "numbers", "a text": "texts", "True or False": "True or False"}
    return next((text.replace(one, many, 1) for one, many in words.items() if text.startswith(one)), f"items, each {text}")


def _choices(annotation: Any) -> tuple[str, ...]:
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return inner
    return tuple(choice for option in inner for choice in _choices(option))


def _is_sequence(kind: Any) -> bool:
    return kind in (list, tuple, collections.abc.Sequence)


def _is_mapping(kind: Any) -> bool:
    return kind in (dict, collections.abc.Mapping)


def _is_plain(value: Any) -> bool:
    """Whether a value is one that a configuration can say."""
    return value is None or isinstance(value, bool | numbers.Real | str | list | tuple | collections.abc.Mapping)


def _fits(annotation: Any, value: Any) -> bool:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if not _is_plain(value):
        return True
    if origin is Annotated:
        limits = [limit for limit in inner[1:] if isinstance(limit, Range)]
        numeric = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return _fits(inner[0], value) and (not numeric or all(value in limit for limit in limits))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(option, value) for option in inner)
    if _is_sequence(origin or annotation):
        return _fits_sequence(inner, value)
    if _is_mapping(origin or annotation):
        return isinstance(value, collections.abc.Mapping)
    if annotation is types.NoneType:
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, str) if annotation is str else True


def _fits_sequence(inner: tuple[Any, ...], value: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if not inner:
        return True
    if len(inner) == 1 or inner[1] is ...:  # Sequence[X] and tuple[X, ...]
        return all(_fits(inner[0], item) for item in value)
    return len(value) == len(inner) and all(map(_fits, inner, value))
