"""Weight maps of the layers that image networks are made of, and what a U-Net consists of, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from diffusion_jax.errors import ConfigError
from diffusion_jax.interop.convert import Change, WeightMap, convolution, linear, same
from diffusion_jax.models.adm_unet import UNet
from diffusion_jax.models.network import Network

QkvOrder = Literal["legacy", "new"]
"""How the 3C outputs of a stacked projection are ordered: [head][q, k, v][d], or [q, k, v][head][d] as here."""


# The ways an array is stored, each with its inverse -------------------------------------------------------------------


def pointwise(tensor: np.ndarray) -> np.ndarray:
    """Return a 1x1 convolution in one or two dimensions, or a linear map: (out, in, ...) -> (in, out)."""
    return tensor.reshape(tensor.shape[:2]).T


def _as_conv1d(kernel: np.ndarray) -> np.ndarray:
    return kernel.T[..., None]


def _pointwise_2d(tensor: np.ndarray) -> np.ndarray:
    return pointwise(tensor)[None, None]


def _convolution_back(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(3, 2, 0, 1)


def norm(name: str, path: str) -> list[WeightMap]:
    """Return the maps of a scale and a bias."""
    return [WeightMap((f"{name}.weight",), (f"{path}/scale",)), WeightMap((f"{name}.bias",), (f"{path}/bias",))]


def dense(names: str | tuple[str, ...], path: str, rows: Change = same) -> list[WeightMap]:
    """Return the maps of the kernel and bias of a linear map; several names are stacked along the outputs.

    Args:
      rows: applied to the kernel (in, out), and its own inverse.
    """
    names = (names,) if isinstance(names, str) else names
    kernel = WeightMap(
        tuple(f"{name}.weight" for name in names),
        (f"{path}/kernel",),
        lambda tensor: rows(pointwise(tensor)),
        lambda kernel: linear(rows(kernel)),
    )
    return [kernel, WeightMap(tuple(f"{name}.bias" for name in names), (f"{path}/bias",))]


def conv(name: str, path: str) -> list[WeightMap]:
    """Return the maps of the kernel and bias of a convolution."""
    kernel = WeightMap((f"{name}.weight",), (f"{path}/kernel",), convolution, _convolution_back)
    return [kernel, WeightMap((f"{name}.bias",), (f"{path}/bias",))]


def conv_1x1(name: str, path: str) -> list[WeightMap]:
    """Return the maps of the kernel and bias of a 1x1 convolution that is one here too; a file may have it as a linear map."""
    kernel = WeightMap((f"{name}.weight",), (f"{path}/kernel",), _pointwise_2d, _convolution_back)
    return [kernel, WeightMap((f"{name}.bias",), (f"{path}/bias",))]


def dense_of_conv1d(name: str, path: str, there: Change = same, back: Change = same) -> list[WeightMap]:
    """Return the maps of the kernel and bias of a convolution of size 1 along a sequence that is a linear map here.

    Args:
      there: applied to the last axis of kernel (in, out) and bias (out) after the change of layout.
      back: its inverse.
    """
    kernel = WeightMap(
        (f"{name}.weight",),
        (f"{path}/kernel",),
        lambda tensor: there(pointwise(tensor)),
        lambda kernel: _as_conv1d(back(kernel)),
    )
    return [kernel, WeightMap((f"{name}.bias",), (f"{path}/bias",), there, back)]


def dense_of_conv2d(name: str, path: str) -> list[WeightMap]:
    """Return the maps of the kernel and bias of a 1x1 convolution that is a linear map here."""
    kernel = WeightMap((f"{name}.weight",), (f"{path}/kernel",), pointwise, lambda kernel: kernel.T[..., None, None])
    return [kernel, WeightMap((f"{name}.bias",), (f"{path}/bias",))]


def ungroup_heads(heads: int) -> tuple[Change, Change]:
    """Return the changes from [head][q, k, v][d] to [q, k, v][head][d] along the last axis, and back."""

    def change(tensor: np.ndarray, first: int, second: int) -> np.ndarray:
        grouped = tensor.reshape(*tensor.shape[:-1], first, second, -1)
        return grouped.swapaxes(-3, -2).reshape(tensor.shape)

    return lambda tensor: change(tensor, heads, 3), lambda tensor: change(tensor, 3, heads)


def interleave_heads(heads: int) -> tuple[Change, Change]:
    """Return the changes from [head][d][q, k, v] to [q, k, v][head][d] along the last axis, and back: EDM's order."""

    def side_by_side(stacked: np.ndarray) -> np.ndarray:
        grouped = stacked.reshape(*stacked.shape[:-1], heads, -1, 3)
        return np.moveaxis(grouped, -1, -3).reshape(stacked.shape)

    def interleaved(stacked: np.ndarray) -> np.ndarray:
        grouped = stacked.reshape(*stacked.shape[:-1], 3, heads, -1)
        return np.moveaxis(grouped, -3, -1).reshape(stacked.shape)

    return side_by_side, interleaved


