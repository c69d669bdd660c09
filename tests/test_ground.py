"""The ground: parts by name, keys by name."""

from __future__ import annotations

import subprocess
import sys

import jax
import numpy as np
import pytest

from diffusion_jax import registry
from diffusion_jax.errors import ConfigError
from diffusion_jax.rng import named


@registry.register("fruit", "apple")
def apple(size: int, colour: str = "red"):
    return ("apple", size, colour)


@registry.register("fruit", "apricot")
def apricot():
    return "apricot"


def test_build_by_name_mapping_and_object():
    assert registry.build("fruit", {"name": "apple", "size": 3}) == ("apple", 3, "red")
    assert registry.build("fruit", "apricot") == "apricot"
    built = object()
    assert registry.build("fruit", built) is built


def test_defaults_fill_only_what_the_part_takes():
    assert registry.build("fruit", {"name": "apple"}, size=4, weight=9) == ("apple", 4, "red")
    assert registry.build("fruit", {"name": "apple", "size": 1}, size=4) == ("apple", 1, "red")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("aple", "did you mean 'apple'"),
        ("zebra", "known: apple, apricot"),
        ({"name": "apple", "size": 1, "color": "x"}, "did you mean 'colour'"),
        ({"name": "apple"}, "needs the field 'size'"),
        ({"size": 1}, "needs a 'name'"),
    ],
)
def test_mistakes_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        registry.build("fruit", config)


def test_a_name_is_registered_once():
    with pytest.raises(ConfigError, match="registered twice"):
        registry.register("fruit", "apple")(lambda: None)


def test_named_keys_are_stable_and_distinct():
    key = jax.random.key(0)
    drawn = {
        names: tuple(np.asarray(jax.random.key_data(named(key, *names))))
        for names in [("noise",), ("time",), ("noise", 0), ("noise", 1), ("time", 0)]
    }
    assert len(set(drawn.values())) == len(drawn)
    # A known value (the CRC-32 of "noise"): changing how names are folded would change every seed of every run.
    expected = jax.random.key_data(jax.random.fold_in(key, 0x7DA99629))
    assert drawn["noise",] == tuple(np.asarray(expected))


def test_random_numbers_do_not_depend_on_the_sharding():
    """Sample i's noise is the same on any number of devices: what every restart and resize relies on."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    draw = lambda: jax.random.normal(jax.random.key(7), (16, 8))  # noqa: E731
    whole, sharded = jax.jit(draw)(), jax.jit(draw, out_shardings=rows)()
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(whole, sharded)


def test_the_names_that_one_begins_with():
    """They are there, and a program that needs none of them pays for none."""
    code = """if True:
        import sys, diffusion_jax
        assert not {"jax", "numpy"} & set(sys.modules), "importing the package is to cost nothing"
        from diffusion_jax import Process, Run, grids, guidance, models, solvers
        assert Run.open and solvers.dpmpp_2m() and grids.karras and guidance.classifier_free and models.unet
        assert Process("cosine", prediction="v").prediction and set(diffusion_jax.__all__) <= set(dir(diffusion_jax))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
