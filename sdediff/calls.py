"""What a network may be handed, samples and conditions among it, and what it may return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdediff.solvers.given import described, nearest, plain

__all__ = [
    "Condition",
    "check_condition",
    "check_floating",
    "check_known",
    "check_names",
    "check_states",
    "check_taken",
    "doubled",
    "let_check",
    "one_place",
    "tensor_of",
]

Condition = Mapping[str, Tensor | float]
"""Values by the names of the network's arguments: tensors with a row for each sample, or one value
for all, a number or a tensor with leading dimension 1.
"""


def check_names(condition: object, net: Callable[..., Any] | None, who: str = "condition") -> None:
    """A ValueError or TypeError unless a condition is a dictionary by names that the network has
    for no other argument.
    """
    if not isinstance(condition, Mapping):
        raise TypeError(
            f"{who} must be a dict from the network's argument to a value, {who}={{'label': y}} "
            f"say; got {type(condition).__name__}"
        )
    taken = {} if net is None else _first_two(net)
    for name in condition:
        if not isinstance(name, str):
            raise TypeError(f"conditions have the names of the network's arguments, got {name!r}")
        if name in taken:
            raise ValueError(
                f"the condition {name!r} has the name of the argument in which the network takes "
                f"{taken[name]}: rename it, in the network too"
            )


def check_floating(name: str, x: object) -> None:
    """A TypeError unless it is a floating-point tensor (B, *event)."""
    if not isinstance(x, Tensor) or x.ndim < 1 or not x.is_floating_point():
        raise TypeError(
            f"{name} must be a floating-point tensor (B, *event), got {described(x)}; use x.float()"
        )


def check_taken(
    condition: Mapping[str, object], net: Callable[..., Any], own: Iterable[str] = ()
) -> None:
    """A TypeError unless the network, as far as its signature tells, takes all of these conditions
    and needs no other. The process keeps ``own`` for itself.
    """
    check_known(condition, net)
    taken = _parameters(net)
    if any(each.kind is each.VAR_POSITIONAL for each in taken):
        return
    known = {each.name: each for each in taken[2:] if each.kind is not each.VAR_KEYWORD}
    for name, each in known.items():
        if each.default is each.empty and name not in condition:
            if name in own:
                raise TypeError(
                    f"the network needs the condition {name!r}, which is the process's own and is "
                    "not handed on: give the network's another name, and pass both; or, if the "
                    f"process is a Function, leave {name!r} out of own="
                )
            raise TypeError(
                f"the network needs the condition {name!r}: pass condition={{{name!r}: ...}}"
            )


def check_known(names: Iterable[str], net: Callable[..., Any], who: str = "") -> None:
    """A TypeError unless the network, as far as its signature tells, takes conditions of these
    names; it begins with ``who``.
    """
    taken = _parameters(net)
    if not taken or any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in taken):
        return
    known = [each.name for each in taken[2:]]
    has = f"; it takes {', '.join(known) or 'none'}"
    for name in names:
        if name not in known:
            raise TypeError(
                f"{who}the network takes no condition {name!r}{nearest(name, known)}{has}"
            )


def _parameters(net: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a network, x and t first; none where its signature is not known."""
    try:
        called = net.forward if isinstance(net, nn.Module) else net
        return list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return []


def _first_two(net: Callable[..., Any]) -> dict[Any, str]:
    """The names of the arguments in which a network takes states and times."""
    first = zip(_parameters(net), ("states", "times"), strict=False)
    return {each.name: what for each, what in first if each.kind is each.POSITIONAL_OR_KEYWORD}


def doubled(shape: torch.Size) -> torch.Size:
    """The shape with twice the channels, (B, 2 C, ...)."""
    if len(shape) < 2:
        raise ValueError(
            "learned_variance needs states (B, C, ...) with channels to double, got shape "
            f"{tuple(shape)}"
        )
    return torch.Size([shape[0], 2 * shape[1], *shape[2:]])


