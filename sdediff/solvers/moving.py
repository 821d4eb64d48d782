"""What adaptive solves of every kind share: the rows that move, the way they have to go, and what
is asked of a policy.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from sdediff.solvers.controller import Controller
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.norm import ErrorNorm
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver
from sdediff.solvers.variable import Variable

__all__ = ["Ahead", "Moving", "Policy", "Way"]

_ROUNDING: Final = 16  # in units of the state's own, below which a step does not move it


class Moving(NamedTuple):
    """The samples of an adaptive solve that neither have reached the end nor failed, a row each."""

    samples: Tensor
    """The number of each in the whole solve, int64."""
    problem: Problem
    x: Tensor
    state: tuple[Tensor, ...]
    """What the solver carries."""
    t: Tensor
    u: Tensor
    """The time t in the variable in which steps have their lengths."""
    target: Tensor
    """The number of the grid time that the row comes to next, int64."""
    moved: Tensor
    """Whether the last step was accepted, bool."""
    history: tuple[Tensor, ...]
    """What the controller carries."""
    own: tuple[Any, ...]
    """What the policy carries: the length of the next step, say."""

    def take(self, rows: Tensor) -> Self:
        """Some of the rows, int64 (k,) on the host."""
        return type(self)(*_take(tuple(self), rows))


def _take(part: Any, rows: Tensor) -> Any:
    if isinstance(part, tuple):
        return tuple(_take(each, rows) for each in part)
    return part[rows.to(part.device)] if isinstance(part, Tensor) else part.take(rows)


class Ahead(NamedTuple):
    """The steps that come next, one of each row."""

    plan: Any
    noise: StepNoise
    s: Tensor
    """The times at which they end."""
    v: Tensor
    """The same in the variable of the steps."""
    landing: Tensor
    """Whether s is a time of the grid, bool (rows,)."""
    length: Tensor
    """abs(v - u)."""
    least: Tensor
    """The length at which a step that is rejected cannot be made any shorter."""


class Way:
    """A grid, (K,) or (K, samples), in the variable in which the steps of a solver have their
    lengths.

    A ValueError says where the variable is not finite, and whether ``dt_min`` exceeds the way.
    """

    def __init__(self, solver: Solver, variable: Variable, times: Tensor, samples: int) -> None:
        self.variable, self.times = variable, times
        self.dt_min = float(getattr(solver, "dt_min", 0.0))
        marks = variable.value(times)
        if len(lost := times[~torch.isfinite(marks)]):
            where = f"{float(lost[0]):g}: start and end inside, or take variable='angle'"
            raise ValueError(f"{solver!r} steps in a variable that is not finite at t = {where}")
        self.sign = 1.0 if len(times) < 2 or bool((marks[-1] > marks[0]).all()) else -1.0
        # Times of the grid and u there, (K, samples).
        self.grid, self.marks = (
            each if each.ndim > 1 else each[:, None].expand(-1, samples) for each in (times, marks)
        )
        if bool((short := self.dt_min > (self.grid[0] - self.grid[-1]).detach().abs()).any()):
            start, end = (float(each[short][0]) for each in (self.grid[0], self.grid[-1]))
            raise ValueError(
                f"{solver!r}: dt_min exceeds the whole way from {start:g} to {end:g}; give less"
            )

    def least(self, moving: Moving) -> Tensor:
        """The least step sizes (rows,): ``dt_min``, and what rounding lets pass."""
        rows, u = moving.samples, moving.u.detach()
        span = (self.marks[-1, rows] - self.marks[0, rows]).detach().abs()
        least = _ROUNDING * torch.finfo(moving.x.dtype).eps * u.abs().clamp(min=1e-3 * span)
        if not self.dt_min:
            return least
        start, end = (self.grid[k, rows].detach() for k in (0, -1))
        later = moving.t.detach() + (end - start).sign() * self.dt_min
        later = torch.maximum(
            torch.minimum(later, torch.maximum(start, end)), torch.minimum(start, end)
        )
        return torch.maximum(least, (self.variable.value(later) - u).abs())

    def ahead(self, moving: Moving) -> float:
        """The shares of their ways that the rows have yet to go, summed."""
        start, end = self.grid[0, moving.samples], self.grid[-1, moving.samples]
        return float(((moving.t - end) / (start - end)).abs().sum())


class Policy(Protocol):
    """Where the steps of an adaptive solve may end: anywhere (`free.py`), or on a lattice
    (`dyadic.py`).
    """

    way: Way
    controller: Controller
    """The controller of a solver that brings none."""

    def first(self, moving: Moving, norm: ErrorNorm, goal: float) -> tuple[Any, ...]:
        """The ``own`` of rows at the start: ``goal`` is the norm of the error to aim at."""

    def propose(self, moving: Moving) -> Ahead:
        """The steps that come next."""

    def resize(
        self, moving: Moving, ahead: Ahead, accepted: Tensor, factor: Tensor
    ) -> tuple[Any, ...]:
        """The ``own`` of rows after the steps ``ahead``, from the controller's verdict on them."""
