"""Feature networks against PyTorch's on the same random weights, and the counts of the published ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from diffusion_jax.errors import ConfigError
from diffusion_jax.interop import feature_networks
from diffusion_jax.interop.convert import convert
from diffusion_jax.models.feature_network import vgg16
from diffusion_jax.models.inception import inception_v3
from diffusion_jax.models.vision_transformer import clip_vision, cubic_matrix, dinov2, vision_transformer
from tests.peers import arrays, fid_inception, peer, relative, shaken

TOLERANCE = 1e-4  # relative to the largest entry
TINY = dict(patch=8, width=64, depth=2, heads=4, mlp=256)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def channels_first(x):
    return peer("torch").from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def run(network, table, tensors, x):
    params = convert(tensors, table, network.shapes())
    return jax.jit(network.apply)(params, x)


def test_inception_is_pytorch_fids(monkeypatch):
    """pool_3, the logits without bias, and seven channels of the first branch of mixed_6, rows first."""
    torch = peer("torch")
    theirs = fid_inception(monkeypatch)
    kept = {}
    theirs.avgpool.register_forward_hook(lambda module, given, out: kept.update(pool=out.flatten(1)))
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, out: kept.update(branch=out))
    x = np.clip(normal(2, 299, 299, 3), -1, 1)
    with torch.no_grad():
        logits = theirs(channels_first(x)) - theirs.fc.bias
    ours = run(inception_v3(), feature_networks.INCEPTION, arrays(theirs), x)
    assert relative(ours["pool"], kept["pool"]) < TOLERANCE
    assert relative(ours["logits_unbiased"], logits) < TOLERANCE
    assert relative(ours["spatial"], kept["branch"][:, :7].permute(0, 2, 3, 1).flatten(1)) < TOLERANCE


def test_vgg16_is_torchvisions():
    torch = peer("torch")
    torch.manual_seed(0)
    theirs = peer("torchvision.models").vgg16().eval()
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            if name.endswith("bias"):
                tensor.normal_(0, 0.1)
        x = normal(2, 224, 224, 3)
        features = theirs.classifier[:4](theirs.avgpool(theirs.features(channels_first(x))).flatten(1))
    ours = run(vgg16(), feature_networks.VGG16, arrays(theirs), x)
    assert relative(ours["fc2"], features) < TOLERANCE
    assert relative(ours["fc2_relu"], features.relu()) < TOLERANCE


def tiny_dinov2(image_size):
    """transformers' network, with weights far from where training starts, so that every part counts."""
    transformers = peer("transformers")
    config = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=4, image_size=56, patch_size=8
    )
    theirs = shaken(transformers.Dinov2Model(config), seed=1)
    x = normal(2, image_size, image_size, 3)
    with peer("torch").no_grad():
        return theirs, x, theirs(channels_first(x)).last_hidden_state[:, 0]


@pytest.mark.parametrize("image_size", [56, 32, 80])
def test_dinov2_is_transformers(image_size):
    """At the size of its positions, and with them interpolated to fewer and to more."""
    theirs, x, features = tiny_dinov2(image_size)
    network = vision_transformer(image_size, **TINY, grid=7, layer_scale=True)
    assert relative(run(network, feature_networks.DINOV2, arrays(theirs), x)["pool"], features) < TOLERANCE


def test_dinov2_in_the_names_of_the_release():
    """Queries, keys and values are one stacked map there."""
    theirs, x, features = tiny_dinov2(56)
    old, new = arrays(theirs), {}
    renamed = {"cls_token": "cls_token", "position_embeddings": "pos_embed", "mask_token": "mask_token"}
    new |= {there: old[f"embeddings.{here}"] for here, there in renamed.items()}
    for leaf in ("weight", "bias"):
        new[f"patch_embed.proj.{leaf}"] = old[f"embeddings.patch_embeddings.projection.{leaf}"]
        new[f"norm.{leaf}"] = old[f"layernorm.{leaf}"]
        for number in (0, 1):
            # the names inside of a layer are those of the installed version: take them by their order
            names = [name for name in old if f"layer.{number}." in name and name.endswith(leaf)]
            norm1, query, key, value, out, norm2, fc1, fc2 = names
            stem = f"blocks.{number}."
            new[f"{stem}attn.qkv.{leaf}"] = np.concatenate([old[query], old[key], old[value]])
            places = {"norm1": norm1, "attn.proj": out, "norm2": norm2, "mlp.fc1": fc1, "mlp.fc2": fc2}
            new |= {f"{stem}{place}.{leaf}": old[name] for place, name in places.items()}
            for scale in "12":
                new[f"{stem}ls{scale}.gamma"] = old[f"encoder.layer.{number}.layer_scale{scale}.lambda1"]
    network = vision_transformer(56, **TINY, grid=7, layer_scale=True)
    assert relative(run(network, feature_networks.DINOV2, new, x)["pool"], features) < TOLERANCE


