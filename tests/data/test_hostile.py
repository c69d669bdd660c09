"""Files that are damaged at random: what reads them answers, or raises a line."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.files import ENDINGS, load_image
from diffusion_jax.data.sources import Embeddings
from diffusion_jax.errors import DataError


def _image(path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def _embeddings(path):
    names = np.array(["a", "b"])
    np.savez(path, file_name=names, tokens=np.zeros((2, 3, 4), np.float16), mask=np.ones((2, 3), bool))


READERS = {**{f"a{ending}": (_image, load_image) for ending in ENDINGS}, "text.npz": (_embeddings, Embeddings)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damage_is_one_line(name, tmp_path):
    write, read = READERS[name]
    path, rng = tmp_path / name, random.Random(0)
    write(path)
    whole, refused = path.read_bytes(), 0
    for number in range(60):
        damaged = bytearray(whole[: rng.randrange(len(whole))] if number % 3 == 0 else whole)
        for _ in range(rng.choice((1, 4, 20)) if damaged else 0):
            damaged[rng.randrange(min(len(damaged), 200))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read(path)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error) and name in str(error)
    assert refused > 10


@pytest.mark.parametrize("name", READERS)
def test_a_directory_or_nothing_in_the_place_of_a_file(name, tmp_path):
    read = READERS[name][1]
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)
