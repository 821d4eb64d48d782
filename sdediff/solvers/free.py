"""Steps of any length, in the variable of the solver's `step_variable`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdediff.solvers.arithmetic import weighted
from sdediff.solvers.controller import Controller, PIController
from sdediff.solvers.moving import Ahead, Moving, Policy, Way
from sdediff.solvers.noise import Silence
from sdediff.solvers.norm import ErrorNorm
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver
from sdediff.solvers.variable import slope

__all__ = ["FreeSteps"]


class FreeSteps(Policy):
    """Every row carries (h,), the length of its next step, and lands on every time of the grid.

    What is left for less than two steps is shared by two, so that the last is never tiny.
    """

    controller: Controller = PIController()

    def __init__(self, problem: Problem, solver: Solver, times: Tensor, samples: int) -> None:
        self.solver = solver
        self.way = Way(solver, solver.step_variable(problem), times, samples)

    def first(self, moving: Moving, norm: ErrorNorm, goal: float) -> tuple[Tensor]:
        """Step sizes by the rule of Hairer et al. I, II.4: two evaluations, one of them already in
        the ``state``.
        """
        way, problem, x = self.way, moving.problem, moving.x
        variable = way.variable
        # `require` has seen that an adaptive solver has one
        order = float(self.solver.error_order)  # type: ignore[attr-defined]
        t = way.times[0]
        here = variable.scale(t)
        # of x / c, as of x
        k = weighted(
            (1.0 if here is None else here, self.solver.slope(problem, x, t, moving.state))
        )
        size, steep = norm(x, x, x), norm(k, x, x)
        span = (way.marks[1] - way.marks[0]).abs()
        # A step in time has the unit of time, which is that of the row's own grid; one in another
        # variable is a number.
        length = way.grid.detach().abs().amax(dim=0) if here is None else torch.ones_like(span)
        guess = torch.where(
            (size < 1e-5) | (length * steep < 1e-5), 1e-6 * length, 0.01 * size / steep
        ).clamp(max=0.1 * span)
        # a network that failed here is found by the first attempt
        guess = torch.where(torch.isfinite(guess), guess, 1e-6 * length)
        t = variable.time(moving.u + way.sign * guess)
        there = variable.scale(t)
        ratio = 1.0 if here is None or there is None else there / here
        trial = slope(problem, variable, weighted((ratio, x), (ratio * way.sign * guess, k)), t)
        bend = norm(weighted((-1.0, k), (1.0 if here is None else here, trial)), x, x) / guess
        steep = torch.maximum(steep, length * bend)
        wide = length * (goal / (length * steep)) ** (1.0 / order)
        step = torch.minimum(
            100 * guess,
            torch.where(length * steep <= 1e-15, 1e-6 * length, wide),
        )
        # Where the network failed already, take any step: the next attempt finds and reports it.
        step = torch.where(torch.isfinite(step) & (step > 0), step, guess).clamp(max=span)
        return (step.detach(),)

    def propose(self, moving: Moving) -> Ahead:
        (planned,) = moving.own
        way, next_ = self.way, (moving.target, moving.samples)
        mark, least = way.marks[next_], way.least(moving)
        h = np.maximum(planned.numpy(), least.numpy())
        left = (mark - moving.u).detach().abs().numpy()
        landing = torch.from_numpy(h >= left * (1 - 1e-10))
        size = torch.from_numpy(np.where(left < 2 * h, np.maximum(0.5 * left, least.numpy()), h))
        v = torch.where(landing, mark, moving.u + way.sign * size)
        s, plan = self.solver.plan_to(
            moving.problem, way.variable, (moving.t, moving.u), v, (landing, way.grid[next_])
        )
        length = (v - moving.u).detach().abs()
        return Ahead(plan, Silence(self.solver), s, v, landing, length, least)

    def resize(
        self, moving: Moving, ahead: Ahead, accepted: Tensor, factor: Tensor
    ) -> tuple[Tensor]:
        # A step cut short to land on the grid says nothing against the longer one that was planned.
        planned = np.where((accepted & ahead.landing).numpy(), moving.own[0].numpy(), 0.0)
        return (torch.from_numpy(np.maximum((ahead.length * factor).numpy(), planned)),)
