"""The SDEs that ship: each gives what has a closed form, the rest is derived."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.sde.base import Prior, derived
from sdediff.sde.linear import LinearSDE
from sdediff.solvers.given import Positive

__all__ = ["EDM", "VE", "VP", "Cosine", "RectifiedFlow", "SubVP"]


class _Exploding(LinearSDE):
    """Data stay as they are: f = 0 and alpha = 1."""

    @derived
    def f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    @derived
    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class VE(_Exploding):
    """The variance exploding SDE,

        dx = sigma(t) sqrt(2 log(r) / T) dw,    sigma(t) = sigma_min r^(t / T),
        r = sigma_max / sigma_min,

    with alpha = 1. At t = 0 data have noise of standard deviation sigma_min already (Song et al.
    2021, arXiv 2011.13456, eq. 30 and Appendix C), so t_min is 0. ``sigma_min`` and ``sigma_max``
    are in the units of the data; sigma_max should be near the largest distance between two data
    points (NCSNv2, Technique 1).
    """

    sigma_min: Positive = 0.01
    sigma_max: Positive = 50.0
    T: Positive = 1.0
    t_min: float = 0.0

    def __post_init__(self) -> None:
        if self.sigma_max <= self.sigma_min:
            raise ValueError(
                f"VE: sigma_max must exceed sigma_min, got {self.sigma_max!r} and "
                f"{self.sigma_min!r}"
            )

    @property
    def sigma_0(self) -> float:
        return self.sigma_min

    @property
    def data_std(self) -> float:
        """sqrt(sigma_min sigma_max / 0.5): 1 for the published values."""
        return math.sqrt(self.sigma_min * self.sigma_max / 0.5)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min) / self.T

    @derived
    def g(self, t: Tensor) -> Tensor:
        """sigma(t) sqrt(2 log(sigma_max / sigma_min) / T)."""
        return self.sigma(t) * math.sqrt(2 * self._rate)

    @derived
    def sigma(self, t: Tensor) -> Tensor:
        """sigma_min (sigma_max / sigma_min)^(t / T)."""
        return self.sigma_min * torch.exp(self._rate * t)

    @derived
    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (math.log(self.sigma_min) + self._rate * t)

    def invert(self, log_snr: Tensor) -> Tensor:
        """T (-log_snr / 2 - log sigma_min) / log(sigma_max / sigma_min), after T too."""
        return ((-0.5 * log_snr - math.log(self.sigma_min)) / self._rate).clamp(min=0)


@dataclass(frozen=True)
class _Linear(LinearSDE):
    """What VP and sub-VP share (Song et al. 2021): beta(t) = beta_min + (beta_max - beta_min) t / T
    and f = -beta / 2.
    """

    beta_min: Positive = 0.1
    beta_max: Positive = 20.0
    T: Positive = 1.0
    t_min: Positive = 1e-3

    def beta(self, t: Tensor) -> Tensor:
        """Noise rate, 1 / time."""
        return self.beta_min + (self.beta_max - self.beta_min) / self.T * t

    def integral(self, t: Tensor) -> Tensor:
        """The integral of beta from 0 to t."""
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) / self.T * t)

    def when(self, integral: Tensor) -> Tensor:
        """The time at which the integral of beta has that value."""
        curve = 2 * (self.beta_max - self.beta_min) / self.T
        return (
            2 * integral / (self.beta_min + (self.beta_min**2 + curve * integral).sqrt())
        ).clamp(0, self.T)

    @derived
    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    @derived
    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.integral(t))


@dataclass(frozen=True)
class VP(_Linear):
    """The variance preserving SDE, the limit of DDPM for many steps:

        dx = -beta(t) / 2 x dt + sqrt(beta(t)) dw,

    with alpha^2 = exp(-B) and sigma^2 = 1 - exp(-B), where B is the integral of beta from 0 to t.
    beta rises from ``beta_min`` at t = 0 to ``beta_max`` at t = T on a line. Data should have a
    standard deviation of about 1, or a `Normalizer`. (Song et al. 2021, arXiv 2011.13456, eq. 11,
    32 and 33.)
    """

    @derived
    def g(self, t: Tensor) -> Tensor:
        return self.beta(t).sqrt()

    @derived
    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(-self.integral(t))).sqrt()

    @derived
    def log_snr(self, t: Tensor) -> Tensor:
        """-B - log(1 - exp(-B))."""
        integral = self.integral(t)
        return -integral - (-torch.expm1(-integral)).log()

    def invert(self, log_snr: Tensor) -> Tensor:
        """Where B = log(1 + exp(-log_snr))."""
        # logaddexp rounds an entry by its place in the tensor
        return self.when(torch.log1p(torch.exp(-log_snr)))


@dataclass(frozen=True)
class SubVP(_Linear):
    """Sub-VP: dx = -beta(t) / 2 x dt + sqrt(beta(t) (1 - exp(-2 B))) dw (Song et al. 2021, eq. 12
    and 29).

    alpha^2 = exp(-B), sigma = 1 - exp(-B), B the integral of beta from 0 to t: less noise than VP
    at every t. The prior is N(0, I), as published: data of variance 1 have variance 1 - exp(-B) +
    exp(-2 B) at T, which is 1 - 4.3e-5 for the published betas.
    """

    data_std = 1.0
    prior = Prior(1.0)

    @derived
    def g(self, t: Tensor) -> Tensor:
        """sqrt(beta(t) (1 - exp(-2 B)))."""
        return (self.beta(t) * -torch.expm1(-2 * self.integral(t))).sqrt()

    @derived
    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.integral(t))

    @derived
    def log_snr(self, t: Tensor) -> Tensor:
        """-B - 2 log(1 - exp(-B))."""
        integral = self.integral(t)
        return -integral - 2 * (-torch.expm1(-integral)).log()

    def invert(self, log_snr: Tensor) -> Tensor:
        """Where B = 2 arsinh(exp(-log_snr / 2) / 2)."""
        return self.when(2 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr)))


@dataclass(frozen=True)
class Cosine(LinearSDE):
    """The cosine schedule in continuous time: alpha = cos(a) / cos(a_0), sigma^2 = 1 - alpha^2
    (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17).

    a goes from a_0 = pi / 2 offset / (1 + offset) to pi / 2, so that alpha(1) = 0: no signal is
    left at T = 1 (zero terminal SNR), where f is infinite. By default sampling starts at t_max with
    log-SNR -19.9. With ``t_max=1.0`` it starts at alpha = 0 itself: the first step is then of first
    order in data form (`DDIM`, `Ancestral`), from a network that predicts data, v or flow.
    """

    offset: Positive = 0.008
    t_min: Positive = 1e-3
    t_max: Positive = 1 - 3e-5

    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor, float]:
        """(a, pi / 2 - a, a_0), each without cancellation."""
        rate = math.pi / 2 / (1 + self.offset)
        return rate * (t + self.offset), rate * (1 - t), rate * self.offset

    @derived
    def f(self, t: Tensor) -> Tensor:
        angle, rest, _ = self._angles(t)
        return -math.pi / 2 / (1 + self.offset) * torch.sin(angle) / torch.sin(rest)

    @derived
    def g(self, t: Tensor) -> Tensor:
        """sqrt(-2 f), as alpha^2 + sigma^2 = 1."""
        return (-2 * self.f(t)).sqrt()

    @derived
    def alpha(self, t: Tensor) -> Tensor:
        _, rest, start = self._angles(t)
        return torch.sin(rest) / math.cos(start)

    @derived
    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2) = sqrt(sin(a - a_0) sin(a + a_0)) / cos(a_0)."""
        angle, _, start = self._angles(t)
        return (
            torch.sin(math.pi / 2 / (1 + self.offset) * t) * torch.sin(angle + start)
        ).sqrt() / math.cos(start)

    def invert(self, log_snr: Tensor) -> Tensor:
        """From tan a, near t = 0 from sin(a - a_0) sin(a + a_0) = sigma^2 cos(a_0)^2, which does
        not cancel there.
        """
        rate = math.pi / 2 / (1 + self.offset)
        start = math.pi / 2 * self.offset / (1 + self.offset)
        height = (1 / (1 + torch.exp(-log_snr))).sqrt() * math.cos(start)
        noise = 1 / (1 + torch.exp(log_snr)) * math.cos(start) ** 2
        rest = (height / (noise + math.sin(start) ** 2).sqrt()).arctan()
        early = torch.asin((noise / torch.cos(rest - start)).clamp(max=1)) / rate
        late = 1 - rest / rate
        return torch.where(late < 0.5, early, late).clamp(0, self.T)


