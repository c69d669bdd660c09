"""Binomial and categorical diffusion against tiny worlds in which everything is enumerated."""

from __future__ import annotations

import functools
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import ConfigError, DataError
from diffusion_jax.process import Denoiser, likelihood
from diffusion_jax.process.discrete import Categorical, binomial, bound_loss
from diffusion_jax.registry import build
from tests.enumeration import BITS, MASKED, STEPS, WORLDS
from tests.oracles import QUICK

PAIRS = list(itertools.combinations(range(STEPS + 1), 2))
worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())


def compiled(function):
    return jax.jit(function, compiler_options=QUICK)


@worlds
def test_marginals_and_posteriors(world):
    """q(x_t | x0) is the product of the steps' matrices, and q(x_s | x_t, x0) is Bayes' rule: for leaps over steps, too."""
    chain = Categorical(world.values, world.noise, {"name": "jsd", "num_steps": STEPS})
    axes = np.meshgrid(np.arange(len(PAIRS)), np.arange(world.values), np.arange(world.size), indexing="ij")
    pair, x0, x_t = (jnp.asarray(axis.ravel()) for axis in axes)
    s, t = (jnp.asarray(times, jnp.float32)[pair] / STEPS for times in zip(*PAIRS, strict=True))

    for process in (world.process, chain):
        parts = compiled(lambda x0, x_t, s, t, p=process: (p.forward(x0, t), p.evidence(x_t, t), p.posterior(x0, x_t, s, t)))
        forward, evidence, posterior = (np.exp(part[:, 0]) for part in parts(x0[:, None], x_t[:, None], s, t))
        marginal = np.array([world.between(0, later) for _, later in PAIRS])
        np.testing.assert_allclose(forward, marginal[pair, x0], atol=2e-6)
        np.testing.assert_allclose(evidence, marginal[pair, : world.values, x_t], atol=2e-6)
        exact = np.array([world.posterior(*times) for times in PAIRS])[pair, x0, x_t]
        possible = ~np.isnan(exact[:, 0])
        np.testing.assert_allclose(posterior[possible], exact[possible], atol=3e-6)


@worlds
def test_the_reverse_step_of_a_network(world):
    """By Bayes' rule from softmax(output) q(x_t | x0); and that is D3PM's sum of joint probabilities, normalised."""
    x, t, denoiser = jnp.asarray(world.states), 3, world.denoiser()
    reverse = compiled(lambda s: jnp.exp(world.process.reverse(denoiser(x, t / STEPS), x, s / STEPS, t / STEPS)))
    np.testing.assert_allclose(np.exp(compiled(denoiser)(x, t / STEPS)), world.clean(t), atol=2e-6)
    prior = np.exp(world.logits[t - 1]) / np.exp(world.logits[t - 1]).sum(-1, keepdims=True)
    for s in range(t):
        found = np.asarray(reverse(s))
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
    term_of = compiled(lambda t: world.process.vlb_term(denoiser(x_t, t / STEPS), x0, x_t, (t - 1) / STEPS, t / STEPS))
    for t in range(1, STEPS + 1):
        term = term_of(t)
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


@pytest.mark.parametrize("world", [WORLDS["bits"], WORLDS["masked tokens"]], ids=["bits", "masked tokens"])
def test_the_bound_of_draws(world):
    """`bits_per_dim` and the training loss are unbiased estimates of it, term by term."""
    count, terms, process = 10_000, expected_terms(world)[:, 1] / world.elements, world.process
    x0 = jnp.tile(jnp.asarray(world.states[world.data[1]]), (count, 1))
    parts = compiled(lambda key: likelihood.bits_per_dim(world.denoiser(), x0, key, STEPS))(jax.random.key(0))
    drawn = np.asarray(parts.terms, np.float64)
    assert (np.abs(drawn.mean(0) - terms) < 5 * drawn.std(0) / count**0.5 + 1e-5).all()

    table, fed = jnp.asarray(world.logits), process.network_inputs(jnp.arange(world.size)[:, None], 1.0)[0][:, 0]

    def network(params, x, level, cond):
        """The world's model, of what a network sees."""
        tokens = jnp.abs(x[..., None] - fed).argmin(-1)
        return table[jnp.round(level / 1000 * STEPS).astype(int) - 1, world.place(tokens)].reshape(x.shape[0], -1)

    def loss(weight, key):
        return bound_loss(process, network, {}, x0, key, times="low_discrepancy", steps=STEPS, aux_weight=weight)

    (plain, output), (more, _) = (compiled(functools.partial(loss, weight))(jax.random.key(1)) for weight in (0.0, 0.5))
    np.testing.assert_allclose(output.per_example.mean(), terms.sum(), atol=5 * float(output.per_example.std()) / count**0.5)
    np.testing.assert_allclose(plain, output.per_example.mean(), rtol=1e-5)
    auxiliary, clean = [], world.states[world.data[1]]
    for t in range(1, STEPS + 1):
        weight, right = world.together(world.between(0, t))[world.data[1]], world.clean(t)[:, np.arange(world.elements), clean]
        auxiliary.append((weight * -np.log2(np.where(weight[:, None] > 0, right, 1)).mean(-1)).sum())
    np.testing.assert_allclose(more - plain, 0.5 * np.mean(auxiliary), rtol=0.04)


