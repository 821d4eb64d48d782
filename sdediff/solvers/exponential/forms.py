"""Forms of the diffusion equation: which part an exponential integrator solves exactly, and which
predictions of the network it replaces by polynomials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.given import Positive, Record

if TYPE_CHECKING:
    from sdediff.solvers.exponential.flow import Flow

__all__ = [
    "FARTHEST",
    "Data",
    "Form",
    "FormName",
    "Mixture",
    "Noise",
    "Points",
    "Straight",
    "check_form",
    "form_of",
]

FormName = Literal["data", "noise"]

FARTHEST: Final = 40.0
"""The largest u that is told from infinity: exp(-40) is below rounding."""
_ROUNDING: Final = 8 * torch.finfo(torch.float64).eps


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


@runtime_checkable
class Form(Protocol):
    """The equation d(x / S) = (1 + lambda^2) sum_k r_k q_k / S du + noise, u = log(alpha / sigma).

    A form chooses the scale S and the predictions q_k: sums of x and the data prediction, whose
    coefficients depend on time alone. A step multiplies x by S_b / S_a (`keep`) and replaces each
    q_k by a polynomial, whose integral has the density S_b r_k / S (`terms`). A subclass has the
    four methods without a body, and `std` if it can solve the reverse SDE.
    """

    quantity: str = "data"
    """What the network is evaluated for: ``"data"``, ``"noise"`` or ``"v"``."""
    stochastic: bool = False
    """Whether the form can solve the reverse SDE, by `std`."""
    bounded: bool = False
    """Whether the integrals exist up to infinite log-SNR of both signs, in a variable that is
    finite there. The density has to fall at least as exp(-abs(u)).
    """
    closes: bool = False
    """Whether the integrals exist up to sigma = 0 in the variable sigma / alpha."""

    def affine(self, points: Points) -> tuple[Number, Number]:
        """(keep, push): the network's call returns keep x + push quantity."""
        return 0.0, 1.0

    def predictions(
        self, x: Tensor, value: Tensor, alpha: Number, sigma: Number
    ) -> tuple[Tensor, ...]:
        """The predictions q_k at x by ``value``, what the network's call returned."""
        return (value,)

    def from_data(
        self, x: Tensor, data: Tensor, alpha: Number, sigma: Number
    ) -> tuple[Tensor, ...]:
        """The predictions q_k at x by the data prediction."""

    def noise(
        self, x: Tensor, predictions: Sequence[Tensor], alpha: Number, sigma: Number
    ) -> Tensor:
        """The noise prediction at x = alpha data + sigma noise by the predictions q_k."""

    def keep(self, a: Points, b: Points) -> Tensor:
        """S_b / S_a."""

    def terms(self, u: Tensor, mixing: Tensor, b: Points) -> list[tuple[Tensor, Tensor]]:
        """For each prediction a number of the step and a function of u, whose product is S_b r_k /
        S; ``u`` and ``mixing`` (L) are (nodes, n) or (nodes, n, rows).
        """

    def std(self, flow: Flow, a: Points, b: Points) -> Tensor:
        """The standard deviation of what the noise adds from a to b."""
        return torch.zeros_like(a.u)


@dataclass(frozen=True)
class Mixture(Form):
    """A share theta of the prediction as data and the rest as noise: S = alpha exp(-theta (u + L)).

    r_1 q_1 = theta alpha data and r_2 q_2 = -(1 - theta) sigma noise.
    """

    theta: float

    stochastic = True

    def predictions(
        self, x: Tensor, value: Tensor, alpha: Number, sigma: Number
    ) -> tuple[Tensor, ...]:
        return self.from_data(x, value, alpha, sigma)

    def from_data(
        self, x: Tensor, data: Tensor, alpha: Number, sigma: Number
    ) -> tuple[Tensor, ...]:
        return data, _noise(x, data, alpha, sigma)

    def noise(
        self, x: Tensor, predictions: Sequence[Tensor], alpha: Number, sigma: Number
    ) -> Tensor:
        return predictions[1]

    def keep(self, a: Points, b: Points) -> Tensor:
        kept = torch.exp(-self.theta * (b.mixing - a.mixing))
        return kept * (b.alpha / a.alpha) ** (1 - self.theta) * (b.sigma / a.sigma) ** self.theta

    def terms(self, u: Tensor, mixing: Tensor, b: Points) -> list[tuple[Tensor, Tensor]]:
        growth = self.theta * (u + mixing - b.u - b.mixing)
        return [
            (self.theta * b.alpha, growth.exp()),
            ((self.theta - 1) * b.sigma, (growth - (u - b.u)).exp()),
        ]

    def std(self, flow: Flow, a: Points, b: Points) -> Tensor:
        u, w = flow.nodes(a, b)
        mixing, square = flow.mixed(u)
        exponent = 2 * (self.theta * (u + mixing - b.u - b.mixing) - (u - b.u))
        return b.sigma * (w * 2 * square * exponent.exp()).sum(dim=0).clamp(min=0).sqrt()


@dataclass(frozen=True)
class Data(Mixture):
    """The data form, S = sigma exp(-L): r q = alpha data."""

    theta: float = 1.0

    def from_data(
        self, x: Tensor, data: Tensor, alpha: Number, sigma: Number
    ) -> tuple[Tensor, ...]:
        return (data,)

    def noise(
        self, x: Tensor, predictions: Sequence[Tensor], alpha: Number, sigma: Number
    ) -> Tensor:
        return _noise(x, predictions[0], alpha, sigma)

    def terms(self, u: Tensor, mixing: Tensor, b: Points) -> list[tuple[Tensor, Tensor]]:
        return super().terms(u, mixing, b)[:1]

    def std(self, flow: Flow, a: Points, b: Points) -> Tensor:
        gain = b.mixing - a.mixing
        # The square root would magnify rounding.
        gain = torch.where(gain < _ROUNDING * b.mixing.abs().clamp(min=1), 0.0, gain)
        return b.sigma * (-torch.expm1(-2 * gain)).clamp(min=0).sqrt()