def tensor_of(out: object, shape: torch.Size, why: str = " of the shape of its input") -> Tensor:
    """Return the tensor of that shape that a network returned, or an object with it as ``.sample``;
    a ValueError without one.
    """
    found = out if isinstance(out, Tensor) else getattr(out, "sample", out)
    if isinstance(found, Tensor) and found.shape == shape and not found.is_complex():
        return found
    kind = "complex numbers of " if isinstance(found, Tensor) and found.is_complex() else ""
    got = f"{kind}shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    hint = _mending(found, shape, learned="learned_variance" in why)
    raise ValueError(f"the network must return a tensor{why}, {tuple(shape)}, got {got}{hint}")


def _mending(out: object, shape: torch.Size, *, learned: bool) -> str:
    """How to bring what a network returned into the shape that is wanted; "" where that is not
    plain.
    """
    if isinstance(out, Tensor):
        if (
            out.ndim < 2
            or len(shape) < 2
            or out[:, :1].shape != torch.Size([shape[0], 1, *shape[2:]])
        ):
            return ""
        if out.shape[1] == 2 * shape[1]:
            return (
                "; twice the channels are a prediction and its variance: ScoreModel(..., "
                "learned_variance=True)"
            )
        if learned and 2 * out.shape[1] == shape[1]:
            return (
                "; with learned_variance it has twice the channels of x: drop learned_variance=True"
            )
        return ""
    if out is None:
        return "; is there a return at its end?"
    parts: dict[Any, Any] = {}
    if isinstance(out, Mapping):
        parts = dict(out)
    elif isinstance(out, list | tuple):
        parts = dict(enumerate(out))
    names = [key for key, x in parts.items() if isinstance(x, Tensor) and x.shape == shape]
    if not parts:
        return "; convert it to a tensor, in the network or in a function around it"
    if not names:
        return "; wrap it in a function that returns the prediction alone"
    return f"; wrap it: lambda x, t, **condition: net(x, t, **condition)[{names[0]!r}]"


def check_states(name: str, x: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Finite floating-point states (B, *event)."""
    if (
        not isinstance(x, Tensor)
        or not x.is_floating_point()
        or x.ndim < 1
        or (shape is not None and tuple(x.shape) != shape)
    ):
        raise ValueError(
            f"{name} must be a floating-point tensor of shape {shape or '(B, *event)'}, got "
            f"{described(x)}"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} contains values that are not finite")
    return x


def check_condition(
    condition: Condition | None,
    count: int,
    net: Callable[..., Any] | None,
    device: torch.device | None = None,
    *,
    event: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Tensors with leading dimension B by the names of arguments of ``net``, on ``device`` if there
    is one; a number, or a tensor with leading dimension 1, is expanded to all samples. A network
    with a method ``check_condition`` of such a dictionary looks at it too, and is told the
    ``event`` of the states where its method takes that.
    """
    if condition is None:
        return {}
    check_names(condition, net)
    found = {}
    for name, given in condition.items():
        value = _tensor(given, device)
        if value is not None and (value.ndim == 0 or value.shape[0] == 1):
            value = value.expand(count, *value.shape[1:])
        if value is None or value.shape[0] != count:
            raise ValueError(
                f"condition {name!r} must be a tensor with leading dimension {count}, or one value "
                "for all samples, a number or a tensor with leading dimension 1; got "
                f"{described(given if value is None else value)}"
            )
        found[name] = value
    let_check(net, found, event)
    return found


def let_check(
    net: Callable[..., Any] | None,
    condition: Mapping[str, Tensor],
    event: Sequence[int] | None = None,
) -> None:
    """Let a network with a method ``check_condition`` look at conditions before it is called."""
    check: Callable[..., None] | None = getattr(net, "check_condition", None)
    if check is None:
        return
    if "event" in inspect.signature(check).parameters:
        check(condition, event=None if event is None else tuple(event))
    else:
        check(condition)


def _tensor(value: object, device: torch.device | None) -> Tensor | None:
    """The value as a tensor; None for what is neither a tensor nor a number."""
    number = plain(value)
    if isinstance(number, float):  # the network gets it in its own dtype
        least = device is not None and device.type == "mps"
        return torch.tensor(number, dtype=torch.float32 if least else torch.float64, device=device)
    if isinstance(number, int):
        return torch.tensor(number, device=device)
    if isinstance(value, Tensor):
        return value if device is None else value.to(device)
    return None


def one_place(a: torch.device, b: torch.device) -> bool:
    """Whether two devices are the same."""
    return (a.type, a.index or 0) == (b.type, b.index or 0)
