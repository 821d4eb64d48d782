"""Explicit Runge-Kutta methods for the probability flow, on any tableau."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.given import Positive, check_choice
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Adaptive, Solver, Step
from sdediff.solvers.tableau import (
    BOGACKI_SHAMPINE,
    DORMAND_PRINCE,
    EULER,
    HEUN,
    MIDPOINT,
    RK4,
    TSITOURAS,
    Tableau,
)
from sdediff.solvers.tableau import DOP853 as DOP853_TABLEAU
from sdediff.solvers.variable import (
    SIZE,
    VARIABLES,
    Variable,
    VariableName,
    slope,
    slopes,
    variable_of,
)

__all__ = [
    "DOP853",
    "RK23",
    "RK45",
    "DormandPrince",
    "Euler",
    "Heun",
    "Midpoint",
    "RungeKutta",
    "RungeKutta4",
    "Tsit5",
]


class _Plan(NamedTuple):
    at: tuple[Any, ...]
    """The slope at each node that a stage is at, None at the others; of a step that is one
    evaluation, its end at the first.
    """
    keeps: tuple[Number, ...]
    """The scale at each node over that at the start; (): 1."""
    steps: tuple[Number, ...]
    """h in the integration variable, times the scale at each node; (): the step is one
    evaluation.
    """
    plain: bool = False
    """Whether it is an Euler step with the first stage that is there already."""


@dataclass(frozen=True, repr=False)
class RungeKutta(Solver):
    """k_i = slope(y + h sum_j a_ij k_j, u + c_i h),  y_s = y + h sum_i b_i k_i, with h the step in
    an integration variable u.

    ``variable`` is u. ``"t"``: y = x, and the slope is the drift. ``"sigma"``: u = sigma / alpha, y
    = x / alpha, and the slope is the noise prediction, as in Karras et al. 2022 (arXiv 2206.00364).
    ``"log_snr"``: u = log(sigma / alpha), y as before. ``"angle"``: u = arctan(sigma / (size
    alpha)), y = x / c with c = sqrt((size alpha)^2 + sigma^2), and the slope is cos(u) noise -
    sin(u) data / size, which is 0 for data from N(0, size^2) and changes slowly if details are of
    about that size, in units of the standard deviation of the data.
    By default ``"angle"`` for adaptive methods; for the others ``"t"``, and ``"sigma"`` where alpha
    is constant (VE). A step to sigma = 0, where there is no noise prediction, is an Euler step in
    ``"sigma"``, as Karras et al.'s last.

    A method is a subclass with a ``tableau``.
    """

    variable: VariableName | None = field(default=None, kw_only=True)
    size: Positive = field(default=SIZE, kw_only=True)

    tableau: ClassVar[Tableau]

    def __init_subclass__(cls) -> None:
        """Read order and cost off the tableau."""
        super().__init_subclass__()
        if "tableau" in vars(cls):
            kind: Any = cls  # facts are attributes of the class
            kind.order = float(cls.tableau.order)
            kind.evaluations = len(cls.tableau.a) - cls.tableau.first_same_as_last
            kind.has_memory = cls.tableau.first_same_as_last

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variable is not None:
            check_choice(f"{type(self).__name__}: variable", self.variable, VARIABLES)

    @property
    def needs(self) -> frozenset[str]:
        if self.variable in (None, "t"):
            return frozenset({"drift"})
        return frozenset({"v" if self.variable == "angle" else "noise", "marginal"})

    def _variable(self, problem: Problem) -> VariableName:
        if self.variable is not None:
            return self.variable
        if self.adaptive:
            return "angle" if {"v", "marginal"} <= problem.offers else "t"
        return "sigma" if {"noise", "marginal"} <= problem.offers and problem.unscaled else "t"

    def step_variable(self, problem: Problem) -> Variable:
        return variable_of(problem, self._variable(problem), self.size)

    @cached_property
    def _nodes(self) -> tuple[Tensor, list[int]]:
        """The nodes strictly inside a step, as shares of it, float64 (n,); and of each stage and
        the end the number of its node.
        """
        # Stages at c = 0 and 1 are at t and s themselves, not at what rounding makes of them, which
        # may lie beyond the end.
        places = [float(each) for each in self.tableau.c]
        inside = sorted({each for each in places if 1e-12 < each < 1 - 1e-12})
        ends = (0, len(inside) + 1)
        numbers = [
            inside.index(each) + 1 if each in inside else ends[each > 0.5] for each in places
        ]
        return torch.tensor(inside, dtype=torch.float64), [*numbers, ends[1]]

    @cached_property
    def _coefficients(self) -> tuple[list[list[float]], list[float], list[list[float]]]:
        tab = self.tableau
        errors = [[float(b - e) for b, e in zip(tab.b, low, strict=True)] for low, _ in tab.low]
        return [[float(v) for v in row] for row in tab.a], [float(v) for v in tab.b], errors

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """Step lengths, and time and scale of every stage."""
        variable = self.step_variable(problem)
        u = variable.value(times)
        if not bool(torch.isfinite(u).all()):
            bad = times[~torch.isfinite(u)]
            raise ValueError(
                f"{self!r} steps in a variable that is infinite at t = {float(bad[0]):.6g}, an end "
                "of the grid: start and end inside, or take variable='angle'"
            )
        h = u.diff(dim=0)
        inside = variable.time(u[:-1] + self._nodes[0].reshape(-1, *(1,) * h.ndim) * h)
        nodes = torch.cat([times[None, :-1], inside, times[None, 1:]])
        plain = (
            u[1:] == 0
            if not self.adaptive and self._variable(problem) == "sigma"
            else torch.zeros(len(h), dtype=torch.bool)
        )
        plain = plain if plain.ndim == 1 else plain.any(dim=1)
        plans: list[_Plan] = []
        ends = [*torch.nonzero(plain.diff()).flatten().tolist(), len(h) - 1]
        for first, last in zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True):
            some = slice(first, last + 1)
            plans += self._planned(
                problem, variable, nodes[:, some], h[some], plain=bool(plain[first])
            )
        return plans

    def plan_to(
        self,
        problem: Problem,
        variable: Variable,
        start: tuple[Tensor, Tensor],
        v: Tensor,
        known: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, _Plan]:
        """As the base class has it, with all times of the step by one inversion."""
        (t, u), (landing, target) = start, known
        h = v - u
        inside = variable.time(torch.cat([u + self._nodes[0][:, None] * h, v[None]]))
        s = torch.where(landing, target, inside[-1])
        return s, self._planned(
            problem, variable, torch.stack([t, *inside[:-1], s])[:, None], h[None]
        )[0]

    def _planned(
        self, problem: Problem, variable: Variable, nodes: Tensor, h: Tensor, *, plain: bool = False
    ) -> list[_Plan]:
        """From the times (nodes, N) or (nodes, N, rows); ``plain``: the steps are Euler's."""
        n, scale = len(h), variable.scale(nodes)
        steps = h.expand(nodes.shape) if scale is None else scale * h
        keeps = None if scale is None else scale / scale[0]
        if (plain or len(self.tableau.c) == 1) and not self.has_memory:
            at = slopes(problem, variable, nodes[0], 1.0 if keeps is None else keeps[-1], steps[-1])
            return [_Plan((each,), (), ()) for each in at]
        size = len(nodes)
        columns = problem.coefs(n, *steps, *(() if keeps is None else keeps))
        rows = list(zip(*columns, strict=True))
        # Not the start where that is the end of the step before, nor an end at which no stage is.
        stages = slice(
            int(self.has_memory), int(self.has_memory) if plain else max(self._nodes[1][:-1]) + 1
        )
        entries = (
            slopes(problem, variable, nodes[stages].flatten(0, 1))
            if stages.start < stages.stop
            else ()
        )
        before, after = (None,) * stages.start, (None,) * (size - stages.stop)
        ats = [(*before, *entries[i::n], *after) for i in range(n)]
        return [_Plan(at, row[size:], row[:size], plain) for at, row in zip(ats, rows, strict=True)]

    @property
    def init_evaluations(self) -> int:
        return int(self.tableau.first_same_as_last)

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """The first stage of the first step, where steps share stages."""
        return (
            (slope(problem, self.step_variable(problem), x, t),)
            if self.tableau.first_same_as_last
            else ()
        )

    def slope(self, problem: Problem, x: Tensor, t: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        return state[0] if state else super().slope(problem, x, t, state)

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        """One step, with the difference from the embedded methods as error."""
        if not plan.steps:
            return Step(problem.evaluate(x, plan.at[0]))
        node, shares = self._nodes[1], self.has_memory
        a, b, errors = self._coefficients

        def move(i: int, weights: list[float], k: list[Tensor]) -> Tensor:
            keep = plan.keeps[node[i]] if plan.keeps else 1.0
            return weighted((keep, x), *_stages(plan.steps[node[i]], weights, k))

        k = [state[0] if shares else problem.evaluate(x, plan.at[0])]
        last = len(self.tableau.c)
        if plan.plain:
            x_next = move(last, [1.0], k)
            return Step(x_next, x_next, (torch.zeros_like(x),))
        for i, row in enumerate(a[1:], start=1):
            x_next = move(i, row, k)
            k.append(problem.evaluate(x_next, plan.at[node[i]]))
        if not shares:
            x_next = move(last, b, k)
        error = (
            _error([weighted(*_stages(plan.steps[-1], row, k)) for row in errors])
            if self.adaptive
            else None
        )
        return Step(x_next, x_next, (k[-1],) if shares else (), error)


def _stages(step: Number, weights: list[float], k: list[Tensor]) -> list[tuple[Number, Tensor]]:
    """The terms step w_j k_j: one pass over each where the step is a float, and one over their sum
    where it is not.
    """
    if isinstance(step, float):
        return [(step * weight, stage) for weight, stage in zip(weights, k, strict=True)]
    return [(step, weighted(*zip(weights, k, strict=True)))]


def _error(estimates: list[Tensor]) -> Tensor:
    """The estimate; of two, e_5^2 / sqrt(e_5^2 + 0.01 e_3^2) (Hairer, Norsett and Wanner I,
    II.10.17).
    """
    if len(estimates) == 1:
        return estimates[0]
    fifth, third = estimates
    return (
        fifth
        * fifth.abs()
        / (fifth.square() + (0.1 * third).square()).sqrt().clamp(min=torch.finfo(fifth.dtype).tiny)
    )


@dataclass(frozen=True, repr=False)
class Euler(RungeKutta):
    """y_s = y + h slope(y, u_t). Order 1, one evaluation a step; in ``"sigma"`` it is `DDIM`."""

    tableau = EULER


@dataclass(frozen=True, repr=False)
class Midpoint(RungeKutta):
    """The explicit midpoint rule. Order 2, two evaluations a step."""

    tableau = MIDPOINT


@dataclass(frozen=True, repr=False)
class Heun(RungeKutta):
    """The explicit trapezoidal rule. Order 2, two evaluations a step; in ``"sigma"`` Karras et
    al.'s sampler (Algorithm 1).
    """

    tableau = HEUN


@dataclass(frozen=True, repr=False)
class RungeKutta4(RungeKutta):
    """The classical method of Kutta (1901). Order 4, four evaluations a step."""

    tableau = RK4


@dataclass(frozen=True, repr=False)
class DormandPrince(RungeKutta):
    """Dormand and Prince's method of order 5 with fixed steps; six evaluations a step and one to
    start.
    """

    tableau = DORMAND_PRINCE


@dataclass(frozen=True, repr=False)
class _Adaptive(Adaptive, RungeKutta):
    @property
    def error_order(self) -> int:
        return self.tableau.error_order


@dataclass(frozen=True, repr=False)
class RK45(_Adaptive):
    """Dormand-Prince 5(4), adaptive; with ``variable="t"`` the sampler of Song et al. 2021 (arXiv
    2011.13456, D.4).

    Every sample has its own step size, kept such that the root mean square over the event of error
    / (atol + rtol max(abs(x_t), abs(x_s))) is at most 1. Six evaluations a step and two to start.
    The solver lands on the end, and on every time of a ``grid``, and never evaluates beyond.
    """

    tableau = DORMAND_PRINCE


@dataclass(frozen=True, repr=False)
class RK23(_Adaptive):
    """Bogacki-Shampine 3(2), adaptive, as `RK45`: cheaper where tolerances are loose. Three
    evaluations a step.
    """

    tableau = BOGACKI_SHAMPINE


@dataclass(frozen=True, repr=False)
class Tsit5(_Adaptive):
    """Tsitouras 5(4), adaptive, as `RK45`, with a smaller error constant. Six evaluations a
    step.
    """

    tableau = TSITOURAS


@dataclass(frozen=True, repr=False)
class DOP853(_Adaptive):
    """Dormand-Prince 8(5,3), adaptive, as `RK45`: for tight tolerances. Twelve evaluations a
    step.
    """

    tableau = DOP853_TABLEAU
