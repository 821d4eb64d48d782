"""torchdiffeq, torchsde and SciPy as solvers: equal to ours, and inside the span, the counts and
the failures that ours keep to.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torchdiffeq
from all_sdes import SDES
from scipy.integrate._ivp import bdf
from torch import Tensor

import sdediff as sd
from sdediff.exact.chain import affine_moments
from sdediff.reverse import Reverse
from sdediff.solvers import (
    External,
    Matrix,
    Options,
    Problem,
    RungeKutta,
    Solver,
    Status,
    Tableau,
    integrate,
)
from sdediff.solvers.external.driver import Run
from sdediff.solvers.external.ode import _SCIPY, _TORCHDIFFEQ
from sdediff.solvers.external.sde import _METHODS
from sdediff.testing.orders import fitted_order

# torchdiffeq's, of implicit_adams
pytestmark = pytest.mark.filterwarnings("ignore:Functional iteration did not converge")

MIXTURE = sd.exact.GaussianMixture([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.0]], 0.3)
X = torch.tensor([[0.3, -1.2], [1.4, 0.2], [-0.6, 0.9]], dtype=torch.float64)
FOUR = ["VP", "VE", "SubVP", "user, f and g"]
SWEEP = [pytest.param(name, marks=[] if name in FOUR else pytest.mark.slow) for name in SDES]

ODES = [sd.solvers.TorchDiffEq(method) for method in _TORCHDIFFEQ] + [
    sd.solvers.SciPy(method) for method in _SCIPY
]
SDE_SOLVERS = [sd.solvers.TorchSDE(method) for method in _METHODS]
ALL: list[External] = [
    *ODES,
    *SDE_SOLVERS,
    sd.solvers.TorchSDE("srk", adaptive=True),
    sd.solvers.TorchSDE("euler", adaptive=True),
]


QUICK = ("dopri5", "rk4", "implicit_adams", "RK45", "LSODA", "euler", "srk", "heun")


def every(solvers: list[External]) -> pytest.MarkDecorator:
    """Every method; in the fast run those that stand for the others."""
    slow = [
        s
        for s in solvers
        if s.method not in QUICK or s == sd.solvers.TorchSDE("euler", adaptive=True)
    ]  # type: ignore[attr-defined]
    return pytest.mark.parametrize(
        "solver",
        [pytest.param(s, id=repr(s), marks=pytest.mark.slow if s in slow else []) for s in solvers],
    )


class Heun3(RungeKutta):
    tableau = Tableau.parse("Heun", 3, ["1/3", "0 2/3"], "1/4 0 3/4")


class ThreeEighths(RungeKutta):
    tableau = Tableau.parse("3/8", 4, ["1/3", "-1/3 1", "1 -1 1"], "1/8 3/8 3/8 1/8")


def white(rows: int = 3, event: tuple[int, ...] = (2,)) -> sd.White:
    return sd.White(sd.seeds(7, rows), event, dtype=torch.float64)


def uneven(sde: sd.SDE, n: int = 20) -> Tensor:
    return sde.T * torch.linspace(0.9, 0.3, n + 1, dtype=torch.float64) ** 2


def steps_of(solver: Solver, steps: int) -> int | None:
    return None if solver.adaptive else steps


def loose(solver: External) -> External:
    tolerance = 0.1 if solver.stochastic else 1e-3
    return (
        dataclasses.replace(solver, rtol=tolerance, atol=tolerance) if solver.adaptive else solver
    )


def watched(model: sd.ScoreModel) -> list[float]:
    """Times at which the network is asked from now on, one a sample."""
    net, times = model.net, []

    def record(x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        times.extend(t.double().tolist())
        return net(x, t, **condition)

    model.net = record
    return times


# -- the same results as ours ----------------------------------------------------------------------


@cache
def reference(name: str) -> Tensor:
    """By the classical method in 200 steps, off by some 1e-8 where coefficients are smooth; else by
    DOP853.
    """
    solver, steps = (
        (sd.solvers.RungeKutta4(variable="t"), 200)
        if name in FOUR
        else (sd.solvers.DOP853(1e-10, 1e-10), None)
    )
    return sd.sample(
        MIXTURE.model(SDES[name]), (4, 2), solver=solver, steps=steps, seed=0, dtype=torch.float64
    ).x


TIGHT = [
    *(pytest.param(sd.solvers.TorchDiffEq("dopri8", 1e-8, 1e-8), name) for name in FOUR),
    *(pytest.param(sd.solvers.SciPy("DOP853", 1e-8, 1e-8), name) for name in FOUR[:2]),
    *(
        pytest.param(solver, "VP")
        for solver in (
            sd.solvers.TorchDiffEq("dopri5", 1e-8, 1e-8),
            sd.solvers.SciPy("RK45", 1e-8, 1e-8),
        )
    ),
    *(
        pytest.param(sd.solvers.TorchDiffEq("dopri5", 1e-9, 1e-9), name, marks=pytest.mark.slow)
        for name in SDES
    ),
    *(
        pytest.param(sd.solvers.SciPy("LSODA", 1e-9, 1e-9), name, marks=pytest.mark.slow)
        for name in SDES
    ),
]


@pytest.mark.thin(1)
@pytest.mark.parametrize(("solver", "name"), TIGHT)
def test_tight_tolerances_give_our_solution(solver: Solver, name: str) -> None:
    """From t_max to t_min, with the denoising step: 1e-6 of states of order 1."""
    out = sd.sample(MIXTURE.model(SDES[name]), (4, 2), solver=solver, seed=0, dtype=torch.float64)
    torch.testing.assert_close(out.x, reference(name), rtol=0, atol=1e-6)


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    ("solver", "bound"),
    [
        (sd.solvers.SciPy("RK23", 1e-6, 1e-6), 1e-5),
        (sd.solvers.SciPy("Radau", 1e-6, 1e-6), 1e-6),
        (sd.solvers.SciPy("BDF", 1e-7, 1e-7), 1e-5),
        (sd.solvers.SciPy("LSODA", 1e-8, 1e-8), 1e-6),
        (sd.solvers.TorchDiffEq("bosh3", 1e-6, 1e-6), 1e-5),
        (sd.solvers.TorchDiffEq("adaptive_heun", 1e-5, 1e-5), 1e-4),
        (sd.solvers.TorchDiffEq("fehlberg2", 1e-6, 1e-6), 1e-3),
    ],
    ids=repr,
)
def test_the_other_adaptive_methods_come_near_it(solver: Solver, bound: float) -> None:
    out = sd.sample(MIXTURE.model(sd.VP()), (4, 2), solver=solver, seed=0, dtype=torch.float64)
    torch.testing.assert_close(out.x, reference("VP"), rtol=0, atol=bound)


FIXED = {
    "euler": sd.solvers.Euler(variable="t"),
    "midpoint": sd.solvers.Midpoint(variable="t"),
    "heun2": sd.Heun(variable="t"),
    "heun3": Heun3(variable="t"),
    "rk4": ThreeEighths(variable="t"),
}


@pytest.mark.thin(2)
@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("name", SWEEP)
def test_fixed_steps_of_torchdiffeq_are_ours(name: str, method: str) -> None:
    """On an uneven grid, every state on the way; and they are what a plain call of odeint gives."""
    sde = SDES[name]
    grid, x = uneven(sde), X * sde.prior.std
    problem, options = Reverse(MIXTURE.model(sde), 3), Options(trajectory=True)
    out = sd.solvers.TorchDiffEq(method).solve(problem, x, grid, None, options)
    ours = integrate(Reverse(MIXTURE.model(sde), 3), FIXED[method], x, grid, None, options)
    torch.testing.assert_close(out.trajectory, ours.trajectory, rtol=1e-10, atol=1e-10)
    assert torch.equal(out.nfe, ours.nfe)
    assert torch.equal(out.accepted, ours.accepted)
    plain = torchdiffeq.odeint(lambda t, y: problem.drift(y, t.reshape(())), x, grid, method=method)
    torch.testing.assert_close(out.trajectory, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["explicit_adams", "implicit_adams"])
def test_adams_methods_have_order_four_and_want_equal_steps(method: str) -> None:
    sde = sd.VE(0.02, 30.0)
    solver = sd.solvers.TorchDiffEq(method, 1e-10, 1e-10)
    x, ends = X * 5, torch.tensor([0.8, 0.4], dtype=torch.float64)
    end = integrate(Reverse(MIXTURE.model(sde), 3), sd.solvers.DOP853(1e-12, 1e-12), x, ends).x
    errors = []
    for n in (20, 40, 80):
        grid = torch.linspace(0.8, 0.4, n + 1, dtype=torch.float64)
        errors.append(
            float(
                (solver.solve(Reverse(MIXTURE.model(sde), 3), x, grid, None, Options()).x - end)
                .abs()
                .max()
            )
        )
    assert fitted_order(errors) > solver.order - 0.25, errors
    model = MIXTURE.model(sde)
    times = watched(model)
    with pytest.raises(ValueError, match="coefficients of equal steps: take grid='uniform'"):
        sd.sample(model, (3, 2), solver=solver, steps=9, grid="quadratic", seed=0)
    assert not times


@pytest.mark.thin(5)
@pytest.mark.parametrize("lam", [1.0, 0.5])
@pytest.mark.parametrize(
    ("method", "ours"),
    [("euler", sd.EulerMaruyama()), ("milstein", sd.EulerMaruyama()), ("srk", sd.solvers.SRA1())],
    ids=str,
)
@pytest.mark.parametrize("name", SWEEP)
def test_torchsde_is_ours_on_one_path(name: str, method: str, ours: Solver, lam: float) -> None:
    sde = SDES[name]
    grid, x, options = uneven(sde), X * sde.prior.std, Options(trajectory=True)
    out = sd.solvers.TorchSDE(method).solve(
        Reverse(MIXTURE.model(sde), 3, lam), x, grid, white(), options
    )
    own = integrate(Reverse(MIXTURE.model(sde), 3, lam), ours, x, grid, white(), options)
    torch.testing.assert_close(out.trajectory, own.trajectory, rtol=1e-10, atol=1e-10)


def by_formula(
    method: str, problem: Problem, x: Tensor, t: Tensor, s: Tensor, dw: Tensor
) -> Tensor:
    """The Stratonovich schemes as torchsde documents them, for noise that does not depend on the
    state.
    """
    h, f, g = s - t, problem.drift, problem.diffuse
    if method == "euler_heun":
        return x + h * f(x, t) + (g(dw, t) + g(dw, s)) / 2
    if method == "midpoint":
        middle = (t + s) / 2
        return x + h * f(x + h / 2 * f(x, t) + g(dw, t) / 2, middle) + g(dw, middle)
    slope = f(x, t)
    return x + h / 2 * (slope + f(x + h * slope + g(dw, t), s)) + (g(dw, t) + g(dw, s)) / 2


@pytest.mark.thin(3)
@pytest.mark.parametrize("method", ["euler_heun", "midpoint", "heun"])
@pytest.mark.parametrize("name", FOUR)
def test_stratonovich_methods_are_their_formulas(name: str, method: str) -> None:
    sde = SDES[name]
    grid, x, noise = uneven(sde), X * sde.prior.std, white()
    out = sd.solvers.TorchSDE(method).solve(
        Reverse(MIXTURE.model(sde), 3, 1.0), x, grid, noise, Options()
    )
    problem = Reverse(MIXTURE.model(sde), 3, 1.0)
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        x = by_formula(method, problem, x, t, s, noise.at(i).increment(t, s))
    torch.testing.assert_close(out.x, x, rtol=1e-10, atol=1e-10)


@dataclasses.dataclass(frozen=True)
class Straight:
    """A path that is straight between 512 times from 1 to 0, at any times: every solver can follow
    it.
    """

    w: Tensor  # (513, rows, *event)

    @classmethod
    def draw(cls, rows: int) -> Straight:
        z = (
            torch.randn(
                512, rows, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64
            )
            / 512**0.5
        )
        return cls(torch.cat([torch.zeros_like(z[:1]), z.cumsum(0)]))

    def at(self, step: int) -> Straight:
        return self

    def take(self, rows: Tensor) -> Straight:
        return Straight(self.w[:, rows])

    def _value(self, t: Tensor) -> Tensor:
        place = (1 - float(t)) * 512
        i = min(int(place), 511)
        return self.w[i] + (place - i) * (self.w[i + 1] - self.w[i])

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        return self._value(b) - self._value(a)

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return self.increment(a, b) / (b - a).abs().sqrt()

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.linspace(1, 0, 513, dtype=torch.float64)
        knots = [a, *inside[(inside < a) & (inside > b)], b]
        values = [self._value(t) - self._value(a) for t in knots]
        pieces = zip(itertools.pairwise(knots), itertools.pairwise(values), strict=True)
        return values[-1], sum(
            ((t - s) * (v + w) / 2 for (t, s), (v, w) in pieces), start=torch.zeros_like(values[0])
        )


@pytest.mark.thin(0)
@pytest.mark.parametrize("method", ["srk", "heun"])
def test_adaptive_torchsde_follows_the_path_and_lands(method: str) -> None:
    """Against Euler-Maruyama on all the path's times; the callback sees each accepted step and both
    landings.
    """
    sde, path, seen = sd.VP(), Straight.draw(3), []
    fine = torch.linspace(1, 0, 513, dtype=torch.float64)[:410]
    ours = integrate(Reverse(MIXTURE.model(sde), 3, 1.0), sd.EulerMaruyama(), X, fine, path)
    grid = torch.stack([fine[0], fine[256], fine[-1]])
    solver = sd.solvers.TorchSDE(method, adaptive=True, rtol=3e-3, atol=3e-3)
    options = Options(trajectory=True, callback=seen.append)
    out = solver.solve(Reverse(MIXTURE.model(sde), 3, 1.0), X, grid, path, options)
    torch.testing.assert_close(out.x, ours.x, rtol=0, atol=3e-2)
    times = [float(snapshot.t) for snapshot in seen]
    assert times == sorted(times, reverse=True)
    assert set(grid[1:].tolist()) <= set(times)
    assert int(out.rejected[0]) < len(times) == int(out.accepted[0]) < 400
    assert out.nfe.tolist() == [int(out.accepted[0] + out.rejected[0]) * solver.evaluations] * 3
    assert torch.equal(seen[times.index(float(grid[1]))].x, out.trajectory[1])  # type: ignore[index]


@pytest.mark.slow
def test_adaptive_torchsde_from_seeds_keeps_the_law() -> None:
    """Mean and spread of 300 samples within 5 standard errors of the exact law at t_end."""
    data = sd.exact.Gaussian([0.4], [[0.09]])
    solver = sd.solvers.TorchSDE("srk", adaptive=True, rtol=3e-2, atol=3e-2)
    out = sd.sample(
        data.model(sd.VP()), (300, 1), solver=solver, t_end=0.05, seed=1, dtype=torch.float64
    )
    mean, cov = data.moments(sd.VP(), torch.tensor(0.05, dtype=torch.float64))
    std = float(cov.reshape(()).sqrt())
    assert abs(float(out.x.mean() - mean)) < 5 * std / 300**0.5
    assert abs(float(out.x.std()) / std - 1) < 5 / 600**0.5
    again = sd.sample(
        data.model(sd.VP()), (300, 1), solver=solver, t_end=0.05, seed=1, dtype=torch.float64
    )
    assert torch.equal(again.x, out.x)


GAUSSIAN = sd.exact.Gaussian(0.4, 0.09)


@pytest.mark.thin(1)
@every(SDE_SOLVERS)
def test_the_law_has_the_declared_order(solver: Solver) -> None:
    """Exact moments of the chain on Gaussian data, by unit impulses; midpoint has order 1 where the
    score is not affine.
    """
    sde, errors = sd.VP(), []
    for n in (16, 32, 64):
        times = torch.linspace(0.8, 0.2, n + 1, dtype=torch.float64)
        mean, cov = GAUSSIAN.moments(sde, times[0])
        mean, cov = affine_moments(
            lambda rows: Reverse(GAUSSIAN.model(sde), rows, 1.0),
            solver,
            times,
            mean,
            cov.diagonal().sqrt(),
        )
        true_mean, true_cov = GAUSSIAN.moments(sde, times[-1])
        errors.append(
            float((mean - true_mean).abs().sum() + (cov.sqrt() - true_cov.sqrt()).abs().sum())
        )
    assert fitted_order(errors) > solver.weak_order - 0.25, errors


class Turning(Problem):
    """dx = -A x dt + S dw with matrices: noises are correlated."""

    offers = frozenset({"drift", "diffusion"})
    pull = torch.tensor([[1.0, 0.4], [-0.3, 0.8]], dtype=torch.float64)
    turn = torch.tensor([[0.5, 0.2], [-0.1, 0.3]], dtype=torch.float64)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return self.seen(x, -x @ self.pull.T)

    def diffusion(self, t: Tensor) -> Matrix:
        return Matrix((1 + t)[:, None, None] * self.turn)


@pytest.mark.parametrize(
    ("method", "ours"), [("euler", sd.EulerMaruyama()), ("srk", sd.solvers.SRA1())], ids=str
)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.2)], ids=["forward", "backward"])
def test_the_diffusion_may_be_a_matrix(
    method: str, ours: Solver, ends: tuple[float, float]
) -> None:
    grid = torch.linspace(*ends, 11, dtype=torch.float64)
    out = sd.solvers.TorchSDE(method).solve(Turning(3), X, grid, white(), Options())
    torch.testing.assert_close(
        out.x, integrate(Turning(3), ours, X, grid, white()).x, rtol=1e-12, atol=1e-12
    )


def test_forward_simulation_by_torchsde() -> None:
    out, ours = (
        sd.simulate(sd.VP(), X, solver=solver, steps=20, seed=0)
        for solver in (sd.solvers.TorchSDE("srk"), sd.solvers.SRA1())
    )
    torch.testing.assert_close(out.x, ours.x, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="integrates no diffusion"):
        sd.simulate(sd.VP(), X, solver=sd.solvers.TorchDiffEq())


class Plain(sd.SDE):
    """VP by its coefficients alone."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * (0.1 + 19.9 * t) * x

    def diffusion(self, t: Tensor) -> Tensor:
        return (0.1 + 19.9 * t).sqrt()


