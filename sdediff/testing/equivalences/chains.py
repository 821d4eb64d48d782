"""Discretizations of the reverse SDE, and Langevin correctors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdediff.exact import Gaussian
from sdediff.solvers import (
    DDIM,
    SEEDS,
    Ancestral,
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
from sdediff.testing.equivalences.case import Case, grid_of, span
from sdediff.testing.equivalences.table import agree, equivalence
from sdediff.testing.identity import Comparison
from sdediff.testing.paths import slope

__all__: list[str] = []

_SLOPE = 0.25
_COUNTS = (16, 32, 64)
_WINDOW = 3.0


@equivalence(
    "reverse SDE",
    statement="`EulerMaruyama`, `ReverseDiffusion` (by either rule) and `Ancestral` agree in law "
    "at order "
    "1 as N grows: by how "
    "much the measured order falls short of 1",
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
    true_mean, true_std = _spread(law.moments(sde, end))
    for solver in (EulerMaruyama(), ReverseDiffusion(), ReverseDiffusion("song"), Ancestral()):
        errors = []
        for n in _COUNTS:
            times = torch.tensor(grid_of(sde, [1.0] * n, start, end), dtype=torch.float64)
            if (
                "coefficients" in solver.needs
                and float((-2 * sde.f(times[:-1]) * -times.diff()).max()) >= 0.5
            ):
                break  # the rule needs beta h < 1
            mean, std = _spread(law.chain(sde, solver, times))
            errors.append(
                float(
                    (
                        ((mean - true_mean) ** 2 + (std - true_std) ** 2).sum()
                        / true_std.square().sum()
                    ).sqrt()
                )
            )
        else:
            sizes = [max(error, 1e-300) for error in errors]
            measured = max(slope(sizes), slope(sizes[-2:]))
            said = ", ".join(f"{error:.2g}" for error in errors)
            gap = 0.0 if errors[-1] < 1e-9 else max(0.0, 1 - measured)
            hint = (
                "the errors do not fall: a wrong factor in drift or noise"
                if measured < 0.3
                else "an order too low"
            )
            counts = ", ".join(map(str, _COUNTS))
            detail = (
                f"the order in law of {solver!r} is {measured:.2f}, not 1 (errors {said} at N = "
                f"{counts})"
            )
            yield Comparison(gap, _SLOPE, f"t = {start:.6g} to {end:.6g}", detail, hint)


def _middle(sde: Any) -> tuple[float, float]:
    """(start, end) of log-SNR -3 to 3, moved into the usable range where that is elsewhere."""
    first, last = (
        float(level) for level in sde.log_snr(torch.tensor(span(sde), dtype=torch.float64))
    )
    low = max(first, min(-_WINDOW, last - 2 * _WINDOW))
    high = min(last, low + 2 * _WINDOW)
    start, end = sde.time_of(torch.tensor([low, high], dtype=torch.float64)).tolist()
    return start, end


def _spread(moments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    mean, covariance = moments
    return mean, covariance.diagonal().sqrt()


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
    statement="NCSN's annealed Langevin dynamics with step eps sigma_i^2 / sigma_L^2, times Song "
    "et "
    "al.'s alpha_i = 1 - beta_i where alpha is not constant, is `Langevin(sqrt(eps) / (2 "
    "sigma_L))` "
    "on the grid, and the corrector-only `PredictorCorrector`",
)
def annealed(case: Case) -> Iterator[Comparison]:
    """x <- x + step_i / 2 score(x, t_i) + sqrt(step_i) z, twice a level: Song and Ermon 2019 (arXiv
    1907.05600, Algorithm 1).

    beta_i is -2 f(t_i) times the interval after t_i, the last one's twice: Algorithm 5 of Song
    et al. 2021 (arXiv 2011.13456).
    """
    sde, times = case.sde, case.times
    sigma = sde.sigma(times)
    snr = 0.1
    rounds = 2
    eps = (2 * snr * sigma[-1]) ** 2
    x = case.start()
    states = [x]
    for i, t in enumerate(times[1:]):
        follows = min(i + 1, len(times) - 2)
        beta = -2 * sde.f(t) * (times[follows] - times[follows + 1])
        step = (1 - beta).clamp(min=0) * eps * sigma[i + 1] ** 2 / sigma[-1] ** 2
        for k in range(rounds):
            x = (
                x
                + step / 2 * case.law.score(sde, x, t)
                + step.sqrt() * case.noise.at(i).normal("corrector", k)
            )
        states.append(x)
    expected = torch.stack(states)
    corrector = Langevin(float(eps.sqrt() / (2 * sigma[-1])), rounds)
    yield agree("Langevin", case.solve(corrector), expected, times)
    yield agree(
        "PredictorCorrector without a predictor",
        case.solve(PredictorCorrector(_Stay(), corrector)),
        expected,
        times,
    )


@equivalence(
    "predictor alone",
    statement="`PredictorCorrector` with zero corrector steps, `Langevin(n_steps=0)`, is its "
    "predictor, in "
    "either sequence",
)
def predictor_alone(case: Case) -> Iterator[Comparison]:
    """The last mean too: Song et al. 2021 (arXiv 2011.13456, Algorithm 1 with M = 0)."""
    for predictor in (ReverseDiffusion(), DDIM()):
        expected = case.solve(predictor)
        for solver in (
            PredictorCorrector(predictor, Langevin(n_steps=0)),
            PredictorCorrector(predictor, Langevin(n_steps=0), "corrector-first"),
        ):
            yield agree(repr(solver), case.solve(solver), expected, case.times)


@equivalence(
    "no noise",
    statement="at lambda = 0 a stochastic solver is its deterministic twin: `EulerMaruyama` is "
    "`Euler(variable='t')`, "
    "`StochasticHeun` is `Heun(variable='t')`, `Ancestral` is `DDIM()`, `SDEDPMSolverPP` is "
    "`DPMSolverPP`, `SEEDS` the noise-form "
    "single step, `Renoise` what it is around",
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
