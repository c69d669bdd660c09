"""UNet2DModel of diffusers, and its blocks, activation by activation on the same random weights."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import models
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.interop import diffusers as layout
from diffusion_jax.interop.convert import convert, export
from diffusion_jax.interop.diffusers_config import network_fields, read_config
from diffusion_jax.models.blocks import AttentionBlock, ResidualBlock
from diffusion_jax.registry import build
from tests.peers import arrays, peer, relative, shaken

DDPM = dict(
    sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
RELEASED = dict(flip_sin_to_cos=False, freq_shift=1, downsample_padding=0, norm_eps=1e-6, attention_head_dim=None)
ADM = dict(
    sample_size=(16, 24), block_out_channels=(16, 32, 48), layers_per_block=1, norm_num_groups=8, attn_norm_num_groups=8,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift", attention_head_dim=16,
    num_class_embeds=7, out_channels=6,
)  # fmt: skip
VARIANTS = {
    "as DDPM was released": DDPM | RELEASED,
    "the defaults of the class": DDPM,
    "sines first at the frequencies of ADM": DDPM | dict(flip_sin_to_cos=False),
    "cosines first at the frequencies of DDPM": DDPM | dict(freq_shift=1),
    "three blocks a level, four levels, odd widths, padding of one": dict(
        sample_size=16, block_out_channels=(24, 12, 36, 24), layers_per_block=3, norm_num_groups=6, attention_head_dim=6,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), in_channels=1, out_channels=2,
    ),
    "as ADM": ADM,
    "as ADM, resampled by convolutions": ADM
    | dict(
        downsample_type="conv", upsample_type="conv", downsample_padding=0, num_class_embeds=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ),
}  # fmt: skip


def theirs(fields):
    return shaken(peer("diffusers").UNet2DModel(**fields), 0)


def ours(config):
    """(network, layout) of a UNet2DModel's configuration, as it is in config.json."""
    config = json.loads(json.dumps(dict(config)))
    return models.unet(**network_fields(config)), layout.Diffusers.of_config(config)


@functools.cache
def compared(name):
    """(their module, our network, our layout)."""
    module = theirs(VARIANTS[name])
    return (module, *ours(module.config))


QUICK = ("as DDPM was released", "as ADM")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS])
def test_the_same_weights_give_the_same_output(name):
    torch = peer("torch")
    module, network, names = compared(name)
    params = convert(arrays(module), names.weight_maps(network), network.shapes())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *network.spec.shape)).astype(np.float32)
    times, labels = np.array([0.0, 937.0], np.float32), np.array([2, 5])
    classes = VARIANTS[name].get("num_class_embeds")
    with torch.no_grad():
        given = {"class_labels": torch.tensor(labels)} if classes else {}
        expected = module(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(times), **given).sample
    found = jax.jit(network.apply)(params, x, times, {"label": labels} if classes else {})
    assert relative(found, expected.numpy().transpose(0, 2, 3, 1)) <= 1e-4


@pytest.mark.parametrize("name", ["as DDPM was released", "as ADM", "cosines first at the frequencies of DDPM"])
def test_there_and_back_are_the_same_tensors(name):
    module, network, names = compared(name)
    tensors = arrays(module)
    back = export(convert(tensors, names.weight_maps(network), network.shapes()), names.weight_maps(network))
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor, err_msg=key)


def test_attention_under_its_old_names_and_in_half_precision():
    module, network, names = compared("as DDPM was released")
    maps, shapes = names.weight_maps(network), network.shapes()
    new = {"to_q": "query", "to_k": "key", "to_v": "value"}
    old = {}
    for name, tensor in arrays(module).items():
        name = name.replace("to_out.0.", "proj_attn.")
        for now, then in new.items():
            name = name.replace(f".{now}.", f".{then}.")
        old[name] = tensor.astype(np.float16)
    assert "mid_block.attentions.0.query.weight" in old and "mid_block.attentions.0.proj_attn.bias" in old
    found, expected = convert(names.renamed(old), maps, shapes), convert(arrays(module), maps, shapes)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def block_shapes(block, *inputs):
    return jax.eval_shape(lambda: block.init(jax.random.key(0), *inputs)["params"])


