"""What an SDE's coefficients say of its sizes: its last usable time, the data that it is for, and
the grid that suits it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from sdediff.solvers.given import reals

if TYPE_CHECKING:
    from sdediff.sde.linear import LinearSDE

__all__ = ["data_std", "last_time", "prior_gap", "spacing"]

_LOWEST_LOG_SNR: Final = -20.0


def last_time(sde: LinearSDE) -> float:
    """T, or an earlier time where alpha has all but vanished at T: f is infinite at alpha = 0.

    That is where log_snr = -20 in units of the noise near T.
    """
    noise = float(sde.sigma((1 - 1e-6) * sde.T))  # at alpha = 0 itself an integral has lost sigma
    level = _LOWEST_LOG_SNR - 2 * math.log(noise) if 0 < noise < math.inf else _LOWEST_LOG_SNR
    signal = float(sde.alpha(sde.T))
    if 2 * math.log(max(signal, 1e-300)) >= _LOWEST_LOG_SNR or float(sde.log_snr(sde.T)) >= level:
        return sde.T
    return float(sde.time_of(level))


def data_std(sde: LinearSDE) -> float:
    """That of `LinearSDE.stationary`, the last sigma where data vanish in the noise, else
    sqrt(sigma(t_min) sigma(t_max) / 0.5).
    """
    kept = sde.stationary
    if kept is not None:
        return math.sqrt(float(kept.detach()))
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    alpha, sigma = sde.alpha(ends).detach(), sde.sigma(ends).detach()
    if float(alpha[1]) < 0.5 * float(alpha[0]):
        return float(sigma[1])
    least, most = (sigma / alpha).tolist()
    return math.sqrt(max(least, 1e-8 * most) * most / 0.5)  # at t_min there may be no noise


def spacing(sde: LinearSDE) -> str:
    """ "uniform", or "karras" where one of 20 equal steps in time would cross more than a third of
    what matters.

    That is the range from log_snr = 4 to -4, in units of `data_std`, in which data and noise are of
    one size. Published schedules cross a sixth of it at most; constant coefficients, under which
    `Heun` and `Churn` at 20 steps then have 1.2 and 2 times the right spread, nearly half.
    """
    times = torch.linspace(sde.t_min, sde.t_max, 21, dtype=torch.float64)
    level = sde.log_snr(times).detach() + 2 * math.log(sde.data_std)
    return "karras" if float(level.clamp(-4, 4).diff().abs().max()) > 8 / 3 else "uniform"


def prior_gap(sde: LinearSDE, mean: Tensor | float, variance: Tensor | float) -> float:
    """What `LinearSDE.prior_gap` says."""
    m, v = torch.broadcast_tensors(reals("mean", mean), reals("variance", variance))
    if bool((v < 0).any()) or not bool(torch.isfinite(v).all() and torch.isfinite(m).all()):
        raise ValueError(
            "prior_gap: mean and variance must be finite and the variance not negative"
        )
    std = sde.prior.std
    alpha = sde.alpha(sde.t_max).detach() / std
    sigma = sde.sigma(sde.t_max).detach() / std
    r = alpha**2 * v + (sigma - 1) * (sigma + 1)
    return float(0.5 * (r - torch.log1p(r) + (alpha * m) ** 2).sum())
