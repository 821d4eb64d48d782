"""The rules by which adaptive solvers choose their steps, each by itself: a solver whose errors are
written down takes the place of network and SDE.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from sdediff.solvers import (
    RK45,
    Controller,
    ExponentialPair,
    Options,
    PIController,
    Problem,
    Solution,
    Status,
    Step,
    Verdict,
    White,
    integrate,
    seeds,
)
from sdediff.solvers.solver import Adaptive

F64 = torch.float64
GOAL = 0.1  # errors of this size keep the step size, under the default controller
exactly = pytest.approx  # to 1e-12, which rounding may take


class Rate(Problem):
    """dx / dt = rate + bend t; ``asked`` gets the times at which that is evaluated."""

    def __init__(self, rows: int, rate: float = 1.0, bend: float = 0.0) -> None:
        super().__init__(rows)
        self.rate, self.bend = rate, bend
        self.asked: list[float] = []

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        self.asked += t.reshape(-1).tolist()
        return self.seen(x, (self.rate + self.bend * t).reshape(-1, 1).to(x).expand_as(x))


@dataclass(frozen=True)
class Written(Adaptive):
    """Stays where it is, and says that row i errs by the numbers in ``errors[i]``, one an attempt,
    and by `GOAL` after them; ``tried[i]`` gets the (t, s) of its attempts.
    """

    rtol: float = 0.0
    atol: float | None = 1.0
    errors: Any = field(default=(), kw_only=True)
    tried: Any = field(default_factory=dict, kw_only=True)

    error_order = 2.0

    def step(self, problem: Problem, x: Tensor, plan: Any, noise: Any, state: Any) -> Step:
        problem.drift(x, plan[0])
        rows = range(len(x)) if problem.rows is None else problem.rows.tolist()
        found = []
        for row, t, s in zip(rows, *(each.tolist() for each in plan), strict=True):
            mine = self.tried.setdefault(row, [])
            found.append(([*self.errors[row], *[GOAL] * (len(mine) + 1)])[len(mine)])
            mine.append((t, s))
        return Step(x, error=torch.tensor(found, dtype=x.dtype)[:, None])


class Beginning(Written):
    """The same with an evaluation at the start of each step, which a rejected one hands on."""

    init_each_step = True
    evaluations = 2

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return (problem.drift(x, t),)

    def slope(self, problem: Problem, x: Tensor, t: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        return state[0]


class Drawing(Written):
    """The same for a solver that draws noise."""

    stochastic = True


def solve(
    *errors: list[float],
    grid: tuple[float, ...] = (0.0, 12.0),
    kind: type[Written] = Written,
    max_nfe: int | None = None,
    **fields: Any,
) -> tuple[dict[int, list[tuple[float, float]]], Solution]:
    """Attempts (t, s) of every row, and the solution; the first attempt is of length 1."""
    solver, rows = kind(errors=errors, **fields), len(errors)
    x, times = torch.ones(rows, 1, dtype=F64), torch.tensor(grid, dtype=F64)
    options = Options(max_nfe=max_nfe, on_fail="return")
    noise = White(seeds(0, rows), (1,), dtype=F64)
    return solver.tried, integrate(Rate(rows), solver, x, times, noise, options)


def lengths(attempts: list[tuple[float, float]], count: int) -> list[float]:
    return [abs(s - t) for t, s in attempts[:count]]


def judge(
    e: float, before: float = 1.0, *, retry: bool = False, **fields: float
) -> tuple[bool, float, float, bool]:
    """(accepted, factor, next before, next retry), by an estimate of order 2."""
    history = torch.tensor([before], dtype=F64), torch.tensor([retry])
    found = PIController(**fields).judge(torch.tensor([e], dtype=F64), history, 2.0)
    kept, again = found.history
    return bool(found.accepted), float(found.factor), float(kept), bool(again)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # the bound, and the float above it
        (judge(1.0), (True, 10**-0.35, 10.0, False)),
        (judge(1 + 2**-52), (False, 10**-0.35, 1.0, True)),
        (judge(0.1), (True, 1.0, 1.0, False)),
        # the integral term, and its exponent
        (judge(0.025), (True, 4**0.35, 0.25, False)),
        (judge(0.025, integral=1.0), (True, 2.0, 0.25, False)),
        (judge(0.1, goal=0.4), (True, 4**0.35, 0.25, False)),
        # the proportional term: an error that falls lengthens the step, one that grows shortens it
        (judge(0.1, 4.0), (True, 4**0.2, 1.0, False)),
        (judge(0.1, 0.25), (True, 4**-0.2, 1.0, False)),
        (judge(0.1, 4.0, proportional=1.0), (True, 2.0, 1.0, False)),
        # limits of growth, of shrinking, and of growth after a rejection; what is remembered
        (judge(1e-10), (True, 10.0, 0.01, False)),
        (judge(1e-10, grow=3.0, least=0.5), (True, 3.0, 0.5, False)),
        (judge(1e-10, retry=True), (True, 1.0, 0.01, False)),
        (judge(0.9, retry=True), (True, 9**-0.35, 9.0, False)),
        (judge(1e10), (False, 0.2, 1.0, True)),
        (judge(1e10, 3.0, shrink=0.05), (False, 0.05, 3.0, True)),
        (judge(1.0, 1e-10), (True, 0.2, 10.0, False)),
        # a retry is by the lesser of the two rules
        (judge(4.0), (False, 40**-0.35, 1.0, True)),
        (judge(4.0, goal=1.0), (False, 0.45, 1.0, True)),
        (judge(4.0, goal=1.0, safety=0.5), (False, 0.25, 1.0, True)),
    ],
)
def test_the_verdicts_of_the_pi_controller(found: tuple[Any, ...], expected: Any) -> None:
    assert found == exactly(expected, rel=1e-12)


def test_verdicts_in_a_row() -> None:
    """Accepted, rejected, no longer after that, longer again. A rejected error is forgotten."""
    tried, out = solve([GOAL, 4.0, 0.001, 0.025, 0.1], max_nfe=9)
    first, retried = 1.0, 40**-0.35
    factors = (first, retried, 1.0, 4**0.35 * 0.01**0.2, 0.25**0.2)
    expected = list(itertools.accumulate(factors, lambda a, b: a * b))
    assert lengths(tried[0], 6)[1:] == exactly([1.0, *expected[1:]], rel=1e-12)
    starts = [t for t, _ in tried[0][:5]]
    ends = [s for _, s in tried[0][:4]]
    assert starts == [0.0, ends[0], ends[0], ends[2], ends[3]]
    assert (int(out.accepted), int(out.rejected)) == (len(tried[0]) - 1, 1)


@pytest.mark.parametrize("error", [math.nan, math.inf, 1e300])
def test_an_error_that_is_no_number_is_a_rejection(error: float) -> None:
    tried, out = solve([error], max_nfe=4)
    assert tried[0][1] == exactly((0.0, 0.2), rel=1e-12)
    assert int(out.rejected) == 1


def test_landing_on_a_grid_time() -> None:
    """To the bit. What the grid cut short does not shorten the next step, unless it was rejected;
    what is left for less than two steps is shared by two.
    """
    times = (0.0, 2.0, 2.25, 4.75, 12.0)
    ends = [1.0, 2.0, 2.25, 3.25, 4.0, 4.75, 5.5]
    tried, out = solve([], grid=times)
    assert [s for _, s in tried[0][:7]] == exactly(ends, rel=1e-12)
    assert set(times[1:]) <= {s for _, s in tried[0]}
    assert out.success
    again, _ = solve([GOAL, GOAL, 4.0], grid=times, max_nfe=20)
    assert again[0][3] == exactly((2.0, 2.0 + 0.25 * 40**-0.35), rel=1e-12)
    assert 2.25 in {s for _, s in again[0][4:]}
    back, _ = solve([], grid=tuple(-t for t in times))
    assert [s for _, s in back[0][:7]] == exactly([-s for s in ends], rel=1e-12)
    # what is left for more than two steps is not shared
    more, _ = solve([], grid=(0.0, 3.01, 12.0))
    assert [s for _, s in more[0][:4]] == exactly([1.0, 2.0, 2.505, 3.01], rel=1e-12)


def test_dt_min_bounds_the_step() -> None:
    """Row 0 fails when a step of that length is rejected. Row 1 takes one, and goes on."""
    tried, out = solve([4.0, 4.0], [4.0], dt_min=0.5)
    assert lengths(tried[0], 9) == exactly([1.0, 0.5], rel=1e-12)
    assert lengths(tried[1], 3) == exactly([1.0, 0.5, 0.5], rel=1e-12)
    (failure,) = out.failures
    assert (failure.sample, failure.status, failure.t) == (0, Status.STEP_TOO_SMALL, 0.0)
    # the last one, cut by the grid, may be shorter; none is made shorter to share what is left
    tried, out = solve([], grid=(0.0, 2.6, 12.0), dt_min=0.9)
    assert [s for _, s in tried[0][:3]] == exactly([1.0, 1.9, 2.6], rel=1e-12)
    assert out.success


def test_rounding_bounds_the_step() -> None:
    """Sixteen units in the last place of the time, and of a thousandth of the way near 0."""
    for grid, size in (((0.0, 100.0), 0.1), ((50.0, 150.0), 50.0)):
        tried, out = solve([4.0] * 60, grid=grid)
        least = 16 * torch.finfo(F64).eps * size
        assert lengths(tried[0], 99)[-1] == exactly(least, rel=0.05, abs=0)
        assert out.status.tolist() == [Status.STEP_TOO_SMALL]


def test_max_nfe() -> None:
    """Two evaluations to start and one an attempt: none is made that would exceed it."""
    tried, out = solve([GOAL, 4.0, GOAL, GOAL], [], max_nfe=5)
    assert out.nfe.tolist() == [5, 5]
    assert len(tried[0]) == 3
    assert [(f.status, f.t) for f in out.failures] == [
        (Status.MAX_NFE, exactly(tried[row][2][1])) for row in (0, 1)
    ]
    # row 0 has what its second attempt begins with, which would be one too many for row 1
    _, out = solve([4.0], [], kind=Beginning, max_nfe=4)
    assert out.nfe.tolist() == [4, 3]
    assert out.rejected.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("grid", "rate", "bend", "goal", "probe", "expected"),
    [
        # 100 probes of 0.01 norm(x) / norm(drift)
        ((0.0, 1.0), 16.0, 0.0, 0.1, 0.01 / 16, 1 / 16),
        # the goal, by the drift and by its change
        ((0.0, 1.0), 2.0, 0.0, 0.1, 0.005, (0.1 / 2) ** 0.5),
        ((0.0, 1.0), 2.0, 50.0, 0.1, 0.005, (0.1 / 50) ** 0.5),
        ((0.0, 1.0), 2.0, 50.0, 0.4, 0.005, (0.4 / 50) ** 0.5),
        ((1.0, 0.0), 52.0, -50.0, 0.1, 0.995, (0.1 / 50) ** 0.5),
        # the unit of time is that of the grid
        ((0.0, 4.0), 2.0, 50.0, 0.1, 0.005, 4 * (0.1 / (4 * 4 * 50)) ** 0.5),
        # no longer than the first interval, and the probe than a tenth of it
        ((0.0, 0.01, 1.0), 1.0, 0.0, 0.1, 0.001, 0.01),
        # without a drift a millionth of the way
        ((0.0, 4.0), 0.0, 0.0, 0.1, 4e-6, 4e-6),
    ],
)
def test_the_first_step(
    grid: tuple[float, ...], rate: float, bend: float, goal: float, probe: float, expected: float
) -> None:
    """Hairer et al. I, II.4, by two evaluations; the second step is as long."""
    problem, times = Rate(1, rate, bend), torch.tensor(grid, dtype=F64)
    solver = Written(errors=([goal] * 9,), controller=PIController(goal=goal))
    options = Options(max_nfe=4, on_fail="return")
    integrate(problem, solver, torch.ones(1, 1, dtype=F64), times, options=options)
    assert problem.asked[:2] == exactly([grid[0], probe], rel=1e-9)
    assert lengths(solver.tried[0], 2) == exactly([expected] * 2, rel=1e-9)


def test_dyadic_steps() -> None:
    """An eighth of the way at most; the power of two below the factor; one level coarser at most,
    and only where such a step may start.
    """
    errors = [0.6, 4.0, 0.6, 0.6, *[0.0] * 6]
    tried, _ = solve(errors, grid=(0.0, 1.0), kind=Drawing)
    assert [t * 32 for t, _ in tried[0][:10]] == [0, 4, 4, 5, 6, 7, 8, 10, 12, 16]
    assert [s * 32 for _, s in tried[0][:10]] == [4, 8, 5, 6, 7, 8, 10, 12, 16, 20]
    # steps are as long in a shorter interval as before, and as many in a longer one
    grid, same = (0.0, 0.5, 0.625, 1.0), [0.6] * 4
    tried, _ = solve(same * 2, grid=grid, kind=Drawing)
    assert [s * 32 for _, s in tried[0][:7]] == [4, 8, 12, 16, 20, 23, 26]
    tried, _ = solve([*same, 4.0, *same * 2], grid=grid, kind=Drawing)
    assert [s * 32 for _, s in tried[0][5:11]] == [17, 18, 19, 20, 23, 26]
    tried, out = solve([4.0] * 60, grid=(0.0, 1.0), kind=Drawing)
    assert lengths(tried[0], 99)[-1] == 2**-30
    assert out.status.tolist() == [Status.STEP_TOO_SMALL]


# Controllers of a user's own.


@dataclass(frozen=True)
class Halving:
    """Half the step after a rejection, one and a half times it after a success."""

    goal: float = 1.0

    def start(self, rows: int) -> tuple[Tensor, ...]:
        return ()

    def judge(self, norm: Tensor, history: tuple[Tensor, ...], order: float) -> Verdict:
        return Verdict(norm <= 1, torch.where(norm <= 1, 1.5, 0.5))


class Patient:
    """A row whose history is the number n grows by 1 + n / 4, the first rows the most."""

    goal = 1.0

    def start(self, rows: int) -> tuple[Tensor, ...]:
        return (torch.arange(rows).flip(0)[:, None],)

    def judge(self, norm: Tensor, history: tuple[Tensor, ...], order: float) -> Verdict:
        return Verdict(norm <= math.inf, 1.0 + history[0][:, 0].to(norm) / 4, history)


def test_a_controller_of_ones_own() -> None:
    tried, _ = solve([0.9, 1.1, 0.0, math.nan], controller=Halving())
    assert lengths(tried[0], 5) == exactly([1.0, 1.5, 0.75, 1.125, 0.5625], rel=1e-12)
    # a free choice of what is accepted, and a history that goes with its row when others leave
    tried, out = solve([9.0], [9.0], [9.0], controller=Patient())
    for row, attempts in tried.items():
        count = len(attempts) - 2  # the last two are shared
        assert lengths(attempts, count) == exactly(
            [(1.5 - row / 4) ** k for k in range(count)], rel=1e-9
        )
    assert out.rejected.tolist() == [0, 0, 0]
    assert out.accepted.tolist() == sorted(out.accepted.tolist())
    assert isinstance(Halving(), Controller)


def test_every_adaptive_solver_has_the_field() -> None:
    controller = PIController(goal=0.5)
    assert RK45(controller=controller) == RK45(controller=PIController(goal=0.5)) != RK45()
    assert hash(RK45(controller=controller)) == hash(RK45(controller=PIController(goal=0.5)))
    assert ExponentialPair(3, controller=controller).controller == controller
    assert repr(RK45(controller=Halving())) == "RK45(controller=Halving(goal=1.0))"


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        (lambda norm: Verdict(norm <= 1, norm * math.nan), "gave the factor nan for an error"),
        (lambda norm: Verdict(norm <= 1, norm * 0), "gave the factor 0 .* finite and positive"),
        (lambda norm: Verdict(norm <= 1, norm * math.inf), "gave the factor inf"),
        (lambda norm: Verdict(norm < 0, norm * 0 + 1), "below 1 where the step is rejected"),
        (lambda norm: Verdict(norm <= 1, norm[:, None]), r"2 rows: bool \(2,\), float64 \(2,\)"),
        (lambda norm: Verdict(norm <= 1, 1.0), r"judge must return Verdict\(accepted, factor"),
        (lambda norm: Verdict(norm, norm), "judge must return Verdict"),
        (lambda norm: Verdict(norm <= 1, norm, (torch.ones(3),)), "a tuple of any"),
        (lambda norm: (norm <= 1, norm), "judge must return Verdict"),
    ],
)
def test_a_bad_verdict_is_refused(judged: Callable[[Tensor], Any], message: str) -> None:
    class Bad(Patient):
        def judge(self, norm: Tensor, history: tuple[Tensor, ...], order: float) -> Verdict:
            return judged(norm)

    with pytest.raises(ValueError, match=f"Bad.*{message}"):
        solve([GOAL], [GOAL], controller=Bad())


@pytest.mark.parametrize("given", [0.5, PIController, object()])
def test_what_is_no_controller_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="RK45: controller must have goal, start and judge"):
        RK45(controller=given)


@pytest.mark.parametrize("goal", [0.0, 2.0, math.nan, "x"])
def test_a_goal_out_of_range_is_refused(goal: Any) -> None:
    class Own:
        start = PIController.start
        judge = PIController.judge

    own: Any = Own()
    own.goal = goal
    with pytest.raises(ValueError, match="the goal of the controller must be"):
        RK45(controller=own)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("goal", 0.0),
        ("goal", 1.1),
        ("safety", 1.0),
        ("shrink", 1.0),
        ("grow", 1.0),
        ("grow", math.inf),
        ("integral", 0.0),
        ("proportional", -0.1),
        ("least", 0.0),
        ("goal", math.nan),
    ],
)
def test_arguments_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"PIController: {name} must be"):
        PIController(**{name: value})
