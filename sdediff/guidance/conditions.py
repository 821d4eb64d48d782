"""Which conditions go to which function, where several are asked in one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from sdediff.protocols import is_model

__all__ = ["given_to", "left_for", "names_of", "taken"]

Names = frozenset[str] | None
"""Names of conditions; None: any."""


def names_of(function: Callable[..., Any], given: int = 2) -> Names:
    """The conditions that a function takes by name after what it is ``given``, (x, t) say."""
    try:
        parameters = inspect.signature(
            function.forward if isinstance(function, nn.Module) else function
        ).parameters.values()
    except (TypeError, ValueError):  # a built-in function
        return None
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(each.name for each in list(parameters)[given:] if each.kind in named)


def taken(model: Any) -> Names:
    """The conditions that a model takes: its network's, and those that operators around that name
    in an attribute ``takes``.
    """
    inner, net = getattr(model, "model", None), getattr(model, "net", None)
    own: Names = getattr(model, "takes", frozenset())
    below = taken(inner) if is_model(inner) else None if net is None else names_of(net)
    return None if own is None or below is None else own | below


def given_to(names: Names, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the conditions that are among the names."""
    return {name: value for name, value in condition.items() if names is None or name in names}


def left_for(model: Any, condition: Mapping[str, Tensor], others: Names) -> dict[str, Tensor]:
    """The conditions without those that others take and the model does not."""
    names = taken(model)
    if names is None or others is None:
        return dict(condition)
    return {name: each for name, each in condition.items() if name in names or name not in others}
