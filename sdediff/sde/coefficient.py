"""States and times that belong together, and how functions of time are differentiated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["check_pair", "check_rows", "slope"]


def check_pair(x: Tensor, x_0: Tensor, name: str) -> None:
    """A TypeError unless both are tensors, a ValueError unless they are of one shape."""
    for each, value in ((name, x), ("x_0", x_0)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{each} must be a tensor (B, *event), got {type(value).__name__}")
    if x.shape != x_0.shape:
        raise ValueError(
            f"{name} must have the shape of x_0, {tuple(x_0.shape)}, got {tuple(x.shape)}"
        )


def check_rows(x_0: Tensor, *times: tuple[str, Tensor]) -> None:
    """A ValueError unless each of the times is one number, or one for each of the states x_0 (B,
    *event).
    """
    for name, time in times:
        if time.ndim and time.shape != x_0.shape[:1]:
            raise ValueError(
                f"{name} must be a number or (B,) with B = {x_0.shape[0]} as in x_0, got shape "
                f"{tuple(time.shape)}"
            )


def slope(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function / dt by autograd, shaped as t; differentiable again where t asks for gradients."""
    with torch.inference_mode(False), torch.enable_grad():
        u = t if t.requires_grad else t.detach().clone().requires_grad_()
        out = function(u)
        if not out.requires_grad:
            with torch.no_grad():
                moved = function(0.875 * u)
            if not torch.equal(moved, out):
                raise ValueError(
                    f"{function} changes with t but carries no gradient: write it with torch "
                    "functions of t, or give f and g too"
                )
            return torch.zeros_like(t)
        (derivative,) = torch.autograd.grad(out.sum(), u, create_graph=t.requires_grad)
    return derivative
