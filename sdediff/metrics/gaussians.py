"""Frechet distance between Gaussians, and moments of features that come batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdediff.metrics.measured import GROUPS, Jackknife, Measured, Reference
from sdediff.metrics.samples import accumulator, check_sample

__all__ = ["Moments", "gaussian_frechet_distance", "measured_frechet", "symmetric_root"]


@dataclass(frozen=True, eq=False)
class Fit:
    """Number of rows, mean (d,), and scatter (d, d), the sum of (x - mean)(x - mean)^T."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def to(cls, rows: Tensor) -> Fit:
        """Of rows (n, d)."""
        mean = rows.mean(dim=0)
        off = rows - mean
        return cls(len(rows), mean, off.T @ off)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance."""
        return self.scatter / (self.count - 1)

    def joined(self, other: Fit) -> Fit:
        """Of both sets of rows (Chan, Golub & LeVeque 1983)."""
        count = self.count + other.count
        step = other.mean - self.mean
        between = step.outer(step) * (self.count * other.count / count)
        mean = self.mean + step * (other.count / count)
        return Fit(count, mean, self.scatter + other.scatter + between)

    def without(self, part: Fit) -> Fit:
        """Of the rows that are not in ``part``."""
        count = self.count - part.count
        mean = (self.mean * self.count - part.mean * part.count) / count
        step = part.mean - mean
        between = step.outer(step) * (count * part.count / self.count)
        return Fit(count, mean, self.scatter - part.scatter - between)


@dataclass(eq=False)
class Moments:
    """Means and covariances of features by group, in float64, as batches come in: row i is in group
    i mod ``groups``. Memory is that of ``groups`` matrices (d, d), whatever the number of rows.
    """

    groups: int = GROUPS
    count: int = 0
    parts: list[Fit] = field(default_factory=list)

    def update(self, rows: Tensor) -> None:
        """Add features (B, d)."""
        rows = check_sample("features", rows).to(accumulator(rows.device))
        if self.parts and rows.shape[1:] != self.parts[0].mean.shape:
            wanted = self.parts[0].mean.shape[0]
            raise ValueError(
                f"features have shape {tuple(rows.shape)}: expected (B, {wanted}), as those before"
            )
        for offset in range(min(self.groups, len(rows))):
            new = Fit.to(rows[offset :: self.groups])
            group = (self.count + offset) % self.groups
            if group < len(self.parts):
                self.parts[group] = self.parts[group].joined(new)
            else:
                self.parts.append(new)
        self.count += len(rows)

    @property
    def total(self) -> Fit:
        """Of all rows."""
        if self.count < 2:
            raise ValueError(
                f"there are {self.count} rows of features: expected at least 2, for their "
                "covariance; add more"
            )
        total = self.parts[0]
        for part in self.parts[1:]:
            total = total.joined(part)
        return total


def symmetric_root(covariance: Tensor) -> Tensor:
    """C^{1/2} of a positive semi-definite matrix; eigenvalues below rounding count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    # its root would be far from zero
    rounding = torch.finfo(values.dtype).eps * len(values) * values[-1]
    root: Tensor = (vectors * values.where(values > rounding, 0.0).sqrt()) @ vectors.T
    return root


def gaussian_frechet_distance(
    mean_x: Tensor, covariance_x: Tensor, mean_y: Tensor, covariance_y: Tensor
) -> float:
    """Squared Frechet distance between N(m_x, C_x) and N(m_y, C_y), exact but for rounding.

    d^2 = |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^{1/2})

    for means (d,) and symmetric positive semi-definite covariances (d, d), in squared units of the
    features. It is W_2^2 between the two. ValueError on other shapes, NaN and inf.

    Dowson & Landau 1982.
    """
    means = [check_sample(name, m) for name, m in (("mean_x", mean_x), ("mean_y", mean_y))]
    kind = accumulator(means[0].device)
    d = means[0].shape
    matrices = []
    for name, matrix in (("covariance_x", covariance_x), ("covariance_y", covariance_y)):
        matrices.append(check_sample(name, matrix).to(kind))
        if len(d) != 1 or means[1].shape != d or matrix.shape != d + d:
            raise ValueError(
                f"means have shapes {tuple(d)} and {tuple(means[1].shape)}, {name} has "
                f"{tuple(matrix.shape)}: expected (d,), (d,) and (d, d)"
            )
        if not torch.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6 * float(matrix.abs().max())):
            raise ValueError(f"{name} is not symmetric: pass a covariance, torch.cov(x.T) say")
    x, y = (Fit(2, mean.to(kind), each) for mean, each in zip(means, matrices, strict=True))
    return float(_distance_to(y)(x))


def _distance_to(fixed: Fit) -> Callable[[Fit], Tensor]:
    """The distance of others from one Gaussian, whose root is computed once.

    tr (C_x C_y)^{1/2} is the sum of the roots of the eigenvalues of C_y^{1/2} C_x C_y^{1/2}.
    """
    root = symmetric_root(fixed.covariance)
    spread = fixed.covariance.trace()

    def distance(other: Fit) -> Tensor:
        covariance = other.covariance
        product = root @ covariance @ root
        overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
        shift = (other.mean - fixed.mean).square().sum()
        squared: Tensor = shift + spread + covariance.trace() - 2 * overlap
        return squared.clamp(min=0)

    return distance


def measured_frechet(x: Moments, y: Moments, *, reference: Reference = "fixed") -> Measured:
    """Squared Frechet distance of the Gaussians of features of samples ``x`` and data ``y``, with
    standard error and bias by leaving out groups.

    The bias is of order d / n: `Measured.at_infinity` is the distance extrapolated in 1 / n. With
    ``reference="fixed"`` groups of x alone are left out: error and bias are for these data. With
    ``"sampled"`` groups of y are left out too, and variances and biases add up. Each takes one
    symmetric eigenvalue problem (d, d). The extrapolation leaves a rest of order (d / n)^2: it is
    noted where n < 2 d.

    Heusel et al. 2017, arXiv 1706.08500, eq. 6; Chong & Forsyth 2020, arXiv 1911.07023.
    """
    total_x, total_y = x.total, y.total
    to_y = _distance_to(total_y)
    value = to_y(total_x)
    parts = _left_out(x, total_x, to_y, value)
    if reference == "sampled":
        parts += _left_out(y, total_y, _distance_to(total_x), value)
    stderr, bias = Jackknife.total(parts)
    d = len(total_x.mean)
    least = min(x.count, y.count) if reference == "sampled" else x.count
    note = f"fewer than twice the {d} features: the extrapolation is rough" if least < 2 * d else ""
    return Measured(
        float(value),
        stderr=stderr,
        bias=bias,
        n=x.count,
        m=y.count,
        reference=reference,
        note=note,
    )


def _left_out(
    moments: Moments, total: Fit, distance: Callable[[Fit], Tensor], value: Tensor
) -> list[Jackknife]:
    """One jackknife, or none where there is one group, or too few rows."""
    rest = [total.without(part) for part in moments.parts] if len(moments.parts) > 1 else []
    if not rest or min(each.count for each in rest) < 2:
        return []
    left = torch.tensor([each.count for each in rest])
    without = torch.stack([distance(each) for each in rest])
    return [Jackknife.of(value, without, left)]
