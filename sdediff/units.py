"""The one place where states go from the user's units to those that solvers work in, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from sdediff.normalizer import Normalizer
from sdediff.solvers import Snapshot, Solution
from sdediff.solvers.masked import kept

__all__ = ["Units"]


@dataclass(frozen=True)
class Units:
    """Solvers see x / ``unit`` for the states x of the model, with the standard deviation of the
    data as the unit.

    Whatever has a size in a solver, such as a default tolerance or the centre of a grid, is then
    relative to the data. ``normalizer`` makes x of the user's states. What a mask says does not
    exist is 0 on both sides.
    """

    unit: float = 1.0
    normalizer: Normalizer | None = None

    def enter(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """States (B, *event) in the user's units, as solvers see them."""
        return kept(self.from_model(self.normalized(y)), mask)

    def leave(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The inverse of `enter`."""
        x = self.to_model(x)
        return kept(x if self.normalizer is None else self.normalizer.denormalize(x), mask)

    def normalized(self, y: Tensor) -> Tensor:
        """States in the user's units, as the model sees them."""
        return y if self.normalizer is None else self.normalizer.normalize(y)

    def from_model(self, x: Tensor) -> Tensor:
        """States of the model, as solvers see them."""
        return x if self.unit == 1 else x / self.unit

    def to_model(self, x: Tensor) -> Tensor:
        """The inverse of `from_model`."""
        return x if self.unit == 1 else self.unit * x

    def left(self, solution: Solution, mask: Tensor | None = None) -> Solution:
        """A solution with its states in the user's units."""
        frames = solution.trajectory
        if frames is not None:
            frames = kept(self.leave(frames.flatten(0, 1)).reshape(frames.shape), mask)
        return replace(solution, x=self.leave(solution.x, mask), trajectory=frames)

    def outside(
        self, callback: Callable[[Snapshot], None] | None, mask: Tensor | None = None
    ) -> Callable[[Snapshot], None] | None:
        """A callback that is shown states in the user's units."""
        if callback is None or (self.unit == 1 and self.normalizer is None):
            return callback

        def shown(snapshot: Snapshot) -> None:
            there = (
                mask
                if mask is None or snapshot.rows is None
                else mask[snapshot.rows.to(mask.device)]
            )
            callback(snapshot._replace(x=self.leave(snapshot.x, there)))

        return shown
