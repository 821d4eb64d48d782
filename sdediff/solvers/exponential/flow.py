"""The coefficient engine of the exponential integrators: everything but the network's prediction is
integrated exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff.solvers.given import Record
from sdediff.solvers.problem import Problem

__all__ = [
    "FORMS",
    "MOMENTS",
    "VARIABLES",
    "Flow",
    "Form",
    "Moments",
    "Points",
    "Straight",
    "Variable",
    "Weight",
    "gauss_legendre",
    "share",
]


@dataclass(frozen=True)
class Straight(Record):
    """The form d(x / S) = (data / scale - noise) dw with S = scale alpha + sigma and w = scale
    alpha / S, for the probability flow.

    While data and noise hardly change, x / S moves straight on from the noise, w = 0, to the data
    over ``scale``, w = 1. The share theta = sigma / S of the prediction is put as data: all where
    noise is much larger than ``scale``, none where it is much smaller. ``scale`` is that of details
    of the data; with 1, data - noise is the velocity of a rectified flow.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(
                f"Straight: scale must be a positive number, got {self.scale!r}; 0.1 for details "
                "of that size"
            )

    def share(self, u: Tensor) -> Tensor:
        """theta = sigma / (scale alpha + sigma) at u = log(alpha / sigma)."""
        return 1 / (1 + self.scale * u.exp())


Form = Literal["data", "noise"] | float | Straight
Variable = Literal["log_snr", "sigma", "angle", "t"]
Moments = Literal["exact", "half", "half-h", "uniform"]
FORMS: Final = {"data": 1.0, "noise": 0.0}
VARIABLES: Final = ("log_snr", "sigma", "angle", "t")
MOMENTS: Final = ("exact", "half", "half-h", "uniform")

_PER_PANEL: Final = 16
_NOTHING: Final = 8 * torch.finfo(torch.float64).eps
_FARTHEST: Final = 40.0  # in u: exp(-40) is below rounding
_FOLDS: Final = 4.0  # e-foldings of the weight in a panel: the rule's error is then below rounding


class Points(NamedTuple):
    """What is known at some times, each of one shape."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    u: Tensor  # log(alpha / sigma)
    mixing: Tensor  # L, the integral of lambda^2 du
    v: Tensor  # the variable that predictions are polynomials in

    def part(self, which: slice | Tensor) -> Points:
        """Some of the times."""
        return Points(*(each[which] for each in self))


class Weight(NamedTuple):
    """What a node's predictions are multiplied by; None where the form has no such term.

    `Straight` has one prediction, data - scale noise, and its weight is ``data``.
    """

    data: Tensor | None
    noise: Tensor | None


def share(form: Form) -> float | Straight:
    """theta of a form: 1 for data, 0 for noise, a number between for a mixture; a form whose share
    changes is itself.
    """
    return (
        FORMS[form]
        if isinstance(form, str)
        else form
        if isinstance(form, Straight)
        else float(form)
    )


@cache
def gauss_legendre() -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre's rule on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(_PER_PANEL)
    return torch.from_numpy(0.5 * (1 + x)), torch.from_numpy(0.5 * w)


def _total(x: Tensor) -> Tensor:
    """The sum over the first dimension, in one order for every entry: torch's own depends on how
    many there are.
    """
    return x.cumsum(dim=0)[-1]


def lagrange(nodes: Sequence[Tensor], at: Tensor) -> list[Tensor]:
    """Each node's polynomial, 1 there and 0 at the others, at ``at``."""
    found = []
    for j, here in enumerate(nodes):
        value = torch.ones_like(at)
        for k, other in enumerate(nodes):
            if k != j:
                value = value * (at - other) / (here - other)
        found.append(value)
    return found


