"""Networks: Flax Linen modules made functional. They know no diffusion mathematics."""

from __future__ import annotations

from diffusion_jax.models.adm_classifier import unet_classifier
from diffusion_jax.models.classifier import Classifier, small_classifier
from diffusion_jax.models.edm2 import edm2
from diffusion_jax.models.edm_presets import (
    edm_adm64,
    edm_ddpmpp64,
    edm_ddpmpp_cifar10,
    edm_ncsnpp64,
    edm_ncsnpp_cifar10,
    song_ddpmpp_cifar10,
    song_ncsnpp_cifar10,
)
from diffusion_jax.models.efficient_unet import efficient_unet, text_unet
from diffusion_jax.models.network import Network
from diffusion_jax.models.partitioning import activation_sharding
from diffusion_jax.models.presets import (
    adm_classifier64,
    adm_classifier128,
    adm_classifier256,
    adm_classifier512,
    unet_adm64,
    unet_adm128,
    unet_adm256,
    unet_adm512,
    unet_adm_upsampler256,
    unet_adm_upsampler512,
    unet_ddpm256,
    unet_ddpm_celeba64,
    unet_ddpm_cifar10,
    unet_iddpm64,
    unet_iddpm256,
    unet_iddpm_cifar10,
    unet_iddpm_upsampler256,
    unet_imagen_base64,
    unet_imagen_sr256,
    unet_imagen_sr1024,
    unet_palette256,
)
from diffusion_jax.models.song_unet import song_unet
from diffusion_jax.models.unet import unet

__all__ = [
    "Classifier",
    "Network",
    "activation_sharding",
    "adm_classifier128",
    "adm_classifier256",
    "adm_classifier512",
    "adm_classifier64",
    "edm2",
    "efficient_unet",
    "edm_adm64",
    "edm_ddpmpp64",
    "edm_ddpmpp_cifar10",
    "edm_ncsnpp64",
    "edm_ncsnpp_cifar10",
    "small_classifier",
    "song_ddpmpp_cifar10",
    "song_ncsnpp_cifar10",
    "song_unet",
    "text_unet",
    "unet",
    "unet_adm64",
    "unet_adm128",
    "unet_adm256",
    "unet_adm512",
    "unet_adm_upsampler256",
    "unet_adm_upsampler512",
    "unet_ddpm256",
    "unet_ddpm_celeba64",
    "unet_ddpm_cifar10",
    "unet_iddpm64",
    "unet_iddpm256",
    "unet_iddpm_cifar10",
    "unet_iddpm_upsampler256",
    "unet_imagen_base64",
    "unet_imagen_sr1024",
    "unet_imagen_sr256",
    "unet_classifier",
    "unet_palette256",
]
