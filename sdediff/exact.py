"""Data laws whose score is known in closed form under any linear SDE: the ground that solvers are tested on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.model import ScoreModel
from sdediff.sde import LinearSDE
from sdediff.sde.coefficient import as_time

__all__ = ["Gaussian"]


@dataclass(frozen=True, eq=False)
class Gaussian:
    """x_0 ~ N(mean, covariance), so that x_t ~ N(alpha mean, alpha^2 covariance + sigma^2 I).

    ``mean`` is a number or (d,); ``covariance`` (d, d), a vector of variances (d,) or a number for all.
    """

    mean: Tensor
    covariance: Tensor

    def __init__(self, mean: Tensor | float | list[float], covariance: Tensor | float | list[float] | list[list[float]]) -> None:
        m = torch.as_tensor(mean, dtype=torch.float64)
        c = torch.as_tensor(covariance, dtype=torch.float64)
        d = max(m.shape[0] if m.ndim else 1, c.shape[0] if c.ndim else 1)
        m = m.expand(d)
        c = c if c.ndim == 2 else torch.diag(c.expand(d))
        if c.shape != (d, d) or not torch.allclose(c, c.T):
            raise ValueError(
                f"covariance must be a symmetric ({d}, {d}) matrix for a mean of {d} entries, got shape {tuple(c.shape)}"
            )
        values, vectors = torch.linalg.eigh(c)
        if float(values.min()) < 0:
            raise ValueError(f"covariance must have no negative eigenvalue, got {float(values.min()):.3g}")
        for name, value in (("mean", m), ("covariance", c), ("_values", values), ("_vectors", vectors)):
            object.__setattr__(self, name, value)

    def _variances(self, sde: LinearSDE, t: Tensor) -> Tensor:
        """Eigenvalues of the covariance of x_t, (..., d)."""
        values: Tensor = self._values  # type: ignore[attr-defined]
        return sde.alpha(t)[..., None] ** 2 * values + sde.sigma(t)[..., None] ** 2

    def _rotation(self, x: Tensor) -> Tensor:
        vectors: Tensor = self._vectors  # type: ignore[attr-defined]
        return vectors.to(x.dtype).to(x.device)

    def score(self, sde: LinearSDE, x: Tensor, t: Tensor | float) -> Tensor:
        """grad log p_t(x) for x (B, d)."""
        time = as_time(t)
        q = self._rotation(x)
        centred = (x - (sde.alpha(time)[..., None] * self.mean).to(x)) @ q
        return -(centred / self._variances(sde, time).to(x)) @ q.T

    def log_prob(self, sde: LinearSDE, x: Tensor, t: Tensor | float) -> Tensor:
        """log p_t(x) in nats for x (B, d), (B,)."""
        time = as_time(t)
        variances = self._variances(sde, time).to(x)
        centred = (x - (sde.alpha(time)[..., None] * self.mean).to(x)) @ self._rotation(x)
        return -0.5 * ((centred**2 / variances) + variances.log() + math.log(2 * math.pi)).sum(dim=-1)

    def flow(self, sde: LinearSDE, x: Tensor, t: Tensor | float, s: Tensor | float) -> Tensor:
        """Where the probability flow carries x (B, d) from time t to s.

        Along each eigenvector the distance from the mean scales with the standard deviation of x_t.
        """
        t, s = as_time(t), as_time(s)
        q = self._rotation(x)
        centred = (x - (sde.alpha(t)[..., None] * self.mean).to(x)) @ q
        scaled = centred * (self._variances(sde, s) / self._variances(sde, t)).sqrt().to(x)
        return scaled @ q.T + (sde.alpha(s)[..., None] * self.mean).to(x)

    def moments(self, sde: LinearSDE, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d) of x_t."""
        time = as_time(t)
        alpha, sigma = sde.alpha(time), sde.sigma(time)
        return alpha * self.mean, alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.mean), dtype=torch.float64)

    def model(self, sde: LinearSDE) -> ScoreModel:
        """The exact score as a ScoreModel without a network."""

        def net(x: Tensor, t: Tensor) -> Tensor:
            time = as_time(t)
            return -sde.sigma(time)[:, None].to(x) * self.score(sde, x, time)

        return ScoreModel(net, sde, predicts="noise")
