"""Images of any tool, read back; and what cannot be measured, named."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.errors import DataError
from diffusion_jax.inference import open_samples
from diffusion_jax.inference.sample_sets import count_duplicates, from_arrays
from diffusion_jax.inference.samples import SampleFolder
from diffusion_jax.spec import Spec


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (150, 6, 5, 3), np.uint8)


def write(folder, images, ending="png"):
    folder.mkdir(exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"img{index}.{ending}")


def test_a_folder_in_natural_order(images, tmp_path):
    write(tmp_path / "given", images)
    found = open_samples(tmp_path / "given")
    assert (found.count, found.shape, found.labels) == (150, (6, 5, 3), None)
    np.testing.assert_array_equal(np.concatenate(list(found.batches(40))), images)
    np.testing.assert_array_equal(found.head(3), images[:3])


def test_an_npz(images, tmp_path):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", images, np.arange(150))
        found = open_samples(tmp_path / "a.npz")
        np.testing.assert_array_equal(np.concatenate(list(found.batches(7))), images)
        assert found.labels.tolist() == list(range(150))
    np.savez(tmp_path / "b.npz", images=images[:3])
    assert open_samples(tmp_path / "b.npz").count == 3


@pytest.mark.parametrize(("size", "limit"), [(1, None), (7, 20), (64, 64), (150, None), (400, 149), (5, 1000)])
def test_batches_are_whole_but_for_the_last(images, size, limit):
    """Also where blocks and batches do not line up."""
    blocks = [images[:10], images[10:73], images[73:]]
    found = list(from_arrays(images).__class__("made", 150, (6, 5, 3), lambda: iter(blocks)).batches(size, limit))
    assert all(len(batch) == size for batch in found[:-1])
    np.testing.assert_array_equal(np.concatenate(found), images[:limit])


@pytest.mark.parametrize("format", ["png", "npz"])
def test_folders_of_the_sampling_program(images, tmp_path, format):
    with SampleFolder(tmp_path, {"seed": 0}, format, Spec.image((6, 5), 3)) as folder:
        folder.add(np.arange(100), images[:100])
        folder.flush()
        with pytest.raises(DataError, match="was interrupted: give the same sample command again"):
            open_samples(tmp_path)
        folder.add(np.arange(100, 150), images[100:])
        folder.finish(150, np.arange(150) % 10)
    found = open_samples(tmp_path)
    np.testing.assert_array_equal(np.concatenate(list(found.batches(32))), images)
    assert found.labels.tolist() == (np.arange(150) % 10).tolist()


def test_copies_are_counted(images):
    copied = np.concatenate([images, images[:4], images[:1]])
    assert count_duplicates(from_arrays(copied)) == 5 and count_duplicates(from_arrays(copied), 150) == 0


BAD_FOLDERS = {
    "alpha": (lambda folder: Image.new("RGBA", (5, 6)).save(folder / "img9.png"), r"img9\.png has an alpha channel"),
    "size": (lambda folder: Image.new("RGB", (7, 6)).save(folder / "img9.png"), r"img9\.png is 7x6.*img0\.png is 5x6"),
    "grey": (lambda folder: Image.new("L", (5, 6)).save(folder / "img9.png"), r"img9\.png is 5x6 with 1 channel,"),
    "depth": (lambda folder: Image.new("I;16", (5, 6)).save(folder / "img9.png"), r"img9\.png .*8 bits"),
    "cut": (lambda folder: (folder / "img9.png").write_bytes((folder / "img0.png").read_bytes()[:50]), r"img9\.png is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_images_that_cannot_be_measured_are_named(images, tmp_path, name):
    damage, message = BAD_FOLDERS[name]
    write(tmp_path, images[:3])
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        list(open_samples(tmp_path).batches(64))


def test_what_is_no_set_of_images(images, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_samples(tmp_path / "nothing")
    with pytest.raises(DataError, match="no images in"):
        open_samples(tmp_path)
    for array, message in (
        (images.astype(np.float32), r"must be uint8 from 0 to 255, got float32.*NaN"),
        (images[0], "must be"),
        (images[..., :2], "alpha channel"),
        (images[:0], "N > 0"),
        (np.asfortranarray(images), "Fortran"),
    ):
        np.savez(tmp_path / "bad.npz", array)
        with pytest.raises(DataError, match=message):
            open_samples(tmp_path / "bad.npz")
    np.savez(tmp_path / "two.npz", a=images, b=images)
    with pytest.raises(DataError, match="looked for under arr_0"):
        open_samples(tmp_path / "two.npz")


def test_a_damaged_npz(images, tmp_path):
    np.savez(tmp_path / "a.npz", images)
    whole = (tmp_path / "a.npz").read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz is empty, truncated or not an npz"):
            open_samples(tmp_path / "a.npz")
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(bytes(changed))
    with pytest.raises(DataError, match="damaged"):
        list(open_samples(tmp_path / "a.npz").batches(64))


BAD_RECORDS = {
    "samples.json": ('{"format": "png"', "cannot be read"),
    "manifest.jsonl": ('{"record": 1}\n', "line 1: 'record' is missing or of another kind"),
    "labels.json": ('["a"]', "is not as it was written"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_damaged_records(images, tmp_path, name):
    content, message = BAD_RECORDS[name]
    with SampleFolder(tmp_path, {"seed": 0}, "png", Spec.image((6, 5), 3)) as folder:
        folder.add(np.arange(3), images[:3])
        folder.finish(3, np.arange(3))
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        open_samples(tmp_path)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_of_an_earlier_version(images, tmp_path):
    write(tmp_path, images[:3])
    (tmp_path / "samples.json").write_text("{}")
    with pytest.raises(DataError, match="earlier version, without manifest.jsonl: draw anew"):
        open_samples(tmp_path)
