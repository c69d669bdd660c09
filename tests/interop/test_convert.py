"""Weights by table: all of them used, each in its place, and every misfit named."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest

from diffusion_jax.errors import DataError
from diffusion_jax.interop import feature_networks
from diffusion_jax.interop.convert import Rule, Table, WeightMap, convert, convolution, export, linear, linear_of_image
from diffusion_jax.models.inception import inception_v3
from tests.peers import peer

TABLE = Table(
    rules=(
        Rule(r"(.+)\.conv\.weight", r"\1/conv/kernel", convolution),
        Rule(r"layer(\d+)\.norm\.weight", r"block\1/norm/scale"),
        Rule(r"qkv\.weight", ("q/kernel", "k/kernel", "v/kernel"), linear),
        Rule(r"qkv\.bias", ("q/bias", "k/bias", "v/bias")),
    ),
    ignored=(r".+\.num_batches_tracked",),
)


def tensors():
    rng = np.random.default_rng(0)
    shapes = {
        "down.first.conv.weight": (5, 3, 1, 2), "layer10.norm.weight": (4,), "qkv.weight": (6, 3), "qkv.bias": (6,),
        "layer10.norm.num_batches_tracked": (),
    }  # fmt: skip
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def shapes(**changed):
    leaves = {
        "down": {"first": {"conv": {"kernel": (1, 2, 3, 5)}}},
        "block10": {"norm": {"scale": (4,)}},
        **{name: {"kernel": (3, 2), "bias": (2,)} for name in "qkv"},
    }
    leaves |= changed
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, np.float32), leaves, is_leaf=lambda s: isinstance(s, tuple))


def test_every_tensor_finds_its_place():
    given = tensors()
    found = convert(given, TABLE, shapes())
    assert jax.tree.structure(found) == jax.tree.structure(shapes())
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))
    kernel = found["down"]["first"]["conv"]["kernel"]  # dots of a group are levels
    np.testing.assert_allclose(kernel[0, 1, 2, 4], given["down.first.conv.weight"][4, 2, 0, 1], rtol=1e-6)
    x = np.ones(3)
    stacked = np.concatenate([x @ found[name]["kernel"] + found[name]["bias"] for name in "qkv"])
    np.testing.assert_allclose(stacked, given["qkv.weight"] @ x + given["qkv.bias"], rtol=1e-6)


def test_a_linear_map_of_an_image():
    """PyTorch flattens channels first, this library channels last; both must see the same picture."""
    rng = np.random.default_rng(0)
    image, weight = rng.normal(size=(2, 3, 5)), rng.normal(size=(4, 30))
    ours = image.ravel() @ linear_of_image(2, 3)(weight)
    np.testing.assert_allclose(ours, weight @ image.transpose(2, 0, 1).ravel(), rtol=1e-12)


def without(name):
    return {key: tensor for key, tensor in tensors().items() if key != name}


@pytest.mark.parametrize(
    ("given", "wanted", "message"),
    [
        (without("layer10.norm.weight"), shapes(), "file.pth: .*missing: block10/norm/scale$"),
        (tensors() | {"head.weight": np.ones(2)}, shapes(), "unknown: head.weight$"),
        (tensors() | {"layer11.norm.weight": np.ones(4)}, shapes(), "unknown: layer11.norm.weight$"),
        (
            tensors() | {"layer10.norm.weight": np.ones(5)},
            shapes(),
            re.escape("of another shape: layer10.norm.weight (5,) (for block10/norm/scale (4,))") + "$",
        ),
        (
            tensors() | {"qkv.bias": np.ones(7)},
            shapes(),
            r"of another shape: qkv.bias \(7,\) \(for q/bias \(2,\)\), ",
        ),
        (tensors() | {"down.first.conv.weight": np.ones(3)}, shapes(), r"of another shape: down.first.conv.weight \(3,\)"),
        (tensors(), shapes(extra={"bias": (3,)}), "missing: extra/bias$"),
    ],
)
def test_misfits_are_named(given, wanted, message):
    with pytest.raises(DataError, match=message):
        convert(given, TABLE, wanted, "file.pth")


def test_all_misfits_are_told_at_once_and_the_list_is_short():
    given = without("qkv.bias") | {f"head{number}.weight": np.ones(1) for number in range(10)}
    with pytest.raises(DataError) as caught:
        convert(given, TABLE, shapes())
    assert "unknown: head0.weight, head1.weight, head2.weight and 7 more" in str(caught.value)
    assert "missing: q/bias, k/bias, v/bias" in str(caught.value).replace("k/bias, q/bias", "q/bias, k/bias")
    assert "\n" not in str(caught.value)


def test_the_way_back_has_a_name_for_every_parameter():
    with pytest.raises(DataError, match="no names for these parameters: b/bias$"):
        export({"a": {"bias": np.ones(2)}, "b": {"bias": np.ones(2)}}, [WeightMap(("a.bias",), ("a/bias",))])


def test_a_place_that_is_given_twice():
    table = Table(rules=(*TABLE.rules, Rule(r"ema\.norm", "block10/norm/scale")), ignored=TABLE.ignored)
    with pytest.raises(DataError, match=r"given twice: ema.norm \(for block10/norm/scale\)"):
        convert(tensors() | {"ema.norm": np.ones(4)}, table, shapes())


def test_torchvisions_own_inception_is_refused(monkeypatch):
    """It has 1000 classes: its weights are another network's, and its auxiliary head is let pass."""
    models = peer("torchvision.models")
    with peer("torch").device("meta"):
        theirs = models.inception_v3(weights=None, init_weights=False, aux_logits=True)
    given = {name: np.broadcast_to(np.float32(0), tuple(tensor.shape)) for name, tensor in theirs.state_dict().items()}
    with pytest.raises(DataError) as caught:
        convert(given, feature_networks.INCEPTION, inception_v3().shapes(), "inception_v3.pth")
    assert str(caught.value).endswith(
        "of another shape: fc.weight (1000, 2048) (for fc/kernel (2048, 1008)), fc.bias (1000,) (for fc/bias (1008,))"
    )
