"""Every method with the orders that it claims, and its law on Gaussian data without Monte Carlo."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from all_sdes import SDES
from torch import Tensor

import sdediff as sd
from sdediff.exact.chain import affine_moments
from sdediff.reverse import Reverse
from sdediff.solvers import Solver

GAUSSIAN = sd.exact.Gaussian(0.4, 0.09)


class Method(NamedTuple):
    """A method and the orders it claims: on the probability flow, along a path, in law; None: it
    has none, or no fixed one.
    """

    solver: Solver
    deterministic: float | None = None
    strong: float | None = None
    weak: float | None = None
    refined: Callable[[int], Solver] | None = None
    """The solver for n steps, where its own parameters have to be refined as well."""
    ladder: tuple[int, ...] = (10, 20, 40)
    """Numbers of steps at which the deterministic error follows its order."""
    law: tuple[int, ...] = (16, 32, 64)
    """The same for the law."""

    def __repr__(self) -> str:
        return repr(self.solver)

    def at(self, n: int) -> Solver:
        return self.solver if self.refined is None else self.refined(n)


def _pair(predictor: Solver, corrector: Solver, first: str = "predictor-first") -> Method:
    return Method(sd.PredictorCorrector(predictor, corrector, first))  # type: ignore[arg-type]


MANY = (80, 160, 320)


METHODS = [
    *(Method(sd.solvers.Euler(variable=u), 1) for u in (None, "t", "sigma", "log_snr", "angle")),
    *(Method(sd.solvers.Midpoint(variable=u), 2) for u in (None, "t", "sigma", "log_snr", "angle")),
    *(Method(sd.Heun(variable=u), 2) for u in (None, "t", "sigma", "log_snr", "angle")),
    *(
        Method(sd.solvers.RungeKutta4(variable=u), 4)
        for u in (None, "t", "sigma", "log_snr", "angle")
    ),
    Method(sd.solvers.DormandPrince(), 5),
    Method(sd.solvers.RK23(1e-3, 1e-3), 3),
    Method(sd.RK45(1e-3, 1e-3), 5),
    Method(sd.solvers.Tsit5(1e-3, 1e-3), 5),
    Method(sd.solvers.DOP853(1e-3, 1e-3), 8),
    Method(sd.EulerMaruyama(), 1, 1, 1),
    Method(sd.solvers.StochasticHeun(), 2, 1, 2),
    Method(sd.solvers.SRA1(), 2, 1.5, 2),
    Method(sd.solvers.SRA3(), 3, 1.5, 2),
    Method(sd.ReverseDiffusion(), 1, 1, 1),
    Method(sd.ReverseDiffusion("song"), 1, 1, 1),
    Method(sd.solvers.Ancestral(), 1, 1, 1),
    Method(sd.DDIM(), 1),
    Method(sd.DDIM(0.5), weak=1),
    Method(sd.DDIM(1.0), strong=1, weak=1),
    *(Method(sd.solvers.ExponentialSinglestep(p), p) for p in (1, 2, 3, 4)),
    Method(sd.solvers.ExponentialPair(3, rtol=1e-3, atol=1e-3), 3),
    Method(sd.solvers.ExponentialSinglestep(3, "noise", "sigma"), 3),
    Method(sd.solvers.ExponentialSinglestep(3, r1=0.2, r2=0.9), 3, ladder=(20, 40, 80)),
    Method(sd.solvers.ExponentialSinglestep(4, 0.5, "t"), 4),
    *(Method(sd.ExponentialMultistep(p), p, ladder=MANY) for p in (1, 2, 3, 4)),
    Method(sd.ExponentialMultistep(4, "noise", "sigma"), 4, ladder=MANY),
    Method(sd.ExponentialMultistep(3, 0.5, "t", corrector=3), 4, ladder=MANY),
    Method(sd.solvers.EulerTrapezoid(), 2, 1, 2, law=(32, 64, 128)),
    Method(sd.AdaptiveSDE(1e-1, 1e-1)),
    Method(sd.solvers.ExponentialSinglestep(3, sd.solvers.Straight(0.3), "angle"), 3),
    Method(
        sd.ExponentialMultistep(3, sd.solvers.Straight(0.3), "angle", corrector=3), 4, ladder=MANY
    ),
    Method(
        sd.ExponentialMultistep(2, sd.solvers.Straight(0.2), "angle", sde=True),
        2,
        1,
        2,
        ladder=MANY,
        law=(32, 64, 128),
    ),
    Method(sd.solvers.DPMSolver(2), 2),
    Method(sd.solvers.DPMSolverPPSinglestep(), 2),
    Method(sd.solvers.DPMSolverPP(), 2, ladder=MANY),
    Method(sd.solvers.DPMSolverPP(3), 3, ladder=MANY),
    *(Method(sd.solvers.UniPC(p), p + 1, ladder=MANY) for p in (1, 2, 3)),
    Method(sd.solvers.UniPC(3, startup="published", lower_final=True), 2, ladder=MANY),
    Method(sd.solvers.DEIS(), 3, ladder=(160, 320, 640)),
    Method(sd.solvers.LMS(), 4, ladder=MANY),
    Method(sd.solvers.IPNDM(), 2, ladder=(20, 40, 80)),
    Method(sd.solvers.PNDM(), 2, ladder=(20, 40, 80)),
    Method(sd.solvers.PLMS(), 2, ladder=(20, 40, 80)),
    Method(sd.solvers.RES(), 2, ladder=MANY),
    Method(sd.solvers.RESSinglestep(3), 3),
    Method(sd.solvers.SDEDPMSolverPP(), 2, 1, 2, ladder=MANY, law=(32, 64, 128)),
    Method(sd.solvers.SDEDPMSolverPP(3), 2, 1, 2, ladder=(40, 80, 160)),
    Method(sd.solvers.SASolver(2), 3, 1, 2, ladder=MANY),
    Method(sd.solvers.SASolver(), 3, 1, 2, law=(32, 64, 128)),
    Method(sd.solvers.SEEDS(), 3, 1, 2),
    Method(sd.solvers.ERSDE(), weak=2),
    Method(sd.solvers.Renoise(sd.Heun()), 2, weak=2, law=(64, 128, 256)),
    Method(sd.solvers.Renoise(sd.solvers.RungeKutta4()), 4, weak=4, law=(64, 128, 256)),
    Method(
        sd.solvers.Renoise(sd.solvers.ExponentialSinglestep(3, "noise")),
        3,
        weak=3,
        law=(32, 64, 128),
    ),
    Method(sd.solvers.Renoise(sd.solvers.DPMSolver(2), eta=0.5), weak=2, law=(32, 64, 128)),
    Method(
        sd.solvers.Renoise(sd.solvers.DPMSolverPPSinglestep(), eta=1.3), weak=2, law=(64, 128, 256)
    ),
    Method(sd.solvers.Switch((sd.Heun(), sd.solvers.UniPC(2)), log_snr=(0.0,)), 2),
    Method(
        sd.solvers.Switch((sd.EulerMaruyama(), sd.solvers.SASolver(2)), log_snr=(-1.0,)),
        1,
        1,
        1,
        ladder=MANY,
    ),
    Method(sd.solvers.InverseDDIM(tol=0, iterations=8), 1),
    Method(sd.DDPM.from_sde(sd.VP(), 26)),
    Method(sd.NCSN.from_sde(sd.VE(0.02, 30.0), 12, n_steps=2)),
    Method(sd.Langevin()),
    Method(sd.Langevin(0.1, 2, "song")),
    Method(sd.solvers.MetropolisLangevin()),
    _pair(sd.ReverseDiffusion(), sd.Langevin(0.1)),
    _pair(sd.EulerMaruyama(), sd.Langevin(0.1, 2), "corrector-first"),
    _pair(sd.solvers.Ancestral(), sd.solvers.MetropolisLangevin()),
    _pair(sd.DDIM(), sd.solvers.MetropolisLangevin(), "corrector-first"),
    _pair(sd.Heun(), sd.Langevin(0.1)),
    Method(sd.PredictorCorrector(None, sd.Langevin(0.1))),
    Method(sd.solvers.Churn(sd.Heun(), 0.0), 2),
    Method(sd.solvers.Churn(sd.Heun(variable="sigma"), 4.0), weak=2),
    Method(sd.solvers.Churn(sd.solvers.Euler(variable="sigma"), 4.0), weak=1),
    Method(
        sd.solvers.Restart(sd.Heun(), (0.35, 0.55), 2, 4),
        weak=2,
        refined=lambda n: sd.solvers.Restart(sd.Heun(), (0.35, 0.55), 2, max(1, n // 4)),
        law=(32, 64, 128),
    ),
    Method(sd.solvers.Recurrence(sd.Heun(), 3), weak=2),
]


AT_LEAST = {sd.ReverseDiffusion("song"): 24}
"""Steps over VP's range below which a method refuses, in words."""


