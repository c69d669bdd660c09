"""Image-to-image tasks: what is given of an image, and which of its pixels are missing; one network can serve them all.

A task is a function (image uint8 [H, W, C], generator) -> {"degraded": uint8 [H, W, C], "missing": uint8 [H, W, 1],
"task": int32}. "missing" is 255 where a pixel must be filled and 0 where it is known and stays. Where nothing is missing,
the whole image is to be made anew from the degraded one. "task" is the place in `TASKS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax.data.degradations import masks
from diffusion_jax.data.degradations.operators import check_range, compress, draw_quality
from diffusion_jax.errors import ConfigError, DataError, check_choice
from diffusion_jax.registry import build, register
from diffusion_jax.values import Fraction

TASKS = ("colorize", "inpaint", "uncrop", "jpeg")
_GREY = 128  # what stands where a pixel is missing


def _given(task: str, degraded: np.ndarray, missing: np.ndarray | None = None) -> dict[str, Any]:
    missing = np.zeros(degraded.shape[:2], bool) if missing is None else missing
    degraded = np.where(missing[..., None], np.uint8(_GREY), degraded)
    return {"degraded": degraded, "missing": 255 * missing[..., None].astype(np.uint8), "task": np.int32(TASKS.index(task))}


def grey(image: np.ndarray) -> np.ndarray:
    """Return the luma (ITU-R 601) of uint8 [H, W, 3], in all three channels; an image of one channel is what it is."""
    if image.shape[-1] == 1:
        return image
    return np.repeat(np.asarray(Image.fromarray(image).convert("L"))[..., None], 3, -1)


def with_mask(image: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """Degrade an image for inpainting by a mask of one's own.

    Args:
      image: uint8 [H, W, C].
      mask: uint8 or bool [H, W] or [H, W, 1]; the upper half of its range, or True, is to be filled.

    Raises:
      DataError: a mask of another size than the image, or one that marks nothing.
    """
    if mask.shape[:2] != image.shape[:2]:
        raise DataError(
            f"a mask of {mask.shape[1]}x{mask.shape[0]} for an image of {image.shape[1]}x{image.shape[0]}: "
            "mask and image must have one size"
        )
    missing = mask.reshape(mask.shape[:2] + (-1,))[..., 0]
    missing = missing if missing.dtype == bool else missing > 127
    if not missing.any():
        raise DataError("the mask marks nothing: pixels to be filled are white (above 127)")
    return _given("inpaint", image, missing)


@register("degradation", "colorize")
@dataclasses.dataclass(frozen=True)
class Colorize:
    """Gives only the luma."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        return _given("colorize", grey(image))


@register("degradation", "inpaint")
@dataclasses.dataclass(frozen=True)
class Inpaint:
    """Takes away strokes with probability `free_form`, else one to five boxes; or always the centre.

    Args:
      free_form: the probability of strokes, 0.6 as Palette is trained.
      centre: always the central quarter of the area instead.
    """

    free_form: Fraction = 0.6
    centre: bool = False

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        size = image.shape[:2]
        if self.centre:
            return _given("inpaint", image, masks.centre(size))
        draw = masks.free_form if rng.random() < self.free_form else masks.boxes
        return _given("inpaint", image, draw(size, rng))


@register("degradation", "uncrop")
@dataclasses.dataclass(frozen=True)
class Uncrop:
    """Takes away half of the image: one of `sides`, chosen with equal probability; "all" surrounds a rectangle."""

    sides: tuple[str, ...] = masks.SIDES

    def __post_init__(self) -> None:
        for side in self.sides:
            check_choice("degradation 'uncrop': side", side, masks.SIDES)
        if not self.sides:
            raise ConfigError("degradation 'uncrop': sides is empty")

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        side = self.sides[int(rng.integers(len(self.sides)))]
        return _given("uncrop", image, masks.uncrop(image.shape[:2], side, rng))


@register("degradation", "jpeg")
@dataclasses.dataclass(frozen=True)
class Jpeg:
    """Compresses at a random quality, a bad one more often than a good one; see `draw_quality`."""

    quality: tuple[int, int] = (5, 30)

    def __post_init__(self) -> None:
        check_range("degradation 'jpeg'", "quality", self.quality, 1, 100)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        return _given("jpeg", compress(image, draw_quality(rng, tuple(self.quality))))


@register("degradation", "mixture")
@dataclasses.dataclass(frozen=True)
class Mixture:
    """Sets one of several tasks, with equal probability, for each example: multi-task training.

    Args:
      tasks: names or configurations of degradations.

    Source: Saharia et al. 2022, section 4.5 (arXiv 2111.05826).
    """

    tasks: tuple[Any, ...] = TASKS

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("degradation 'mixture': tasks is empty")
        built = tuple(build("degradation", dict(t.items()) if hasattr(t, "items") else t) for t in self.tasks)
        object.__setattr__(self, "_built", built)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        return self._built[int(rng.integers(len(self._built)))](image, rng)

    def only(self, name: str) -> Any:
        """Return the configuration of one of the tasks, by name.

        Raises:
          ConfigError: it is not among them.
        """
        named = {(task if isinstance(task, str) else task["name"]): task for task in self.tasks}
        check_choice("degradation 'mixture': task", name, named)
        return dict(named[name]) if isinstance(named[name], Mapping) else named[name]
