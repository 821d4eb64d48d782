"""Where a falling function crosses zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

__all__ = ["crossing"]

_HALVINGS: Final = 66
_EPS: Final = torch.finfo(torch.float64).eps


def crossing(function: Callable[[Tensor], Tensor], shape: torch.Size, end: float, values: tuple[Tensor, Tensor]) -> Tensor:
    """The earliest t in [0, end] with function(t) <= 0, for functions that fall and are at most 0 at ``end``: jumps and flat
    stretches included. ``values`` are function(0) and function(end), each of ``shape`` as the result is.

    The ITP method (Oliveira and Takahashi 2020, ACM Transactions on Mathematical Software 47), which keeps a bracket as bisection
    does and needs at most one evaluation more than it, and about ten where the function is smooth.
    """
    low, high = torch.zeros(shape, dtype=torch.float64), torch.full(shape, end, dtype=torch.float64)
    above, below = values[0].expand(shape).clone(), values[1].expand(shape).clone()
    for j in range(_HALVINGS + 1):
        width, middle = high - low, 0.5 * (low + high)
        if bool((width <= (2 * _EPS * high).clamp(min=end * 2.0**-_HALVINGS)).all()):
            break
        secant = low + width * (above / (above - below)).nan_to_num(0.5).clamp(0, 1)
        towards = torch.sign(middle - secant)
        push = torch.minimum((0.2 / end) * width.square(), (middle - secant).abs())
        pushed = secant + towards * torch.maximum(push, _EPS * high)
        reach = (end * 2.0**-j - 0.5 * width).clamp(min=0)  # so that what the secant loses, halving makes up
        trial = torch.where((pushed - middle).abs() <= reach, pushed, middle - towards * reach)
        trial = torch.where((trial > low) & (trial < high), trial, middle)
        value = function(trial)
        passed = value <= 0
        low, above = torch.where(passed, low, trial), torch.where(passed, above, value)
        high, below = torch.where(passed, trial, high), torch.where(passed, value, below)
    return high
