"""Mean and variance of a solver's chain without Monte Carlo.

Where the score is affine and acts on each coordinate by itself, a chain is affine in its start and
its noises, coordinate by coordinate: x = m + c_start z_start + sum_k c_k z_k. A run with all z at 0
gives m, one with z_k = 1 gives m + c_k, and the variance is the sum of the c^2. All runs are rows
of one batch. Where coordinates mix, each of them has an impulse of its own, and the covariance is
the sum of the c c^T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Self

import torch
from torch import Tensor

from sdediff.solvers import Options, Problem, Solver, StepNoise, expand
from sdediff.solvers.noise import paired

__all__ = ["Impulses", "affine_law", "affine_moments"]

Key = tuple[int, str, int]

_ROUNDING: Final = 1e3 * torch.finfo(torch.float64).eps
_MEAN = 0
_START = 1
_ALL = 2
_FIRST = 3
_SHARE: Final = -2.0


@dataclass(frozen=True)
class Impulses:
    """Noise that is 1 in row 3 + n for draw number n, -2 in row 2 for every draw, 0 elsewhere.
    Draws are numbered as they come.
    """

    rows: Tensor
    d: int
    keys: dict[Key, int] = field(default_factory=dict)

    def at(self, step: int) -> StepNoise:
        """Noise of the step number ``step``."""
        return _StepImpulses(self, step)

    def take(self, rows: Tensor) -> Self:
        """The noise of some of the rows."""
        return replace(self, rows=self.rows[rows])

    def draw(self, key: Key) -> Tensor:
        """The draw (step, stream, k), float64 (rows, d)."""
        number = self.keys.setdefault(key, len(self.keys))
        z = torch.where(self.rows == _ALL, _SHARE, (self.rows == _FIRST + number).to(torch.float64))
        return z[:, None].repeat(1, self.d)


@dataclass(frozen=True)
class _StepImpulses:
    noise: Impulses
    step: int

    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        return self.noise.draw((self.step, stream, k))

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return self.normal("path", k)

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        z = self.normal()
        return z * expand((b - a).abs().sqrt(), z)

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return paired(self.normal(), self.normal(k=1), b - a)


def affine_moments(
    problem: Callable[[int], Problem], solver: Solver, times: Tensor, mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and variance (d,) of what the solver makes of N(mean, diag(std^2)) over the grid
    ``times``.

    ``problem(rows)`` is the problem for that many rows (it may be one for any number), with
    independent coordinates and a drift that is affine in x. One more row, with twice, once and zero
    times the start's impulse in turn and all the others at once, times -2, has to be what they add
    up to: a ValueError says that the solver is not affine, or mixes coordinates. Adaptive solvers
    are refused.
    """
    if solver.adaptive:
        raise ValueError(
            f"{solver!r} chooses its steps by the state, so that its chain is not affine; take a "
            "solver with fixed steps"
        )
    d = len(mean)
    # one row without noise tells which draws there are
    known = Impulses(torch.zeros(1, dtype=torch.int64), d)
    solver.solve(problem(1), mean[None], times, known, Options())
    rows = _FIRST + len(known.keys)
    share = 2.0 - torch.arange(d, dtype=torch.float64) % 3
    x = mean.repeat(rows, 1)
    x[_START] += std
    x[_ALL] += share * std
    noise = Impulses(torch.arange(rows), d, dict(known.keys))
    out = solver.solve(problem(rows), x, times, noise, Options()).x
    response = out - out[_MEAN]
    start, draws = response[_START], response[_FIRST:]
    excess = (response[_ALL] - share * start - _SHARE * draws.sum(dim=0)).abs()
    scale = float(std.max() + mean.abs().max() + out[_MEAN].abs().max())
    bound = 1e-8 * (share.abs() * start.abs() + draws.abs().sum(dim=0)) + _ROUNDING * scale
    if len(noise.keys) != len(known.keys) or not bool((excess <= bound).all()):
        raise ValueError(
            f"{solver!r} is not affine in its start and its noises, coordinate by coordinate "
            f"(off by {float(excess.max()):.3g}): "
            "moments of its chain are not those of its impulses; draw samples instead"
        )
    return out[_MEAN], start.square() + draws.square().sum(dim=0)


@dataclass(frozen=True)
class _EachCoordinate(Impulses):
    """Noise whose coordinate j is 1 in row 1 + d + n d + j for draw number n; in the last row all
    draws are 1.
    """

    last: int = 0

    def draw(self, key: Key) -> Tensor:
        """The draw (step, stream, k), float64 (rows, d)."""
        number = self.keys.setdefault(key, len(self.keys))
        first = 1 + self.d + number * self.d
        z = (self.rows[:, None] == first + torch.arange(self.d)).to(torch.float64)
        z[self.rows == self.last] = 1.0
        return z


def affine_law(
    problem: Callable[[int], Problem], solver: Solver, times: Tensor, mean: Tensor, root: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of what the solver makes of mean + root z, z ~ N(0, I), over
    the grid ``times``, for a ``root`` (d, d).

    ``problem(rows)`` is the problem for that many rows, with a drift that is affine in x and may
    mix coordinates. A run with the start and all draws at once has to be the sum of the others: a
    ValueError says that the solver or the drift is not affine.
    """
    d = len(mean)
    known = Impulses(torch.zeros(1, dtype=torch.int64), d)
    solver.solve(problem(1), mean[None], times, known, Options())
    last = 1 + d + d * len(known.keys)
    x = mean.repeat(last + 1, 1)
    x[1 : 1 + d] += root.T
    x[last] += root.sum(dim=1)
    noise = _EachCoordinate(torch.arange(last + 1), d, dict(known.keys), last)
    out = solver.solve(problem(last + 1), x, times, noise, Options()).x
    response = out - out[0]
    parts = response[1:last]
    excess = float((response[last] - parts.sum(dim=0)).abs().max())
    if not excess <= 1e-8 * float(parts.abs().sum() + out[0].abs().max()):
        raise ValueError(
            f"{solver!r} is not affine in its start and its noises, or the drift is not (off by "
            f"{excess:.3g}): draw samples instead"
        )
    return out[0], parts.T @ parts
