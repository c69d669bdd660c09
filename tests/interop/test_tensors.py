"""Weight files: what is read, and what is refused before anything in it runs."""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
import types

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


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "teacher"])
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


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, writer):
    torch = peer("torch")
    if writer == "torch":
        torch.save({"a": Trap(tmp_path / "ran")}, tmp_path / "w.pkl")
    else:
        (tmp_path / "w.pkl").write_bytes(pickle.dumps({"a": Trap(tmp_path / "ran")}))
    asked = "w.pkl .*would run code when it is read .it asks for .*io.open., which is refused.*safetensors"
    with pytest.raises(DataError, match=asked):
        read_tensors(tmp_path / "w.pkl")
    assert not (tmp_path / "ran").exists()


def edm_snapshot(monkeypatch, network, **entries):
    """A training snapshot as EDM pickles it: each object is a record of its class's source code and its state."""
    torch = peer("torch")
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the code in the file ran")

    class EasyDict(dict):
        pass

    for module, part in ((persistence, _reconstruct_persistent_obj), (util, EasyDict)):
        part.__module__, part.__qualname__ = module.__name__, part.__name__
        setattr(module, part.__name__, part)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(sys.modules, module.__name__.partition(".")[0], types.ModuleType("package"))

    made = {"dtype": torch.float32, "label_dim": 0, "mean": np.float64(-1.2), "table": np.arange(3)}

    class Persistent(type(network)):
        def __reduce__(self):
            state = {**super().__reduce__()[2], "_init_kwargs": EasyDict(made)}
            meta = {"type": "class", "module_src": "raise SystemExit", "class_name": "SongUNet", "state": state}
            return _reconstruct_persistent_obj, (meta,), None

    network.__class__ = Persistent
    data = pickle.dumps({"ema": network, "dataset_kwargs": EasyDict(path="cifar10.zip"), **entries})
    monkeypatch.undo()
    return data


def edm_network():
    torch = peer("torch")
    network = torch.nn.Module()
    network.model = torch.nn.ModuleDict({"8x8_conv": torch.nn.Conv2d(2, 3, 1), "map": torch.nn.Linear(2, 3, bias=False)})
    network.register_buffer("freqs", torch.arange(3.0))
    network.register_buffer("scratch", torch.ones(2), persistent=False)
    return network


def test_the_tensors_of_a_pickled_module_are_taken_and_its_code_does_not_run(tmp_path, monkeypatch):
    network = edm_network()
    expected = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    assert expected.keys() == {"model.8x8_conv.weight", "model.8x8_conv.bias", "model.map.weight", "freqs"}
    raw = peer("torch").nn.Linear(2, 2)  # a snapshot may hold the network that was trained beside its average
    (tmp_path / "snapshot.pkl").write_bytes(edm_snapshot(monkeypatch, network, net=raw))
    found = read_tensors(tmp_path / "snapshot.pkl")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.parametrize("where", ["beside the network", "in a tensor's bytes"])
def test_a_trap_in_a_pickled_module_is_refused(tmp_path, monkeypatch, where):
    torch = peer("torch")
    if where == "beside the network":
        data = edm_snapshot(monkeypatch, edm_network(), loss_fn=Trap(tmp_path / "ran"))
    else:  # PyTorch's own function reads these bytes as a pickle of anything
        inner = io.BytesIO()
        torch.save(Trap(tmp_path / "ran"), inner)

        class Loads:
            def __reduce__(self):
                return torch.storage._load_from_bytes, (inner.getvalue(),)

        data = edm_snapshot(monkeypatch, edm_network(), loss_fn=Loads())
    (tmp_path / "snapshot.pkl").write_bytes(data)
    with pytest.raises(DataError, match="would run code when it is read .it asks for .*io.open., which is refused"):
        read_tensors(tmp_path / "snapshot.pkl")
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


@pytest.mark.parametrize("archive", [True, False])
def test_damaged_torch_files_are_one_line(tmp_path, archive):
    """Of an archive any bit of the tensors; of older files whatever does not pass for another number."""
    torch, rng = peer("torch"), np.random.default_rng(0)
    state = {f"l{number}.weight": torch.ones(8, 4) for number in range(4)}
    torch.save(state, tmp_path / "whole.pt", _use_new_zipfile_serialization=archive)
    whole, refused = (tmp_path / "whole.pt").read_bytes(), 0
    for number in range(60):
        data = bytearray(whole[: rng.integers(len(whole))] if number % 2 else whole)
        if not number % 2:
            at = rng.integers(8 * len(data))
            data[at // 8] ^= 1 << (at % 8)
        (tmp_path / "w.pt").write_bytes(data)
        try:
            found = read_tensors(tmp_path / "w.pt")
        except DataError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
            refused += 1
        else:
            assert not archive or all(np.array_equal(tensor, np.ones((8, 4))) for tensor in found.values())
    assert refused >= 40
    if archive:
        data = bytearray(whole)
        data[whole.index(b"\x00\x00\x80\x3f") + 3] ^= 1
        (tmp_path / "w.pt").write_bytes(data)
        with pytest.raises(DataError, match="w.pt is damaged: its part '.*/data/0' is not as its checksum says"):
            read_tensors(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["torch._utils _rebuild_tensor_v2", "torch.storage _load_from_bytes"])
@pytest.mark.parametrize("state", [{"mark": 1}, (None, {"__defaults__": (1,)})])
def test_a_refused_pickle_leaves_torch_as_it_was(tmp_path, name, state):
    """A pickle can set attributes of whatever it names; then this one asks for what is refused."""
    torch = peer("torch")
    module, _, part = name.partition(" ")
    build = b"c" + f"{module}\n{part}\n".encode() + pickle.dumps(state, 0)[:-1] + b"b0"
    (tmp_path / "w.pkl").write_bytes(build + b"cos\nsystem\n.")
    before = [
        (part, dict(vars(part)), part.__defaults__)
        for part in (torch._utils._rebuild_tensor_v2, torch.storage._load_from_bytes)
    ]
    with pytest.raises(DataError, match="w.pkl .*would run code when it is read .it asks for os.system"):
        read_tensors(tmp_path / "w.pkl")
    assert before == [(part, dict(vars(part)), part.__defaults__) for part, *_ in before]


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
    last = "0" if expected[7] != "0" else "1"
    for wrong in (expected[:7] + last, expected[:-1] + ("0" if expected[-1] != "0" else "1")):  # every digit counts
        with pytest.raises(DataError, match=f"begins with {wrong}"):
            check_sha256(path, wrong)
    with pytest.raises(ConfigError, match="8 to 64 hexadecimal digits, got 'abc'"):
        check_sha256(path, "abc")


def test_a_name_with_a_checksum_in_it_is_held_to_it(tmp_path):
    good, bad = tmp_path / f"vgg16-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth", tmp_path / "vgg16-397923af.pth"
    for path in (good, bad):
        path.write_bytes(b"weights")
    check_sha256(good)
    with pytest.raises(DataError, match="the file's name says the checksum begins with 397923af"):
        check_sha256(bad)
