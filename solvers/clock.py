"""Integration variables: the same deterministic problem as dy / du = slope, for y = x / scale and u a function of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from solvers.problem import Problem

__all__ = ["Clock", "Variable", "clock"]

Variable = Literal["t", "sigma", "log_snr", "angle"]


class Clock(Protocol):
    """What a step in a variable u needs of the problem."""

    @property
    def quantity(self) -> Literal["drift", "noise", "v"]:
        """What is evaluated."""

    def value(self, t: Tensor) -> Tensor:
        """u at time t."""

    def time(self, u: Tensor) -> Tensor:
        """t at u."""

    def scale(self, t: Tensor) -> Tensor | None:
        """What y is multiplied by to give x, shaped as t; None: nothing."""

    def weight(self, t: Tensor) -> Tensor | None:
        """What an evaluation is multiplied by to give dy / du, shaped as t; None: nothing."""

    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """One evaluation at the state x."""


def _flat(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """A function of times () or (n,), at times of any shape."""
    return function(t.reshape(-1)).reshape(t.shape) if t.ndim > 1 else function(t)


class _Time:
    """u = t, y = x."""

    quantity: Literal["drift"] = "drift"

    def __init__(self, problem: Problem) -> None:
        self.evaluate = problem.drift

    def value(self, t: Tensor) -> Tensor:
        return t

    def time(self, u: Tensor) -> Tensor:
        return u

    def scale(self, t: Tensor) -> Tensor | None:
        return None

    def weight(self, t: Tensor) -> Tensor | None:
        return None


class _Sigma:
    """u = sigma / alpha, y = x / alpha: dy / du = noise."""

    quantity: Literal["noise", "v"] = "noise"

    def __init__(self, problem: Problem) -> None:
        self.problem, self.evaluate = problem, getattr(problem, self.quantity)

    def value(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * _flat(self.problem.log_snr, t))

    def time(self, u: Tensor) -> Tensor:
        return _flat(self.problem.time_of, -2 * u.log())

    def scale(self, t: Tensor) -> Tensor | None:
        return _flat(lambda t: self.problem.marginal(t)[0], t)

    def weight(self, t: Tensor) -> Tensor | None:
        return None


class _LogSnr(_Sigma):
    """u = log(sigma / alpha), half the negative log-SNR: dy / du = sigma / alpha noise."""

    def value(self, t: Tensor) -> Tensor:
        return -0.5 * _flat(self.problem.log_snr, t)

    def time(self, u: Tensor) -> Tensor:
        return _flat(self.problem.time_of, -2 * u)

    def weight(self, t: Tensor) -> Tensor | None:
        return super().value(t)


class _Angle(_Sigma):
    """u = arctan(sigma / alpha), y = x / c with c = sqrt(alpha^2 + sigma^2): dy / du = v / c."""

    quantity: Literal["noise", "v"] = "v"

    def value(self, t: Tensor) -> Tensor:
        return super().value(t).arctan()

    def time(self, u: Tensor) -> Tensor:
        return super().time(u.tan())

    def scale(self, t: Tensor) -> Tensor | None:
        return _flat(lambda t: torch.hypot(*self.problem.marginal(t)), t)

    def weight(self, t: Tensor) -> Tensor | None:
        return 1 / _flat(lambda t: torch.hypot(*self.problem.marginal(t)), t)


def clock(problem: Problem, variable: Variable) -> Clock:
    """The problem in an integration variable."""
    kinds: dict[str, type[_Time] | type[_Sigma]] = {"t": _Time, "sigma": _Sigma, "log_snr": _LogSnr, "angle": _Angle}
    return kinds[variable](problem)
