"""What trainers and programs know of a system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax

from diffusion_jax.registry import build
from diffusion_jax.systems.sampling import Sampling

Batch = Mapping[str, Any]
"""From a data pipeline: "image" uint8 [B, H, W, C] and, where there are classes, "label" int32 [B]."""

Request = Mapping[str, Any]
"""What is asked of a sampler, [N, ...] each: "label", and for super-resolution "low_res"."""


class System(Protocol):
    """What is trained and sampled together. Trainers and programs know nothing else.

    A system may offer more. `advance(params, state) -> state` is called once a step, before its gradient. A system whose
    `needs_teacher` is true has the fields `teacher`, `teacher_weights` and `teacher_step`, `check_teacher(system)`, and
    `start(frozen) -> params`; its `loss` takes the keyword `frozen`: {"teacher": parameters}, or None in evaluation.
    `report(state) -> numbers by name` is logged beside the losses. A system whose `draws_images` is false is trained and
    evaluated, but not sampled.
    """

    image_shape: tuple[int, int, int]
    num_classes: int

    def init(self, key: jax.Array) -> Any:
        """Parameters: a nested dict of arrays."""

    def init_state(self) -> Any:
        """What training carries from step to step beside the parameters; a small pytree, often empty."""

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array, *, train: bool = True) -> tuple:
        """(loss, (state, {"per_example": [B], "log_snr": [B]})) of a batch."""

    def request(self, batch: Batch) -> dict[str, Any]:
        """The conditioning with which to sample what is like this batch."""

    def sample(self, params: Any, key: jax.Array, request: Request, indices: jax.Array, sampling: Sampling) -> jax.Array:
        """Images float32 [N, H, W, C] in [-1, 1]; can be jitted in all but `sampling`."""

    def check(self, pipeline: Any) -> None:
        """Raise a `ConfigError` if the data do not fit."""

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise a `ConfigError` if this system cannot be sampled so."""

    def check_request(self, request: Request) -> None:
        """Raise a `ConfigError` if conditioning is missing, of a wrong shape or out of range."""


def from_config(config: Any) -> System:
    """The system of a whole run's configuration; image size and channels come from its `data` part.

    Raises:
      ConfigError: unknown names or fields, parts that do not fit together.
    """
    data = config.get("data", {})
    return build("system", config["system"], image_size=data.get("image_size"), channels=data.get("channels", 3))
