"""Files of reference statistics: layouts of other tools, what is refused, and what a damaged file says."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from diffusion_jax.errors import DataError
from diffusion_jax.metrics import (
    Meta,
    Moments,
    Statistics,
    check_compatible,
    frechet_distance,
    read_statistics,
    write_statistics,
)
from tests.peers import peer

EXTRACTOR = {"network": "inception", "preprocessing": "tf1", "checksum": "6726825d" * 8}
META = Meta(dataset="digits", split="train", made_by="diffusion_jax 0.1", **EXTRACTOR)


def moments(width: int = 5, count: int = 40) -> Moments:
    return Moments().add(np.random.default_rng(width).standard_normal((count, width)))


def layout(width: int = 5) -> dict[str, np.ndarray]:
    found = moments(width)
    return {"mu": found.mean, "sigma": found.covariance}


def full() -> Statistics:
    images = np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)
    return Statistics.from_moments(moments(), META, spatial=moments(3), images=images)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "stats.npz"
    write_statistics(path, full())
    found = read_statistics(path)
    for name in ("mean", "covariance", "spatial_mean", "spatial_covariance", "images"):
        np.testing.assert_array_equal(getattr(found, name), getattr(full(), name))
    assert found.meta.count == 40 and found.meta.dataset == "digits" and found.meta.checksum == EXTRACTOR["checksum"]
    assert read_statistics(path, images=False).images is None
    assert frechet_distance(found.gaussian, moments()) == pytest.approx(0, abs=1e-12)
    assert found.spatial_gaussian.count == 40
    assert [entry.name for entry in path.parent.iterdir()] == ["stats.npz"]


def test_pytorch_fid_reads_ours(tmp_path):
    theirs = peer("pytorch_fid.fid_score")
    write_statistics(tmp_path / "stats.npz", full())
    mean, covariance = theirs.compute_statistics_of_path(str(tmp_path / "stats.npz"), None, 1, 5, "cpu")
    np.testing.assert_array_equal(mean, full().mean)
    np.testing.assert_array_equal(covariance, full().covariance)


def test_layouts_of_other_tools(tmp_path):
    np.savez(tmp_path / "ttur.npz", **layout())
    found = read_statistics(tmp_path / "ttur.npz")
    assert found.meta is None and found.spatial_gaussian is None and found.gaussian.count is None
    spatial = {f"{name}_s": array.astype(np.float32) for name, array in layout(3).items()}
    np.savez_compressed(tmp_path / "adm.npz", **layout(), **spatial, arr_0=full().images)
    found = read_statistics(tmp_path / "adm.npz")
    assert found.images.shape == (4, 2, 2, 3) and found.spatial_mean.dtype == np.float64
    np.testing.assert_array_equal(found.covariance, layout()["sigma"])


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_in_pickles(tmp_path, protocol):
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps({"fid": layout(), "fd_dinov2": layout(7)}, protocol))
    for entry, width in (("fid", 5), ("fd_dinov2", 7)):
        found = read_statistics(tmp_path / "edm2.pkl", entry=entry)
        np.testing.assert_array_equal(found.covariance, layout(width)["sigma"])
    with pytest.raises(DataError, match="no statistics 'sfid' .it has: fd_dinov2, fid"):
        read_statistics(tmp_path / "edm2.pkl", entry="sfid")


class Touch:
    """What runs a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("hidden", [lambda x: x, lambda x: {"fid": {"mu": np.array([x, 1], object)}}, lambda x: {"fid": x}])
def test_pickles_run_nothing(tmp_path, hidden):
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(hidden(Touch(tmp_path / "ran"))))
    with pytest.raises(DataError, match=r"bad.pkl cannot be read as statistics.*(only arrays are allowed|no number)"):
        read_statistics(tmp_path / "bad.pkl")
    assert not (tmp_path / "ran").exists()


class Huge:
    """What asks for an array of any size when it is loaded, without its numbers."""

    def __reduce__(self):
        return np.ndarray, ((10**7,),)


@pytest.mark.parametrize("content", [Huge(), {"fid": Huge()}, {"fid": {"mu": Huge()}}, [], {"fid": 3}, "[" * 99])
def test_pickles_of_other_things_are_one_line(tmp_path, content):
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content))
    message = "bad.pkl cannot be read as statistics" if b"ndarray" in pickle.dumps(content) else "has no statistics 'fid'"
    with pytest.raises(DataError, match=message):
        read_statistics(tmp_path / "bad.pkl")


# Refusals -----------------------------------------------------------------------------------------------------------------


