"""Networks that were pickled whole, such as EDM's, read as data: their tensors are taken, their code never runs.

Such a file holds objects with their state, and in EDM's case the source code of their classes, which unpickling would run
(Karras et al. 2022, arXiv 2206.00364, published its networks so). Here every class that a file names is looked up in a
short list: PyTorch's modules and EDM's persistent classes become empty shells that keep their state, tensors are rebuilt
with `weights_only`, and any other name ends the reading.
"""

from __future__ import annotations

import collections
import io
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_NETWORKS = ("ema", "net", "model")  # the keys of a snapshot that hold a network, the averaged one first


class Refused(Exception):
    """A pickle asks for something that could run code; the argument is its name."""


class _Shell:
    """Stands for an object of any class: its state, and nothing that it could do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, Mapping) else {}


class _Fields(dict):
    """Stands for a dict with attributes."""

    def __setstate__(self, state: Any) -> None:
        pass


def _persistent(meta: Any) -> _Shell:
    """EDM's objects: {"type", "module_src", "class_name", "state"}; the source is left alone."""
    shell = _Shell()
    shell.__setstate__(meta.get("state") if isinstance(meta, Mapping) else None)
    return shell


def _storage(data: bytes) -> Any:
    import torch

    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refused(asked_for(error) or "more than a tensor") from error


def asked_for(error: pickle.UnpicklingError) -> str | None:
    """Return the name that PyTorch's reader of weights refused, if that is what the error is about."""
    found = re.search(r"GLOBAL (\S+) was not", str(error))
    return found[1] if found else None


def _known(module: str, name: str) -> Any:
    """What a name in a pickle stands for.

    Raises:
      Refused: it is not in the list.
    """
    import numpy as np
    import torch

    # Functions are wrapped anew each time: a pickle can set attributes of what it names, and these are nobody else's.
    listed: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": collections.OrderedDict,
        "builtins.set": set,
        "dnnlib.util.EasyDict": _Fields,
        "torch_utils.persistence._reconstruct_persistent_obj": lambda meta, *_: _persistent(meta),
        "torch._utils._rebuild_tensor_v2": lambda *parts: torch._utils._rebuild_tensor_v2(*parts),
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch.storage._load_from_bytes": lambda data: _storage(data),
        "torch.device": lambda *_: None,
        "numpy.dtype": np.dtype,
        "numpy.ndarray": np.ndarray,
    }
    full = f"{module}.{name}"
    if full in listed:
        return listed[full]
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("scalar", "_reconstruct"):
        return getattr(np._core.multiarray, name)
    if module.startswith("torch.nn.modules."):
        return _Shell
    raise Refused(full)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _known(module, name)


def read_modules(path: Path) -> dict[str, Any]:
    """Read the tensors of a pickled module, or of the averaged network of a training snapshot, by name.

    Returns:
      Tensors under the names that the module's state dict would have; empty if the file holds no module.

    Raises:
      Refused: the file asks for a class or a function that is not on the list.
      pickle.UnpicklingError, EOFError and others: it is no pickle, or a damaged one.
    """
    with open(path, "rb") as file:
        found = _Unpickler(file).load()
    if isinstance(found, Mapping):
        found = next((found[key] for key in _NETWORKS if isinstance(found.get(key), _Shell)), None)
    return dict(_tensors(found, "")) if isinstance(found, _Shell) else {}


def _tensors(module: _Shell, prefix: str) -> Iterator[tuple[str, Any]]:
    state = module.state
    passing = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        for name, tensor in (state.get(kind) or {}).items():
            if tensor is not None and name not in passing:
                yield prefix + name, tensor
    for name, inner in (state.get("_modules") or {}).items():
        if isinstance(inner, _Shell):
            yield from _tensors(inner, f"{prefix}{name}.")
