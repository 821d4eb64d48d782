"""A model's data prediction as a function of the state that can be differentiated: what
posteriors and guidance by a loss pull on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.operator import Operator
from sdediff.protocols import Output, Rows, value_of
from sdediff.solvers.arithmetic import weighted
from sdediff.solvers.coefficients import Coef
from sdediff.solvers.masked import kept

__all__ = ["Traced", "differentiating", "plain", "traced"]


class Traced(NamedTuple):
    """E[x_0 | x_t] of the model inside an operator."""

    found: Tensor | Output
    """What the model returned."""
    data: Tensor
    """(rows, *event); both in the graph of x_t where the caller keeps one."""
    back: Callable[[Tensor], Tensor]
    """J^T v, with J the derivative of the data in x_t; a backward pass, counted."""
    graph: bool
    """Whether the caller keeps one."""


def plain(value: Tensor) -> Tensor:
    """A tensor that autograd takes: a copy of one that was made under `torch.inference_mode`."""
    return value.clone() if value.is_inference() else value


@contextmanager
def differentiating(who: str) -> Iterator[None]:
    """Gradients are on, under `torch.inference_mode` too; a ValueError that says how to mend it if
    ``who`` has tensors that have none.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    except RuntimeError as error:
        if "Inference tensors" not in str(error):
            raise
        raise ValueError(
            f"{who} has tensors that were made under torch.inference_mode, which have no "
            "gradients: make or load its network outside of that"
        ) from error


def traced(operator: Operator, x: Tensor, inner: Any, rows: Rows, keep: Coef, push: Coef) -> Traced:
    """The answer of the model inside at states x; E[x_0 | x_t] is keep x + push output.

    ValueError if the output has no graph to x.
    """
    graph = torch.is_grad_enabled() and (
        x.requires_grad or any(each.requires_grad for each in operator.parameters())
    )
    with differentiating("the network"):
        state = x if graph and x.requires_grad else plain(x).detach().requires_grad_()
        found = operator.ask(state, inner, rows.under(_plain(rows)))
        out = kept(value_of(found, x, operator.model), rows.mask)
        if not out.requires_grad:
            raise ValueError(
                f"{type(operator).__name__} takes a gradient through the network, whose output has "
                "none: look in it for torch.no_grad, torch.inference_mode or detach()"
            )
        data = weighted((keep, state), (push, out))

    def back(v: Tensor) -> Tensor:
        rows.count(0, 1)
        with differentiating("the network"):
            found = torch.autograd.grad(
                data, state, plain(v), retain_graph=True, create_graph=graph
            )[0]
        return kept(found, rows.mask)

    return Traced(*((found, data) if graph else (_cut(found), data.detach())), back, graph)


def _plain(rows: Rows) -> dict[str, Tensor]:
    return {name: plain(value) for name, value in rows.condition.items()}


def _cut(found: Tensor | Output) -> Tensor | Output:
    """An answer without its graph."""
    if not isinstance(found, Output):
        return found.detach()
    parts = {"value": found.value, **found.extras}
    return Output(**{k: v.detach() if isinstance(v, Tensor) else v for k, v in parts.items()})
