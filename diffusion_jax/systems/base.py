"""What trainers and programs know of a system: a few required members, and abilities, a protocol each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax

from diffusion_jax.data import Pipeline
from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser, Process
from diffusion_jax.process.types import Data, PerExample
from diffusion_jax.registry import build
from diffusion_jax.spec import Spec
from diffusion_jax.systems.codecs import Codec
from diffusion_jax.systems.conditioners import Conditioner
from diffusion_jax.systems.sampling import Sampling

Batch = Mapping[str, Any]
"""From a data pipeline: "image" uint8 [B, H, W, C] and, where the data have them, "label" int32 [B], "text" and more."""

Request = Mapping[str, Any]
"""What a sampler is to condition on, [N, ...] each, by the names that conditioners own: "label", "low_res", "text", ..."""

Params = Mapping[str, Any]
"""Parameters by group, a nested dict of arrays each: {"network": ...} where one network is trained."""

CHECKED = 32
"""How many examples of a pipeline a system looks at the values of, before training starts."""

Losses = dict[str, tuple[jax.Array, dict[str, Any]]]
"""By group: the value that is differentiated for that group alone, and what else is known of it; see `System.losses`."""


class System(Protocol):
    """What is trained. These members are required; everything else is an ability, such as `Samples`.

    Attributes:
      spec: of the data that it is trained on.
    """

    spec: Spec

    def init(self, key: jax.Array) -> Params:
        """Make fresh parameters by group."""

    def init_state(self) -> Any:
        """Make what training carries from step to step beside the parameters: a small pytree, {} for most."""

    def losses(
        self,
        params: Params,
        state: Any,
        batch: Batch,
        key: jax.Array,
        *,
        step: jax.Array,
        frozen: Mapping[str, Any],
        train: bool,
    ) -> Losses:
        """Compute the losses of a batch, one for each group of parameters.

        Args:
          state: as `init_state` makes it.
          step: finished steps, int32 scalar.
          frozen: parameters by group of other runs, by name: {"teacher": {"network": ...}}; {} where there are none.
          train: False drops neither conditions nor units, as a held-out loss should.

        Returns:
          For each group (value, aux). The entries of aux are optional: "state", the new state; "per_example" [B] and "log_snr"
          [B], logged by noise level; "metrics", scalars by name, logged as means.
        """

    def check(self, pipeline: Pipeline) -> None:
        """Raise a `ConfigError` if the data of a pipeline do not fit."""


@runtime_checkable
class Samples(Protocol):
    """The ability to draw examples.

    Attributes:
      spec: of what is drawn, once decoded.
      conditioners: what a request consists of.
      codec: between the model's space and the data's.
    """

    spec: Spec
    conditioners: Sequence[Conditioner]
    codec: Codec

    def sample(
        self, params: Params, key: jax.Array, request: Request, indices: jax.Array, sampling: Sampling, **more: Any
    ) -> jax.Array:
        """Draw floating [N, ...] in the model's space; can be jitted in all but `sampling`.

        Args:
          indices: int [N]; example i is a function of (key, indices[i]) and its request alone.
        """

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise a `ConfigError` if this system cannot be sampled so."""


@runtime_checkable
class Denoises(Samples, Protocol):
    """The ability to denoise: what guidance, cascades, editing and likelihoods need. `sample` takes `end` and `guide` too.

    Attributes:
      process: whose x_t is denoised.
    """

    process: Process

    def denoiser(self, params: Params, key: jax.Array, request: Request, indices: jax.Array, sampling: Sampling) -> Denoiser:
        """Bind the guided and thresholded denoiser of a request."""


@runtime_checkable
class Classifies(Protocol):
    """The ability to classify noisy images, whose gradient guides another system.

    Attributes:
      labels: the conditioner of the classes.
    """

    labels: Conditioner

    def log_prob(self, params: Params, label: jax.Array, process: Process) -> Callable[[Data, PerExample], PerExample]:
        """Bind (x_t, t) -> log p(label | x_t) [B], for the x_t and times of another process."""


@runtime_checkable
class Distils(Protocol):
    """The ability to learn from other runs.

    Attributes:
      needs: their names in `frozen`, such as ("teacher",); () where training needs none.
    """

    needs: Sequence[str]

    def check_frozen(self, name: str, system: System) -> None:
        """Raise a `ConfigError` if the run of another system cannot serve under this name."""

    def start(self, frozen: Mapping[str, Any]) -> Params | None:
        """Make the first parameters out of the frozen ones; None where training starts from fresh ones."""


@runtime_checkable
class Projects(Protocol):
    """The ability to hold parameters to a constraint."""

    def project(self, params: Params) -> Params:
        """Return the parameters as training keeps them after every update."""


@runtime_checkable
class Reports(Protocol):
    """The ability to say something of the training state."""

    def report(self, state: Any) -> dict[str, float]:
        """Return numbers for the log, by name."""


@runtime_checkable
class PlansSteps(Protocol):
    """The ability to depend on the length of training."""

    def check_steps(self, steps: int) -> None:
        """Warn where the planned number of training steps is not this one."""


_LACKS = {
    Samples: "draws nothing, so it cannot be sampled",
    Denoises: "has no denoiser, which this needs",
    Classifies: "is no classifier: train one with a recipe such as configs/adm.py:classifier64",
}
_Ability = TypeVar("_Ability")


def ability(system: Any, protocol: type[_Ability], whose: str = "the run") -> _Ability:
    """Return the system, if it has an ability.

    Args:
      whose: whom the message names, such as the run's directory.

    Raises:
      ConfigError: it has not, in one line.
    """
    if isinstance(system, protocol):
        return system
    lack = _LACKS.get(protocol, f"lacks the ability {protocol.__name__}")
    hint = "; guide another run with it by --classifier=WORKDIR" if isinstance(system, Classifies) else ""
    raise ConfigError(f"{whose} is of the system {type(system).__name__}, which {lack}{hint}")


def request_of(system: Samples, batch: Batch) -> dict[str, Any]:
    """Return the request with which to sample what is like a batch: the union of the conditioners' requests."""
    return {name: value for conditioner in system.conditioners for name, value in conditioner.request(batch).items()}


def check_request(system: Samples, request: Request) -> None:
    """Raise a `ConfigError` if conditioning is missing, of a wrong shape or out of range."""
    for conditioner in system.conditioners:
        conditioner.check_request(request)


def from_config(config: Any) -> System:
    """Build the system of a whole run's configuration, of the name "diffusion" where it says no other.

    The spec comes from the configuration's `data` part.

    Raises:
      ConfigError: unknown names or fields, parts that do not fit together.
    """
    data = config.get("data", {})
    spec = Spec.image(data["image_size"], data.get("channels", 3)) if data.get("image_size") is not None else None
    if spec is None:
        raise ConfigError("data.image_size is missing: give pixels, as 32 or (height, width)")
    given = config["system"]
    return build("system", {"name": "diffusion", **dict(given.items())} if hasattr(given, "items") else given, spec=spec)
