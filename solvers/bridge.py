"""A Brownian path between two times as a sum of normals, each with a function of time: what `BrownianPath` is computed by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOTHING", "SMALL", "Floats", "Ints", "Numbers", "Times", "basis", "total_of", "used"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Numbers = NDArray[np.float32]

SMALL: Final = 2**15
"""Numbers up to which calls count more than memory."""
NOTHING: Final = np.zeros(0, np.float32)
"""In the place of normals that are not needed."""


class Times(NamedTuple):
    """Two times for each of R rows, the first not behind the second."""

    i: Ints  # (2, R), the base interval
    x: Floats  # (2, R), the place in it, from 0 to 1
    p: Floats  # (2, R), the distance from the start
    length: Floats  # (R,), between the two
    back: NDArray[np.bool_]  # (R,), whether they were asked for in the other order
    standard: bool
    outputs: int

    def weights(self, f: Floats, area: Floats) -> Floats:
        """From a function and its integral at the times, (..., 2, R), what its normal is multiplied by, (outputs, ..., R)."""
        w = f[..., 1, :] - f[..., 0, :]
        turned = np.where(self.back, -w, w) if self.back.any() else w
        if self.standard:
            turned = turned / np.sqrt(np.where(self.length > 0, self.length, 1.0))
        if self.outputs == 1:
            return turned[None]
        whole = area[..., 1, :] - area[..., 0, :] - self.length * f[..., 0, :]
        return np.stack([turned, np.where(self.back, whole - self.length * w, whole)])


def basis(x: Floats, length: Floats, levels: Floats) -> tuple[Floats, Floats, Floats]:
    """The nodes above the places ``x`` (2, R) in base intervals of that length, and their functions there.

    Returns the number of each node in its level, (L, 2, R), and the functions of its two normals and their integrals from its
    start, (2, L, 2, R). For y from 0 to 1 in a node of length h, and v = 2y or 2 - 2y in its two halves, they are
    sqrt(h)/4 v (3v - 2) and +-3 sqrt(h/12) v (1 - v), which is what the halves' W and H make of 6 y (1 - y) H + y W.
    """
    within = np.floor(x * levels)
    y = 2 * (x * levels - within)
    v, side = np.minimum(y, 2 - y), np.copysign(1.0, 1 - y)
    h = length / levels
    root, rest = np.sqrt(h), v * (1 - v)
    f, area = np.empty((2, 2, *y.shape))
    f[0], f[1] = root / 4 * v * (3 * v - 2), side * root * 0.75**0.5 * rest
    area[0], area[1] = root * h / -8 * side * v * rest, root * h * 0.75**0.5 * v * v * (0.25 - v / 6)
    return within, f, area


def used(weights: Floats) -> list[bool]:
    """Which of the K normals have a weight (outputs, K, ...) that is not 0."""
    found: list[bool] = np.asarray(weights.any(axis=(0, *range(2, weights.ndim)))).tolist()
    return found


def total_of(weights: NDArray[Any], normals: Iterable[Numbers], shape: tuple[int, ...], kind: type) -> NDArray[Any]:
    """The sum over K, (outputs, *shape), of weights (outputs, K, ...) times normals K times (*shape), from the first to the last.

    In this order however many there are, as each sum is rounded.
    """
    weights = weights.astype(kind)
    if isinstance(normals, np.ndarray) and shape[0] * normals.size <= SMALL:
        terms = weights * normals
        return np.add.accumulate(terms, axis=1, out=terms)[:, -1]
    total: NDArray[Any] = np.zeros(shape, kind)
    term: NDArray[Any] = np.empty(shape[1:], kind)
    for k, z in enumerate(normals):
        for out, weight in zip(total, weights[:, k], strict=True):
            if z is not NOTHING:
                out += np.multiply(weight, z, term)
    return total
