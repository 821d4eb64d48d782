"""What the arguments have to be that hold one entry a sample: shapes, states, conditions and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sdediff import solvers
from sdediff.calls import check_names
from sdediff.solvers import Noise
from sdediff.solvers.scalars import plain, whole

__all__ = ["check_condition", "check_seed", "check_shape", "check_states", "one_place", "row_seeds"]


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """(B, *event), positive ints."""
    one = plain(shape)
    given = (one,) if isinstance(one, int) else tuple(one) if isinstance(one, Iterable) else ()
    hint = f": shape is (B, *event) with positive ints, (64, 1, 28, 28) say; got {shape!r}"
    if not given:
        raise ValueError(f"shape must have a first dimension, the number of samples{hint}")
    return tuple(whole(f"shape[{i}]", n, 1, hint=hint) for i, n in enumerate(given))


def check_states(name: str, x: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Finite floating-point states (B, *event)."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 1 or (shape is not None and tuple(x.shape) != shape):
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a floating-point tensor of shape {shape or '(B, *event)'}, got {got}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} contains values that are not finite")
    return x


def check_condition(
    condition: Mapping[str, Tensor] | None,
    count: int,
    net: Callable[..., Any] | None,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Tensors with leading dimension B by the names of arguments of ``net``, on ``device`` if there is one."""
    if condition is None:
        return {}
    check_names(condition, net)
    for name, value in condition.items():
        if not isinstance(value, Tensor) or value.ndim < 1 or value.shape[0] != count:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"condition {name!r} must be a tensor with leading dimension {count}, got {got}; "
                "what all samples share goes into the network by functools.partial"
            )
    return {name: value if device is None else value.to(device) for name, value in condition.items()}


def check_seed(
    seed: int | Sequence[int] | None,
    noise: Noise | None,
    shape: tuple[int, ...],
    device: torch.device | None = None,
    group: int = 1,
) -> tuple[int, ...] | None:
    """One seed a sample, or one for each ``group`` of rows; None where there is a noise object.

    That is for these samples and on this device, as far as it says.
    """
    count = shape[0] // group
    if noise is not None:
        if seed is not None:
            raise ValueError("seed and noise are two ways to say the same: pass one of them")
        seeds, event = getattr(noise, "seeds", None), getattr(noise, "event", None)
        if seeds is not None and event is not None and (len(seeds), *event) != shape:
            raise ValueError(f"the noise is for samples of shape {(len(seeds), *event)}, and shape is {shape}")
        place = getattr(noise, "device", None)
        if place is not None and device is not None and not one_place(torch.device(place), device):
            raise ValueError(f"the noise is on {place}, and the states are on {device}: make it with device={str(device)!r}")
        return None
    if seed is None:
        return solvers.seeds(solvers.fresh_seed(), count)
    either = f"one non-negative int, or one for each of the {count} {'samples' if group == 1 else 'groups'}"
    one = plain(seed)
    if isinstance(one, Real) or not isinstance(one, Iterable):
        return solvers.seeds(whole("seed", one, kind=either), count)
    given = tuple(whole("seed", s, kind=either) for s in one)
    if len(given) != count:
        raise ValueError(f"seed must be {either}; got {len(given)} of them")
    return given


def row_seeds(seeds: tuple[int, ...], group: int = 1) -> tuple[int, ...]:
    """A seed for each row: row j of a ``group`` has the seed j that the group's seed makes."""
    if group == 1:
        return seeds
    return tuple(row for seed in seeds for row in solvers.seeds(seed, group))


def one_place(a: torch.device, b: torch.device) -> bool:
    """Whether two devices are the same."""
    return (a.type, a.index or 0) == (b.type, b.index or 0)
