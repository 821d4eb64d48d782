"""What the driver asks of a way of stepping: over a shared grid (`integrate.py`), or of each sample
(`control.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor

from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solution import Failure
from sdediff.solvers.solver import Step

__all__ = ["Control", "Reached", "Stepped"]

Reached = Iterable[tuple[int, Tensor, Tensor | None]]
Stepped = Callable[[Problem, Tensor, Any, StepNoise, tuple[Tensor, ...]], Step]
"""A solver's ``step``, or one that keeps less for a gradient."""


class Control(Protocol):
    """What the driver's loop asks of a way of stepping."""

    accepted: Tensor  # steps of every sample, int64 on the host
    rejected: Tensor
    failures: list[Failure]
    final: Tensor
    """States of all samples where they stopped."""
    active: bool
    """Whether there is a step left to take."""

    @property
    def done(self) -> float:
        """The share of the way that is behind."""

    def where(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """(t, x, samples): times and states of the rows that still move, and which samples these
        are (None: all).
        """

    def attempt(self, stepped: Stepped) -> Reached:
        """Take a step by the solver's ``step`` and judge it.

        Returns (k, state, rows) for each time of the grid that was reached, for a trajectory.
        """

    def cap(self, max_nfe: int) -> None:
        """Stop the samples whose next step could evaluate the network more than ``max_nfe``
        times.
        """

    def hold(self, failed: Tensor) -> None:
        """Leave samples where they are that failed before: ``failed`` is a mask (rows,)."""

    def stop(self, samples: Tensor, x: Tensor) -> None:
        """End the way of ``samples``, int64 (k,), at states x (k, *event): they have not failed."""
