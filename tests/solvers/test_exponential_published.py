"""Exponential solvers against the published update formulas, whole solves with the same noise, to
1e-10.

The formulas are in `published_formulas` and `published_singlestep`, written from the papers; where
a publication or a widely used code differs from its own derivation, `test_exponential_peers` says
by how much.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import cosh, exp, log, tanh
from typing import Any, Literal, NamedTuple

import published_formulas as published
import published_singlestep as singlestep
import pytest
import torch
from all_sdes import SDES
from mixture_solves import MIXTURE, close, families, grid, ours, start, theirs, white
from published_formulas import Walk
from torch import Tensor

import sdediff as sd
from sdediff.reverse import Reverse
from sdediff.solvers import Options, Solver, StepNoise, integrate

# -- published formulas ----------------------------------------------------------------------------


class Equality(NamedTuple):
    name: str
    solver: Solver
    formula: Callable[[Walk, Tensor], Tensor]
    lam: float | None = None


P: dict[str, Any] = {"startup": "published"}
PHI = {
    "rho": (lambda rho: rho, lambda rho: rho),
    "rho^2": (lambda rho: rho**2, lambda rho: rho**2),
    "SDE_5": (None, lambda rho: rho * (exp(rho**0.3) + 10)),
    "rho^1.5": (lambda rho: rho**1.5, lambda rho: rho**1.5),
}

BH: list[tuple[int, Literal["half-h", "half"]]] = [(1, "half-h"), (2, "half")]
EQUALITIES = [
    *(
        Equality(
            f"DPM-Solver-{p}", sd.solvers.DPMSolver(p), partial(singlestep.dpm_solver, order=p)
        )
        for p in (1, 2, 3)
    ),
    *(
        Equality(
            f"DPM-Solver-2, r={r}",
            sd.solvers.DPMSolver(2, r1=r),
            partial(singlestep.dpm_solver, order=2, r=r),
        )
        for r in (0.3, 1.0)
    ),
    *(
        Equality(
            f"DPM-Solver++({p}S)",
            sd.solvers.DPMSolverPPSinglestep(p),
            partial(singlestep.dpm_solver_pp_singlestep, order=p),
        )
        for p in (1, 2, 3)
    ),
    Equality(
        "DPM-Solver++(2S), r=0.7",
        sd.solvers.DPMSolverPPSinglestep(2, r1=0.7),
        partial(singlestep.dpm_solver_pp_singlestep, order=2, r=0.7),
    ),
    *(
        Equality(f"RES-{p}", sd.solvers.RESSinglestep(p), partial(singlestep.res, order=p))
        for p in (2, 3)
    ),
    *(
        Equality(
            f"Hochbruck and Ostermann, {c}",
            sd.solvers.ExponentialSinglestep(3, r1=c[0], r2=c[1]),
            partial(singlestep.res, order=3, c=c),
        )
        for c in ((0.2, 0.9), (0.75, 0.8))
    ),
    Equality(
        "RES-2M",
        sd.solvers.RES(),
        partial(published.sa_solver, order=2, corrector=0, law=published.constant(0.0)),
    ),
    Equality("PNDM", sd.solvers.PNDM(), partial(singlestep.pndm, runge_kutta=True)),
    Equality("PLMS", sd.solvers.PLMS(), partial(singlestep.pndm, runge_kutta=False)),
    *(
        Equality(
            f"DPM-Solver++({p}M)",
            sd.solvers.DPMSolverPP(p, **P),
            partial(published.dpm_solver_pp, order=p),
        )
        for p in (1, 2, 3)
    ),
    Equality(
        "DPM-Solver++(2M)", sd.solvers.DPMSolverPP(2), partial(published.dpm_solver_pp, order=2)
    ),
    *(
        Equality(
            f"DPM-Solver++({p}M), lower final",
            sd.solvers.DPMSolverPP(p, lower_final=True, **P),
            partial(published.dpm_solver_pp, order=p, lower_final=True),
        )
        for p in (2, 3)
    ),
    Equality(
        "DPM-Solver++(2M), taylor",
        sd.solvers.DPMSolverPP(2, moments="exact"),
        partial(published.dpm_solver_pp, order=2, taylor=True),
    ),
    *(
        Equality(
            f"SDE-DPM-Solver++({p})",
            sd.solvers.SDEDPMSolverPP(p, **({} if p < 3 else P)),
            partial(published.dpm_solver_pp, order=p, noisy=True),
            1.0,
        )
        for p in (1, 2, 3)
    ),
    Equality(
        "SDE-DPM-Solver++(2), taylor",
        sd.solvers.SDEDPMSolverPP(2, moments="exact"),
        partial(published.dpm_solver_pp, order=2, noisy=True, taylor=True),
        1.0,
    ),
    *(
        Equality(
            f"UniPC-{p}, B_{b}",
            sd.solvers.UniPC(p, moments=moments, **P),
            partial(published.unipc, order=p, b=b),
        )
        for b, moments in BH
        for p in (1, 2, 3)
    ),
    *(
        Equality(
            f"UniPC-{p}, lower final",
            sd.solvers.UniPC(p, lower_final=True, **P),
            partial(published.unipc, order=p, b=2, lower_final=True),
        )
        for p in (2, 3)
    ),
    Equality("UniPC-4", sd.solvers.UniPC(4, **P), partial(published.unipc, order=4, b=2)),
    *(
        Equality(
            f"UniPC-{p} of noise, B_{b}",
            sd.solvers.UniPC(p, form="noise", moments=moments, **P),
            partial(published.unipc, order=p, b=b, data=False),
        )
        for b, moments in BH
        for p in (2, 3)
    ),
    *(
        Equality(
            f"SA-Solver {p}, {c}, tau {tau}",
            sd.solvers.SASolver(p, corrector=c),
            partial(published.sa_solver, order=p, corrector=c, law=published.constant(tau)),
            tau,
        )
        for p, c, tau in (
            (1, 1, 0.4),
            (2, 2, 0.4),
            (2, 0, 1.0),
            (2, 1, 1.0),
            (1, 3, 1.0),
            (3, 3, 0.4),
            (3, 2, 1.6),
            (4, 3, 1.0),
        )
    ),
    *(
        Equality(
            f"SA-Solver {p}, {c}, tau {tau}, rescaled",
            sd.solvers.SASolver(p, corrector=c, moments="half-h"),
            partial(
                published.sa_solver,
                order=p,
                corrector=c,
                law=published.constant(tau),
                rescaled=True,
            ),
            tau,
        )
        for p, c, tau in ((2, 0, 1.0), (2, 1, 0.4), (3, 3, 1.0))
    ),
    Equality(
        "SA-Solver 3, 3, lower final",
        sd.solvers.SASolver(3, lower_final=True),
        partial(
            published.sa_solver, order=3, corrector=3, law=published.constant(1.0), lower_final=True
        ),
        1.0,
    ),
    *(
        Equality(f"DEIS-tAB{p - 1}", sd.solvers.DEIS(p, **P), partial(published.deis_tab, order=p))
        for p in (1, 2, 3, 4)
    ),
    *(
        Equality(
            f"DEIS-rhoAB{p - 1}",
            sd.solvers.DEIS(p, variable="sigma", **P),
            partial(published.deis_rho_ab, order=p),
        )
        for p in (1, 2, 3, 4)
    ),
    Equality("LMS-4", sd.solvers.LMS(**P), partial(published.deis_rho_ab, order=4)),
    *(
        Equality(
            f"DEIS-{p}, log rho",
            sd.solvers.DEIS(p, variable="log_snr", **P),
            partial(published.deis_log_rho, order=p),
        )
        for p in (2, 3)
    ),
    *(
        Equality(f"iPNDM-{p}", sd.solvers.IPNDM(p, **P), partial(published.ipndm, order=p))
        for p in (1, 2, 3, 4)
    ),
    *(
        Equality(
            f"SEEDS-{p}",
            sd.solvers.SEEDS(p, moments="half"),
            partial(singlestep.seeds, order=p),
            1.0,
        )
        for p in (1, 2, 3)
    ),
    *(
        Equality(
            f"ER-SDE-{p}, {name}",
            sd.solvers.ERSDE(p, scale=torch_phi, **P),
            partial(published.er_sde, order=p, phi=phi, newton=True),
        )
        for p in (1, 2, 3)
        for name, (torch_phi, phi) in PHI.items()
    ),
]


@pytest.mark.thin(17)
@families("RectifiedFlow")
@pytest.mark.parametrize("case", EQUALITIES, ids=lambda case: case.name)
def test_equals_the_published_formula(sde: sd.LinearSDE, case: Equality) -> None:
    times = grid(sde)
    close(ours(sde, case.solver, times, case.lam), theirs(sde, case.formula, times))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "case", [case for case in EQUALITIES if "final" in case.name], ids=lambda case: case.name
)
def test_warm_up_and_lower_orders_meet_in_few_steps(case: Equality, steps: int) -> None:
    sde = SDES["VP"]
    times = grid(sde, steps + 1)
    close(ours(sde, case.solver, times, case.lam), theirs(sde, case.formula, times))


@pytest.mark.parametrize(("order", "corrector"), [(1, 0), (3, 0), (2, 2), (3, 3)])
@pytest.mark.parametrize("sde", ["VP", "VE"], indirect=True)
def test_sa_solver_at_a_tau_that_varies(sde: sd.LinearSDE, order: int, corrector: int) -> None:
    """tau^2 = 0.6 + 0.4 tanh(u / 2), whose integral is known: the coefficients of eq. 14 by
    adaptive quadrature.
    """

    def lam(t: Tensor) -> Tensor:
        return (0.6 + 0.4 * torch.tanh(sde.log_snr(t) / 4)).sqrt()

    def law(u: float) -> tuple[float, float]:
        return 0.6 * u + 0.8 * log(cosh(u / 2)), 0.6 + 0.4 * tanh(u / 2)

    times = grid(sde)
    got = ours(sde, sd.solvers.SASolver(order, corrector=corrector), times, lam)
    close(
        got,
        theirs(
            sde,
            partial(published.sa_solver, order=order, corrector=corrector, law=law, closed=False),
            times,
        ),
    )


@pytest.mark.parametrize(("order", "corrector"), [(1, 0), (2, 2), (3, 3)])
def test_sa_solver_at_a_tau_a_step(order: int, corrector: int) -> None:
    """The published formulas with the constant tau of each step, and nothing of the jumps."""
    sde, tau = SDES["VP"], [0.0, 1.0, 0.5, 0.0, 1.2, 0.7]
    times = grid(sde)

    def formula(w: Walk, x: Tensor) -> Tensor:
        mixing = [0.0]
        for i, each in enumerate(tau):
            mixing.append(mixing[-1] + each**2 * w.h(i))

        def law(u: float) -> tuple[float, float]:
            i = min(sum(u >= each for each in w.u) - 1, w.n - 1)
            return mixing[i] + tau[i] ** 2 * (u - w.u[i]), tau[i] ** 2

        return published.sa_solver(w, x, order, corrector, law)

    solver = sd.solvers.SASolver(order, corrector=corrector, startup="published")
    close(ours(sde, solver, times, tau), theirs(sde, formula, times))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("data", [False, True])
@families("VP", "VE")
def test_ancestral_steps_of_order_2_are_those_of_k_diffusion(
    sde: sd.LinearSDE, data: bool, eta: float
) -> None:
    """At every time but the last, beyond which our steps do not go."""
    inner = sd.solvers.DPMSolverPPSinglestep(2) if data else sd.solvers.DPMSolver(2)
    solver = sd.solvers.Renoise(inner, eta=eta)
    end = torch.full((1,), max(sde.t_min, 1e-4), dtype=torch.float64)
    times = torch.cat([grid(sde)[:4], end])  # no step but the last reaches beyond this end
    x, options = start(sde, times[0]), Options(trajectory=True)
    out = integrate(Reverse(MIXTURE.model(sde), 3), solver, x, times, white(), options)
    assert out.trajectory is not None
    close(out.trajectory[-2], theirs(sde, partial(singlestep.ancestral, eta=eta, data=data), times))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_renoise_around_ddim_is_ddim_of_that_eta(eta: float) -> None:
    sde = SDES["RectifiedFlow"]
    times, options = grid(sde), Options(trajectory=True)
    one, two = (
        integrate(
            Reverse(MIXTURE.model(sde), 3), solver, start(sde, times[0]), times, white(), options
        ).trajectory
        for solver in (sd.DDIM(eta), sd.solvers.Renoise(sd.DDIM(), eta))
    )
    assert one is not None
    assert two is not None
    close(one[:-1], two[:-1])


FAR = [
    (sd.solvers.DPMSolver(2), partial(singlestep.dpm_solver, order=2), None),
    (sd.solvers.DPMSolverPP(3, **P), partial(published.dpm_solver_pp, order=3), None),
    (sd.solvers.UniPC(3, **P), partial(published.unipc, order=3, b=2), None),
    (
        sd.solvers.SASolver(3),
        partial(published.sa_solver, order=3, corrector=3, law=published.constant(2.5)),
        2.5,
    ),
    (sd.solvers.SEEDS(3), partial(singlestep.seeds, order=3), 1.0),
]


@pytest.mark.parametrize(("solver", "formula", "lam"), FAR, ids=[repr(row[0]) for row in FAR])
def test_three_steps_over_the_whole_range(
    solver: Solver, formula: Callable[[Walk, Tensor], Tensor], lam: float | None
) -> None:
    """VE over 17 e-foldings of sigma: steps of up to 9, where a weight falls by up to 62."""
    sde = sd.VE(1e-6, 30.0)
    times = torch.tensor([1.0, 0.6, 0.55, 0.05], dtype=torch.float64)
    close(ours(sde, solver, times, lam), theirs(sde, formula, times))


# -- where log-SNR is infinite ---------------------------------------------------------------------


def from_no_signal(w: Walk, x: Tensor, order: int, noisy: bool = False) -> Tensor:
    """DPM-Solver++ whose first step starts at alpha = 0 and whose last ends at sigma = 0: the
    limits are of order 1, and a prediction where u is infinite is no node of a polynomial.
    """
    d = w.x0(x, 0)
    x = w.a[1] * d + w.s[1] * (w.z(0) if noisy else x / w.s[0])
    assert isinstance(w.noise, sd.White)
    inner = Walk(w.model, torch.tensor(w.times[1:-1], dtype=torch.float64), Later(w.noise))  # type: ignore[arg-type]
    x = published.dpm_solver_pp(inner, x, order, noisy=noisy)
    return w.a[-1] * w.x0(x, w.n - 1)


class Later(NamedTuple):
    """The noise from the second step on."""

    noise: sd.White

    def at(self, step: int) -> StepNoise:
        return self.noise.at(step + 1)


@pytest.mark.parametrize(
    ("order", "noisy"), [(1, False), (2, False), (3, False), (2, True), (3, True)]
)
def test_steps_from_alpha_zero_and_to_sigma_zero(order: int, noisy: bool) -> None:
    sde = sd.RectifiedFlow(t_min=1e-3, t_max=1.0)
    times = torch.tensor([1.0, 0.9, 0.72, 0.5, 0.3, 0.1, 0.0], dtype=torch.float64)
    solver = sd.solvers.SDEDPMSolverPP(order, **P) if noisy else sd.solvers.DPMSolverPP(order, **P)
    problem = Reverse(MIXTURE.model(sde), 3, 1.0 if noisy else 0.0)
    x = start(sde, times[0])
    close(
        integrate(problem, solver, x, times, white()).x,
        theirs(sde, lambda w, x: from_no_signal(w, x, order, noisy), times),
    )


NOTHING_LEFT = [
    sd.LinearSDE(alpha=lambda t: 1.0 + 0 * t, sigma=lambda t: t, T=10.0, t_min=0.0),
    sd.VP(),
    sd.RectifiedFlow(),
]


@pytest.mark.thin(18)
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("family", NOTHING_LEFT, ids=["EDM to 0", "VP", "RectifiedFlow"])
def test_lms_to_sigma_zero_is_k_diffusions(family: sd.LinearSDE, order: int, steps: int) -> None:
    """`sample_lms` integrates the polynomial of all its steps to sigma = 0, by
    `linear_multistep_coeff`; its sigma is sigma / alpha here."""
    times = torch.cat([grid(family, steps), torch.zeros(1, dtype=torch.float64)])
    x, model = start(family, times[0]), MIXTURE.model(family)
    for solver in (sd.solvers.LMS(order, **P), sd.solvers.DEIS(order, variable="sigma", **P)):
        out = integrate(Reverse(model, 3), solver, x, times, white())
        close(out.x, theirs(family, partial(published.deis_rho_ab, order=order), times))
        assert out.nfe.tolist() == [steps] * 3


def test_lms_to_sigma_zero_after_single_steps() -> None:
    """``startup="exact"`` begins with single steps; the last interval is none of them."""
    times = torch.tensor([6.0, 2.0, 0.0], dtype=torch.float64)
    family = NOTHING_LEFT[0]
    x, problem = start(family, times[0]), Reverse(MIXTURE.model(family), 3)
    out = integrate(problem, sd.solvers.LMS(2), x, times).x
    middle = integrate(Reverse(MIXTURE.model(family), 3), sd.solvers.LMS(2), x, times[:2]).x
    noise = [MIXTURE.noise(family, y, t) for y, t in ((x, times[0]), (middle, times[1]))]
    close(out, middle - 2.0 * noise[1] - 0.5 * (noise[1] - noise[0]))
    assert bool(torch.isfinite(integrate(problem, sd.solvers.LMS(4), x, times).x).all())
