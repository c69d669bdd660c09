"""Low-resolution images through a random chain of blurs, resizes, noise and JPEG: blind super-resolution's degradation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from diffusion_jax.data.degradations.operators import (
    METHODS,
    blur,
    check_range,
    check_reducible,
    compress,
    gaussian_kernel,
    gaussian_noise,
    resize,
    to_bytes,
    to_unit,
)
from diffusion_jax.registry import register
from diffusion_jax.spec import size_of
from diffusion_jax.values import Count, Fraction, Natural, NonNegative

_NOISE = (("colour", 0.4), ("grey", 0.4), ("correlated", 0.2))
_KERNELS = range(7, 26, 2)


@register("degradation", "bsr")
@dataclasses.dataclass(frozen=True)
class Bsr:
    """Degrades by a practical model for blind super-resolution, and its light variant.

    With probability `halve` the image is halved first. Then in random order: the blurs, each Gaussian, round or slanted;
    a resize by a random factor (or, one time in four, a blur and a decimation); the resize to the size asked for, always
    after the random one; noise; JPEG. At the end JPEG once more.

    Args:
      low_res_size: (h, w) of the result in pixels, or one number for a square.
      halve: the probability of halving first.
      blurs: how many.
      strength: of the blurs: 1 draws standard deviations up to 4 + f (slanted) and 2 + f / 5 (round) for the factor f.
      noise: (from, to) of the standard deviation, of 255.
      quality: (from, to) of both JPEG compressions.
      jpeg: the probability of the one in the chain.

    Source: Zhang et al. 2021, section 3 (arXiv 2103.14006), with the constants of its published code; the light variant
    is that of latent diffusion's super-resolution (arXiv 2112.10752). All resizes here are anti-aliased; the code's
    bilinear and bicubic ones were not.
    """

    low_res_size: Count | tuple[Count, Count]
    halve: Fraction = 0.25
    blurs: Natural = 2
    strength: NonNegative = 1.0
    noise: tuple[float, float] = (2, 25)
    quality: tuple[int, int] = (30, 95)
    jpeg: Fraction = 0.9

    def __post_init__(self) -> None:
        check_range("degradation 'bsr'", "quality", self.quality, 1, 100)
        check_range("degradation 'bsr'", "noise", self.noise, 0, 255)
        object.__setattr__(self, "_size", size_of(self.low_res_size, "degradation 'bsr': low_res_size"))

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """Return {"low_res": uint8 [h, w, c]} of uint8 [H, W, c].

        Raises:
          DataError: an image that is smaller than the low-resolution size.
        """
        check_reducible(image.shape[:2], self._size)
        low_res = to_unit(image)
        factor = min(side / low for side, low in zip(image.shape[:2], self._size, strict=True))
        if factor >= 2 and rng.random() < self.halve:
            low_res = np.clip(resize(low_res, tuple(side // 2 for side in image.shape[:2]), _method(rng)), 0, 1)
        for step in self._order(rng):
            low_res = np.clip(getattr(self, f"_{step}")(low_res, factor, rng), 0, 1)
        return {"low_res": compress(to_bytes(low_res), _integer(self.quality, rng))}

    def _order(self, rng: np.random.Generator) -> list[str]:
        steps = ["blur"] * self.blurs + ["random_resize", "exact_resize", "noise", "jpeg"]
        steps = [steps[i] for i in rng.permutation(len(steps))]
        first, second = sorted((steps.index("random_resize"), steps.index("exact_resize")))
        steps[first], steps[second] = "random_resize", "exact_resize"
        return steps

    def _blur(self, image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
        size = int(rng.choice(_KERNELS))
        if rng.random() < 0.5:
            sigma = tuple(np.maximum(self.strength * (4 + factor) * rng.random(2), 0.1))
            return blur(image, gaussian_kernel(size, sigma, rng.uniform(0, math.pi)))
        return blur(image, gaussian_kernel(size, max(self.strength * (2 + 0.2 * factor) * rng.random(), 0.1)))

    def _random_resize(self, image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
        if rng.random() < 0.75:
            scale = rng.uniform(1, 2 * factor)
            return resize(image, tuple(max(1, round(side / scale)) for side in image.shape[:2]), _method(rng))
        stride = max(1, round(factor))
        kernel = gaussian_kernel(25, rng.uniform(0.1, 0.6 * factor) + 1e-3, shift=(stride - 1) / 2)
        return blur(image, kernel)[::stride, ::stride]

    def _exact_resize(self, image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
        return resize(image, self._size, _method(rng))

    def _noise(self, image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
        kinds, shares = zip(*_NOISE, strict=True)
        return gaussian_noise(image, rng.uniform(*self.noise) / 255, rng, str(rng.choice(kinds, p=shares)))

    def _jpeg(self, image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.jpeg:
            return image
        return to_unit(compress(to_bytes(image), _integer(self.quality, rng)))


@register("degradation", "bsr_light")
def bsr_light(low_res_size: Count | tuple[Count, Count]) -> Bsr:
    """Return the variant for fairly clean inputs: one blur of a quarter of the strength, little noise, good JPEG."""
    return Bsr(low_res_size, blurs=1, strength=0.25, noise=(1, 2), quality=(80, 95))


def _method(rng: np.random.Generator) -> str:
    return str(rng.choice(sorted(METHODS)))


def _integer(bounds: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))
