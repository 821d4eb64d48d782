"""Explicit Runge-Kutta methods for the probability flow, on any tableau."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.noise import StepNoise
from solvers.problem import Problem, expand
from solvers.solver import Solver, Step
from solvers.tableau import BOGACKI_SHAMPINE, DORMAND_PRINCE, EULER, HEUN, MIDPOINT, RK4, Tableau

__all__ = ["RK23", "RK45", "Euler", "Heun", "Midpoint", "RungeKutta", "RungeKutta4"]


class _Plan(NamedTuple):
    h: Tensor  # () or (rows,)
    stages: tuple[Tensor, ...]  # the time of each stage


class RungeKutta(Solver):
    """k_i = drift(x + h sum_j a_ij k_j, t + c_i h),  x_s = x + h sum_i b_i k_i,  h = s - t.

    A method is a subclass with a ``tableau``.
    """

    tableau: Tableau

    def __init_subclass__(cls) -> None:
        """Read order and cost off the tableau."""
        if "tableau" in vars(cls):
            cls.order = float(cls.tableau.order)
            cls.evaluations = len(cls.tableau.a) - cls.tableau.first_same_as_last

    @cached_property
    def _coefficients(self) -> tuple[list[list[float]], list[float], list[float] | None]:
        tab = self.tableau
        low = None if tab.b_low is None else [float(b - e) for b, e in zip(tab.b, tab.b_low, strict=True)]
        return [[float(v) for v in row] for row in tab.a], [float(v) for v in tab.b], low

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """Step lengths and stage times."""
        starts, h = times[:-1], times.diff(dim=0)
        # A stage at c = 1 is at s itself, not at t + (s - t), which rounding can put beyond the end.
        stages = [times[1:] if c == 1 else starts + float(c) * h for c in self.tableau.c]
        for stage in stages:
            problem.prepare(stage)
        return [_Plan(h[i], tuple(stage[i] for stage in stages)) for i in range(len(h))]

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """The first stage of the first step, where steps share stages."""
        return (problem.drift(x, t),) if self.tableau.first_same_as_last else ()

    def step(self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]) -> Step:
        """One step, with the difference from the embedded method as error."""
        a, b, low = self._coefficients
        h = expand(plan.h, x)
        k = [state[0] if state else problem.drift(x, plan.stages[0])]
        for row, time in zip(a[1:], plan.stages[1:], strict=True):
            x_next = x + h * _combine(row, k)
            k.append(problem.drift(x_next, time))
        if not self.tableau.first_same_as_last:
            x_next = x + h * _combine(b, k)
        error = None if low is None or not self.adaptive else h * _combine(low, k)
        return Step(x_next, x_next, (k[-1],) if self.tableau.first_same_as_last else (), error)


def _combine(weights: list[float], k: list[Tensor]) -> Tensor:
    total: Tensor | None = None
    for weight, stage in zip(weights, k, strict=True):
        if weight:
            total = weight * stage if total is None else torch.add(total, stage, alpha=weight)
    return torch.zeros_like(k[0]) if total is None else total


@dataclass(frozen=True)
class Euler(RungeKutta):
    """x_s = x + (s - t) drift(x, t). Order 1, one evaluation a step."""

    tableau = EULER


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The explicit midpoint rule. Order 2, two evaluations a step."""

    tableau = MIDPOINT


@dataclass(frozen=True)
class Heun(RungeKutta):
    """The explicit trapezoidal rule. Order 2, two evaluations a step."""

    tableau = HEUN


@dataclass(frozen=True)
class RungeKutta4(RungeKutta):
    """The classical method of Kutta (1901). Order 4, four evaluations a step."""

    tableau = RK4


@dataclass(frozen=True)
class _Adaptive(RungeKutta):
    rtol: float = 1e-5
    atol: float = 1e-5

    adaptive = True

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{type(self).__name__}: {name} must be a finite number >= 0, got {value!r}")
        if self.rtol == 0 and self.atol == 0:
            raise ValueError(f"{type(self).__name__}: rtol and atol cannot both be 0; give one, 1e-5 say")

    @property
    def error_order(self) -> int:
        """The local error estimate is O(h^error_order)."""
        return (self.tableau.order_low or self.tableau.order) + 1


@dataclass(frozen=True)
class RK45(_Adaptive):
    """Dormand-Prince 5(4), adaptive: the probability-flow sampler of Song et al. 2021 (arXiv 2011.13456, D.4).

    Every sample has its own step size, kept such that the root mean square over the event of
    error / (atol + rtol max(abs(x_t), abs(x_s))) is at most 1. Six evaluations a step and two to start. The solver lands
    on the end, and on every time of a ``grid``, and never evaluates beyond.
    """

    tableau = DORMAND_PRINCE


@dataclass(frozen=True)
class RK23(_Adaptive):
    """Bogacki-Shampine 3(2), adaptive, as `RK45`: cheaper where tolerances are loose. Three evaluations a step."""

    tableau = BOGACKI_SHAMPINE
