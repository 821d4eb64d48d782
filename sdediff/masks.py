"""Which coordinates of a sample exist: what is padding is 0 in every state, and counts nowhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdediff.solvers import rowwise
from sdediff.solvers.masked import kept

__all__ = ["check_mask", "counts", "kept", "mask_of", "mean_over", "sum_over"]


def check_mask(mask: Tensor | None, shape: Sequence[int], device: torch.device) -> Tensor | None:
    """The mask of states of ``shape`` (B, *event) as booleans of that shape, on ``device``; None
    where there is none.

    ``mask`` is True (or 1) where a coordinate exists. Its shape is that of the states, or one that
    broadcasts to it, or (B, L, ...) over the first dimensions of an event. Raises ValueError unless
    it holds 0 and 1 alone, and a 1 for every sample.
    """
    if mask is None:
        return None
    whole = torch.Size(shape)
    try:
        given = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"mask must be a tensor, True or 1 where a coordinate exists; got {mask!r}"
        ) from error
    found = given.reshape(*given.shape, *(1,) * (len(whole) - given.ndim))
    fits = found.ndim == len(whole) and all(
        n in (1, m) for n, m in zip(found.shape, whole, strict=True)
    )
    if not fits or found.shape[:1] != whole[:1]:
        raise ValueError(
            f"mask must have the shape of the states, {tuple(whole)}, or of their first "
            "dimensions, or 1 in place of "
            f"some of an event; got {tuple(given.shape)}"
        )
    if found.dtype != torch.bool and not bool(((found == 0) | (found == 1)).all()):
        raise ValueError(
            "mask must be boolean, or hold 0 and 1 alone: True where a coordinate exists"
        )
    existing = found.to(device).bool().expand(whole)
    if not bool(rowwise(existing).any(dim=1).all()):
        raise ValueError(
            "mask leaves a sample without any coordinate: every sample needs at least one that "
            "exists"
        )
    return existing


def mask_of(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """`check_mask` of states x (B, *event), beside them."""
    return None if mask is None else check_mask(mask, x.shape, x.device)


def counts(x: Tensor, mask: Tensor | None) -> Tensor | int:
    """How many coordinates of each sample of x (B, *event) exist: one int without a mask, else (B,)
    in the dtype of x.
    """
    return rowwise(x).shape[1] if mask is None else rowwise(mask).sum(dim=1).to(x.dtype)


def sum_over(x: Tensor, mask: Tensor | None) -> Tensor:
    """The sum over the coordinates that exist, (B,)."""
    return rowwise(kept(x, mask)).sum(dim=1)


def mean_over(x: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the coordinates that exist, (B,)."""
    return rowwise(x).mean(dim=1) if mask is None else sum_over(x, mask) / counts(x, mask)
