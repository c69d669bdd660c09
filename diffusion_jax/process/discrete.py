"""Diffusion of bits and categories: each element is kept, or replaced by noise, on its own; all of it in closed form.

    q(x_t | x0) = keep(t) [x_t = x0] + (1 - keep(t)) noise(x_t)

The noise is uniform over the K values, or all of it one more state, the mask. From s to t the same holds with
keep(t) / keep(s), so that posteriors and reverse steps are sums over states for any s < t, and no K x K matrix is ever
multiplied. Binomial diffusion, whose bits decay to a fair coin, is the uniform noise of K = 2.

Sources: Sohl-Dickstein et al. 2015, appendix B.1 (arXiv 1503.03585); D3PM: Austin et al. 2021 (arXiv 2107.03006).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.process.likelihood import BitsPerDim
from diffusion_jax.process.losses import LossOutput, Times
from diffusion_jax.process.process import log1mexp
from diffusion_jax.process.schedules import Schedule
from diffusion_jax.process.tables import floating
from diffusion_jax.process.types import Denoiser, PerExample, Time, expand
from diffusion_jax.registry import build, part
from diffusion_jax.rng import named
from diffusion_jax.values import Range

Tokens = Int[Array, "batch *shape"]
"""A batch of categories: data are 0 to K - 1, the mask is K."""

Replaced = Bool[Array, "batch *shape"]

LogValues = Float[Array, "batch *shape values"]
"""Logarithms of probabilities of the K values of x0."""

LogStates = Float[Array, "batch *shape states"]
"""Logarithms of probabilities of all states of x_t: the K values, and the mask where there is one."""

NEVER = -1e30
"""The logarithm of 0, finite so that gradients are."""


@part("process", "categorical")
@dataclasses.dataclass(frozen=True)
class Categorical:
    """Categories that are replaced by noise, and what a network predicts of them: logits of the clean ones.

    Args:
      num_values: K; clean data are int32 from 0 to K - 1.
      noise: "uniform" over the K values, or "absorbing": the mask, a state of its own with the number K.
      schedule: a `Schedule`, its name or its configuration. keep(t) is alpha, where alpha + sigma = 1 ("straight_line", by
        default: as much is lost in each step), or alpha^2, where the schedule preserves variance.

    Raises:
      ConfigError: unknown names, fewer than 2 values, a schedule that explodes variance, or one that does not mask everything.

    >>> Categorical(27, "absorbing").num_states
    28
    """

    num_values: Annotated[int, Range(2)]
    noise: Literal["uniform", "absorbing"] = "uniform"
    schedule: Any = "straight_line"

    def __post_init__(self) -> None:
        schedule: Schedule = build("schedule", self.schedule)
        if schedule.family == "subvp":
            raise ConfigError("process 'categorical': the schedule 'subvp_sde' is of Gaussian noise: use 'vp_sde'")
        if schedule.family == "ve":
            raise ConfigError(
                f"process 'categorical': the schedule {schedule.name!r} keeps all of the signal (alpha is 1 throughout): use "
                "one that loses it, such as 'straight_line' or 'cosine_continuous'"
            )
        if self.noise == "absorbing" and np.isfinite(schedule.log_snr(np.float64(1.0))):
            raise ConfigError(
                f"process 'categorical': absorbing noise must end in masks alone, but the schedule {schedule.name!r} keeps "
                "some data: use 'straight_line', 'jsd' or 'zero_terminal_snr'"
            )
        object.__setattr__(self, "schedule", schedule)

    @property
    def num_steps(self) -> int | None:
        """T of a discrete schedule, or None."""
        return self.schedule.num_steps

    @property
    def num_states(self) -> int:
        """The number of states of x_t: K, and one more where there is a mask."""
        return self.num_values + (self.noise == "absorbing")

    # Forward ----------------------------------------------------------------------------------------------------------

    def log_snr(self, t: Time) -> jax.Array:
        """The schedule's log(alpha^2 / sigma^2), shaped like t, by which losses are logged."""
        return self.schedule.log_snr(jnp.asarray(t))

    def log_keep(self, t: Time) -> tuple[jax.Array, jax.Array]:
        """Return log keep(t) and log(1 - keep(t)), shaped like t: of the probability that an element was not replaced."""
        odds = self.log_snr(floating(t)) * (0.5 if self.schedule.family == "linear" else 1.0)
        return jnp.maximum(jax.nn.log_sigmoid(odds), NEVER), jnp.maximum(jax.nn.log_sigmoid(-odds), NEVER)

    def _step(self, s: Time, t: Time) -> tuple[jax.Array, jax.Array]:
        """log p and log(1 - p) of p = keep(t) / keep(s), from 1 - p = (1 - keep(t)) (1 - odds(t) / odds(s))."""
        drop = self.schedule.drop(floating(s), floating(t)) * (0.5 if self.schedule.family == "linear" else 1.0)
        lost = jnp.maximum(self.log_keep(t)[1] + log1mexp(-drop), NEVER)
        return jnp.maximum(log1mexp(lost), NEVER), lost

    @property
    def _log_noise(self) -> jax.Array:
        """The noise's logarithm, [S]."""
        if self.noise == "uniform":
            return jnp.full(self.num_values, -math.log(self.num_values))
        return jnp.full(self.num_states, NEVER).at[-1].set(0.0)

    def prior(self, key: jax.Array, shape: tuple[int, ...], t: float = 1.0) -> jax.Array:
        """Draw what sampling starts from: int32 of the shape given, uniform values or masks, whatever t."""
        if self.noise == "absorbing":
            return jnp.full(shape, self.num_values, jnp.int32)
        return jax.random.randint(key, shape, 0, self.num_values, jnp.int32)

    def corrupt(self, key: jax.Array, x0: Tokens, t: Time) -> tuple[Tokens, Replaced]:
        """Draw x_t of q(x_t | x0); also return which elements were replaced, be it by the value they had."""
        lost = jax.random.uniform(named(key, "where"), x0.shape) < jnp.exp(expand(self.log_keep(t)[1], x0))
        return jnp.where(lost, self.prior(named(key, "noise"), x0.shape), x0), lost

    def forward(self, x0: Tokens, t: Time) -> LogStates:
        """Return log q(x_t | x0) of all states of x_t, [B, ..., S]."""
        keep, lose = (expand(value, x0)[..., None] for value in self.log_keep(t))
        return jnp.logaddexp(_log_one_hot(x0, self.num_states) + keep, self._log_noise + lose)

    # Reverse ----------------------------------------------------------------------------------------------------------

    def evidence(self, x_t: Tokens, t: Time) -> LogValues:
        """Return log q(x_t | x0) of all values of x0, [B, ..., K]."""
        keep, lose = (expand(value, x_t)[..., None] for value in self.log_keep(t))
        return self._likelihood(x_t, keep, lose)[..., : self.num_values]

    def _likelihood(self, x_t: Tokens, keep: jax.Array, lose: jax.Array) -> LogStates:
        """The logarithm of reaching x_t from each of all states, [B, ..., S], under one transition."""
        noise = self._log_noise[x_t][..., None] + lose
        return jnp.maximum(jnp.logaddexp(_log_one_hot(x_t, self.num_states) + keep, noise), NEVER)

    def reverse(self, log_probs: LogValues, x_t: Tokens, s: Time, t: Time) -> LogStates:
        """Return log p(x_s | x_t) = log sum over x0 of q(x_s | x_t, x0) p(x0 | x_t), for any s < t: [B, ..., S].

        Args:
          log_probs: log p(x0 | x_t), [B, ..., K]; values that cannot have become x_t do not count.
        """
        evidence = self.evidence(x_t, t)
        share = jnp.where(evidence > 0.5 * NEVER, log_probs - evidence, NEVER)
        total = jax.nn.logsumexp(share, axis=-1, keepdims=True)
        share = jnp.pad(share, [(0, 0)] * x_t.ndim + [(0, self.num_states - self.num_values)], constant_values=NEVER)
        keep_s, lose_s = (expand(value, x_t)[..., None] for value in self.log_keep(s))
        stay, go = (expand(value, x_t)[..., None] for value in self._step(s, t))
        before = jnp.logaddexp(keep_s + share, lose_s + self._log_noise + total)
        return jnp.maximum(self._likelihood(x_t, stay, go) + before, NEVER)

    def posterior(self, x0: Tokens, x_t: Tokens, s: Time, t: Time) -> LogStates:
        """Return log q(x_s | x_t, x0) of all states of x_s, [B, ..., S], for any s < t and an x_t that x0 can become."""
        return self.reverse(_log_one_hot(x0, self.num_values), x_t, s, t)

    # The network's side -----------------------------------------------------------------------------------------------

    def output_channels(self, channels: int) -> int:
        """How many channels the network must output for data of `channels` channels: K logits each."""
        return channels * self.num_values

    def network_inputs(self, x_t: Tokens, t: Time) -> tuple[jax.Array, jax.Array]:
        """Return what the network is fed: x_t as float32, and 1000 t (on a chain, (t T - 1) 1000 / T), [B].

        Values lie evenly in [-1, 1], and the mask between the two in the middle: bits are -1 and 1, masked ones 0.
        """
        last = self.num_values - 1
        place = jnp.where(x_t > last, last // 2 + 0.5, x_t.astype(jnp.float32))
        t = jnp.broadcast_to(floating(t), x_t.shape[:1])
        return 2 * place / last - 1, 1000 * (t - 1 / self.num_steps if self.num_steps else t)

    def decode(self, output: jax.Array, x_t: Tokens, t: Time) -> LogValues:
        """Return log p(x0 | x_t), [B, ..., K], of the network's output [B, ..., C K]: softmax(output + log q(x_t | x0)).

        What x_t says of its own x0 is thus known and not learned, and no value gets a share that x_t rules out: what is not
        masked stays. With `reverse`, it is D3PM's p(x_s | x_t), proportional to the sum of q(x_s, x_t | x0) softmax(output).

        Raises:
          ConfigError: another number of channels, or another shape than x_t's.
        """
        wanted = (*x_t.shape[:-1], self.output_channels(x_t.shape[-1]))
        if output.shape != wanted:
            raise ConfigError(
                f"the network's output has the shape {output.shape}, but {self.num_values} logits for each element of "
                f"{x_t.shape} are {wanted}: set the network's out_channels to {wanted[-1]}"
            )
        logits = output.reshape(*x_t.shape, self.num_values).astype(jnp.float32)
        return jnp.maximum(jax.nn.log_softmax(logits + self.evidence(x_t, t)), NEVER)

    def bind(self, apply: Callable[..., jax.Array], params: Any, cond: Any = None, **kwargs: Any) -> Denoiser:
        """Return a `Denoiser` (x_t, t) -> log p(x0 | x_t) from a network's apply function, parameters and conditioning.

        Args:
          apply: (params, x [B, ...], noise level [B], cond, **kwargs) -> output [B, ..., C K].
        """

        def function(x_t: jax.Array, t: Time) -> jax.Array:
            x, noise = self.network_inputs(x_t, t)
            return self.decode(apply(params, x, noise, cond, **kwargs), x_t, t)

        return Denoiser(function, self)

    # The bound --------------------------------------------------------------------------------------------------------

    def vlb_term(self, log_probs: LogValues, x0: Tokens, x_t: Tokens, s: Time, t: Time) -> PerExample:
        """Return one term of the bound, [B], bits per dimension: KL(q(x_s | x_t, x0) || p(x_s | x_t)).

        At s = 0 it is -log p(x0 | x_t), the decoder's term.
        """
        return _kl(self.posterior(x0, x_t, s, t), self.reverse(log_probs, x_t, s, t))

    def prior_term(self, x0: Tokens) -> PerExample:
        """Return KL(q(x_1 | x0) || noise), [B], bits per dimension."""
        return _kl(self.forward(x0, jnp.float32(1.0)), jnp.broadcast_to(self._log_noise, (*x0.shape, self.num_states)))

    def bits_per_dim(self, denoiser: Denoiser, x0: Tokens, key: jax.Array, num_steps: int) -> BitsPerDim:
        """Return all terms of the bound on T steps, one draw of x_t for each; T network evaluations.

        The errors are the probability of another value than x0's, and the share of elements that were replaced.

        Raises:
          DataError: x0 that are not integers.
        """
        self.check_data(x0)

        def step(carry: None, index: jax.Array) -> tuple[None, tuple[jax.Array, ...]]:
            s, t = index / num_steps, (index + 1) / num_steps
            x_t, lost = self.corrupt(named(key, "noise", index.astype(int)), x0, t)
            log_probs = denoiser(x_t, t)
            wrong = _mean(1 - jnp.exp(_pick(log_probs, x0)))
            return None, (self.vlb_term(log_probs, x0, x_t, s, t), wrong, _mean(lost))

        _, parts = jax.lax.scan(step, None, jnp.arange(num_steps, dtype=jnp.float32))
        terms, wrong, lost = (part.T for part in parts)
        prior = self.prior_term(x0)
        return BitsPerDim(terms.sum(-1) + prior, terms, prior, wrong, lost)

    def check_data(self, x0: jax.Array) -> None:
        """Raise a `DataError` for data that are not categories."""
        if not jnp.issubdtype(x0.dtype, jnp.integer):
            last = self.num_values - 1
            raise DataError(f"categories must be integers from 0 to {last}, got {x0.dtype}: use a codec such as 'binary'")


@part("process", "binomial")
def binomial(schedule: Any = "straight_line") -> Categorical:
    """Return the process of bits that decay to a fair coin, x_t of B(x_{t-1} (1 - beta_t) + beta_t / 2).

    A bit that is tossed anew with the probability beta is one replaced by uniform noise: `Categorical` of 2 values, exactly.

    Args:
      schedule: "straight_line" is the published beta_t = 1 / (T - t + 1), which erases as much of the signal in every step.

    Source: Sohl-Dickstein et al. 2015, section 2.4.1 and appendix B.1 (arXiv 1503.03585).
    """
    return Categorical(2, "uniform", schedule)


def bound_loss(
    process: Categorical,
    apply: Callable[..., jax.Array],
    params: Any,
    x0: Tokens,
    key: jax.Array,
    *,
    t: PerExample | None = None,
    cond: Mapping[str, Any] | None = None,
    times: Any = "uniform",
    steps: int = 1000,
    aux_weight: float = 0.0,
    sampler_state: Any = None,
    apply_kwargs: Mapping[str, Any] | None = None,
) -> tuple[jax.Array, LossOutput]:
    """Return the bound of a batch, T times one term, in bits per dimension and without its constant prior term, and D3PM's
    auxiliary loss beside it.

    Args:
      x0: clean data [B, ...], integers.
      steps: T of a continuous process, whose times are rounded up to i / T; a chain has its own.
      aux_weight: of the cross-entropy -log p(x0 | x_t), in bits per dimension; D3PM has 0.001 for images and 0.01 for text. Its
        p(x0 | x_t) is that of `Categorical.decode`, so that both losses have the same minimum.
      t, cond, times, sampler_state, apply_kwargs: as of `losses.denoising`.

    Returns:
      (scalar loss, `LossOutput`); the loss of an example there is T times a term.

    Raises:
      ConfigError: a negative weight, unknown names, or a network output that does not fit the data.
      DataError: x0 that are not integers.

    Source: Austin et al. 2021, equation 5 (arXiv 2107.03006).
    """
    if aux_weight < 0:
        raise ConfigError(f"aux_weight must not be negative, got {aux_weight}")
    process.check_data(x0)
    steps, draw = process.num_steps or steps, Times(process, times, sampler_state, t)
    t, time_weight = draw(key, x0)
    index = jnp.clip(jnp.ceil(t * steps - 1e-3), 1, steps)
    s, t = (index - 1) / steps, index / steps
    x_t, _ = process.corrupt(named(key, "noise"), x0, t)
    log_probs = process.bind(apply, params, cond, **(apply_kwargs or {}))(x_t, t)
    bound = steps * process.vlb_term(log_probs, x0, x_t, s, t)
    losses = bound - aux_weight / math.log(2) * _mean(_pick(log_probs, x0))
    weighted = time_weight * losses
    return weighted.mean(), LossOutput(bound, t, process.log_snr(t), draw.update(t, losses), weighted)


def _log_one_hot(x: jax.Array, states: int) -> jax.Array:
    return jnp.where(x[..., None] == jnp.arange(states), 0.0, NEVER)


def _pick(log_probs: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.take_along_axis(log_probs, x[..., None], axis=-1)[..., 0]


def _mean(values: jax.Array) -> PerExample:
    return values.reshape(values.shape[0], -1).mean(-1)


def _kl(log_q: jax.Array, log_p: jax.Array) -> PerExample:
    """KL(q || p) over the last axis, in bits, averaged over elements."""
    return _mean((jnp.exp(log_q) * (log_q - log_p)).sum(-1)) / math.log(2)
