"""Exponential solvers that are special cases of each other: one solve by two names, with the same
noise, to 1e-10.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import exp, sqrt
from typing import Any

import pytest
from all_sdes import SDES
from mixture_solves import close, families, grid, ours, theirs
from published_formulas import Walk, lagrange
from scipy.integrate import quad
from torch import Tensor

import sdediff as sd
from sdediff.solvers import Solver

PUBLISHED: dict[str, Any] = {"startup": "published"}
SIGMA: dict[str, Any] = {"form": "data", "variable": "sigma"}
TWINS = [
    *(
        (
            sd.solvers.SDEDPMSolverPP(p, **PUBLISHED),
            0.0,
            sd.solvers.DPMSolverPP(p, **PUBLISHED),
            None,
        )
        for p in (1, 2, 3)
    ),
    (sd.solvers.SASolver(2), 0.0, sd.ExponentialMultistep(2, corrector=2, **PUBLISHED), None),
    (
        sd.solvers.SASolver(3, corrector=1),
        0.0,
        sd.ExponentialMultistep(3, corrector=1, **PUBLISHED),
        None,
    ),
    (sd.solvers.SASolver(3), 0.0, sd.solvers.UniPC(3, moments="exact", **PUBLISHED), None),
    (sd.solvers.SASolver(2, corrector=0), 1.0, sd.solvers.SDEDPMSolverPP(2, moments="exact"), 1.0),
    *(
        (sd.solvers.SEEDS(p), 0.0, sd.solvers.DPMSolver(p, moments="exact"), None)
        for p in (1, 2, 3)
    ),
    (sd.solvers.SEEDS(1, form="data"), 0.7, sd.solvers.Ancestral(), 0.7),
    *(
        (
            sd.solvers.ERSDE(p, scale=lambda rho: rho),
            None,
            sd.ExponentialMultistep(p, **SIGMA, **PUBLISHED),
            None,
        )
        for p in (1, 2, 3)
    ),
    (sd.solvers.ERSDE(1, scale=lambda rho: rho**2), None, sd.solvers.Ancestral(), 1.0),
    (
        sd.solvers.ERSDE(2, scale=lambda rho: rho**2),
        None,
        sd.ExponentialMultistep(2, sde=True, **SIGMA),
        1.0,
    ),
    (sd.solvers.SDEDPMSolverPP(1), 1.0, sd.solvers.Ancestral(), 1.0),
    (sd.solvers.SDEDPMSolverPP(1), 0.3, sd.solvers.Ancestral(), 0.3),
    (sd.solvers.SASolver(1, corrector=0), 1.4, sd.solvers.Ancestral(), 1.4),
    (sd.DDIM(1.0), None, sd.solvers.SDEDPMSolverPP(1), 1.0),
    *(
        (solver, None, sd.DDIM(), None)
        for solver in (
            sd.solvers.DPMSolver(1),
            sd.solvers.DPMSolverPPSinglestep(1),
            sd.solvers.DPMSolverPP(1),
            sd.solvers.DEIS(1),
            sd.solvers.LMS(1),
            sd.solvers.IPNDM(1),
            sd.solvers.UniPC(1, corrector=0),
            *(
                kind(1, form=form, variable=variable)
                for form in ("data", "noise")
                for variable in ("log_snr", "sigma", "t")
                for kind in (sd.ExponentialMultistep, sd.solvers.ExponentialSinglestep)
            ),
        )
    ),
    (sd.solvers.LMS(3), None, sd.solvers.DEIS(3, variable="sigma"), None),
    (sd.solvers.UniPC(3, corrector=0), None, sd.solvers.DPMSolverPP(3), None),
    (
        sd.solvers.ExponentialSinglestep(2, form="noise", variable="sigma"),
        None,
        sd.solvers.Midpoint(variable="sigma"),
        None,
    ),
]


@pytest.mark.parametrize(
    ("one", "lam", "two", "other"),
    TWINS,
    ids=[f"{i}-{type(a).__name__}-{type(b).__name__}" for i, (a, _, b, _) in enumerate(TWINS)],
)
@families("VP")
def test_twins(
    sde: sd.LinearSDE, one: Solver, lam: float | None, two: Solver, other: float | None
) -> None:
    """Special cases of each other, with the same noise."""
    times = grid(sde)
    close(ours(sde, one, times, lam), ours(sde, two, times, other))


STARTS = [
    (sd.solvers.DPMSolverPP(3), sd.solvers.DPMSolverPPSinglestep(2), 1),
    (sd.solvers.UniPC(3), sd.solvers.DPMSolverPPSinglestep(3), 1),
    (sd.solvers.UniPC(4), sd.solvers.ExponentialSinglestep(4), 2),
    (sd.solvers.DEIS(3), sd.solvers.ExponentialSinglestep(2, form="noise", variable="t"), 1),
    (sd.solvers.LMS(), sd.solvers.ExponentialSinglestep(3, form="noise", variable="sigma"), 2),
]


@pytest.mark.parametrize(
    ("solver", "single", "steps"), STARTS, ids=[repr(row[0]) for row in STARTS]
)
def test_multistep_methods_start_with_single_steps(
    solver: Solver, single: Solver, steps: int
) -> None:
    """So many, of the order that keeps the method's; the step after them is not one."""
    sde = SDES["VP"]
    close(ours(sde, solver, grid(sde, steps + 1)), ours(sde, single, grid(sde, steps + 1)))
    assert (
        float(
            (ours(sde, solver, grid(sde, steps + 2)) - ours(sde, single, grid(sde, steps + 2)))
            .abs()
            .max()
        )
        > 1e-8
    )


