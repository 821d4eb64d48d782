"""Kolmogorov-Smirnov tests of every coordinate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from scipy.special import kolmogorov
from torch import Tensor

from sdediff.metrics.samples import (
    Metric,
    Pool,
    accumulator,
    blocks,
    check_sample,
    measure,
)
from sdediff.solvers.given import described

__all__ = ["KolmogorovSmirnov", "kolmogorov_smirnov"]

# n m up to which paths are counted; numbers of paths stay far below the largest float64
_EXACT: Final = 10_000


@dataclass(frozen=True, eq=False, kw_only=True)
class KolmogorovSmirnov(Metric):
    """The largest statistic of all coordinates, and those of each.

    ``statistics``, ``p_values``: those of the coordinates, float64 on the host, in the shape of an
    event.
    ``p_value``: that of all coordinates at once. It is min(1, d min p), Bonferroni's, or that of
    the largest statistic under random splits where there is a floor.
    """

    statistics: Tensor
    p_values: Tensor


def kolmogorov_smirnov(
    x: Tensor, y_or_cdf: Tensor | Callable[[Tensor], Tensor], *, floor: int = 0, seed: int = 0
) -> KolmogorovSmirnov:
    """Kolmogorov-Smirnov statistic of each coordinate, without units, and its two-sided p-value.

    D = sup_z |F(z) - G(z)|

    for the empirical distribution function F of a coordinate of x (n, *event), and that of y (m,
    *event), or the G that ``y_or_cdf`` computes: from float64 values (b, *event) to their
    probabilities, coordinate by coordinate, in a continuous law. The value is the largest D.

    p = P(D >= observed) is exact for one sample (`scipy.stats.kstwo`) and for two with n m <=
    10,000 (paths on the lattice are counted; in the presence of ties it is an upper bound). Beyond,
    it is Kolmogorov's series at lambda = sqrt(nm / (n + m)) D and a small term for finite n and m
    (Hodges 1958): within 0.015 of the exact p for two of at least 10 rows each. ``floor``: random
    splits of the pooled sample; it needs y. ValueError on samples of different shape or with NaN or
    inf, and on a cdf with values outside [0, 1].
    """
    if isinstance(y_or_cdf, Tensor) or not callable(y_or_cdf):
        return _two_samples(Pool.of(x, y_or_cdf, floor=floor, seed=seed))
    if floor:
        raise ValueError(
            "floor splits a pooled sample, and a cdf has none; the p-value is that of the test: "
            "drop floor"
        )
    return _one_sample(check_sample("x", x), y_or_cdf)


def _two_samples(pool: Pool) -> KolmogorovSmirnov:
    n, m = pool.n, pool.m
    itself = torch.arange(n + m, device=pool.rows.device) < n
    gaps = _gaps(pool, itself[None])[0]
    D = gaps.double() / (n * m)
    p = _count_paths(gaps, n, m) if n * m <= _EXACT else _hodges(D, n, m)
    metric = Metric(float(D.max()), None, _bonferroni(p))
    if pool.floor:
        metric = measure(lambda rows: _gaps(pool, rows).amax(dim=1).double() / (n * m), pool)
    D, p = D.view(pool.event), p.view(pool.event)
    return KolmogorovSmirnov(metric.value, metric.floor, metric.p_value, statistics=D, p_values=p)


def _one_sample(x: Tensor, cdf: Callable[[Tensor], Tensor]) -> KolmogorovSmirnov:
    from scipy.stats import kstwo  # heavy, and kept out of `import sdediff`

    n = len(x)
    with torch.no_grad():
        pieces = [_probabilities(cdf, x[part]) for part in blocks(n, x[0].numel())]
    F = torch.cat(pieces).view(n, -1)
    steps = torch.arange(n + 1, dtype=F.dtype, device=F.device)[:, None] / n
    largest = []
    for part in blocks(F.shape[1], n):
        at = F[:, part].sort(dim=0).values
        largest.append(torch.maximum(steps[1:] - at, at - steps[:-1]).amax(dim=0))
    D = torch.cat(largest).cpu().double()
    p = torch.from_numpy(np.asarray(kstwo.sf(D.numpy(), n)))
    D, p = D.view(x.shape[1:]), p.view(x.shape[1:])
    return KolmogorovSmirnov(float(D.max()), None, _bonferroni(p), statistics=D, p_values=p)


def _probabilities(cdf: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Checked values of the cdf."""
    value = cdf(x.to(accumulator(x.device)))
    if not isinstance(value, Tensor) or value.shape != x.shape:
        raise ValueError(
            f"the cdf returned {described(value)} for values {tuple(x.shape)}: expected a tensor "
            "of the same shape"
        )
    if not bool(((value >= 0) & (value <= 1)).all()):
        raise ValueError(
            "the cdf returned values outside [0, 1], or NaN: expected probabilities P(X <= x)"
        )
    return value


def _gaps(pool: Pool, labels: Tensor) -> Tensor:
    """n m D of each coordinate for each of the labels, (r, d) integers on the host: exact, as D is
    a multiple of 1 / nm.
    """
    n, m = pool.n, pool.m
    gaps: list[Tensor] = []
    for part in blocks(pool.rows.shape[1], len(pool.rows)):
        values, order = pool.rows[:, part].T.sort(dim=1)
        # of equal values: between them F - G is not defined
        last = torch.ones_like(values, dtype=torch.bool)
        last[:, :-1] = values[:, :-1] != values[:, 1:]
        walks = (torch.where(label[order], m, -n).cumsum(dim=1).abs() * last for label in labels)
        gaps.append(torch.stack([walk.amax(dim=1) for walk in walks]))
    return torch.cat(gaps, dim=1).cpu()


def _count_paths(gaps: Tensor, n: int, m: int) -> Tensor:
    """P(D >= gap / nm) without ties: the share of the paths from (0, 0) to (n, m) that meet |i m -
    j n| >= gap somewhere.

    Row by row, paths(i, j) and those of them that have met it, met(i, j) = met(i - 1, j) + met(i, j
    - 1), all of the paths where the point itself does. Those points lie left and right of an
    interval of j, in which the recurrence is a cumulative sum.
    """
    n, m = min(n, m), max(n, m)
    shares = []
    for part in blocks(len(gaps), m + 1):
        gap, j = gaps[part, None], torch.arange(m + 1)
        paths = (j == 0).double()
        met = torch.zeros(len(gap), m + 1, dtype=torch.float64)
        for i in range(n + 1):
            paths = paths.cumsum(dim=0)
            left, right = i * m - j * n >= gap, j * n - i * m >= gap
            # paths grow with j: those of the last on the left
            enter = torch.where(left, paths, 0.0).amax(dim=1, keepdim=True)
            met = torch.where(left | right, paths, enter + met.masked_fill(left, 0.0).cumsum(dim=1))
        shares.append(met[:, -1] / paths[-1])
    return torch.cat(shares)


def _hodges(D: Tensor, n: int, m: int) -> Tensor:
    """Kolmogorov's series at Hodges' shift for n <= m, less half the spacing of the values that D
    can have.
    """
    low, high = min(n, m), max(n, m)
    shift = ((high + 2 * low) / 3 - math.gcd(n, m)) / 2
    z = (n * m * D + shift) / math.sqrt(n * m * (n + m))
    return torch.from_numpy(np.asarray(kolmogorov(z.numpy())))


def _bonferroni(p: Tensor) -> float:
    return min(1.0, float(p.min()) * p.numel())
