"""Files that appear whole or not at all, and images in them."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well and removed when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON data, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a PNG of uint8 [H, W, 1 or 3], whole or not at all."""
    with replacing(path) as temporary:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(temporary, format="png")


def read_image(path: Path) -> np.ndarray:
    """The pixels of an image file, uint8 [H, W, C]."""
    with Image.open(path) as image:
        return np.asarray(image).reshape(image.height, image.width, -1)


def tile(images: np.ndarray, columns: int | None = None, gap: int = 2, scale: int = 1) -> np.ndarray:
    """One picture of many: uint8 [N, H, W, C] -> uint8 [rows, columns, C], row by row, on a white ground.

    Args:
      columns: about the square root of N by default.
      gap: white pixels around each image.
      scale: each pixel is shown as scale x scale.
    """
    images = np.asarray(images).repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (gap + place * (size + gap) for place, size in zip(divmod(index, columns), (height, width), strict=True))
        sheet[top : top + height, left : left + width] = image
    return sheet


def beside(sheets: Sequence[np.ndarray], gap: int = 12) -> np.ndarray:
    """Pictures of one height side by side, with white between."""
    bar = np.full((sheets[0].shape[0], gap, sheets[0].shape[2]), 255, np.uint8)
    parts = [part for sheet in sheets for part in (bar, sheet)][1:]
    return np.concatenate(parts, axis=1)
