"""For tests of solvers: no noise at all, and orders read off errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sdediff.solvers import StepNoise

__all__ = ["Still", "slope"]


def slope(errors: Sequence[float], factor: float = 2.0) -> float:
    """Order of convergence from errors on grids refined by ``factor``, by least squares in the
    logarithm.
    """
    logs = torch.tensor(errors, dtype=torch.float64).log()
    n = torch.arange(len(errors), dtype=torch.float64)
    n = n - n.mean()
    return float(-(n * logs).sum() / (n**2).sum() / torch.tensor(factor, dtype=torch.float64).log())


@dataclass(frozen=True)
class Still:
    """Noise that is 0 everywhere, for states of that shape (rows, *event)."""

    shape: tuple[int, ...]

    def at(self, step: int) -> StepNoise:
        """No noise."""
        return self

    def take(self, rows: Tensor) -> Self:
        """No noise for some of the rows."""
        return replace(self, shape=(len(rows), *self.shape[1:]))

    def tree(self) -> None:
        """None: any steps will do."""

    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        """Zeros."""
        return torch.zeros(self.shape, dtype=torch.float64)

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        """Zeros."""
        return self.normal()

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        """Zeros."""
        return self.normal()

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros."""
        return self.normal(), self.normal()
