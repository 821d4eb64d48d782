"""A linear SDE in other units of length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdediff.sde.base import Prior, as_time
from sdediff.sde.linear import LinearSDE
from sdediff.solvers.given import Positive, real

__all__ = ["Scaled"]


@dataclass(frozen=True, repr=False)
class Scaled(LinearSDE):
    """The SDE of c x for x that follows ``base``, c = ``factor`` > 0: alpha and f stay, sigma and g
    are c times as large.

    `LinearSDE.scaled` makes it. Time, and with it t_min and t_max, is that of ``base``.
    """

    base: LinearSDE
    factor: Positive

    def __post_init__(self) -> None:
        if not isinstance(self.base, LinearSDE):
            raise TypeError(f"Scaled: base must be a LinearSDE, got {self.base!r}")

    def __repr__(self) -> str:
        return f"{self.base!r}.scaled({self.factor:g})"

    def scaled(self, factor: float) -> LinearSDE:
        """The base by both factors at once."""
        return self.base.scaled(self.factor * real("scaled: the factor", factor))

    def __getattr__(self, name: str) -> Any:
        """The base's learned ``schedule`` where it has one, which `fit` trains and saves."""
        if name == "schedule":
            return getattr(self.base, name)
        return super().__getattr__(name)

    @property
    def offers(self) -> frozenset[str]:
        return self.base.offers

    @property
    def T(self) -> float:
        return self.base.T

    @property
    def sigma_0(self) -> float:
        return self.factor * self.base.sigma_0

    @property
    def t_min(self) -> float:
        return self.base.t_min

    @property
    def t_max(self) -> float:
        return self.base.t_max

    @property
    def unit(self) -> float:
        return self.factor * self.base.unit

    @property
    def data_std(self) -> float:
        return self.factor * self.base.data_std

    @property
    def sigma_data(self) -> float:
        return self.factor * self.base.sigma_data

    @property
    def spacing(self) -> str:
        return self.base.spacing

    @property
    def prior(self) -> Prior:
        """c times the base's draws."""
        return Prior(self.factor * self.base.prior.std)

    def f(self, t: Tensor) -> Tensor:
        return self.base.f(t)

    def g(self, t: Tensor) -> Tensor:
        return self.factor * self.base.g(t)

    def alpha(self, t: Tensor) -> Tensor:
        return self.base.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.factor * self.base.sigma(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """The base's less 2 log c."""
        return self.base.log_snr(t) - 2 * math.log(self.factor)

    def levels(self, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma, log_snr = self.base.levels(t)
        return alpha, self.factor * sigma, log_snr - 2 * math.log(self.factor)

    def time_of(self, log_snr: Tensor | float) -> Tensor:
        """Where the base has ``log_snr`` + 2 log c."""
        return self.base.time_of(as_time(log_snr) + 2 * math.log(self.factor))

    def time_beyond(self, log_snr: Tensor | float) -> Tensor:
        return self.base.time_beyond(as_time(log_snr) + 2 * math.log(self.factor))

    def rates(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.base.rates(t)
        return alpha, self.factor * sigma

    def kernel(self, t: Tensor | float, s: Tensor | float) -> tuple[Tensor, Tensor]:
        ratio, std = self.base.kernel(t, s)
        return ratio, self.factor * std