class Flow:
    """dx = [(ln alpha)' x - (1 + lambda^2) sigma noise] du + noise of variance 2 lambda^2 sigma^2
    du, with u = log(alpha / sigma).

    With E[noise] = (x - alpha E[data]) / sigma, a share theta of the prediction is put as data, and
    the rest as noise:

        d(x / S) = (1 + lambda^2) [theta alpha data - (1 - theta) sigma noise] / S du + ...,   S =
        alpha exp(-theta (u + L)),

    L the integral of lambda^2 du. theta = 1 is the data form (S = sigma exp(-L)), 0 the noise form
    (S = alpha); for one that changes, at lambda = 0, see `Straight`. Over a step the predictions
    are replaced by polynomials in ``variable``, u itself or sigma / alpha or arctan(sigma / alpha)
    or t, and the integrals are computed to rounding: by Gauss and Legendre's rule in u, whose terms
    do not cancel however small the step. Coefficients are float64 and differentiable in the times.
    """

    def __init__(
        self,
        problem: Problem,
        theta: float | Straight,
        variable: Variable,
        mixing: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """``mixing``: (L, lambda^2) at u, in place of the problem's."""
        self.problem = problem
        self.theta = theta
        self.variable = variable
        self._mixing = mixing

    def mixed(self, u: Tensor, t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(L, lambda^2) at u, where the time is t if it is known."""
        if self._mixing is not None:
            return self._mixing(u)
        constant = self.problem.constant_stochasticity
        if constant is not None:
            square = constant**2
            return (square * u if square else torch.zeros_like(u)), torch.full_like(u, square)
        t = self._time(2 * u) if t is None else t
        return self.problem.mixing(t), self.problem.stochasticity(t) ** 2

    def _time(self, log_snr: Tensor) -> Tensor:
        return self.problem.time_of(log_snr)

    def points(self, t: Tensor) -> Points:
        """All that is needed at times t."""
        alpha, sigma, log_snr = self.problem.levels(t)
        u = 0.5 * log_snr
        return Points(
            t, alpha, sigma, u, self.mixed(u, t)[0], t if self.variable == "t" else self._value(u)
        )

    def _value(self, u: Tensor) -> Tensor:
        if self.variable == "t":
            return self._time(2 * u)
        if self.variable == "log_snr":
            return u
        ratio = torch.exp(-u)
        return ratio if self.variable == "sigma" else torch.atan(ratio)

    def at(self, points: Points) -> Sequence[Any]:
        """The problem's entries for what the form evaluates at the points: data, noise, or data -
        scale noise.
        """
        if isinstance(self.theta, Straight):
            ratio = self.theta.scale / points.sigma
            return self.problem.at(points.t, "data", -ratio, 1.0 + ratio * points.alpha)
        return self.problem.at(points.t, "noise" if self.theta == 0 else "data")

    def bounded(self, points: Points) -> Tensor:
        """At which of the points predictions can be integrated up to there: not where log-SNR is
        infinite, unless `Straight`.
        """
        finite = torch.isfinite(points.v)
        return finite if isinstance(self.theta, Straight) else finite & torch.isfinite(points.u)

    def closes(self, points: Points) -> Tensor:
        """At which of the points sigma is 0 and the noise form in sigma / alpha still has its
        integral, of a polynomial up to sigma / alpha = 0."""
        none = points.sigma == 0
        return none & (points.v == 0) if self._plain and self.variable == "sigma" else none & False

    @property
    def _plain(self) -> bool:
        """Whether the form is the noise form of the probability flow."""
        flow = self._mixing is None and self.problem.constant_stochasticity == 0
        return flow and self.theta == 0

    def between(self, a: Points, b: Points, share: float) -> Points:
        """The points at a share of the way from a to b, in the variable."""
        v = a.v + share * (b.v - a.v)
        if self.variable == "t":
            return self.points(v)
        u = (
            v
            if self.variable == "log_snr"
            else -(v if self.variable == "sigma" else torch.tan(v)).log()
        )
        return self.points(self._time(2 * u))._replace(v=v)

    def keep(self, a: Points, b: Points) -> Tensor:
        """S_b / S_a."""
        if isinstance(self.theta, Straight):
            return (self.theta.scale * b.alpha + b.sigma) / (self.theta.scale * a.alpha + a.sigma)
        kept = (
            torch.exp(-self.theta * (b.mixing - a.mixing)) if self.theta else torch.ones_like(a.u)
        )
        for ratio, power in ((b.alpha / a.alpha, 1 - self.theta), (b.sigma / a.sigma, self.theta)):
            kept = kept * (ratio if power == 1 else ratio**power) if power else kept
        return kept

    def std(self, a: Points, b: Points) -> Tensor:
        """The standard deviation of what the noise adds from a to b."""
        if isinstance(self.theta, Straight):
            return torch.zeros_like(a.u)
        if self.theta == 1:
            gain = b.mixing - a.mixing
            # of rounding the root would be seen
            gain = torch.where(gain < _NOTHING * b.mixing.abs().clamp(min=1), 0.0, gain)
            return b.sigma * (-torch.expm1(-2 * gain)).clamp(min=0).sqrt()
        u, w = self._nodes(a, b)
        mixing, square = self.mixed(u)
        exponent = 2 * (self.theta * (u + mixing - b.u - b.mixing) - (u - b.u))
        return b.sigma * (w * 2 * square * exponent.exp()).sum(dim=0).clamp(min=0).sqrt()

    def _nodes(self, a: Points, b: Points) -> tuple[Tensor, Tensor]:
        """u and weights, (nodes, *shape), of a rule from a to b."""
        start, h = a.u, b.u - a.u
        if isinstance(self.theta, Straight):
            # Its densities fall as exp(-|u|).
            start = a.u.clamp(-_FARTHEST, _FARTHEST)
            h = b.u.clamp(-_FARTHEST, _FARTHEST) - start
        folds = torch.maximum(h.abs(), (h + b.mixing - a.mixing).abs()).detach()
        # arctan(exp(-u)) has poles half as far from the real line as Straight's share, which sets
        # the length of panels.
        most = (
            _FOLDS / 2 if self.variable == "angle" or isinstance(self.theta, Straight) else _FOLDS
        )
        panels = max(1, math.ceil(float(folds.max()) / most)) if h.numel() else 1
        x, w = gauss_legendre()
        at = ((torch.arange(panels, dtype=torch.float64)[:, None] + x) / panels).reshape(
            -1, *(1,) * h.ndim
        )
        return start + at * h, (w / panels).repeat(panels).reshape(at.shape) * h

    def weights(
        self, a: Points, b: Points, nodes: Sequence[Tensor], moments: Moments = "exact"
    ) -> list[Weight]:
        """What each node's predictions are multiplied by in the step from a to b; ``nodes`` are
        values v, the first of them a's.

        ``moments`` other than ``"exact"`` are simplifications that publications make: ``"half"``,
        with two nodes, gives the slope the weight at the middle of the step; ``"half-h"`` that
        weight by the length of the step; ``"uniform"`` takes the Adams-Bashforth weights of equal
        steps.
        """
        if bool(self.closes(b).any()):
            return self._closing(a, b, nodes)
        u, w = self._nodes(a, b)
        mixing, square = self.mixed(u)
        w = w * (1 + square)
        terms = []
        if isinstance(self.theta, Straight):
            theta = self.theta.share(u)
            terms.append((b.alpha + b.sigma / self.theta.scale, w * theta * (1 - theta)))
        else:
            growth = self.theta * (u + mixing - b.u - b.mixing)
            if self.theta:
                terms.append((self.theta * b.alpha, w * growth.exp()))
            if self.theta != 1:
                terms.append(((self.theta - 1) * b.sigma, w * (growth - (u - b.u)).exp()))
        basis = (
            lagrange(nodes, self._value(u))
            if moments == "exact" or (moments != "uniform" and len(nodes) > 2)
            else None
        )
        length = _total(w)
        found = [
            self._integrals(scale, density, length, b.v - a.v, nodes, basis, moments)
            for scale, density in terms
        ]
        if len(found) == 2:
            return [Weight(data, noise) for data, noise in zip(*found, strict=True)]
        return [Weight(each, None) if self.theta else Weight(None, each) for each in found[0]]

    def _closing(self, a: Points, b: Points, nodes: Sequence[Tensor]) -> list[Weight]:
        """`weights` of steps to sigma = 0: -alpha_b times the integrals over sigma / alpha."""
        x, w = gauss_legendre()
        column = (-1, *(1,) * a.v.ndim)
        basis = lagrange(nodes, x.reshape(column) * a.v)
        return [Weight(None, -b.alpha * a.v * _total(w.reshape(column) * each)) for each in basis]

    def _integrals(
        self,
        scale: Tensor,
        density: Tensor,
        length: Tensor,
        step: Tensor,
        nodes: Sequence[Tensor],
        basis: list[Tensor] | None,
        moments: Moments,
    ) -> list[Tensor]:
        if basis is not None:
            return [scale * _total(density * each) for each in basis]
        total = scale * _total(density)
        if moments == "uniform":
            return [total * weight for weight in _equal_steps(len(nodes))]
        if len(nodes) == 1:
            return [total]
        slope = (
            (total if moments == "half" else scale * length) * 0.5 * step / (nodes[1] - nodes[0])
        )
        return [total - slope, slope]


@cache
def _equal_steps(n: int) -> tuple[float, ...]:
    """The weights of Adams and Bashforth."""
    x, w = gauss_legendre()
    nodes = [torch.tensor(-float(j), dtype=torch.float64) for j in range(n)]
    return tuple(float((w * each).sum()) for each in lagrange(nodes, x))
