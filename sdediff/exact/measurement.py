"""Gaussians conditioned on a linear measurement, without inverting a covariance."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.exact.law import numbers

__all__ = ["Conditioned", "Measurement", "condition"]


class Measurement(NamedTuple):
    """y = H x_0 + std n, n ~ N(0, I)."""

    H: Tensor
    """(m, d), on flat x_0."""
    y: Tensor
    """(m,)."""
    std: Tensor
    """(m,)."""

    @classmethod
    def of(cls, H: Any, y: Any, noise_std: Any, d: int) -> Measurement:
        """The checked arguments of `Law.posterior`, for events of ``d`` numbers."""
        matrix = numbers("H", H)
        value = numbers("y", y)
        std = numbers("noise_std", noise_std)
        if matrix.ndim != 2 or matrix.shape[1] != d or not len(matrix):
            raise ValueError(
                f"H must be an (m, {d}) matrix that acts on the flattened x_0, got shape "
                f"{tuple(matrix.shape)}"
            )
        m = len(matrix)
        if value.shape != (m,):
            raise ValueError(
                f"y must be ({m},), one number for each row of H, got shape {tuple(value.shape)}"
            )
        if std.shape not in ((), (m,)):
            raise ValueError(
                f"noise_std must be a number or ({m},), one for each row of H, got shape "
                f"{tuple(std.shape)}"
            )
        if not float(std.min()) > 0:
            raise ValueError(
                f"noise_std must be positive, got {float(std.min()):.6g}; a small number stands "
                "for an exact measurement"
            )
        return cls(matrix, value, std.expand(m))


class Conditioned(NamedTuple):
    """N(mean, basis diag(stds^2) basis^T), and how likely the measurement was."""

    mean: Tensor
    basis: Tensor
    stds: Tensor
    log_evidence: Tensor


def condition(mean: Tensor, root: Tensor, measurement: Measurement) -> Conditioned:
    """x_0 = mean + root w, w ~ N(0, I), given the measurement; for mean (..., d) and root (..., d,
    k) with k <= d.

    With the singular value decomposition H root / std = P diag(c) Q^T and the residual r = (y - H
    mean) / std, w given y is normal with mean Q diag(c / (1 + c^2)) P^T r and covariance Q diag(1 /
    (1 + c^2)) Q^T, and the evidence N(y; H mean, H root root^T H^T + std^2) has -2 log = |(I - P
    P^T) r|^2 + sum (P^T r)^2 / (1 + c^2) + sum log(1 + c^2) + sum log(2 pi std^2).
    """
    H, y, std = measurement
    m, k = len(H), root.shape[-1]
    left, c, right = torch.linalg.svd((H @ root) / std[:, None], full_matrices=m < k)
    residual = (y - mean @ H.T) / std
    seen = torch.einsum("...mj,...m->...j", left, residual)
    unseen = residual - torch.einsum("...mj,...j->...m", left, seen)  # 0 for m <= k
    spread = 1 + c**2
    log_evidence = -0.5 * (
        unseen.square().sum(dim=-1)
        + (seen**2 / spread + spread.log()).sum(dim=-1)
        + 2 * std.log().sum()
        + m * math.log(2 * math.pi)
    )
    n = c.shape[-1]  # beyond these, w is as it was
    axes = torch.einsum("...dk,...jk->...dj", root, right)
    moved = mean + torch.einsum("...dj,...j->...d", axes[..., :n], c / spread * seen)
    shrink = torch.ones_like(axes[..., 0, :])
    shrink[..., :n] = spread.rsqrt()
    basis, stds, _ = torch.linalg.svd(axes * shrink[..., None, :], full_matrices=False)
    return Conditioned(moved, basis, stds, log_evidence)