@pytest.mark.parametrize(
    "solver",
    [sd.solvers.TorchDiffEq("rk4"), sd.solvers.SciPy("RK45"), sd.solvers.TorchSDE("heun")],
    ids=repr,
)
def test_an_sde_without_a_kernel(solver: Solver) -> None:
    score = sd.ScoreModel(
        lambda x, t: MIXTURE.score(sd.VP(), x, t),
        Plain(),
        "score",
        time_dtype=torch.float64,
        data_std=MIXTURE.data_std,
    )
    outs = [
        sd.sample(
            model,
            (3, 2),
            solver=solver,
            steps=steps_of(solver, 20),
            t_end=0.1,
            t_start=0.99,
            x_init=X,
            seed=0,
            dtype=X.dtype,
        )
        for model in (score, MIXTURE.model(sd.VP()))
    ]
    torch.testing.assert_close(outs[0].x, outs[1].x, rtol=1e-7, atol=1e-7)


# -- counts, times and shapes ----------------------------------------------------------------------


@pytest.mark.thin(4)
@pytest.mark.parametrize(
    ("name", "dtype"), [("VP", torch.float64), ("RectifiedFlow", torch.float32)]
)
@every(ALL)
def test_evaluations_are_counted_and_inside_the_span(
    solver: External, name: str, dtype: torch.dtype
) -> None:
    """Both ends are where f or the score blow up: one step beyond them would show."""
    sde = SDES[name]
    model = MIXTURE.model(sde)
    times = watched(model)
    out = sd.sample(
        model, (2, 2), solver=loose(solver), steps=steps_of(solver, 12), seed=0, dtype=dtype
    )
    assert out.x.dtype == dtype
    assert out.success
    assert bool(torch.isfinite(out.x).all())
    assert len(times) == int(out.nfe.sum())
    assert min(times) == sde.t_min
    assert max(times) == sde.t_max
    if not solver.adaptive:
        assert out.accepted.tolist() == [12, 12]
        assert set(out.times.tolist()) <= set(times) | {sde.t_min}
    if not solver.adaptive and "adams" not in solver.method:  # type: ignore[attr-defined]
        assert out.nfe.tolist() == [12 * solver.evaluations + 1] * 2
    if (isinstance(solver, sd.solvers.TorchDiffEq) and solver.adaptive) or solver in (
        sd.solvers.SciPy("RK23"),
        sd.solvers.SciPy("RK45"),
        sd.solvers.SciPy("DOP853"),
    ):
        attempts = int(out.accepted[0] + out.rejected[0])
        assert int(out.accepted[0]) > 0
        start = 0 if solver.stochastic else 2
        assert out.nfe.tolist() == [attempts * solver.evaluations + start + 1] * 2


