"""What every method promises, checked over one table of all of them: a solver that is not in the
table fails the build.

`sd.testing.check_solver` makes the same promises checkable for a user's own solver.
"""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from all_methods import (
    AT_LEAST,
    GAUSSIAN,
    METHODS,
    OWN_SDE,
    Method,
    chain,
    inner,
    law_errors,
    sde_of,
)
from all_sdes import SDES
from pairwise import pairwise
from torch import Tensor

import sdediff as sd
from sdediff import solvers
from sdediff.reverse import Reverse
from sdediff.solvers import Options, RungeKutta, Solver, Status, Step, Tableau, expand, integrate
from sdediff.solvers.tableau import conditions
from sdediff.testing.orders import Still, fitted_order

SMOOTH = sd.exact.GaussianMixture([[-0.5, 0.3], [0.5, 0.0], [0.2, -0.5]], 0.5)


NOT_CUT = (
    sd.solvers.InverseDDIM
    | sd.solvers.Restart
    | sd.solvers.Churn
    | sd.solvers.Renoise
    | sd.ExponentialMultistep
    | sd.solvers.EulerTrapezoid
    | sd.solvers.Switch
)
"""Methods for which two grids are not one: they look at all of it, or carry history."""


OF_ITS_BATCH = [
    method.solver
    for method in METHODS
    if isinstance(method.solver, sd.Langevin) and method.solver.rule == "song"
]
"""Documented exceptions from batch invariance."""

FAST = ["VP", "VE", "RectifiedFlow", "user, f and g"]


def methods(
    select: Callable[[Method], bool] = lambda method: True, *, variants: bool = False
) -> pytest.MarkDecorator:
    """The methods of the table; one in several integration variables counts once in the fast run,
    without ``variants``.
    """
    named = [
        m
        for m in METHODS
        if isinstance(m.solver, RungeKutta) and m.solver.variable in ("t", "log_snr")
    ]
    slow = [] if variants else named
    chosen = [
        pytest.param(m, id=repr(m.solver), marks=[pytest.mark.slow] if m in slow else [])
        for m in METHODS
        if select(m)
    ]
    return pytest.mark.parametrize("method", chosen)


def under_vp(sde: str, method: Method) -> bool:
    return sde == "VP"


def of_that_sde(sde: str, method: Method) -> bool:
    """Whether the method is a discrete model of that SDE."""
    return method.solver.times is not None and SDES[sde] == sde_of(method.solver)


def families(*fast: str) -> pytest.MarkDecorator:
    """All SDEs, those that are not named in the slow run only."""
    names = [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in SDES]
    return pytest.mark.parametrize("sde", names, indirect=True)


def starts(sde: sd.LinearSDE, rows: int, t: float) -> Tensor:
    z = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return sde.perturb(SMOOTH.sample(rows, seed=0), t, z)


def white(rows: int, event: tuple[int, ...] = (2,), seed: int = 3) -> sd.White:
    return sd.White(sd.seeds(seed, rows), event, dtype=torch.float64)


def usable(solver: Solver, steps: int) -> int | None:
    """The ``steps`` that `sample` is given."""
    return (
        None if solver.adaptive or solver.times is not None else max(steps, AT_LEAST.get(solver, 1))
    )


def skip_unless_own(solver: Solver, sde: sd.LinearSDE) -> None:
    if solver.times is not None and sde != OWN_SDE[type(solver)]:  # type: ignore[index]
        pytest.skip("a discrete model of one SDE")


def starting(solver: Solver) -> int:
    """Evaluations before the first step."""
    return int(
        isinstance(solver, sd.solvers.InverseDDIM)
        or getattr(getattr(solver, "tableau", None), "first_same_as_last", False)
    )


def test_every_solver_is_in_the_table() -> None:
    """Whatever `solvers` or `sdediff` export as a solver; only the bases are no methods.

    Other libraries' drivers, `external`, owe what test_external.py holds them to: they couple the
    samples of a batch.
    """
    public = [getattr(module, name) for module in (solvers, sd) for name in module.__all__]
    found = {value for value in public if isinstance(value, type) and issubclass(value, Solver)} - {
        Solver,
        RungeKutta,
    }
    # Noise that depends on the state is no reverse SDE's: test_equations.py has these.
    ours = {solvers.AdaptiveMilstein, solvers.Milstein, solvers.StratonovichHeun}
    # Tuned is numbers for one grid, so that it has no order: tests/tuning has it.
    found = {value for value in found if not value.external} - ours - {solvers.Tuned}
    missing = found - {type(method.solver) for method in METHODS}
    assert not missing, (
        "enter into METHODS, with the orders that they claim: "
        f"{sorted(cls.__name__ for cls in missing)}"
    )


