"""Moments of features on one device, on eight and in two processes are numpy's, to 1e-9."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.errors import DataError
from diffusion_jax.metrics import Moments, add_features, local_rows, merge_processes
from tests import processes

ROOT = Path(__file__).resolve().parents[2]
WIDTH, BATCH = 24, 64

_PROCESS = """
import sys
import jax, numpy as np
port, rank, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
from tests.metrics.test_moments import rows, summed_up
from diffusion_jax import processes
from diffusion_jax.metrics import frechet as moments
processes._BYTES = 4096  # several slices
found = moments.merge_processes(summed_up(rows(), jax.device_count()))
# One process has seen nothing, and then none has.
one_sided = moments.Moments().add(rows()[:100]) if rank else moments.Moments()
one_sided = moments.merge_processes(one_sided)
assert moments.merge_processes(moments.Moments()).count == 0
# A replicated batch counts once.
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
replicated = jax.device_put(rows()[:64], jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
assert moments.merge_processes(moments.add_features(moments.Moments(), replicated)).count == 64
try:
    moments.merge_processes(moments.Moments().add(np.ones((2, 3 + rank))))
except moments.DataError as error:
    assert "[3, 4]" in str(error), error
else:
    raise AssertionError("different widths")
np.savez(out, count=found.count, mean=found.mean, scatter=found.scatter, one_sided=one_sided.scatter)
"""


def rows(count: int = 16 * BATCH) -> np.ndarray:
    """float32 features far from zero, of very different scales: what float32 sums get wrong."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal((count, WIDTH)) * np.geomspace(1, 1e-3, WIDTH) + 10).astype(np.float32)


def summed_up(features: np.ndarray, devices: int) -> Moments:
    """Batch by batch, each sharded over so many devices of all processes; the last batch is filled up and masked."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    sharding = NamedSharding(mesh, P("data"))
    moments = Moments()
    for start in range(0, len(features), BATCH):
        part = features[start : start + BATCH]
        filled = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), axis=0)])
        mask = np.arange(BATCH) < len(part)
        place = lambda values: jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])  # noqa: E731
        add_features(moments, place(filled), place(mask))
    return moments


def assert_numpys(mean: np.ndarray, covariance: np.ndarray, features: np.ndarray) -> None:
    exact = features.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-12)
    expected, scale = np.cov(exact.T), exact.std(0, ddof=1)
    np.testing.assert_allclose(covariance / np.outer(scale, scale), expected / np.outer(scale, scale), rtol=0, atol=1e-9)


@pytest.mark.parametrize("devices", [1, 8])
def test_one_device_and_eight(devices):
    features = rows()[:-5]
    moments = summed_up(features, devices)
    assert moments.count == len(features)
    assert_numpys(moments.mean, moments.covariance, features)
    one = summed_up(features, 1)
    np.testing.assert_array_equal(moments.scatter, one.scatter)  # the host sees the same rows


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = processes.environment(4, PYTHONPATH=str(ROOT))
    outs = [tmp_path / f"{rank}.npz" for rank in range(2)]
    command = lambda rank: [sys.executable, "-c", _PROCESS, str(port), str(rank), str(outs[rank])]  # noqa: E731
    running = [
        subprocess.Popen(command(rank), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)[-4000:]
    first, second = (dict(np.load(out)) for out in outs)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    features = rows()
    assert first["count"] == len(features)
    assert_numpys(first["mean"], first["scatter"] / (len(features) - 1), features)
    np.testing.assert_allclose(first["one_sided"], Moments().add(features[:100]).scatter, rtol=1e-14)


def test_merging_is_adding_and_leaves_the_other_alone():
    features = rows()
    parts = [Moments().add(part) for part in np.array_split(features, [1, 1, 300])]
    before = parts[2].scatter.copy()
    whole = Moments()
    for part in parts:
        whole.merge(part)
    assert_numpys(whole.mean, whole.covariance, features)
    whole.add(features)
    np.testing.assert_array_equal(parts[2].scatter, before)
    np.testing.assert_array_equal(parts[0].mean, features[0].astype(np.float64))
    assert merge_processes(whole) is whole


def test_rows_that_lie_on_several_devices_count_once():
    features = rows(BATCH)
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    replicated = jax.device_put(features, NamedSharding(mesh, P("data")))
    np.testing.assert_array_equal(local_rows(replicated), features)
    np.testing.assert_array_equal(local_rows(jax.device_put(features, NamedSharding(mesh, P()))), features)


def test_bad_features():
    with pytest.raises(DataError, match="different widths"):
        Moments().add(np.zeros((3, 2))).merge(Moments().add(np.zeros((3, 4))))
    with pytest.raises(DataError, match="1 of 3 rows"):
        Moments().add(np.array([[1.0], [np.nan], [2.0]]))
