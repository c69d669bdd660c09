"""Images in files and in folders, and pictures of many images."""

from __future__ import annotations

import collections
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from diffusion_jax.data.transforms import MOST_PIXELS, Crop, Fit, to_channels
from diffusion_jax.errors import DataError
from diffusion_jax.files import reason, replacing
from diffusion_jax.spec import Spec

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Of the image files that are read; of several frames or pages the first."""


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a PNG of uint8 [H, W, 1 or 3], whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(png_of(image))


def png_of(image: np.ndarray) -> bytes:
    """Return the PNG file of uint8 [H, W, 1 or 3]."""
    content = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(content, format="png")
    return content.getvalue()


def read_image(path: Path) -> np.ndarray:
    """Return the pixels of an image file as they are stored, [H, W, C].

    Raises:
      DataError: more than `MOST_PIXELS`.
    """
    with Image.open(path) as image:
        _check_pixels(path, image)
        return np.asarray(image).reshape(image.height, image.width, -1)


def size_in_header(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image file in pixels; it is not decoded.

    Raises:
      DataError: no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # PIL reports damage in many ways
        raise DataError(f"{path} is corrupt, truncated or not an image ({reason(error)}); mend or remove it") from error


def listing(root: Path) -> tuple[list[Path], collections.Counter[str]]:
    """Return the image files below a directory, sorted, and how many other files there are by their endings.

    Hidden files and folders, such as the ._NAME.jpg that macOS leaves on foreign disks, are neither; links to folders are not
    followed, and count among the other files.

    Raises:
      DataError: a directory that cannot be read.
    """
    found, others, waiting = [], collections.Counter(), [os.fspath(root)]
    while waiting:
        folder = waiting.pop()
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
            waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
            files = [entry.path for entry in entries if entry.is_file()]
            others["linked folders"] += sum(entry.is_symlink() and entry.is_dir() for entry in entries)
        except OSError as error:
            raise DataError(f"cannot read the directory {folder}: {error.strerror}") from error
        for path in files:
            ending = os.path.splitext(path)[1].lower()
            if ending in ENDINGS:
                found.append(path)
            else:
                others[ending or "no ending"] += 1
    return [Path(path) for path in sorted(found, key=lambda path: path.split(os.sep))], +others


def image_files(root: Path) -> list[Path]:
    """Return the image files below a directory, sorted, without hidden ones; see `ENDINGS`."""
    return listing(root)[0]


def _check_pixels(path: Path, image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise DataError(f"{path} has {image.width}x{image.height} pixels, more than {MOST_PIXELS:,}: make it smaller")


def load_image(path: Path) -> np.ndarray:
    """Return the pixels of an image file as it is meant to be seen, uint8 [h, w, 1, 3 or 4].

    Grey of 16 bits is scaled to 8 and rounded; colour of 16 bits keeps its upper 8. Palettes, CMYK and the like become RGB,
    black and white becomes grey, whatever is transparent RGBA.

    Raises:
      DataError: the file is not an image, is truncated, has more than `MOST_PIXELS`, or values without an agreed range
        (floating ones, integers beyond 16 bits); the message names it.
    """
    try:
        with Image.open(path) as opened:
            _check_pixels(path, opened)
            return _bytes(ImageOps.exif_transpose(opened))
    except DataError:
        raise
    except Exception as error:  # PIL reports damage in many ways
        raise DataError(
            f"{path} is corrupt, truncated or not an image ({reason(error)}); mend or remove it, or set skip_corrupt=True"
        ) from error


def _bytes(image: Image.Image) -> np.ndarray:
    """The pixels as they are meant, uint8 [h, w, C]."""
    if image.mode.startswith("I"):  # whole numbers: I;16, I;16B, and I, as which PIL opens some files of 16 bits
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its whole numbers lie outside of 16 bits, and have no agreed range: save it with 8 or 16 bits")
        return ((values + 128) // 257).astype(np.uint8)[..., None]
    if image.mode == "F":
        raise ValueError("its values are floating, and have no agreed range: save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return np.asarray(image).reshape(image.height, image.width, -1)


def named_files(folder: Path) -> dict[Path, Path]:
    """Return the image files below a folder, sorted, by their names without endings.

    Raises:
      DataError: no folder, no images in it, or two of one name.
    """
    if not folder.is_dir():
        raise DataError(f"there is no directory {str(folder)!r}")
    files = image_files(folder)
    if not files:
        raise DataError(f"no images in {folder}: looked for {', '.join(ENDINGS)} in it and in its sub-folders")
    named = {path.relative_to(folder).with_suffix(""): path for path in files}
    twice = next((path for path in files if named[path.relative_to(folder).with_suffix("")] != path), None)
    if twice is not None:
        raise DataError(f"{folder} has two images named {twice.stem!r} with different endings: keep one of the two")
    return named


def masked_images(images: Path, masks: Path) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """Yield (file of the mask, image uint8 [h, w, C], mask uint8 [h, w, 1]) of each image in a folder, by name.

    Args:
      masks: folder of the masks. A mask has its image's name, with any ending, and its size; white is to be filled.

    Raises:
      DataError: no folder or no images, an image without a mask (before any is read), or a mask of another size.
    """
    found, holes = named_files(images), named_files(masks)
    lacking = [name for name in found if name not in holes]
    if lacking:
        raise DataError(f"no mask for the image {str(lacking[0])!r} in {masks}: a mask has its image's name, with any ending")
    for name, path in found.items():
        image, mask = load_image(path), to_channels(load_image(holes[name]), 1)
        if image.shape[:2] != mask.shape[:2]:
            raise DataError(
                f"{holes[name]}: a mask of {mask.shape[1]}x{mask.shape[0]} for an image of "
                f"{image.shape[1]}x{image.shape[0]}: mask and image must have one size"
            )
        yield holes[name], image, mask


def fitted(image: np.ndarray, size: Spec | int | tuple[int, int], channels: int | None = None) -> np.ndarray:
    """Return the centre of an image at a model's size, uint8 [H, W, channels]: reduced or enlarged by area, and cropped.

    Args:
      size: a model's spec, or (H, W), or one number for a square.
      channels: 1 or 3; those of the spec by default.
    """
    if isinstance(size, Spec):
        size, channels = size.size, channels or size.channels
    return Crop(size)(Fit(size, channels)(image), None)


def tile(images: np.ndarray, columns: int | None = None, gap: int = 2, scale: int = 1) -> np.ndarray:
    """Lay many images out as one picture: uint8 [N, H, W, C] -> uint8 [rows, columns, C], row by row, on a white ground.

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
    """Join pictures of one height side by side, with white between."""
    bar = np.full((sheets[0].shape[0], gap, sheets[0].shape[2]), 255, np.uint8)
    parts = [part for sheet in sheets for part in (bar, sheet)][1:]
    return np.concatenate(parts, axis=1)


def by_class(images: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, int | None]:
    """Arrange images for `tile` so that each row is a class, where labels go round a few classes or are sorted by them.

    Args:
      images: uint8 [N, H, W, C].
      labels: int [N], or None.

    Returns:
      (the images, with white ones where a class has fewer than others; how many to a row), or the images as they are, and None,
      where there are no labels, one class, more than four times as many classes as images of one, or where more white would
      come than a quarter of the images.

    >>> images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    >>> arranged, columns = by_class(images, np.array([0, 1, 0, 1, 0, 1]))
    >>> arranged.ravel().tolist(), columns
    ([0, 2, 4, 1, 3, 5], 3)
    """
    if labels is None:
        return images, None
    classes, counts = np.unique(labels, return_counts=True)
    columns = counts.max()
    white = len(classes) * columns - len(images)
    if len(classes) < 2 or columns < 2 or len(classes) > 4 * columns or white > len(images) / 4:
        return images, None
    sheet = np.full((len(classes), columns, *images.shape[1:]), 255, np.uint8)
    for row, label in enumerate(classes):
        found = images[labels == label]
        sheet[row, : len(found)] = found
    return sheet.reshape(-1, *images.shape[1:]), int(columns)
