"""Parts of a system from its configuration: what follows from the system need not be said again in the recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import diffusion_jax.models  # noqa: F401  (registers the networks by name)
from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Process
from diffusion_jax.registry import build
from diffusion_jax.spec import Spec


def _is_mapping(config: Any) -> bool:
    return isinstance(config, Mapping) or hasattr(config, "items")


def build_named(kind: str, config: Any, usual: str) -> Any:
    """Build a part from its fields, whose "name" may be left out."""
    return build(kind, {"name": usual, **dict(config.items())} if _is_mapping(config) else config)


def build_process(config: Any) -> Process:
    """Build a process from its fields, of the kind "diffusion" where they say no other."""
    return build_named("process", config, "diffusion")


def build_conditioners(config: Any, spec: Spec) -> tuple[Any, ...]:
    """Build conditioners from {name: fields}, or from a sequence of them.

    Args:
      config: the keys are names in the registry, unless the fields have a "name" of their own; fields of None leave one out.
      spec: of the data.

    Raises:
      ConfigError: unknown names or fields; two conditioners that fill the same key of the network's `cond`.
    """
    if _is_mapping(config):
        config = [{"name": name, **dict(fields.items())} for name, fields in config.items() if fields is not None]
    built = tuple(build("conditioner", each, spec=spec) for each in config)
    keys = [key for conditioner in built for key in conditioner.keys]
    twice = [key for key in keys if keys.count(key) > 1]
    if twice:
        raise ConfigError(f"system.conditioners: two of them fill the conditioning {twice[0]!r}")
    return built


def build_network(config: Any, spec: Spec, cond_keys: Iterable[str], **fields: Any) -> Any:
    """Build a network whose sizes, channels and conditioning are filled in from the system.

    Args:
      config: the network's configuration; what it gives itself is left as it is, and then checked.
      spec: of the network's input.
      cond_keys: what the system will feed as conditioning.
      fields: the system's values for the network's fields; a field that the network does not have is left out.

    Raises:
      ConfigError: the network takes another conditioning, or images of another shape, than the system feeds.
    """
    size = spec.size[0] if len(set(spec.size)) == 1 else spec.size
    network = build("network", config, image_size=size, in_channels=spec.channels, **fields)
    if network.spec != spec:
        raise ConfigError(
            f"the network is made for {network.spec}, but the system's data are {spec}: leave image_size and in_channels out "
            "of the network's configuration"
        )
    taken, fed = set(network.cond_spec), set(cond_keys)
    if taken != fed:
        raise ConfigError(
            f"the system conditions its network on {sorted(fed) or 'nothing'}, but the network takes "
            f"{sorted(taken) or 'nothing'}: check system.conditioners and the network's conditioning fields"
        )
    return network
