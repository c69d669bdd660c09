"""EDM2's network: published counts, unit magnitudes at the start, indifference to the length of its weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffusion_jax.errors import ConfigError
from diffusion_jax.models import magnitude
from diffusion_jax.models.edm2_unet import CHANNELS, edm2
from tests.peers import peer

# Karras et al. 2024 (arXiv 2312.02696): 64 pixels RGB, and 64x64 latents of 4 channels, with 1,000 classes.
PUBLISHED = {
    "XXS": (31_307_877, 31_309_029),
    "XS": (124_710_949, 124_713_253),
    "S": (280_209_381, 280_212_837),
    "M": (497_803_173, 497_807_781),
    "L": (777_492_325, 777_498_085),
    "XL": (1_119_276_837, 1_119_283_749),
    "XXL": (1_523_156_709, 1_523_164_773),
}

SMALL = dict(image_size=16, channels=16, multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(8,), head_channels=16)


@pytest.mark.parametrize("size", [s if s == "XS" else pytest.param(s, marks=pytest.mark.slow) for s in PUBLISHED])
def test_published_counts(size):
    count = lambda channels: edm2(64, in_channels=channels, channels=CHANNELS[size], num_classes=1000).num_params()  # noqa: E731
    assert (count(3), count(4)) == PUBLISHED[size]


def rms(x, axis=None):
    return np.sqrt(np.mean(np.square(np.asarray(x, np.float64)), axis))


@pytest.fixture(scope="module")
def small():
    """A network of 4 classes, with its output gain open, and inputs of unit magnitude."""
    network = edm2(**SMALL, num_classes=4, null_class=True)
    params = network.init(jax.random.key(0))
    params["head_gain"]["gain"] = jnp.ones(())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 16, 16, 3)).astype(np.float32)
    return network, params, x, np.linspace(-1.5, 1, 8, dtype=np.float32), {"label": np.arange(8) % 5}


@pytest.mark.slow
def test_unit_magnitudes_at_the_start(small):
    network, params, *inputs = small
    run = jax.jit(lambda *inputs: network.module.apply({"params": params}, *inputs, capture_intermediates=True))
    out, state = run(*inputs)
    blocks = {
        name: each["__call__"][0] for name, each in state["intermediates"].items() if name.startswith(("down", "mid", "up"))
    }
    assert len(blocks) == 10
    for name, activations in blocks.items():
        # Below 1 at 8x8: zeros at the border lessen a convolution's output, and attention averages over positions.
        assert 0.7 < rms(activations) < 1.15, name
    assert 0.7 < rms(out) < 1.15
    fresh = network.init(jax.random.key(1))
    assert not np.any(network.apply(fresh, *inputs)), "the output gain starts at 0"


def _peer(torch, params, x, noise, label):
    """The network of SMALL channels first in PyTorch, from the paper's description (section 2 and appendix B)."""
    F = torch.nn.functional
    tensor = lambda leaf: torch.from_numpy(np.array(leaf))  # noqa: E731
    silu = lambda h: F.silu(h) / 0.596  # noqa: E731
    unit = lambda h, dim: h / (1e-4 + h.square().mean(dim, keepdim=True).sqrt())  # noqa: E731
    mix = lambda a, b, t: torch.lerp(a, b, t) / ((1 - t) ** 2 + t**2) ** 0.5  # noqa: E731

    def conv(h, part, gain=1.0):
        kernel = tensor(part["kernel"])
        weight = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T[..., None, None]
        weight = weight / (1e-4 + weight.flatten(1).norm(dim=1) / weight[0].numel() ** 0.5)[:, None, None, None]
        return F.conv2d(h, weight * gain / weight[0].numel() ** 0.5, padding=weight.shape[-1] // 2)

    def fourier(values, count):
        rng = np.random.default_rng(count)
        turns = np.outer(values, rng.standard_normal(count)) + rng.uniform(size=count)
        return tensor(np.float32(np.sqrt(2) * np.cos(2 * np.pi * turns)))[..., None, None]

    code = F.one_hot(tensor(label).long(), 5)[:, :4, None, None] * 4**0.5  # the fifth label is "no label"
    emb = silu(mix(conv(fourier(noise, 16), params["noise_embedding"]), conv(code.float(), params["label_embedding"]), 0.5))

    def block(h, name):
        part, encoder = params[name], name.startswith("down")
        if name.endswith("resample"):
            h = F.avg_pool2d(h, 2) if encoder else F.interpolate(h, scale_factor=2, mode="nearest")
        shortcut = conv(h, part["skip"]) if "skip" in part else h
        h, shortcut = (unit(shortcut, 1),) * 2 if encoder else (h, shortcut)
        branch = conv(silu(h), part["conv_in"]) * (1 + conv(emb, part["emb"], tensor(part["emb_gain"]["gain"])))
        h = mix(shortcut, conv(silu(branch), part["conv_out"]), 0.3)
        if name in ("down1_0", "middle_0", "up1_0", "up1_1"):
            heads = (each.unflatten(1, (2, 16)).flatten(3) for each in conv(h, part["qkv"]).chunk(3, 1))
            query, key, value = (unit(each, 2) for each in heads)
            attended = value @ torch.softmax(query.transpose(2, 3) @ key / 4, -1).transpose(2, 3)
            h = mix(h, conv(attended.reshape(h.shape), part["attention_out"]), 0.3)
        return h.clip(-256, 256)

    def joined(a, b):
        scale = ((a.shape[1] + b.shape[1]) / 2) ** 0.5
        return torch.cat([scale / a.shape[1] ** 0.5 * a, scale / b.shape[1] ** 0.5 * b], 1)

    h = tensor(x).permute(0, 3, 1, 2)
    skips = [conv(torch.cat([h, torch.ones_like(h[:, :1])], 1), params["stem"])]
    for name in ("down0_0", "down1_resample", "down1_0"):
        skips.append(block(skips[-1], name))
    h = block(block(skips[-1], "middle_0"), "middle_1")
    for name in ("up1_0", "up1_1", "up0_resample", "up0_0", "up0_1"):
        h = block(h if name.endswith("resample") else joined(h, skips.pop()), name)
    return conv(h, params["head"], tensor(params["head_gain"]["gain"])).permute(0, 2, 3, 1)


def test_the_network_equals_a_peer_in_pytorch(request):
    torch = peer("torch")  # before the network is made
    network, params, x, noise, cond = request.getfixturevalue("small")
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.5) if leaf.ndim == 0 else leaf, params)
    expected = _peer(torch, params, x, noise, cond["label"]).numpy()
    np.testing.assert_allclose(jax.jit(network.apply)(params, x, noise, cond), expected, atol=1e-3)


