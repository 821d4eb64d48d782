"""Noise made for tests: one Brownian path seen in coarse and in fine steps, no noise at all, and orders read off errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from solvers import StepNoise
from solvers.noise import paired

__all__ = ["FinePath", "Still", "slope"]


def slope(errors: Sequence[float], factor: float = 2.0) -> float:
    """Order of convergence from errors on grids refined by ``factor``, by least squares in the logarithm."""
    logs = torch.tensor(errors, dtype=torch.float64).log()
    n = torch.arange(len(errors), dtype=torch.float64)
    n = n - n.mean()
    return float(-(n * logs).sum() / (n**2).sum() / torch.tensor(factor, dtype=torch.float64).log())


@dataclass(frozen=True)
class FinePath:
    """One Brownian path on M equal intervals, ``w`` (M, rows, *event) increments and ``z`` time integrals, seen in n steps.

    n divides M. A solver run on `coarse` grids of one path has errors that fall at its strong order. The normal of a step, in
    stream "path", is its increment over the root of its length; other streams have no path and are refused.
    """

    w: Tensor
    z: Tensor
    length: float
    n: int

    @classmethod
    def draw(cls, fine: int, shape: Sequence[int], length: float, *, seed: int = 0) -> FinePath:
        """A path of ``length`` for states of that shape (rows, *event), on ``fine`` intervals."""
        normals = torch.randn(2, fine, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        w, z = paired(normals[0], normals[1], torch.tensor(length / fine, dtype=torch.float64))
        return cls(w, z, length, fine)

    def coarse(self, n: int) -> FinePath:
        """The same path in n steps."""
        if len(self.w) % n:
            raise ValueError(f"the path has {len(self.w)} intervals: take a number of steps that divides it, got {n}")
        return replace(self, n=n)

    def at(self, step: int) -> StepNoise:
        """Noise of the step number ``step``."""
        return _Piece(self, step)

    def take(self, rows: Tensor) -> Self:
        """The path of some of the rows."""
        return replace(self, w=self.w[:, rows], z=self.z[:, rows])


@dataclass(frozen=True)
class _Piece:
    path: FinePath
    step: int

    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        if stream != "path" or k:
            raise ValueError(f"a Brownian path has one draw a step, in stream 'path'; asked for number {k} of stream {stream!r}")
        root: float = (self.path.length / self.path.n) ** 0.5
        return self._sums()[0] / root

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        return self._sums()[0]

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self._sums()

    def _sums(self) -> tuple[Tensor, Tensor]:
        fine = len(self.path.w)
        part = slice(self.step * fine // self.path.n, (self.step + 1) * fine // self.path.n)
        w, z = self.path.w[part], self.path.z[part]
        before = w.cumsum(0) - w
        return w.sum(0), (before * (self.path.length / fine) + z).sum(0)


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

    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        """Zeros."""
        return torch.zeros(self.shape, dtype=torch.float64)

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        """Zeros."""
        return self.normal()

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros."""
        return self.normal(), self.normal()
