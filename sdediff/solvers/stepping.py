"""What the driver asks of a way of stepping: over a shared grid (`integrate.py`), or of each sample
(`control.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solution import Failure
from sdediff.solvers.solver import Solver, Step

__all__ = ["Control", "Reached", "Stepped"]

Reached = Iterable[tuple[int, Tensor, Tensor | None]]
Stepped = Callable[[Problem, Tensor, Any, StepNoise, tuple[Tensor, ...]], Step]
"""A solver's ``step``, or one that keeps less for a gradient."""


class Control:
    """What the driver's loop asks of a way of stepping.

    ``x``, ``problem`` and ``state`` are of the rows still moving.
    """

    x: Tensor
    problem: Problem
    solver: Solver
    state: tuple[Tensor, ...]
    rows: Tensor | None = None
    t: Tensor
    active: bool
    """Whether there is a step left to take."""
    recompute = False
    """Whether evaluations are made again for the gradient, rather than kept."""
    accepted: Tensor  # steps of every sample, int64 on the host
    rejected: Tensor
    failures: list[Failure]
    final: Tensor
    """States of all samples where they stopped."""

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
        """Stop the samples whose next step could evaluate the network more than ``max_nfe``
        times.
        """
        raise NotImplementedError

    def hold(self, failed: Tensor) -> None:
        """Leave samples where they are that failed before: ``failed`` is a mask (rows,)."""
        raise NotImplementedError
