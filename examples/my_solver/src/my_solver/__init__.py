"""An SDE and a solver for sdediff."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import sdediff as sd
from sdediff.solvers import Problem, StepNoise, weighted

__all__ = ["Ralston", "Sine"]


class Sine(sd.LinearSDE):
    """x_t = cos(pi t / 2) x_0 + sin(pi t / 2) noise, 0 <= t <= 1.

    Drift, diffusion, posterior, prior and usable range are derived from these two functions.
    """

    def alpha(self, t: Tensor) -> Tensor:
        """What x_0 is multiplied by."""
        return (0.5 * math.pi * t).cos()

    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise."""
        return (0.5 * math.pi * t).sin()


@dataclass(frozen=True)
class Ralston(sd.Solver):
    """x_s = x + h (k_1 / 4 + 3 k_2 / 4), where k_1 is the drift at t, and k_2 the drift two thirds
    of the step ahead (Ralston 1962).

    It solves the probability flow at order 2, and needs two evaluations a step.
    """

    needs = frozenset({"drift"})
    order = 2.0
    evaluations = 2

    def plan(self, problem: Problem, times: Tensor) -> Sequence[Any]:
        """Once for a grid, before the network is called: what each step needs."""
        t, h = times[:-1], times.diff(dim=0)
        start = problem.at(t, "drift")  # k_1
        ahead = problem.at(t + 2 * h / 3, "drift")  # k_2
        sizes = problem.coefs(len(h), 2 * h / 3, h / 4, 3 * h / 4)
        return list(zip(start, ahead, *sizes, strict=True))

    def step(
        self, problem: Problem, x: Tensor, plan: Any, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> sd.Step:
        """One step, from t to s."""
        start, ahead, two_thirds, first, second = plan
        k_1 = problem.evaluate(x, start)
        k_2 = problem.evaluate(weighted((1.0, x), (two_thirds, k_1)), ahead)
        return sd.Step(weighted((1.0, x), (first, k_1), (second, k_2)))
