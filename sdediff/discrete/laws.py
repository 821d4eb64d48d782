"""Laws of one coordinate: what the kernels, marginals and posteriors of chains are.

A law treats every coordinate of a state (B, *event) by itself. It has ``mean`` and ``variance``,
``from_noise(z)``, the draw that a standard normal z of the states' shape becomes, and
``log_prob(y)``, the log-density of each coordinate (of a `Binary`, the log-probability). Those that
have ``divergence(other)``, KL(law || other) of each coordinate, give a chain its variational bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from scipy import special
from torch import Tensor

from sdediff.solvers.arithmetic import Number

__all__ = ["Beta", "Binary", "Gamma", "Gaussian", "Law", "Mixture"]


class Law(Protocol):
    """A law of independent coordinates."""

    @property
    def mean(self) -> Tensor:
        """Of each coordinate, (B, *event)."""

    @property
    def variance(self) -> Number:
        """Of each coordinate, a number or shaped so that it multiplies a state."""

    def from_noise(self, z: Tensor) -> Tensor:
        """The draw that standard normals z (B, *event) become."""

    def log_prob(self, y: Tensor) -> Tensor:
        """Of each coordinate, (B, *event), in nats."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, std^2)."""

    mean: Tensor
    std: Number

    @property
    def variance(self) -> Number:
        """The variance of each coordinate."""
        return self.std**2

    def from_noise(self, z: Tensor) -> Tensor:
        """The draw that standard normals z (B, *event) become."""
        return self.mean + self.std * z

    def log_prob(self, y: Tensor) -> Tensor:
        """The log-density of each coordinate at y (B, *event), in nats."""
        std = torch.as_tensor(self.std, dtype=y.dtype, device=y.device)
        return -0.5 * ((y - self.mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)

    def divergence(self, other: Gaussian) -> Tensor:
        """KL(self || other) of each coordinate in nats."""
        there = torch.as_tensor(other.std, dtype=self.mean.dtype, device=self.mean.device)
        ratio, off = (self.std / there) ** 2, (self.mean - other.mean) / there
        return 0.5 * (ratio - 1 - torch.as_tensor(ratio).log() + off.square())


@dataclass(frozen=True, eq=False)
class Binary:
    """1 with the probability (1 + mean) / 2, else -1. A mean beyond [-1, 1] counts as the nearer
    end.
    """

    mean: Tensor

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate."""
        return 1 - self.mean.clamp(-1, 1).square()

    def from_noise(self, z: Tensor) -> Tensor:
        """1 where Phi(z) lies in the upper (1 + mean) / 2."""
        up = torch.special.ndtr(-z.double()) < 0.5 * (1 + self.mean.double())
        return torch.where(up, 1.0, -1.0).to(z.dtype)

    def log_prob(self, y: Tensor) -> Tensor:
        """The log-probability of each coordinate at y (B, *event), in nats."""
        return (0.5 * (1 + self.mean.clamp(-1, 1) * y)).log()

    def divergence(self, other: Binary) -> Tensor:
        """KL(self || other) of each coordinate in nats."""
        up, there = (0.5 * (1 + law.mean.clamp(-1, 1)) for law in (self, other))
        sides = ((up, there), (1 - up, 1 - there))
        return sum((torch.xlogy(p, p) - torch.xlogy(p, q) for p, q in sides), torch.zeros_like(up))


@dataclass(frozen=True, eq=False)
class Gamma:
    """start + scale G, G of the Gamma law with this shape and the scale 1."""

    start: Tensor
    scale: Number
    shape: Number

    @property
    def mean(self) -> Tensor:
        """The mean of each coordinate, (B, *event)."""
        return self.start + self.scale * self.shape

    @property
    def variance(self) -> Number:
        """The variance of each coordinate."""
        return self.scale**2 * self.shape

    def from_noise(self, z: Tensor) -> Tensor:
        """The quantile at Phi(z)."""
        return self.start + self.scale * _quantile("gammaincinv", "gammainccinv", z, self.shape)

    def log_prob(self, y: Tensor) -> Tensor:
        """The log-density of each coordinate at y (B, *event), in nats."""
        shape = torch.as_tensor(self.shape, dtype=y.dtype, device=y.device)
        scale = torch.as_tensor(self.scale, dtype=y.dtype, device=y.device)
        g = (y - self.start) / scale
        inside = torch.xlogy(shape - 1, g) - g - torch.lgamma(shape) - scale.log()
        return torch.where(g > 0, inside, -math.inf)


@dataclass(frozen=True, eq=False)
class Beta:
    """start + width B, B of the Beta law of density b^(first - 1) (1 - b)^(second - 1) / B(first,
    second), 0 < b < 1. With ``first`` 0, B is 0.
    """

    start: Tensor
    width: Tensor
    first: Number
    second: Number

    @property
    def mean(self) -> Tensor:
        """The mean of each coordinate, (B, *event)."""
        return self.start + self.width * (self.first / (self.first + self.second))

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate."""
        total = self.first + self.second
        return self.width**2 * (self.first * self.second / (total**2 * (total + 1)))

    def from_noise(self, z: Tensor) -> Tensor:
        """The quantile at Phi(z)."""
        first = torch.as_tensor(self.first)
        inner = _quantile("betaincinv", "betainccinv", z, first.clamp(min=1e-300), self.second)
        point = torch.as_tensor(first > 0).to(z.device)
        return self.start + self.width * torch.where(point, inner, 0.0)

    def log_prob(self, y: Tensor) -> Tensor:
        """The log-density of each coordinate at y (B, *event), in nats."""
        a, b = (
            torch.as_tensor(n, dtype=y.dtype, device=y.device) for n in (self.first, self.second)
        )
        share = (y - self.start) / self.width
        constant = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b) - self.width.log()
        inside = torch.xlogy(a - 1, share) + torch.xlogy(b - 1, 1 - share) + constant
        return torch.where((share > 0) & (share < 1), inside, -math.inf)


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of Gaussians N(means_k, stds_k^2) with the weights exp(log_weights_k), k in the
    last dimension: (B, *event, K).
    """

    means: Tensor
    stds: Tensor
    log_weights: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean of each coordinate, (B, *event)."""
        return (self.log_weights.exp() * self.means).sum(dim=-1)

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate."""
        spread = (self.means - self.mean[..., None]).square() + self.stds.square()
        return (self.log_weights.exp() * spread).sum(dim=-1)

    def from_noise(self, z: Tensor) -> Tensor:
        """Phi(z) chooses the component, and where it lies in that one's share is uniform again: it
        is the component's own quantile.
        """
        weights = self.log_weights.double().exp().expand(*z.shape, -1)
        edges = weights.cumsum(dim=-1)
        u = torch.special.ndtr(z.double())[..., None] * edges[..., -1:]
        k = (u >= edges).sum(dim=-1, keepdim=True).clamp(max=edges.shape[-1] - 1)
        own, end = weights.gather(-1, k), edges.gather(-1, k)
        inner = torch.special.ndtri(((u - end) / own + 1).clamp(1e-16, 1 - 1e-16))
        mean, std = (
            each.double().expand_as(weights).gather(-1, k) for each in (self.means, self.stds)
        )
        drawn: Tensor = (mean + std * inner)[..., 0]
        return drawn.to(z.dtype)

    def log_prob(self, y: Tensor) -> Tensor:
        """The log-density of each coordinate at y (B, *event), in nats."""
        each = Gaussian(self.means, self.stds).log_prob(y[..., None])
        total: Tensor = torch.logsumexp(each + self.log_weights, dim=-1)
        return total

    def divergence(self, other: Mixture) -> Tensor:
        """KL(self || other) of each coordinate in nats: the mean of log self - log other over each
        component, by Gauss-Hermite quadrature. There is no closed form.
        """
        here, there = (
            Mixture(law.means[..., None, :], law.stds[..., None, :], law.log_weights[..., None, :])
            for law in (self, other)
        )
        shares = self.log_weights.exp()
        total = torch.zeros_like(self.means[..., 0])
        for node, weight in zip(*_HERMITE, strict=True):
            y = self.means + node * self.stds  # (B, *event, K)
            total = total + weight * (shares * (here.log_prob(y) - there.log_prob(y))).sum(dim=-1)
        return total


_NODES: Final = 48


def _hermite() -> tuple[list[float], list[float]]:
    """Nodes, and weights of sum 1, of the means under a standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return nodes.tolist(), (weights / weights.sum()).tolist()


_HERMITE: Final = _hermite()


def _quantile(lower: str, upper: str, z: Tensor, *parameters: Number) -> Tensor:
    """SciPy's inverse ``lower`` at Phi(z), or ``upper`` at Phi(-z) where z > 0, so that neither
    tail is rounded away. Computed on the host in float64.
    """
    host = z.detach().cpu().double()
    given = [torch.as_tensor(each).detach().cpu().double().numpy() for each in parameters]
    tail = torch.special.ndtr(-host.abs()).numpy()
    sides: list[Any] = [getattr(special, name)(*given, tail) for name in (lower, upper)]
    low, high = map(torch.as_tensor, sides)
    found: Tensor = torch.where(host > 0, high, low)
    return found.to(z.dtype).to(z.device)
