"""Metrics of pairs of features: kernel distance, precision and recall."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from sdediff.metrics.measured import GROUPS, Jackknife, Measured, Reference, group_of
from sdediff.metrics.samples import ELEMENTS, accumulator, check_count, check_samples
from sdediff.solvers.given import check_choice

__all__ = ["PrecisionRecall", "kernel_distance", "precision_recall"]

_SPARE: Final = 32
"""Neighbours that are kept beyond the k-th, for where a group is left out."""
_DIRECT: Final = 8
"""Features, up to which distances are sums of squared differences: a matrix product is faster."""


def kernel_distance(
    x: Tensor, y: Tensor, *, groups: int = GROUPS, reference: Reference = "fixed"
) -> Measured:
    """Kernel distance, the KID on the features of Inception: the unbiased squared maximum mean
    discrepancy with the cubic polynomial kernel.

    MMD^2 = E k(X, X') + E k(Y, Y') - 2 E k(X, Y),    k(x, y) = (x . y / d + 1)^3

    over all pairs of distinct rows of features x (n, d) and y (m, d). It has mean zero for equal
    laws, and may be negative. The subsets of 1,000 that are common elsewhere estimate the same
    number with more noise. Standard error by leaving out each of ``groups`` groups of x, and of y
    if the reference is ``"sampled"``; 0: none. O((n + m)^2 d) operations, in blocks. ValueError on
    features that are not (n, d) and (m, d), with NaN or inf, or of fewer than two rows.

    Binkowski et al. 2018, arXiv 1801.01401, section 3.
    """
    x, y, groups = _checked(x, y, 2, groups, reference)
    own_x, own_y = _groups(x, groups), _groups(y, groups)
    xx, yy = (_sums(z, z, own, own, same=True) for z, own in ((x, own_x), (y, own_y)))
    xy = _sums(x, y, own_x, own_y)
    within_x, within_y = xx.sum() / _pairs(len(x)), yy.sum() / _pairs(len(y))
    value = within_x + within_y - 2 * xy.sum() / (len(x) * len(y))
    found = []
    if groups and len(x) > 2:
        found.append(_jackknife(value, xx, xy, own_x.bincount(), len(y), within_y))
    if groups and len(y) > 2 and reference == "sampled":
        found.append(_jackknife(value, yy, xy.T, own_y.bincount(), len(x), within_x))
    stderr, _ = Jackknife.total(found)
    return Measured(float(value), stderr=stderr, bias=0.0, n=len(x), m=len(y), reference=reference)


def _checked(
    x: Tensor, y: Tensor, least: int, groups: int, reference: Reference
) -> tuple[Tensor, Tensor, int]:
    """Features (n, d) and (m, d)."""
    check_choice("reference", reference, ("fixed", "sampled"))
    groups = check_count("groups", groups, 2, zero=True)
    x, y = check_samples(x, y, least, "features ")
    if x.ndim != 2:
        raise ValueError(
            f"features x have shape {tuple(x.shape)}: expected (n, d); flatten them, x.flatten(1)"
        )
    return x, y, groups


def _groups(rows: Tensor, groups: int) -> Tensor:
    """(n,): the group of each row; one for all where none is to be left out."""
    return group_of(len(rows), max(groups, 1), rows.device)


def _pairs(count: Tensor | int) -> Tensor | int:
    return count * (count - 1)


def _tiles(n: int, m: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and columns so that a matrix of them has at most ELEMENTS entries."""
    side = math.isqrt(ELEMENTS)
    for i in range(0, n, side):
        for j in range(0, m, side):
            yield slice(i, min(i + side, n)), slice(j, min(j + side, m))


def _sums(x: Tensor, y: Tensor, own_x: Tensor, own_y: Tensor, *, same: bool = False) -> Tensor:
    """(g, h): sums of the kernel over the pairs of each two groups; of a row with itself not
    counted where both are the ``same``.
    """
    kind = accumulator(x.device)
    shape = int(own_x.max()) + 1, int(own_y.max()) + 1
    total = torch.zeros(shape, dtype=kind, device=x.device)
    for a, b in _tiles(len(x), len(y)):
        kernel = (x[a].to(kind) @ y[b].to(kind).T / x.shape[1] + 1) ** 3
        if same and a == b:
            kernel.fill_diagonal_(0)
        by_row = kernel.new_zeros(shape[0], kernel.shape[1]).index_add_(0, own_x[a], kernel)
        total.index_add_(1, own_y[b], by_row)
    return total


def _jackknife(
    value: Tensor, xx: Tensor, xy: Tensor, sizes: Tensor, m: int, within_y: Tensor
) -> Jackknife:
    """Without each group of x in turn."""
    left = sizes.sum() - sizes
    within = (xx.sum() - 2 * xx.sum(dim=1) + xx.diagonal()) / _pairs(left)
    between = (xy.sum() - xy.sum(dim=1)) / (left * m)
    return Jackknife.of(value, within + within_y - 2 * between, left)


