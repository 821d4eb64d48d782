"""The divergence of a drift from one evaluation of it, exactly or by probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol, Self

import torch
from torch import Tensor

__all__ = ["Divergence", "Exact", "HutchPlusPlus", "Hutchinson", "Products"]

_ENTRIES: Final = 2**22


class Products:
    """u -> A u with A = J^T, J the Jacobian d out / d x of each row: vector-Jacobian products from
    one forward pass.

    All of them at once by vmap over the backward pass, or one by one where that is not possible:
    `Products.single`, which is noted at the first failure, as in the network of `torch.compile` or
    one with an autograd function of its own.
    """

    def __init__(self, out: Tensor, x: Tensor, *, differentiable: bool, single: list[bool]) -> None:
        self.out = out
        self.x = x
        self.differentiable = differentiable
        self.single = single

    def __call__(self, vectors: Tensor) -> Tensor:
        """A u for u in ``vectors`` (k, rows, d), shaped alike."""
        shaped = vectors.reshape(-1, *self.x.shape)
        if not self.out.requires_grad:
            return torch.zeros_like(vectors)
        if len(shaped) > 1 and not self.single:
            try:
                return self._grad(shaped, batched=True).reshape(vectors.shape)
            except RuntimeError:
                self.single.append(True)
        return torch.stack([self._grad(u, batched=False) for u in shaped]).reshape(vectors.shape)

    def _grad(self, vectors: Tensor, *, batched: bool) -> Tensor:
        (found,) = torch.autograd.grad(
            self.out,
            self.x,
            vectors,
            retain_graph=True,
            create_graph=self.differentiable,
            allow_unused=True,
            is_grads_batched=batched,
        )
        return torch.zeros_like(vectors) if found is None else found


class Divergence(Protocol):
    """Estimates of tr A from products A u; one of them is the result, or the mean of all."""

    @property
    def channels(self) -> int:
        """How many estimates."""

    @property
    def of_identity(self) -> Tensor | None:
        """Estimates (rows, channels) of tr I where they are wanted; None: the number itself."""

    def __call__(self, products: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """(rows, channels), for flat states x (rows, d)."""

    def take(self, rows: Tensor) -> Self:
        """For some of the rows, int64 (k,) on the host."""


@dataclass(frozen=True)
class Exact:
    """tr A = sum_i e_i^T A e_i, by d products."""

    channels: int = 1
    of_identity: None = field(default=None, init=False)

    def __call__(self, products: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        rows, d = x.shape
        total = x.new_zeros(rows)
        size = max(1, _ENTRIES // max(1, rows * d))
        for units in torch.eye(d, dtype=x.dtype, device=x.device).split(size):
            columns = products(units[:, None].expand(-1, rows, -1))
            total = total + (columns * units[:, None]).sum(dim=(0, 2))
        return total[:, None]

    def take(self, rows: Tensor) -> Exact:
        """The same."""
        return self


@dataclass(frozen=True)
class Hutchinson:
    """v_i^T A v_i for the probes v_i (k, rows, d): Hutchinson 1990; Grathwohl et al. 2019 (arXiv
    1810.01367) for flows. ``whole``: the identity is estimated too, by v_i^T v_i.
    """

    probes: Tensor
    whole: bool = False

    @property
    def channels(self) -> int:
        """k."""
        return len(self.probes)

    @property
    def of_identity(self) -> Tensor | None:
        """v_i^T v_i, or None."""
        return self.probes.square().sum(dim=2).T if self.whole else None

    def __call__(self, products: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return _forms(products, self.probes).T

    def take(self, rows: Tensor) -> Hutchinson:
        """Their probes."""
        return Hutchinson(self.probes[:, rows.to(self.probes.device)], self.whole)


@dataclass(frozen=True)
class HutchPlusPlus:
    """tr(Q^T B Q) + g_i^T (I - Q Q^T) B (I - Q Q^T) g_i + c d, B = A - c I, Q an orthonormal basis
    of B s_1, ..., B s_m.

    Hutch++ (Meyer et al. 2021, arXiv 2010.09649, Algorithm 1) for the part of A that is no multiple
    of the identity: c is the sketch's own estimate of tr A / d, and the sketch s (m, rows, d) is
    independent of the probes g (k, rows, d), so that every estimate is unbiased. 2 m + k products,
    in two passes over one graph. Q follows A along the path.
    """

    sketch: Tensor
    probes: Tensor
    of_identity: None = field(default=None, init=False)

    @property
    def channels(self) -> int:
        """k."""
        return len(self.probes)

    def __call__(self, products: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        d, m = x.shape[1], len(self.sketch)
        found = products(self.sketch)
        shift = (self.sketch * found).sum(dim=2).mean(dim=0) / d
        # (rows, d, m)
        basis = torch.linalg.qr((found - shift[:, None] * self.sketch).permute(1, 2, 0))[0]
        beyond = self.probes - torch.einsum("rdm,rem,kre->krd", basis, basis, self.probes)
        vectors = torch.cat([basis.permute(2, 0, 1), beyond])
        forms = _forms(products, vectors) - shift * vectors.square().sum(dim=2)
        return (forms[:m].sum(dim=0) + forms[m:] + shift * d).T

    def take(self, rows: Tensor) -> HutchPlusPlus:
        """Their probes."""
        there = rows.to(self.probes.device)
        return HutchPlusPlus(self.sketch[:, there], self.probes[:, there])


def _forms(products: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
    """v^T A v for the vectors v (k, rows, d): (k, rows)."""
    return (vectors * products(vectors)).sum(dim=2)
