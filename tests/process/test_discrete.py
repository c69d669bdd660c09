"""Binomial and categorical diffusion against tiny worlds in which everything is enumerated."""

from __future__ import annotations

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.process import Denoiser
from diffusion_jax.process.discrete import Categorical, binomial, bound_loss
from diffusion_jax.registry import build
from tests.enumeration import BITS, MASKED, STEPS, WORLDS

PAIRS = list(itertools.combinations(range(STEPS + 1), 2))
worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())


def processes(world):
    """The same process in continuous time and as a chain."""
    return [world.process, Categorical(world.values, world.noise, {"name": "jsd", "num_steps": STEPS})]


@worlds
def test_marginals(world):
    """q(x_t | x0) is the product of the steps' matrices; its transpose is the evidence of x_t."""
    clean, noisy = jnp.arange(world.values)[:, None], jnp.arange(world.size)[:, None]
    for process, t in itertools.product(processes(world), range(1, STEPS + 1)):
        exact = world.between(0, t)[: world.values]
        np.testing.assert_allclose(np.exp(process.forward(clean, t / STEPS))[:, 0], exact, atol=2e-6)
        np.testing.assert_allclose(np.exp(process.evidence(noisy, t / STEPS))[:, 0], exact.T, atol=2e-6)


@worlds
def test_posteriors_of_any_two_times(world):
    """q(x_s | x_t, x0) is Bayes' rule, s = 0 and leaps over several steps included."""
    x0, x_t = (jnp.asarray(axis.ravel()[:, None]) for axis in np.mgrid[: world.values, : world.size])
    for process, (s, t) in itertools.product(processes(world), PAIRS):
        exact = world.posterior(s, t).reshape(-1, world.size)
        possible = ~np.isnan(exact[:, 0])
        found = np.exp(process.posterior(x0, x_t, jnp.float32(s / STEPS), jnp.float32(t / STEPS)))[:, 0]
        np.testing.assert_allclose(found[possible], exact[possible], atol=3e-6)


@worlds
def test_the_reverse_step_of_a_network(world):
    """By Bayes' rule from softmax(output) q(x_t | x0); and that is D3PM's sum of joint probabilities, normalised."""
    x, t = jnp.asarray(world.states), 3
    log_probs = world.denoiser()(x, t / STEPS)
    np.testing.assert_allclose(np.exp(log_probs), world.clean(t), atol=2e-6)
    prior = np.exp(world.logits[t - 1]) / np.exp(world.logits[t - 1]).sum(-1, keepdims=True)
    for s in range(t):
        found = np.exp(world.process.reverse(log_probs, x, s / STEPS, t / STEPS))
        whole = np.prod([found[:, n][:, world.states[:, n]] for n in range(world.elements)], axis=0)
        np.testing.assert_allclose(whole, world.reverse(s, t), atol=3e-6)
        joint = world.between(0, s)[: world.values, :, None] * world.between(s, t)  # [x0, x_s, x_t]
        d3pm = np.einsum("xni,ikxn->xnk", prior, joint[:, :, world.states])
        np.testing.assert_allclose(found, d3pm / d3pm.sum(-1, keepdims=True), atol=3e-6)


def test_bits_that_decay_to_a_fair_coin_are_uniform_categories():
    """B(x_t; x_{t-1} (1 - beta) + beta / 2), as published, and `binomial`."""
    ours, same = build("process", "binomial"), build("process", {"name": "categorical", "num_values": 2, "noise": "uniform"})
    assert all(getattr(ours, field) == getattr(same, field) for field in ("__class__", "num_values", "noise"))
    assert ours.schedule.name == same.schedule.name == "straight_line"
    chance_of_one = np.array([0.0, 1.0])
    for number in range(1, STEPS + 1):
        beta = 1 / (STEPS - number + 1)
        chance_of_one = chance_of_one * (1 - beta) + 0.5 * beta
        found = np.exp(binomial().forward(jnp.array([[0], [1]]), number / STEPS))[:, 0, 1]
        np.testing.assert_allclose(found, chance_of_one, atol=1e-6)


