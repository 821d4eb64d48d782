"""At which times an objective looks: densities, strata and importance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sdediff.drawing import drawn
from sdediff.sde import LinearSDE
from sdediff.solvers.given import Count, Finite, Positive, Record, nearest, reals

__all__ = [
    "TIMES",
    "LogNormal",
    "LogitNormal",
    "Proposal",
    "StepTimes",
    "TimeLaw",
    "Times",
    "check_times",
    "time_at",
    "uniform",
]

_INSIDE: Final = 1e-6


class TimeLaw(Record):
    """A density of t: ``law(sde, u)`` is the time that a uniform u (B,) becomes, in [t_min,
    t_max].
    """

    def __call__(self, sde: LinearSDE, u: Tensor) -> Tensor:
        raise NotImplementedError


def _share(sde: LinearSDE, share: Tensor) -> Tensor:
    times: Tensor = sde.t_min + (sde.t_max - sde.t_min) * share
    return times


class _Uniform(TimeLaw):
    def __call__(self, sde: LinearSDE, u: Tensor) -> Tensor:
        return _share(sde, u)


@dataclass(frozen=True)
class LogitNormal(TimeLaw):
    """The share of [t_min, t_max] has a logit ~ N(location, scale^2): weight where signal and noise
    are of one size and details form (Esser et al. 2024, arXiv 2403.03206, section 3.1, with 0 and
    1).
    """

    location: Finite = -1.0
    scale: Positive = 1.2

    def __call__(self, sde: LinearSDE, u: Tensor) -> Tensor:
        return _share(
            sde,
            torch.sigmoid(
                self.location + self.scale * torch.special.ndtri(u.clamp(_INSIDE, 1 - _INSIDE))
            ),
        )


@dataclass(frozen=True)
class LogNormal(TimeLaw):
    """log(sigma / alpha) ~ N(location, scale^2), within the usable range (Karras et al. 2022, arXiv
    2206.00364, Table 1).

    ``location`` is by default the published -1.2, for lengths in the units in which the SDE was
    declared.
    """

    location: Finite | None = None
    scale: Positive = 1.2

    def __call__(self, sde: LinearSDE, u: Tensor) -> Tensor:
        ends = -0.5 * sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
        location = -1.2 + math.log(sde.unit) if self.location is None else self.location
        low, high = torch.special.ndtr((ends - location) / self.scale)
        if not float(high - low) > 1e-6:
            raise ValueError(
                f"{self!r} lies outside the usable range of {sde!r}, log(sigma / alpha) = "
                f"{ends.tolist()}"
            )
        level = location + self.scale * torch.special.ndtri(
            low + u.clamp(_INSIDE, 1 - _INSIDE) * (high - low)
        )
        time: Tensor = sde.time_of(-2 * torch.maximum(torch.minimum(level, ends[1]), ends[0]))
        return time.clamp(sde.t_min, sde.t_max)


@dataclass(frozen=True)
class StepTimes(TimeLaw):
    """The times from which ``steps`` equal steps of sampling start, t_min + (t_max - t_min) j /
    steps for j = 1 to ``steps``, each equally likely.

    On the pairs of `reflow` a loss at these times distils the flow into so many evaluations (Liu et
    al. 2023, arXiv 2209.03003, section 3.2; InstaFlow, arXiv 2309.06380): with one step
    ``Coupled(FlowMatching(times=StepTimes(1)))`` is the squared error of the data that a pair's
    noise goes to.
    """

    steps: Count = 1

    def __call__(self, sde: LinearSDE, u: Tensor) -> Tensor:
        return _share(sde, (torch.floor(u * self.steps) + 1).clamp(max=self.steps) / self.steps)


Times = Callable[[Tensor], Tensor] | TimeLaw

TIMES: Final[dict[str, TimeLaw]] = {
    "uniform": _Uniform(),
    "logit-normal": LogitNormal(),
    "log-normal": LogNormal(),
}
"""Densities of t by name."""


def check_times(times: object) -> None:
    """A ValueError unless it is a name or a function."""
    if not callable(times) and not (isinstance(times, str) and times in TIMES):
        raise ValueError(
            f"times must be one of {', '.join(TIMES)} or a function, got "
            f"{times!r}{nearest(str(times), TIMES)}"
        )


def time_at(times: str | Times, sde: LinearSDE, u: Tensor) -> Tensor:
    """The times that uniform u (B,) become."""
    law = TIMES[times] if isinstance(times, str) else times
    if isinstance(law, TimeLaw):
        return law(sde, u)
    share = reals("times(u)", law(u))
    if share.shape != u.shape or not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError(
            f"times(u) must be shares of the range in [0, 1], shaped as u, {tuple(u.shape)}; got "
            f"{tuple(share.shape)}"
        )
    return _share(sde, share)


def uniform(count: int, generator: torch.Generator | None, *, stratified: bool) -> Tensor:
    """Uniform u (count,), float64 on the host: with ``stratified`` (i + u_i) / count in random
    order.
    """

    def draw(count: int, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        return (torch.randperm(count, generator=generator) + u) / count if stratified else u

    return drawn(count, generator, draw)


class Proposal:
    """A density q(u) on [0, 1] in proportion to a positive function of u: constant on each of 1,024
    pieces.

    A tenth of it is uniform, so that weights 1 / q stay below 10. What is drawn is weighted by the
    q that there is: no bias comes from the pieces.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], pieces: int = 1024, rest: float = 0.1
    ) -> None:
        size = function((torch.arange(pieces, dtype=torch.float64) + 0.5) / pieces)
        if (
            not bool(torch.isfinite(size).all())
            or not bool((size >= 0).all())
            or not float(size.sum()) > 0
        ):
            raise ValueError(
                "importance needs a weight that is finite, not negative and not 0 everywhere on "
                "the usable range"
            )
        self.density = (1 - rest) * size / size.mean() + rest
        self.cumulative = (
            torch.cat([torch.zeros(1, dtype=torch.float64), self.density.cumsum(0)]) / pieces
        )

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(v, weights): v (B,) of density q from uniform u, and 1 / q(v)."""
        total = self.cumulative[-1]
        piece = (
            torch.searchsorted(self.cumulative, u * total, right=True)
            .sub(1)
            .clamp(0, len(self.density) - 1)
        )
        inside = (u * total - self.cumulative[piece]) * len(self.density) / self.density[piece]
        return ((piece + inside.clamp(0, 1)) / len(self.density)).clamp(0, 1), 1 / self.density[
            piece
        ]
