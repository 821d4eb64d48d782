"""The time that a network is handed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.sde import SDE, LinearSDE
from sdediff.solvers.given import Finite, Record, described, nearest, plain, reading

__all__ = [
    "NETWORK_TIMES",
    "NetworkTime",
    "Timesteps",
    "check_network_time",
    "check_time_dtype",
    "read_network_time",
]


@dataclass(frozen=True)
class Timesteps(Record):
    """n t / T + shift: the step index of a network trained on integers, at real numbers too.

    With ``n`` = N and shift = -1 the times t_i = T (i + 1) / N are i = 0..N - 1, as in a DDPM of N
    steps; ``Timesteps(999, shift=0)`` is the convention of Song et al.'s code. A negative ``n``
    counts from noise to data: ``Timesteps(-999, shift=999)``. Nothing is rounded unless
    ``rounded``: then the network gets integers (int64).
    """

    n: Finite = 1000
    shift: Finite = -1.0
    rounded: bool = False

    def __post_init__(self) -> None:
        if self.n == 0:
            raise ValueError("Timesteps: n must be a number other than 0, that of the steps: 1000")

    def __call__(self, sde: SDE, t: Tensor) -> Tensor:
        index = self.n * t / sde.T + self.shift
        return index.round().long() if self.rounded else index


NetworkTime = str | Timesteps | Callable[[Tensor], Tensor]


def _reversed(sde: SDE, t: Tensor) -> Tensor:
    return sde.T - t


def _log_snr(sde: LinearSDE, t: Tensor) -> Tensor:
    return sde.log_snr(t)


def _sigma(sde: LinearSDE, t: Tensor) -> Tensor:
    return sde.sigma(t)


NETWORK_TIMES: Final[dict[str, Callable[[Any, Tensor], Tensor]]] = {
    "t": lambda _, t: t,
    "reversed": _reversed,
    "log_snr": _log_snr,
    "sigma": _sigma,
}
"""Network times with a name. ``reversed`` is T - t, which goes from noise at 0 to data at T."""


def check_network_time(time: NetworkTime, sde: SDE) -> NetworkTime:
    """Return ``time``; a ValueError or TypeError if it is no network time, or takes a kernel that
    the SDE does not have.
    """
    expected = (
        f"time must be one of {', '.join(NETWORK_TIMES)}, Timesteps(1000) or a function of t, got "
        f"{time!r}"
    )
    if isinstance(time, str):
        if time not in NETWORK_TIMES:
            raise ValueError(expected + nearest(time, NETWORK_TIMES))
        if time not in ("t", "reversed") and "kernel" not in sde.offers:
            raise ValueError(
                f"{sde!r} has no Gaussian kernel, so no {time}: hand the network time='t' or a "
                "function of t"
            )
    elif not callable(time):
        hint = f"; write Timesteps({plain(time)!r})" if isinstance(plain(time), int | float) else ""
        raise TypeError(expected + hint)
    return time


def check_time_dtype(dtype: object) -> torch.dtype | None:
    """A dtype of times, or None; a ValueError for anything else."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise ValueError(
        f"time_dtype must be a floating-point dtype, torch.float32 say, or None; got {dtype!r}"
    )


def read_network_time(time: NetworkTime, sde: SDE, t: Tensor) -> Tensor:
    """What the network is handed at float64 host times t, shaped as t."""
    if isinstance(time, str):
        return NETWORK_TIMES[time](sde, t)
    handed = time(sde, t) if isinstance(time, Timesteps) else reading("time", time, "t", t)
    if not isinstance(handed, Tensor) or handed.shape != t.shape:
        raise ValueError(
            f"time(t) must return a tensor of the shape of t, {tuple(t.shape)}; got "
            f"{described(handed)}"
        )
    return handed
