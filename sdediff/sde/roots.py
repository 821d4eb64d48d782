"""Where a falling function of time takes a value, and the time derivative of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from sdediff.sde.linear import LinearSDE

__all__ = ["Inverse", "close", "crossing", "earliest", "inverted", "time_derivative"]

_HALVINGS: Final = 66
_EPS: Final = torch.finfo(torch.float64).eps
_POINTS: Final = 6
_TIGHT: Final = 1e-6  # a secant over so small a part of an interval is exact to rounding


def crossing(
    function: Callable[[Tensor], Tensor],
    shape: torch.Size,
    end: float,
    values: tuple[Tensor, Tensor],
) -> Tensor:
    """The earliest t in [0, end] with function(t) <= 0, for functions that fall and are at most 0
    at ``end``: jumps and flat stretches included. ``values`` are function(0) and function(end),
    each of ``shape`` as the result is.

    The ITP method (Oliveira and Takahashi 2020, ACM Transactions on Mathematical Software 47),
    which keeps a bracket as bisection does and needs at most one evaluation more than it, and about
    ten where the function is smooth.
    """
    low = torch.zeros(shape, dtype=torch.float64)
    high = torch.full(shape, end, dtype=torch.float64)
    above, below = values[0].expand(shape).clone(), values[1].expand(shape).clone()
    for j in range(_HALVINGS + 1):
        width, middle = high - low, 0.5 * (low + high)
        if bool((width <= (2 * _EPS * high).clamp(min=end * 2.0**-_HALVINGS)).all()):
            break
        secant = low + width * (above / (above - below)).nan_to_num(0.5).clamp(0, 1)
        towards = torch.sign(middle - secant)
        push = torch.minimum((0.2 / end) * width.square(), (middle - secant).abs())
        pushed = secant + towards * torch.maximum(push, _EPS * high)
        # so that what the secant loses, halving makes up
        reach = (end * 2.0**-j - 0.5 * width).clamp(min=0)
        trial = torch.where((pushed - middle).abs() <= reach, pushed, middle - towards * reach)
        trial = torch.where((trial > low) & (trial < high), trial, middle)
        value = function(trial)
        passed = value <= 0
        low, above = torch.where(passed, low, trial), torch.where(passed, above, value)
        high = torch.where(passed, trial, high)
        below = torch.where(passed, value, below)
    return high


class Inverse:
    """The inverse of a function that falls on [0, end]: a table of where it was smooth, made once,
    and one evaluation.

    The table guesses t by polynomials in the value. Two points beside the guess, a millionth of an
    interval apart, show that it is right and give t to rounding. What the table does not know
    (kinks, jumps, flat stretches, the utmost ends, a function that has changed since) is not found,
    and left to `crossing`.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], end: float) -> None:
        with torch.inference_mode(False), torch.no_grad():
            # At both ends log-SNR may go to infinity as a logarithm does: intervals shrink with the
            # distance from there.
            edge = torch.logspace(-20, -3, 17 * 12 + 1, base=2, dtype=torch.float64)
            middle = torch.linspace(edge[-1], 1 - edge[-1], 97, dtype=torch.float64)
            t = torch.cat([edge[:-1], middle, 1 - edge.flip(0)[1:]]) * end
            inside = 0.5 * (t[1:] + t[:-1])
            value, between = function(torch.cat([t, inside])).split([len(t), len(inside)])
            window = (torch.arange(len(inside)) - 2).clamp(0, len(t) - _POINTS)[
                :, None
            ] + torch.arange(_POINTS)
            self._t = t
            self._falling = -value
            self._places = value[window]
            self._newton = t[window]
            for k in range(1, _POINTS):
                rise = self._places[:, k:] - self._places[:, :-k]
                self._newton[:, k:] = (self._newton[:, k:] - self._newton[:, k - 1 : -1]) / rise
            width = t.diff()
            reach = (
                8 * (self._guess(torch.arange(len(width)), between) - inside).abs()
                + 0.01 * _TIGHT * width
            )
            self._reach = torch.where(reach <= _TIGHT * width, reach, 0.0)

    def _guess(self, cell: Tensor, value: Tensor) -> Tensor:
        places, newton = self._places[cell], self._newton[cell]
        t = newton[:, -1]
        for k in range(_POINTS - 2, -1, -1):
            t = torch.addcmul(newton[:, k], t, value - places[:, k])
        return t

    def __call__(
        self, function: Callable[[Tensor], Tensor], value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(t, found): the time at which function(t) is ``value`` (n,), and where that is known."""
        cell = (torch.searchsorted(self._falling, -value) - 1).clamp(0, len(self._t) - 2)
        start = self._t[cell]
        end = self._t[cell + 1]
        reach = self._reach[cell]
        guess = torch.where(reach > 0, self._guess(cell, value), start)
        low = torch.maximum(guess - reach, start)
        high = torch.minimum(guess + reach, end)
        above, below = (function(torch.cat([low, high])) - value.repeat(2)).chunk(2)
        t = low + (high - low) * (above / (above - below))
        return t, (above > 0) & (below <= 0) & ((t - guess).abs() <= 0.5 * reach)


def earliest(sde: LinearSDE, inverse: Inverse, level: Tensor) -> Tensor:
    """The earliest t in [0, T] with log_snr(t) <= ``level`` (n,); a ValueError for a level that is
    never reached.
    """
    # On a stretch where g = 0 rounding decides: two units of it are forgiven.
    reached = level + 2 * _EPS * level.abs().clamp(min=1)
    reached = torch.where(level.isinf(), level, reached)
    time, known = inverse(sde.log_snr, reached)
    if bool(known.all()):
        return time
    target, reached = level[~known], reached[~known]
    first, last = sde.log_snr(torch.tensor([0.0, sde.T], dtype=torch.float64))
    slack = 1e-9 * target.abs().clamp(min=1)
    outside = ~((target <= first + slack) & ~(target < last - slack))
    if bool(outside.any()):
        raise ValueError(
            f"log_snr = {float(target[outside][0]):.6g} is never reached: that of {sde!r} falls "
            f"from {float(first):.6g} "
            f"to {float(last):.6g}"
        )
    ends = first - reached, last - reached
    late = crossing(lambda t: sde.log_snr(t) - reached, reached.shape, sde.T, ends)
    time[~known] = torch.where(first <= reached, 0.0, late)
    return time


def inverted(
    log_snr: Callable[[Tensor], Tensor], invert: Callable[[Tensor], Tensor], end: float
) -> tuple[float, float]:
    """Between which levels ``invert`` inverts ``log_snr``, looked up at irregular and at ever
    smaller times; (inf, -inf): nowhere.

    A subclass may have changed the schedule and not its inverse, or have one by a table that is
    right at its times alone.
    """
    k = torch.arange(1, 65, dtype=torch.float64)
    times = end * torch.cat([k * 0.6180339887498949 % 1, 0.7**k, torch.tensor([0.0, 1.0])])
    levels = log_snr(times)
    levels = levels[levels.isfinite()].detach()
    if not len(levels) or not close(log_snr(invert(levels)), levels):
        return float("inf"), -float("inf")
    return float(levels.min()), float(levels.max())


def close(a: Tensor, b: Tensor) -> bool:
    """Whether they agree to 1e-8 of 1 + abs(b): torch.isclose in a few passes, which an adaptive
    step feels.
    """
    with np.errstate(invalid="ignore"):
        one, other = a.detach().numpy(), b.detach().numpy()
        return bool(((np.abs(one - other) <= 1e-8 + 1e-8 * np.abs(other)) | (one == other)).all())


def time_derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function / dt by autograd, shaped as t; differentiable again where t asks for gradients."""
    with torch.inference_mode(False), torch.enable_grad():
        u = t if t.requires_grad else t.detach().clone().requires_grad_()
        out = function(u)
        if not out.requires_grad:
            with torch.no_grad():
                moved = function(0.875 * u)
            if not torch.equal(moved, out):
                raise ValueError(
                    f"{function} changes with t but carries no gradient: write it with torch "
                    "functions of t, or give f and g too"
                )
            return torch.zeros_like(t)
        (derivative,) = torch.autograd.grad(out.sum(), u, create_graph=t.requires_grad)
    return derivative
