"""The twists of particles: approximations to p(y | x_t) with their values, not the pull alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.posterior.observation import Observed
from sdediff.posterior.operators import MMPS, Denoised, PiGDM
from sdediff.solvers import rowwise
from sdediff.solvers.arithmetic import along

__all__ = ["TWISTS"]

_LARGEST: Final = 4096
_EXTRAS: Final = ("prior", "log_likelihood")


class _White:
    """Outcomes over noise_std, float64 (rows, m), and their linear map a = A S / noise_std of
    states like x.
    """

    def __init__(self, seen: Observed, x: Tensor) -> None:
        self.seen, self.x = seen, x
        self.std = seen.variance.sqrt()
        self.residual = rowwise(seen.residual(x) / self.std).double()
        self.size = self.residual.shape[1]
        if self.size > _LARGEST:
            raise ValueError(
                f"Particles: an outcome has {self.size} entries, of which the twist makes a matrix "
                f"with as many rows: {_LARGEST} is the most; take MMPS or PiGDM"
            )

    def adjoint(self, v: Tensor) -> Tensor:
        """a^T v of v (rows, m)."""
        shaped = v.to(self.x.dtype).reshape(len(v), *self.seen.y.shape[1:])
        return self.seen.adjoint(shaped / self.std, self.x[: len(v)])

    def products(self, covariance: Callable[[Tensor], Tensor], rows: int) -> Tensor:
        """a C a^T, (rows, m, m), for C as a function of states."""
        basis = torch.eye(self.size, dtype=torch.float64, device=self.x.device)
        columns = [covariance(self.adjoint(each.expand(rows, -1))) for each in basis]
        found = [rowwise(self.seen.forward(each) / self.std).double() for each in columns]
        return torch.stack(found, dim=2)

    def pulled(self, vectors: Tensor, values: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """a^T (I + a C a^T)^{-1} residual, and log N(y; A x^_0, A C A^T + noise_std^2).

        ``vectors`` (..., m, m) and ``values`` (..., m) are the eigenvectors and eigenvalues of a C
        a^T; a network's may be negative, and are then 0.
        """
        spread = 1 + values.clamp(min=0)
        inside = (vectors.mT @ self.residual[..., None])[..., 0]
        solved = (vectors @ (inside / spread)[..., None])[..., 0]
        sizes = self.seen.variance.double().expand(self.seen.y.shape[1:])
        constant = 0.5 * (2 * math.pi * sizes).log().sum()
        value = -0.5 * (inside.square() / spread + spread.log()).sum(dim=1) - constant
        found = along(value, self.x).expand(self.x.shape)
        return self.adjoint(solved), {"prior": self.x, "log_likelihood": found}


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors and eigenvalues of the symmetric part."""
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    return vectors, values


class _Matched(MMPS):
    """N(y; A x^_0, A C A^T + noise_std^2) with C = Cov(x_0 | x_t) by Tweedie's formula: as many
    backward passes as an outcome has entries, and one.
    """

    noisy = True
    extras = _EXTRAS

    def pull(self, denoised: Denoised, seen: Observed) -> tuple[Tensor, dict[str, Any]]:
        white = _White(seen, denoised.data)
        pull, extras = white.pulled(
            *_eigen(white.products(denoised.covariance, len(denoised.data)))
        )
        return pull, extras | {"covariance": denoised.covariance}


class _Isotropic(PiGDM):
    """N(y; A x^_0, r^2 A A^T + noise_std^2), with one eigendecomposition for all steps and one
    backward pass.
    """

    noisy = True
    extras = _EXTRAS
    _known: tuple[Tensor, Tensor] | None = None

    def pull(self, denoised: Denoised, seen: Observed) -> tuple[Tensor, dict[str, Any]]:
        white = _White(seen, denoised.data)
        if self._known is None:
            self._known = _eigen(white.products(lambda v: v, 1)[0])
        vectors, values = self._known
        width: Any = denoised.width
        of_rows = width.reshape(-1, 1).double() if isinstance(width, Tensor) else width
        pull, extras = white.pulled(vectors, of_rows * values.expand(len(denoised.data), -1))
        return pull, extras | {"covariance": denoised.covariance}


TWISTS: Final[dict[str, Callable[..., Any]]] = {"mmps": _Matched, "pigdm": _Isotropic}
"""Models of models whose evaluations have what `Particles` need, by name."""
