"""Samplers: the probability flow (DDIM and DPM-Solver-1, EDM's sampler, one flow for all linear
SDEs), discretizations of the reverse SDE, Langevin correctors, and one function seen in several
ways.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sdediff.exact import Gaussian
from sdediff.sde import VE, VP, LinearSDE
from sdediff.solvers import (
    DDIM,
    DOP853,
    SEEDS,
    Ancestral,
    Churn,
    DPMSolver,
    DPMSolverPP,
    Euler,
    EulerMaruyama,
    ExponentialSinglestep,
    Heun,
    Langevin,
    PredictorCorrector,
    Problem,
    Renoise,
    ReverseDiffusion,
    RungeKutta4,
    SDEDPMSolverPP,
    Solver,
    Step,
    StepNoise,
    StochasticHeun,
)
from sdediff.testing.equivalences.case import Case, able, agree, equivalence, grid_of, span
from sdediff.testing.orders import measured
from sdediff.testing.report import Comparison

__all__: list[str] = []

_TIGHT = 1e-4
_MOST = 2**0.5 - 1
_SLOPE = 0.25
_COUNTS = (16, 32, 64)
_WINDOW = 3.0


@equivalence(
    "DDIM",
    statement="`DDIM(eta=0)` = exponential Euler on the probability flow = `DPMSolver(1)` = "
    "`Euler` in sigma / alpha",
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
    "`Heun(variable='sigma')`, in x / alpha under any SDE",
)
def edm(case: Case) -> Iterator[Comparison]:
    """The published loop on the levels sigma / alpha; down to sigma = 0 where that is at t = 0."""
    times = _to_zero(case)
    yield agree(
        "Heun", case.solve(Heun(variable="sigma"), times=times), _karras(case, times), times
    )


@equivalence(
    "EDM churn",
    statement="EDM's stochastic sampler (Algorithm 2), its noise at most that of the grid's "
    "start unless the SDE goes on after it, is `Churn(Heun(variable='sigma'))`",
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
        t, t_next, time = levels[i], levels[i + 1], times[i]
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
    "log-SNR ends the SDE, `VE` and `VP` take one start, scaled, to one end, scaled",
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


@equivalence(
    "reverse SDE",
    statement="`EulerMaruyama`, `ReverseDiffusion` (by either rule) and `Ancestral` agree in "
    "law at order 1 as N grows: by how much the measured order falls short of 1",
    bound=_SLOPE,
    costly=True,
)
def reverse_sde(case: Case) -> Iterator[Comparison]:
    """Mean and standard deviation of the chain on Gaussian data against those of x_s, without Monte
    Carlo (`Gaussian.chain`).

    Between log-SNR -3 and 3, or as much of that as there is, on grids uniform in log-SNR: Song et
    al. 2021 (arXiv 2011.13456, eq. 6, 46 and Appendix F).
    """
    sde = case.sde
    mean, covariance = case.law.data_moments()
    law = Gaussian(mean, covariance.diagonal())
    start, end = _middle(sde)
    true_mean, true_cov = law.moments(sde, end)
    true_std = true_cov.diagonal().sqrt()
    for solver in (EulerMaruyama(), ReverseDiffusion(), ReverseDiffusion("song"), Ancestral()):
        errors = []
        for n in _COUNTS:
            times = torch.tensor(grid_of(sde, [1.0] * n, start, end), dtype=torch.float64)
            rates = -2 * sde.f(times[:-1]) * -times.diff()
            if "coefficients" in solver.needs and float(rates.max()) >= 0.5:
                break  # the rule needs beta h < 1
            mean, covariance = law.chain(sde, solver, times)
            off = (mean - true_mean) ** 2 + (covariance.diagonal().sqrt() - true_std) ** 2
            errors.append(float((off.sum() / true_std.square().sum()).sqrt()))
        else:
            yield min(
                (
                    measured(
                        f"the order in law of {solver!r}",
                        errors[first:],
                        1.0,
                        where=f"t = {start:.6g} to {end:.6g}",
                        hint="an order too low",
                        places=f"at N = {', '.join(map(str, _COUNTS[first:]))}",
                    )
                    for first in (0, 1)
                ),
                key=lambda found: found.deviation,
            )


def _middle(sde: LinearSDE) -> tuple[float, float]:
    """(start, end) of log-SNR -3 to 3, moved into the usable range where that is elsewhere."""
    first, last = (
        float(level) for level in sde.log_snr(torch.tensor(span(sde), dtype=torch.float64))
    )
    low = max(first, min(-_WINDOW, last - 2 * _WINDOW))
    high = min(last, low + 2 * _WINDOW)
    start, end = sde.time_of(torch.tensor([low, high], dtype=torch.float64)).tolist()
    return start, end


@dataclass(frozen=True)
class _Stay(Solver):
    """The predictor of a corrector-only sampler: x_s = x."""

    needs = frozenset()
    evaluations = 0

    def step(
        self, problem: Problem, x: Tensor, plan: Any, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        return Step(x, x)


@equivalence(
    "annealed Langevin",
    statement="NCSN's annealed Langevin dynamics with step eps sigma_i^2 / sigma_L^2, times "
    "Song et al.'s alpha_i = 1 - beta_i where alpha is not constant, is "
    "`Langevin(sqrt(eps) / (2 sigma_L))` on the grid, and the corrector-only "
    "`PredictorCorrector`",
)
def annealed(case: Case) -> Iterator[Comparison]:
    """x <- x + step_i / 2 score(x, t_i) + sqrt(step_i) z, twice a level: Song and Ermon 2019 (arXiv
    1907.05600, Algorithm 1).

    beta_i is -2 f(t_i) times the interval after t_i, the last one's twice: Algorithm 5 of Song
    et al. 2021 (arXiv 2011.13456).
    """
    sde, times = case.sde, case.times
    sigma, rounds = sde.sigma(times), 2
    eps = (2 * 0.1 * sigma[-1]) ** 2
    x = case.start()
    states = [x]
    for i, t in enumerate(times[1:]):
        follows = min(i + 1, len(times) - 2)
        beta = -2 * sde.f(t) * (times[follows] - times[follows + 1])
        step = (1 - beta).clamp(min=0) * eps * sigma[i + 1] ** 2 / sigma[-1] ** 2
        for k in range(rounds):
            z = case.noise.at(i).normal("corrector", k)
            x = x + step / 2 * case.law.score(sde, x, t) + step.sqrt() * z
        states.append(x)
    expected = torch.stack(states)
    corrector = Langevin(float(eps.sqrt() / (2 * sigma[-1])), rounds)
    for solver in (corrector, PredictorCorrector(_Stay(), corrector)):
        yield agree(repr(solver), case.solve(solver), expected, times)


@equivalence(
    "predictor alone",
    statement="`PredictorCorrector` with zero corrector steps, `Langevin(n_steps=0)`, is its "
    "predictor, in either sequence",
)
def predictor_alone(case: Case) -> Iterator[Comparison]:
    """The last mean too: Song et al. 2021 (arXiv 2011.13456, Algorithm 1 with M = 0)."""
    for predictor in (ReverseDiffusion(), DDIM()):
        expected = case.solve(predictor)
        for sequence in ("predictor-first", "corrector-first"):
            solver = PredictorCorrector(predictor, Langevin(n_steps=0), sequence)
            yield agree(repr(solver), case.solve(solver), expected, case.times)


@equivalence(
    "no noise",
    statement="at lambda = 0 a stochastic solver is its deterministic twin: `EulerMaruyama` is "
    "`Euler(variable='t')`, `StochasticHeun` is `Heun(variable='t')`, `Ancestral` is "
    "`DDIM()`, `SDEDPMSolverPP` is `DPMSolverPP`, `SEEDS` the noise-form single "
    "step, `Renoise` what it is around",
)
def no_noise(case: Case) -> Iterator[Comparison]:
    """The family of Song et al. 2021 (arXiv 2011.13456, Appendix D.1) at its end, the probability
    flow.
    """
    for solver, twin in (
        (EulerMaruyama(), Euler(variable="t")),
        (StochasticHeun(), Heun(variable="t")),
        (Ancestral(), DDIM()),
        (SDEDPMSolverPP(), DPMSolverPP()),
        (SEEDS(2), ExponentialSinglestep(2, form="noise")),
        (Renoise(RungeKutta4(variable="t")), RungeKutta4(variable="t")),
    ):
        yield agree(
            f"{solver!r} at lambda = 0", case.solve(solver, 0.0), case.solve(twin, 0.0), case.times
        )


@equivalence(
    "predictions",
    statement="networks that predict noise, score, data, v, flow and edm of one function give "
    "the same samples",
)
def predictions(case: Case) -> Iterator[Comparison]:
    """Against the prediction of the case, by a step in data form, one in noise form and the reverse
    SDE.
    """
    ways = able(case.sde, case.times)
    for solver in (DDIM(), DPMSolverPP(), EulerMaruyama()):
        expected = case.solve(solver)
        for way in ways:
            if way != case.predicts:
                out = case.solve(solver, model=case.model(way))
                yield agree(
                    f"the sample by {way}, against {case.predicts},", out, expected, case.times
                )
