"""Recipes from files, and overrides from the command line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.data.sources.shapes import CLASSES
from diffusion_jax.errors import ConfigError, nearest
from diffusion_jax.files import user_path
from diffusion_jax.training import imports
from diffusion_jax.training.config import apply_overrides, complete, plain, read


def load_recipe(spec: str, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the complete configuration of "FILE.py", "FILE.py:VARIANT", or the config.json of a run; see `config.complete`.

    Paths in its section `imports` are relative to the recipe.

    Args:
      overrides: dotted fields to replace, such as {"training.steps": 100}.

    Raises:
      ConfigError: no such file, no get_config in it, an unknown variant or field.
    """
    name, _, variant = spec.partition(":")
    path = find_recipe(name)
    if path.name == "config.json":
        return complete(apply_overrides(complete(read(path.parent)), overrides))
    module = imports.load_file(path)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"the recipe {path} has no function get_config(variant)")
    if variant and not inspect.signature(module.get_config).parameters:
        raise ConfigError(f"the recipe {path} has no variants, but {variant!r} was given")
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except ValueError as error:  # how recipes refuse a variant
        raise ConfigError(str(error)) from error
    config = plain(config)
    listed = imports.entries(config.get("imports", []), path.parent)
    config["imports"] = listed + [entry for entry in imports.of_recipe(module) if entry not in listed]
    return complete(apply_overrides(complete(config), overrides))


def find_recipe(name: str) -> Path:
    """Return where a recipe lies: a path, or the name of one of this library's own, such as "mnist.py".

    Raises:
      ConfigError: there is no such recipe.
    """
    package = Path(__file__).resolve().parent.parent
    homes = [package / "configs", package.parent / "configs"]  # installed, and in a checkout
    for path in (user_path(name), *(place / name for home in homes for place in (home, home.parent))):
        if path.is_file():
            return path
    own = sorted(path.name for home in homes for path in home.glob("*.py"))
    raise ConfigError(
        f"no recipe {name!r}{nearest(Path(name).name, own)}: --config takes FILE.py or FILE.py:VARIANT, such as "
        f"configs/mnist.py:base, or the name of one of the library's own ({', '.join(own)})"
    )


def split_overrides(argv: Sequence[str], prefix: str = "--config.") -> tuple[list[str], dict[str, Any]]:
    """Take "--config.a.b=value" (or "--config.a.b value") out of the arguments.

    Values are read as Python literals, and as strings where they are none.

    >>> split_overrides(["prog", "--config.data.flip=True", "--config.system.process.prediction=v", "--workdir=x"])
    (['prog', '--workdir=x'], {'data.flip': True, 'system.process.prediction': 'v'})
    """
    rest: list[str] = []
    overrides: dict[str, Any] = {}
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith(prefix):
            rest.append(argument)
            continue
        path, found, text = argument.removeprefix(prefix).partition("=")
        if not found:
            text = next(arguments, None)
            if text is None:
                raise ConfigError(f"{argument} needs a value: {argument}=VALUE")
        overrides[path] = literal(text)
    return rest, overrides


def literal(text: str) -> Any:
    """Read a Python literal, or else the text itself; true, false and none are read in any case.

    >>> literal("(1, 2)"), literal("2e-4"), literal("cosine"), literal("false")
    ((1, 2), 0.0002, 'cosine', False)
    """
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def split_variant(variant: str, known: Sequence[str], file: str) -> tuple[str, bool]:
    """Split a recipe's variant into (its name, whether `tiny` is in it); the first known name is the default.

    >>> split_variant("sr,tiny", ("base", "sr"), "configs/mnist.py")
    ('sr', True)
    >>> split_variant("tiny", ("base", "sr"), "configs/mnist.py")
    ('base', True)

    Raises:
      ConfigError: a variant that is not known.
    """
    names = [name.strip() for name in variant.split(",")]
    chosen = [name for name in names if name != "tiny"] or [known[0]]
    if len(chosen) > 1 or chosen[0] not in known:
        hint = nearest(chosen[0], known)
        raise ConfigError(f"{file} has the variants {', '.join(known)}, and each with ',tiny', not {variant!r}{hint}")
    return chosen[0], "tiny" in names


def small_unet(channels: int, multipliers: Sequence[float], groups: int, **fields: Any) -> dict[str, Any]:
    """Return the configuration of a U-Net that two CPU cores train: one block a level, and no attention but the middle's."""
    shape = {"channels": channels, "multipliers": tuple(multipliers), "groups": groups}
    return {"name": "unet", **shape, "num_res_blocks": 1, "attention_resolutions": (), **fields}


def shrink_to_shapes(config: ConfigDict, size: int = 16, low_res_size: int | None = None, **network: Any) -> None:
    """Make of a recipe, in place, one that trains for seconds on a CPU: drawn shapes, four steps, a network to suit.

    Args:
      size: of the images, in pixels.
      low_res_size: of the low-resolution images, where the system has them.
      network: fields of the network that are replaced.
    """
    config.system.network.update(network)
    conditioners = config.system.get("conditioners", {})
    for classes in (config.system, conditioners.get("labels", {})):  # a classifier has its own
        if "num_classes" in classes:
            classes.num_classes = len(CLASSES)
    if "low_res" in conditioners:
        conditioners.low_res.size = low_res_size
    config.data.source = ConfigDict({"name": "shapes", "size": size, "num_examples": 64})
    config.data.update(image_size=size, batch_size=8)
    config.training.update(steps=4)
    config.sampling.steps = 2
