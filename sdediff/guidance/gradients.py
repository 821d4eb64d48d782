"""The gradient of a function that returns a number for each sample, with what may be wrong with
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sdediff.solvers.given import reading
from sdediff.traced import differentiating, plain

__all__ = ["gradient"]


def gradient(
    who: str,
    function: Callable[..., Any],
    x: Tensor,
    see: Callable[[Tensor], tuple[Tensor, ...]],
    condition: Mapping[str, Tensor],
    returns: str,
    *,
    graph: bool,
    check: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The gradient in states x of ``function(*see(x), **condition)``, (rows,), a number for each.

    ``who`` is what errors call the function, ``returns`` says what it should return and how to get
    there; ``check`` looks at it. ``graph``: whether the gradient is to be differentiated. A
    ValueError says if the function returns another shape, or does not depend on x.
    """
    with differentiating(who):
        point = x if graph and x.requires_grad else plain(x).detach().requires_grad_()
        seen = tuple(map(plain, see(point.clone())))  # a function may not write to a leaf
        named = {name: plain(value) for name, value in condition.items()}
        names = "x" if len(seen) == 1 else "x, t"
        try:
            found = reading(who, function, names, *seen, **named)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            error.add_note(
                f"{who} was called with {names} and the conditions {_shown(named) or 'none'}: what "
                "else it needs goes into condition= of the call, and the null condition of a "
                "ClassifierFree around it reaches it too: put that inside"
            )
            raise
        if not isinstance(found, Tensor) or found.shape != (len(x),):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{who} must return {returns.format(len(x), got)}")
        if check is not None:
            check(found.detach())
        pull = None
        if found.requires_grad:
            pull = torch.autograd.grad(found.sum(), point, create_graph=graph, allow_unused=True)[0]
    if pull is None:
        raise ValueError(
            f"{who} does not depend on x, so that it has no gradient: look in it for "
            "torch.no_grad, torch.inference_mode, detach() or argmax"
        )
    return pull


def _shown(condition: Mapping[str, Tensor]) -> str:
    """The names of conditions, and between which numbers they lie."""
    return ", ".join(
        f"{name} from {each.min():g} to {each.max():g}" if each.numel() else name
        for name, each in condition.items()
    )
