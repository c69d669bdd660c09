"""L_hybrid, L_vlb and respaced chains against published code's formulas, written out in PyTorch's float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process import Process, likelihood, losses, schedules
from diffusion_jax.sampling import grids
from tests.peers import peer

T = 40
BETAS = np.linspace(1e-3, 0.3, T)


class Published:
    """The chain of given betas, as improved DDPM and guided-diffusion compute it."""

    def __init__(self, betas):
        bars = np.cumprod(1 - betas)
        before = np.append(1.0, bars[:-1])
        self.betas, self.bars = betas, bars
        self.variance = betas * (1 - before) / (1 - bars)
        self.log_variance_clipped = np.log(np.append(self.variance[1], self.variance[1:]))
        self.coef1 = betas * np.sqrt(before) / (1 - bars)
        self.coef2 = (1 - before) * np.sqrt(1 - betas) / (1 - bars)

    def term(self, torch, output, x0, x_t, index, tanh=True):
        """A term in bits per dimension, [B], for indices [B] of this chain, of a network of noise and of v of the variance."""
        at = lambda table: torch.tensor(table[index])[:, None, None, None]  # noqa: E731
        eps, v = output.chunk(2, -1)
        predicted = (x_t - torch.sqrt(1 - at(self.bars)) * eps) / torch.sqrt(at(self.bars))
        mean, true_mean = (at(self.coef1) * x + at(self.coef2) * x_t for x in (predicted, x0))
        small, large = at(self.log_variance_clipped), at(np.log(self.betas))
        log_variance = (v + 1) / 2 * large + (1 - v) / 2 * small
        gap = small - log_variance
        kl = 0.5 * (-1 - gap + torch.exp(gap) + (true_mean - mean) ** 2 * torch.exp(-log_variance))
        nll = -self.likelihood(torch, x0, mean, 0.5 * log_variance, tanh)
        first = torch.tensor(index == 0)
        return torch.where(first, nll.mean((1, 2, 3)), kl.mean((1, 2, 3))) / np.log(2.0)

    def likelihood(self, torch, x, mean, log_scale, tanh):
        """`discretized_gaussian_log_likelihood`, line by line."""
        if tanh:
            cdf = lambda z: 0.5 * (1 + torch.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))  # noqa: E731
        else:
            cdf = torch.special.ndtr
        inverse = torch.exp(-log_scale)
        plus, minus = cdf(inverse * (x - mean + 1 / 255)), cdf(inverse * (x - mean - 1 / 255))
        log_plus, log_rest = torch.log(plus.clamp(min=1e-12)), torch.log((1 - minus).clamp(min=1e-12))
        inner = torch.log((plus - minus).clamp(min=1e-12))
        return torch.where(x < -0.999, log_plus, torch.where(x > 0.999, log_rest, inner))


def batch(seed=0):
    """x0 of levels with both ends among them, noise, the network's output; of indices that hold the data's end twice."""
    rng = np.random.default_rng(seed)
    index = np.array([0, 0, 1, 17, T - 1])
    levels = rng.integers(0, 256, (len(index), 3, 3, 2)) * 1.0
    levels[:, 0, 0] = [0, 255]
    noise = rng.standard_normal(levels.shape)
    # At the data's end bins lie some deviations away, where the tanh differs, above the 1e-12 at which gradients vanish.
    wrong = np.where(index == 0, 1.2, 0.05)[:, None, None, None] * rng.standard_normal(levels.shape)
    output = np.concatenate([noise + wrong, rng.uniform(-1, 1, levels.shape)], -1)
    return index, levels / 127.5 - 1, noise, output


def distance(found, wanted):
    """The norm of the difference over that of the second, of each example."""
    found, wanted = (np.asarray(each, np.float64).reshape(len(each), -1) for each in (found, wanted))
    return np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)


@pytest.mark.parametrize("decoder", ["tanh", "exact"])
@pytest.mark.parametrize("loss", ["hybrid", "vlb"])
def test_losses_and_their_gradients_are_published_ones(loss, decoder):
    """Each example's loss and its gradient for the network's output, at the data's end too."""
    torch = peer("torch")
    index, x0, noise, output = batch()
    chain = Published(BETAS)
    wanted = torch.tensor(output, requires_grad=True)
    bars = torch.tensor(chain.bars[index])[:, None, None, None]
    x_t = torch.sqrt(bars) * torch.tensor(x0) + torch.sqrt(1 - bars) * torch.tensor(noise)
    eps, v = wanted.chunk(2, -1)
    out = torch.cat([eps.detach(), v], -1) if loss == "hybrid" else wanted
    bound = T * chain.term(torch, out, torch.tensor(x0), x_t, index, decoder == "tanh")
    simple = ((torch.tensor(noise) - eps) ** 2).mean((1, 2, 3))
    total = simple + 0.001 * bound if loss == "hybrid" else bound
    total.mean().backward()

    process = Process(schedules.from_betas(BETAS), variance="learned_range", decoder=decoder)
    fields = {"vlb_weight": 0.001} if loss == "hybrid" else {"weighting": "vlb"}
    single = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731

    def run(output):
        apply = lambda params, *inputs: params  # noqa: E731
        t = process.schedule.time_of(jnp.asarray(index))
        return losses.denoising(process, apply, output, single(x0), None, t=t, noise=single(noise), **fields)

    (value, details), gradient = jax.value_and_grad(run, has_aux=True)(single(output))
    np.testing.assert_allclose(details.weighted, total.detach(), rtol=1e-4)
    np.testing.assert_allclose(value, total.mean().detach(), rtol=1e-4)
    error = distance(gradient, wanted.grad)
    assert error.max() < 3e-4
    # The other decoder's gradients at the data's end are further away than that.
    other = torch.tensor(output, requires_grad=True)
    eps, v = other.chunk(2, -1)
    out = torch.cat([eps.detach(), v], -1) if loss == "hybrid" else other
    bound = 0.001 * T * chain.term(torch, out, torch.tensor(x0), x_t, index, decoder != "tanh") / len(index)
    bound.sum().backward()
    channels = slice(2, None) if loss == "hybrid" else slice(None)
    scale = 0.001 if loss == "vlb" else 1.0
    assert (distance(scale * gradient[..., channels], other.grad[..., channels])[index == 0] > 3e-3).all()


