"""In, out and in again, and out to the library that the weights are of: every layout, every option that changes meaning."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion_jax import models
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.registry import build
from tests.interop import published
from tests.peers import arrays, peer, relative

QUICK = (
    "sines first", "cosines first, freq_shift 1", "guided, the new order", "guided, an upsampler", "NCSN++", "EDM2, classes",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in published.CASES]
)
def test_out_again_the_weights_are_the_same_network(name, tmp_path):
    """Their network, built from the exported folder alone, computes what it did; and comes in as the same parameters."""
    case, layout = published.case(name), published.layout(name)
    there = published.save(name, tmp_path / "theirs")
    file = there / layout.weight_file if there.is_dir() else there
    params = layout.read(file, case.network)
    out = layout.write(tmp_path / "ours", params, case.network)
    assert out == tmp_path / "ours" / layout.weight_file and (tmp_path / "ours" / "config.json").exists()
    expected = arrays(case.theirs)
    found = load_file(out)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor, err_msg=key)
    module = published.opened(name, out)
    assert relative(published.outputs(name, module), published.outputs(name, case.theirs)) <= 1e-5
    jax.tree.map(np.testing.assert_array_equal, layout.read(out, case.network), params)


def run(network, params, cond=None):
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, *network.spec.shape)).astype(np.float32), np.array([-0.7, 1.1], np.float32)
    return x, noise, np.asarray(jax.jit(network.apply)(params, x, noise, cond or {}))


@pytest.mark.slow
def test_edm2_computes_what_it_did_there(tmp_path):
    torch, (theirs, network, _) = peer("torch"), published.case("EDM2, classes")
    params = published.layout("EDM2, classes").read(published.save("EDM2, classes", tmp_path), network)
    assert params["head_gain"]["gain"].shape == () and params["head_gain"]["gain"] == theirs.unet.out_gain.detach().numpy()
    labels = np.array([3, 5], np.int32)  # a class, and none
    x, noise, found = run(network, params, {"label": labels})
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(noise), torch.from_numpy(labels))
        uncertainty = theirs.log_variance(torch.from_numpy(noise)).numpy()
    assert relative(found.transpose(0, 3, 1, 2), expected.numpy()) <= 1e-5
    assert relative(network.log_variance(params, noise), uncertainty) <= 1e-5


@pytest.mark.parametrize("embedding", [pytest.param("adm", marks=pytest.mark.slow), "ddpm"])
def test_a_network_that_was_trained_here_is_the_same_in_diffusers(embedding, tmp_path):
    torch, library, layout = peer("torch"), peer("diffusers"), build("layout", "diffusers")
    network = models.unet(8, channels=8, groups=4, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,),
                          embedding=embedding)  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32) / 4, network.shapes())
    layout.write(tmp_path / "out", params, network)
    x, noise, found = run(network, params)
    with torch.no_grad():
        module = library.UNet2DModel.from_pretrained(tmp_path / "out")
        expected = module(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(noise)).sample.numpy()
    assert relative(found.transpose(0, 3, 1, 2), expected) <= 1e-5


# What is refused ------------------------------------------------------------------------------------------------------

SMALL = dict(image_size=8, channels=32, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,))
SONG = dict(channels=8, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,))


@pytest.mark.parametrize(
    ("layout", "network", "message"),
    [
        ("diffusers", lambda: models.unet(**SMALL, skip_scale=0.5), "networks with skip_scale=1.0 only, and the run's has 0.5"),
        ("diffusers", lambda: models.unet(**SMALL, low_res_channels=3), "has no networks that take 'low_res'"),
        ("diffusers", lambda: models.unet(**SMALL | {"multipliers": (2, 1)}), "whose first multiplier is 1 only, not 2"),
        ("diffusers", lambda: models.unet(**SMALL | {"num_res_blocks": (1, 2)}), "one num_res_blocks for all levels only"),
        (
            "diffusers",
            lambda: models.unet(**SMALL | {"attention_resolutions": (8, 4)}, num_heads=2),
            r"one width of attention heads for all levels only, and the run's has \[16, 32\]",
        ),
        ("guided_diffusion", lambda: models.unet(**SMALL, groups=8), "with groups=32 only, and the run's has 8"),
        ("guided_diffusion", lambda: models.unet(**SMALL, image_channels=3), "no networks that take 'image'"),
        (
            "guided_diffusion",
            lambda: models.unet(**SMALL, low_res_channels=3, low_res_method="nearest"),
            "with low_res_method='bilinear' only",
        ),
        ("guided_diffusion", lambda: models.unet(**SMALL | {"image_size": (8, 16)}), "square images only.*8 x 16"),
        ("improved_diffusion", lambda: models.unet(**SMALL, resample="resblock"), "with resample='conv' .*'guided_diffusion'"),
        ("edm", lambda: models.edm_adm64(**SMALL | {"channels": 64}), "at least 128 channels only, not 64"),
        ("edm", lambda: models.edm_adm64(**SMALL | {"channels": 128}, head_channels=32), "head_channels=64 only, not 32"),
        ("edm", lambda: models.song_unet((8, 16), **SONG), "square images only"),
        (
            "edm2",
            lambda: models.edm2(**SMALL | {"num_res_blocks": 1}, head_channels=16, out_channels=6),
            "as many channels in as out only",
        ),
    ],
)
def test_what_the_library_has_not_is_refused_before_anything_is_written(layout, network, message, tmp_path):
    network = network()
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), network.shapes())
    with pytest.raises(ConfigError, match=message) as caught:
        build("layout", layout).write(tmp_path / "out", zeros, network)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_constants_must_be_the_networks(tmp_path):
    """They are no parameters: a file with others would load without a word, and mean something else."""
    for name, fields, message in (
        ("NCSN++", {"embedding": "fourier", "pyramid": True, "resample_filter": (1, 3, 3, 1)}, "freqs .*field frequencies"),
        ("DDPM++, classes", {"num_classes": 5, "augment_dim": 9, "resample_filter": (1, 3, 3, 1)}, "field resample_filter"),
        ("EDM2", None, "emb_fourier.freqs is not the network's, which follows from its field fourier"),
    ):
        shape = SONG | {"channels": 16, "multipliers": (2, 2) if name == "NCSN++" else (1, 2)}
        network = models.edm2(8, **shape, head_channels=16) if fields is None else models.song_unet(8, **shape, **fields)
        with pytest.raises(ConfigError, match=message):
            published.layout(name).read(published.save(name, tmp_path / name), network)
    fields = published.layout("EDM2").fields_in(published.save("EDM2", tmp_path))
    assert tuple(fields["fourier"][0]) == published.case("EDM2").network.module.fourier[0]
    with pytest.raises(DataError, match="has no unet.emb_fourier.freqs: it is no checkpoint of EDM2"):
        published.layout("EDM2").fields_in(published.save("NCSN++", tmp_path))


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    _, network, _ = published.case("improved, additive")
    layout, there = published.layout("improved, additive"), published.save("improved, additive", tmp_path)
    params = layout.read(there, network)
    params["middle_0_attn"]["out"]["bias"][3] = value
    with pytest.raises(DataError, match="the run: middle_0_attn/out/bias has numbers that are not finite"):
        layout.write(tmp_path / "out", params, network)
    tensors = load_file(there)
    tensors["out.2.bias"][0] = tensors["time_embed.0.weight"][0, 0] = value
    peer("safetensors.numpy").save_file(tensors, there)
    with pytest.raises(
        DataError, match="theirs.safetensors: head/bias, time_embedding/in/kernel have numbers that are not fin"
    ):
        layout.read(there, network)


def test_nothing_of_anybodys_is_overwritten(tmp_path):
    _, network, _ = published.case("improved, additive")
    layout = published.layout("improved, additive")
    params = layout.read(published.save("improved, additive", tmp_path), network)
    first = layout.write(tmp_path / "out.safetensors", params, network)
    with pytest.raises(DataError, match="out.safetensors is there already: name another file"):
        layout.write(first, params, network)
    assert layout.write(tmp_path / "again.safetensors", params, network).exists()  # the same config.json serves both
    (tmp_path / "config.json").write_text(json.dumps({"mine": True}))
    with pytest.raises(DataError, match="config.json is of another network: name a file in a folder of its own"):
        layout.write(tmp_path / "third.safetensors", params, network)
    assert json.loads((tmp_path / "config.json").read_text()) == {"mine": True}
    assert not list(tmp_path.glob("third*")) and not list(tmp_path.glob(".*"))