@worlds
def test_draws_follow_the_marginals(world):
    process, count, t = world.process, 20_000, 0.5
    x_t, lost = process.corrupt(jax.random.key(0), jnp.ones((count, 1), jnp.int32), t)
    found = np.bincount(x_t[:, 0], minlength=world.size) / count
    assert x_t.dtype == jnp.int32
    assert np.abs(found - world.between(0, 2)[1]).sum() < 0.03
    assert abs(float(lost.mean()) - 0.5) < 0.015 and (x_t[~lost] == 1).all()
    prior = process.prior(jax.random.key(1), (count,))
    share = np.bincount(prior, minlength=world.size) / count
    assert np.abs(share - world.between(0, STEPS)[0]).sum() < 0.03 and prior.dtype == jnp.int32


# The bound ------------------------------------------------------------------------------------------------------------


def expected_terms(world):
    """Every term of the bound from the library, weighted by q(x_t | x0) over all x_t: [T, clean states], bits per example."""
    clean, noisy = len(world.data), len(world.states)
    x0 = jnp.repeat(jnp.asarray(world.states[world.data]), noisy, 0)
    x_t = jnp.tile(jnp.asarray(world.states), (clean, 1))
    denoiser, terms = world.denoiser(), []
    for t in range(1, STEPS + 1):
        term = world.process.vlb_term(denoiser(x_t, t / STEPS), x0, x_t, (t - 1) / STEPS, t / STEPS)
        weight = world.together(world.between(0, t))[world.data]
        term = np.where(weight > 0, np.asarray(term, np.float64).reshape(clean, noisy), 0.0)
        terms.append((weight * term).sum(-1) * world.elements)
    return np.array(terms)


@worlds
def test_the_bound_is_the_enumerated_one(world):
    """All terms and the prior's add up to E_q[log q / p], which lies above the exact -log p of the enumerated chain."""
    exact = world.bound / math.log(2)
    prior = np.asarray(world.process.prior_term(jnp.asarray(world.states[world.data])))
    found = expected_terms(world).sum(0) + prior * world.elements
    np.testing.assert_allclose(found, exact, rtol=2e-5)
    assert abs(world.model[world.data].sum() - 1) < 1e-9  # no mask is left, nothing is lost
    assert (exact > -np.log2(world.model[world.data])).all()


@worlds
def test_the_bound_of_draws(world):
    """`bits_per_dim` and the training loss are unbiased estimates of it, term by term."""
    count, terms = 40_000, expected_terms(world)[:, 1] / world.elements
    x0 = jnp.tile(jnp.asarray(world.states[world.data[1]]), (count, 1))
    parts = world.process.bits_per_dim(world.denoiser(), x0, jax.random.key(0), STEPS)
    spread = 5 * np.asarray(parts.terms).std(0) / count**0.5 + 1e-5
    assert (np.abs(np.asarray(parts.terms).mean(0) - terms) < spread).all()
    np.testing.assert_allclose(parts.total, parts.terms.sum(-1) + parts.prior, rtol=1e-6)

    process, table = world.process, jnp.asarray(world.logits)
    fed = process.network_inputs(jnp.arange(world.size)[:, None], 1.0)[0][:, 0]

    def network(params, x, level, cond):
        """The world's model, of what a network sees."""
        tokens = jnp.abs(x[..., None] - fed).argmin(-1)
        return table[jnp.round(level / 1000 * STEPS).astype(int) - 1, world.place(tokens)].reshape(x.shape[0], -1)

    loss, output = bound_loss(process, network, {}, x0, jax.random.key(1), times="low_discrepancy", steps=STEPS)
    assert abs(float(loss) - terms.sum()) < 5 * float(output.per_example.std()) / count**0.5
    auxiliary, _ = bound_loss(process, network, {}, x0, jax.random.key(1), times="low_discrepancy", steps=STEPS, aux_weight=0.5)
    wrong = np.mean([-np.log2(world.clean(t)[..., 0]).mean() for t in range(1, STEPS + 1)])
    assert 0.01 < float(auxiliary - loss) < 5 * wrong


@pytest.mark.parametrize("noise", ["uniform", "absorbing"])
def test_the_exact_denoiser_reaches_the_entropy(noise):
    """One element: the reverse step with the true p(x0 | x_t) is the true reverse step, so the bound is the entropy."""
    data, process = np.array([0.6, 0.3, 0.1]), Categorical(3, noise)
    exact = Denoiser(lambda x, t: process.decode(jnp.broadcast_to(jnp.log(data), (*x.shape[:-1], 3)), x, t), process)
    x0 = jnp.asarray(np.repeat(np.arange(3), np.round(data * 30_000).astype(int)))[:, None]
    parts = process.bits_per_dim(exact, x0, jax.random.key(0), 8)
    spread = float(parts.total.std()) / len(x0) ** 0.5
    assert abs(float(parts.total.mean()) + (data * np.log2(data)).sum()) < 4 * spread < 0.02


