"""The one place where states go from the user's units to those that solvers work in, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from solvers import Snapshot, Solution

__all__ = ["Units"]


@dataclass(frozen=True)
class Units:
    """Solvers see x / ``unit``, with the standard deviation of the data as the unit.

    Whatever has a size in a solver, such as a default tolerance or the centre of a grid, is then relative to the data.
    """

    unit: float = 1.0

    def enter(self, x: Tensor) -> Tensor:
        """States (B, *event) in the user's units, as solvers see them."""
        return x if self.unit == 1 else x / self.unit

    def leave(self, x: Tensor) -> Tensor:
        """The inverse of `enter`."""
        return x if self.unit == 1 else self.unit * x

    def left(self, solution: Solution) -> Solution:
        """A solution with its states in the user's units."""
        frames = solution.trajectory
        return replace(solution, x=self.leave(solution.x), trajectory=None if frames is None else self.leave(frames))

    def outside(self, callback: Callable[[Snapshot], None] | None) -> Callable[[Snapshot], None] | None:
        """A callback that is shown states in the user's units."""
        if callback is None or self.unit == 1:
            return callback
        return lambda snapshot: callback(snapshot._replace(x=self.leave(snapshot.x)))