def test_claimed_orders_are_the_declared_ones() -> None:
    for method in METHODS:
        solver = method.solver
        claim, declared = (
            (method.weak, solver.weak_order)
            if solver.stochastic
            else (method.deterministic, solver.deterministic_order)
        )
        assert claim is None or claim == declared, solver
        assert claim is not None or isinstance(
            solver,
            sd.PredictorCorrector
            | sd.Langevin
            | sd.solvers.MetropolisLangevin
            | sd.DDPM
            | sd.NCSN
            | sd.solvers.Churn
            | sd.AdaptiveSDE,
        )


# -- 1. order --------------------------------------------------------------------------------------


@cache
def flow_end(name: str) -> tuple[Tensor, Tensor]:
    """States at the start of `inner`, and where the probability flow takes them: a method of order
    5 in 128 steps.
    """
    sde = SDES[name]
    x = starts(sde, 6, 0.8 * sde.T)
    return x, integrate(
        Reverse(SMOOTH.model(sde), 6), sd.solvers.DormandPrince(variable="t"), x, inner(sde, 128)
    ).x


def name_of(sde: sd.LinearSDE) -> str:
    return next(name for name, value in SDES.items() if value is sde)


def with_fixed_steps(solver: Solver) -> Solver:
    """The solver, or an adaptive method's tableau with fixed steps."""
    if not solver.adaptive:
        return solver

    if isinstance(solver, sd.solvers.ExponentialPair):
        return sd.solvers.ExponentialSinglestep(solver.order, solver.form)

    class Fixed(RungeKutta):
        tableau = solver.tableau  # type: ignore[attr-defined]

    return Fixed(variable="t")


def flow_errors(sde: sd.LinearSDE, solver: Solver, ladder: tuple[int, ...]) -> list[float]:
    x, end = flow_end(name_of(sde))
    noise = Still(tuple(x.shape)) if solver.stochastic else None
    return [
        float(
            (integrate(Reverse(SMOOTH.model(sde), len(x)), solver, x, inner(sde, n), noise).x - end)
            .abs()
            .max()
        )
        for n in ladder
    ]


@pytest.mark.thin(8)
@methods(lambda m: m.deterministic is not None and m.deterministic <= 4, variants=True)
@families("VP")
def test_deterministic_order(sde: sd.LinearSDE, method: Method) -> None:
    """At stochasticity 0, with the noise at 0, on a mixture whose flow is known to 1e-11."""
    errors = flow_errors(sde, with_fixed_steps(method.solver), method.ladder)
    assert fitted_order(errors) > method.deterministic - 0.25, errors  # type: ignore[operator]


@methods(lambda m: m.deterministic is not None and m.deterministic > 4)
def test_order_conditions(method: Method) -> None:
    """Every tree up to the order to 1e-12; and some tree of one node more is missed, so that the
    conditions are not void.
    """
    tableau, claim = method.solver.tableau, int(method.deterministic)  # type: ignore[attr-defined, arg-type]
    size = len(tableau.a)
    a = torch.zeros(size, size, dtype=torch.float64).numpy()
    for i, row in enumerate(tableau.a):
        a[i, : len(row)] = [float(v) for v in row]
    b = torch.tensor([float(v) for v in tableau.b], dtype=torch.float64).numpy()
    gaps = [
        (nodes, abs(float(b @ phi) - expected)) for nodes, phi, expected in conditions(a, claim + 1)
    ]
    assert max(gap for nodes, gap in gaps if nodes <= claim) < 1e-12
    assert max(gap for nodes, gap in gaps if nodes > claim) > 1e-8


@pytest.mark.thin(3)
@pairwise("sde, method", SDES, [m for m in METHODS if m.strong is not None])
def test_strong_order(sde: sd.LinearSDE, method: Method) -> None:
    """Root mean square error along one path in coarse steps, against SRA3 on the path itself; a
    mixture in float64.
    """
    # with 32 the slope of EulerTrapezoid has a deviation of 0.1, with these of 0.04
    rows, fine = 128, 256
    x = starts(sde, rows, 0.8 * sde.T)
    path, model = along(sde, rows, fine), SMOOTH.model(sde)
    end = fine_end(name_of(sde), rows, fine)
    lam = 1.0 if method.solver.solves_sde else 0.0
    errors = []
    for n in (16, 32, 64):
        out = integrate(Reverse(model, rows, lam), method.solver, x, inner(sde, n), path).x
        errors.append(float((out - end).square().mean().sqrt()))
    assert fitted_order(errors) > method.strong - 0.25, errors  # type: ignore[operator]