@dataclass(frozen=True)
class Noise(Mixture):
    """The noise form, S = alpha: r q = -sigma noise."""

    theta: float = 0.0

    quantity = "noise"
    closes = True

    def predictions(
        self, x: Tensor, value: Tensor, alpha: Number, sigma: Number
    ) -> tuple[Tensor, ...]:
        return (value,)

    def from_data(
        self, x: Tensor, data: Tensor, alpha: Number, sigma: Number
    ) -> tuple[Tensor, ...]:
        return (_noise(x, data, alpha, sigma),)

    def noise(
        self, x: Tensor, predictions: Sequence[Tensor], alpha: Number, sigma: Number
    ) -> Tensor:
        return predictions[0]

    def terms(self, u: Tensor, mixing: Tensor, b: Points) -> list[tuple[Tensor, Tensor]]:
        # sigma_b exp(u_b) = alpha_b, also where sigma_b = 0
        above = b.sigma > 0
        sigma, last = torch.where(above, b.sigma, b.alpha), torch.where(above, b.u, 0.0)
        return [(-sigma, torch.exp(last - u))]


@dataclass(frozen=True)
class Straight(Record, Form):
    """The form d(x / S) = (1 + lambda^2) (data / scale - noise) / E dw + noise, with w = scale
    alpha / (scale alpha + sigma) and S = (scale alpha + sigma) E.

    The share theta = sigma / (scale alpha + sigma) of the prediction is put as data: all where
    noise is much larger than ``scale``, none where it is much smaller. The prediction is data -
    scale noise. E = exp(-the integral of lambda^2 theta du) is 1 for the probability flow, and
    ((scale alpha + sigma) / alpha)^(lambda^2) where lambda is constant; where it changes inside a
    step, theta in the integral is its mean up to the end of the step.

    Without noise x / S moves straight on, while data and noise hardly change, from the noise, w =
    0, to the data over ``scale``, w = 1. ``scale`` is that of details of the data; with 1, data -
    noise is the velocity of a rectified flow.
    """

    scale: Positive = 1.0

    stochastic = True
    bounded = True

    def affine(self, points: Points) -> tuple[Number, Number]:
        ratio = self.scale / points.sigma
        return -ratio, 1.0 + ratio * points.alpha

    def from_data(
        self, x: Tensor, data: Tensor, alpha: Number, sigma: Number
    ) -> tuple[Tensor, ...]:
        return (weighted((1.0, data), (-self.scale, _noise(x, data, alpha, sigma))),)

    def noise(
        self, x: Tensor, predictions: Sequence[Tensor], alpha: Number, sigma: Number
    ) -> Tensor:
        size = 1.0 / (self.scale * alpha + sigma)
        return weighted((size, x), (-alpha * size, predictions[0]))

    def keep(self, a: Points, b: Points) -> Tensor:
        kept = (self.scale * b.alpha + b.sigma) / (self.scale * a.alpha + a.sigma)
        return kept * self._faded(a.u, a.mixing, b)

    def terms(self, u: Tensor, mixing: Tensor, b: Points) -> list[tuple[Tensor, Tensor]]:
        theta = 1 / (1 + self.scale * u.exp())
        return [
            (b.alpha + b.sigma / self.scale, theta * (1 - theta) * self._faded(u, mixing, b)),
        ]

    def std(self, flow: Flow, a: Points, b: Points) -> Tensor:
        u, w = flow.nodes(a, b)
        mixing, square = flow.mixed(u)
        theta = 1 / (1 + self.scale * u.exp())
        left = theta * self._faded(u, mixing, b)
        variance = (w * 2 * square * left.square()).sum(dim=0).clamp(min=0)
        return (self.scale * b.alpha + b.sigma) * variance.sqrt()

    def _faded(self, u: Tensor, mixing: Tensor, b: Points) -> Number:
        """E at b over E at u: exp(-(L_b - L) mean of theta from u to b)."""
        gain = b.mixing - mixing
        if not bool(gain.any()):
            return 1.0
        start, end = (each.clamp(-FARTHEST, FARTHEST) for each in (u, b.u))
        whole = torch.log((torch.exp(-start) + self.scale) / (torch.exp(-end) + self.scale))
        return torch.exp(-gain * whole / (end - start))


FORMS: Final = {"data": Data(), "noise": Noise()}


def check_form(name: str, form: object) -> None:
    """Raise a ValueError unless a solver can take this as its form."""
    number = isinstance(form, float | int) and not isinstance(form, bool) and 0 <= form <= 1
    given = isinstance(form, Form) and not isinstance(form, type)
    if not (number or given or (isinstance(form, str) and form in FORMS)):
        raise ValueError(
            f"{name}: form must be 'data', 'noise', a number from 0 (noise) to 1 (data), "
            f"Straight(scale) or an object with the methods of Form, got {form!r}"
        )


def form_of(form: FormName | float | Form) -> Form:
    """The form by its name, or by the share theta of the prediction that is put as data."""
    if isinstance(form, str):
        return FORMS[form]
    if isinstance(form, float | int):
        return FORMS["data"] if form == 1 else Mixture(float(form)) if form else FORMS["noise"]
    return form


def _noise(x: Tensor, data: Tensor, alpha: Number, sigma: Number) -> Tensor:
    return weighted((1.0 / sigma, x), (-alpha / sigma, data))
