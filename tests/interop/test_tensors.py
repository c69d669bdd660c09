"""Weight files: what is read, and what is refused before anything in it runs."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.interop.tensors import check_sha256, read_tensors, sha256
from tests.peers import peer

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((), np.float16), "n": np.arange(3)}


def check(found):
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def test_safetensors(tmp_path):
    peer("safetensors.numpy").save_file(TENSORS, tmp_path / "w.safetensors")
    check(read_tensors(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl"])
def test_torch_files(tmp_path, suffix, wrapper):
    torch = peer("torch")
    state = {name: torch.from_numpy(tensor.copy()) for name, tensor in TENSORS.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / f"w{suffix}")
    check(read_tensors(tmp_path / f"w{suffix}"))


def test_bfloat16(tmp_path):
    torch = peer("torch")
    torch.save({"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "w.pt")
    np.testing.assert_array_equal(read_tensors(tmp_path / "w.pt")["a"], np.array([1.5, -2.0], np.float32))
    peer("safetensors.torch").save_file({"a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)}, tmp_path / "w.safetensors")
    np.testing.assert_array_equal(read_tensors(tmp_path / "w.safetensors")["a"].astype(np.float32), [1.5, -2.0])


class Trap:
    """Unpickled naively, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, writer):
    torch = peer("torch")
    if writer == "torch":
        torch.save({"a": Trap(tmp_path / "ran")}, tmp_path / "w.pkl")
    else:
        (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": Trap(tmp_path / "ran")}))
    with pytest.raises(DataError, match="w.pkl .*would run code when it is read, which is refused.*safetensors"):
        read_tensors(tmp_path / "w.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_truncated_files_are_one_clear_error(tmp_path, suffix, keep):
    path, torch = tmp_path / f"w{suffix}", peer("torch")
    big = {"a": np.zeros(5000, np.float32), "b": np.zeros(5000, np.float32)}
    if suffix == ".pth":
        torch.save({name: torch.from_numpy(tensor) for name, tensor in big.items()}, path)
    else:
        peer("safetensors.numpy").save_file(big, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(DataError, match=f"w{suffix}.* (cut short|damaged)") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_state_dict(tmp_path):
    torch = peer("torch")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(DataError, match="holds a list, not a state dict"):
        read_tensors(tmp_path / "list.pt")
    torch.save({"optimizer": 3, "a": torch.ones(2)}, tmp_path / "mixed.pt")
    with pytest.raises(DataError, match="optimizer is no tensor"):
        read_tensors(tmp_path / "mixed.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.torch.load. received a zip")
def test_a_torchscript_archive(tmp_path):
    torch = peer("torch")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    with pytest.raises(DataError, match="script.pt is a TorchScript archive.*state dict"):
        read_tensors(tmp_path / "script.pt")


def test_a_missing_file_and_an_unknown_format(tmp_path):
    for read in (read_tensors, sha256, check_sha256):
        with pytest.raises(DataError, match="no weight file .*none.pth.*nothing is downloaded"):
            read(tmp_path / "none.pth")
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"from '\.onnx' \(known: \.safetensors, \.pt"):
        read_tensors(tmp_path / "w.onnx")


def test_checksums(tmp_path):
    data = np.random.default_rng(0).bytes(3_000_000)
    expected = hashlib.sha256(data).hexdigest()
    path = tmp_path / "w.pth"
    path.write_bytes(data)
    assert (
        sha256(path)
        == check_sha256(path)
        == check_sha256(path, expected.upper())
        == check_sha256(path, expected[:8])
        == expected
    )
    with pytest.raises(DataError, match=f"w.pth: sha256 says the checksum begins with 00000000, but it is {expected}"):
        check_sha256(path, "0" * 8)
    with pytest.raises(ConfigError, match="8 to 64 hexadecimal digits, got 'abc'"):
        check_sha256(path, "abc")


def test_a_name_with_a_checksum_in_it_is_held_to_it(tmp_path):
    good, bad = tmp_path / f"vgg16-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth", tmp_path / "vgg16-397923af.pth"
    for path in (good, bad):
        path.write_bytes(b"weights")
    check_sha256(good)
    with pytest.raises(DataError, match="the file's name says the checksum begins with 397923af"):
        check_sha256(bad)