def along(sde: sd.LinearSDE, rows: int, intervals: int) -> sd.solvers.BrownianPath:
    return sd.solvers.BrownianPath(
        sd.seeds(0, rows), (2,), 0.8 * sde.T, 0.2 * sde.T, intervals=intervals, dtype=torch.float64
    )


@cache
def fine_end(name: str, rows: int, fine: int) -> Tensor:
    sde = SDES[name]
    path = along(sde, rows, fine)
    return integrate(
        Reverse(SMOOTH.model(sde), rows, 1.0),
        sd.solvers.SRA3(),
        starts(sde, rows, 0.8 * sde.T),
        inner(sde, fine),
        path,
    ).x


@pytest.mark.thin(6)
@pairwise("sde, method", SDES, [m for m in METHODS if m.weak is not None], also=under_vp)
def test_weak_order(sde: sd.LinearSDE, method: Method) -> None:
    """Moments to 1e-10 by unit impulses: the score of Gaussian data is affine, and so is the
    chain.
    """
    try:
        errors = law_errors(sde, method, method.law)
    except ValueError as refusal:
        if not isinstance(
            method.solver, sd.solvers.Restart
        ) or "the grid's time next to t_low" not in str(refusal):
            raise
        pytest.skip("this SDE's grid has no times between those that Restart goes back between")
    assert fitted_order(errors) > method.weak - 0.25, errors  # type: ignore[operator]


def test_ddpm_has_order_one_in_its_own_steps() -> None:
    """The chain of N steps against the law at t_1 = T / N, in units of its deviation from the law
    of the data.
    """
    errors = []
    for n in (100, 200, 400):
        method = sd.DDPM.from_sde(sd.VP(), n)
        mean, cov = chain(sd.VP(), method, method.times)
        true_mean, true_cov = GAUSSIAN.moments(sd.VP(), method.times[-1])
        errors.append(float((mean - true_mean).abs() + (cov.sqrt() - true_cov.sqrt()).abs()))
    assert fitted_order(errors) > 0.75, errors


# -- 2. batch invariance ---------------------------------------------------------------------------