def mixture_of_forms(w: Walk, x: Tensor, theta: float, lam: float) -> Tensor:
    """Order 2 for S = alpha exp(-theta (1 + lambda^2) u), by adaptive quadrature; VP has alpha^2 =
    1 / (1 + exp(-2 u)).
    """

    def alpha(u: float) -> float:
        return 1 / sqrt(1 + exp(-2 * u))

    before: list[tuple[Tensor, Tensor]] = []
    for i in range(w.n):
        a, b, s = w.u[i], w.u[i + 1], 1 + lam**2

        def kept(u: float, b: float = b, s: float = s) -> float:
            return alpha(b) / alpha(u) * exp(-theta * s * (b - u))

        def weight(f: Callable[[float], float], a: float = a, b: float = b) -> float:
            value: float = quad(f, a, b, epsabs=0, epsrel=1e-12)[0]
            return value

        before.insert(0, (w.x0(x, i), w.eps(x, i)))
        end = kept(a) * x + weight(lambda u: 2 * (lam * kept(u) * alpha(-u)) ** 2) ** 0.5 * w.z(i)
        nodes = [w.u[i - k] for k in range(min(2, i + 1))]
        for j, (data, noise) in enumerate(before[: len(nodes)]):
            p = lagrange(nodes, j)
            end = end + s * theta * weight(lambda u: kept(u) * alpha(u) * p(u)) * data  # noqa: B023
            end = end - s * (1 - theta) * weight(lambda u: kept(u) * alpha(-u) * p(u)) * noise  # noqa: B023
        x = end
    return x


@pytest.mark.parametrize(("theta", "lam"), [(0.3, 0.0), (0.7, 1.0), (0.0, 0.6), (1.0, 0.6)])
def test_a_share_of_the_prediction_as_data_and_the_rest_as_noise(theta: float, lam: float) -> None:
    """Between the forms of the papers there is no publication to compare with: the variation of
    constants itself.
    """
    sde = SDES["VP"]
    solver = sd.ExponentialMultistep(2, form=theta, sde=lam > 0)
    got = ours(sde, solver, grid(sde), lam if lam else None)
    close(got, theirs(sde, partial(mixture_of_forms, theta=theta, lam=lam), grid(sde)))