class PrecisionRecall(NamedTuple):
    """Share of samples that look like data, and share of data that samples look like."""

    precision: Measured
    """The share of samples that look like data, 0 to 1."""
    recall: Measured
    """The share of data that samples look like, 0 to 1."""


def precision_recall(
    x: Tensor,
    y: Tensor,
    *,
    k: int = 3,
    groups: int = GROUPS,
    reference: Reference = "fixed",
) -> PrecisionRecall:
    """Precision and recall of samples x (n, d) against data y (m, d), features of both.

    precision = share of x inside a ball around a row of y,    recall = share of y inside a ball
    around a row of x

    where a ball around a row reaches as far as its k-th nearest neighbour in the same set. Both are
    in [0, 1], and depend on n and m: no extrapolation is known, so that ``bias`` is None; compare
    equal n and m. The standard error has two parts: p (1 - p) / n of the share, and that of the
    balls by leaving out each of ``groups`` groups of rows. Of a ``"fixed"`` reference only the part
    that comes from x counts: the share in precision, the balls in recall. ``groups=0`` leaves out
    the balls' part: it takes a pass through all distances for each group. ValueError on features
    that are not (n, d) and (m, d), with NaN or inf, or of no more than k rows.

    Kynkaanniemi et al. 2019, arXiv 1904.06991, section 2.
    """
    k = check_count("k", k, 1)
    x, y, groups = _checked(x, y, k + 1, groups, reference)
    sampled = reference == "sampled"

    def share(points: Tensor, centres: Tensor, errors: tuple[bool, bool]) -> Measured:
        of_points, of_balls = errors
        inside = _inside(points, centres, k, groups if of_balls else 0)
        value = inside[0].mean()
        variance = 0.0
        if of_points:
            # half a point of each kind more, so that a share of one has an error too
            near = (float(value) * len(points) + 0.5) / (len(points) + 1)
            variance += near * (1 - near) / len(points)
        known = of_points or len(inside) > 1
        if len(inside) > 1:
            left = len(centres) - _groups(centres, groups).bincount()
            variance += Jackknife.of(value, inside[1:].mean(dim=1), left).variance
        stderr = math.sqrt(variance) if known else None
        return Measured(
            float(value), stderr=stderr, bias=None, n=len(x), m=len(y), reference=reference
        )

    return PrecisionRecall(share(x, y, (True, sampled)), share(y, x, (sampled, True)))


def _inside(points: Tensor, centres: Tensor, k: int, groups: int) -> Tensor:
    """(1 + g, points), 0 or 1: whether a point is inside a ball, of all centres in row 0 and
    without group j of them in row 1 + j.
    """
    kind = accumulator(points.device)
    own = _groups(centres, groups)
    g = int(own.max()) + 1 if groups else 0
    radii = _radii(centres, own, k, g)
    found = torch.zeros(1 + g, len(points), dtype=torch.bool, device=points.device)
    for a, b in _tiles(len(points), len(centres)):
        squares = _squares(points[a].to(kind), centres[b].to(kind))
        for row, radius in enumerate(radii[:, b]):
            # as bytes it takes half the time of any()
            found[row, a] |= (squares <= radius).view(torch.uint8).amax(dim=1).bool()
    return found.to(kind)


def _radii(centres: Tensor, own: Tensor, k: int, g: int) -> Tensor:
    """(1 + g, n): squared radii of the balls; without group j, none around a row of group j."""
    kind = accumulator(centres.device)
    kept = min(len(centres) - 1, k + _SPARE if g else k)
    radii = torch.empty(1 + g, len(centres), dtype=kind, device=centres.device)
    side = max(1, ELEMENTS // len(centres))
    for start in range(0, len(centres), side):
        rows = torch.arange(start, min(start + side, len(centres)), device=centres.device)
        squares = _squares(centres[rows].to(kind), centres.to(kind))
        squares[torch.arange(len(rows)), rows] = math.inf
        near, which = squares.topk(kept, dim=1, largest=False)
        radii[0, rows] = near[:, k - 1]
        for j in range(g):
            others = (own[which] != j).cumsum(dim=1)
            # the last that is kept where a group has nearly all the neighbours
            place = (others < k).sum(dim=1).clamp(max=kept - 1)
            radius = near.gather(1, place[:, None])[:, 0]
            radii[1 + j, rows] = radius.where(own[rows] != j, -1.0)
    return radii


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """(n, m): squared distances; of few features without cancellation, so that ties are ties."""
    few = x.shape[1] <= _DIRECT
    mode = "donot_use_mm_for_euclid_dist" if few else "use_mm_for_euclid_dist"
    squares: Tensor = torch.cdist(x, y, compute_mode=mode).square()
    return squares
