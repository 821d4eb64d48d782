"""Functions of time: what they take, what they return and how they are differentiated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdediff.lending import WrittenError, reading
from sdediff.solvers.coefficients import is_linear
from sdediff.solvers.scalars import reals

__all__ = ["as_time", "check_pair", "check_rows", "coefficient", "derived", "slope", "values"]


def as_time(t: Tensor | float) -> Tensor:
    """``t`` as a contiguous float64 tensor on the host, () or (B,), where schedules are evaluated."""
    time = reals("t", t, "cpu")
    if time.ndim > 1:
        raise ValueError(f"t must be a number or one number a sample, (B,); got shape {tuple(time.shape)}")
    return time.contiguous()


def check_pair(x: Tensor, x_0: Tensor, name: str) -> None:
    """A TypeError unless both are tensors, a ValueError unless they are of one shape."""
    for each, value in ((name, x), ("x_0", x_0)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{each} must be a tensor (B, *event), got {type(value).__name__}")
    if x.shape != x_0.shape:
        raise ValueError(f"{name} must have the shape of x_0, {tuple(x_0.shape)}, got {tuple(x.shape)}")


def check_rows(x_0: Tensor, *times: tuple[str, Tensor]) -> None:
    """A ValueError unless each of the times is one number, or one for each of the states x_0 (B, *event)."""
    for name, time in times:
        if time.ndim and time.shape != x_0.shape[:1]:
            raise ValueError(f"{name} must be a number or (B,) with B = {x_0.shape[0]} as in x_0, got shape {tuple(time.shape)}")


def values(function: Callable[[Tensor], Any], t: Tensor | float, name: str) -> Tensor:
    """function(t) as float64, shaped as t; a function may return one number for all times."""
    time = as_time(t)
    try:
        found = reading(name, function, "t", time)
        out = found if is_linear(found) else reals(name, found, time.device)
    except WrittenError:
        raise
    except AttributeError as error:
        # Inside a property Python would take it for a missing property, and lose what is missing.
        raise TypeError(f"{name} asks for an attribute that is not there: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        if not getattr(error, "__notes__", None):
            error.add_note(f"{name} was called with a float64 tensor of shape {tuple(time.shape)}: write it with torch functions")
        raise
    if is_linear(out) or out.shape == time.shape:
        return out
    if out.numel() == 1:
        return out.reshape(()).expand(time.shape)
    raise ValueError(f"{name} must return one number for each time, shape {tuple(time.shape)}; got shape {tuple(out.shape)}")


def coefficient(method: Callable[..., Any]) -> Callable[..., Tensor]:
    """Make a method of (self, t) take numbers and tensors of any kind, and return float64 shaped as t."""

    @functools.wraps(method)
    def wrapped(self: object, t: Tensor | float) -> Tensor:
        return values(functools.partial(method, self), t, f"{type(self).__name__}.{method.__name__}(t)")

    return wrapped


def derived(method: Callable[[Any, Tensor], Tensor]) -> Callable[..., Tensor]:
    """`coefficient` for a method of ours: it takes numbers and tensors of any kind."""

    @functools.wraps(method)
    def wrapped(self: object, t: Tensor | float) -> Tensor:
        return method(self, as_time(t))

    return wrapped


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
                    f"{function} changes with t but carries no gradient: write it with torch functions of t, or give f and g too"
                )
            return torch.zeros_like(t)
        (derivative,) = torch.autograd.grad(out.sum(), u, create_graph=t.requires_grad)
    return derivative
