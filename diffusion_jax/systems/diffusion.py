"""The system of nearly everything: one process, one network, any conditioners, a codec and an objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.data import Pipeline
from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoised, Denoiser
from diffusion_jax.registry import build, register
from diffusion_jax.rng import named
from diffusion_jax.spec import Spec
from diffusion_jax.systems.base import CHECKED, Batch, Losses, Params, Request, System, check_request
from diffusion_jax.systems.codecs import ChecksBatches
from diffusion_jax.systems.conditioners import Known
from diffusion_jax.systems.denoising import Example
from diffusion_jax.systems.parts import build_conditioners, build_named, build_network, build_process
from diffusion_jax.systems.sampling import Sampling, draw, guided


@register("system", "diffusion")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """One process and one network, conditioned on anything.

    Args:
      spec: of the data; programs take it from the recipe's `data`.
      process: a `Process` or its fields, at least {"schedule": ...}.
      network: a network or its configuration. Sizes, channels and conditioning fields are filled in.
      conditioners: {name: fields}, or a sequence of conditioners: "labels", "text", "low_res", "image", "vector", or your own.
      codec: a name, configuration or `Codec`: between the data and what the process works on.
      objective: a name, configuration or `Objective`: "denoising", "consistency" or "progressive_distillation".

    Raises:
      ConfigError: unknown names or fields, parts that do not fit together.

    Sources: Ho et al. 2020 (arXiv 2006.11239); guidance and condition dropout: Ho & Salimans 2022 (arXiv 2207.12598).
    """

    spec: Spec
    process: Any
    network: Any
    conditioners: Any = ()
    codec: Any = "pixels"
    objective: Any = "denoising"

    def __post_init__(self) -> None:
        settle = lambda field, value: object.__setattr__(self, field, value)  # noqa: E731
        settle("codec", build("codec", self.codec))
        settle("process", build_process(self.process))
        settle("conditioners", build_conditioners(self.conditioners, self.spec))
        settle("objective", build_named("objective", self.objective, "denoising"))
        fields: dict[str, Any] = {"out_channels": self.process.output_channels(self.model_spec.channels)}
        for conditioner in self.conditioners:
            own = conditioner.network_fields()
            fields |= own | {"vectors": {**fields.get("vectors", {}), **own.get("vectors", {})}}
            conditioner.check_process(self.process)
        keys = [key for conditioner in self.conditioners for key in conditioner.keys]
        settle("network", build_network(self.network, self.model_spec, keys, **fields))
        self.objective.check(self)

    @property
    def model_spec(self) -> Spec:
        """Return the spec of encoded data, which the network takes."""
        return self.codec.spec(self.spec)

    # Training ---------------------------------------------------------------------------------------------------------

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the names of the frozen parameters that training reads."""
        return (*self.codec.needs, *self.objective.needs)

    def check_frozen(self, name: str, system: System) -> None:
        """Raise a `ConfigError` if the run of another system cannot serve under a name of `needs`."""
        if name in self.objective.needs:
            self.objective.check_frozen(self, name, system)

    def start(self, frozen: Mapping[str, Any]) -> Params | None:
        """Return the first parameters of a system that learns from a teacher, the teacher's; None for fresh ones."""
        return self.objective.start(frozen)

    def init(self, key: jax.Array) -> Params:
        """Make fresh parameters: {"network": a nested dict of arrays}."""
        return {"network": self.network.init(key)}

    def project(self, params: Params) -> Params:
        """Return parameters as training keeps them after each step: see `Network.project`."""
        return {"network": self.network.project(params["network"])}

    def init_state(self) -> Any:
        """Make what the objective carries from step to step."""
        return self.objective.init_state(self)

    def check_steps(self, steps: int) -> None:
        """Warn where the objective plans another number of training steps."""
        self.objective.check_steps(steps)

    def losses(self, params: Params, state: Any, batch: Batch, key: jax.Array, *, step, frozen, train) -> Losses:
        """Compute the objective of a batch; see `System.losses`."""
        self._check_batch(batch)
        for conditioner in self.conditioners:
            batch = conditioner.prepare(batch, key, train)
        x0 = self.codec.encode(frozen, batch, named(key, "encode"))
        cond, null = self._training_cond(batch, key, train)
        example = Example(x0, cond, null, self._known(batch))
        given = {"step": step, "frozen": frozen, "train": train}
        return {"network": self.objective.loss(self, params["network"], state, example, key, **given)}

    def _training_cond(self, batch: Batch, key: jax.Array, train: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """The conditioning of a training batch, of which some is dropped at random, and its null."""
        cond: dict[str, Any] = {}
        null: dict[str, Any] = {}
        chance = jax.random.uniform(named(key, "condition dropout"), (len(batch["image"]),))
        for conditioner in self.conditioners:
            given = conditioner.training(batch, named(key, "conditioning"), train)
            without = conditioner.null(given)
            if train and conditioner.drop:
                dropped = chance < conditioner.drop
                pick = lambda a, b, dropped=dropped: jnp.where(dropped.reshape(-1, *(1,) * (a.ndim - 1)), a, b)  # noqa: E731
                given = jax.tree.map(pick, without, given)
            cond |= given
            null |= without if conditioner.drop else given
        return cond, null

    def _known(self, given: Mapping[str, Any]) -> Known | None:
        """What a batch or a request already knows of the data."""
        found = [known for conditioner in self.conditioners if (known := conditioner.known(given)) is not None]
        if len(found) > 1:
            raise ConfigError("two conditioners say which part of the data is known: leave one of them out")
        return found[0] if found else None

    def check(self, pipeline: Pipeline) -> None:
        """Raise a `ConfigError` if the pipeline's data are not what the system and its conditioners take."""
        if pipeline.spec != self.spec:
            raise ConfigError(
                f"the data are {pipeline.spec}, the system's {self.spec}: image_size and channels of both must agree"
            )
        for conditioner in self.conditioners:
            conditioner.check_data(pipeline)
        self._check_batch(next(pipeline.one_pass(min(len(pipeline), CHECKED))))
        if pipeline.augment and "augment" not in self.network.cond_spec:
            raise ConfigError(
                "data.augment is on, but the network is not conditioned on it, and would draw augmented images: set "
                "data.augment to 0, or add the conditioner 'vector' (system.conditioners.vector={})"
            )

    def _check_batch(self, batch: Batch) -> None:
        """Raise an error for values out of range, as of pixels or labels; those of traced batches pass unseen."""
        for part in (self.codec, *self.conditioners):
            if isinstance(part, ChecksBatches):
                part.check_batch(batch)

    # Sampling ---------------------------------------------------------------------------------------------------------

    def denoiser(self, params: Params, key: jax.Array, request: Request, indices: jax.Array, sampling: Sampling) -> Denoiser:
        """Bind the denoiser of a request: conditional, guided, thresholded; known data stay as they are."""
        cond: dict[str, Any] = {}
        null: dict[str, Any] = {}
        for conditioner in self.conditioners:
            given = conditioner.sampling(request, named(key, "conditioning"), indices, sampling)
            cond |= given
            null |= conditioner.null(given, request) if conditioner.drop else given
        process = sampling.rebind(self.process)
        bind = lambda given: process.bind(self.network.apply, params["network"], given)  # noqa: E731
        denoise = guided(bind, cond, null, sampling, self.codec.range)
        known = self._known(request)
        return denoise if known is None else _keeping(denoise, known)

    def sample(
        self,
        params: Params,
        key: jax.Array,
        request: Request,
        indices: jax.Array,
        sampling: Sampling,
        *,
        end: float = 0.0,
        guide: Callable[[Denoiser], Denoiser] | None = None,
    ) -> jax.Array:
        """Draw examples in the model's space.

        Args:
          request: what the conditioners read, [N, ...] each.
          indices: int [N]; example i is a function of (key, indices[i]) and its request alone.
          end: stop the chain at this time in [0, 1); 0 gives finished examples.
          guide: what else guides the denoiser, after guidance and thresholds, such as a classifier.

        Returns:
          float32 [N, ...], within the codec's range if the chain was not stopped; known data as they were given.

        Raises:
          ConfigError: see `check_sampling` and `check_request`.
        """
        self.check_sampling(sampling)
        check_request(self, request)
        denoise = self.denoiser(params, key, request, indices, sampling)
        denoise = denoise if guide is None else guide(denoise)
        x = draw(denoise, named(key, "solver"), indices, self.model_spec.shape, sampling, end)
        if end > 0:
            return x
        x = x if self.codec.range is None else jnp.clip(x, *self.codec.range)
        for conditioner in self.conditioners:
            x = conditioner.finish(x, request)
        known = self._known(request)
        return x if known is None else jnp.where(known.made, x, known.values)

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise a `ConfigError` if this system cannot be sampled so.

        Guidance needs a conditional model that was trained with condition dropout; grid and solver must suit the process.
        """
        sampling.check(self.process)
        for conditioner in self.conditioners:
            conditioner.check_sampling(sampling)
        if sampling.guidance == 1 or any(conditioner.drop for conditioner in self.conditioners):
            return
        if not self.conditioners:
            raise ConfigError(
                f"guidance {sampling.guidance:g} on an unconditional model: set guidance to 1, or train one with conditioners"
            )
        raise ConfigError(
            f"guidance {sampling.guidance:g} needs a model trained with condition dropout: set guidance to 1, or "
            "train with a conditioner's drop > 0"
        )


def _keeping(denoise: Denoiser, known: Known) -> Denoiser:
    """The denoiser that takes known data in place of theirs in x_t, and predicts them as they are."""

    def function(x_t: jax.Array, t: jax.Array) -> Denoised:
        x_t = jnp.where(known.made, x_t, known.values)
        denoised = denoise(x_t, t)
        return denoise.process.with_x0(denoised, jnp.where(known.made, denoised.x0, known.values), x_t, t)

    return denoise.replace(function)
