"""Integration variables: the same deterministic problem as dy / du = slope, for y = x / c and u a
function of time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, Protocol, get_args

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number
from sdediff.solvers.problem import Problem

__all__ = ["SIZE", "VARIABLES", "Variable", "VariableName", "slope", "slopes", "variable_of"]

VariableName = Literal["log_snr", "sigma", "angle", "t"]
VARIABLES: Final = get_args(VariableName)
SIZE: Final = 0.4
"""The size of details for which the angle is taken."""


class Variable(Protocol):
    """What a step in a variable u needs of the problem. Two that are equal have equal weights."""

    @property
    def quantity(self) -> Literal["drift", "noise", "v"]:
        """What is evaluated."""

    def value(self, t: Tensor) -> Tensor:
        """u at time t."""

    def time(self, u: Tensor) -> Tensor:
        """t at u."""

    def scale(self, t: Tensor) -> Tensor | None:
        """c(t), shaped as t; None: 1."""

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """(a, b) of dy / du = a x + b quantity, shaped as t; None: (0, 1)."""


def slopes(
    problem: Problem, variable: Variable, times: Tensor, keep: Number = 0.0, push: Number = 1.0
) -> Sequence[Any]:
    """Entries of `Problem.at` for keep x + push dy / du at times (n,) or (n, rows)."""
    weights = variable.weights(times)
    if weights is not None:
        a, b = weights
        alone = type(keep) is type(push) is float and (keep, push) == (0.0, 1.0)
        keep, push = weights if alone else (keep + push * a, push * b)
    return problem.at(times, variable.quantity, keep, push)


def slope(problem: Problem, variable: Variable, x: Tensor, t: Tensor) -> Tensor:
    """dy / du, with one evaluation."""
    return problem.evaluate(x, slopes(problem, variable, t[None])[0])


@dataclass(frozen=True)
class _Time:
    """u = t, y = x."""

    quantity: ClassVar[Literal["drift"]] = "drift"

    def value(self, t: Tensor) -> Tensor:
        return t

    def time(self, u: Tensor) -> Tensor:
        return u

    def scale(self, t: Tensor) -> Tensor | None:
        return None

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        return None


@dataclass(frozen=True)
class _Sigma:
    """u = sigma / alpha, y = x / alpha: dy / du = noise."""

    problem: Problem = field(compare=False)

    quantity: ClassVar[Literal["noise", "v"]] = "noise"

    def value(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.problem.log_snr(t))

    def time(self, u: Tensor) -> Tensor:
        return self.problem.time_of(-2 * u.log())

    def scale(self, t: Tensor) -> Tensor | None:
        return self.problem.marginal(t)[0]

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        return None


@dataclass(frozen=True)
class _LogSnr(_Sigma):
    """u = log(sigma / alpha), half the negative log-SNR: dy / du = sigma / alpha noise."""

    def value(self, t: Tensor) -> Tensor:
        return -0.5 * self.problem.log_snr(t)

    def time(self, u: Tensor) -> Tensor:
        return self.problem.time_of(-2 * u)

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        return torch.zeros_like(t), super().value(t)


@dataclass(frozen=True)
class _Angle(_Sigma):
    """u = arctan(sigma / (r alpha)), y = x / c with c = sqrt((r alpha)^2 + sigma^2), r the size of
    details.

    With x = alpha data + sigma noise, y = cos(u) data / r + sin(u) noise, so that dy / du = cos(u)
    noise - sin(u) data / r. The flow of N(0, r^2) does not move y at all. In terms of v = alpha
    noise - sigma data the slope is (r^2 - 1) alpha sigma / (r c (alpha^2 + sigma^2)) x + c / (r
    (alpha^2 + sigma^2)) v.
    """

    size: float

    quantity: ClassVar[Literal["noise", "v"]] = "v"

    def value(self, t: Tensor) -> Tensor:
        return (_Sigma.value(self, t) / self.size).arctan()

    def time(self, u: Tensor) -> Tensor:
        return super().time(u.tan() * self.size)

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self.problem.marginal(t)
        # torch.hypot rounds an entry by its place in the tensor, and so a sample by its batch.
        return alpha, sigma, ((self.size * alpha) ** 2 + sigma**2).sqrt()

    def scale(self, t: Tensor) -> Tensor | None:
        return self._parts(t)[2]

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        alpha, sigma, c = self._parts(t)
        square = self.size * (alpha**2 + sigma**2)
        return (self.size**2 - 1) * alpha * sigma / (c * square), c / square


def variable_of(problem: Problem, name: VariableName, size: float = SIZE) -> Variable:
    """The integration variable of that name; ``size`` is r of the angle."""
    if name == "angle":
        return _Angle(problem, size)
    kinds: dict[str, Callable[[Problem], Variable]] = {"sigma": _Sigma, "log_snr": _LogSnr}
    return kinds[name](problem) if name in kinds else _Time()