def test_what_is_left_of_the_data_is_the_prior_term():
    """KL(q(x_1 | x0) || noise) on a short chain that keeps an eighth of the data; it counts in the total."""
    process = Categorical(3, "uniform", {"name": "betas", "betas": [0.5, 0.5, 0.5]})
    marginal = np.array([1 / 8 + 7 / 24, 7 / 24, 7 / 24])
    x0 = jnp.array([[0, 2], [1, 1]])
    network = process.bind(lambda params, x, level, cond: jnp.zeros((2, 6)), {})
    parts = process.bits_per_dim(network, x0, jax.random.key(0), 3)
    np.testing.assert_allclose(parts.prior, (marginal * np.log2(3 * marginal)).sum(), rtol=1e-4)
    np.testing.assert_allclose(parts.total, parts.terms.sum(-1) + parts.prior, rtol=1e-5)


@pytest.mark.parametrize("noise", ["uniform", "absorbing"])
def test_the_exact_denoiser_reaches_the_entropy(noise):
    """One element: the reverse step with the true p(x0 | x_t) is the true reverse step, so the bound is the entropy."""
    data, process, count = np.array([0.6, 0.3, 0.1]), Categorical(3, noise), 50_000
    exact = Denoiser(lambda x, t: process.decode(jnp.broadcast_to(jnp.log(data), (*x.shape[:-1], 3)), x, t), process)
    x0 = jnp.asarray(np.repeat(np.arange(3), np.round(data * count).astype(int)))[:, None]
    total = np.asarray(compiled(lambda key: process.bits_per_dim(exact, x0, key, 8).total)(jax.random.key(0)), np.float64)
    assert abs(total.mean() + (data * np.log2(data)).sum()) < 4 * total.std() / count**0.5 < 0.03


def test_the_terms_stay_finite():
    """Gradients, too: for sure but wrong networks, single masks, tiny times and steps."""
    output, x0 = jnp.array([[1.0, -1, -1, 1, -1, 1, 1, -1]]), jnp.array([[0, 1, 1, 0]])
    for process in (BITS.process, MASKED.process):
        x_t = x0.at[0, 0].set(process.num_states - 1)

        def value(scale, t, process=process, x_t=x_t):
            return process.vlb_term(process.decode(scale * output, x_t, t), x0, x_t, 0.999 * t, t).sum()

        both = compiled(jax.value_and_grad(value))
        for scale, t in itertools.product((0.0, 30.0, 1000.0), (1e-6, 1e-3, 1.0)):
            term, gradient = both(scale, t)
            assert np.isfinite(term) and np.isfinite(gradient) and term >= -1e-6


# Properties -----------------------------------------------------------------------------------------------------------


@functools.cache
def all_states(values, noise):
    """(s, t, x0, logits) -> q(x_s | x_t, x0), p(x_s | x_t), q(x_t | x0) and q(x_s | x0), over all x_t."""
    process = Categorical(values, noise)
    x_t = jnp.arange(process.num_states)[:, None]

    def function(s, t, x0, logits):
        start = jnp.full_like(x_t, x0)
        reverse = process.reverse(process.decode(logits, x_t, t), x_t, s, t)
        parts = (process.posterior(start, x_t, s, t), reverse, process.forward(start, t), process.forward(start, s))
        return [jnp.exp(part[:, 0]) for part in parts]

    return compiled(function)


# At t = 1 what is not masked is impossible under absorbing noise; the enumeration above has it.
times = st.tuples(st.integers(0, 998), st.integers(1, 999)).map(sorted).filter(lambda pair: pair[0] < pair[1])


@hypothesis.given(st.sampled_from([2, 5]), st.sampled_from(["uniform", "absorbing"]), times, st.integers(0, 2**31 - 1))
def test_posteriors_are_consistent(values, noise, pair, seed):
    """They sum to 1, and with q(x_t | x0) give back q(x_s | x0); what is not masked never moves."""
    logits = np.random.default_rng(seed).normal(0, 5, (values + (noise == "absorbing"), values)).astype(np.float32)
    posterior, reverse, late, early = (
        np.asarray(part, np.float64)
        for part in all_states(values, noise)(pair[0] / 1000, pair[1] / 1000, seed % values, logits)
    )
    np.testing.assert_allclose(posterior[late[0] > 0].sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(late[0] @ posterior, early[0], atol=1e-5)
    np.testing.assert_allclose(reverse.sum(-1), 1, atol=1e-5)
    if noise == "absorbing":
        assert (reverse[:-1][~np.eye(values, values + 1, dtype=bool)] == 0).all()


@pytest.mark.slow
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
