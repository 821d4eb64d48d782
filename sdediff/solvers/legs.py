"""The parts of a way on which a problem does not jump: a solve goes through them one after
another.
"""

from __future__ import annotations

import itertools
import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.problem import Problem

__all__ = ["Leg", "legs_of", "snapped"]


_NEAR: Final = 1e-12


class Leg(NamedTuple):
    """A part of the way between two neighbours of a problem's breaks and the ends of the grid."""

    problem: Problem
    times: Tensor
    first: int
    """The number of its first time in the whole grid."""
    last: bool
    """Whether the way ends with it."""


def legs_of(problem: Problem, times: Tensor) -> tuple[Tensor, list[Leg]]:
    """The grid, (N + 1,) or (N + 1, rows), with the breaks that it passes among its times, and its
    legs.

    A ValueError where every row has its own grid and one of them passes a break.
    """
    if not problem.breaks or len(times) < 2:
        return times, [Leg(problem, times, 0, True)]
    low, high = float(times.min()), float(times.max())
    near = _NEAR * (high - low)
    breaks = torch.tensor(_passed(problem.breaks, low, high), dtype=times.dtype)
    if times.ndim > 1 and len(breaks):
        raise ValueError(
            f"the model jumps at t = {float(breaks[0]):g}, where all samples have to stop: it "
            "takes one grid for all of them"
        )
    if len(breaks):
        # not twice what differs by rounding
        apart = ((times[:, None] - breaks).abs() > near).all(dim=1)
        times = torch.cat([times[apart], breaks]).sort(descending=bool(times[0] > times[-1])).values
    ends = (
        [0, *torch.nonzero(torch.isin(times, breaks)).flatten().tolist(), len(times) - 1]
        if len(breaks)
        else [0, len(times) - 1]
    )
    around = (-math.inf, *problem.breaks, math.inf)
    legs = []
    for first, last in itertools.pairwise(ends):
        middle = float(times[[first, last]].mean())
        piece = max(t for t in around if t < middle), min(t for t in around if t > middle)
        part = problem.within(piece, times)
        legs.append(Leg(part, times[first : last + 1], first, last == ends[-1]))
    return times, legs


def _passed(breaks: tuple[float, ...], low: float, high: float) -> list[float]:
    """The breaks between two times, rising, of those that differ by rounding the first."""
    near = _NEAR * (high - low)
    found: list[float] = []
    for t in sorted(breaks):
        if max(low, found[-1] if found else low) + near < t < high - near:
            found.append(t)
    return found


def snapped(times: Tensor, breaks: tuple[float, ...]) -> Tensor:
    """A grid (N + 1,) in which the inner time nearest to each break that it passes gives way to
    that break.

    The number of steps stays what it is; a ValueError says if that is too few.
    """
    low, high = sorted(times[[0, -1]].tolist())
    passed = sorted(_passed(breaks, low, high), reverse=bool(times[0] > times[-1]))
    steps = len(times) - 1
    if len(passed) >= steps > 0:
        raise ValueError(
            f"the model jumps {len(passed)} times between t = {low:g} and {high:g}, so that it "
            "takes "
            f"{len(passed) + 1} steps at least; got steps = {steps}"
        )
    times, before = times.clone(), 0
    for left, time in zip(range(len(passed) - 1, -1, -1), passed, strict=True):
        nearest = int((times - time).abs().argmin())
        before = min(max(nearest, before + 1), steps - 1 - left)
        times[before] = time
    return times