def test_the_terms_stay_finite():
    """Gradients, too: for sure but wrong networks, single masks, tiny times and steps."""
    for process, t in itertools.product([BITS.process, MASKED.process], [1e-6, 1e-3, 1.0]):
        x0 = jnp.array([[0, 1, 1, 0]])
        x_t = x0.at[0, 0].set(process.num_states - 1)

        def value(output, process=process, t=t, x0=x0, x_t=x_t):
            return process.vlb_term(process.decode(output, x_t, t), x0, x_t, 0.999 * t, t).sum()

        for scale in (0.0, 30.0, 1000.0):
            value_of, gradient = jax.value_and_grad(value)(scale * jnp.array([[1.0, -1, -1, 1, -1, 1, 1, -1]]))
            assert np.isfinite(value_of) and np.isfinite(gradient).all() and value_of >= -1e-6


# Properties -----------------------------------------------------------------------------------------------------------

times = st.tuples(st.integers(0, 999), st.integers(1, 1000)).map(sorted).filter(lambda pair: pair[0] < pair[1])


@hypothesis.given(st.integers(2, 5), st.sampled_from(["uniform", "absorbing"]), times, st.integers(0, 2**31 - 1))
def test_posteriors_are_consistent(values, noise, pair, seed):
    """They sum to 1, and with q(x_t | x0) give back q(x_s | x0); an unmasked element never moves."""
    process, (s, t) = Categorical(values, noise, "straight_line"), (np.float32(number / 1000) for number in pair)
    x0 = jnp.full((process.num_states, 1), seed % values)
    x_t = jnp.arange(process.num_states)[:, None]
    posterior = np.exp(process.posterior(x0, x_t, s, t))[:, 0].astype(np.float64)
    weight = np.exp(process.forward(x0[:1], t))[0, 0].astype(np.float64)
    np.testing.assert_allclose(posterior[weight > 0].sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(weight @ posterior, np.exp(process.forward(x0[:1], s))[0, 0], atol=1e-5)
    logits = jax.random.normal(jax.random.key(seed), (process.num_states, values)) * 5
    reverse = np.exp(process.reverse(process.decode(logits, x_t, t), x_t, s, t))[:, 0]
    np.testing.assert_allclose(reverse.sum(-1), 1, atol=1e-5)
    if noise == "absorbing":
        assert (reverse[:-1][~np.eye(values, values + 1, dtype=bool)] == 0).all()


def test_what_the_network_is_fed():
    """Bits are -1 and 1, a masked one 0; every state has a number of its own."""
    np.testing.assert_array_equal(MASKED.process.network_inputs(jnp.array([[0, 1, 2]]), 0.25)[0], [[-1, 1, 0]])
    for values in range(2, 7):
        fed, level = Categorical(values, "absorbing").network_inputs(jnp.arange(values + 1)[:, None], 0.25)
        assert len(np.unique(fed)) == values + 1 and np.abs(fed).max() == 1 and (level == 250).all()


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise": "absorbin"}, "did you mean 'absorbing'"),
        ({"num_values": 1}, "at least 2"),
        ({"schedule": "edm"}, "keeps all of the signal"),
        ({"noise": "absorbing", "schedule": "cosine_continuous"}, "must end in masks alone"),
    ],
)
def test_processes_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        build("process", {"name": "categorical", "num_values": 2, **fields})


def test_data_and_networks_that_do_not_fit():
    process, x = binomial(), jnp.zeros((2, 4, 4, 1), jnp.int32)
    with pytest.raises(ConfigError, match="out_channels to 2"):
        process.decode(jnp.zeros((2, 4, 4, 1)), x, 0.5)
    with pytest.raises(DataError, match="integers from 0 to 1"):
        process.check_data(x.astype(jnp.float32))
    with pytest.raises(ConfigError, match="aux_weight"):
        bound_loss(process, lambda *_: None, {}, x, jax.random.key(0), aux_weight=-1.0)
