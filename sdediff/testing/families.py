"""SDEs as users write them, with few parameters and readable reprs: what the strategies draw from
beside the built-in ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.sde import LinearSDE

__all__ = ["ByLevels", "ByRates", "BySchedule", "Preserving"]


@dataclass(frozen=True)
class Preserving(LinearSDE):
    """f = -beta / 2 and g = sqrt(beta), beta = low + (high - low) (t / T)^power: unit variance, all
    else by quadrature.
    """

    low: float = 0.1
    high: float = 20.0
    power: float = 2.0
    T: float = 1.0

    def beta(self, t: Tensor) -> Tensor:
        """Noise rate."""
        return self.low + (self.high - self.low) * (t / self.T) ** self.power

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def g(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()


@dataclass(frozen=True)
class ByRates(LinearSDE):
    """f = -pull t / T and g = low + (high - low) t / T, of no special variance."""

    pull: float = 0.0
    low: float = 1.0
    high: float = 5.0
    sigma_0: float = 0.0
    T: float = 1.0

    def f(self, t: Tensor) -> Tensor:
        return -self.pull * t / self.T

    def g(self, t: Tensor) -> Tensor:
        """low + (high - low) t / T."""
        return self.low + (self.high - self.low) * t / self.T


@dataclass(frozen=True)
class BySchedule(LinearSDE):
    """alpha = 1 / (1 + fall (t / T)^2) and sigma = top (t / T)^power; f and g by autograd."""

    fall: float = 0.0
    top: float = 1.0
    power: float = 1.0
    T: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        """1 / (1 + fall (t / T)^2)."""
        return 1 / (1 + self.fall * (t / self.T) ** 2)

    def sigma(self, t: Tensor) -> Tensor:
        return self.top * (t / self.T) ** self.power


@dataclass(frozen=True)
class ByLevels(LinearSDE):
    """alpha = exp(-fall t / T), log_snr from first to last as t / T + bend sin(pi t / T) / pi; with
    noise on the data.
    """

    fall: float = 0.0
    first: float = 8.0
    last: float = -6.0
    bend: float = 0.0
    T: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.fall * t / self.T)

    def log_snr(self, t: Tensor) -> Tensor:
        """It falls from first to last."""
        u = t / self.T
        return self.first - (self.first - self.last) * (
            u + self.bend * torch.sin(torch.pi * u) / torch.pi
        )
