"""Images in files and in folders, and pictures of many images."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from diffusion_jax.data.transforms import Crop, Fit, to_channels
from diffusion_jax.errors import DataError
from diffusion_jax.files import replacing
from diffusion_jax.spec import Spec

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


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
    """Return the pixels of an image file as they are stored, [H, W, C]."""
    with Image.open(path) as image:
        return np.asarray(image).reshape(image.height, image.width, -1)


def image_files(root: Path) -> list[Path]:
    """Return the png, jpeg and webp files below a directory, sorted."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())


def load_image(path: Path) -> np.ndarray:
    """Return the pixels of an image file as it is meant to be seen, uint8 [h, w, 1, 3 or 4].

    Raises:
      DataError: the file is not an image, or is truncated; the message names it.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode not in ("L", "RGB", "RGBA"):
                image = image.convert("RGBA" if "transparency" in image.info or image.mode in ("LA", "PA") else "RGB")
            return np.asarray(image).reshape(image.height, image.width, -1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} is corrupt, truncated or not an image ({error}); mend or remove it, or set skip_corrupt=True"
        ) from error


def named_files(folder: Path) -> dict[Path, Path]:
    """Return the image files below a folder, sorted, by their names without endings.

    Raises:
      DataError: no folder, or no images in it.
    """
    if not folder.is_dir():
        raise DataError(f"there is no directory {str(folder)!r}")
    files = image_files(folder)
    if not files:
        raise DataError(f"no images in {folder}: looked for {', '.join(ENDINGS)} in it and in its sub-folders")
    return {path.relative_to(folder).with_suffix(""): path for path in files}


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
