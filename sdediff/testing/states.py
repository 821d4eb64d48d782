"""States to call methods with."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from sdediff.testing.context import Context, times_tensor

__all__ = ["ROWS", "event_shapes", "irregular"]

ROWS: Final = 3
_SHAPES: Final[tuple[tuple[int, ...], ...]] = ((ROWS,), (ROWS, 1), (ROWS, 2, 3), (ROWS, 2, 3, 4, 5))
_GENERAL_SHAPES: Final[tuple[tuple[int, ...], ...]] = (
    (ROWS,),
    (ROWS, 1),
    (ROWS, 2),
    (ROWS, 3),
    (ROWS, 4),
    (ROWS, 2, 3),
    (ROWS, 3, 8, 8),
)


def irregular(shape: tuple[int, ...], shift: float) -> Tensor:
    """Numbers that look irregular and are not random."""
    return torch.sin(
        12.9898 * torch.arange(1, 1 + int(np.prod(shape)), dtype=torch.float64) + shift
    ).reshape(shape)


def event_shapes(context: Context) -> list[tuple[int, ...]]:
    """The shapes that the SDE takes: all for a linear one, those that its drift takes for
    another.
    """
    if context.linear:
        return list(_SHAPES)
    taken, problem = [], None
    t = times_tensor(0.5 * (context.low + context.high))
    for shape in _GENERAL_SHAPES:
        try:
            if context.sde.drift(irregular(shape, 0.0), t).shape == shape:
                taken.append(shape)
        except (RuntimeError, ValueError, IndexError) as error:
            problem = error
    if not taken:
        tried = ", ".join(map(str, _GENERAL_SHAPES))
        raise ValueError(f"drift(x, t) takes and returns none of the shapes {tried}") from problem
    return taken
