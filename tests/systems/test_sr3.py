"""SR3: the published shapes, the low-resolution image, and one checkpoint on any list of betas."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax import systems
from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.inference import Cascade, Stage
from diffusion_jax.inference.requests import low_res_from
from diffusion_jax.systems import Sampling, SuperResolution, to_float
from diffusion_jax.training.recipes import load_recipe
from tests.tiny_systems import FunctionNetwork, make_super_resolution

RECIPE = Path(__file__).resolve().parent.parent.parent / "configs" / "sr3.py"
TRAINED = {"name": "linear", "num_steps": 2000, "beta_start": 2e-6, "beta_end": 0.02}
PROCESS = {"schedule": TRAINED, "prediction": "eps", "variance": "fixed_large", "noise_input": "sqrt_gamma"}


@pytest.mark.parametrize(
    ("shape", "millions", "published"), [("16_128", 574.8, 550), ("64_256", 633.5, 625), ("64_512", 618.2, 625),
                                         ("256_1024", 149.7, 150)]
)  # fmt: skip
def test_published_shapes_have_about_the_published_parameters(shape, millions, published):
    # Papers round, and say too little of the blocks: ours are those of ADM's blocks, counted independently.
    system = systems.from_config(load_recipe(f"{RECIPE}:{shape}"))
    low, high = map(int, shape.split("_"))
    assert system.low_res_shape == (low, low, 3) and system.image_shape == (high, high, 3)
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(system.init, jax.random.key(0))))
    print(f"SR3 {shape}: {count:,} parameters (published {published}M)")
    assert abs(count / 1e6 - millions) < 0.1
    assert system.network.module.skip_scale == pytest.approx(2**-0.5)


def _knowing(seen: list | None = None, size: int = 16, low: int = 4) -> SuperResolution:
    """A system whose network answers with the enlarged low-resolution image, whatever the schedule."""

    def function(x, noise, cond):
        if seen is not None:
            seen.append((noise, cond))
        clean = jax.image.resize(cond["low_res"], x.shape, "bicubic")
        alpha = (noise / 1000)[:, None, None, None]
        return (x - alpha * clean) / jnp.sqrt(1 - alpha**2)

    network = FunctionNetwork(function, (size, size, 1), {"low_res": None})
    return make_super_resolution(
        image_size=size, low_res_size=low, num_classes=0, network=network, process=PROCESS, aug_schedule=None,
        low_res_resize="bicubic", times="piecewise_uniform", cond_drop=0.0,
    )  # fmt: skip


def test_the_low_resolution_image_is_pils_bicubic_and_levels_are_continuous():
    seen: list = []
    system = _knowing(seen)
    images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 1), np.uint8)
    system.loss({}, {}, {"image": images}, jax.random.key(0))
    level, cond = seen[0]
    for image, low in zip(images, np.asarray(cond["low_res"]), strict=True):
        exact = Image.fromarray(image[..., 0] / np.float32(127.5) - 1).resize((4, 4), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(low[..., 0], exact, atol=1e-5)
    steps = 1000 * np.sqrt(np.cumprod(1 - np.linspace(1e-6, 1e-2, 2000)))
    distance = np.abs(np.asarray(level)[:, None] - steps).min(1) / np.abs(np.diff(steps)).max()
    assert (distance > 1e-3).mean() > 0.8  # between the steps, not on them


def test_any_list_of_betas_samples_from_one_checkpoint():
    system = _knowing()
    low_res = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 1), np.uint8)
    wanted = np.clip(jax.image.resize(to_float(low_res), (4, 16, 16, 1), "bicubic"), -1, 1)
    draw = lambda **fields: np.asarray(system.sample(  # noqa: E731
        {}, jax.random.key(0), {"low_res": low_res}, jnp.arange(4), Sampling(solver="ddpm", **fields)
    ))  # fmt: skip
    for steps, last in ((10, 0.98), (100, 0.3)):
        schedule = {"name": "quadratic", "num_steps": steps, "beta_start": 1e-6, "beta_end": last}
        np.testing.assert_allclose(draw(steps=steps, schedule=schedule), wanted, atol=0.02)
    # The list that it was trained on, given again, changes not a bit; another one does.
    own = {"name": "betas", "betas": np.linspace(1e-6, 1e-2, 2000).tolist()}
    np.testing.assert_array_equal(draw(steps=20), draw(steps=20, schedule=own))
    assert (draw(steps=20) != draw(steps=20, schedule={"name": "linear", "num_steps": 1000})).any()


def test_a_cascade_of_two_enlargements():
    first, second = _knowing(), _knowing(size=32, low=16)
    schedule = {"name": "quadratic", "num_steps": 10, "beta_start": 1e-6, "beta_end": 0.98}
    sampling = Sampling(solver="ddpm", steps=10, schedule=schedule)
    low_res = np.full((2, 4, 4, 1), 200, np.uint8)
    small, large = Cascade([Stage(first, sampling), Stage(second, sampling)]).sample(
        [{}, {}], jax.random.key(0), {"low_res": low_res}, jnp.arange(2)
    )
    assert small.shape == (2, 16, 16, 1) and large.shape == (2, 32, 32, 1)
    np.testing.assert_allclose(large, 200 / 127.5 - 1, atol=0.05)


def test_another_schedule_needs_a_network_that_is_told_levels():
    plain = make_super_resolution(aug_schedule=None, process={"schedule": TRAINED, "prediction": "eps"})
    with pytest.raises(ConfigError, match="told 'rescaled_timestep'"):
        plain.check_sampling(Sampling(schedule="linear"))


def test_an_image_that_is_smaller_than_the_low_resolution_size(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "small.png")
    assert low_res_from(str(tmp_path), (30, 30, 3))["low_res"].shape == (1, 30, 30, 3)
    with pytest.raises(DataError, match=r"small.png has 40x30 pixels, fewer than the low-resolution size 32x32"):
        low_res_from(str(tmp_path), (32, 32, 3))
