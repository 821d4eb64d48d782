"""Solvers for SDEs whose noise depends on the state: dx = a(x, t) dt + b(x, t) dw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.noise import StepNoise, elapsed
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Adaptive, Solver, Step

__all__ = ["AdaptiveMilstein", "Milstein", "StratonovichHeun"]


class _Plan(NamedTuple):
    start: Any
    """The drift at t; for `Milstein` x + h drift."""
    end: Any
    """The drift at s, None for `Milstein`."""
    h: Number
    """s - t."""
    t: Tensor
    s: Tensor


@dataclass(frozen=True)
class Milstein(Solver):
    """x_s = x + h a(x, t) + b(x, t) dw + sum over j, k of (D b_k)[b_j] I_jk, with b_k the column k
    of b.

    Where noise commutes, as diagonal noise does, the iterated integrals are needed in the
    combinations (dw_j dw_k - h delta_jk) / 2 in Ito's sense, dw_j dw_k / 2 in Stratonovich's, which
    increments give: strong and weak order are 1 (Kloeden and Platen 1992, 10.3). The derivative of
    b is the problem's. Without noise it is `Euler`; for additive noise it is `EulerMaruyama`.
    """

    needs = frozenset({"drift", "diffusion", "iterated"})
    stochastic = True
    solves_sde = True
    senses = frozenset({"ito", "stratonovich"})
    structures = frozenset({"diagonal", "commutative"})

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The drift of each interval, and its ends."""
        t, s, h = times[:-1], times[1:], times.diff(dim=0)
        starts = problem.at(t, "drift", 1.0, h)
        rows = zip(starts, t.unbind(), s.unbind(), strict=True)
        return [_Plan(at, None, elapsed(a, b), a, b) for at, a, b in rows]

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        dw = noise.increment(plan.t, plan.s)
        mean = problem.evaluate(x, plan.start)
        bend = problem.iterated(x, plan.t, dw, plan.h)
        return Step(weighted((1.0, mean), (problem.loading(x, plan.t), dw), (1.0, bend)), mean)


@dataclass(frozen=True, repr=False)
class AdaptiveMilstein(Adaptive, Milstein):
    """`Milstein` with a step size for each sample.

    The error estimate of a step is what Euler and Maruyama's step leaves out, the iterated
    integrals, and half of what the drift changes, h / 2 (a(x_s, s) - a(x, t)). It is O(h), of lower
    order than the error of the step. A rejected step keeps its Brownian path, which is split. One
    evaluation a step, and one to start.
    """

    rtol: float = 1e-2

    default_atol = 1e-2
    error_order = 1
    has_memory = True

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return (problem.evaluate(x, problem.at(t[None], "drift")[0]),)

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The drift at the end of each interval, and its ends."""
        t, s = times[:-1], times[1:]
        rows = zip(problem.at(s, "drift"), t.unbind(), s.unbind(), strict=True)
        return [_Plan(None, at, elapsed(a, b), a, b) for at, a, b in rows]

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        dw, h, (first,) = noise.increment(plan.t, plan.s), plan.h, state
        mean = weighted((1.0, x), (h, first))
        bend = problem.iterated(x, plan.t, dw, h)
        found = weighted((1.0, mean), (problem.loading(x, plan.t), dw), (1.0, bend))
        last = problem.evaluate(found, plan.end)
        error = weighted((1.0, bend), (0.5 * h, last), (-0.5 * h, first))
        return Step(found, mean, (last,), error)


@dataclass(frozen=True)
class StratonovichHeun(Solver):
    """x^ = x + h a(x, t) + b(x, t) dw,
    x_s = x + h / 2 (a(x, t) + a(x^, s)) + 1 / 2 (b(x, t) + b(x^, s)) dw.

    The trapezoidal rule along the path, which solves the SDE in Stratonovich's sense and needs no
    derivative (Kloeden and Platen 1992, 15.1). Strong order 1 where noise commutes, 1/2 where it
    does not; weak order 1; without noise it is `Heun` in t. Two evaluations a step.
    """

    needs = frozenset({"drift", "diffusion", "loading"})
    stochastic = True
    solves_sde = True
    evaluations = 2
    senses = frozenset({"stratonovich"})
    structures = frozenset({"diagonal", "commutative", "general"})

    @property
    def deterministic_order(self) -> float:
        return 2.0

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The drift at both ends of each interval."""
        t, s = times[:-1], times[1:]
        columns = problem.at(t, "drift"), problem.at(s, "drift"), t.unbind(), s.unbind()
        rows = zip(*columns, strict=True)
        return [_Plan(start, end, elapsed(a, b), a, b) for start, end, a, b in rows]

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        dw, h = noise.increment(plan.t, plan.s), plan.h
        first, there = problem.evaluate(x, plan.start), problem.loading(x, plan.t)
        guess = weighted((1.0, x), (h, first), (there, dw))
        second, later = problem.evaluate(guess, plan.end), problem.loading(guess, plan.s)
        mean = weighted((1.0, x), (0.5 * h, first), (0.5 * h, second))
        return Step(weighted((1.0, mean), (there, 0.5 * dw), (later, 0.5 * dw)), mean)
