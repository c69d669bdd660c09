"""What one example is: its shape and its kind. Networks, pipelines, systems, sample folders and grids all speak of it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from diffusion_jax.errors import ConfigError, check_choice
from diffusion_jax.values import Count, Said

Size = Annotated[Count | tuple[Count, Count], Said("a positive whole number of pixels, or (height, width)")]
"""An image size as recipes write it: of a square, or (height, width)."""

KINDS = ("image", "video", "audio", "points", "tokens", "vector")
_RANKS = {"image": 3, "video": 4, "audio": 2, "points": 2}
"""How many axes an example has; tokens and vectors may have any number."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """The shape and the kind of one example.

    Args:
      shape: without the batch, channels last: (H, W, C) of images, (F, H, W, C) of videos, (L, C) of audio, (N, D) of point
        sets.
      kind: "image", "video", "audio", "points", "tokens" or "vector": says how an example is drawn into a picture, and how it
        is written.

    Raises:
      ConfigError: an unknown kind, sizes that are not positive whole numbers, or a rank that the kind does not have.

    >>> spec = Spec.image((32, 48), 3)
    >>> spec.shape, spec.size, spec.channels, str(spec)
    ((32, 48, 3), (32, 48), 3, '32x48x3 image')
    """

    shape: tuple[int, ...]
    kind: str = "image"

    def __post_init__(self) -> None:
        check_choice("kind of data", self.kind, KINDS)
        object.__setattr__(self, "shape", tuple(self.shape))
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in self.shape):
            raise ConfigError(f"the shape of {self.kind} data must be of positive whole numbers, got {self.shape}")
        rank = _RANKS.get(self.kind, len(self.shape))
        if len(self.shape) != rank:
            raise ConfigError(f"{self.kind} data have {rank} axes without the batch, got the shape {self.shape}")

    @classmethod
    def image(cls, size: Any, channels: int) -> Spec:
        """Return the spec of images of a size, an int (square) or (H, W) in pixels."""
        return cls((*size_of(size), channels))

    @property
    def channels(self) -> int:
        """The length of the last axis."""
        return self.shape[-1]

    @property
    def size(self) -> tuple[int, ...]:
        """All axes but the last: (H, W) of an image."""
        return self.shape[:-1]

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {self.kind}"


def size_of(value: Any, what: str = "image_size") -> tuple[int, int]:
    """Return (H, W) of an image size as recipes write it: a whole number is a square, a pair is (height, width).

    Args:
      what: the field's name, for the error.

    >>> size_of(32), size_of([24, 32])
    ((32, 32), (24, 32))

    Raises:
      ConfigError: anything else, or numbers below 1.
    """
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in pair):
        raise ConfigError(f"{what} must be a positive whole number of pixels, or (height, width), got {value!r}")
    return pair