@pytest.mark.thin(20)
@methods(lambda m: m.solver not in OF_ITS_BATCH)
def test_a_sample_depends_on_its_seed_alone(method: Method) -> None:
    """Alone, in a batch of 7, permuted: equal to 1e-6 (states of order 1, float64). conftest.py
    watches torch's generator.
    """
    model, seeds, order = (
        SMOOTH.model(sde_of(method.solver)),
        sd.seeds(11, 7),
        [3, 0, 6, 2, 5, 1, 4],
    )

    def draw(chosen: list[int]) -> Tensor:
        steps = usable(method.solver, 8)
        return sd.sample(
            model,
            (len(chosen), 2),
            solver=method.solver,
            steps=steps,
            seed=[seeds[i] for i in chosen],
            dtype=torch.float64,
        ).x

    whole = draw(list(range(7)))
    torch.testing.assert_close(draw(order), whole[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(draw([4])[0], whole[4], rtol=0, atol=1e-6)


@pytest.mark.thin(33)
@methods()
def test_nothing_that_was_handed_out_is_written_to(method: Method) -> None:
    """What a network, a callback or a noise object may have kept is left alone; torch counts the
    writes to a tensor.
    """
    held: list[tuple[Tensor, int]] = []

    def note(x: Tensor) -> Tensor:
        held.append((x, x._version))
        return x

    class Noted(sd.White):
        def normal(self, step: int, stream: str, k: int) -> Tensor:
            return note(super().normal(step, stream, k))

    model = sd.ScoreModel(lambda x, t: note(0.5 * note(x)), sde_of(method.solver))
    out = sd.sample(
        model,
        (3, 2),
        solver=method.solver,
        steps=usable(method.solver, 6),
        x_init=note(torch.ones(3, 2, dtype=torch.float64)),
        noise=Noted(sd.seeds(0, 3), (2,), dtype=torch.float64),
        callback=lambda snapshot: held.append((snapshot.x, snapshot.x._version)),
        dtype=torch.float64,
    )
    assert out.success
    assert [x._version for x, _ in held] == [version for _, version in held]


# -- 3. ends ---------------------------------------------------------------------------------------


def watched(model: sd.ScoreModel) -> list[float]:
    """Times at which the model is asked from now on."""
    net, times = model.net, []

    def record(x: Tensor, t: Tensor) -> Tensor:
        times.extend(t.double().tolist())
        return net(x, t)

    model.net = record
    return times


def run(sde: sd.LinearSDE, solver: Solver, steps: int) -> sd.Solution:
    return sd.sample(
        SMOOTH.model(sde),
        (2, 2),
        solver=solver,
        steps=usable(solver, steps),
        seed=0,
        dtype=torch.float64,
    )


@pytest.mark.thin(10)
@pairwise("sde, method", SDES, METHODS, also=of_that_sde)
def test_finite_over_the_usable_range(sde: sd.LinearSDE, method: Method) -> None:
    skip_unless_own(method.solver, sde)
    finite_or_refused(sde, method.solver, (1, 2, 5) if usable(method.solver, 1) else (1,))


@pytest.mark.slow
@methods()
def test_finite_over_the_usable_range_at_any_number_of_steps(
    sde: sd.LinearSDE, method: Method
) -> None:
    skip_unless_own(method.solver, sde)
    finite_or_refused(sde, method.solver, range(1, 21) if usable(method.solver, 1) else (1,))


def finite_or_refused(sde: sd.LinearSDE, solver: Solver, counts) -> None:
    """A solver may refuse a grid before the first evaluation, in words; it may not return what is
    not finite.
    """
    for steps in counts:
        try:
            out = sd.sample(
                SMOOTH.model(sde),
                (2, 2),
                solver=solver,
                steps=steps if usable(solver, 1) else None,
                seed=0,
                dtype=torch.float64,
            )
        except ValueError as refusal:
            too_few = solver in AT_LEAST and "times as many steps" in str(refusal)
            too_coarse = isinstance(
                solver, sd.solvers.Restart
            ) and "the grid's time next to t_low" in str(refusal)
            if not too_few and not too_coarse:
                raise
            continue
        assert bool(torch.isfinite(out.x).all()), steps
        assert out.success


@pytest.mark.thin(12)
@methods(lambda m: not m.solver.adaptive)
def test_last_does_what_it_says(method: Method) -> None:
    """denoise: one more evaluation, E[x_0 | x] of the noisy state; mean: the noisy state less what
    depends on the noise alone.
    """
    sde, solver = sde_of(method.solver), method.solver
    model, x = SMOOTH.model(sde), starts(sde, 3, 1.0)

    def end(last: str, shift: float = 0.0) -> sd.Solution:
        return sd.sample(
            model,
            (3, 2),
            solver=solver,
            steps=usable(solver, 5),
            seed=0,
            last=last,
            x_init=x + shift,
            dtype=torch.float64,
        )  # type: ignore[arg-type]

    noisy, mean, clean = end("noisy"), end("mean"), end("denoise")
    torch.testing.assert_close(
        clean.x, model.data(noisy.x, float(noisy.times[-1])), rtol=1e-15, atol=1e-12
    )
    assert torch.equal(noisy.nfe, mean.nfe)
    assert torch.equal(clean.nfe, noisy.nfe + 1)
    shock = noisy.x - mean.x
    if solver not in OF_ITS_BATCH:
        torch.testing.assert_close(
            end("noisy", 0.3).x - end("mean", 0.3).x, shock, rtol=0, atol=1e-9
        )
    keeps = solver.stochastic and not isinstance(
        solver,
        sd.solvers.Churn | sd.solvers.Restart | sd.solvers.Renoise | sd.solvers.Recurrence,
    )
    part = solver.predictor if isinstance(solver, sd.PredictorCorrector) else solver
    if isinstance(solver, sd.PredictorCorrector) and solver.sequence == "predictor-first":
        part = solver.corrector
    adds = keeps and part.stochastic and not isinstance(part, sd.solvers.MetropolisLangevin)
    assert bool((shock != 0).all()) == adds


@dataclasses.dataclass(frozen=True)
class Later:
    """The noise of the steps from ``first`` on."""

    noise: solvers.Noise
    first: int

    def at(self, step: int) -> solvers.StepNoise:
        return self.noise.at(step + self.first)

    def take(self, rows: Tensor) -> Later:
        return Later(self.noise.take(rows), self.first)


@pytest.mark.thin(14)
@methods(
    lambda m: not m.solver.adaptive and m.solver.times is None and not isinstance(m.solver, NOT_CUT)
)
@pytest.mark.parametrize("sde", FAST[:2], indirect=True)
def test_two_grids_are_one(sde: sd.LinearSDE, method: Method) -> None:
    """Any monotone grid cut anywhere, for one-step methods: the same states, and NFE and grid as
    asked.
    """
    solver, model = method.solver, SMOOTH.model(sde)
    if solver in AT_LEAST and sde is SDES["VP"]:
        pytest.skip("refuses so few steps")
    shares = torch.tensor([0.9, 0.83, 0.82, 0.6, 0.35, 0.34, 0.1], dtype=torch.float64)
    times, x, noise = shares * sde.T, starts(sde, 3, 0.9 * sde.T), white(3)
    lam = 1.0 if solver.solves_sde else 0.0

    def solve(part: Tensor, at: Tensor, noise: solvers.Noise) -> sd.Solution:
        return integrate(Reverse(model, 3, lam), solver, at, part, noise, Options(trajectory=True))

    whole, first = solve(times, x, noise), solve(times[:4], x, noise)
    second = solve(times[3:], first.x, Later(noise, 3))
    torch.testing.assert_close(second.x, whole.x, rtol=1e-12, atol=1e-12)
    assert whole.trajectory is not None
    torch.testing.assert_close(whole.trajectory[3], first.x, rtol=0, atol=0)
    assert torch.equal(whole.times, times)
    assert whole.nfe.tolist() == [solver.evaluations * 6 + starting(solver)] * 3
    assert whole.accepted.tolist() == [6] * 3


@methods(lambda m: m.solver.times is None)
def test_without_score_and_noise_nothing_moves(method: Method) -> None:
    """VE with a network that is 0 and noises that are 0: whatever the grid, x stays where it is."""
    sde = sd.VE(0.02, 30.0)
    model = sd.ScoreModel(lambda x, t: torch.zeros_like(x), sde)
    x, grid = (
        starts(sde, 3, 1.0),
        torch.tensor([1.0, 0.9, 0.5, 0.48, 0.4, 0.0], dtype=torch.float64),
    )
    if method.solver in OF_ITS_BATCH:
        pytest.skip("divides by the score's norm")
    variable = getattr(method.solver, "variable", None) or (
        "angle" if method.solver.adaptive else None
    )
    in_v = isinstance(method.solver, RungeKutta) and variable == "angle"
    if isinstance(method.solver, sd.solvers.EulerTrapezoid) or in_v:
        pytest.skip("v is not constant where x is")
    out = integrate(
        Reverse(model, 3, 1.0 if method.solver.solves_sde else 0.0),
        method.solver,
        x,
        grid,
        Still((3, 2)),
    )
    torch.testing.assert_close(out.x, x, rtol=1e-12, atol=1e-12)


@pytest.mark.thin(22)
@methods(lambda m: m.solver.times is None)
@pytest.mark.parametrize("sde", FAST[:3], indirect=True)
def test_start_and_stop_anywhere(sde: sd.LinearSDE, method: Method) -> None:
    """From 0.77 T to 0.31 T: finite, the grid as asked, and no evaluation outside it (but for what
    goes up by definition).
    """
    model = SMOOTH.model(sde)
    times = watched(model)
    start, end = 0.77 * sde.T, 0.31 * sde.T
    x = starts(sde, 2, start)
    out = sd.sample(
        model,
        (2, 2),
        solver=method.solver,
        steps=usable(method.solver, 7),
        t_start=start,
        t_end=end,
        x_init=x,
        seed=0,
        dtype=torch.float64,
    )
    assert bool(torch.isfinite(out.x).all())
    assert (float(out.times[0]), float(out.times[-1])) == (start, end)
    assert min(times) >= end
    assert max(times) <= start
    assert len(times) == int(out.nfe.sum())


# -- 4. law ----------------------------------------------------------------------------------------


def exact_chain(solver: Solver) -> bool:
    """Whether the chain on Gaussian data is affine."""
    parts = [solver, *(getattr(solver, name, None) for name in ("predictor", "corrector"))]
    return not any(
        isinstance(part, sd.solvers.MetropolisLangevin) or part in OF_ITS_BATCH for part in parts
    )


def in_log_snr(sde: sd.LinearSDE, n: int) -> Tensor:
    ends = [
        float(sde.log_snr(torch.tensor(t, dtype=torch.float64))) for t in (sde.t_max, sde.t_min)
    ]
    grid = sde.time_of(torch.linspace(*ends, n + 1, dtype=torch.float64))
    grid[0], grid[-1] = sde.t_max, sde.t_min
    return grid


@pytest.mark.thin(2)
@pairwise(
    "sde, method, lam",
    SDES,
    [
        m
        for m in METHODS
        if m.solver.solves_sde and m.weak is not None and m.solver != sd.ReverseDiffusion("song")
    ],
    [0.5, 1.0, 1.5],
)
def test_marginals_at_any_stochasticity(sde: sd.LinearSDE, method: Method, lam: float) -> None:
    """From the exact law at t_max to t_min, last='noisy': exact moments, which come near the law as
    steps shrink.
    """
    errors = []
    for n in (25, 100):
        grid = in_log_snr(sde, n)
        mean, cov = chain(sde, method.at(n), grid, lam)
        true_mean, true_cov = GAUSSIAN.moments(sde, grid[-1])
        errors.append(
            float((mean - true_mean).abs().max() + (cov.sqrt() - true_cov.sqrt()).abs().max())
        )
    assert errors[1] < 0.45 * errors[0], errors
    assert errors[1] < 0.1, errors


@pytest.mark.thin(2)
@pytest.mark.parametrize("sequence", ["predictor-first", "corrector-first"])
@pytest.mark.parametrize("sde", FAST[:2], indirect=True)
def test_correctors_keep_the_law_as_snr_shrinks(sde: sd.LinearSDE, sequence: str) -> None:
    """The excess of a Langevin step is of order snr^2: fourfold less at half the snr."""
    excess = []
    for snr in (0.4, 0.2):
        solver = sd.PredictorCorrector(sd.solvers.SRA1(), sd.Langevin(snr), sequence)  # type: ignore[arg-type]
        _, cov = chain(sde, solver, inner(sde, 60))
        excess.append(abs(float(cov.sqrt()) - float(GAUSSIAN.moments(sde, 0.2 * sde.T)[1].sqrt())))
    assert fitted_order(excess) > 1.5, excess


SAMPLED = [
    (sd.EulerMaruyama(), 1.0),
    (sd.solvers.SRA1(), 0.5),
    (sd.solvers.SRA3(), 1.5),
    (sd.solvers.Ancestral(), 1.0),
    (sd.DDIM(0.5), None),
    (sd.PredictorCorrector(sd.solvers.SRA1(), sd.solvers.MetropolisLangevin()), 1.0),
    (sd.PredictorCorrector(sd.Heun(), sd.solvers.MetropolisLangevin(), "corrector-first"), None),
    (sd.solvers.Churn(sd.Heun(variable="sigma"), 20.0), None),
    (sd.solvers.Restart(sd.Heun(variable="sigma"), (0.3, 0.6), 1, 12), None),
]


@pytest.mark.thin(2)
@pytest.mark.parametrize(("solver", "lam"), SAMPLED, ids=[f"{s!r}, {lam}" for s, lam in SAMPLED])
def test_marginals_of_a_mixture(solver: Solver, lam: float | None) -> None:
    """One of each family: 2,000 samples from the exact law at t_max; five moments within 4 standard
    errors (false alarm 3e-4).
    """
    sde, rows = sd.VP(), 2000
    data = sd.exact.GaussianMixture([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.0]], 0.4, [0.5, 0.3, 0.2])
    z = torch.randn(rows, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    x = sde.perturb(data.sample(rows, seed=5), sde.t_max, z)
    slow = solver in (sd.EulerMaruyama(), sd.solvers.Ancestral(), sd.DDIM(0.5))
    # to where sigma is a quarter of the data's spread or less
    grid = in_log_snr(sde, 240 if slow else 64)[: -40 if slow else -10]
    problem = Reverse(
        data.model(sde), rows, (1.0 if solver.solves_sde else 0.0) if lam is None else lam
    )
    out = integrate(problem, solver, x, grid, white(rows, seed=6)).x
    mean, cov = data.moments(sde, grid[-1])
    centred = out - mean
    got = {(i,): centred[:, i] for i in range(2)} | {
        (i, j): centred[:, i] * centred[:, j] - cov[i, j] for i, j in ((0, 0), (0, 1), (1, 1))
    }
    for which, values in got.items():
        assert abs(float(values.mean())) < 4 * float(values.std()) / rows**0.5, which


# -- 5. failure ------------------------------------------------------------------------------------


def breaking(
    at: float, value: float = float("nan"), sde: sd.LinearSDE = SDES["VP"]
) -> sd.ScoreModel:
    """Exact, but for samples labelled 1 below t = ``at``."""
    exact = SMOOTH.model(sde)

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        out = exact.net(x, t)
        return torch.where(((label == 1) & (t < at))[:, None], torch.full_like(out, value), out)

    return sd.ScoreModel(net, sde, exact.predicts)


@pytest.mark.thin(4)
@methods(lambda m: m.solver not in OF_ITS_BATCH and m.solver != sd.solvers.MetropolisLangevin())
def test_nan_at_one_sample_and_time(method: Method) -> None:
    solver = method.solver

    def solve(label: list[float], on_fail: str) -> sd.Solution:
        return sd.sample(
            breaking(0.4, sde=sde_of(solver)),
            (3, 2),
            solver=solver,
            steps=usable(solver, 8),
            seed=0,
            condition={"label": torch.tensor(label)},
            on_fail=on_fail,  # type: ignore[arg-type]
            dtype=torch.float64,
        )

    with pytest.raises(
        sd.SolveError,
        match=r"sample 1 failed at t = (1|0\.\d+): the network's output is not finite",
    ):
        solve([0, 1, 0], "raise")
    out, healthy = solve([0, 1, 0], "return"), solve([0, 0, 0], "return")
    assert out.status.tolist() == [0, Status.NETWORK_NOT_FINITE, 0]
    assert torch.equal(out.x[[0, 2]], healthy.x[[0, 2]])
    assert torch.equal(out.nfe[[0, 2]], healthy.nfe[[0, 2]])
    assert bool(torch.isfinite(out.x).all())
    assert 0.2 < out.failures[0].t <= 1  # where the step began


def test_nan_in_a_metropolis_chain() -> None:
    label = {"label": torch.tensor([0.0, 1.0, 0.0])}
    out = sd.sample(
        breaking(0.4),
        (3, 2),
        solver=sd.solvers.MetropolisLangevin(),
        steps=8,
        seed=0,
        condition=label,
        on_fail="return",
        last="noisy",
    )
    assert out.status.tolist() == [0, Status.NETWORK_NOT_FINITE, 0]


@pytest.mark.thin(19)
@methods()
def test_max_nfe(method: Method) -> None:
    """Never more evaluations than allowed; what was reached comes back, with its status."""
    solver, model = method.solver, SMOOTH.model(sde_of(method.solver))
    solver = dataclasses.replace(solver, rtol=1e-7, atol=1e-7) if solver.adaptive else solver
    cap = solver.evaluations + (2 if solver.adaptive else 3)

    def solve(on_fail: str) -> sd.Solution:
        return sd.sample(
            model,
            (2, 2),
            solver=solver,
            steps=usable(solver, 40),
            seed=0,
            max_nfe=cap,
            on_fail=on_fail,
        )  # type: ignore[arg-type]

    out = solve("return")
    assert out.status.tolist() == [Status.MAX_NFE] * 2
    assert int(out.nfe.max()) <= cap
    assert bool(torch.isfinite(out.x).all())
    with pytest.raises(sd.SolveError, match="max_nfe is reached"):
        solve("raise")


# -- 7. form ---------------------------------------------------------------------------------------


@pytest.mark.thin(24)
@methods()
def test_solvers_are_frozen_values(method: Method) -> None:
    solver = method.solver
    twin = dataclasses.replace(solver)
    assert twin == solver
    assert hash(twin) == hash(solver)
    before = dict(vars(solver))
    run(sde_of(solver), solver, 3)
    fields = {field.name for field in dataclasses.fields(solver)}
    assert {name: value for name, value in vars(solver).items() if name in fields} == {
        name: value for name, value in before.items() if name in fields
    }
    for name in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(solver, name, 1)


@pytest.mark.thin(4)
@methods()
def test_interleaved_and_threaded_solves_are_separate(method: Method) -> None:
    """One inside the other at every step, and both in threads: bit for bit what each gives by
    itself.
    """
    solver, model = method.solver, SMOOTH.model(sde_of(method.solver))

    def solve(seed: int, callback=None) -> Tensor:
        return sd.sample(
            model, (3, 2), solver=solver, steps=usable(solver, 3), seed=seed, callback=callback
        ).x

    alone = {seed: solve(seed) for seed in (1, 2)}
    inside: list[Tensor] = []

    def between(snapshot: sd.solvers.Snapshot) -> None:
        if snapshot.step <= 2:
            inside.append(solve(2))

    assert torch.equal(solve(1, between), alone[1])
    assert all(torch.equal(x, alone[2]) for x in inside)
    threaded: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: threaded.update({seed: solve(seed)}))
        for seed in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(threaded[seed], alone[seed]) for seed in (1, 2))


