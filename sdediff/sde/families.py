"""The SDEs of Song et al. 2021, Score-Based Generative Modeling through SDEs (arXiv 2011.13456)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.sde.base import LinearSDE

__all__ = ["VE", "VP", "SubVP"]


def _check_positive(name: str, **values: float) -> None:
    for key, value in values.items():
        if not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ValueError(f"{name}: {key} must be a positive number, got {value!r}")


def _check_range(name: str, T: float, t_min: float) -> None:
    if not 0 <= t_min < T:
        raise ValueError(f"{name}: t_min must lie in [0, T) = [0, {T:g}), got {t_min!r}")


@dataclass(frozen=True)
class VE(LinearSDE):
    """Variance exploding: dx = sigma(t) sqrt(2 log(r) / T) dw, sigma(t) = sigma_min r^(t / T), r = sigma_max / sigma_min.

    alpha = 1. Data carry noise of standard deviation sigma_min at t = 0 (Song et al. 2021, eq. 30 and Appendix C), so that t_min
    is 0. Units: those of the data; sigma_max should be near the largest distance between two data points (NCSNv2, Technique 1).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    T: float = 1.0
    t_min: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_positive("VE", sigma_min=self.sigma_min, sigma_max=self.sigma_max, T=self.T)
        _check_range("VE", self.T, self.t_min)
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"VE: sigma_max must exceed sigma_min, got {self.sigma_max!r} and {self.sigma_min!r}")

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min) / self.T

    def f(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def g(self, t: Tensor) -> Tensor:
        """sigma(t) sqrt(2 log(sigma_max / sigma_min) / T)."""
        return self.sigma(t) * math.sqrt(2 * self._rate)

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """sigma_min (sigma_max / sigma_min)^(t / T)."""
        return self.sigma_min * torch.exp(self._rate * t)

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 log sigma(t)."""
        return -2 * (math.log(self.sigma_min) + self._rate * t)


@dataclass(frozen=True)
class _Linear(LinearSDE):
    """What VP and sub-VP share: beta(t) = beta_min + (beta_max - beta_min) t / T and f = -beta / 2."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    T: float = 1.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        """Check the arguments."""
        name = type(self).__name__
        _check_positive(name, beta_min=self.beta_min, beta_max=self.beta_max, T=self.T, t_min=self.t_min)
        _check_range(name, self.T, self.t_min)

    def beta(self, t: Tensor) -> Tensor:
        """Noise rate, 1 / time."""
        return self.beta_min + (self.beta_max - self.beta_min) * t / self.T

    def integral(self, t: Tensor) -> Tensor:
        """The integral of beta from 0 to t."""
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t / self.T)

    def f(self, t: Tensor) -> Tensor:
        """-beta(t) / 2."""
        return -0.5 * self.beta(t)

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-integral / 2)."""
        return torch.exp(-0.5 * self.integral(t))


@dataclass(frozen=True)
class VP(_Linear):
    """Variance preserving: dx = -beta(t) / 2 x dt + sqrt(beta(t)) dw (Song et al. 2021, eq. 11 and 32, 33), the limit of DDPM.

    alpha^2 = exp(-B), sigma^2 = 1 - exp(-B), B the integral of beta from 0 to t.
    """

    def g(self, t: Tensor) -> Tensor:
        """sqrt(beta(t))."""
        return self.beta(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - exp(-B))."""
        return (-torch.expm1(-self.integral(t))).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """-log(exp(B) - 1)."""
        return -torch.expm1(self.integral(t)).log()


@dataclass(frozen=True)
class SubVP(_Linear):
    """Sub-VP: dx = -beta(t) / 2 x dt + sqrt(beta(t) (1 - exp(-2 B))) dw (Song et al. 2021, eq. 12 and 29).

    alpha^2 = exp(-B), sigma = 1 - exp(-B), B the integral of beta from 0 to t: less noise than VP at every t.
    """

    def g(self, t: Tensor) -> Tensor:
        """sqrt(beta(t) (1 - exp(-2 B)))."""
        return (self.beta(t) * -torch.expm1(-2 * self.integral(t))).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        """1 - exp(-B)."""
        return -torch.expm1(-self.integral(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """-B - 2 log(1 - exp(-B))."""
        integral = self.integral(t)
        return -integral - 2 * (-torch.expm1(-integral)).log()
