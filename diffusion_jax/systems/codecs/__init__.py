"""Codecs: between data as sources have them and the space in which a process works; one file an idea."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from diffusion_jax.errors import ConfigError
from diffusion_jax.spec import Spec
from diffusion_jax.systems.codecs.binary import Binary
from diffusion_jax.systems.codecs.pixels import Pixels, check_pixels, to_float, to_uint8

__all__ = [
    "Binary",
    "ChecksBatches",
    "Codec",
    "EncodesCategories",
    "Pixels",
    "check_pixels",
    "range_of_levels",
    "to_float",
    "to_uint8",
]


class Codec(Protocol):
    """Between data and the space of a model. Thresholds and clipping follow its range.

    Attributes:
      range: (low, high) of encoded data, or None where it has no bounds.
      needs: names in `frozen` that it reads, such as ("autoencoder",); () for most.
    """

    range: tuple[float, float] | None
    needs: tuple[str, ...]

    def spec(self, data: Spec) -> Spec:
        """Return the spec of encoded data.

        Raises:
          ConfigError: data of a kind or shape that it does not encode.
        """

    def encode(self, frozen: Mapping[str, Any], batch: Mapping[str, Any], key: jax.Array) -> jax.Array:
        """Encode the data of a batch: floating [B, ...]."""

    def decode(self, frozen: Mapping[str, Any], x: jax.Array, *, quantize: bool = True) -> jax.Array:
        """Decode [N, ...] into data as the source has them; without `quantize`, before they are rounded."""


@runtime_checkable
class ChecksBatches(Protocol):
    """A codec that knows which values of a batch it cannot encode."""

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Raise a `DataError` for such a batch; the values of traced arrays pass unseen."""


def range_of_levels(codec: Codec, what: str) -> tuple[float, float]:
    """Return the range of encoded data, whose 256 levels a likelihood counts.

    Args:
      what: what counts them, for the message.

    Raises:
      ConfigError: a codec without a range.
    """
    if codec.range is None:
        raise ConfigError(
            f"{what} counts 256 levels of the encoded data, but those of the codec {type(codec).__name__} have no range: use a "
            "codec with one, such as 'pixels'"
        )
    return codec.range


@runtime_checkable
class EncodesCategories(Protocol):
    """A codec whose encoded data are categories, int32 from 0 to num_values - 1, and not real numbers."""

    num_values: int