@pytest.mark.parametrize("new", [16, 37, 50])
def test_positions_are_interpolated_as_the_release_does(new):
    """It gives the scale with a tenth of a patch added to the new side, and no size."""
    torch = peer("torch")
    image = normal(1, 37, 37, 5)
    scale = (new + 0.1) / 37
    theirs = torch.nn.functional.interpolate(channels_first(image), scale_factor=(scale, scale), mode="bicubic")
    matrix = cubic_matrix(37, new, scale)
    ours = np.einsum("hH,wW,bHWc->bchw", matrix, matrix, image, optimize=True)
    assert relative(ours, theirs) < TOLERANCE


def test_a_published_size_of_dinov2():
    """The network of 224 pixels, its positions stored for 518; the peer has them interpolated by PyTorch as above."""
    torch, transformers = peer("torch"), peer("transformers")
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=224, patch_size=14
    )
    torch.manual_seed(0)
    theirs = transformers.Dinov2Model(config).eval()
    x, stored, scale = normal(1, 224, 224, 3), normal(1, 37, 37, 384, seed=1), (16 + 0.1) / 37
    fewer = torch.nn.functional.interpolate(channels_first(stored), scale_factor=(scale, scale), mode="bicubic")
    with torch.no_grad():
        theirs.embeddings.position_embeddings[:, 1:] = fewer.flatten(2).transpose(1, 2)
        features = theirs(channels_first(x)).last_hidden_state[:, 0]
    tensors = arrays(theirs)
    first = tensors["embeddings.position_embeddings"][:, :1]
    tensors["embeddings.position_embeddings"] = np.concatenate([first, stored.reshape(1, -1, 384)], axis=1)
    ours = run(dinov2("vit_s14"), feature_networks.DINOV2, tensors, x)
    assert relative(ours["pool"], features) < TOLERANCE


def tiny_clip():
    transformers = peer("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
        projection_dim=32,
    )  # fmt: skip
    theirs = shaken(transformers.CLIPVisionModelWithProjection(config), seed=2)
    x = normal(2, 32, 32, 3)
    with peer("torch").no_grad():
        found = theirs(channels_first(x))
        pooled = theirs.vision_model(channels_first(x)).pooler_output
    network = vision_transformer(
        32, **TINY, grid=4, activation="quick_gelu", patch_bias=False, norm_in=True, projection=32, epsilon=1e-5
    )
    return network, arrays(theirs), x, pooled, found.image_embeds


def test_clip_is_transformers():
    network, tensors, x, pooled, embedding = tiny_clip()
    ours = run(network, feature_networks.CLIP_VISION, tensors, x)
    assert relative(ours["pool"], pooled) < TOLERANCE
    assert relative(ours["embedding"], embedding) < TOLERANCE


def test_clip_with_its_text_tower_and_without_the_prefix():
    network, tensors, x, _, embedding = tiny_clip()
    tensors = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    tensors |= {
        "logit_scale": np.ones(()),
        "text_projection.weight": np.ones((32, 64)),
        "embeddings.position_ids": np.ones((1, 17)),
    }
    tensors["text_model.encoder.layers.0.self_attn.k_proj.weight"] = np.ones((64, 64))
    assert relative(run(network, feature_networks.CLIP_VISION, tensors, x)["embedding"], embedding) < TOLERANCE


