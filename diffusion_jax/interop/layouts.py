"""Layouts of published checkpoints by name: a file's tensors to a network's parameters, and back.

A layout is built by `registry.build("layout", {"name": ..., fields})`; a new one is a subclass of `Layout`.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.interop.convert import Table, WeightMap, convert, export
from diffusion_jax.interop.tensors import read_tensors


class Layout(abc.ABC):
    """Knows how a library names and stores the weights of a family of networks."""

    name: str

    @abc.abstractmethod
    def weight_maps(self, network: Any) -> Sequence[WeightMap] | Table:
        """Return a name for every parameter of a network; a list also serves the way back.

        Raises:
          ConfigError: a network that such checkpoints are not of, or fields that their weights were not trained with.
        """

    def renamed(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return the tensors of a file under the names that `weight_maps` gives, where files of different age differ."""
        return tensors

    def read(self, path: str | Path, network: Any) -> dict[str, Any]:
        """Read the parameters in a weight file.

        Args:
          path: see `tensors.read_tensors`.
          network: whose parameters they are.

        Returns:
          A nested dict of numpy arrays like `network.shapes()`; half precision becomes float32.

        Raises:
          DataError: a missing or damaged file, one that would run code, or weights of another network: tensors that are
            missing, left over or of another shape, the first few by name.
          ConfigError: see `weight_maps`; a format that cannot be read here.
        """
        maps = self.weight_maps(network)  # before a large file is read
        return convert(self.renamed(read_tensors(path)), maps, network.shapes(), source=str(path))

    def write(self, path: str | Path, params: Mapping[str, Any], network: Any) -> None:
        """Save parameters as a safetensors file in this layout, float32.

        Raises:
          ConfigError: another suffix than .safetensors, or a layout that is read only.
          DataError: parameters without a name, or a path that cannot be written.
        """
        from safetensors.numpy import save_file

        if Path(path).suffix != ".safetensors":
            raise ConfigError(f"{path}: weights are written as .safetensors, which every library reads")
        maps = self.weight_maps(network)
        if isinstance(maps, Table):
            raise ConfigError(f"layout {self.name!r} is read only; layouts that can be written list every tensor")
        tensors = export(params, maps)
        with _writing(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path, metadata={"format": "pt"})  # without it diffusers refuses the file


@contextlib.contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot write {path}: {error}") from error
