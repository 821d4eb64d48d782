"""What tensors with one entry a sample have to be: states and conditions, and where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sdediff.calls import check_names

__all__ = ["check_condition", "check_states", "one_place"]


def check_states(name: str, x: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Finite floating-point states (B, *event)."""
    if (
        not isinstance(x, Tensor)
        or not x.is_floating_point()
        or x.ndim < 1
        or (shape is not None and tuple(x.shape) != shape)
    ):
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"{name} must be a floating-point tensor of shape {shape or '(B, *event)'}, got {got}"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} contains values that are not finite")
    return x


def check_condition(
    condition: Mapping[str, Tensor] | None,
    count: int,
    net: Callable[..., Any] | None,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Tensors with leading dimension B by the names of arguments of ``net``, on ``device`` if there
    is one.
    """
    if condition is None:
        return {}
    check_names(condition, net)
    for name, value in condition.items():
        if not isinstance(value, Tensor) or value.ndim < 1 or value.shape[0] != count:
            got = (
                f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            )
            raise ValueError(
                f"condition {name!r} must be a tensor with leading dimension {count}, got {got}; "
                "what all samples share goes into the network by functools.partial"
            )
    return {
        name: value if device is None else value.to(device) for name, value in condition.items()
    }


def one_place(a: torch.device, b: torch.device) -> bool:
    """Whether two devices are the same."""
    return (a.type, a.index or 0) == (b.type, b.index or 0)
