"""The components of a mixture, all of one kind: what they make of a state."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.exact.law import Values

__all__ = ["Anisotropic", "Components", "Isotropic"]


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
        """Density, score and data prediction at x (b, d)."""
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
        """Density, score and data prediction at x (b, d)."""
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
        """The diagonal of vectors_k diag(variances_k) vectors_k^T."""
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
