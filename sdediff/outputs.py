"""What a network may return."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["doubled", "tensor_of"]


def doubled(shape: torch.Size) -> torch.Size:
    """The shape with twice the channels, (B, 2 C, ...)."""
    if len(shape) < 2:
        raise ValueError(f"learned_variance needs states (B, C, ...) with channels to double, got shape {tuple(shape)}")
    return torch.Size([shape[0], 2 * shape[1], *shape[2:]])


def tensor_of(out: object, shape: torch.Size, why: str = " of the shape of its input") -> Tensor:
    """Return the tensor of that shape that a network returned, or an object with it as ``.sample``; a ValueError without one."""
    found = out if isinstance(out, Tensor) else getattr(out, "sample", out)
    if isinstance(found, Tensor) and found.shape == shape and not found.is_complex():
        return found
    kind = "complex numbers of " if isinstance(found, Tensor) and found.is_complex() else ""
    got = f"{kind}shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    raise ValueError(f"the network must return a tensor{why}, {tuple(shape)}, got {got}{_mending(found, shape)}")


def _mending(out: object, shape: torch.Size) -> str:
    """How to bring what a network returned into the shape that is wanted; "" where that is not plain."""
    if isinstance(out, Tensor):
        if out.ndim < 2 or len(shape) < 2 or out[:, :1].shape != torch.Size([shape[0], 1, *shape[2:]]):
            return ""
        if out.shape[1] == 2 * shape[1]:
            return "; twice the channels are a prediction and its variance: ScoreModel(..., learned_variance=True)"
        if 2 * out.shape[1] == shape[1]:
            return "; with learned_variance it has twice the channels of x: drop learned_variance=True"
        return ""
    keys = list(out) if isinstance(out, Mapping) else list(range(len(out))) if isinstance(out, list | tuple) else []
    names = [key for key in keys if isinstance(found := out[key], Tensor) and found.shape == shape]  # type: ignore[index]
    if not names:
        return "; wrap it in a function that returns the prediction alone"
    return f"; wrap it: lambda x, t, **condition: net(x, t, **condition)[{names[0]!r}]"