class HalfPrecision(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.8, dtype=torch.bfloat16))
        self.seen: set[torch.dtype] = set()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.add(x.dtype)
        return x * self.weight


@pytest.mark.thin(18)
@methods()
def test_the_state_is_float32_under_a_bf16_network(method: Method) -> None:
    net, states = HalfPrecision(), set()
    solver = method.solver
    solver = dataclasses.replace(solver, rtol=1e-1, atol=1e-1) if solver.adaptive else solver
    out = sd.sample(
        sd.ScoreModel(net, sde_of(solver)),
        (2, 3),
        solver=solver,
        steps=usable(solver, 4),
        seed=0,
        callback=lambda snapshot: states.add(snapshot.x.dtype),
    )
    assert net.seen == {torch.bfloat16}
    assert states == {torch.float32}
    assert out.x.dtype == torch.float32
    assert run(sde_of(solver), solver, 2).x.dtype == torch.float64


@pytest.mark.thin(15)
@methods()
@pytest.mark.parametrize("shape", [(3,), (2, 3, 2, 2)], ids=str)
def test_any_rank_is_the_flat_problem(shape: tuple[int, ...], method: Method) -> None:
    """Unit Gaussian data in any shape give what the flattened problem gives."""
    sde, solver = sde_of(method.solver), method.solver
    model = sd.ScoreModel(
        lambda x, t: x * sde.sigma(t.double()).to(x).reshape(-1, *(1,) * (x.ndim - 1)), sde
    )
    rank, flat = (
        sd.sample(
            model, size, solver=solver, steps=usable(solver, 5), seed=0, dtype=torch.float64
        ).x
        for size in (shape, (shape[0], torch.Size(shape[1:]).numel()))
    )
    assert rank.shape == shape
    torch.testing.assert_close(rank.flatten(), flat.flatten(), rtol=0, atol=1e-9)