def respaced(spacing):
    """Kept indices, and the chain that published code makes of them: betas anew from the kept products."""
    process = Process(schedules.from_betas(BETAS), variance="learned_range", decoder="tanh")
    times = grids.respaced(spacing)(process)
    kept = process.schedule.index_of(times[-2::-1])
    bars = np.cumprod(1 - BETAS)[kept]
    return process, times, kept, Published(1 - bars / np.append(1.0, bars[:-1]))


@pytest.mark.parametrize("spacing", ["5", "10", "ddim8", "4,4,2"])
def test_the_last_step_of_a_respaced_chain_has_the_variance_of_the_next_kept_one(spacing):
    process, times, kept, chain = respaced(spacing)
    x, rising = jnp.zeros((1, 1)), times[::-1]
    for place in range(len(kept)):
        s, t, later = rising[place], rising[place + 1], rising[min(place + 2, len(kept))]
        found = process.posterior(x, x, s, t, later)[1]
        np.testing.assert_allclose(found, chain.log_variance_clipped[place], rtol=2e-6, atol=2e-6)
    # Without it the next step of the whole chain is taken, which is another one.
    far = process.posterior(x, x, 0.0, rising[1])[1] - chain.log_variance_clipped[0]
    assert abs(float(far)) > 0.05


@pytest.mark.parametrize("spacing", ["5", "4,4,2"])
def test_the_bound_of_a_respaced_chain_is_published_codes(spacing):
    """Term by term, of given times and noise."""
    torch = peer("torch")
    process, times, kept, chain = respaced(spacing)
    _, x0, _, _ = batch()
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((len(kept), *x0.shape))
    variance = rng.uniform(-1, 1, x0.shape)
    # The network sees x_t alone: its noise is a share of it.
    apply = lambda params, x, level, cond: jnp.concatenate([0.6 * x, jnp.asarray(variance, x.dtype)], -1)  # noqa: E731
    found = likelihood.bits_per_dim(
        process.bind(apply, {}),
        jnp.asarray(x0, jnp.float32),
        None,
        clip=False,
        times=times,
        noise=jnp.asarray(noise, jnp.float32),
    )
    for place, bar in enumerate(chain.bars):
        x_t = np.sqrt(bar) * x0 + np.sqrt(1 - bar) * noise[place]
        output = torch.tensor(np.concatenate([0.6 * x_t, variance], -1))
        wanted = chain.term(torch, output, torch.tensor(x0), torch.tensor(x_t), np.full(len(x0), place))
        np.testing.assert_allclose(found.terms[:, place], wanted, rtol=2e-4)