@pytest.mark.parametrize("shift", ["default", "scale_shift"])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_a_residual_block_alone(shift, resample):
    torch, resnet = peer("torch"), peer("diffusers.models.resnet")
    module = shaken(
        resnet.ResnetBlock2D(
            in_channels=12, out_channels=24, temb_channels=10, groups=4, eps=1e-5, time_embedding_norm=shift,
            up=resample == "up", down=resample == "down",
        ),
        1,
    )  # fmt: skip
    block = ResidualBlock(24, 4, 1e-5, "additive" if shift == "default" else "adagn", 0.0, jnp.float32, resample)
    rng = np.random.default_rng(1)
    x, emb = rng.standard_normal((2, 6, 4, 12)).astype(np.float32), rng.standard_normal((2, 10)).astype(np.float32)
    tensors = {f"block.{name}": tensor for name, tensor in arrays(module).items()}
    shapes = {"here": block_shapes(block, x, emb, False)}
    params = convert(tensors, layout.residual("block", "here"), shapes)["here"]
    with torch.no_grad():
        expected = module(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(emb)).numpy()
    assert relative(block.apply({"params": params}, x, emb, False), expected.transpose(0, 2, 3, 1)) <= 1e-4


@pytest.mark.parametrize("heads", [1, 3])
def test_an_attention_block_alone(heads):
    torch, attention = peer("torch"), peer("diffusers.models.attention_processor")
    module = shaken(
        attention.Attention(
            24, heads=heads, dim_head=24 // heads, norm_num_groups=4, eps=1e-5, residual_connection=True, bias=True,
            upcast_softmax=True, _from_deprecated_attn_block=True,
        ),
        2,
    )  # fmt: skip
    block = AttentionBlock(heads, 4, 1e-5, jnp.float32)
    x = np.random.default_rng(2).standard_normal((2, 6, 4, 24)).astype(np.float32)
    tensors = {f"block.{name}": tensor for name, tensor in arrays(module).items()}
    params = convert(tensors, layout.attention("block", "here"), {"here": block_shapes(block, x)})["here"]
    with torch.no_grad():
        expected = module(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    assert relative(block.apply({"params": params}, x), expected.transpose(0, 2, 3, 1)) <= 1e-4


# Without PyTorch ------------------------------------------------------------------------------------------------------


def test_the_fields_of_the_released_cifar10_network():
    """Its config.json, as published; the count is the paper's network's."""
    config = {
        "_class_name": "UNet2DModel", "sample_size": 32, "in_channels": 3, "out_channels": 3, "act_fn": "silu",
        "attention_head_dim": None, "block_out_channels": [128, 256, 256, 256], "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], "downsample_padding": 0,
        "flip_sin_to_cos": False, "freq_shift": 1, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-6,
        "norm_num_groups": 32, "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }  # fmt: skip
    given, preset = models.unet(**network_fields(config)), models.unet_ddpm_cifar10()
    assert given.num_params() == preset.num_params() == 35_746_307
    for field in ("embedding", "conditioning", "down_padding", "norm_epsilon", "attention_resolutions", "resample"):
        assert getattr(given.module, field) == getattr(preset.module, field), field


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(time_embedding_type="fourier"), "time_embedding_type='fourier' has no counterpart here, only 'positional'"),
        (dict(down_block_types=("SkipDownBlock2D",) * 2), "no block 'SkipDownBlock2D' here .known: DownBlock2D"),
        (dict(up_block_types=("UpBlock2D", "AttnUpBlock2D")), "attention on the way down .* must be at the same levels"),
        (dict(resnet_time_scale_shift="scale_shift"), "attn_norm_num_groups=None with .*norm_num_groups .4. has"),
        (dict(downsample_type="resnet", down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
              up_block_types=("AttnUpBlock2D", "AttnUpBlock2D")), "all levels must resample alike"),
        (dict(sample_size=None), "sample_size must be a positive whole number"),
        (dict(freq_shift=0.5), "freq_shift=0.5 has no counterpart"),
        (dict(layers_per_block=[1, 2]), r"config.json: layers_per_block must be a whole number at least 1, got \[1, 2\]"),
        (dict(block_out_channels="16"), "config.json: block_out_channels must be a list of whole numbers"),
        (dict(norm_eps="small"), "config.json: norm_eps must be a number"),
        (dict(block_out_channels=(16, 32, 32)), "3 block_out_channels, 2 down_block_types"),
    ],
)  # fmt: skip
def test_what_this_library_has_not_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        network_fields(DDPM | change)


def test_a_config_that_is_missing_broken_or_of_another_class(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(DataError, match="config.json, .*, cannot be read .*beside the weights"):
        read_config(path)
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read .Expecting"):
        read_config(path)
    path.write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(ConfigError, match="describes a UNet2DConditionModel.*UNet2DModel"):
        read_config(path)


def test_the_layout_is_built_by_name():
    assert build("layout", {"name": "diffusers", "cosine_first": True}) == layout.Diffusers(True)