OWN_SDE = {sd.DDPM: SDES["VP"], sd.NCSN: SDES["VE"]}
"""Methods with a grid of their own are of one SDE."""


def sde_of(solver: Solver) -> sd.LinearSDE:
    """Its own SDE, or VP."""
    return OWN_SDE.get(type(solver), SDES["VP"])  # type: ignore[call-overload]


def inner(sde: sd.LinearSDE, n: int, share: tuple[float, float] = (0.8, 0.2)) -> Tensor:
    """The inner part of the range, where steps resolve the coefficients and errors follow their
    order.
    """
    return torch.linspace(share[0] * sde.T, share[1] * sde.T, n + 1, dtype=torch.float64)


def chain(
    sde: sd.LinearSDE, solver: Solver, times: Tensor, lam: float | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the solver's chain from the exact law at times[0], to 1e-10, by unit
    impulses.
    """
    lam = (1.0 if solver.solves_sde else 0.0) if lam is None else lam
    model, (mean, cov) = GAUSSIAN.model(sde), GAUSSIAN.moments(sde, times[0])
    return affine_moments(
        lambda rows: Reverse(model, rows, lam), solver, times, mean, cov.diagonal().sqrt()
    )


def law_errors(
    sde: sd.LinearSDE, method: Method, ladder: tuple[int, ...], lam: float | None = None
) -> list[float]:
    """Mean and standard deviation of the chain against the exact law, without Monte Carlo."""
    errors = []
    for n in ladder:
        times = inner(sde, n)
        mean, cov = chain(sde, method.at(n), times, lam)
        true_mean, true_cov = GAUSSIAN.moments(sde, times[-1])
        errors.append(
            float((mean - true_mean).abs().sum() + (cov.sqrt() - true_cov.sqrt()).abs().sum())
        )
    return errors
