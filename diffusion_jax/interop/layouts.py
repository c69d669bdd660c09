"""Layouts of published checkpoints by name: a file's tensors to a network's parameters, and back.

A layout is built by `registry.build("layout", {"name": ..., fields})`; a new one is a subclass of `Layout`.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.files import read_json, replacing, user_path, write_json
from diffusion_jax.interop.convert import Table, WeightMap, convert, export
from diffusion_jax.interop.tensors import read_tensors


class Constant(NamedTuple):
    """An array that a file holds with the weights, and that is no parameter here.

    Attributes:
      value: what the network computes with.
      field: of the network, which decides on it.
    """

    value: np.ndarray
    field: str


class Layout(abc.ABC):
    """Knows how a library names and stores the weights of a family of networks."""

    name: str
    weight_file = "model.safetensors"
    """What the file is called where a folder is named to write into."""

    @abc.abstractmethod
    def weight_maps(self, network: Any) -> Sequence[WeightMap] | Table:
        """Return a name for every parameter of a network; a list also serves the way back.

        Raises:
          ConfigError: a network that such checkpoints are not of, or fields that their weights were not trained with.
        """

    def renamed(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return the tensors of a file under the names that `weight_maps` gives, where files of different age differ."""
        return tensors

    def constants(self, network: Any) -> Mapping[str, Constant]:
        """Return what a file holds beside the parameters: written with them, and compared where they are read."""
        return {}

    def fields_in(self, path: str | Path) -> dict[str, Any]:
        """Return those fields of the network, as JSON data, whose values a file holds: its constants."""
        return {}

    def config(self, network: Any) -> dict[str, Any] | None:
        """Return what the library builds the network from, as JSON data for config.json; None where there is no such thing.

        Raises:
          ConfigError: a field that the library does not have, by name: its network would compute something else.
        """
        return None

    def read(self, path: str | Path, network: Any) -> dict[str, Any]:
        """Read the parameters in a weight file.

        Args:
          path: see `tensors.read_tensors`.
          network: whose parameters they are.

        Returns:
          A nested dict of numpy arrays like `network.shapes()`; half precision becomes float32.

        Raises:
          DataError: a missing or damaged file, one that would run code, or weights of another network: tensors that are
            missing, left over, of another shape or not finite, the first few by name.
          ConfigError: see `weight_maps`; constants that are not the network's; a format that cannot be read here.
        """
        maps, constants = self.weight_maps(network), self.constants(network)  # before a large file is read
        tensors = dict(self.renamed(read_tensors(path)))
        for name, (value, field) in constants.items():
            found = tensors.pop(name, None)
            if found is not None and not np.array_equal(found, value.astype(found.dtype)):
                raise ConfigError(f"{path}: {name} is not the network's, which follows from its field {field}: set it alike")
        return convert(tensors, maps, network.shapes(), source=str(path))

    def write(self, path: str | Path, params: Mapping[str, Any], network: Any) -> Path:
        """Save parameters as a safetensors file in this layout, float32, with config.json beside it.

        Args:
          path: of the file, or a folder for it; neither it nor another config.json may be there.

        Returns:
          The file's path.

        Raises:
          ConfigError: another suffix than .safetensors, a layout that is read only, or a network that the library does not
            have, see `config`.
          DataError: parameters without a name or not finite, a path that is taken or cannot be written.
        """
        from safetensors.numpy import save_file

        path, maps, config = self.check(path, network)
        tensors = export(params, maps) | {name: constant.value for name, constant in self.constants(network).items()}
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                save_file(tensors, temporary, metadata={"format": "pt"})  # without it diffusers refuses the file
            if config is not None:
                write_json(path.parent / "config.json", config)
        return path

    def check(self, path: str | Path, network: Any) -> tuple[Path, Sequence[WeightMap], dict[str, Any] | None]:
        """Return (the file's path, where its tensors come from, config.json) of what `write` would write; see there."""
        path = user_path(path)
        if not path.suffix:
            path = path / self.weight_file
        if path.suffix != ".safetensors":
            raise ConfigError(f"{path}: weights are written as .safetensors, which every library reads")
        maps = self.weight_maps(network)
        if isinstance(maps, Table):
            raise ConfigError(f"layout {self.name!r} is read only; layouts that can be written list every tensor")
        config = self.config(network)
        _check_free(path, config)
        return path, maps, config


def _check_free(path: Path, config: Mapping[str, Any] | None) -> None:
    """Raise a `DataError` if a file would be overwritten; the same config.json may be there."""
    beside = path.parent / "config.json"
    if path.exists():
        raise DataError(f"{path} is there already: name another file, or remove it")
    if config is not None and beside.exists() and read_json(beside, "the configuration of weights") != config:
        raise DataError(f"{beside} is of another network: name a file in a folder of its own")


@contextlib.contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot write {path}: {error}") from error
