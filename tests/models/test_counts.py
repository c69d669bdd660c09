"""Parameter counts of published networks, exactly, at no memory.

    python -m pytest -n 0 -s -m "slow or not slow" tests/models/test_counts.py

prints them as a table. A row is the system, its model, the preset that makes it, the fields that differ, and the count
that its authors' code has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from diffusion_jax import models
from diffusion_jax.models.edm2_unet import CHANNELS


class Row(NamedTuple):
    system: str
    model: str
    preset: str
    fields: dict[str, Any]
    count: int


_CLASSES = {"num_classes": 1000}

PUBLISHED = [
    Row("DDPM", "CIFAR-10", "unet_ddpm_cifar10", {}, 35_746_307),
    Row("DDPM", "CIFAR-10, learned variance", "unet_ddpm_cifar10", {"out_channels": 6}, 35_749_766),
    Row("DDPM", "LSUN, CelebA-HQ 256", "unet_ddpm256", {}, 113_673_219),
    Row("DDPM", "LSUN bedroom 256, large", "unet_ddpm256", {"channels": 192}, 255_677_955),
    Row("DDIM", "CelebA 64", "unet_ddpm_celeba64", {}, 78_700_803),
    Row("IDDPM", "CIFAR-10", "unet_iddpm_cifar10", {}, 52_546_438),
    Row("IDDPM", "ImageNet-64, 64 channels", "unet_iddpm64", {"channels": 64}, 30_303_494),
    Row("IDDPM", "ImageNet-64, 96 channels", "unet_iddpm64", {"channels": 96}, 68_126_598),
    Row("IDDPM", "ImageNet-64", "unet_iddpm64", {}, 121_063_942),
    Row("IDDPM", "ImageNet-64, 192 channels", "unet_iddpm64", {"channels": 192}, 272_281_350),
    Row("IDDPM", "ImageNet-64, conditional", "unet_iddpm64", {"channels": 192, **_CLASSES}, 273_049_350),
    Row("IDDPM", "64 -> 256, conditional", "unet_iddpm_upsampler256", _CLASSES, 279_792_390),
    Row("IDDPM", "LSUN bedroom 256", "unet_iddpm256", {}, 113_676_678),
    Row("ADM", "ImageNet-64, conditional", "unet_adm64", _CLASSES, 295_904_454),
    Row("ADM", "ImageNet-128, conditional", "unet_adm128", _CLASSES, 421_529_606),
    Row("ADM", "ImageNet-256, conditional", "unet_adm256", _CLASSES, 553_838_086),
    Row("ADM", "ImageNet-512, conditional", "unet_adm512", _CLASSES, 558_997_638),
    Row("ADM", "ImageNet-256, LSUN, unconditional", "unet_adm256", {}, 552_814_086),
    Row("ADM", "64 -> 256, conditional", "unet_adm_upsampler256", _CLASSES, 311_795_910),
    Row("ADM", "128 -> 512, conditional", "unet_adm_upsampler512", _CLASSES, 308_835_270),
    Row("ADM", "classifier 64", "adm_classifier64", {}, 65_438_568),
    Row("ADM", "classifier 128", "adm_classifier128", {}, 42_568_040),
    Row("ADM", "classifier 256", "adm_classifier256", {}, 54_096_360),
    Row("ADM", "classifier 512", "adm_classifier512", {}, 54_448_360),
    Row("Palette", "256", "unet_palette256", {}, 552_814_083),
    Row("Score SDE", "DDPM++ CIFAR-10", "song_ddpmpp_cifar10", {}, 61_804_419),
    Row("Score SDE", "DDPM++ CIFAR-10, deep", "song_ddpmpp_cifar10", {"num_res_blocks": 8}, 106_632_579),
    Row("Score SDE", "NCSN++ CIFAR-10", "song_ncsnpp_cifar10", {}, 62_758_787),
    Row("EDM", "DDPM++ CIFAR-10", "edm_ddpmpp_cifar10", {}, 55_733_891),
    Row("EDM", "DDPM++ CIFAR-10, conditional", "edm_ddpmpp_cifar10", {"num_classes": 10}, 55_735_299),
    Row("EDM", "NCSN++ CIFAR-10", "edm_ncsnpp_cifar10", {}, 56_397_827),
    Row("EDM", "NCSN++ CIFAR-10, conditional", "edm_ncsnpp_cifar10", {"num_classes": 10}, 56_400_643),
    Row("EDM", "DDPM++ 64", "edm_ddpmpp64", {}, 61_805_571),
    Row("EDM", "NCSN++ 64", "edm_ncsnpp64", {}, 62_761_091),
    Row("EDM", "ImageNet-64", "edm_adm64", _CLASSES, 295_899_267),
]

_EDM2 = {
    "XXS": 31_307_877, "XS": 124_710_949, "S": 280_209_381, "M": 497_803_173, "L": 777_492_325, "XL": 1_119_276_837,
    "XXL": 1_523_156_709,
}  # fmt: skip
# Slow, since test_edm2_unet counts one of them in every run.
EDM2 = [
    Row("EDM2", f"RGB 64, {size}", "edm2", {"image_size": 64, "channels": CHANNELS[size], **_CLASSES}, count)
    for size, count in _EDM2.items()
]
# Every run counts each preset once; its other rows differ in a field.
_FIRST = {row.preset: row for row in reversed(PUBLISHED)}.values()
ROWS = [row if row in _FIRST else pytest.param(row, marks=pytest.mark.slow) for row in (*PUBLISHED, *EDM2)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.preset}-{row.count}")
def test_published_counts(row):
    found = getattr(models, row.preset)(**row.fields).num_params()
    print(f"\n{row.system:10s} {row.model:34s} {row.preset:24s} {found:>15,}", end=" ")
    assert found == row.count
