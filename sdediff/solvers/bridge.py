"""A Brownian path inside an interval as a sum of normals, each with a function of time: what
`BrownianPath` is computed by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.solvers.given import integer, plain

__all__ = ["SMALL", "Floats", "Ints", "Numbers", "basis", "edges", "total_of"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Numbers = NDArray[np.float32]

SMALL: Final = 2**15
"""Numbers up to which calls count more than memory."""


def basis(
    x: Floats, length: Floats, levels: Floats, *, area: bool, integrals: bool
) -> tuple[Floats, Floats]:
    """The nodes above the places ``x``, from 0 to 1, in intervals of that length, and their
    functions there.

    Returns the number of each node in its level, (L, *x.shape), and the functions of its normals
    and, if asked for, their integrals from its start, (1 or 2, L, k, *x.shape). For y from 0 to 1
    in a node of length h, and v = 2y or 2 - 2y in its two halves, they are, of two normals with
    ``area``, sqrt(h)/4 v (3v - 2) and +-3 sqrt(h/12) v (1 - v), which is what the halves' W and H
    make of 6 y (1 - y) H + y W; and of one without it sqrt(h)/2 v, Levy's, whose integrals there
    are not.
    """
    scaled = x * levels
    within = np.floor(scaled)
    y = 2 * (scaled - within)
    v = np.minimum(y, 2 - y)
    root = np.sqrt(length / levels)
    f = np.empty((1 + integrals, len(levels), 1 + area, *x.shape))
    if not area:
        np.multiply(0.5 * root, v, f[0, :, 0])
        return within, f
    side, rest = np.copysign(root, 1 - y), v * (1 - v)
    f[0, :, 0], f[0, :, 1] = root * v * (0.75 * v - 0.5), 0.75**0.5 * side * rest
    if integrals:
        h = root * root
        f[1, :, 0] = h * side * v * rest / -8
        f[1, :, 1] = root * h * 0.75**0.5 * v * v * (0.25 - v / 6)
    return within, f


def total_of(weights: Floats, normals: Iterable[Numbers], shape: tuple[int, ...]) -> NDArray[Any]:
    """The sum over K, (outputs, *shape), of weights (outputs, K, ...) times normals K times
    (*shape), from the first to the last.

    In this order however many there are, as each sum is rounded.
    """
    if isinstance(normals, np.ndarray) and len(weights) * normals.size <= SMALL:
        terms = weights * normals
        return np.add.accumulate(terms, axis=1, out=terms)[:, -1]
    total: NDArray[Any] = np.zeros((len(weights), *shape))
    term: NDArray[Any] = np.empty(shape)
    for k, z in enumerate(normals):
        for out, weight in zip(total, weights[:, k], strict=True):
            out += np.multiply(weight, z, term)
    return total


def edges(start: float, end: float, intervals: int | Tensor) -> Tensor:
    """The ends of the base intervals, (M + 1,)."""
    intervals = plain(intervals)
    if isinstance(intervals, Tensor):
        times = intervals.detach().to("cpu", torch.float64)
        steps = times.diff() if times.ndim == 1 else times
        if (
            times.ndim != 1
            or len(times) < 2
            or not (bool((steps > 0).all()) or bool((steps < 0).all()))
        ):
            raise ValueError(
                "BrownianPath: intervals must be times (M + 1,) that rise or fall, or how many "
                "equal intervals"
            )
        if float(times[0]) != start or float(times[-1]) != end:
            raise ValueError(
                f"BrownianPath: intervals go from {float(times[0]):g} to {float(times[-1]):g}, "
                f"not from {start:g} to {end:g}"
            )
        return times
    intervals = integer(
        "BrownianPath: intervals",
        intervals,
        1,
        2**20,
        kind="an int from 1 to 2^20, or times (M + 1,)",
    )
    if not (math.isfinite(start) and math.isfinite(end) and start != end):
        raise ValueError(
            f"BrownianPath: start and end must be two different times, got {start:g} and {end:g}"
        )
    return torch.linspace(start, end, intervals + 1, dtype=torch.float64)
