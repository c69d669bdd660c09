"""How a trained system is sampled: solver, time grid, guidance and thresholding, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from diffusion_jax.errors import ConfigError
from diffusion_jax.process import Denoiser, Process
from diffusion_jax.process.noise_levels import on_schedule
from diffusion_jax.process.process import gaussian
from diffusion_jax.registry import build, check_fields
from diffusion_jax.sampling import guidance, sample
from diffusion_jax.values import Count, Fraction, NonNegative, Percentile


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The settings of one sampling run.

    Args:
      solver: name or configuration of a solver, such as "ddim" or {"name": "heun", "s_churn": 40}; docs/sampling.md lists
        them.
      grid: name or configuration of a time grid; the number of steps is filled in from `steps`.
      steps: of the solver.
      guidance: classifier-free guidance scale s: null + s * (conditional - null); 1 is none, and costs nothing.
      guidance_rescale: phi in [0, 1]: how far the guided prediction's standard deviation is pulled back to the
        conditional one's (Lin et al. 2024, arXiv 2305.08891).
      guidance_rescale_of: what is pulled: "output", of the network, as published; or "x0", whatever the network predicts.
      guidance_weight: the other published way to write the scale, w in (1 + w) * conditional - w * null: s = 1 + w, so 0 is
        none (Ho & Salimans 2022, arXiv 2207.12598). It becomes `guidance`; only one of the two may be given.
      guidance_interval: (low, high) in units of sigma / alpha: the noise levels that are guided; None is all
        (Kynkaanniemi et al. 2024, arXiv 2404.07724).
      threshold: of the predicted x0: "none" or None, "static" clips to the codec's range, "dynamic" clips to a percentile and
        rescales (Saharia et al. 2022, section 2.3, arXiv 2205.11487). Applied after guidance.
      percentile: of the distance from the middle of the range within one sample, for "dynamic"; in hundredths, 1 to 100.
      weights: "ema" or "raw": the parameters that programs load.
      classifier: the directory of a run of the system "noisy_classifier", whose gradient programs follow; of the first
        stage alone in a cascade (Dhariwal & Nichol 2021, section 4, arXiv 2105.05233).
      classifier_scale: of that gradient; 0 is none. It is no classifier-free scale: published are 0.5 to 10.
      aug_level: super-resolution: the noise level in [0, 1] put on the low-resolution image.
      truncated: in a cascade: feed this stage the previous stage's chain stopped at `aug_level`, instead of its
        finished image with noise added (Ho et al. 2021, section 4, arXiv 2106.15282).
      quantize: in a cascade: round the previous stage's finished image to 8 bits, as stored training images are.
      schedule: name or configuration of a noise schedule to sample with instead of the trained one, for networks that are
        fed the noise level itself (Saharia et al. 2021, section 2.4, arXiv 2104.07636).

    Raises:
      ConfigError: a value out of range or an unknown name.
    """

    solver: Any = "ddim"
    grid: Any = "uniform"
    steps: Count = 50
    guidance: float = 1.0
    guidance_weight: float | None = None
    guidance_rescale: Fraction = 0.0
    guidance_rescale_of: Literal["output", "x0"] = "output"
    guidance_interval: tuple[NonNegative, NonNegative] | None = None
    threshold: Literal["none", "static", "dynamic"] | None = "static"
    percentile: Percentile = 99.5
    weights: str = "ema"
    classifier: str | None = None
    classifier_scale: NonNegative = 1.0
    aug_level: Fraction = 0.0
    truncated: bool = False
    quantize: bool = False
    schedule: Any = None

    def __post_init__(self) -> None:
        check_fields("sampling", type(self), {field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        if self.threshold is None:
            object.__setattr__(self, "threshold", "none")
        if self.guidance_weight is not None:
            if self.guidance != 1:
                raise ConfigError(
                    f"sampling: guidance {self.guidance:g} and guidance_weight {self.guidance_weight:g} say the same thing "
                    "(guidance = 1 + guidance_weight): give one of them"
                )
            object.__setattr__(self, "guidance", 1 + self.guidance_weight)
            object.__setattr__(self, "guidance_weight", None)
        if self.guidance_interval is not None and not self.guidance_interval[0] < self.guidance_interval[1]:
            low, high = self.guidance_interval
            raise ConfigError(f"sampling: guidance_interval must be two levels, low < high, got {low} and {high}")
        build("solver", self.solver)  # unknown names and fields fail here, before expensive work
        self.build_grid()

    @classmethod
    def from_config(cls, config: Any = None, **overrides: Any) -> Sampling:
        """Make the settings of a mapping of fields (or a `Sampling`); overrides that are not None win.

        >>> Sampling.from_config({"steps": 10}, guidance=2.0).guidance
        2.0
        """
        if isinstance(config, Sampling):
            given = {field.name: getattr(config, field.name) for field in dataclasses.fields(cls)}
        else:
            given = {key: _plain(value) for key, value in (config or {}).items()}
        overrides = {key: value for key, value in overrides.items() if value is not None}
        for name, other in (("guidance", "guidance_weight"), ("guidance_weight", "guidance")):
            if name in overrides and other not in overrides:
                given.pop(other, None)  # the same thing in the other convention
        given.update(overrides)
        check_fields("sampling", cls, given)
        return cls(**given)

    def build_grid(self) -> Callable[..., Any]:
        """Build the time grid: process -> times [steps + 1], descending."""
        return build("grid", self.grid, num_steps=self.steps)

    def check(self, process: Process) -> None:
        """Raise a `ConfigError` if the grid does not suit the process, or the solver cannot serve it on that grid.

        Guidance and another schedule are of Gaussian processes alone.
        """
        for name, off in (("guidance", 1.0), ("classifier", None), ("schedule", None)):
            if getattr(self, name) != off:
                gaussian(process, f"sampling.{name}", f"{name} {off}")
        process = self.rebind(process)
        build("solver", self.solver).check(process, self.build_grid()(process))

    def rebind(self, process: Process) -> Process:
        """Return the process to sample from: the trained one, or the same on this run's own schedule.

        Raises:
          ConfigError: the network is fed steps of its own chain, which mean other levels in another; or another family.
        """
        return process if self.schedule is None else on_schedule(process, self.schedule)

    def settings(self) -> dict[str, Any]:
        """Return the fields as plain JSON data, to be recorded with the samples."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    """Configuration values as dicts, lists and scalars."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value


def guided(
    bind: Callable[[Mapping[str, Any]], Denoiser],
    cond: Mapping[str, Any],
    null: Mapping[str, Any],
    sampling: Sampling,
    data_range: tuple[float, float] | None,
) -> Denoiser:
    """Bind the denoiser that a run samples from: conditional, guided, thresholded.

    Args:
      bind: conditioning -> `Denoiser`.
      cond: the conditioning.
      null: the conditioning with what guidance acts on dropped; unused at scale 1.
      data_range: of encoded data, to which thresholds refer; None rules them out.
    """
    denoise = bind(cond)
    if sampling.guidance != 1:
        plain = denoise
        denoise = guidance.classifier_free(plain, bind(null), sampling.guidance)
        if sampling.guidance_rescale:
            denoise = guidance.rescale(denoise, plain, sampling.guidance_rescale, sampling.guidance_rescale_of)
        if sampling.guidance_interval is not None:
            denoise = guidance.interval(denoise, plain, *sampling.guidance_interval)
    if sampling.threshold == "none" or data_range is None:
        return denoise
    if sampling.threshold == "static":
        return guidance.static_threshold(denoise, data_range)
    return guidance.dynamic_threshold(denoise, sampling.percentile, data_range)


def draw(
    denoise: Denoiser, key: jax.Array, indices: jax.Array, shape: tuple[int, ...], sampling: Sampling, end: float
) -> jax.Array:
    """Run the solver from noise at t = 1 down to `end`; float32 [N, *shape].

    Args:
      indices: int32 [N]: sample i's noise is a function of (key, indices[i]) alone.
      end: 0 for finished images; a time in (0, 1) stops the chain there, noise included.
    """
    batch = (indices.shape[0], *shape)
    solver = build("solver", sampling.solver)
    return sample(denoise, solver, sampling.build_grid(), key, batch, indices=indices, end=end)
