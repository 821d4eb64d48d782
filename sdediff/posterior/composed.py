"""Several observations of one thing: products of densities by their covariances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.posterior.factors import At, Factors
from sdediff.protocols import Like, Piece, Rows
from sdediff.solvers import rowwise
from sdediff.solvers.masked import kept

__all__ = ["Composed"]

_LARGEST: Final = 512


class Composed(Factors):
    """The model of q ~ prod p_i(x_0)^w_i for any solver, by the covariances of the p_i: several
    observations of one thing.

    ``factors``: as in `Product`; the exponents may have any sum W. Of observations y_1, ..., y_n
    that are independent given x_0, with models of p(x_0 | y_i) and of p(x_0),

        p(x_0 | y_1, ..., y_n) ~ p(x_0)^(1 - n) prod p(x_0 | y_i)

        Composed([(prior, 1 - n), (model, 1.0, {"y": y_1}), ..., (model, 1.0, {"y": y_n})])

    The sum of the scores is not the score of this law under noise. With m_i and C_i mean and
    covariance of x_0 given x_t under p_i, by Tweedie's formula C_i = sigma^2 / alpha dm_i / dx,

        E[x_0 | x_t] = P^-1 (sum w_i C_i^-1 m_i + (1 - W) alpha / sigma^2 x_t),
        P = sum w_i C_i^-1 + (1 - W) (alpha / sigma)^2,

    which is exact for Gaussian p_i and takes their x_0 given x_t for Gaussians otherwise. Where P
    has an eigenvalue below 1e-3 (alpha / sigma)^2, by errors of networks or between modes, that is
    put in its place. An evaluation takes one of each model and as many backward passes of each as
    an event has entries, of which there are at most 512. (Linhart et al. 2024, Diffusion posterior
    sampling for simulation-based inference in tall data settings, arXiv 2404.07593: JAC for W = 1.)
    """

    predicts: Final = "data"  # type: ignore[misc]  # the base's can be set, this one cannot
    positive = False

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[At]:
        if like.event.numel() > _LARGEST:
            raise ValueError(
                f"Composed: an event has {like.event.numel()} entries, of which it makes matrices "
                f"with as many rows: {_LARGEST} is the most; take Product and sample_weighted"
            )
        return super().at(times, like, piece)

    def evaluate(self, x: Tensor, at: At, rows: Rows) -> Tensor:
        """E[x_0 | x_t] under the product."""
        state, keep = self.differentiated(x)
        with torch.enable_grad():
            data = [*self.data_of(state, at, rows)]
        snr = _column(at.snr, x)[..., None]
        unit = torch.eye(x[0].numel(), dtype=torch.float64, device=x.device)
        total = (1 - self.power) * snr * unit
        right = (1 - self.power) * snr[..., 0] * rowwise(x).double() / _column(at.alpha, x)
        for factor, mean in zip(self.factors, data, strict=True):
            columns = [
                torch.autograd.grad(
                    mean, state, v.reshape(x.shape[1:]).to(x.dtype).expand(x.shape),
                    retain_graph=True, create_graph=keep,
                )[0]
                for v in unit
            ]  # fmt: skip
            rows.count(0, len(unit))
            jacobian = torch.stack([rowwise(each).double() for each in columns], dim=1)
            precision = _raised(_column(at.lift, x)[..., None] * jacobian, 1e-6 / snr).inverse()
            total = total + factor.exponent * precision
            shown = rowwise(mean if keep else mean.detach()).double()
            right = right + factor.exponent * (precision @ shown[..., None])[..., 0]
        solved = torch.linalg.solve(_raised(total, 1e-3 * snr), right[..., None])
        return kept(solved.reshape(x.shape).to(x.dtype), rows.mask)


def _column(c: Any, x: Tensor) -> Tensor:
    """A planned coefficient as float64 (rows or 1, 1)."""
    return torch.as_tensor(c, dtype=torch.float64, device=x.device).reshape(-1, 1)


def _raised(matrix: Tensor, least: Tensor) -> Tensor:
    """The symmetric part of matrices (rows, d, d), with eigenvalues of at least ``least``."""
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    found: Tensor = (vectors * torch.maximum(values, least[..., 0])[:, None]) @ vectors.mT
    return found
