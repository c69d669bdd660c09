"""What to ask an image-to-image model for: a user's images and masks, or held-out images with one of the tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import data
from diffusion_jax.data.degradations import TASKS, with_mask
from diffusion_jax.data.files import fitted, masked_images
from diffusion_jax.errors import ConfigError, DataError, nearest
from diffusion_jax.inference.requests import requests_of
from diffusion_jax.systems import Palette

_AS_THEY_ARE = "jpeg"  # a user's compressed images are not compressed once more


def image_requests(
    system: Palette, config: Mapping[str, Any], num: int, images: str | None = None, masks: str | None = None,
    task: str | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The requests of an image-to-image model, by sample index.

    Args:
      config: of its run.
      num: how many, of held-out data.
      images: a folder of images; they are fitted and cropped to the model's size. None takes held-out ones.
      masks: a folder of masks of the same names (any ending) and sizes, white where a pixel is to be filled.
      task: "colorize", "inpaint", "uncrop" or "jpeg": what is done to the images; of a user's images, "jpeg" takes them as
        they are. None is the run's own degradation.

    Raises:
      ConfigError: an unknown task, or masks together with another task or without images.
      DataError: no images, a mask that is missing, of another size than its image, or empty.
    """
    if task is not None and task not in TASKS:
        raise ConfigError(f"unknown task {task!r}{nearest(task, TASKS)} (known: {', '.join(TASKS)})")
    if masks is not None and images is None:
        raise ConfigError("--masks belong to --images: give the folder of the images too")
    if masks is not None and task not in (None, "inpaint"):
        raise ConfigError(f"--masks are for inpainting, not for the task {task!r}: leave one of the two out")
    settings = {**config["data"], "degradation": task or config["data"].get("degradation")}
    if images is None:
        return requests_of(system, data.from_config(settings, seed=config["seed"], split="test"), num)
    if masks is not None:
        return _masked(Path(images), Path(masks), system)
    # All of a user's images, whatever is held out elsewhere; nothing at random but the degradation.
    fields = {"image_size": system.image_size, "channels": system.channels, "batch_size": 1, "resize": "area"}
    source = {"name": "folder", "path": images, "test_fraction": 0.0}
    chosen = "colorize" if task == _AS_THEY_ARE else settings["degradation"]
    pipeline = data.from_config({**fields, "source": source, "degradation": chosen}, seed=config["seed"])
    columns = requests_of(system, pipeline, len(pipeline))
    if task == _AS_THEY_ARE:
        columns["degraded"] = np.concatenate([batch["image"] for batch in pipeline.one_pass(256)])
        columns["task"] = np.full_like(columns["task"], TASKS.index(_AS_THEY_ARE))
    return columns


def _masked(images: Path, masks: Path, system: Palette) -> dict[str, np.ndarray]:
    """Each image with the mask of its name."""
    rows = []
    for path, image, mask in masked_images(images, masks):
        try:
            rows.append(with_mask(fitted(image, system.image_size, system.channels), fitted(mask, system.image_size, 1)))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
