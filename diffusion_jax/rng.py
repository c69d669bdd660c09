"""Random keys by name: a key is used once, and every use has a name of its own."""

from __future__ import annotations

import zlib

import jax


def named(key: jax.Array, *names: str | int | jax.Array) -> jax.Array:
    """Fold names into a key, so that adding a use never changes the numbers of the others.

    Args:
      key: a typed PRNG key, `jax.random.key(seed)`.
      names: strings (folded as their CRC-32), or integers (a step or a sample's index).

    >>> import jax
    >>> key = jax.random.key(0)
    >>> bool((named(key, "noise", 3) == named(key, "noise", 3)).all())
    True
    """
    for name in names:
        value = zlib.crc32(name.encode()) & 0x7FFFFFFF if isinstance(name, str) else name
        key = jax.random.fold_in(key, value)
    return key