# What a U-Net consists of ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Level:
    """One resolution of a `models.unet`.

    Attributes:
      index: from the largest feature maps on.
      blocks: residual blocks on the way down; one more on the way up.
      attends: whether attention follows each.
      heads: of attention at this width.
      last: whether it is the level of the smallest feature maps.
    """

    index: int
    blocks: int
    attends: bool
    heads: int
    last: bool


def unet_of(network: Network, layout: str) -> UNet:
    """Return the U-Net inside of a network.

    Raises:
      ConfigError: another kind of network, such as a classifier made of half a U-Net.
    """
    if type(network.module) is not UNet:
        raise ConfigError(
            f"layout {layout!r} is that of the U-Net family (network 'unet' and its presets), but the network is a "
            f"{type(network.module).__name__}: name another recipe or another --layout"
        )
    return network.module


def levels(module: Any) -> list[Level]:
    """Return the levels of a U-Net, from the largest feature maps on."""
    count = len(module.multipliers)
    widths = [round(module.channels * multiplier) for multiplier in module.multipliers]
    return [
        Level(
            index=level,
            blocks=module.num_res_blocks[level],
            attends=min(module.image_size) // 2**level in module.attention_resolutions,
            heads=width // module.head_channels if module.head_channels else module.num_heads,
            last=level == count - 1,
        )
        for level, width in enumerate(widths)
    ]


def check_fields(layout: str, module: Any, wanted: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` where a field without weights of its own would silently change what the weights mean."""
    for field, value in wanted.items():
        given = getattr(module, field)
        if given != value:
            raise ConfigError(
                f"weights of layout {layout!r} were trained with {field}={value!r}, but the recipe's network has {given!r}: "
                f"set --config.system.network.{field}={value}"
            )


def check_expressible(layout: str, network: Network, known: Collection[str], wanted: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` for what another library's network does not have, before weights are written for it.

    Args:
      known: the keys of conditioning that it takes.
      wanted: the only value that it has of each field.
    """
    for key in network.cond_spec:
        if key not in known:
            raise ConfigError(f"layout {layout!r} has no networks that take {key!r}: the run's weights cannot be written in it")
    for field, value in wanted.items():
        given = getattr(network.module, field)
        if given != value:
            raise ConfigError(
                f"layout {layout!r} has networks with {field}={value!r} only, and the run's has {given!r}: its weights would "
                "mean something else there, and are not written"
            )


def one_for_all(layout: str, field: str, values: Sequence[Any]) -> Any:
    """Return the value that all levels share.

    Raises:
      ConfigError: they differ.
    """
    if len(set(values)) > 1:
        raise ConfigError(f"layout {layout!r} has networks with one {field} for all levels only, and the run's has {values}")
    return values[0]


def square(layout: str, size: tuple[int, int]) -> int:
    """Return the side of square images.

    Raises:
      ConfigError: they are not square.
    """
    if size[0] != size[1]:
        raise ConfigError(f"layout {layout!r} has networks of square images only, and the run's are of {size[0]} x {size[1]}")
    return size[0]


LayerMaps = Callable[[str, str], list[WeightMap]]
"""(name there, path here) -> the weight maps of one layer."""


def block(layers: Mapping[str, tuple[LayerMaps, str]], name: str, path: str) -> list[WeightMap]:
    """Return the weight maps of a block of layers, given as name there -> (kind of layer, name here)."""
    return [entry for there, (kind, here) in layers.items() for entry in kind(f"{name}.{there}", f"{path}/{here}")]
