"""Distances of two samples: energy distance and maximum mean discrepancy, sums over pairs, and
optimal transport along random directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from sdediff.metrics.samples import (
    Metric,
    Pool,
    Statistic,
    blocks,
    check_count,
    generator,
    measure,
)
from sdediff.solvers.given import check_choice, plain, real

__all__ = [
    "energy_distance",
    "mmd",
    "sliced_wasserstein",
]

_MEDIAN: Final = 2
"""Stream of the rows between which the median distance is taken."""
_MEDIAN_ROWS: Final = 2000
# up to so many coordinates, differences are as quick as a matrix product and lose no digits
_DIRECT: Final = 8

Kernel = Callable[[Tensor], Tensor]
"""From distances to values of the kernel."""

_KERNELS: dict[str, Kernel] = {
    "gaussian": lambda r: (-0.5 * r.square()).exp(),
    "laplacian": lambda r: (-r).exp(),
    "imq": lambda r: (1 + r.square()).rsqrt(),
}


def energy_distance(
    x: Tensor, y: Tensor, *, unbiased: bool = True, floor: int = 0, seed: int = 0
) -> Metric:
    """Energy distance (squared in Székely's sense), in the units of x.

    D = 2 E|X - Y| - E|X - X'| - E|Y - Y'|    >= 0, zero only for equal laws

    with Euclidean norms over the flattened x (n, *event) and y (m, *event). ``unbiased=True``
    averages |X - X'| over distinct rows (U-statistic: mean zero for equal laws, and may be
    negative), ``unbiased=False`` over all pairs (V-statistic: D of the empirical laws, >= 0; too
    large by E|X - X'| / n + E|Y - Y'| / m on average). In one dimension the V-statistic is the
    square of ``scipy.stats.energy_distance``. ``floor``: random splits of the pooled sample. O((n +
    m)^2 d) operations, in blocks. ValueError on samples of different shape or with NaN or inf, or
    of fewer than two rows.

    Székely & Rizzo 2013, Energy statistics: a class of statistics based on distances.
    """
    pool = Pool.of(x, y, least=2, floor=floor, seed=seed)
    return measure(_pair_statistic(pool, lambda r: -r, unbiased), pool)


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    kernel: Literal["gaussian", "laplacian", "imq"] = "gaussian",
    bandwidth: float | Sequence[float] | None = None,
    unbiased: bool = True,
    floor: int = 0,
    seed: int = 0,
) -> Metric:
    """Squared maximum mean discrepancy, without units.

    MMD^2 = E k(X, X') + E k(Y, Y') - 2 E k(X, Y)

    for the flattened x (n, *event) and y (m, *event), with r = |x - y| / bandwidth and k = exp(-r^2
    / 2) (``"gaussian"``), exp(-r) (``"laplacian"``) or (1 + r^2)^{-1/2} (``"imq"``, inverse
    multiquadric). ``bandwidth`` is in the units of x; of several the kernels are averaged; by
    default it is the median distance of two rows of the pooled sample (of 2000 of its rows, if it
    has more, chosen by ``seed``). ``unbiased=True`` is the U-statistic (may be negative), False the
    V-statistic (>= 0, too large by (1 - E k(X, X')) / n + (1 - E k(Y, Y')) / m on average).
    ``floor``: random splits of the pooled sample. O((n + m)^2 d) operations, in blocks. ValueError
    on samples of different shape or with NaN or inf, or of fewer than two rows.

    Gretton et al. 2012, A kernel two-sample test, eq. 3 and 5.
    """
    check_choice("kernel", kernel, tuple(_KERNELS))
    given = _check_bandwidths(bandwidth)
    random = generator(seed, _MEDIAN)
    pool = Pool.of(x, y, least=2, floor=floor, seed=seed)
    widths = given or (_median_distance(pool, random),)
    shape = _KERNELS[kernel]

    def average(r: Tensor) -> Tensor:
        total = shape(r / widths[0])
        for width in widths[1:]:
            total += shape(r / width)
        return total / len(widths)

    return measure(_pair_statistic(pool, average, unbiased), pool)


def _pair_statistic(pool: Pool, kernel: Kernel, unbiased: bool) -> Statistic:
    """E k(X, X') + E k(Y, Y') - 2 E k(X, Y) over the pairs of rows, for all labels at once.

    With the labels l in {0, 1}^(n + m) and the matrix K of the pooled sample, the sums over pairs
    within x, between x and y, and within y are l K l, l K 1 - l K l and 1 K 1 - 2 l K 1 + l K l; K
    is symmetric, and is built tile by tile.
    """
    n, m = pool.n, pool.m
    own = float(kernel(torch.zeros(1, dtype=torch.float64)))  # k of a row with itself

    def statistic(labels: Tensor) -> Tensor:
        kind = pool.center.dtype
        lKl = torch.zeros(len(labels), dtype=kind, device=labels.device)
        K1 = torch.zeros(len(pool.rows), dtype=kind, device=labels.device)
        tiles = list(pool.tiles())
        for i, rows in enumerate(tiles):
            left, label = pool.centred(rows), labels[:, rows].to(kind)
            for j, columns in enumerate(tiles[: i + 1]):
                K = kernel(_distances(left, left if i == j else pool.centred(columns), i == j))
                K1[rows] += K.sum(dim=1)
                if i != j:
                    K1[columns] += K.sum(dim=0)
                lKl += (1 if i == j else 2) * ((label @ K) * labels[:, columns]).sum(dim=1)
        lK1 = torch.cat([part.to(kind) @ K1 for part in labels.split(64)])
        xx = lKl
        xy = lK1 - lKl
        yy = K1.sum() - 2 * lK1 + lKl
        return _mean(xx, n, own, unbiased) + _mean(yy, m, own, unbiased) - 2 * xy / (n * m)

    return statistic


def _mean(total: Tensor, n: int, own: float, unbiased: bool) -> Tensor:
    """Mean over pairs of n rows, from the sum over all of them; unbiased: without those of a row
    with itself.
    """
    return (total - n * own) / (n * (n - 1)) if unbiased else total / n**2


def _distances(a: Tensor, b: Tensor, same: bool) -> Tensor:
    """|a_i - b_j|, (i, j); exactly zero on the diagonal of a with itself."""
    mode = "donot_use_mm_for_euclid_dist" if a.shape[1] <= _DIRECT else "use_mm_for_euclid_dist"
    distances = torch.cdist(a, b, compute_mode=mode)
    return distances.fill_diagonal_(0.0) if same else distances


def _check_bandwidths(bandwidth: float | Sequence[float] | None) -> tuple[float, ...]:
    """Positive numbers; none where the median is to be taken."""
    if bandwidth is None:
        return ()
    one = plain(bandwidth)
    several = one if isinstance(one, Iterable) and not isinstance(one, str) else (one,)
    widths = tuple(real("bandwidth", width) for width in several)
    if not widths or not all(0 < width < math.inf for width in widths):
        raise ValueError(
            f"bandwidth must be a positive number or several, in the units of x, got {bandwidth!r}"
        )
    return widths


def _median_distance(pool: Pool, random: torch.Generator) -> float:
    """The median distance of two different rows; of an even number of pairs, the lower one."""
    size = len(pool.rows)
    rows = (
        torch.randperm(size, generator=random)[:_MEDIAN_ROWS]
        if size > _MEDIAN_ROWS
        else torch.arange(size)
    )
    chosen = pool.centred(rows.to(pool.rows.device))
    upper = torch.ones(len(rows), len(rows), dtype=torch.bool, device=chosen.device).triu(1)
    median = float(_distances(chosen, chosen, True)[upper].median())
    if median == 0:
        raise ValueError(
            "more than half of the pairs of rows are equal, so that their median distance is 0: "
            "pass bandwidth"
        )
    return median


_DIRECTIONS: Final = 0
"""Stream of the directions."""


def sliced_wasserstein(
    x: Tensor, y: Tensor, *, projections: int = 256, floor: int = 0, seed: int = 0
) -> Metric:
    """Sliced Wasserstein-2 distance, in the units of x.

    SW_2^2 = mean over unit directions u of W_2^2(u . x, u . y),    W_2^2 = int_0^1 (F^{-1}(q) -
    G^{-1}(q))^2 dq

    between the empirical laws of x (n, *event) and y (m, *event), flattened to d numbers: the
    integral is exact for any n and m, the mean is over ``projections`` directions drawn uniformly
    from the sphere (for d = 1 there is one, and the value is W_2). A shift by v gives about |v| /
    sqrt(d). Between samples of one law it is not zero but of order n^{-1/2}: see ``floor``, the
    number of random splits of the pooled sample. ValueError on samples of different shape or with
    NaN or inf.

    Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures.
    """
    projections = check_count("projections", projections, 1)
    random = generator(seed, _DIRECTIONS)
    pool = Pool.of(x, y, floor=floor, seed=seed)
    d = pool.rows.shape[1]
    if d == 1:
        directions = torch.ones(1, 1, dtype=torch.float64)
    else:
        directions = torch.randn(projections, d, generator=random, dtype=torch.float64)
        directions /= directions.norm(dim=1, keepdim=True)
    directions = directions.to(pool.center)
    rows_x, rows_y, weights = _coupling(pool.n, pool.m)
    rows_x = rows_x.to(pool.rows.device)
    rows_y = rows_y.to(pool.rows.device)
    weights = weights.to(pool.center)

    def statistic(labels: Tensor) -> Tensor:
        total = torch.zeros(len(labels), dtype=weights.dtype, device=labels.device)
        for part in blocks(len(directions), len(pool.rows)):
            values, order = _project(pool, directions[part]).sort(dim=1)
            for i, label in enumerate(labels):
                is_x = label[order]
                sorted_x = values[is_x].view(len(values), pool.n)
                sorted_y = values[~is_x].view(len(values), pool.m)
                total[i] += ((sorted_x[:, rows_x] - sorted_y[:, rows_y]).square() @ weights).sum()
        return (total / len(directions)).sqrt()

    return measure(statistic, pool)


def _coupling(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which sorted x goes to which sorted y with what weight: both quantile functions are constant
    between the i / n and j / m.
    """
    # In units of 1 / nm, where all are integers and equal ones are equal.
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    return starts // m, starts // n, (ends - starts).double() / (n * m)


def _project(pool: Pool, directions: Tensor) -> Tensor:
    return torch.cat(
        [directions @ pool.centred(part).T for part in blocks(*pool.rows.shape)], dim=1
    )
