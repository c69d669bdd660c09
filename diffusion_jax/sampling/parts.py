"""How the parts of sampling are registered: their fields are held to their annotations, whoever gives them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from diffusion_jax.registry import check_fields, register


def part(kind: str, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: make a function buildable by name, and hold its calls in Python to its annotations as well.

    Raises:
      ConfigError: when the part is called with a value of another kind or out of range.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            check_fields(f"{kind} {name!r}", function, signature.bind(*args, **kwargs).arguments)
            return function(*args, **kwargs)

        return register(kind, name)(checked)

    return decorate