def test_clip_in_openclips_names():
    network, old, x, _, embedding = tiny_clip()
    old = {name.removeprefix("vision_model."): tensor for name, tensor in old.items()}
    new = {
        "visual.class_embedding": old["embeddings.class_embedding"],
        "visual.positional_embedding": old["embeddings.position_embedding.weight"],
        "visual.conv1.weight": old["embeddings.patch_embedding.weight"],
        "visual.proj": old["visual_projection.weight"].T,
        "token_embedding.weight": np.ones((10, 64)),
    }
    for leaf in ("weight", "bias"):
        new[f"visual.ln_pre.{leaf}"] = old[f"pre_layrnorm.{leaf}"]
        new[f"visual.ln_post.{leaf}"] = old[f"post_layernorm.{leaf}"]
        for number in (0, 1):
            layer, block = f"encoder.layers.{number}.", f"visual.transformer.resblocks.{number}."
            stacked = [old[f"{layer}self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            new[f"{block}attn.in_proj_{leaf}"] = np.concatenate(stacked)
            names = {
                "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
            }  # fmt: skip
            new |= {f"{block}{there}.{leaf}": old[f"{layer}{here}.{leaf}"] for here, there in names.items()}
    assert relative(run(network, feature_networks.CLIP_VISION, new, x)["embedding"], embedding) < TOLERANCE


@pytest.mark.parametrize(
    ("variant", "count"),
    [("vit_b32", 87_849_216), ("vit_b16", 86_192_640), ("vit_l14", 303_966_208), ("vit_l14_336", 304_293_888)],
)
def test_counts_of_clip(variant, count):
    assert clip_vision(variant).num_params() == count


@pytest.mark.parametrize(("variant", "width", "depth", "heads"), [("vit_s14", 384, 12, 6), ("vit_l14", 1024, 24, 16)])
def test_counts_of_dinov2(variant, width, depth, heads):
    """Those of transformers' network, less the token that masks patches in training."""
    torch, transformers = peer("torch"), peer("transformers")
    config = transformers.Dinov2Config(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, image_size=518, patch_size=14
    )
    with torch.device("meta"):
        theirs = sum(tensor.numel() for tensor in transformers.Dinov2Model(config).parameters())
    assert dinov2(variant).num_params() == theirs - width


@pytest.mark.slow
def test_counts_of_inception_and_vgg():
    """As torchvision's without auxiliary logits and with 1008 classes; VGG-16 has 138,357,544 with its last layer."""
    assert inception_v3().num_params() == 23_885_392
    assert vgg16().num_params() == 138_357_544 - 4097 * 1000
    assert inception_v3().dims() == {"pool": 2048, "logits_unbiased": 1008, "spatial": 17 * 17 * 7}


def test_init_gives_usable_parameters():
    network = vision_transformer(32, **TINY, grid=4, projection=16, layer_scale=True)
    params = network.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, network.shapes())
    found = network.apply(params, jnp.asarray(normal(3, 32, 32, 3)))
    assert {name: rows.shape for name, rows in found.items()} == {"pool": (3, 64), "embedding": (3, 16)}
    assert all(rows.std(0).min() > 0 for rows in found.values())


def products(jaxpr):
    """The precisions of all matrix products and convolutions, those of inner programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("build", [inception_v3, vgg16, clip_vision, dinov2])
def test_no_accelerator_shortens_the_products(build):
    """Their default is bfloat16 on a TPU and TF32 on a GPU, which changes features in the third digit."""
    network = build()
    x = jax.ShapeDtypeStruct((2, *network.spec.shape), np.float32)
    found = list(products(jax.make_jaxpr(network.apply)(network.shapes(), x).jaxpr))
    assert len(found) > 10
    assert set(found) == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(TINY, grid=4, patch=7), "patches of 7 pixels"),
        (dict(TINY, grid=4, heads=5), "5 heads do not divide"),
        (dict(TINY, grid=4, activation="relu"), "activation: unknown 'relu'"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        vision_transformer(32, **fields)


def test_bad_variants_and_shapes():
    with pytest.raises(ConfigError, match="variant: unknown 'vit_h14'.*vit_b32"):
        clip_vision("vit_h14")
    with pytest.raises(ConfigError, match=r"InceptionV3 takes images \[B, 299, 299, 3\], got \(1, 32, 32, 3\)"):
        inception_v3().apply({}, jnp.zeros((1, 32, 32, 3)))
