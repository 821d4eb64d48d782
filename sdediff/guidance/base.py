"""How strongly a model is guided, and at which noise levels: what all guidance shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sdediff.operator import Operator
from sdediff.protocols import Like, Model, Piece, Rows, facts
from sdediff.solvers.arithmetic import Number, along, planned
from sdediff.solvers.given import Record, plain, reading, real, reals

__all__ = ["Guidance", "Interval", "NoiseLevels", "Scale"]

Scale = float | Tensor | Callable[[Tensor], Any]
"""A number, a tensor (B,) with a number for each sample, or a smooth function of the time t."""


@dataclass(frozen=True)
class NoiseLevels(Record):
    """An interval of sigma / alpha in units of the standard deviation of the data: from ``low`` to
    ``high``.

    ``low`` may be 0 and ``high`` infinite. If an interval is published as sigma of EDM, divide it
    by EDM's sigma_data: (0.19, 1.61] of Kynkaanniemi et al. 2024 (arXiv 2404.07724), for latents of
    standard deviation 0.5, is ``NoiseLevels(0.38, 3.22)``.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(
                "NoiseLevels: low and high must satisfy 0 <= low < high, in units of the data's "
                f"standard deviation; got {self.low!r} and {self.high!r}"
            )

    def log_snr(self, data_std: float) -> tuple[float, float]:
        """The same interval in log-SNR."""
        unit = -2 * math.log(data_std)
        return (
            -math.inf if math.isinf(self.high) else unit - 2 * math.log(self.high),
            unit - 2 * math.log(self.low) if self.low else math.inf,
        )


Interval = tuple[float, float] | NoiseLevels
"""(low, high) in log-SNR, log(alpha^2 / sigma^2), whose ends may be infinite; or `NoiseLevels`."""


class Guidance(Operator):
    """Base of all guidance: a model made of ``model``, which it changes by a ``scale`` at the noise
    levels of an ``interval``.

    ``scale``: a number, a tensor (B,) with a number for each sample of a call, or a function of t,
    from float64 host times (n,) to as many numbers, which must be smooth inside the interval.
    ``interval``: (low, high) in log-SNR, log(alpha^2 / sigma^2), or `NoiseLevels`. None, the
    default, is all noise levels. Outside the interval only the model inside is evaluated. The ends
    are `breaks`: every grid contains them, and a step that begins or ends there takes the value on
    its own side.

    Raises ValueError if the interval is empty under the model's SDE. A subclass calls `strengths`
    in its `at`, and `strength` in its `evaluate`.
    """

    shift: float = 0.0
    """What a subclass adds to the scale."""
    extrapolates: bool = False
    """Whether predictions are u + s (c - u), with s the scale and the shift together. Without an
    interval the model then says its ``guidance_scale``, by which the default solver goes.
    """

    def __init__(self, model: Model, scale: Scale, interval: Interval | None = None) -> None:
        super().__init__(model)
        name = f"{type(self).__name__}: scale"
        self.scale = scale if callable(scale) else _numbers(name, scale)
        self.interval = interval
        self._times = (
            (-math.inf, math.inf)
            if interval is None
            else _times_of(interval, model, type(self).__name__)
        )
        self.breaks = tuple(t for t in self._times if math.isfinite(t))
        if self.extrapolates and not self.breaks:
            one = self.scale if isinstance(self.scale, float) else math.inf
            self.guidance_scale = one + self.shift

    def strengths(self, times: Tensor, like: Like, piece: Piece | None) -> Sequence[Number | None]:
        """For each of ``times`` (n,) or (n, rows) what `strength` takes; None outside the
        interval.
        """
        low, high = self._times
        if piece is not None and not (low <= piece[0] and piece[1] <= high):
            return [None] * len(times)
        if not callable(self.scale):
            return [self.scale + self.shift] * len(times)
        name, flat = f"{type(self).__name__}: scale(t)", times.reshape(-1)
        found = reals(name, reading("scale", self.scale, "t", flat)) + self.shift
        if found.shape not in ((), flat.shape) or not bool(torch.isfinite(found).all()):
            raise ValueError(
                f"{name} must return a finite number, or one for each of the {len(flat)} times; "
                f"got {found}"
            )
        column = found.expand(flat.shape).reshape(times.shape)
        return cast(Sequence[Number], planned(len(times), like, column)[0])

    def strength(self, planned: Number | None, x: Tensor, rows: Rows) -> Number | None:
        """The scale for states x (rows, *event); None outside the interval."""
        if not isinstance(self.scale, Tensor):
            return planned
        if len(self.scale) != rows.size:
            raise ValueError(
                f"{type(self).__name__}: scale has {len(self.scale)} numbers for {rows.size} "
                "samples: pass one number, or one for each sample"
            )
        if planned is None:
            return None
        numbers = cast(Tensor, planned)
        return along(numbers[rows.index.to(numbers.device)].to(x.dtype), x)


def _numbers(name: str, scale: Any) -> float | Tensor:
    """A scale that is a finite number, or float64 (B,)."""
    if not isinstance(plain(scale), Sequence | Tensor) and not hasattr(plain(scale), "__array__"):
        number = real(name, scale, "; or give a tensor (B,), or a function of t")
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {number}")
        return number
    found = reals(name, scale)
    if found.ndim != 1 or not bool(torch.isfinite(found).all()):
        raise ValueError(
            f"{name} must be a finite number, one for each sample, (B,), or a function of t; got "
            f"shape {tuple(found.shape)}"
            + ("" if found.ndim != 1 else " with numbers that are not finite")
        )
    return found


def _times_of(interval: Interval, model: Model, name: str) -> tuple[float, float]:
    """The times between which the log-SNR lies in an interval; infinite where it reaches beyond the
    SDE's ends.
    """
    sde = model.sde
    if "kernel" not in sde.offers:
        raise ValueError(
            f"{name}: interval is in log-SNR, and {sde!r} has no Gaussian kernel, so none: let the "
            "scale be a function of t"
        )
    if isinstance(interval, NoiseLevels):
        low, high = interval.log_snr(facts(model).data_std)
    else:
        try:
            low, high = (real(f"{name}: interval", end) for end in interval)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name}: interval must be two log-SNRs, (-4, 4) say, or NoiseLevels(0.1, 10); got "
                f"{interval!r}"
            ) from error
    ends = torch.tensor([sde.t_max, sde.t_min, sde.T, 0.0], dtype=torch.float64)
    first, last, least, most = sde.log_snr(ends).tolist()
    if not (low < high and low < last and high > first):
        raise ValueError(
            f"{name}: interval {interval!r} is empty: in log-SNR it must be (low, high) with low < "
            f"high, and {sde!r} goes from {first:.3g} (noise) to {last:.3g} (data)"
        )

    def time(level: float) -> float:
        return float(sde.time_of(torch.tensor(level, dtype=torch.float64)))

    return -math.inf if high >= most else time(high), math.inf if low <= least else time(low)