@dataclass(frozen=True)
class EDM(_Exploding):
    """dx = sqrt(2 t) dw, sigma(t) = t, alpha = 1: time is the standard deviation of the noise
    (Karras et al. 2022, arXiv 2206.00364, Table 1), from sigma_max = T down to sigma_min = t_min.
    """

    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    def __post_init__(self) -> None:
        if self.sigma_max <= self.sigma_min:
            raise ValueError(
                f"EDM: sigma_max must exceed sigma_min, got {self.sigma_max!r} and "
                f"{self.sigma_min!r}"
            )

    @property
    def T(self) -> float:
        return self.sigma_max

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def sigma_data(self) -> float:
        """The published 0.5 for the published sigma_min and sigma_max, in proportion to
        sqrt(sigma_min sigma_max) for others.
        """
        return 1.25 * math.sqrt(self.sigma_min * self.sigma_max)

    @derived
    def g(self, t: Tensor) -> Tensor:
        return (2 * t).sqrt()

    @derived
    def sigma(self, t: Tensor) -> Tensor:
        return t

    def invert(self, log_snr: Tensor) -> Tensor:
        """exp(-log_snr / 2), after T too."""
        return torch.exp(-0.5 * log_snr)


@dataclass(frozen=True)
class RectifiedFlow(LinearSDE):
    """alpha = 1 - t, sigma = t: straight lines from data to noise (Liu et al. 2023, arXiv
    2209.03003; Lipman et al. 2023, arXiv 2210.02747), whose SDE is dx = -x / (1 - t) dt + sqrt(2 t
    / (1 - t)) dw.

    f is infinite at T = 1. By default sampling starts at t_max with log-SNR -20; with ``t_max=1.0``
    it starts at alpha = 0 itself, as `Cosine` says, or by a Runge-Kutta method in t.
    """

    t_min: Positive = 1e-3
    t_max: Positive = 1 / (1 + math.exp(-10))

    data_std = 1.0

    @derived
    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    @derived
    def sigma(self, t: Tensor) -> Tensor:
        return t

    def invert(self, log_snr: Tensor) -> Tensor:
        """1 / (1 + exp(log_snr / 2))."""
        return 1 / (1 + torch.exp(0.5 * log_snr))