class Gradients(NamedTuple):
    x: Tensor
    weight: Tensor
    saved: int


def gradients(solver: Solver, grad: str, width: int = 4, steps: int = 4) -> Gradients:
    """d sum(x) with respect to start and weights, and the bytes that autograd keeps for it."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, width, generator=generator, dtype=torch.float64).requires_grad_()
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64).requires_grad_()
    sde = sde_of(solver)
    model = sd.ScoreModel(lambda at, t: torch.tanh(at @ weight) @ weight.T / width + 0.5 * at, sde)
    kept: dict[int, Tensor] = {}

    def pack(saved: Tensor) -> Tensor:
        if saved is not weight:
            kept[saved.data_ptr()] = saved.detach()  # alive until the end: no address is seen twice
        return saved

    times = {} if solver.times is not None else {"t_start": 0.9, "t_end": 0.2}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        out = sd.sample(
            model,
            (4, 2),
            solver=solver,
            steps=usable(solver, steps),
            x_init=x,
            seed=0,
            grad=grad,  # type: ignore[arg-type]
            dtype=torch.float64,
            **times,
        )
    size = sum(saved.untyped_storage().nbytes() for saved in kept.values())
    return Gradients(*torch.autograd.grad(out.x.square().sum(), (x, weight)), size)


@pytest.mark.thin(8)
@methods()
def test_gradients_of_full_and_checkpoint_agree(method: Method) -> None:
    full, checkpoint = (gradients(method.solver, grad) for grad in ("full", "checkpoint"))
    for one, two in ((full.x, checkpoint.x), (full.weight, checkpoint.weight)):
        assert bool((one != 0).all())
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)


def test_checkpoint_where_f_and_g_are_derived() -> None:
    """f and g by autograd, on first use inside the first step: the recomputation must not differ
    from it.
    """
    sde, ends = SDES["user, alpha and log_snr"], []
    for grad in ("full", "checkpoint"):
        x = starts(sde, 2, 0.8).requires_grad_()
        problem, options = Reverse(SMOOTH.model(sde), 2, 0.0), Options(grad=grad)  # type: ignore[arg-type]
        with torch.enable_grad():
            out = integrate(problem, sd.Heun(variable="t"), x, inner(sde, 3), options=options).x
            ends.append(torch.autograd.grad(out.square().sum(), x)[0])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "solver", [sd.EulerMaruyama(), sd.Heun(), sd.solvers.SRA3(), sd.solvers.Ancestral()], ids=repr
)
def test_checkpoint_keeps_little(solver: Solver) -> None:
    """64 steps of a network much wider than the state: its activations are not kept, only states;
    those of one step come back.
    """
    full, checkpoint = (gradients(solver, grad, 256, 64).saved for grad in ("full", "checkpoint"))
    states, one_step = 64 * 4 * 2 * 8, full / 64
    assert checkpoint + states + one_step < full / 10, (checkpoint, full)


class Ralston(RungeKutta):
    tableau = Tableau.parse("Ralston", 2, ["2/3"], "1/4 3/4")


@dataclasses.dataclass(frozen=True)
class TwoStep(Solver):
    """Extrapolated Euler-Maruyama: x_s = x + h (3 drift - drift of the step before) / 2 + noise."""

    needs = frozenset({"drift", "diffusion"})
    stochastic = solves_sde = True

    def step(self, problem, x, plan, noise, state):
        t, s = plan
        k = problem.drift(x, t)
        mean = x + expand(s - t, x) * (1.5 * k - 0.5 * (state[0] if state else k))
        return Step(mean + problem.diffuse(noise.increment(t, s), t), mean, (k,))


@pytest.mark.thin(0)
def test_a_new_method_is_a_tableau_and_a_new_solver_is_short() -> None:
    assert len(inspect.getsource(Ralston).splitlines()) == 2
    assert len([line for line in inspect.getsource(TwoStep).splitlines() if line.strip()]) <= 15
    assert fitted_order(flow_errors(SDES["VP"], Ralston(), (16, 32, 64))) > 1.75
    assert fitted_order(flow_errors(SDES["VP"], TwoStep(), (32, 64, 128))) > 1.75
    assert fitted_order(law_errors(SDES["VP"], Method(TwoStep()), (20, 40, 80))) > 0.75