@pytest.mark.thin(2)
@every([solver for solver in ODES if solver.adaptive])
def test_adaptive_methods_land_on_every_time(solver: External) -> None:
    """What is saved at a time is what a solve to that time gives, to what tolerances leave; the
    callback sees every landing.
    """
    model, grid, seen = MIXTURE.model(sd.VP()), [1.0, 0.5, 0.12, 1e-3], []
    solver = dataclasses.replace(solver, rtol=1e-4, atol=1e-4)
    times = watched(model)

    def look(snapshot: sd.solvers.Snapshot) -> None:
        seen.append((float(snapshot.t), snapshot.step, snapshot.done, snapshot.x))

    out = sd.sample(
        model,
        (3, 2),
        solver=solver,
        grid=grid,
        seed=0,
        last="noisy",
        trajectory=True,
        callback=look,
        dtype=X.dtype,
    )
    assert out.trajectory is not None
    assert min(times) >= 1e-3
    assert max(times) == 1.0
    ours = sd.sample(
        model,
        (3, 2),
        solver=sd.RK45(1e-8, 1e-8),
        grid=grid,
        seed=0,
        last="noisy",
        trajectory=True,
        dtype=X.dtype,
    )
    bound = 1e-1 if solver.method == "fehlberg2" else 1e-2  # type: ignore[attr-defined]
    torch.testing.assert_close(out.trajectory, ours.trajectory, rtol=0, atol=bound)
    assert torch.equal(out.trajectory[-1], out.x)
    if isinstance(
        solver, sd.solvers.TorchDiffEq
    ):  # two evaluations to start, one at each landing between
        assert (
            int(out.nfe[0])
            == int(out.accepted[0] + out.rejected[0]) * solver.evaluations + 2 + len(grid) - 2
        )
    moments = [t for t, *_ in seen]
    assert set(grid[1:]) <= set(moments)
    assert moments == sorted(moments, reverse=True)
    assert [step for _, step, *_ in seen] == list(range(1, len(seen) + 1))
    assert len(seen) == int(out.accepted[0])
    assert seen[-1][2] == 1.0
    for t, _, _, x in seen:
        if t in grid:
            assert torch.equal(x, out.trajectory[grid.index(t)])


