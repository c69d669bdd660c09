"""Gaussian noise: independent in colour, grey, or with a random correlation of the colours."""

from __future__ import annotations

import numpy as np

from diffusion_jax.data.degradations.checks import check_choice, check_float

KINDS = ("colour", "grey", "correlated")


def gaussian_noise(image: np.ndarray, sigma: float, rng: np.random.Generator, kind: str = "colour") -> np.ndarray:
    """A floating image [h, w, c] with noise added, clipped to [0, 1]; float32.

    Args:
      sigma: the standard deviation, in units of the range [0, 1]; the largest one of "correlated" noise.
      kind: "colour" is independent in each channel, "grey" the same in all, "correlated" has a random covariance:
        standard deviations up to sigma along random axes of the colour space.

    Source: the degradation model of Zhang et al. 2021, section 3 (arXiv 2103.14006).
    """
    check_choice("noise", "kind", kind, KINDS)
    check_float("noise", image)
    height, width, channels = image.shape
    if kind == "grey":
        noise = rng.standard_normal((height, width, 1))
    else:
        noise = rng.standard_normal((height, width, channels))
    if kind == "correlated":
        axes = np.linalg.qr(rng.standard_normal((channels, channels)))[0]
        noise = noise @ (np.sqrt(rng.random(channels))[:, None] * axes.T)
    return np.clip(image + sigma * noise, 0, 1).astype(np.float32)
