"""The networks of Karras et al. 2022 (arXiv 2206.00364) by name; every field can be overridden."""

from __future__ import annotations

from diffusion_jax.models.presets import _preset as preset
from diffusion_jax.models.song_unet import song_unet

_NCSNPP = {"embedding": "fourier", "pyramid": True, "resample_filter": (1, 3, 3, 1)}
_BASELINE = {"multipliers": (1, 2, 2, 2), "image_size": 32, "dropout": 0.1}
_CIFAR10 = {"multipliers": (2, 2, 2), "image_size": 32, "dropout": 0.13, "augment_dim": 9}
_FACES64 = {"multipliers": (1, 2, 2, 2), "image_size": 64, "dropout": 0.05, "augment_dim": 9}

song_ddpmpp_cifar10 = preset(
    "song_ddpmpp_cifar10",
    "DDPM++ as the score SDEs have it for CIFAR-10 (configuration A): 61,804,419 parameters; 106,632,579 with 8 blocks.",
    _BASELINE,
    song_unet,
)

song_ncsnpp_cifar10 = preset(
    "song_ncsnpp_cifar10",
    "NCSN++ as the score SDEs have it for CIFAR-10 (configuration A): 62,758,787 parameters.",
    {**_BASELINE, **_NCSNPP},
    song_unet,
)

edm_ddpmpp_cifar10 = preset(
    "edm_ddpmpp_cifar10",
    "EDM's DDPM++ for CIFAR-10: 55,733,891 parameters, 55,735,299 with 10 classes.",
    _CIFAR10,
    song_unet,
)

edm_ncsnpp_cifar10 = preset(
    "edm_ncsnpp_cifar10",
    "EDM's NCSN++ for CIFAR-10: 56,397,827 parameters, 56,400,643 with 10 classes.",
    {**_CIFAR10, **_NCSNPP},
    song_unet,
)

edm_ddpmpp64 = preset(
    "edm_ddpmpp64",
    "EDM's DDPM++ for FFHQ and AFHQv2 at 64 pixels: 61,805,571 parameters.",
    _FACES64,
    song_unet,
)

edm_ncsnpp64 = preset(
    "edm_ncsnpp64",
    "EDM's NCSN++ for FFHQ and AFHQv2 at 64 pixels: 62,761,091 parameters.",
    {**_FACES64, **_NCSNPP},
    song_unet,
)

edm_adm64 = preset(
    "edm_adm64",
    "EDM's ADM for ImageNet-64: 295,899,267 parameters with 1,000 classes. Unlike `unet_adm64` it learns no variance.",
    {
        "out_channels": 3, "channels": 192, "multipliers": (1, 2, 3, 4), "num_res_blocks": 3, "head_channels": 64,
        "resample": "resblock", "attention_resolutions": (32, 16, 8), "image_size": 64, "dropout": 0.1,
    },
)  # fmt: skip
