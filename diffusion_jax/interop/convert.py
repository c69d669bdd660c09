"""Weights of other libraries by table: each named tensor goes to its place in the parameters, and none is left over.

A table either knows names by patterns (`Table` of `Rule`), or it lists every tensor of one network (`WeightMap`). A list also
serves the way back, `export`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import DataError

Change = Callable[[np.ndarray], np.ndarray]
_SHOWN = 3  # names of each kind in an error


def same(tensor: np.ndarray) -> np.ndarray:
    """Return norms, biases and embeddings as they are: they are stored alike."""
    return tensor


def linear(tensor: np.ndarray) -> np.ndarray:
    """Transpose the kernel of a linear map: (out, in) -> (in, out)."""
    return tensor.T


def convolution(tensor: np.ndarray) -> np.ndarray:
    """Transpose the kernel of a convolution: (out, in, height, width) -> (height, width, in, out)."""
    return tensor.transpose(2, 3, 1, 0)


def linear_of_image(height: int, width: int) -> Change:
    """Return the change (out, channels * height * width) -> (height * width * channels, out), of a flattened image's kernel."""

    def change(tensor: np.ndarray) -> np.ndarray:
        out = tensor.shape[0]
        return tensor.reshape(out, -1, height, width).transpose(2, 3, 1, 0).reshape(-1, out)

    return change


@dataclasses.dataclass(frozen=True)
class WeightMap:
    """Says which tensors of a file hold which parameters of a network, and in which layout.

    Attributes:
      names: of tensors; several are joined along the last axis, each after its change.
      paths: of parameters, with "/" between parts; several share the tensor in equal parts along its last axis, after
        the change, as for stacked queries, keys and values.
      change: from a tensor's layout to the parameter's.
      back: the inverse of `change`, for `export`.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    change: Change = same
    back: Change = same


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""Says where tensors of some names go.

    Attributes:
      pattern: a regular expression for a tensor's whole name, such as r"blocks\.(\d+)\.norm1\.weight".
      path: the parameter's path with "/" between its parts and the pattern's groups as \1, such as r"block\1/norm1/scale";
        dots that come with a group become "/". Several paths share the tensor, see `WeightMap`.
      change: from the tensor's layout to the parameter's.
    """

    pattern: str
    path: str | tuple[str, ...]
    change: Change = same


@dataclasses.dataclass(frozen=True)
class Table:
    """Holds the rules of one family of weight files.

    Attributes:
      rules: the first whose pattern matches a name is taken. Rules for several naming schemes may stand side by side.
      ignored: regular expressions of names that have no place here, such as counters and heads that are not used.
    """

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()

    def weight_maps(self, names: Iterable[str]) -> list[WeightMap]:
        """Return a map for each name that a rule knows, and one without a path for each that is ignored."""
        found = []
        for name in names:
            if any(re.fullmatch(pattern, name) for pattern in self.ignored):
                found.append(WeightMap((name,), ()))
                continue
            for rule in self.rules:
                if match := re.fullmatch(rule.pattern, name):
                    templates = (rule.path,) if isinstance(rule.path, str) else rule.path
                    paths = tuple(match.expand(template).replace(".", "/") for template in templates)
                    found.append(WeightMap((name,), paths, rule.change))
                    break
        return found


