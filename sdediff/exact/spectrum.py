"""Covariance matrices as users give them, checked and diagonalised."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["eigen"]


def eigen(name: str, c: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal eigenvectors (..., d, d) and eigenvalues (..., d) of covariances (..., d, d);
    what rounding made of 0 is 0.

    A ValueError that calls them ``name`` unless they are symmetric (to 1e-6) and no eigenvalue is
    negative.
    """
    size = c.abs().amax(dim=(-2, -1), keepdim=True)
    if bool(((c - c.mT).abs() > 1e-6 * size).any()):
        raise ValueError(
            f"{name} must be symmetric, off by {float((c - c.mT).abs().max()):.3g}; pass 0.5 * "
            "(c + c.T), say"
        )
    values, vectors = torch.linalg.eigh(0.5 * (c + c.mT))
    rounding = (
        c.shape[-1] * torch.finfo(torch.float64).eps * values.abs().amax(dim=-1, keepdim=True)
    )
    values = torch.where(values.abs() <= rounding, 0.0, values)
    if float(values.min()) < 0:
        where = "" if c.ndim == 2 else f" in component {int(values.amin(dim=-1).argmin())}"
        raise ValueError(
            f"{name} must have no negative eigenvalue, got {float(values.min()):.3g}{where}"
        )
    return vectors, values
