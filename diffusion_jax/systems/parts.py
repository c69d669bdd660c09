"""Parts of a system from its configuration: what follows from the system need not be said again in the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusion_jax.models  # noqa: F401  (registers the networks by name)
from diffusion_jax import models  # noqa: F401  (registers the networks)
from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process
from diffusion_jax.registry import build


def build_process(config: Any) -> Process:
    """A process from its fields; its "name" may be left out."""
    if isinstance(config, Mapping) or hasattr(config, "items"):
        config = {"name": "diffusion", **dict(config.items())}
    return build("process", config)


def build_network(config: Any, image_shape: tuple[int, int, int], cond_keys: set[str], **fields: Any) -> Any:
    """A network whose sizes, channels and conditioning are filled in from the system.

    Args:
      config: the network's configuration; what it says itself is left as it is, and then checked.
      image_shape: (H, W, C) of the system's images.
      cond_keys: what the system will feed as conditioning.
      fields: the system's values for the network's fields; a field that the network does not have is left out.

    Raises:
      ConfigError: the network takes another conditioning, or images of another shape, than the system feeds.
    """
    network = build("network", config, image_size=image_shape[0], in_channels=image_shape[2], **fields)
    if tuple(network.image_shape) != tuple(image_shape):
        raise ConfigError(
            f"the network is made for images of the shape {tuple(network.image_shape)}, but the system's are "
            f"{tuple(image_shape)}: leave image_size and in_channels out of the network's configuration"
        )
    taken = set(network.cond_spec)
    if taken != set(cond_keys):
        raise ConfigError(
            f"the system conditions its network on {sorted(cond_keys) or 'nothing'}, but the network takes "
            f"{sorted(taken) or 'nothing'}: check num_classes and the network's conditioning fields"
        )
    return network


def check_probability(system: str, field: str, value: float) -> None:
    """Raise a `ConfigError` unless 0 <= value <= 1."""
    if not 0 <= value <= 1:
        raise ConfigError(f"system {system!r}: {field} is a probability between 0 and 1, got {value}")
