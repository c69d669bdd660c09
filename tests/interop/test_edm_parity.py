"""EDM's networks beside PyTorch ones with the names of its checkpoints: every tensor placed, every activation the same."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from diffusion_jax import models
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.interop import edm
from diffusion_jax.interop.convert import convert, export
from diffusion_jax.registry import build
from tests.peers import arrays, peer, relative

SHAPE = dict(channels=16, multipliers=(1, 2), attention=(8,), blocks=2, size=16)
CASES = {
    "ddpmpp": dict(SHAPE, classes=5, augment=9),
    "ncsnpp": dict(SHAPE, multipliers=(2, 2, 2), augment=9, blocks=1),
    "adm": dict(SHAPE, classes=5, channels=128, blocks=1),
}


def theirs(kind, **fields):
    torch = peer("torch")
    from tests.interop.edm_in_torch import Network

    torch.manual_seed(0)
    network = Network(kind, **fields)
    with torch.no_grad():  # keep the size of the signal, and move all biases and scales
        for name, tensor in network.named_parameters():
            fan = tensor[0].numel() if tensor.ndim > 1 else 1
            scale = fan**-0.5 if tensor.ndim > 1 else 0.1
            tensor.copy_(torch.randn(tensor.shape) * scale + float("norm" in name and name.endswith("weight")))
    return network.eval()


def ours(kind, size, channels, multipliers, attention, blocks, classes=0, augment=0, freqs=()):
    shared = dict(
        image_size=size, channels=channels, multipliers=multipliers, attention_resolutions=attention, num_res_blocks=blocks,
        num_classes=classes,
    )  # fmt: skip
    if kind == "adm":
        return models.edm_adm64(**shared)
    extra = dict(embedding="fourier", pyramid=True, resample_filter=(1, 3, 3, 1), frequencies=freqs) if kind == "ncsnpp" else {}
    return models.song_unet(**shared, augment_dim=augment, **extra)


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    """(kind, the PyTorch network, ours, the tensors of a checkpoint)."""
    network = theirs(request.param, **CASES[request.param])
    tensors = {f"model.{name}": tensor for name, tensor in arrays(network).items()}
    freqs = tensors.get("model.map_noise.freqs", ())
    return request.param, network, ours(request.param, **CASES[request.param], freqs=freqs), tensors


def without_constants(layout, network, tensors):
    constants = layout.constants(network)
    return {name: tensor for name, tensor in layout.renamed(tensors).items() if name not in constants}


def test_every_activation_is_the_same(pair):
    kind, network, mine, tensors = pair
    torch, layout = peer("torch"), build("layout", "edm")
    params = convert(without_constants(layout, mine, tensors), layout.weight_maps(mine), mine.shapes())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    noise = np.array([-0.7, 1.1] if kind == "ncsnpp" else [3.0, 400.0], np.float32)
    cond = {key: value for key, value in {
        "label": np.array([0, 3], np.int32), "augment": rng.normal(size=(2, 9)).astype(np.float32),
    }.items() if key in mine.cond_keys}  # fmt: skip
    found = jax.jit(mine.apply)(params, x, noise, cond)
    given = {key: torch.from_numpy(value) for key, value in cond.items()}
    if "label" in given:
        given["label"] = given["label"].long()
    with torch.no_grad():
        wanted = network(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(noise), **given)
    assert relative(found.transpose(0, 3, 1, 2), wanted.numpy()) < 1e-4


def test_the_way_back_gives_the_same_tensors(pair):
    _, _, mine, tensors = pair
    layout = build("layout", "edm")
    bare = without_constants(layout, mine, tensors)
    back = export(convert(bare, layout.weight_maps(mine), mine.shapes()), layout.weight_maps(mine))
    assert back.keys() == bare.keys()
    for name, tensor in bare.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_a_file_must_be_of_the_network(pair, tmp_path):
    kind, _, mine, tensors = pair
    from safetensors.numpy import save_file

    layout, path = build("layout", "edm"), tmp_path / "edm.safetensors"
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path)
    assert jax.tree.structure(layout.read(path, mine)) == jax.tree.structure(mine.shapes())
    wider = ours(kind, **CASES[kind] | {"channels": 2 * CASES[kind]["channels"]}, freqs=())
    with pytest.raises((DataError, ConfigError), match="of another shape|map_noise.freqs is not the network"):
        layout.read(path, wider)
    if kind == "ncsnpp":
        np.testing.assert_array_equal(edm.frequencies(path), tensors["model.map_noise.freqs"])
        with pytest.raises(ConfigError, match="map_noise.freqs is not the network's, which follows from its field frequencies"):
            layout.read(path, ours(kind, **CASES[kind]))
    else:
        with pytest.raises(DataError, match="no map_noise.freqs"):
            edm.frequencies(path)
    save_file({name: t for name, t in tensors.items() if "map_layer1.bias" not in name}, path)
    with pytest.raises(DataError, match="missing: map_layer1.bias"):
        layout.read(path, mine)
    save_file({**tensors, "model.enc.16x16_block9.norm0.weight": np.ones(16, np.float32)}, path)
    with pytest.raises(DataError, match="unknown: enc.16x16_block9.norm0.weight"):
        layout.read(path, mine)


def test_other_networks_and_fields_are_refused():
    layout = build("layout", "edm")
    with pytest.raises(ConfigError, match="resample='resblock'"):
        layout.weight_maps(models.unet_ddpm_cifar10(embedding="adm", norm_epsilon=1e-5))
    with pytest.raises(ConfigError, match="song_unet"):
        layout.weight_maps(models.edm2(16, channels=64, multipliers=(1,), attention_resolutions=(), num_res_blocks=1))