def test_the_length_of_weights_does_not_matter(small):
    network, params, *inputs = small
    rng = np.random.default_rng(1)

    def stretch(path, leaf):
        return leaf * rng.uniform(0.5, 4, leaf.shape[-1]).astype(np.float32) if path[-1].key == "kernel" else leaf

    stretched = jax.tree_util.tree_map_with_path(stretch, params)
    run = jax.jit(network.apply)
    expected = run(params, *inputs)
    np.testing.assert_allclose(run(stretched, *inputs), expected, atol=3e-3)
    projected = network.project(stretched)
    np.testing.assert_allclose(run(projected, *inputs), expected, atol=3e-3)
    kernels = {jax.tree_util.keystr(p): k for p, k in jax.tree_util.tree_leaves_with_path(projected) if p[-1].key == "kernel"}
    assert len(kernels) == len(jax.tree.leaves(params)) - 10 - 1  # a gain for each block, and the output's
    for name, kernel in kernels.items():
        np.testing.assert_allclose(rms(kernel, tuple(range(kernel.ndim - 1))), 1, rtol=1e-3, err_msg=name)


def test_the_null_class_has_no_code(small):
    """The published unconditional input is an all-zero one-hot code: the label's weights then do not matter."""
    network, params, x, noise, _ = small
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.5) if leaf.ndim == 0 else leaf, params)
    other = {**params, "label_embedding": {"kernel": params["label_embedding"]["kernel"][::-1]}}
    run = jax.jit(lambda params, label: network.apply(params, x, noise, {"label": jnp.full(8, label)}))
    np.testing.assert_array_equal(run(params, 4), run(other, 4))
    assert rms(run(params, 0) - run(other, 0)) > 0.01
    assert rms(run(params, 0) - run(params, 4)) > 0.01


def test_uncertainty_is_a_function_of_the_noise_level(small):
    network, params, *_ = small
    u = network.log_variance(params, jnp.linspace(-2, 1, 400))
    assert u.shape == (400,) and np.std(u) > 0.1
    zeros = jax.tree.map(jnp.zeros_like, params["uncertainty"])
    assert not np.any(network.log_variance({**params, "uncertainty": zeros}, jnp.zeros(3)))


def test_magnitudes_of_the_parts():
    silu_square = integrate.quad(lambda x: (x / (1 + np.exp(-x))) ** 2 * stats.norm.pdf(x), -20, 20)[0]
    assert np.sqrt(silu_square) == pytest.approx(0.596, abs=5e-4)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((4000, channels)).astype(np.float32) for channels in (16, 48))
    assert rms(magnitude.mp_silu(a)) == pytest.approx(1, abs=0.02)
    assert rms(magnitude.mp_sum(a, b[:, :16], 0.3)) == pytest.approx(1, abs=0.02)
    both = magnitude.mp_cat(a, b)
    assert rms(both) == pytest.approx(1, abs=0.02)
    # Each side has half of the squared length, though b has three times the channels.
    assert (np.square(both[:, :16]).sum() / np.square(both).sum()) == pytest.approx(0.5, abs=0.02)
    assert rms(magnitude.mp_fourier(jnp.linspace(-3, 3, 200), magnitude.fourier_constants(512))) == pytest.approx(1, abs=0.03)
    assert rms(magnitude.normalize(7 * a), -1) == pytest.approx(1, abs=1e-3)


def test_half_precision_stays_finite(small):
    _, params, x, noise, cond = small
    network = edm2(**SMALL, num_classes=4, null_class=True, dtype="bfloat16")
    huge = jax.tree.map(lambda leaf: leaf + 1e4 if leaf.ndim == 0 else leaf, params)
    out = jax.jit(network.apply)(huge, x, noise, cond)
    assert out.dtype == jnp.float32 and np.isfinite(out).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 15}, "divisible by 2"),
        ({"head_channels": 24}, "head_channels"),
        ({"null_class": True}, "needs num_classes"),
        ({"dropout": 1.0}, "dropout"),
        ({"fourier": [[1.0] * 16, [1.0] * 8]}, r"fourier must be 16 frequencies and as many phases, got \[16, 8\]"),
    ],
)
def test_what_cannot_be_built(fields, message):
    with pytest.raises(ConfigError, match=message):
        edm2(**(SMALL | fields))
