"""Mixtures of Gaussians; with standard deviations of 0, a finite data set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor

from sdediff.exact.components import Anisotropic, Components, Isotropic
from sdediff.exact.law import Law, Values, numbers
from sdediff.exact.measurement import Measurement, condition
from sdediff.exact.spectrum import eigen

__all__ = ["GaussianMixture"]

_CHUNK: Final = 2**22
_LARGEST: Final = 2**28


@dataclass(frozen=True, eq=False, init=False, repr=False)
class GaussianMixture(Law):
    """x_0 ~ sum_k weights_k N(means_k, C_k), so that x_t ~ sum_k weights_k N(alpha means_k, S_k),
    S_k = alpha^2 C_k + sigma^2 I.

    ``means`` is (K, *event). ``stds`` is a number or (K,) for C_k = std_k^2 I, or (K, *event) for
    diagonal C_k; full matrices (K, d, d) on the flattened event go into ``covariances`` instead. A
    std of 0 is a point: with ``stds=0`` the law is the data set ``means``. ``weights`` (K,) sum to
    1; None: all are equal. With r_k the probability of k given x,

        score = -sum_k r_k S_k^{-1} (x - alpha m_k),    E[x_0 | x] = sum_k r_k (m_k + alpha C_k
        S_k^{-1} (x - alpha m_k)).

    A mixture has no `flow`: its probability flow is not known in closed form.
    """

    _event: torch.Size
    log_weights: Tensor
    components: Components

    def __init__(
        self, means: Any, stds: Any = None, weights: Any = None, *, covariances: Any = None
    ) -> None:
        m = numbers("means", means)
        if m.ndim < 1 or not m.numel():
            raise ValueError(
                "means must be (K, *event) with K >= 1, one row for each component, got shape "
                f"{tuple(m.shape)}"
            )
        m = m[:, None] if m.ndim == 1 else m
        if (stds is None) == (covariances is None):
            raise ValueError(
                "pass either stds (a number, (K,) or (K, *event)) or covariances (K, d, d); "
                "stds=0 makes a data set of the means"
            )
        parts = _isotropic_or_diagonal(m, stds) if covariances is None else _full(m, covariances)
        self._set(m.shape[1:], _log_weights(weights, len(m)), parts)

    def _set(self, event: torch.Size, log_weights: Tensor, components: Components) -> None:
        for name, value in (
            ("_event", event),
            ("log_weights", log_weights),
            ("components", components),
        ):
            object.__setattr__(self, name, value)

    @property
    def event(self) -> torch.Size:
        return self._event

    @property
    def means(self) -> Tensor:
        """(K, *event)."""
        return self.components.means.reshape(-1, *self.event)

    @property
    def weights(self) -> Tensor:
        """(K,), their sum is 1."""
        return self.log_weights.exp()

    @property
    def least_variance(self) -> float:  # type: ignore[override]
        """The smallest eigenvalue of any component's covariance."""
        return float(self.components.variances.min())

    @property
    def data_std(self) -> float:
        """From the components' variances and the distances of their means."""
        means = self.components.means
        mean = self.weights @ means
        return self._spread(
            mean, self.weights @ (self.components.diagonals() + (means - mean).square())
        )

    def evaluate(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Values:
        """Density, score and data prediction at x (B, d), as many rows at a time as fit into 32 MB
        a tensor.
        """
        rows = max(1, _CHUNK // self.components.width)
        parts = [
            self.components.evaluate(
                x[i : i + rows],
                self.log_weights,
                *(c[i : i + rows] if c.ndim else c for c in (alpha, sigma)),
            )
            for i in range(0, max(1, len(x)), rows)
        ]
        return (
            parts[0]
            if len(parts) == 1
            else Values(*(torch.cat(column) for column in zip(*parts, strict=True)))
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """A component by its weight, then a draw from it."""
        edges = self.weights.cumsum(dim=0)
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        k = torch.searchsorted(edges / edges[-1], u, right=True)
        z = torch.randn(count, self.event.numel(), generator=generator, dtype=torch.float64)
        return self.components.means[k] + self.components.spread(z, k)

    def data_moments(self) -> tuple[Tensor, Tensor]:
        """mean = sum_k w_k m_k and sum_k w_k (C_k + (m_k - mean) (m_k - mean)^T)."""
        means, variances = self.components.means, self.components.variances
        mean = self.weights @ means
        apart = self.weights.sqrt()[:, None] * (means - mean)
        if variances.ndim == 1:
            within = (self.weights @ variances) * torch.eye(len(mean), dtype=torch.float64)
        else:
            within = sum(
                (
                    w * root @ root.T
                    for w, root in zip(self.weights, self.components.roots(), strict=True)
                ),
                torch.zeros(()),
            )
        return mean, apart.T @ apart + within

    def posterior(self, H: Any, y: Any, noise_std: Any) -> Self:
        """The law of x_0 given y = H x_0 + noise_std n, n ~ N(0, I); a mixture of the same kind.

        Each component is conditioned, and its weight is as w_k N(y; H m_k, H C_k H^T +
        noise_std^2). ``H`` (m, d) acts on flat x_0, ``y`` is (m,), ``noise_std`` a positive number
        or (m,). The new covariances are full; points (all stds 0) stay points.
        """
        means, variances = self.components.means, self.components.variances
        points = variances.ndim == 1 and not bool(variances.any())
        if not points and means.numel() * means.shape[1] > _LARGEST:
            raise ValueError(
                f"the posterior would need {len(means)} covariances of shape ({means.shape[1]}, "
                f"{means.shape[1]}), more than 2 GB; "
                "take fewer components, or points (stds=0)"
            )
        given = condition(
            means, self.components.roots(), Measurement.of(H, y, noise_std, means.shape[1])
        )
        parts = (
            self.components if points else Anisotropic(given.mean, given.stds.square(), given.basis)
        )
        law = object.__new__(type(self))
        law._set(self.event, torch.log_softmax(self.log_weights + given.log_evidence, dim=0), parts)
        return law


def _log_weights(weights: Any, count: int) -> Tensor:
    if weights is None:
        return torch.full((count,), -math.log(count), dtype=torch.float64)
    w = numbers("weights", weights, at_least=0)
    if w.shape != (count,):
        raise ValueError(
            f"weights must be ({count},), one for each component, got shape {tuple(w.shape)}"
        )
    if abs(float(w.sum()) - 1) > 1e-6:
        raise ValueError(
            f"weights must sum to 1, got a sum of {float(w.sum()):.9g}; pass weights / "
            "weights.sum()"
        )
    return (w / w.sum()).log()


def _isotropic_or_diagonal(means: Tensor, stds: Any) -> Components:
    s = numbers("stds", stds, at_least=0)
    flat = means.reshape(len(means), -1)
    if s.shape in ((), (len(means),)):
        return Isotropic(flat, s.square().expand(len(means)))
    if s.shape == means.shape:
        return Anisotropic(flat, s.square().reshape(flat.shape))
    raise ValueError(
        f"stds must be a number, ({len(means)},) or the shape of the means {tuple(means.shape)}, "
        f"got shape {tuple(s.shape)}; "
        "full matrices go into covariances="
    )


def _full(means: Tensor, covariances: Any) -> Components:
    c = numbers("covariances", covariances)
    flat = means.reshape(len(means), -1)
    count, d = flat.shape
    if c.shape != (count, d, d):
        raise ValueError(
            f"covariances must be ({count}, {d}, {d}), one symmetric matrix for each component, "
            f"got shape {tuple(c.shape)}"
        )
    vectors, values = eigen("covariances", c)
    return Anisotropic(flat, values, vectors)
