"""The published U-Nets by name; every field can be overridden."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from diffusion_jax.models.adm_unet import unet
from diffusion_jax.models.classifiers import unet_classifier
from diffusion_jax.models.imagen_unet import efficient_unet, text_unet
from diffusion_jax.models.network import Network
from diffusion_jax.models.score_sde_unet import song_unet
from diffusion_jax.registry import register

_DDPM = {"conditioning": "additive", "embedding": "ddpm", "down_padding": "same", "norm_epsilon": 1e-6}
_IDDPM = {"out_channels": 6, "num_heads": 4, "attention_resolutions": (16, 8)}
_ADM = {
    "out_channels": 6,
    "channels": 256,
    "head_channels": 64,
    "resample": "resblock",
    "attention_resolutions": (32, 16, 8),
}


def _preset(
    name: str, doc: str, family: Mapping[str, Any], network: Callable[..., Network] = unet, **fields: Any
) -> Callable[..., Network]:
    """A network with other defaults, registered under a name of its own, so that a misspelt field is found all the same."""
    defaults = {**family, **fields}

    def build(**overrides: Any) -> Network:
        return network(**{**defaults, **overrides})

    signature = inspect.signature(network)
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=defaults.get(field, parameter.default))
        for field, parameter in signature.parameters.items()
    ]
    build.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    build.__name__ = build.__qualname__ = name
    build.__wrapped__ = network  # type: ignore[attr-defined]
    build.__doc__ = f"{doc}\n\nTakes every field of `{network.__name__}`, by keyword."
    return register("network", name)(build)


unet_ddpm_cifar10 = _preset(
    "unet_ddpm_cifar10",
    "DDPM for CIFAR-10: 35,746,307 parameters (arXiv 2006.11239, appendix B).",
    _DDPM, image_size=32, dropout=0.1,
)  # fmt: skip

unet_ddpm_celeba64 = _preset(
    "unet_ddpm_celeba64",
    "The CelebA 64 network of DDIM: 78,700,803 parameters (arXiv 2010.02502, appendix D.1).",
    _DDPM, image_size=64, multipliers=(1, 2, 2, 2, 4), dropout=0.1,
)  # fmt: skip

unet_ddpm256 = _preset(
    "unet_ddpm256",
    "DDPM for LSUN and CelebA-HQ: 113,673,219 parameters (arXiv 2006.11239, appendix B).",
    _DDPM, image_size=256, multipliers=(1, 1, 2, 2, 4, 4),
)  # fmt: skip

unet_iddpm_cifar10 = _preset(
    "unet_iddpm_cifar10",
    "Improved DDPM for CIFAR-10: 52,546,438 parameters (arXiv 2102.09672).",
    _IDDPM, image_size=32, num_res_blocks=3, dropout=0.3,
)  # fmt: skip

unet_iddpm64 = _preset(
    "unet_iddpm64",
    "Improved DDPM for ImageNet-64: 121,063,942 parameters; with channels=192 and 1,000 classes 273,049,350 (2102.09672).",
    _IDDPM, image_size=64, num_res_blocks=3, multipliers=(1, 2, 3, 4),
)  # fmt: skip

unet_iddpm256 = _preset(
    "unet_iddpm256",
    "Improved DDPM for LSUN bedroom: 113,676,678 parameters (arXiv 2102.09672).",
    _IDDPM, image_size=256, multipliers=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,), num_heads=1, conditioning="additive",
)  # fmt: skip

unet_iddpm_upsampler256 = _preset(
    "unet_iddpm_upsampler256",
    "Improved DDPM's 64 -> 256 upsampler: 279,792,390 parameters with 1,000 classes (arXiv 2102.09672).",
    _IDDPM, image_size=256, channels=192, multipliers=(1, 1, 2, 2, 4, 4), low_res_channels=3, low_res_size=64,
)  # fmt: skip

unet_adm64 = _preset(
    "unet_adm64",
    "ADM for ImageNet-64: 295,904,454 parameters with 1,000 classes (arXiv 2105.05233).",
    _ADM, image_size=64, channels=192, num_res_blocks=3, multipliers=(1, 2, 3, 4), dropout=0.1,
)  # fmt: skip

unet_adm128 = _preset(
    "unet_adm128",
    "ADM for ImageNet-128: 421,529,606 parameters with 1,000 classes (arXiv 2105.05233).",
    _ADM, image_size=128, multipliers=(1, 1, 2, 3, 4), head_channels=None, num_heads=4,
)  # fmt: skip

unet_adm256 = _preset(
    "unet_adm256",
    "ADM for ImageNet-256 and LSUN: 553,838,086 parameters with 1,000 classes, 552,814,086 without (arXiv 2105.05233).",
    _ADM, image_size=256, multipliers=(1, 1, 2, 2, 4, 4),
)  # fmt: skip

unet_adm512 = _preset(
    "unet_adm512",
    "ADM for ImageNet-512: 558,997,638 parameters with 1,000 classes (arXiv 2105.05233).",
    _ADM, image_size=512, multipliers=(0.5, 1, 1, 2, 2, 4, 4),
)  # fmt: skip

unet_adm_upsampler256 = _preset(
    "unet_adm_upsampler256",
    "ADM's 64 -> 256 upsampler: 311,795,910 parameters with 1,000 classes (arXiv 2105.05233).",
    _ADM, image_size=256, channels=192, multipliers=(1, 1, 2, 2, 4, 4), head_channels=None, num_heads=4,
    low_res_channels=3, low_res_size=64,
)  # fmt: skip

unet_adm_upsampler512 = _preset(
    "unet_adm_upsampler512",
    "ADM's 128 -> 512 upsampler: 308,835,270 parameters with 1,000 classes (arXiv 2105.05233).",
    _ADM, image_size=512, channels=192, multipliers=(1, 1, 2, 2, 4, 4), low_res_channels=3, low_res_size=128,
)  # fmt: skip

unet_palette256 = _preset(
    "unet_palette256",
    "Palette's image-to-image network: 552,814,083 parameters (arXiv 2111.05826).",
    _ADM, image_size=256, multipliers=(1, 1, 2, 2, 4, 4), out_channels=3, image_channels=3,
)  # fmt: skip

_IMAGEN = {"context_dim": 4096, "context_length": 128}
_IMAGEN_SR = {**_IMAGEN, "image_size": 256, "low_res_channels": 3, "low_res_size": 64, "aug_level": True}

unet_imagen_base64 = _preset(
    "unet_imagen_base64",
    "Imagen's 64x64 base, of T5-XXL's embeddings (arXiv 2205.11487, appendix F); published as 2B parameters.",
    _IMAGEN, network=text_unet, image_size=64, channels=512, multipliers=(1, 2, 3, 4), num_res_blocks=3,
    attention_resolutions=(32, 16, 8), head_channels=64, resample="resblock",
)  # fmt: skip

unet_imagen_sr256 = _preset(
    "unet_imagen_sr256",
    "Imagen's 64 -> 256 Efficient U-Net (arXiv 2205.11487, appendix F); published as 600M parameters.",
    _IMAGEN_SR, network=efficient_unet,
)  # fmt: skip

unet_imagen_sr1024 = _preset(
    "unet_imagen_sr1024",
    "Imagen's 256 -> 1024 Efficient U-Net, trained on 64 -> 256 crops (arXiv 2205.11487, appendix F): text cross-attention "
    "but no self-attention; published as 400M parameters.",
    _IMAGEN_SR, network=efficient_unet, self_attention=(False,) * 4,
)  # fmt: skip

adm_classifier64 = _preset(
    "adm_classifier64",
    "ADM's noisy classifier for ImageNet-64: 65,438,568 parameters (arXiv 2105.05233, appendix I).",
    {}, network=unet_classifier, image_size=64, num_res_blocks=4, multipliers=(1, 2, 3, 4),
)  # fmt: skip

adm_classifier128 = _preset(
    "adm_classifier128",
    "ADM's noisy classifier for ImageNet-128: 42,568,040 parameters (arXiv 2105.05233, appendix I).",
    {}, network=unet_classifier, image_size=128, multipliers=(1, 1, 2, 3, 4),
)  # fmt: skip

adm_classifier256 = _preset(
    "adm_classifier256",
    "ADM's noisy classifier for ImageNet-256: 54,096,360 parameters (arXiv 2105.05233, appendix I).",
    {}, network=unet_classifier, image_size=256, multipliers=(1, 1, 2, 2, 4, 4),
)  # fmt: skip

adm_classifier512 = _preset(
    "adm_classifier512",
    "ADM's noisy classifier for ImageNet-512: 54,448,360 parameters (arXiv 2105.05233, appendix I).",
    {}, network=unet_classifier, image_size=512, multipliers=(0.5, 1, 1, 2, 2, 4, 4),
)  # fmt: skip

# Those of Karras et al. 2022 (arXiv 2206.00364) ------------------------------------------------------------------------

_NCSNPP = {"embedding": "fourier", "pyramid": True, "resample_filter": (1, 3, 3, 1)}
_BASELINE = {"multipliers": (1, 2, 2, 2), "image_size": 32, "dropout": 0.1}
_CIFAR10 = {"multipliers": (2, 2, 2), "image_size": 32, "dropout": 0.13, "augment_dim": 9}
_FACES64 = {"multipliers": (1, 2, 2, 2), "image_size": 64, "dropout": 0.05, "augment_dim": 9}

song_ddpmpp_cifar10 = _preset(
    "song_ddpmpp_cifar10",
    "DDPM++ as the score SDEs have it for CIFAR-10 (configuration A): 61,804,419 parameters; 106,632,579 with 8 blocks.",
    _BASELINE,
    song_unet,
)

song_ncsnpp_cifar10 = _preset(
    "song_ncsnpp_cifar10",
    "NCSN++ as the score SDEs have it for CIFAR-10 (configuration A): 62,758,787 parameters.",
    {**_BASELINE, **_NCSNPP},
    song_unet,
)

edm_ddpmpp_cifar10 = _preset(
    "edm_ddpmpp_cifar10",
    "EDM's DDPM++ for CIFAR-10: 55,733,891 parameters, 55,735,299 with 10 classes.",
    _CIFAR10,
    song_unet,
)

edm_ncsnpp_cifar10 = _preset(
    "edm_ncsnpp_cifar10",
    "EDM's NCSN++ for CIFAR-10: 56,397,827 parameters, 56,400,643 with 10 classes.",
    {**_CIFAR10, **_NCSNPP},
    song_unet,
)

edm_ddpmpp64 = _preset(
    "edm_ddpmpp64",
    "EDM's DDPM++ for FFHQ and AFHQv2 at 64 pixels: 61,805,571 parameters.",
    _FACES64,
    song_unet,
)

edm_ncsnpp64 = _preset(
    "edm_ncsnpp64",
    "EDM's NCSN++ for FFHQ and AFHQv2 at 64 pixels: 62,761,091 parameters.",
    {**_FACES64, **_NCSNPP},
    song_unet,
)

edm_adm64 = _preset(
    "edm_adm64",
    "EDM's ADM for ImageNet-64: 295,899,267 parameters with 1,000 classes. Unlike `unet_adm64` it learns no variance.",
    {
        "out_channels": 3, "channels": 192, "multipliers": (1, 2, 3, 4), "num_res_blocks": 3, "head_channels": 64,
        "resample": "resblock", "attention_resolutions": (32, 16, 8), "image_size": 64, "dropout": 0.1,
    },
)  # fmt: skip
