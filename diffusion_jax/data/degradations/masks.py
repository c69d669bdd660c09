"""Which pixels are missing: strokes, boxes, a centre, sides. Masks are bool [h, w], True where a pixel is to be filled."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from diffusion_jax.data.degradations.operators import check_range
from diffusion_jax.errors import ConfigError, check_choice

SIDES = ("left", "right", "top", "bottom", "all")
_REFERENCE = 256  # the image size to which published brush widths refer


def free_form(
    size: tuple[int, int],
    rng: np.random.Generator,
    strokes: tuple[int, int] = (1, 3),
    vertices: tuple[int, int] = (4, 11),
    width: tuple[int, int] = (12, 39),
) -> np.ndarray:
    """Draw strokes of a brush that turns to and fro, at random places, flipped at random.

    Args:
      size: (height, width) of the image.
      strokes, vertices: how many, and how many corners each has, ends included.
      width: of the brush, in pixels of a 256-pixel image; scaled with the image.

    The lengths between corners are normal with mean d/8 and standard deviation d/16, within 0 to d/4, where d is the
    diagonal; the turns are 2 pi / 5 +- 2 pi / 15, every other one mirrored. Source: Yu et al. 2019, section 3.3 and
    appendix (arXiv 1806.03589), with the constants of its published code.
    """
    for field, value in (("strokes", strokes), ("vertices", vertices), ("width", width)):
        check_range("mask", field, value, 1, 10_000)
    height, columns = size
    mask = Image.new("1", (columns, height), 0)
    pen = ImageDraw.Draw(mask)
    reach, scale = math.hypot(*size) / 8, min(size) / _REFERENCE
    for _ in range(rng.integers(strokes[0], strokes[1] + 1)):
        corners = _stroke(size, rng, rng.integers(vertices[0], vertices[1] + 1), reach)
        brush = max(1, round(scale * rng.integers(width[0], width[1] + 1)))
        pen.line(corners, fill=1, width=brush)
        for x, y in corners:  # round joints and ends
            pen.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=1)
    drawn = np.asarray(mask)
    flips = rng.random(2) < 0.5
    return np.ascontiguousarray(drawn[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1])


def _stroke(size: tuple[int, int], rng: np.random.Generator, count: int, reach: float) -> list[tuple[float, float]]:
    """The corners (x, y) of one stroke, within the image."""
    height, width = size
    middle, spread = 2 * math.pi / 5, 2 * math.pi / 15
    low, high = middle - rng.uniform(0, spread), middle + rng.uniform(0, spread)
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    corners = [(x, y)]
    for number in range(count - 1):
        angle = rng.uniform(low, high)
        angle = 2 * math.pi - angle if number % 2 == 0 else angle
        length = np.clip(rng.normal(reach, reach / 2), 0, 2 * reach)
        x = float(np.clip(x + length * math.cos(angle), 0, width))
        y = float(np.clip(y + length * math.sin(angle), 0, height))
        corners.append((x, y))
    return corners


def boxes(
    size: tuple[int, int],
    rng: np.random.Generator,
    count: tuple[int, int] = (1, 5),
    cover: tuple[float, float] = (0.1, 0.4),
) -> np.ndarray:
    """Draw upright rectangles that together cover a share of the image within `cover`, at random places and aspects.

    Raises:
      ConfigError: bad ranges, or rectangles that never cover such a share.

    Source: Saharia et al. 2022, appendix (arXiv 2111.05826); how the rectangles are drawn is ours.
    """
    check_range("mask", "count", count, 1, 100)
    check_range("mask", "cover", cover, 0, 1)
    height, width = size
    for _ in range(1000):
        mask = np.zeros(size, bool)
        number = int(rng.integers(count[0], count[1] + 1))
        shares = rng.dirichlet(np.full(number, 4.0)) * rng.uniform(*cover)
        for share in shares:
            aspect = 2 ** rng.uniform(-1, 1)
            rows = int(np.clip(round(height * math.sqrt(share * aspect)), 1, height))
            columns = int(np.clip(round(width * math.sqrt(share / aspect)), 1, width))
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            mask[top : top + rows, left : left + columns] = True
        if cover[0] <= mask.mean() <= cover[1]:
            return mask
    raise ConfigError(f"mask: no {count[0]} to {count[1]} boxes cover {cover[0]:g} to {cover[1]:g} of {width}x{height} pixels")


def centre(size: tuple[int, int], share: float = 0.25) -> np.ndarray:
    """Return a central rectangle with the image's aspect and this share of its area (0.25: 128 of 256 pixels)."""
    if not 0 < share < 1:
        raise ConfigError(f"mask: the centre's share must lie in (0, 1), got {share}")
    rows, columns = (round(side * math.sqrt(share)) for side in size)
    top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
    mask = np.zeros(size, bool)
    mask[top : top + rows, left : left + columns] = True
    return mask


def uncrop(size: tuple[int, int], side: str, rng: np.random.Generator | None = None, share: float = 0.5) -> np.ndarray:
    """Return one side of the image, or what surrounds a rectangle, as missing.

    Args:
      side: "left", "right", "top", "bottom", or "all": what surrounds a rectangle of random aspect and place.
      rng: for "all"; without one the rectangle is central and has the image's aspect.
      share: of the area that is missing, up to rounding.

    Source: Saharia et al. 2022, section 4.3 and appendix (arXiv 2111.05826).
    """
    check_choice("mask: side", side, SIDES)
    if not 0 < share < 1:
        raise ConfigError(f"mask: the missing share must lie in (0, 1), got {share}")
    height, width = size
    mask = np.zeros(size, bool)
    if side in ("left", "right"):
        columns = round(width * share)
        mask[:, slice(0, columns) if side == "left" else slice(width - columns, width)] = True
        return mask
    if side in ("top", "bottom"):
        rows = round(height * share)
        mask[slice(0, rows) if side == "top" else slice(height - rows, height)] = True
        return mask
    if rng is None:
        return ~centre(size, 1 - share)
    rows = round(height * rng.uniform(1 - share, 1))
    columns = min(width, round((1 - share) * height * width / rows))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    mask[:] = True
    mask[top : top + rows, left : left + columns] = False
    return mask
