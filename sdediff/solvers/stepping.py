"""What the driver's loop asks of a way of stepping: over a shared grid (`fixed.py`), or by steps of each sample (`control.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sdediff.solvers.noise import Noise, StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solution import Failure
from sdediff.solvers.solver import Solver, Step

__all__ = ["Control", "Reached", "Stepped", "checked"]

Reached = Iterable[tuple[int, Tensor, Tensor | None]]
Stepped = Callable[[Problem, Tensor, Any, StepNoise, tuple[Tensor, ...]], Step]
"""A solver's ``step``, or one that keeps less for a gradient."""


class Control:
    """What the driver's loop asks of a way of stepping.

    ``x``, ``problem``, ``state`` and ``noise`` are of the rows still moving.
    """

    x: Tensor
    problem: Problem
    state: tuple[Tensor, ...]
    rows: Tensor | None = None
    t: Tensor
    active: bool
    """Whether there is a step left to take."""
    recompute = False
    """Whether evaluations are made again for the gradient, rather than kept."""

    def __init__(self, problem: Problem, solver: Solver, x: Tensor, times: Tensor, noise: Noise | None) -> None:
        self.problem, self.solver, self.x, self.times, self.all_noise = problem, solver, x, times, noise
        self.samples = len(x)
        self.accepted = torch.zeros(self.samples, dtype=torch.int64)
        self.rejected = torch.zeros(self.samples, dtype=torch.int64)
        self.failures: list[Failure] = []

    @property
    def done(self) -> float:
        """The share of the way that is behind."""
        raise NotImplementedError

    def attempt(self, stepped: Stepped) -> Reached:
        """Take a step by the solver's ``step`` and judge it.

        Returns (k, state, rows) for each time of the grid that was reached, for a trajectory.
        """
        raise NotImplementedError

    def cap(self, max_nfe: int) -> None:
        """Stop the samples whose next step could evaluate the network more than ``max_nfe`` times."""
        raise NotImplementedError

    def hold(self, failed: Tensor) -> None:
        """Leave samples where they are that failed before: ``failed`` is a mask (rows,)."""
        raise NotImplementedError

    def result(self) -> Tensor:
        """States of all samples where they stopped."""
        raise NotImplementedError


def checked(step: Step, solver: Solver, x: Tensor) -> Step:
    """What a solver's ``step`` returned from x; a TypeError or ValueError unless it is a `Step` with a state like x."""
    if isinstance(step, Step) and isinstance(step.x, Tensor) and step.x.shape == x.shape and step.x.dtype == x.dtype:
        return step
    name = type(solver).__name__
    if not isinstance(step, Step):
        raise TypeError(f"{name}.step must return a Step, got {type(step).__name__}; return Step(x), x the state at s")
    if not isinstance(step.x, Tensor):
        raise TypeError(f"{name}.step must return a Step with a tensor as x, got {type(step.x).__name__}")
    wanted, got = (f"{tuple(state.shape)}, {state.dtype}" for state in (x, step.x))
    raise ValueError(f"{name}.step must return a state of the shape and the dtype of x, {wanted}; got {got}")
