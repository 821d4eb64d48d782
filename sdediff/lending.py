"""Tensors that a user's function is handed to read, and after the call a check that it has not written to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sdediff.sde import SDE

__all__ = ["WrittenError", "at_least_float32", "drift_of", "own", "reading"]


class WrittenError(ValueError):
    """A function wrote to a tensor that it was handed to read."""


def reading(who: str, function: Callable[..., Any], names: str, /, *args: Tensor, **condition: Any) -> Any:
    """Return ``function(*args, **condition)``; raise `WrittenError` if the function wrote to one of these tensors.

    Torch's version counters tell. Tensors made under `torch.inference_mode` have none, so the function gets copies of them.
    ``who`` is what the error calls the function, ``names`` what its signature calls ``args``, ``"x, t"`` say.
    """
    tensors = {name: value for name, value in condition.items() if isinstance(value, Tensor)} if condition else {}
    lent = (*args, *tensors.values()) if tensors else args
    try:
        before = [value._version for value in lent]
    except RuntimeError:  # no counters: under inference_mode the copies have none either
        condition |= {name: value.clone() for name, value in tensors.items()}
        return function(*[value.clone() for value in args], **condition)
    try:
        out = function(*args, **condition)
    except RuntimeError as error:
        if "single memory location" not in str(error):
            raise
        raise _written(who, names, condition, names.split(", ")[-1]) from error  # one time for all samples, seen as (B,)
    if [value._version for value in lent] == before:
        return out
    known = [*names.split(", "), *tensors]
    first = next(name for name, value, old in zip(known, lent, before, strict=True) if value._version != old)
    raise _written(who, names, condition, first)


def _written(who: str, names: str, condition: Iterable[str], first: str) -> WrittenError:
    """The error that says that ``first`` was written to, and how to mend it."""
    copied = [f"{name}.clone()" if name == first else name for name in names.split(", ")]
    copied += [f"{name}={name}.clone()" if name == first else f"{name}={name}" for name in condition]
    return WrittenError(
        f"{who} writes to {first} in place (by an activation with inplace=True, by {first}[...] = or by {first} += ...), and "
        f"{first} is not its own: take a copy first, {first} = {first}.clone(), or hand over "
        f"lambda {', '.join([*names.split(', '), *condition])}: function({', '.join(copied)})"
    )


def drift_of(sde: SDE, x: Tensor, t: Tensor) -> Tensor:
    """The drift of an SDE, which may be a user's, at (x, t)."""
    found: Tensor = reading(f"the drift of {type(sde).__name__}", sde.drift, "x, t", x, t)
    return found


def own(found: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """``found``, copied if it is the state or the network's output itself: a network may write all its outputs to one tensor."""
    return found.clone() if found is out or found is x else found


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in its own dtype, or in float32 if that has fewer digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