def test_the_same_features_are_compatible(caplog):
    check_compatible(full(), EXTRACTOR)
    check_compatible(full(), {**EXTRACTOR, "checksum": "", "width": 5})  # not known: not compared
    assert not caplog.records


@pytest.mark.parametrize("field", ["network", "preprocessing", "checksum"])
def test_other_features_are_refused_and_both_named(field):
    other = {**EXTRACTOR, field: "something-else"}
    with pytest.raises(DataError) as raised:
        check_compatible(full(), other, "ref.npz")
    message = str(raised.value)
    assert message.startswith("ref.npz") and message.count("something-el") == 1 and EXTRACTOR[field][:12] in message
    assert f"they differ in {field};" in message


def test_a_file_of_another_tool_is_warned_of_and_its_width_checked(caplog):
    plain = Statistics(mean=full().mean, covariance=full().covariance)
    check_compatible(plain, EXTRACTOR, "ttur.npz")
    assert "ttur.npz does not say" in caplog.text and "inception" in caplog.text
    with pytest.raises(DataError, match="holds 5 features, but inception has 2048"):
        check_compatible(plain, {**EXTRACTOR, "width": 2048}, "ttur.npz")


def test_changed_arrays_have_another_checksum(tmp_path):
    path = tmp_path / "stats.npz"
    write_statistics(path, full())
    with np.load(path) as file:
        entries = dict(file)
    np.savez(path, **{**entries, "mu": entries["mu"] + 1e-9})
    with pytest.raises(DataError, match="mu changed since"):
        read_statistics(path)
    np.savez(path, **{name: array for name, array in entries.items() if name != "arr_0"})
    with pytest.raises(DataError, match="arr_0 changed since"):
        read_statistics(path)
    read_statistics(path, images=False)
    np.savez(path, **{**entries, "meta": np.array(json.dumps({"format": 1}))})
    for meta in ({"format": 1}, [], 3, "[" * 100_000, {**json.loads(str(entries["meta"])), "count": "many"}):
        np.savez(path, **{**entries, "meta": np.array(meta if isinstance(meta, str) else json.dumps(meta))})
        with pytest.raises(DataError, match="'meta' is not what"):
            read_statistics(path)


def _entry(**changed):
    return lambda path: np.savez(path, **{**layout(), **changed})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: None, "there is no statistics file"),
        (lambda path: path.write_bytes(b""), "cannot be read as statistics"),
        (lambda path: path.write_bytes(b"no archive at all"), "cannot be read as statistics"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "no mu and no sigma, but nothing"),
        (lambda path: np.savez(path, mu=np.zeros(3)), "no sigma, but mu"),
        (lambda path: np.save(path.open("wb"), np.zeros(3)), "not a zip file"),
        (_entry(mu=np.full(5, np.nan)), "mu or sigma has NaN"),
        (_entry(sigma=np.diag([1, 1, 1, 1, np.inf])), "mu or sigma has NaN"),
        (_entry(mu=np.zeros(4)), r"mu \(4,\) and sigma \(5, 5\) are not"),
        (_entry(mu=np.zeros((1, 5))), "are not"),
        (_entry(sigma=np.triu(np.ones((5, 5)))), "no covariance"),
        (_entry(sigma=-np.eye(5)), "no covariance"),
        (_entry(mu_s=np.zeros(2)), "only one of mu_s and sigma_s"),
        (_entry(mu_s=np.zeros(2), sigma_s=np.zeros((3, 3))), "mu_s"),
        (_entry(arr_0=np.zeros((2, 4, 4, 3))), "arr_0 must be images, uint8"),
        (_entry(mu=np.array(["a"] * 5)), "holds no numbers"),
        (_entry(mu=np.array([None] * 5)), "cannot be read"),
    ],
)
def test_damaged_files(tmp_path, damage, message):
    path = tmp_path / "stats.npz"
    damage(path)
    with pytest.raises(DataError, match=message) as raised:
        read_statistics(path)
    assert "stats.npz" in str(raised.value)


def test_truncated_anywhere(tmp_path):
    path = tmp_path / "stats.npz"
    write_statistics(path, full())
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_statistics(path)
    flipped = bytearray(whole)
    flipped[300] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(DataError):
        read_statistics(path)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="as .npz"):
        write_statistics(tmp_path / "stats.pkl", full())
    with pytest.raises(DataError, match="NaN"):
        write_statistics(tmp_path / "stats.npz", Statistics(mean=np.full(2, np.nan), covariance=np.eye(2)))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_statistics(tmp_path / "file" / "stats.npz", full())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file"]
