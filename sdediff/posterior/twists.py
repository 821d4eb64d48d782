"""The twists of particles: approximations to p(y | x_t) with their values, not the pull alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from sdediff.posterior.observation import Observed
from sdediff.posterior.operators import MMPS, Denoised, PiGDM
from sdediff.solvers import rowwise
from sdediff.solvers.arithmetic import along

__all__ = ["TWISTS", "check_size"]

_LARGEST: Final = 4096
_EXTRAS: Final = ("prior", "log_likelihood")


def check_size(y: Tensor) -> None:
    """A ValueError if an outcome of y (B, *outcome) has more entries than a twist can take."""
    size = math.prod(y.shape[1:])
    if size > _LARGEST:
        raise ValueError(
            f"Particles: an outcome has {size:,} entries, of which the twist makes a matrix with "
            f"as many rows: {_LARGEST:,} is the most; take MMPS or PiGDM"
        )


class _Products(NamedTuple):
    """Of a covariance C of states and the linear map a of an outcome."""

    columns: Tensor
    """a C, (1 or rows, m, d)."""
    vectors: Tensor
    """The eigenvectors of a C a^T, (1 or rows, m, m)."""
    values: Tensor
    """Its eigenvalues, (1 or rows, m)."""


class _White:
    """Outcomes over noise_std, float64 (rows, m), and their linear map a = A S / noise_std of
    states like x.
    """

    def __init__(self, seen: Observed, x: Tensor) -> None:
        self.seen, self.x = seen, x
        self.std = seen.variance.sqrt()
        self.residual = rowwise(seen.residual(x) / self.std).double()
        self.size = self.residual.shape[1]

    def adjoint(self, v: Tensor) -> Tensor:
        """a^T v of v (rows, m)."""
        shaped = v.to(self.x.dtype).reshape(len(v), *self.seen.y.shape[1:])
        return self.seen.adjoint(shaped / self.std, self.x[: len(v)])

    def products(self, covariance: Callable[[Tensor], Tensor], rows: int) -> _Products:
        """C a^T and the eigenvectors and eigenvalues of a C a^T, for C as a function of states."""
        basis = torch.eye(self.size, dtype=torch.float64, device=self.x.device)
        columns = [covariance(self.adjoint(each.expand(rows, -1))) for each in basis]
        found = [rowwise(self.seen.forward(each) / self.std).double() for each in columns]
        matrix = torch.stack(found, dim=2)
        values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
        return _Products(torch.stack([rowwise(each) for each in columns], dim=1), vectors, values)

    def pulled(self, products: _Products) -> tuple[Tensor, dict[str, Any]]:
        """a^T (I + a C a^T)^{-1} residual, log N(y; A x^_0, A C A^T + noise_std^2), and the
        covariance of x_0 before and after y.

        With p_j and v_j the eigenvectors and eigenvalues of a C a^T, C is close to e^T e on the
        directions that y measures, and given y to e^T diag(``left``) e, for the rows e_j = C a^T
        p_j / sqrt(v_j) of ``spread`` (rows, m, d) and left_j = 1 / (1 + v_j) (Nystrom's
        approximation; exact for C of rank m or less). Negative eigenvalues, which a network may
        have, are 0.
        """
        columns, vectors, values = products
        known = values.clamp(min=0)
        least = torch.finfo(columns.dtype).eps * known.amax(dim=-1, keepdim=True)
        scale = torch.where(known > least, known, torch.inf).rsqrt()
        spread = 1 + known
        inside = (vectors.mT @ self.residual[..., None])[..., 0]
        solved = (vectors @ (inside / spread)[..., None])[..., 0]
        sizes = self.seen.variance.double().expand(self.seen.y.shape[1:])
        constant = 0.5 * (2 * math.pi * sizes).log().sum()
        value = -0.5 * (inside.square() / spread + spread.log()).sum(dim=1) - constant
        extras = {
            "prior": self.x,
            "log_likelihood": along(value, self.x).expand(self.x.shape),
            "spread": (vectors * scale[..., None, :]).mT.to(columns) @ columns,
            "left": 1 / spread,
        }
        return self.adjoint(solved), extras


class _Matched(MMPS):
    """N(y; A x^_0, A C A^T + noise_std^2) with C = Cov(x_0 | x_t) by Tweedie's formula: as many
    backward passes as an outcome has entries, and one.
    """

    noisy = True
    extras = _EXTRAS

    def pull(self, denoised: Denoised, seen: Observed) -> tuple[Tensor, dict[str, Any]]:
        white = _White(seen, denoised.data)
        pull, extras = white.pulled(white.products(denoised.covariance, len(denoised.data)))
        return pull, extras | {"covariance": denoised.covariance}


class _Isotropic(PiGDM):
    """N(y; A x^_0, r^2 A A^T + noise_std^2), with one eigendecomposition for all steps and one
    backward pass.
    """

    noisy = True
    extras = _EXTRAS
    _known: _Products | None = None

    def pull(self, denoised: Denoised, seen: Observed) -> tuple[Tensor, dict[str, Any]]:
        white = _White(seen, denoised.data)
        if self._known is None:
            self._known = white.products(lambda v: v, 1)
        columns, vectors, values = self._known
        width = torch.as_tensor(denoised.width, dtype=values.dtype).to(values).reshape(-1, 1)
        wide = _Products(width[..., None].to(columns) * columns, vectors, width * values)
        pull, extras = white.pulled(wide)
        extras["spread"], extras["left"] = columns[:, :0], values[:, :0]
        return pull, extras | {"covariance": denoised.covariance}


TWISTS: Final[dict[str, Callable[..., Any]]] = {"mmps": _Matched, "pigdm": _Isotropic}
"""Models of models whose evaluations have what `Particles` need, by name."""