@pytest.mark.thin(3)
@every(ALL)
def test_no_library_asks_beyond_the_end(solver: External, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its time is put into the span, it is there but for rounding; torchdiffeq's probe for
    the first step may not be.
    """
    asked, time = [], Run.time

    def record(run: Run, t: Tensor | float, dtype: torch.dtype) -> Tensor:
        asked.append(float(t))
        return time(run, t, dtype)

    monkeypatch.setattr(Run, "time", record)
    grid = (
        [1.0, 0.3, 0.2, 0.1]
        if solver.adaptive
        else torch.linspace(1.0, 0.1, 11, dtype=torch.float64)
    )
    sd.sample(
        MIXTURE.model(sd.VP()), (2, 2), solver=loose(solver), grid=grid, seed=0, dtype=torch.float64
    )
    if isinstance(solver, sd.solvers.TorchDiffEq) and solver.adaptive:
        del asked[1]
    assert min(asked) >= 0.1 - 1e-15
    assert max(asked) <= 1.0


@every([solver for solver in ALL if not solver.adaptive])
def test_fixed_methods_report_every_step(solver: External) -> None:
    seen: list[sd.solvers.Snapshot] = []
    out = sd.sample(
        MIXTURE.model(sd.VP()),
        (3, 2),
        solver=solver,
        steps=6,
        seed=0,
        last="noisy",
        trajectory=True,
        callback=seen.append,
    )
    assert out.trajectory is not None
    assert [float(snapshot.t) for snapshot in seen] == out.times[1:].tolist()
    for snapshot, x in zip(seen, out.trajectory[1:], strict=True):
        torch.testing.assert_close(snapshot.x, x, rtol=0, atol=0)
    assert [int(snapshot.nfe[0]) for snapshot in seen][-1] == int(out.nfe[0])


@pytest.mark.thin(6)
@pytest.mark.parametrize("shape", [(3,), (2, 3, 8, 8)], ids=str)
@every(ALL)
def test_any_shape_is_the_flat_problem(solver: External, shape: tuple[int, ...]) -> None:
    if "Radau" in repr(solver) and len(shape) > 1:
        pytest.skip("slow: a Jacobian of 192 coordinates a step")
    sde = sd.VP()
    model = sd.ScoreModel(
        lambda x, t: x * sde.sigma(t.double()).to(x).reshape(-1, *(1,) * (x.ndim - 1)), sde
    )
    rank, flat = (
        sd.sample(
            model,
            size,
            solver=loose(solver),
            steps=steps_of(solver, 5),
            seed=0,
            dtype=torch.float64,
        ).x
        for size in (shape, (shape[0], torch.Size(shape[1:]).numel()))
    )
    assert rank.shape == shape
    torch.testing.assert_close(rank.flatten(), flat.flatten(), rtol=0, atol=1e-9)


@pytest.mark.thin(2)
@every(ALL)
def test_a_batch_in_parts(solver: External) -> None:
    """Parts are solves of their own; steps of a fixed grid do not couple samples, so that parts are
    the whole.
    """
    model = MIXTURE.model(sd.VP())
    options = {"solver": loose(solver), "steps": steps_of(solver, 10), "dtype": torch.float64}
    parts = sd.sample(model, (5, 2), batch_size=2, seed=0, **options)  # type: ignore[arg-type]
    last = sd.sample(model, (1, 2), seed=sd.seeds(0, range(4, 5)), **options)  # type: ignore[arg-type]
    assert torch.equal(parts.x[4:], last.x)
    if not solver.adaptive and solver.method != "implicit_adams":  # type: ignore[attr-defined]
        whole = sd.sample(model, (5, 2), seed=0, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(parts.x, whole.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", SDE_SOLVERS, ids=repr)
def test_the_last_step_without_noise(solver: External) -> None:
    """last="mean": the step from the state before, with the path at rest; for torchsde's Euler that
    is the mean itself.
    """
    options = {"steps": 6, "seed": 0, "dtype": torch.float64, "trajectory": True}
    mean, noisy = (
        sd.sample(MIXTURE.model(sd.VP()), (3, 2), solver=solver, last=last, **options)
        for last in ("mean", "noisy")
    )  # type: ignore[arg-type]
    assert torch.equal(mean.trajectory[:-1], noisy.trajectory[:-1])  # type: ignore[index]
    assert bool((mean.x != noisy.x).all())
    if solver.method in ("euler", "milstein"):  # type: ignore[attr-defined]
        ours = sd.sample(
            MIXTURE.model(sd.VP()), (3, 2), solver=sd.EulerMaruyama(), last="mean", **options
        )  # type: ignore[arg-type]
        torch.testing.assert_close(mean.x, ours.x, rtol=0, atol=1e-12)


def test_the_declared_evaluations_are_the_librarys() -> None:
    from torchdiffeq._impl.odeint import SOLVERS

    for method, facts in _TORCHDIFFEQ.items():
        if facts.adaptive:
            assert facts.evaluations == len(SOLVERS[method].tableau.alpha), method
        assert facts.order == SOLVERS[method].order, method
    assert set(SOLVERS) == set(_TORCHDIFFEQ) | {"fixed_adams", "scipy_solver"}


# -- failures --------------------------------------------------------------------------------------


def breaking(at: float = 0.4, value: float = float("nan")) -> sd.ScoreModel:
    """Exact, but for samples labelled 1 below t = ``at``."""
    exact = MIXTURE.model(sd.VP())

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        out = exact.net(x, t)
        return torch.where(((label == 1) & (t < at))[:, None], torch.full_like(out, value), out)

    return sd.ScoreModel(net, sd.VP(), exact.predicts)


@pytest.mark.thin(2)
@every(ALL)
def test_nan_at_one_sample_and_time(solver: External) -> None:
    def solve(label: list[float], on_fail: str) -> sd.Solution:
        condition = {"label": torch.tensor(label)}
        steps = steps_of(solver, 12)
        return sd.sample(
            breaking(),
            (3, 2),
            solver=loose(solver),
            steps=steps,
            seed=0,
            condition=condition,
            on_fail=on_fail,
            dtype=torch.float64,
        )  # type: ignore[arg-type]

    with pytest.raises(
        sd.SolveError,
        match=r"sample 1 failed at t = (0\.\d+|1): the network's output is not finite",
    ):
        solve([0, 1, 0], "raise")
    out, healthy = solve([0, 1, 0], "return"), solve([0, 0, 0], "return")
    assert out.status.tolist() == [0, Status.NETWORK_NOT_FINITE, 0]
    coupled = solver.adaptive or solver.method == "implicit_adams"  # type: ignore[attr-defined]
    torch.testing.assert_close(
        out.x[[0, 2]],
        healthy.x[[0, 2]],
        rtol=0,
        atol=(4.0 if solver.stochastic else 0.3) if coupled else 0,
    )
    assert bool(torch.isfinite(out.x).all())
    assert int(out.accepted[1]) < int(out.accepted[0])
    assert solver.adaptive or 0.3 < out.failures[0].t < 0.5


@every([solver for solver in ALL if "adams" not in repr(solver)])
def test_max_nfe(solver: External) -> None:
    cap = solver.evaluations + (2 if solver.adaptive else 6)
    solver = dataclasses.replace(solver, rtol=1e-6, atol=1e-6) if solver.adaptive else solver
    model = MIXTURE.model(sd.VP())
    times = watched(model)
    out = sd.sample(
        model,
        (2, 2),
        solver=solver,
        steps=steps_of(solver, 40),
        seed=0,
        max_nfe=cap,
        on_fail="return",
    )
    assert out.status.tolist() == [Status.MAX_NFE] * 2
    assert out.nfe.tolist() == [cap, cap]
    assert len(times) == 2 * cap
    assert bool(torch.isfinite(out.x).all())
    assert out.failures[0].t <= 1.0
    with pytest.raises(sd.SolveError, match="max_nfe is reached"):
        sd.sample(model, (2, 2), solver=solver, steps=steps_of(solver, 40), seed=0, max_nfe=cap)


class Rough(Problem):
    """A drift that no step size resolves at t = 0.5 and below."""

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        rough = torch.sign(torch.sin(1e12 * x + 1e9 * t)) * 1e15
        return self.seen(x, -x if t > 0.5 else rough)


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (sd.solvers.TorchDiffEq("dopri5"), r"\(torchdiffeq: underflow in dt "),
        (
            sd.solvers.SciPy("RK45"),
            r"\(SciPy: Required step size is less than spacing between numbers\.\)",
        ),
    ],
    ids=repr,
)
def test_the_librarys_words_are_kept(solver: External, words: str) -> None:
    grid, problem = torch.tensor([1.0, 0.7, 0.0], dtype=torch.float64), Rough(2)
    with pytest.raises(sd.SolveError, match="sample 0 failed at t = 0.5.*" + words) as caught:
        solver.solve(problem, X[:2], grid, None, Options(trajectory=True))
    out = caught.value.solution
    assert out.status.tolist() == [Status.STEP_TOO_SMALL] * 2
    assert out.trajectory is not None
    torch.testing.assert_close(
        out.trajectory[1],
        X[:2] * torch.exp(torch.tensor(0.3, dtype=torch.float64)),
        rtol=1e-4,
        atol=0,
    )
    assert torch.equal(out.trajectory[2], out.x)
    assert int(out.rejected[0]) > 0 or "SciPy" in words


class Exploding(Problem):
    """dx = x^3 dt for the second sample alone: its state overflows, and no network is to blame."""

    offers = frozenset({"drift", "diffusion"})

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        which = torch.arange(len(x)) == 1
        return self.seen(x, torch.ones_like(x)) * torch.where(which[:, None], 1e3 * x**3, -x)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 0.1)


@pytest.mark.parametrize(
    "solver",
    [sd.solvers.TorchDiffEq("euler"), sd.solvers.TorchSDE("euler"), sd.solvers.TorchDiffEq("rk4")],
    ids=repr,
)
def test_a_state_that_overflows(solver: External) -> None:
    grid = torch.linspace(0, 1, 31, dtype=torch.float64)
    out = solver.solve(Exploding(3), X, grid, white(), Options(on_fail="return", trajectory=True))
    assert out.status.tolist() == [0, Status.STATE_NOT_FINITE, 0]
    assert bool(torch.isfinite(out.trajectory).all())  # type: ignore[arg-type]
    assert 0 < out.failures[0].t < 1
    twin = type(solver)(solver.method).solve(Turning(3), X, grid, white(), Options())  # type: ignore[attr-defined, call-arg]
    assert twin.success


@pytest.mark.thin(14)
@pytest.mark.parametrize(
    "error",
    [AssertionError("mine"), ValueError("mine"), ZeroDivisionError("mine"), KeyError("mine")],
    ids=repr,
)
@every(ALL)
def test_errors_of_the_network_and_the_callback_are_their_own(
    solver: External, error: Exception
) -> None:
    def net(x: Tensor, t: Tensor) -> Tensor:
        if float(t[0]) < 0.5:
            raise error
        return x

    def look(snapshot: sd.solvers.Snapshot) -> None:
        raise error

    steps = steps_of(solver, 4)
    with pytest.raises(type(error), match="mine") as caught:
        sd.sample(sd.ScoreModel(net, sd.VP()), (2, 2), solver=loose(solver), steps=steps, seed=0)
    assert caught.value is error
    with pytest.raises(type(error), match="mine") as caught:
        sd.sample(MIXTURE.model(sd.VP()), (2, 2), solver=solver, steps=steps, seed=0, callback=look)
    assert caught.value is error


def test_memory_that_bdf_has_not_written_yet_is_of_no_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SciPy subtracts rows of a table that np.empty made: what was there before, signalling NaNs
    here, gives no warning.
    """
    kw = {"solver": sd.solvers.SciPy("BDF", 1e-4, 1e-4), "seed": 0, "dtype": torch.float64}
    want = sd.sample(MIXTURE.model(sd.VP()), (3, 2), **kw).x  # type: ignore[arg-type]
    filled = {"empty": lambda shape, dtype: np.full(shape, 0x7FF4 << 48, np.uint64).view(dtype)}
    monkeypatch.setattr(bdf, "np", types.SimpleNamespace(**{**vars(np), **filled}))
    assert torch.equal(sd.sample(MIXTURE.model(sd.VP()), (3, 2), **kw).x, want)  # type: ignore[arg-type]


# -- gradients -------------------------------------------------------------------------------------


def gradients(
    solver: Solver, grad: str = "full", steps: int | None = 6, **options: object
) -> tuple[Tensor, Tensor]:
    """d sum(x^2) with respect to the start and the weights of a network."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64).requires_grad_()
    model = sd.ScoreModel(
        lambda at, t: torch.tanh(at @ weight * (1 + t[:, None])) @ weight.T / 4 + 0.5 * at, sd.VP()
    )
    options = {"seed": 0, "x_init": x, "grad": grad, "dtype": torch.float64, **options}
    if "grid" not in options:
        options |= {
            "steps": None if steps is None else steps_of(solver, steps),
            "t_start": 0.9,
            "t_end": 0.2,
        }
    out = sd.sample(model, (4, 2), solver=solver, **options)  # type: ignore[arg-type]
    return torch.autograd.grad(out.x.square().sum(), (x, weight))  # type: ignore[return-value]


def agree(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor], bound: float) -> None:
    for a, b in zip(one, two, strict=True):
        assert bool((a != 0).all())
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)


@pytest.mark.parametrize(
    ("method", "tolerance", "bound"), [("dopri8", 1e-8, 1e-6), ("dopri5", 1e-5, 3e-6)]
)
def test_gradients_through_adaptive_steps(method: str, tolerance: float, bound: float) -> None:
    """Those of RK4 in 150 steps: the first step's size depends on the state, and must not be
    differentiated (off by 4e-4).
    """
    ours = gradients(sd.solvers.RungeKutta4(variable="t"), steps=150)
    agree(gradients(sd.solvers.TorchDiffEq(method, tolerance, tolerance)), ours, bound)


PAIRS: list[tuple[Solver, Solver]] = [
    *((sd.solvers.TorchDiffEq(method), ours) for method, ours in FIXED.items()),
    (sd.solvers.TorchSDE("euler"), sd.EulerMaruyama()),
    (sd.solvers.TorchSDE("srk"), sd.solvers.SRA1()),
]


@pytest.mark.parametrize(("solver", "ours"), PAIRS, ids=lambda value: repr(value))
def test_gradients_through_fixed_steps_are_ours(solver: Solver, ours: Solver) -> None:
    agree(gradients(solver), gradients(ours), 1e-10)


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    ("method", "ours"), [("srk", sd.solvers.SRA1()), ("euler", sd.EulerMaruyama())], ids=repr
)
@pytest.mark.parametrize("grad", ["full", "checkpoint"])
def test_gradients_through_adaptive_torchsde_are_ours(method: str, ours: Solver, grad: str) -> None:
    """Of its accepted steps, each two halves, on the same path: sizes are not differentiated,
    rejected ones leave nothing.
    """
    solver = sd.solvers.TorchSDE(method, adaptive=True, rtol=0.05, atol=0.05, dt=0.1)
    options = {
        "seed": None,
        "noise": sd.solvers.BrownianPath(sd.seeds(0, 4), (2,), 0.9, 0.2, dtype=torch.float64),
        "last": "noisy",
    }
    times = [torch.tensor(0.9, dtype=torch.float64)]
    theirs = gradients(solver, grad, callback=lambda snapshot: times.append(snapshot.t), **options)
    assert times[-1] == 0.2
    ends = torch.stack(times)
    assert float(-ends[1:].diff().max()) < 0.5 * float(-ends.diff().min())  # it did choose
    grid = torch.stack([ends[:-1], 0.5 * (ends[:-1] + ends[1:])], dim=1).flatten()
    agree(theirs, gradients(ours, grid=torch.cat([grid, ends[-1:]]), **options), 1e-9)


@pytest.mark.parametrize(
    "solver",
    [
        sd.solvers.TorchDiffEq("dopri5", 1e-2, 1e-2),
        sd.solvers.TorchDiffEq("rk4"),
        sd.solvers.TorchSDE("heun"),
    ],
    ids=repr,
)
def test_checkpointing_changes_no_gradient(solver: Solver) -> None:
    agree(gradients(solver, "checkpoint"), gradients(solver), 1e-12)


# -- refusals --------------------------------------------------------------------------------------


ENDS = torch.tensor([1.0, 0.5], dtype=torch.float64)


CALLS: list[tuple[Callable[[], Solver], dict[str, Any], str]] = [
    (
        lambda: sd.solvers.TorchDiffEq("dopri6"),
        {},
        "no method is called 'dopri6' .did you mean 'dopri[58]'",
    ),
    (lambda: sd.solvers.SciPy("rk45"), {}, "no method is called 'rk45' .did you mean 'RK45'"),
    (
        lambda: sd.solvers.TorchSDE("milstien"),
        {},
        "no method is called 'milstien' .did you mean 'milstein'",
    ),
    (lambda: sd.solvers.TorchSDE("zzz"), {}, "no method is called 'zzz'; known: euler, milstein"),
    (lambda: sd.solvers.TorchDiffEq("scipy_solver"), {}, "is not taken: take SciPy"),
    (lambda: sd.solvers.TorchDiffEq("fixed_adams"), {}, "'implicit_adams' under an older name"),
    (lambda: sd.solvers.TorchSDE("log_ode"), {}, "is not taken: where noise does not depend"),
    (lambda: sd.solvers.TorchDiffEq("dopri5", rtol=-1), {}, "rtol must be a finite number >= 0"),
    (lambda: sd.solvers.SciPy("RK45", 0, 0), {}, "cannot both be 0"),
    (lambda: sd.solvers.TorchDiffEq("dopri5"), {"steps": 10}, "chooses its own steps: drop steps"),
    (lambda: sd.solvers.SciPy(), {"grid": "karras"}, "chooses its own steps"),
    (lambda: sd.solvers.TorchDiffEq("rk4"), {}, "takes fixed steps: pass steps=N"),
    (lambda: sd.solvers.TorchSDE(), {}, "takes fixed steps: pass steps=N"),
    (lambda: sd.solvers.SciPy(), {"grad": "full"}, "keeps no graph: take grad='none'"),
    (lambda: sd.solvers.SciPy(), {"stochasticity": 1.0}, "draws no noise along the path"),
    (
        lambda: sd.solvers.TorchDiffEq(),
        {"max_nfe": 5},
        "takes 8 evaluations to make its first step",
    ),
    (lambda: sd.solvers.TorchSDE(dt=0.1), {}, "the steps are the intervals of the grid; drop dt"),
    (
        lambda: sd.solvers.TorchSDE(adaptive=True, dt=0.0),
        {},
        "dt must be None or a positive number",
    ),
    (lambda: sd.solvers.TorchSDE(adaptive=True), {"steps": 10}, "chooses its own steps"),
    (lambda: sd.solvers.TorchSDE(adaptive=True), {"last": "mean"}, "does not know its last step"),
]


@pytest.mark.parametrize(("make", "arguments", "message"), CALLS, ids=range(len(CALLS)))
def test_a_call_is_refused_before_the_network_is_asked(
    make: Callable[[], Solver], arguments: dict[str, Any], message: str
) -> None:
    model = MIXTURE.model(sd.VP())
    times = watched(model)
    with pytest.raises(ValueError, match=message):
        sd.sample(model, (2, 2), solver=make(), **{"seed": 0, **arguments})
    assert not times, "the network was called before the refusal"


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: sd.solvers.Churn(sd.solvers.TorchDiffEq("euler")), "is another library's driver"),
    (lambda: sd.solvers.Renoise(sd.solvers.TorchDiffEq("euler")), "is another library's driver"),
    (
        lambda: sd.PredictorCorrector(sd.solvers.TorchSDE("euler"), sd.Langevin()),
        "is another library's driver",
    ),
    (
        lambda: sd.solvers.TorchDiffEq("euler").plan(Turning(3), torch.tensor([1.0, 0.5])),
        "call its method solve",
    ),
    (
        lambda: sd.solvers.TorchSDE().solve(
            Turning(3), X, torch.tensor([1.0, 0.5]), None, Options()
        ),
        "draws noise: pass a noise",
    ),
    (
        lambda: sd.solvers.TorchSDE().solve(
            Rough(3), X, torch.tensor([1.0, 0.5]), white(), Options()
        ),
        "needs diffusion, which",
    ),
]


@pytest.mark.parametrize(("refused", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_a_driver_cannot_do_is_refused(refused: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refused()


@every(ALL)
def test_values_are_frozen_and_a_single_time_is_the_start(solver: External) -> None:
    assert dataclasses.replace(solver) == solver
    assert hash(dataclasses.replace(solver)) == hash(solver)
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver.method = "euler"  # type: ignore[attr-defined]
    out = solver.solve(Turning(3), X, torch.tensor([0.5], dtype=torch.float64), white(), Options())
    assert torch.equal(out.x, X)
    assert out.nfe.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "solver",
    [sd.solvers.SciPy("RK45"), sd.solvers.TorchDiffEq("rk4"), sd.solvers.TorchSDE("euler")],
    ids=repr,
)
def test_integrate_drives_other_libraries(solver):
    times, noise = (
        torch.linspace(1.0, 0.5, 5, dtype=torch.float64),
        sd.White((1, 2, 3), X.shape[1:], dtype=X.dtype),
    )
    one = integrate(Turning(3), solver, X, times, noise if solver.stochastic else None)
    other = solver.solve(Turning(3), X, times, noise if solver.stochastic else None, Options())
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.nfe, other.nfe)
