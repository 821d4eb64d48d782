"""Mixtures of Gaussians, whose components are all of one kind; with standard deviations of 0, a
finite data set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Self

import torch
from torch import Tensor

from sdediff.exact.law import Law, Measurement, Values, condition, eigen, numbers
from sdediff.solvers.given import Numbers

__all__ = [
    "Anisotropic",
    "Components",
    "GaussianMixture",
    "Isotropic",
]


@dataclass(frozen=True, eq=False)
class Components:
    """K Gaussians N(means_k, C_k), all of one kind."""

    means: Tensor
    """(K, d)."""
    variances: Tensor
    """Eigenvalues of the covariances, (K,) or (K, d)."""

    @property
    def width(self) -> int:
        """Numbers that `evaluate` needs for a row."""
        raise NotImplementedError

    def evaluate(self, x: Tensor, log_weights: Tensor, alpha: Tensor, sigma: Tensor) -> Values:
        """What the mixture is at states x (b, d), for alpha and sigma () or (b, 1)."""
        raise NotImplementedError

    def roots(self) -> Tensor:
        """(K, d, j) with C_k = root_k root_k^T."""
        raise NotImplementedError

    def diagonals(self) -> Tensor:
        """The variance of each coordinate in each component, (K, d) or (K, 1)."""
        raise NotImplementedError

    def spread(self, z: Tensor, k: Tensor) -> Tensor:
        """A square root of C_k times z, one k (n,) for each row of z (n, d)."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Isotropic(Components):
    """C_k = variances_k I.

    No (b, K, d) tensor is formed. With the nearest mean m_* and y = x - alpha m_*, which is as
    small as any x - alpha m_k, |x - alpha m_k|^2 = |y|^2 - 2 alpha (m_k - m_*) y + alpha^2 |m_k -
    m_*|^2, whose terms do not cancel as |x|^2 - 2 alpha m_k x + alpha^2 |m_k|^2 would at a small
    sigma.
    """

    @property
    def width(self) -> int:
        return len(self.means)

    def evaluate(self, x: Tensor, log_weights: Tensor, alpha: Tensor, sigma: Tensor) -> Values:
        means, variances = self.means.to(x), self.variances.to(x)
        centre = means.mean(dim=0)
        m = means - centre
        with torch.no_grad():
            nearest = (
                0.5 * alpha**2 * m.square().sum(dim=1) - alpha * (x - alpha * centre) @ m.T
            ).argmin(dim=1)
            # (b, K)
            gap = torch.cdist(m[nearest], m, compute_mode="donot_use_mm_for_euclid_dist").square()
        y, base = x - alpha * means[nearest], m[nearest]
        along = y @ m.T - (y * base).sum(dim=1, keepdim=True)
        squares = y.square().sum(dim=1, keepdim=True) - 2 * alpha * along + alpha**2 * gap
        total = alpha**2 * variances + sigma**2  # (K,) or (b, K)
        logs = log_weights.to(x) - 0.5 * (
            squares / total + x.shape[1] * (2 * math.pi * total).log()
        )
        r = torch.softmax(logs, dim=1)

        def pulled(c: Tensor) -> Tensor:
            """Sum over k of c_k (x - alpha m_k)."""
            every = c.sum(dim=1, keepdim=True)
            return every * y - alpha * (c @ m - every * base)

        return Values(
            torch.logsumexp(logs, dim=1),
            -pulled(r / total),
            r @ means + pulled(r * (alpha * variances / total)),
        )

    def roots(self) -> Tensor:
        """sqrt(variance_k) I; one column for points."""
        if not bool(self.variances.any()):
            return torch.zeros_like(self.means)[..., None]
        return self.variances.sqrt()[:, None, None] * torch.eye(
            self.means.shape[1], dtype=torch.float64
        )

    def diagonals(self) -> Tensor:
        return self.variances[:, None]

    def spread(self, z: Tensor, k: Tensor) -> Tensor:
        return self.variances[k].sqrt()[:, None] * z


@dataclass(frozen=True, eq=False)
class Anisotropic(Components):
    """C_k = vectors_k diag(variances_k) vectors_k^T with orthonormal vectors (K, d, d), or none of
    them: diagonal.
    """

    vectors: Tensor | None = None

    @property
    def width(self) -> int:
        return self.means.numel()

    def evaluate(self, x: Tensor, log_weights: Tensor, alpha: Tensor, sigma: Tensor) -> Values:
        means, variances = self.means.to(x), self.variances.to(x)
        vectors = None if self.vectors is None else self.vectors.to(x)
        alpha, sigma = alpha[..., None], sigma[..., None]
        p = x[:, None] - alpha * means  # (b, K, d)
        p = p if vectors is None else torch.einsum("bkd,kde->bke", p, vectors)
        total = alpha**2 * variances + sigma**2
        u = p / total
        logs = log_weights.to(x) - 0.5 * (p * u + (2 * math.pi * total).log()).sum(dim=2)
        r = torch.softmax(logs, dim=1)

        def summed(c: Tensor) -> Tensor:
            """Sum over k of vectors_k c_k."""
            return c.sum(dim=1) if vectors is None else torch.einsum("bke,kde->bd", c, vectors)

        ru = r[..., None] * u
        return Values(
            torch.logsumexp(logs, dim=1), -summed(ru), r @ means + summed(alpha * variances * ru)
        )

    def roots(self) -> Tensor:
        stds = self.variances.sqrt()
        return torch.diag_embed(stds) if self.vectors is None else self.vectors * stds[:, None]

    def diagonals(self) -> Tensor:
        return (
            self.variances
            if self.vectors is None
            else (self.vectors.square() @ self.variances[..., None])[..., 0]
        )

    def spread(self, z: Tensor, k: Tensor) -> Tensor:
        out = self.variances[k].sqrt() * z
        if self.vectors is not None:
            for index in k.unique().tolist():
                out[k == index] = out[k == index] @ self.vectors[index].T
        return out


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
        self,
        means: Numbers,
        stds: Numbers | None = None,
        weights: Numbers | None = None,
        *,
        covariances: Numbers | None = None,
    ) -> None:
        m = numbers("means", means)
        if m.ndim < 1 or not m.numel():
            raise ValueError(
                "means must be (K, *event) with K >= 1, one row for each component, got shape "
                f"{tuple(m.shape)}"
            )
        m = m[:, None] if m.ndim == 1 else m
        if stds is not None and covariances is None:
            parts = _isotropic_or_diagonal(m, stds)
        elif covariances is not None and stds is None:
            parts = _full(m, covariances)
        else:
            raise ValueError(
                "pass either stds (a number, (K,) or (K, *event)) or covariances (K, d, d); "
                "stds=0 makes a data set of the means"
            )
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
    def least_variance(self) -> float:
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

    def posterior(self, H: Numbers, y: Numbers, noise_std: Numbers) -> Self:
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


def _log_weights(weights: Numbers | None, count: int) -> Tensor:
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


def _isotropic_or_diagonal(means: Tensor, stds: Numbers) -> Components:
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


def _full(means: Tensor, covariances: Numbers) -> Components:
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
