"""Time grids: plain functions of (steps, start, end, schedule) that return float64 tensors of steps
+ 1 times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.given import Numbers, real, reals

__all__ = [
    "GRIDS",
    "LogSNR",
    "central",
    "check_grid",
    "fine",
    "inner",
    "karras",
    "log_snr",
    "logistic",
    "polyexponential",
    "quadratic",
    "uniform",
]

FINE, COARSE = 0.07, 0.15
"""Details are fine if their standard deviation is below the first share of that of the data, and
coarse if it is above the second.
"""
_FEWEST: Final = 4
"""Steps from which on there is a grid for fine details: fewer do not get to the details."""
_FARTHEST: Final = 20.0
_REACH: Final = 10.2
"""How far log-SNR goes for `inner`: noise of 160 times the data, and of 1 / 160 of them."""
_MANY: Final = 20
"""Steps from which on `inner` is `central`."""


class LogSNR(NamedTuple):
    """What a grid knows of a schedule."""

    log_snr: Callable[[Tensor], Tensor]
    """log(alpha^2 / sigma^2) at float64 times (n,)."""
    time_of: Callable[[Tensor], Tensor]
    """The times at which ``log_snr`` has given values (n,): its inverse."""
    bounded: bool = False
    """Whether an end of infinite log-SNR is placed as if log-SNR were -20 or 20 there; else it is
    refused.
    """
    details: float | None = None
    """The standard deviation of the details of the data over that of the data, where it was
    measured.
    """


def uniform(steps: int, start: float, end: float, schedule: LogSNR | None = None) -> Tensor:
    """t_i = start + (end - start) i / steps."""
    return polynomial(steps, start, end, power=1.0)


def quadratic(steps: int, start: float, end: float, schedule: LogSNR | None = None) -> Tensor:
    """Uniform in sqrt(t): t_i = (sqrt(start) + (sqrt(end) - sqrt(start)) i / steps)^2, finer near t
    = 0.

    The quadratic spacing of DDIM (Song et al. 2021, arXiv 2010.02502, D.2).
    """
    return polynomial(steps, start, end, power=2.0)


def polynomial(steps: int, start: float, end: float, *, power: float) -> Tensor:
    """Uniform in t^(1 / power), its ends exact."""
    root = 1.0 / power
    times = torch.linspace(start**root, end**root, steps + 1, dtype=torch.float64) ** power
    times[0], times[-1] = start, end
    return times


def log_snr(steps: int, start: float, end: float, schedule: LogSNR | None = None) -> Tensor:
    """Uniform in log-SNR, l_i = l_start + (l_end - l_start) i / steps (Lu et al. 2022, arXiv
    2206.00927, Section 3.4).
    """
    ends, levels, time_of = _ends("log_snr", start, end, schedule)
    if steps == 1:
        return ends
    first, last = levels.tolist()
    place = torch.linspace(first, last, steps + 1, dtype=torch.float64)[1:-1]
    return torch.cat([ends[:1], time_of(place), ends[1:]])


def polyexponential(
    steps: int, start: float, end: float, schedule: LogSNR | None = None, *, rho: float = 1.0
) -> Tensor:
    """Log-SNR with a power: l_i = l_end + (1 - i / steps)^rho (l_start - l_end), finer near the
    data for rho > 1 and near the noise for rho < 1.

    The grid of that name of k-diffusion, in sigma / alpha; rho = 1 is `log_snr`, its
    "exponential".
    """
    rho = real("polyexponential: rho", rho)
    if not 0 < rho < math.inf:
        raise ValueError(f"polyexponential: rho must be a positive number, got {rho!r}")
    ends, levels, time_of = _ends("polyexponential", start, end, schedule)
    if steps == 1:
        return ends
    first, last = levels.tolist()
    share = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1] ** rho
    return torch.cat([ends[:1], time_of(last + share * (first - last)), ends[1:]])


def karras(
    steps: int, start: float, end: float, schedule: LogSNR | None = None, *, rho: float = 7.0
) -> Tensor:
    """Uniform in s^(1 / rho), s = sigma / alpha (Karras et al. 2022, arXiv 2206.00364, eq. 5):

    s_i = (s_start^(1 / rho) + i / steps (s_end^(1 / rho) - s_start^(1 / rho)))^rho, finer in
    log-SNR where there is much noise.
    """
    ends, levels, time_of = _ends("karras", start, end, schedule)
    if steps == 1:
        return ends
    first, last = (-levels / (2 * rho)).exp().tolist()
    place = torch.linspace(first, last, steps + 1, dtype=torch.float64)[1:-1]
    return torch.cat([ends[:1], time_of(-2 * rho * place.log()), ends[1:]])


def logistic(
    steps: int,
    start: float,
    end: float,
    schedule: LogSNR | None = None,
    *,
    centre: float = 2.0,
    width: float | None = None,
) -> Tensor:
    """Uniform in p = 1 / (1 + exp(-(l - centre) / width)), l the log-SNR: l_i = centre + width
    log(p_i / (1 - p_i)).

    Intervals in l are shortest at ``centre``, where noise goes from the size of the data (l = 0) to
    that of their details and samples are decided, and grow as cosh^2((l - centre) / (2 width)) to
    both sides, where the flow is nearly linear. Centre 0 and width 2 are times uniform under alpha
    = 1 - t and sigma = t. ``width`` is 4 below 8 steps and 5 from there on; both numbers and
    ``centre`` were chosen by measurement (docs/solvers.md), for data whose coordinates have a
    variance near 1.
    """
    size = width if width is not None else 4.0 if steps < 8 else 5.0
    ends, levels, time_of = _ends("logistic", start, end, schedule)
    return _logistic(steps, ends, levels, time_of, centre, size)


def _logistic(
    steps: int,
    ends: Tensor,
    levels: Tensor,
    time_of: Callable[[Tensor], Tensor],
    centre: float,
    width: float,
) -> Tensor:
    """Times from the first of ``ends`` to the last; those between have places that are uniform
    between those of the log-SNRs ``levels``.
    """
    if steps == 1:
        return ends
    first, last = torch.sigmoid((levels - centre) / width).tolist()
    place = torch.linspace(first, last, steps + 1, dtype=torch.float64)[1:-1]
    return torch.cat([ends[:1], time_of(centre + width * torch.logit(place)), ends[1:]])


def central(steps: int, start: float, end: float, schedule: LogSNR | None = None) -> Tensor:
    """`logistic` with centre min(0.75, 15 / N) and width 3 + 2 / N for N steps: finer in the
    middle, coarser at both ends.

    For polynomials in the angle arctan(sigma / alpha), which are bounded at both ends. The more
    steps there are, the more of the error comes from high noise, where samples choose among distant
    parts of the data. All numbers were chosen by measurement (docs/solvers.md), for data whose
    coordinates have a variance near 1.

    Where ``schedule.details`` are `fine`, of size r, the centre is 0.65 log(1 / r) and the width
    1.6 + 0.55 log(1 / r): from where samples choose among the parts of the data to where the noise
    is as small as the details are.
    """
    return _central("central", steps, start, end, schedule, cut=False)


def inner(steps: int, start: float, end: float, schedule: LogSNR | None = None) -> Tensor:
    """`central`, below 20 steps as if log-SNR went from -10.2 to 10.2 at most: for solves without
    noise.

    One step is enough from or to farther noise, where the flow is nearly linear. With five steps
    under ``RectifiedFlow`` and ``Cosine``, whose log-SNR goes from -20 to 14 and to 10, fewer
    samples end in another part of the data than on `central`. Nothing is cut unless log-SNR is
    below 0 at one end and above at the other, nor from 20 steps on, where every step has to shrink
    as there are more; where details are `fine`, which little noise hides, only -10.2 counts.
    """
    return _central("inner", steps, start, end, schedule, cut=True)


def _central(
    name: str, steps: int, start: float, end: float, schedule: LogSNR | None, *, cut: bool
) -> Tensor:
    ends, levels, time_of = _ends(name, start, end, schedule)
    details = None if schedule is None else fine(schedule.details, steps)
    if cut and steps < _MANY and float(levels.prod()) < 0:
        levels = levels.clamp(-_REACH, _REACH if details is None else None)
    if details is not None:
        far = -math.log(details)
        if steps == _FEWEST:  # wider, else some samples in 64 dimensions are lost
            return _logistic(steps, ends, levels, time_of, 0.6 * far, 2.4 + 0.75 * far)
        return _logistic(steps, ends, levels, time_of, 0.65 * far, 1.6 + 0.55 * far)
    return _logistic(steps, ends, levels, time_of, min(0.75, 15 / steps), 3 + 2 / steps)


def fine(details: float | None, steps: int) -> float | None:
    """The standard deviation of details over that of the data, if it was measured and is so small
    that the default solver has other orders and another grid of ``steps`` steps for it; else None.
    """
    return details if details is not None and details < FINE and steps >= _FEWEST else None


def _ends(
    name: str, start: float, end: float, schedule: LogSNR | None
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """The two ends of a grid made in log-SNR, log-SNR there, and the times of log-SNRs between."""
    if schedule is None:
        raise ValueError(
            f"the grid {name!r} is made in log-SNR, which needs a Gaussian kernel; take "
            "grid='uniform'"
        )
    ends = torch.tensor([start, end], dtype=torch.float64)
    levels = schedule.log_snr(ends)
    if schedule.bounded:
        levels = levels.nan_to_num(posinf=_FARTHEST, neginf=-_FARTHEST)
    if not bool(torch.isfinite(levels).all()):
        i = int((~torch.isfinite(levels)).nonzero()[0])
        raise ValueError(
            f"the grid {name!r} is made in log-SNR, which is {float(levels[i]):g} at t = "
            f"{float(ends[i]):g}: "
            f"{'start below' if i == 0 else 'end above'} that time "
            f"(t_{'start' if i == 0 else 'end'}), or take grid='uniform'"
        )
    return ends, levels, schedule.time_of


GRIDS: Final[dict[str, Callable[[int, float, float, LogSNR | None], Tensor]]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "log_snr": log_snr,
    "polyexponential": polyexponential,
    "karras": karras,
    "logistic": logistic,
    "central": central,
    "inner": inner,
}
"""Grids with a name."""


def check_grid(times: Numbers) -> Tensor:
    """Return ``times`` as float64 on the host; a ValueError unless it is strictly monotone and
    finite: a vector (N + 1,), or (N + 1, B) with a grid for each sample, all of them in one
    direction.
    """
    times = reals("the grid", times).cpu()
    if times.ndim not in (1, 2) or times.numel() < 1:
        raise ValueError(
            f"a grid is a vector of times, got shape {tuple(times.shape)}; pass "
            "torch.linspace(t_max, t_min, N + 1), say"
        )
    if not bool(torch.isfinite(times).all()):
        raise ValueError("the grid contains times that are not finite; drop them")
    step = times.diff(dim=0)
    if step.ndim == 2 and step.numel():
        way = step[0, 0].sign()
        wrong = torch.nonzero((step.sign() != way).any(dim=0) | (way == 0)).flatten().tolist()
        if wrong:
            first, last = times[[0, -1], wrong[0]].tolist()
            raise ValueError(
                "the grids of the samples are not strictly monotone in one direction: that of "
                "sample "
                f"{wrong[0]}, from {first:.6g} to {last:.6g}, is not as those before it; sort "
                "it, drop "
                "repeated times, and let all samples start on one side of where they end"
            )
    if step.numel() and not (bool((step < 0).all()) or bool((step > 0).all())):
        worst = int((step * step.sum().sign()).argmin())
        raise ValueError(
            f"the grid is not strictly monotone: times {worst} and {worst + 1} are "
            f"{float(times[worst]):.6g} and "
            f"{float(times[worst + 1]):.6g}; sort it and drop repeated times"
        )
    return times
