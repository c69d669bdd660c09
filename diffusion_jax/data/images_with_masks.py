"""A user's folder of images, and one of masks by the same names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffusion_jax.data.sources.folder import ENDINGS, image_files, read_image
from diffusion_jax.data.transforms import Crop, Fit, to_channels
from diffusion_jax.errors import DataError


def named_files(folder: Path) -> dict[Path, Path]:
    """The image files below a folder, sorted, by their names without endings.

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
    """(file of the mask, image uint8 [h, w, C], mask uint8 [h, w, 1]) of each image in a folder, by name.

    Args:
      masks: folder of the masks. A mask has its image's name, with any ending, and its size.

    Raises:
      DataError: no folder or no images, an image without a mask (before any is read), or a mask of another size.
    """
    found, holes = named_files(images), named_files(masks)
    lacking = [name for name in found if name not in holes]
    if lacking:
        raise DataError(f"no mask for the image {str(lacking[0])!r} in {masks}: a mask has its image's name, with any ending")
    for name, path in found.items():
        image, mask = read_image(path), to_channels(read_image(holes[name]), 1)
        if image.shape[:2] != mask.shape[:2]:
            raise DataError(
                f"{holes[name]}: a mask of {mask.shape[1]}x{mask.shape[0]} for an image of "
                f"{image.shape[1]}x{image.shape[0]}: mask and image must have one size"
            )
        yield holes[name], image, mask


def fitted(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """The centre of an image at a model's size, uint8 [size, size, channels]: reduced by area, cropped."""
    return Crop(size)(Fit(size, channels)(image), None)
