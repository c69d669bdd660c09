"""Images that are not square, through every network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import models
from diffusion_jax.errors import ConfigError
from diffusion_jax.spec import Spec
from tests.models.helpers import inputs, perturbed

_SMALL = dict(in_channels=2, channels=8, multipliers=(1, 2), num_res_blocks=1)
_UNET = dict(_SMALL, groups=4, attention_resolutions=(2,))
NETWORKS = {
    "unet": (models.unet, dict(_UNET, low_res_channels=2, image_channels=1, mask=True)),
    "text_unet": (models.text_unet, dict(_UNET, context_dim=6)),
    "unet_classifier": (models.unet_classifier, dict(_UNET, num_classes=3, head_channels=8)),
    "song_unet": (models.song_unet, dict(_SMALL, attention_resolutions=(2,), pyramid=True, resample_filter=(1, 3, 3, 1))),
    "edm2": (models.edm2, dict(_SMALL, attention_resolutions=(2,), head_channels=8)),
    "efficient_unet": (
        models.efficient_unet,
        dict(_SMALL, num_res_blocks=(1, 1), strides=(1, 2), groups=4, num_heads=2, low_res_channels=2,
             self_attention=(False, True), text_attention=(False, False)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_rectangles_train(name):
    """Of every conditioning the sizes follow; a gradient exists."""
    build, fields = NETWORKS[name]
    network = build(image_size=[8, 12], **fields)
    assert network.spec == Spec.image((8, 12), 2)
    sizes = {key: value.shape[:2] for key, value in network.cond_spec.items() if key in ("low_res", "image", "mask")}
    assert all(height / width == 8 / 12 for height, width in sizes.values()), sizes
    loss = lambda params, *inputs: (network.apply(params, *inputs, train=True) ** 2).mean()  # noqa: E731
    gradient = jax.eval_shape(jax.grad(loss), network.shapes(), *network.example_inputs(2))
    assert jax.tree.structure(gradient) == jax.tree.structure(network.shapes())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "song_unet", "edm2", "efficient_unet"])
def test_a_turned_image_is_a_turned_output(name):
    """Rows and columns exchanged in image, conditioning and kernels: exchanged in the output, attention and all."""
    build, fields = NETWORKS[name]
    wide, tall = build(image_size=(4, 6), **fields), build(image_size=(6, 4), **fields)
    params, (x, noise, cond) = perturbed(wide), inputs(wide)
    turn = lambda leaf: leaf.swapaxes(-3, -2) if leaf.ndim == 4 else leaf  # noqa: E731
    expected = turn(np.asarray(jax.jit(wide.apply)(params, x, noise, cond)))
    found = jax.jit(tall.apply)(
        jax.tree.map(lambda p: p.swapaxes(0, 1) if p.ndim == 4 else p, params), *jax.tree.map(turn, (x, noise, cond))
    )
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    square = build(image_size=4, **fields)
    assert jax.tree.map(jnp.shape, square.shapes()) == jax.tree.map(jnp.shape, params)  # attention goes by the smaller side


@pytest.mark.parametrize("name", NETWORKS)
def test_sides_that_do_not_divide_are_named(name):
    build, fields = NETWORKS[name]
    with pytest.raises(ConfigError, match="image_size 7x12 is not divisible by 2, .*; use 6x12 or 8x12"):
        build(image_size=(7, 12), **fields)


def test_the_small_classifier_takes_rectangles():
    network = models.small_classifier((8, 20), 1, 3)
    params = jax.eval_shape(network.init, jax.random.key(0))
    assert jax.eval_shape(network.apply, params, jnp.zeros((2, *network.spec.shape)))[0].shape == (2, 3)
    with pytest.raises(ConfigError, match="at least 8 pixels"):
        models.small_classifier((7, 20), 1, 3)
