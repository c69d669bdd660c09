"""Checkpoints of improved-diffusion and guided-diffusion against the same network in PyTorch."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from diffusion_jax import models
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.interop import guided_diffusion as layout
from diffusion_jax.interop.convert import convert, export
from diffusion_jax.registry import build
from tests.peers import arrays, peer, relative, shaken

ADM = dict(
    size=16, channels=16, multipliers=(0.5, 1, 2), blocks=2, attention=(8, 4), head_channels=8, resblocks=True, classes=5
)  # fmt: skip
VARIANTS = {
    "improved DDPM, four heads, three blocks": dict(
        size=8, channels=16, multipliers=(1, 2), blocks=3, attention=(4,), heads=4
    ),
    "improved DDPM, additive, one head": dict(
        size=16, channels=8, multipliers=(1, 1, 2), blocks=1, attention=(4,), scale_shift=False
    ),
    "ADM": ADM,
    "ADM in the new order": ADM | dict(new_order=True),
    "ADM's upsampler": dict(
        size=16, channels=8, multipliers=(1, 2), blocks=1, attention=(8,), heads=2, resblocks=True, inputs=6
    ),
}  # fmt: skip


@functools.cache
def compared(name):
    """(their module, our network, our layout) of a variant."""
    fields = VARIANTS[name]
    torch_side = peer("torch") and __import__("tests.interop.adm_in_torch", fromlist=["UNet"])
    network = models.unet(
        fields["size"], out_channels=6, channels=fields["channels"], multipliers=fields["multipliers"],
        num_res_blocks=fields["blocks"], attention_resolutions=fields["attention"], num_heads=fields.get("heads", 1),
        head_channels=fields.get("head_channels"), conditioning="adagn" if fields.get("scale_shift", True) else "additive",
        resample="resblock" if fields.get("resblocks") else "conv", num_classes=fields.get("classes", 0), groups=4,
        low_res_channels=fields.get("inputs", 3) - 3,
    )  # fmt: skip
    order = "new" if fields.get("new_order") else "legacy"
    return shaken(torch_side.UNet(**fields), 0), network, layout.GuidedDiffusion(attention_order=order)


def converted(name, **changed):
    module, network, names = compared(name)
    tensors = arrays(module) | changed
    return convert(tensors, names.weight_maps(network), network.shapes(), "model.pt")


def outputs(name, params):
    """(ours, theirs) on the same inputs."""
    torch = peer("torch")
    module, network, _ = compared(name)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *network.spec.shape)).astype(np.float32)
    times, cond, seen, labels = np.array([3.0, 871.5], np.float32), {}, x, None
    if "low_res" in network.cond_spec:
        small = torch.tensor(rng.standard_normal((2, 3, 8, 8)).astype(np.float32))
        large = torch.nn.functional.interpolate(small, x.shape[1:3], mode="bilinear")
        cond["low_res"] = small.numpy().transpose(0, 2, 3, 1)
        seen = np.concatenate([x, large.numpy().transpose(0, 2, 3, 1)], axis=-1)
    if "label" in network.cond_spec:
        cond["label"] = np.array([4, 1], np.int32)
        labels = torch.tensor(cond["label"])
    with torch.no_grad():
        theirs = module(torch.tensor(seen.transpose(0, 3, 1, 2)), torch.tensor(times), labels).numpy()
    return jax.jit(network.apply)(params, x, times, cond), theirs.transpose(0, 2, 3, 1)


QUICK = ("improved DDPM, additive, one head", "ADM", "ADM's upsampler")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS])
def test_the_same_weights_give_the_same_output(name):
    assert relative(*outputs(name, converted(name))) <= 1e-4


def test_the_order_of_heads_matters():
    """Read in the wrong order, the weights load and mean something else: that is why it is asked for."""
    module, network, _ = compared("ADM")
    maps = layout.GuidedDiffusion(attention_order="new").weight_maps(network)
    assert relative(*outputs("ADM", convert(arrays(module), maps, network.shapes()))) > 1e-2


@pytest.mark.parametrize("name", VARIANTS)
def test_there_and_back_are_the_same_tensors(name):
    module, network, names = compared(name)
    back, tensors = export(converted(name), names.weight_maps(network)), arrays(module)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor, err_msg=key)


def test_half_precision_and_pointwise_kernels_in_any_shape():
    name, expected = "ADM", converted("ADM")
    module, _, _ = compared(name)
    tensors = arrays(module)
    flat = {key: t.reshape(t.shape[:2]) for key, t in tensors.items() if key.endswith(("qkv.weight", "proj_out.weight"))}
    square = {key: t[..., None] for key, t in tensors.items() if key.endswith("proj_out.weight")}
    halved = {key: t.astype(np.float16) for key, t in tensors.items() if t.ndim > 1}
    for changed, tolerance in ((flat, 0), (square, 0), (halved, 1e-3)):
        for one, other in zip(jax.tree.leaves(converted(name, **changed)), jax.tree.leaves(expected), strict=True):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * 1e-2)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_the_noisy_classifier(pool):
    torch = peer("torch")
    from tests.interop.adm_in_torch import Classifier

    module = shaken(Classifier(16, 8, (1, 2), 1, (8,), head_channels=4, resblocks=True, pool=pool, outputs=5), 3)
    network = models.unet_classifier(
        16,
        3,
        5,
        channels=8,
        groups=4,
        multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(8,),
        head_channels=4,
        pool=pool,
    )
    maps, tensors = layout.GuidedDiffusion().weight_maps(network), arrays(module)
    params = convert(tensors, maps, network.shapes())
    back = export(params, maps)
    assert back.keys() == tensors.keys() and all(np.array_equal(back[key], tensors[key]) for key in tensors)
    x = np.random.default_rng(3).standard_normal((2, *network.spec.shape)).astype(np.float32)
    times = np.array([12.0, 640.0], np.float32)
    with torch.no_grad():
        theirs = module(torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(times)).numpy()
    assert relative(jax.jit(network.apply)(params, x, times), theirs) <= 1e-4


# Misfits --------------------------------------------------------------------------------------------------------------


def test_another_architecture_names_the_first_mismatches():
    module, _, names = compared("ADM")
    wider = models.unet(
        16, out_channels=6, channels=32, multipliers=(0.5, 1, 2), attention_resolutions=(8, 4), head_channels=8,
        resample="resblock", num_classes=5, groups=4,
    )  # fmt: skip
    with pytest.raises(DataError) as caught:
        convert(arrays(module), names.weight_maps(wider), wider.shapes(), "model.pt")
    message = str(caught.value)
    assert message.startswith("model.pt: these are not the weights of this network: of another shape: ")
    assert "time_embed.0.weight (64, 16) (for time_embedding/in/kernel (32, 128))" in message and " more" in message
    deeper = models.unet(
        16, out_channels=6, channels=16, multipliers=(0.5, 1, 2), num_res_blocks=3, attention_resolutions=(8, 4),
        head_channels=8, resample="resblock", num_classes=5, groups=4,
    )  # fmt: skip
    first = "of another shape: input_blocks.4.0.in_layers.2.weight .* .for down0_resample/conv_in/kernel .*; missing: "
    with pytest.raises(DataError, match=first):  # where theirs halves the image, ours has a third block
        convert(arrays(module), names.weight_maps(deeper), deeper.shapes())


def test_a_missing_and_an_extra_tensor():
    module, network, names = compared("ADM")
    tensors = arrays(module)
    lost = tensors.pop("middle_block.1.qkv.weight")
    with pytest.raises(DataError, match=r"missing: middle_block.1.qkv.weight \(for middle_0_attn/qkv/kernel\)$"):
        convert(tensors, names.weight_maps(network), network.shapes())
    tensors |= {"middle_block.1.qkv.weight": lost, "middle_block.3.weight": lost}
    with pytest.raises(DataError, match="unknown: middle_block.3.weight$"):
        convert(tensors, names.weight_maps(network), network.shapes())


def test_class_labels_where_there_are_none():
    module, _, names = compared("ADM")
    network = models.unet(
        16, out_channels=6, channels=16, multipliers=(0.5, 1, 2), attention_resolutions=(8, 4), head_channels=8,
        resample="resblock", groups=4,
    )  # fmt: skip
    with pytest.raises(DataError, match="unknown: label_emb.weight$"):
        convert(arrays(module), names.weight_maps(network), network.shapes())


def test_fields_without_weights_are_held_to_the_layout():
    tiny = functools.partial(models.unet, 8, channels=8, groups=4, multipliers=(1, 2), attention_resolutions=(4,))
    for fields, message in (
        (dict(embedding="ddpm"), "embedding='adm', but the recipe's network has 'ddpm': set --config.system.network.embedding"),
        (dict(norm_epsilon=1e-6), "norm_epsilon=1e-05"),
        (dict(down_padding="same"), "down_padding='symmetric'"),
    ):
        with pytest.raises(ConfigError, match=message):
            layout.ImprovedDiffusion().weight_maps(tiny(**fields))
    assert layout.GuidedDiffusion().weight_maps(tiny(resample="resblock", down_padding="same"))  # it has no strided convolution
    with pytest.raises(ConfigError, match="attention_order must be one of 'legacy', 'new', got 'old'"):
        build("layout", {"name": "guided_diffusion", "attention_order": "old"})
    with pytest.raises(ConfigError, match="attention_order must be one of 'legacy', got 'new'"):
        build("layout", {"name": "improved_diffusion", "attention_order": "new"})
    with pytest.raises(ConfigError, match="the U-Net family .*but the network is a SmallCNN: name another"):
        layout.GuidedDiffusion().weight_maps(models.small_classifier(16, 3, 10))


@pytest.mark.parametrize(("preset", "classes"), [("unet_adm64", 1000), ("unet_iddpm64", 0)])
def test_published_networks_have_a_name_for_every_parameter(preset, classes):
    """Each parameter once, so that the tensors of a checkpoint are as many as the published count says."""
    network = build("network", {"name": preset, "num_classes": classes})
    names = build("layout", "improved_diffusion" if "iddpm" in preset else "guided_diffusion")
    paths = {"/".join(part.key for part in path) for path, _ in jax.tree_util.tree_flatten_with_path(network.shapes())[0]}
    mapped = [path for entry in names.weight_maps(network) for path in entry.paths]
    assert paths <= set(mapped) and len(mapped) == len(set(mapped))
