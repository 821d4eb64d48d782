"""The probability flow: DDIM and DPM-Solver-1, EDM's sampler, and one flow for all linear SDEs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from sdediff.sde import VE, VP
from sdediff.solvers import DDIM, DOP853, Churn, DPMSolver, Euler, ExponentialSinglestep, Heun
from sdediff.testing.equivalences.case import Case
from sdediff.testing.equivalences.table import agree, equivalence
from sdediff.testing.identity import Comparison

__all__: list[str] = []

_TIGHT = 1e-4
_MOST = 2**0.5 - 1


@equivalence(
    "DDIM",
    statement="`DDIM(eta=0)` = exponential Euler on the probability flow = `DPMSolver(1)` = "
    "`Euler` in "
    "sigma / alpha",
)
def ddim(case: Case) -> Iterator[Comparison]:
    """x_s = alpha_s / alpha_t x - sigma_s (e^h - 1) noise, h the rise of log(alpha / sigma).

    The semilinear flow dx = (f x + g^2 / (2 sigma) noise) dt with the noise prediction held: Lu et
    al. 2022 (arXiv 2206.00927, eq. 3.4 and 3.7), where it is DPM-Solver-1; Salimans and Ho 2022
    (arXiv 2202.00512, Appendix B).
    """
    sde, x = case.sde, case.start()
    states = [x]
    for t, s in pairwise(case.times):
        h = 0.5 * (sde.log_snr(s) - sde.log_snr(t))
        x = sde.alpha(s) / sde.alpha(t) * x - sde.sigma(s) * torch.expm1(h) * case.law.noise(
            sde, x, t
        )
        states.append(x)
    expected = torch.stack(states)
    for solver in (
        DDIM(),
        DPMSolver(1),
        ExponentialSinglestep(1, form="noise"),
        Euler(variable="sigma"),
    ):
        yield agree(
            f"{solver!r}, against exponential Euler,", case.solve(solver), expected, case.times
        )


@equivalence(
    "EDM sampler",
    statement="EDM's sampler without churn (Karras et al. 2022, Algorithm 1) is "
    "`Heun(variable='sigma')`, "
    "in x / alpha under "
    "any SDE",
)
def edm(case: Case) -> Iterator[Comparison]:
    """The published loop on the levels sigma / alpha; down to sigma = 0 where that is at t = 0."""
    times = _to_zero(case)
    yield agree(
        "Heun", case.solve(Heun(variable="sigma"), times=times), _karras(case, times), times
    )


@equivalence(
    "EDM churn",
    statement="EDM's stochastic sampler (Algorithm 2), its noise at most that of the grid's start "
    "unless the SDE goes on after it, is `Churn(Heun(variable='sigma'))`",
)
def churn(case: Case) -> Iterator[Comparison]:
    """The published loop with S_churn = 2, S_noise = 1.003 and the noise of the case."""
    times = _to_zero(case)
    levels = _levels(case, times)
    between = (float(levels[-2]) * 0.9, float(levels[0]) * 1.1)
    solver = Churn(Heun(variable="sigma"), churn=2.0, between=between, noise=1.003)
    yield agree(
        "Churn(Heun)",
        case.solve(solver, times=times),
        _karras(case, times, 2.0, between, 1.003),
        times,
    )


def _to_zero(case: Case) -> Tensor:
    """The grid, and t = 0 after it where there is no noise then."""
    end = float(case.sde.sigma(0.0)) == 0 and math.isfinite(float(case.sde.alpha(0.0)))
    return torch.cat([case.times, torch.zeros(1, dtype=torch.float64)]) if end else case.times


def _levels(case: Case, times: Tensor) -> Tensor:
    levels: Tensor = torch.exp(-0.5 * case.sde.log_snr(times))
    return levels


def _karras(
    case: Case,
    times: Tensor,
    s_churn: float = 0.0,
    between: tuple[float, float] = (0.0, math.inf),
    s_noise: float = 1.0,
) -> Tensor:
    """Algorithm 2 (1 without churn) of Karras et al. 2022 (arXiv 2206.00364), with D(x; u) = E[x_0
    | alpha x] at u = sigma / alpha.

    The level to which noise is added, t^ = (1 + gamma) t, is kept at the first one or below, unless
    that is at T and the SDE goes on after T.
    """
    sde, n = case.sde, len(times) - 1
    levels, alphas = _levels(case, times), sde.alpha(times)

    def denoise(x: Tensor, time: Tensor) -> Tensor:
        return case.law.data(sde, sde.alpha(time) * x, time)

    x = case.start(times[0]) / alphas[0]
    states = [alphas[0] * x]
    for i in range(n):
        t = levels[i]
        t_next = levels[i + 1]
        time = times[i]
        gamma = min(s_churn / n, _MOST) if between[0] <= t <= between[1] else 0.0
        t_hat = (1 + gamma) * t
        if times[0] < sde.T:
            t_hat = torch.minimum(t_hat, levels[0])
        if t_hat > t:
            time = torch.maximum(sde.time_beyond(-2 * t_hat.log()), time)
            t_hat = torch.exp(-0.5 * sde.log_snr(time))
            x = x + (t_hat**2 - t**2).clamp(min=0).sqrt() * s_noise * case.noise.at(i).normal(
                "churn"
            )
        else:
            t_hat = t
        d = (x - denoise(x, time)) / t_hat
        after = x + (t_next - t_hat) * d
        if t_next != 0:
            d_next = (after - denoise(after, times[i + 1])) / t_next
            after = x + (t_next - t_hat) * (d + d_next) / 2
        x = after
        states.append(alphas[i + 1] * x)
    return torch.stack(states)


@equivalence(
    "one flow",
    statement="the probability flows of any two linear SDEs are one up to scale: between equal "
    "log-SNR "
    "ends the SDE, `VE` and `VP` "
    "take one start, scaled, to one end, scaled",
    bound=_TIGHT,
    costly=True,
)
def one_flow(case: Case) -> Iterator[Comparison]:
    """x / alpha at equal log-SNR, by `DOP853` in t at tolerances of 1e-6: Song et al. 2021 (arXiv
    2010.02502, Proposition 1).
    """
    ends = case.times[[0, -1]]
    levels = case.sde.log_snr(ends)
    low, high = (float(level) for level in levels)
    ve = VE(sigma_min=math.exp(-0.5 * high - 0.01), sigma_max=math.exp(-0.5 * low + 0.01))
    vp = VP(t_min=1e-9, beta_max=max(20.0, 2.5 * math.log1p(math.exp(-low))))
    solver = DOP853(1e-6, 1e-6, variable="t")
    scaled = case.start() / case.sde.alpha(ends[0])
    states = []
    for sde in (case.sde, ve, vp):
        times = ends if sde is case.sde else sde.time_of(levels)
        alpha = sde.alpha(times)
        out = case.solve(solver, model=case.model(sde=sde), x=alpha[0] * scaled, times=times)
        states.append(out[1:] / alpha[1])
    for name, other in zip(("VE", "VP"), states[1:], strict=True):
        yield agree(
            f"x / alpha at the end of the flow, against {name}'s,",
            states[0],
            other,
            ends[1:],
            _TIGHT,
            steps=False,
        )
