"""The library's errors: one clear line that names what is wrong, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class DiffusionError(ValueError):
    """A mistake the user can mend. Programs print it as one line and exit with status 2."""


class ConfigError(DiffusionError):
    """A configuration that names something unknown or asks for what does not fit together."""


class DataError(DiffusionError):
    """Data that is missing, empty, corrupt, or of another shape than the configuration says."""


class CheckpointError(DiffusionError):
    """A checkpoint that is missing, unreadable, or belongs to another configuration."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name, or the empty string when nothing is close.

    >>> nearest("cosin", ["linear", "cosine"])
    "; did you mean 'cosine'?"
    >>> nearest("zebra", ["linear", "cosine"])
    ''
    """
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""


def check_choice(what: str, value: Any, known: Iterable[str]) -> None:
    """Raise a `ConfigError` unless `value` is one of the known names; the nearest is suggested.

    Args:
      what: what the value is, and of which part, such as "process: variance".
    """
    known = list(known)
    if value not in known:
        raise ConfigError(f"{what}: unknown {value!r}{nearest(str(value), known)} (known: {', '.join(known)})")
