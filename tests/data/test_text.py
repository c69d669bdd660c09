"""Text embeddings beside images, and captions as one-hot words."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.data.sources import Embeddings, one_hot
from diffusion_jax.data.sources.text import texts_from
from diffusion_jax.errors import ConfigError, DataError

NAMES = [f"{kind}/{number}.png" for kind in ("a", "b") for number in range(6)]


@pytest.fixture
def folder(tmp_path):
    """Images whose red value is their number, and embeddings in another order that say it too."""
    for number, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    order = np.random.default_rng(0).permutation(len(NAMES))
    tokens = np.broadcast_to(order[:, None, None], (12, 3, 4)).astype(np.float16)
    arrays = {"file_name": [NAMES[i] for i in order], "tokens": tokens, "mask": np.tile([1, 1, 0], (12, 1))}
    arrays["pooled"] = 2 * tokens[:, 0]
    np.savez(tmp_path / "text.npz", **arrays)
    (tmp_path / "text").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "text" / f"{name}.npy", array)
    return tmp_path


@pytest.mark.parametrize("form", ["text.npz", "text"])
def test_every_image_has_its_own_embedding(folder, form):
    source = {"name": "folder", "path": str(folder / "images"), "embeddings": str(folder / form), "test_fraction": 0.25}
    for split in ("train", "test"):
        pipeline = data.from_config({"source": source, "image_size": 8, "batch_size": 4}, split=split)
        for batch in [*pipeline.one_pass(4), pipeline.batch(3)]:
            number = batch["image"][:, 0, 0, 0]
            assert batch["text"].shape[1:] == (3, 4) and batch["text"].dtype == np.float16
            np.testing.assert_array_equal(batch["text"], np.broadcast_to(number[:, None, None], batch["text"].shape))
            np.testing.assert_array_equal(batch["text_pooled"][:, 0], 2 * number)
            assert batch["text_mask"].dtype == bool and batch["text_mask"].tolist() == [[True, True, False]] * len(number)


def test_what_is_wrong_with_embeddings_is_said(folder, tmp_path):
    with np.load(folder / "text.npz") as arrays:
        good = dict(arrays)
    cases = [
        ({"mask": None}, "'mask' is missing"),
        ({"mask": good["mask"][:, :2]}, r"tokens \[N, L, D\]"),
        ({"file_name": good["file_name"][:-1]}, "11 file names"),
        ({"tokens": good["tokens"].astype(np.int32)}, "float16 or float32"),
        ({"file_name": np.array(["x"] * 12)}, "'x' is there twice"),
    ]
    for change, message in cases:
        np.savez(tmp_path / "bad.npz", **{name: array for name, array in (good | change).items() if array is not None})
        with pytest.raises(DataError, match=message):
            Embeddings(tmp_path / "bad.npz")
    with pytest.raises(DataError, match="cannot be read as text embeddings"):
        Embeddings(tmp_path / "nowhere.npz")
    renamed = {**good, "file_name": np.array(["c" + str(name) for name in good["file_name"]])}
    np.savez(tmp_path / "bad.npz", **renamed)
    source = {"name": "folder", "path": str(folder / "images"), "embeddings": str(tmp_path / "bad.npz")}
    with pytest.raises(DataError, match="no embedding of .* images, such as 'a/"):
        data.from_config({"source": source, "image_size": 8, "batch_size": 4})


def test_words_are_one_hot_with_their_places():
    found = one_hot("red on blue", ("blue", "on", "red"), 4)
    assert found["text"].tolist() == [[0, 0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1, 0], [0] * 7]
    assert found["text_mask"].tolist() == [True, True, True, False]
    with pytest.raises(DataError, match="'green' is not in the vocabulary"):
        one_hot("green", ("blue",), 4)
    with pytest.raises(DataError, match="more than 1 words"):
        one_hot("blue blue", ("blue",), 1)


def test_a_source_of_one_hot_words():
    vocabulary = ["a", "on", "small", "medium", "large"]
    vocabulary += ["red", "green", "blue", "yellow", "purple", "orange", "white", "black"]
    vocabulary += ["circle", "square", "triangle", "cross", "ring"]
    source = {
        "name": "one_hot_words",
        "source": {"name": "shapes", "size": 8, "num_examples": 6},
        "vocabulary": vocabulary,
        "length": 6,
    }
    train, test = (
        data.from_config({"source": source, "image_size": 8, "batch_size": 2}, split=split) for split in ("train", "test")
    )
    batch = next(train.one_pass(6))
    words = [" ".join(vocabulary[i] for i in text[:, :18].argmax(-1)) for text in batch["text"]]
    assert words == batch["caption"].tolist() and train.num_classes == 5
    assert (next(test.one_pass(6))["image"] != batch["image"]).any()
    with pytest.raises(DataError, match="'digits' has no captions"):
        next(data.from_config({"source": {**source, "source": "digits"}, "image_size": 8, "batch_size": 2}).one_pass(1))
    with pytest.raises(ConfigError, match="different words"):
        data.from_config({"source": {**source, "vocabulary": ["a", "a"]}, "image_size": 8, "batch_size": 2})


def test_texts_of_a_user(tmp_path):
    np.savez(tmp_path / "prompts.npz", tokens=np.ones((2, 3, 4), np.float16), mask=np.ones((2, 3), np.uint8))
    found = texts_from(str(tmp_path / "prompts.npz"))
    assert found["text"].shape == (2, 3, 4) and found["text_mask"].dtype == bool
    np.savez(tmp_path / "bad.npz", tokens=np.ones((2, 3, 4)), mask=np.ones((2, 4)))
    with pytest.raises(DataError, match=r"should be \[N, L, D\] and \[N, L\]"):
        texts_from(str(tmp_path / "bad.npz"))
    with pytest.raises(DataError, match="cannot be read as texts"):
        texts_from(str(tmp_path / "nowhere.npz"))
