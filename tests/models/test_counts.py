"""Parameter counts of published networks, exactly, at no memory."""

from __future__ import annotations

import pytest

from diffusion_jax import models

PUBLISHED = [
    ("unet_ddpm_cifar10", {}, 35_746_307),
    ("unet_ddpm_cifar10", {"out_channels": 6}, 35_749_766),
    ("unet_ddpm256", {}, 113_673_219),
    ("unet_ddpm256", {"channels": 192}, 255_677_955),
    ("unet_iddpm256", {}, 113_676_678),
    ("unet_ddpm_celeba64", {}, 78_700_803),
    ("unet_iddpm_cifar10", {}, 52_546_438),
    ("unet_iddpm64", {"channels": 64}, 30_303_494),
    ("unet_iddpm64", {"channels": 96}, 68_126_598),
    ("unet_iddpm64", {}, 121_063_942),
    ("unet_iddpm64", {"channels": 192}, 272_281_350),
    ("unet_iddpm64", {"channels": 192, "num_classes": 1000}, 273_049_350),
    ("unet_iddpm_upsampler256", {"num_classes": 1000}, 279_792_390),
    ("unet_adm64", {"num_classes": 1000}, 295_904_454),
    ("unet_adm64", {"num_classes": 1000, "out_channels": 3}, 295_899_267),  # as EDM trained it (arXiv 2206.00364)
    ("unet_adm128", {"num_classes": 1000}, 421_529_606),
    ("unet_adm256", {"num_classes": 1000}, 553_838_086),
    ("unet_adm256", {}, 552_814_086),
    ("unet_palette256", {}, 552_814_083),
    ("unet_adm512", {"num_classes": 1000}, 558_997_638),
    ("unet_adm_upsampler256", {"num_classes": 1000}, 311_795_910),
    ("unet_adm_upsampler512", {"num_classes": 1000}, 308_835_270),
    ("song_ddpmpp_cifar10", {}, 61_804_419),
    ("song_ddpmpp_cifar10", {"num_res_blocks": 8}, 106_632_579),
    ("song_ncsnpp_cifar10", {}, 62_758_787),
    ("edm_ddpmpp_cifar10", {}, 55_733_891),
    ("edm_ddpmpp_cifar10", {"num_classes": 10}, 55_735_299),
    ("edm_ncsnpp_cifar10", {}, 56_397_827),
    ("edm_ncsnpp_cifar10", {"num_classes": 10}, 56_400_643),
    ("edm_ddpmpp64", {}, 61_805_571),
    ("edm_ncsnpp64", {}, 62_761_091),
    ("edm_adm64", {"num_classes": 1000}, 295_899_267),
]


@pytest.mark.parametrize(("name", "overrides", "count"), PUBLISHED, ids=[f"{n}-{c}" for n, _, c in PUBLISHED])
def test_published_counts(name, overrides, count):
    assert getattr(models, name)(**overrides).num_params() == count
