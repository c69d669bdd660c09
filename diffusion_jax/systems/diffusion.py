"""What all image systems share: one process, one network, labels with condition dropout, guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser, Process, losses
from diffusion_jax.registry import build
from diffusion_jax.rng import named
from diffusion_jax.systems import labels
from diffusion_jax.systems.base import Batch, Request
from diffusion_jax.systems.images import to_float
from diffusion_jax.systems.parts import build_network, build_process, check_probability
from diffusion_jax.systems.sampling import Sampling, draw, guided


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Images of one size from one process and one network; the systems say what conditions the network.

    Args:
      image_size: H = W in pixels; from the data where the recipe does not say.
      channels: of the images.
      process: a `Process` or its fields, at least {"schedule": ...}.
      network: a network or its configuration. Sizes, channels and conditioning fields are filled in.
      num_classes: 0 is unconditional.
      cond_drop: the probability of training with the null label; 0 rules classifier-free guidance out.
      weighting: of the loss over noise levels.
      times: the time sampler of training.
      distance: "l2", "l1" or "l2_sum"; see `losses.DISTANCES`.
      vlb_weight: of the variational bound in the loss, where the variance is learned.

    Raises:
      ConfigError: unknown names or fields, parts that do not fit together.
    """

    image_size: int
    channels: int = 3
    process: Any
    network: Any
    num_classes: int = 0
    cond_drop: float = 0.1
    weighting: Any = "simple"
    times: Any = "uniform"
    distance: str = "l2"
    vlb_weight: float = 0.0

    name = "diffusion"
    needs_data = False  # whether requests have more than labels, so that programs take them from data

    def __post_init__(self) -> None:
        check_probability(self.name, "cond_drop", self.cond_drop)
        if self.num_classes < 0:
            raise ConfigError(f"system {self.name!r}: num_classes must not be negative, got {self.num_classes}")
        process = build_process(self.process)
        losses.check(process, self.weighting, self.distance, self.vlb_weight)
        build("weighting", self.weighting)
        network = build_network(
            self.network, self.image_shape, self._cond_keys(), **self._network_fields(process), **self._extra_fields()
        )
        object.__setattr__(self, "process", process)
        object.__setattr__(self, "network", network)
        object.__setattr__(self, "times", build("times", self.times))

    # What the systems say ---------------------------------------------------------------------------------------------

    def _extra_fields(self) -> dict[str, Any]:
        """The network's fields that the system's own conditioning needs."""
        return {}

    def _extra_keys(self) -> set[str]:
        """The system's own conditioning keys."""
        return set()

    def _extra_cond(self, x0: jax.Array, key: jax.Array, train: bool) -> dict[str, jax.Array]:
        """The system's own conditioning of a training batch."""
        return {}

    def _sampling_cond(self, request: Request, key: jax.Array, indices: jax.Array, sampling: Sampling) -> dict:
        """The system's own conditioning of a request."""
        return {}

    # Shared -----------------------------------------------------------------------------------------------------------

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.image_size, self.image_size, self.channels

    def _network_fields(self, process: Process) -> dict[str, Any]:
        return {
            "out_channels": process.output_channels(self.channels),
            "num_classes": self.num_classes,
            "null_class": self.num_classes > 0 and self.cond_drop > 0,
        }

    def _cond_keys(self) -> set[str]:
        return ({"label"} if self.num_classes else set()) | self._extra_keys()

    def init(self, key: jax.Array) -> Any:
        """Parameters: a nested dict of arrays."""
        return self.network.init(key)

    def project(self, params: Any) -> Any:
        """Parameters as training keeps them after each step: see `Network.project`."""
        return self.network.project(params)

    def init_state(self) -> Any:
        """The time sampler's history; empty for most."""
        return self.times.init_state(self.process)

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array, *, train: bool = True) -> tuple:
        """The denoising loss of a batch.

        Args:
          batch: "image" uint8 [B, H, W, C], and "label" int32 [B] where there are classes.
          train: False drops neither conditions nor units, as a held-out loss should.

        Returns:
          (loss, (state, {"per_example": unweighted losses [B], "log_snr": [B]})).
        """
        x0 = to_float(batch["image"])
        cond = self._training_cond(x0, batch, key, train)
        return self._denoising(self.network.apply, params, state, x0, cond, key, train)

    def _denoising(
        self, apply: Any, params: Any, state: Any, x0: jax.Array, cond: dict[str, Any], key: jax.Array, train: bool, **more: Any
    ) -> tuple:
        """The denoising loss of clean images and their conditioning, by this system's settings; `loss` says what it returns."""
        loss, output = losses.denoising(
            self.process,
            apply,
            params,
            x0,
            named(key, "denoising"),
            cond=cond,
            weighting=self.weighting,
            times=self.times,
            distance=self.distance,
            vlb_weight=self.vlb_weight,
            sampler_state=state,
            apply_kwargs={"train": train, "rngs": {"dropout": named(key, "dropout")}},
            **more,
        )
        return loss, (output.sampler_state, {"per_example": output.per_example, "log_snr": output.log_snr})

    def _training_cond(self, x0: jax.Array, batch: Batch, key: jax.Array, train: bool) -> dict[str, jax.Array]:
        """The conditioning of a training batch, with labels dropped at random."""
        cond = self._extra_cond(x0, named(key, "conditioning"), train)
        if self.num_classes:
            cond["label"] = jnp.asarray(batch["label"])
            if train and self.cond_drop:
                cond["label"] = labels.drop(cond["label"], self.num_classes, self.cond_drop, named(key, "condition dropout"))
        return cond

    def request(self, batch: Batch) -> dict[str, Any]:
        """The labels of the batch, where there are classes."""
        return {"label": batch["label"]} if self.num_classes else {}

    def denoiser(self, params: Any, key: jax.Array, request: Request, indices: jax.Array, sampling: Sampling) -> Denoiser:
        """The guided denoiser of a request."""
        cond = self._sampling_cond(request, named(key, "conditioning"), indices, sampling)
        null = dict(cond)
        if self.num_classes:
            cond["label"] = jnp.asarray(request["label"], jnp.int32)
            negative = request.get("negative_label", self.num_classes)
            null["label"] = jnp.broadcast_to(jnp.asarray(negative, jnp.int32), cond["label"].shape)
        process = sampling.rebind(self.process)
        return guided(lambda given: process.bind(self.network.apply, params, given), cond, null, sampling)

    def sample(
        self,
        params: Any,
        key: jax.Array,
        request: Request,
        indices: jax.Array,
        sampling: Sampling,
        *,
        end: float = 0.0,
        guide: Callable[[Denoiser], Denoiser] | None = None,
    ) -> jax.Array:
        """Draw images.

        Args:
          params: of the network.
          key: of the run.
          request: "label" int [N] where there are classes, and perhaps "negative_label" int [N], from which guidance leads
            away instead of from no label; more where the system says so.
          indices: int [N]; image i is a function of (key, indices[i]) and its request alone.
          end: stop the chain at this time in [0, 1); 0 gives images.
          guide: what else guides the denoiser, after guidance and thresholds, such as a classifier.

        Returns:
          float32 [N, H, W, C], in [-1, 1] if the chain was not stopped.

        Raises:
          ConfigError: see `check_sampling` and `check_request`.
        """
        self.check_sampling(sampling)
        self.check_request(request)
        denoise = self.denoiser(params, key, request, indices, sampling)
        denoise = denoise if guide is None else guide(denoise)
        x = draw(denoise, named(key, "solver"), indices, self.image_shape, sampling, end)
        return x if end > 0 else jnp.clip(x, -1, 1)

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise a `ConfigError` if this system cannot be sampled so.

        Guidance needs a conditional model that was trained with condition dropout; grid and solver must suit the process.
        """
        sampling.check(self.process)
        if sampling.guidance == 1:
            return
        if not self.num_classes:
            raise ConfigError(
                f"guidance {sampling.guidance:g} on an unconditional model: set guidance to 1, or train one with num_classes"
            )
        if not self.cond_drop:
            raise ConfigError(
                f"guidance {sampling.guidance:g} needs a model trained with condition dropout: set guidance to 1, or "
                "train with cond_drop > 0"
            )

    def check_request(self, request: Request) -> None:
        """Raise a `ConfigError` if conditioning is missing, of a wrong shape or out of range."""
        self.check_labels(request)

    def check_labels(self, request: Request) -> None:
        """Labels must be there where the model has classes, and be in range."""
        if not self.num_classes:
            return
        if "label" not in request:
            raise ConfigError(f"the model has {self.num_classes} classes: a request needs 'label' (has: {sorted(request)})")
        for name in ("label", "negative_label"):
            if name in request:
                labels.check(request[name], self.num_classes)

    def check(self, pipeline: Any) -> None:
        """Raise a `ConfigError` if the pipeline's images or classes are not the system's.

        Images are augmented where, and only where, the network is told ("augment" of the systems that have it).
        """
        if pipeline.spec.shape != self.image_shape:
            raise ConfigError(
                f"the data have images of the shape {pipeline.spec.shape}, the system {self.image_shape}: "
                "image_size and channels of system and data must agree"
            )
        if self.num_classes and pipeline.num_classes != self.num_classes:
            raise ConfigError(f"the data have {pipeline.num_classes} classes, the system num_classes={self.num_classes}")
        given, told = bool(getattr(pipeline, "augment", 0)), getattr(self, "augment", False)
        if told and not given:
            raise ConfigError("system.augment needs augmented images: set data.augment to a probability above 0")
        if given and not told:
            fix = (
                "system.augment to True" if hasattr(self, "augment") else f"data.augment to 0: {self.name!r} has no such field"
            )
            raise ConfigError(f"data.augment is on, but the network is not told, and would draw augmented images: set {fix}")
