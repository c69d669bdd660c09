"""The sub-VP SDE: the signal of a variance-preserving process, and the square of its noise."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from diffusion_jax.process.schedules import Schedule, vp_sde
from diffusion_jax.process.tables import namespace, pair
from diffusion_jax.registry import part


def _softplus(xp: ModuleType, x: Any) -> Any:
    return xp.logaddexp(0.0, x)


@part("schedule", "subvp_sde")
def subvp_sde(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """Return the sub-VP SDE: alpha = e^(-B / 2) and sigma = 1 - e^(-B), with B the integral of beta, as in `vp_sde`.

    Its family is "subvp", alpha^2 + sigma = 1: there is less noise than in `vp_sde` at every time between data and noise.

    Args:
      beta_min, beta_max: of `vp_sde`.

    Raises:
      ConfigError: constants that `vp_sde` refuses.

    Source: Song et al. 2021, section 3.4 and appendix C (arXiv 2011.13456).
    """
    vp = vp_sde(beta_min, beta_max)
    # With the log-SNR l of `vp_sde`, whose sigma is the root of this one: L = l + log(1 + e^l).

    def log_snr(t: Any) -> Any:
        xp, _, t = namespace(t)
        inner = vp.log_snr(t)
        return inner + _softplus(xp, inner)

    def inverse(log_snr: Any) -> Any:
        xp, _, log_snr = namespace(log_snr)
        return vp.inverse(0.5 * log_snr - xp.arcsinh(0.5 * xp.exp(-0.5 * log_snr)))

    def drop(s: Any, t: Any) -> Any:
        xp, s, t = pair(s, t)
        late, inner = vp.log_snr(t), vp.drop(s, t)
        sigmoid = namespace(late)[1]
        near = xp.log1p(sigmoid(late) * xp.expm1(xp.minimum(inner, 1.0)))
        return inner + xp.where(inner < 1, near, _softplus(xp, vp.log_snr(s)) - _softplus(xp, late))

    return Schedule("subvp_sde", "subvp", log_snr, inverse, t_min=vp.t_min, exact_drop=drop)
