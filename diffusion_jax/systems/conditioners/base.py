"""The contract of a conditioner: all that belongs to one kind of conditioning, in one object."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data import Pipeline, numeric
from diffusion_jax.process import Process
from diffusion_jax.registry import check_fields
from diffusion_jax.rng import named
from diffusion_jax.spec import Spec
from diffusion_jax.systems.sampling import Sampling
from diffusion_jax.values import Fraction

Columns = dict[str, np.ndarray]
"""Entries of requests by name, [M, ...] each; example i has row i % M."""


class Flag(NamedTuple):
    """A command-line flag by which a person says what samples are to be conditioned on."""

    name: str
    help: str


class Known(NamedTuple):
    """Data of which a part is known.

    Attributes:
      values: floating [B, ...], in the model's space; only those outside of `made` count.
      made: bool, broadcasting against `values`: what the model is to make.
    """

    values: jax.Array
    made: jax.Array


class DataOf(Protocol):
    """The data of a run, as the conditioners of a command line see them."""

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the classes by label; empty where they have none."""

    def pipeline(self, split: str, **overrides: Any) -> Pipeline:
        """Return the pipeline of a split, fields of the run's `data` section replaced."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioner:
    """What a system is conditioned on. A kind of conditioning overrides what differs from these defaults.

    Args:
      drop: the probability of training without it (with its null), which classifier-free guidance needs. One number is drawn
        for each example: conditioners of equal probability are dropped together (Ho & Salimans 2022, arXiv 2207.12598).

    Class attributes:
      name: in the registry, under the kind "conditioner".
      keys: of the network's `cond` that it fills.
      columns: of requests that it reads.
      flags: by which a person asks for it.
      needs_data: whether a request that nobody spells out is taken from held-out data.
      takes_previous: whether a later stage of a cascade gets it from the stage before.
      keeps_known: whether `known` says which part of the data is known.
    """

    drop: Fraction = 0.0

    name: ClassVar[str] = "conditioner"
    keys: ClassVar[frozenset[str]] = frozenset()
    columns: ClassVar[tuple[str, ...]] = ()
    flags: ClassVar[tuple[Flag, ...]] = ()
    needs_data: ClassVar[bool] = False
    takes_previous: ClassVar[bool] = False
    keeps_known: ClassVar[bool] = False

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        check_fields(f"conditioner {self.name!r}", type(self), given)

    # The network -----------------------------------------------------------------------------------------------------

    def network_fields(self) -> dict[str, Any]:
        """Return the fields of the network that follow from it."""
        return {}

    # Training --------------------------------------------------------------------------------------------------------

    def prepare(self, batch: Mapping[str, Any], key: jax.Array, train: bool) -> Mapping[str, Any]:
        """Return the batch as the system is to see it, such as cropped."""
        return batch

    def training(self, batch: Mapping[str, Any], key: jax.Array, train: bool) -> dict[str, Any]:
        """Return the entries of `cond` for a training batch, before anything is dropped."""
        return self.sampling(self.request(batch), key, jnp.arange(len(batch["image"])), Sampling())

    def null(self, cond: Mapping[str, Any], request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the entries that say nothing, shaped like those in `cond`: zeros, unless a kind has others.

        Args:
          request: may say what guidance leads away from instead; None in training.
        """
        return {key: jax.tree.map(jnp.zeros_like, cond[key]) for key in self.keys if key in cond}

    def check_process(self, process: Process) -> None:
        """Raise a `ConfigError` if the conditioning does not work with a process."""

    def check_data(self, pipeline: Pipeline) -> None:
        """Raise a `ConfigError` if the data of a pipeline do not have what it takes."""

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Raise an error if values of a batch are out of range; those of traced arrays pass unseen."""

    # Sampling --------------------------------------------------------------------------------------------------------

    def sampling(self, request: Mapping[str, Any], key: jax.Array, indices: jax.Array, sampling: Sampling) -> dict[str, Any]:
        """Return the entries of `cond` for a request of N examples.

        Args:
          key: of the request; what is random of example i is a function of (key, indices[i]).
        """
        return {}

    def known(self, given: Mapping[str, Any]) -> Known | None:
        """Return which part of the data a batch or a request already knows; None for most."""
        return None

    def finish(self, x: jax.Array, request: Mapping[str, Any]) -> jax.Array:
        """Return finished samples in the model's space, corrected by what is known of them."""
        return x

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise a `ConfigError` if the settings of a sampling run ask for what it has not been trained for."""

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Raise a `ConfigError` if a request lacks it, or has it of a wrong shape or out of range."""

    # Requests --------------------------------------------------------------------------------------------------------

    @property
    def meaning(self) -> str | None:
        """Return what a request's values mean, on which stages of a cascade must agree; None where nothing can differ."""
        return None

    def request(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request for examples such as those of a batch; may be traced."""
        return {}

    def default(self) -> Columns:
        """Return the columns of requests where neither flags nor data give any."""
        return {}

    def data_overrides(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Return fields of the `data` section that its flags replace, where requests are taken from held-out data."""
        return {}

    def from_flags(self, given: Mapping[str, str], source: DataOf) -> tuple[Columns, int | None]:
        """Return what its flags ask for, and how many examples they suggest.

        Where the columns are empty, requests come from held-out data or the default. Columns of other conditioners may come
        along, such as the labels of a file of images; their own flags go before.

        Args:
          given: the values of its flags that were given, by the flags' names.

        Raises:
          ConfigError: a value that cannot be read; DataError: files that are not what they should be.
        """
        return {}, None


def gather(request: Callable[[Mapping[str, Any]], Mapping[str, Any]], pipeline: Pipeline, num: int | None = None) -> Columns:
    """Return the requests for the first examples of a pipeline, and their labels where it has any.

    Args:
      request: of a batch, such as a conditioner's; it is traced.
      num: at most so many examples; all if left out.
    """

    @jax.jit
    def columns(batch: dict[str, Any]) -> dict[str, Any]:
        return {name: batch[name] for name in ("label",) if name in batch} | dict(request(batch))

    parts = []
    for batch in pipeline.one_pass(256, limit=num):
        parts.append(jax.tree.map(np.asarray, columns(numeric(batch))))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def per_example(key: jax.Array, name: str, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw standard normal noise [N, *shape], that of example i from (key, name, indices[i]) alone."""

    keys = jax.vmap(lambda index: named(key, name, index))(indices)
    return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


def crop_like(batch: Mapping[str, Any], size: tuple[int, int], corner: jax.Array, cropped: tuple[int, int]) -> dict[str, Any]:
    """Crop every array of a batch that lies over the image's pixels, each example at its own corner.

    Args:
      size: (H, W) of the arrays to be cropped.
      corner: int [B, 2], top and left.
      cropped: (h, w) of the result.
    """

    def crop(x: Any) -> Any:
        if jnp.ndim(x) != 4 or tuple(x.shape[1:3]) != size:
            return x
        return jax.vmap(lambda one, at: jax.lax.dynamic_slice(one, (*at, 0), (*cropped, x.shape[-1])))(jnp.asarray(x), corner)

    return {name: crop(value) for name, value in batch.items()}


def spec_field() -> Any:
    """Declare the field `spec`, of the data, which the system fills in."""
    return dataclasses.field(default_factory=lambda: Spec.image(1, 1))