def convert(
    tensors: Mapping[str, np.ndarray], table: Table | Sequence[WeightMap], shapes: Mapping[str, Any], source: str = "weights"
) -> dict[str, Any]:
    """Make the parameters of a network of named tensors: each tensor must be used, and each parameter be found.

    Args:
      tensors: by name, in the layout of their library.
      table: see `Table`; or every tensor of the network with its place.
      shapes: the network's parameters as a nested dict of shapes and dtypes, as from `eval_shape`.
      source: what an error calls the tensors, such as the file's path.

    Returns:
      A nested dict like `shapes` of numpy arrays, in its dtypes.

    Raises:
      DataError: names that no rule knows, parameters that no tensor gives or that several give, tensors of another shape,
        or with numbers that are not finite as the parameters' dtype.
    """
    wanted = leaves_by_path(shapes)
    maps = table.weight_maps(tensors) if isinstance(table, Table) else table
    found: dict[str, np.ndarray] = {}
    used: set[str] = set()
    absent: dict[str, str] = {}  # tensors that a list names, by the parameter that lacks them
    twice, misshapen = [], []
    for entry in maps:
        if not wanted.keys() >= set(entry.paths):
            continue
        used.update(entry.names)
        lacking = [name for name in entry.names if name not in tensors]
        if lacking:
            absent |= {path: f"{', '.join(lacking)} (for {path})" for path in entry.paths}
            continue
        for path, part in _parts(entry, tensors).items():
            named = " + ".join(f"{name} {tensors[name].shape}" for name in entry.names)
            if path in found:
                twice.append(f"{', '.join(entry.names)} (for {path})")
            elif part is None or part.shape != wanted[path].shape:
                misshapen.append(f"{named} (for {path} {wanted[path].shape})")
            found[path] = part
    unknown = [name for name in tensors if name not in used]
    lost = [*absent.values(), *(path for path in wanted if path not in found and path not in absent)]
    problems = {"unknown": unknown, "given twice": twice, "of another shape": misshapen, "missing": lost}
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in problems.items() if names)
        raise DataError(f"{source}: these are not the weights of this network: {listed}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        leaves = {path: np.array(found[path], leaf.dtype, order="C") for path, leaf in wanted.items()}
    _check_finite(leaves, source)
    return _nested(leaves)


def export(params: Mapping[str, Any], maps: Sequence[WeightMap]) -> dict[str, np.ndarray]:
    """Return named tensors in the layout of another library: the inverse of `convert`.

    Args:
      params: nested dict of arrays.
      maps: with a place for every parameter.

    Raises:
      DataError: parameters that the layout has no name for, or that are not finite.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in leaves_by_path(params).items()}
    tensors = {}
    used = {path for entry in maps for path in entry.paths}
    if unnamed := [path for path in leaves if path not in used]:
        raise DataError(f"the layout has no names for these parameters: {_some(unnamed)}")
    _check_finite(leaves, "the run")
    for entry in maps:
        if not leaves.keys() >= set(entry.paths):
            continue
        whole = (
            np.concatenate([leaves[path] for path in entry.paths], axis=-1) if len(entry.paths) > 1 else leaves[entry.paths[0]]
        )
        parts = np.split(whole, len(entry.names), axis=-1) if len(entry.names) > 1 else [whole]
        tensors |= {name: np.array(entry.back(part), order="C") for name, part in zip(entry.names, parts, strict=True)}
    return tensors


def _check_finite(leaves: Mapping[str, np.ndarray], source: str) -> None:
    bad = [path for path, leaf in leaves.items() if leaf.dtype.kind not in "biu" and not np.isfinite(leaf).all()]
    if bad:
        raise DataError(
            f"{source}: {_some(bad)} {'has' if len(bad) == 1 else 'have'} numbers that are not finite: these are weights of a "
            "training that diverged, or damaged"
        )


def _parts(entry: WeightMap, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of a weight map by path; None for tensors whose axes do not suit its change."""
    try:
        changed = [entry.change(np.asarray(tensors[name])) for name in entry.names]
        whole = np.concatenate(changed, axis=-1) if len(changed) > 1 else changed[0]
        parts = np.split(whole, len(entry.paths), axis=-1) if len(entry.paths) > 1 else [whole] * len(entry.paths)
    except (ValueError, IndexError):
        parts = [None] * len(entry.paths)
    return dict(zip(entry.paths, parts, strict=True))


def leaves_by_path(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of a nested dict by their path, with "/" between its parts."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(str(part.key) for part in path): leaf for path, leaf in flat}


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
