"""Weights of other libraries by table: each named tensor goes to its place in the parameters, and none is left over."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import DataError

Change = Callable[[np.ndarray], np.ndarray]
_SHOWN = 3  # names of each kind in an error


def same(tensor: np.ndarray) -> np.ndarray:
    """Norms, biases, embeddings: stored alike."""
    return tensor


def linear(tensor: np.ndarray) -> np.ndarray:
    """(out, in) -> (in, out)."""
    return tensor.T


def convolution(tensor: np.ndarray) -> np.ndarray:
    """(out, in, height, width) -> (height, width, in, out)."""
    return tensor.transpose(2, 3, 1, 0)


def linear_of_image(height: int, width: int) -> Change:
    """A linear map of a flattened image: (out, channels * height * width) -> (height * width * channels, out)."""

    def change(tensor: np.ndarray) -> np.ndarray:
        out = tensor.shape[0]
        return tensor.reshape(out, -1, height, width).transpose(2, 3, 1, 0).reshape(-1, out)

    return change


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""Where tensors of some names go.

    Attributes:
      pattern: a regular expression for a tensor's whole name, such as r"blocks\.(\d+)\.norm1\.weight".
      path: the parameter's path with "/" between its parts and the pattern's groups as \1, such as r"block\1/norm1/scale";
        dots that come with a group become "/". Several paths share the tensor in equal parts along its last axis, after
        the change, as for stacked queries, keys and values.
      change: from the tensor's layout to the parameter's.
    """

    pattern: str
    path: str | tuple[str, ...]
    change: Change = same


@dataclasses.dataclass(frozen=True)
class Table:
    """The rules of one family of weight files.

    Attributes:
      rules: the first whose pattern matches a name is taken. Rules for several naming schemes may stand side by side.
      ignored: regular expressions of names that have no place here, such as counters and heads that are not used.
    """

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()


def convert(
    tensors: Mapping[str, np.ndarray], table: Table, shapes: Mapping[str, Any], source: str = "weights"
) -> dict[str, Any]:
    """The parameters of a network from named tensors, each of which must be used and each parameter of which be found.

    Args:
      tensors: by name, in the layout of their library.
      table: see `Table`.
      shapes: the network's parameters as a nested dict of shapes and dtypes, as from `eval_shape`.
      source: what an error calls the tensors, such as the file's path.

    Returns:
      A nested dict like `shapes` of numpy arrays, in its dtypes.

    Raises:
      DataError: names that no rule knows, parameters that no tensor gives or that several give, tensors of another shape.
    """
    wanted = {_path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]}
    found: dict[str, np.ndarray] = {}
    unknown, twice, misshapen = [], [], []
    for name, tensor in tensors.items():
        if any(re.fullmatch(pattern, name) for pattern in table.ignored):
            continue
        placed = _placed(name, tensor, table.rules)
        if not placed or not placed.keys() <= wanted.keys():
            unknown.append(name)
            continue
        for path, part in placed.items():
            if path in found:
                twice.append(f"{name} (for {path})")
            elif part is None or part.shape != wanted[path].shape:
                misshapen.append(f"{name} {tensor.shape} (for {path} {wanted[path].shape})")
            found[path] = part
    missing = [path for path in wanted if path not in found]
    problems = {"unknown": unknown, "given twice": twice, "of another shape": misshapen, "missing": missing}
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in problems.items() if names)
        raise DataError(f"{source}: these are not the weights of this network: {listed}")
    return _nested({path: np.ascontiguousarray(found[path], dtype=leaf.dtype) for path, leaf in wanted.items()})


def _placed(name: str, tensor: np.ndarray, rules: Sequence[Rule]) -> dict[str, Any]:
    """The parts of a tensor by path; empty without a rule, and None for a tensor whose axes do not suit its rule."""
    for rule in rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            templates = (rule.path,) if isinstance(rule.path, str) else rule.path
            paths = [match.expand(template).replace(".", "/") for template in templates]
            try:
                changed = rule.change(np.asarray(tensor))
                parts = np.split(changed, len(paths), axis=-1) if len(paths) > 1 else [changed]
            except (ValueError, IndexError):
                parts = [None] * len(paths)
            return dict(zip(paths, parts, strict=True))
    return {}


def _path_name(path: Sequence[Any]) -> str:
    return "/".join(str(part.key) for part in path)


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path as a nested dict."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
