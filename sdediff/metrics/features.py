"""Scores of samples seen by a network: Frechet distance between features, inception score of a
classifier.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from sdediff.metrics.gaussians import symmetric_root
from sdediff.metrics.samples import (
    Metric,
    Pool,
    accumulator,
    apply,
    blocks,
    check_count,
    check_floor,
    check_sample,
    check_samples,
    measure,
)
from sdediff.solvers.given import check_choice

__all__ = ["InceptionScore", "class_probabilities", "frechet_distance", "inception_score"]

_OFF: Final = 1e-3  # by which probabilities may miss a sum of one: half precision does


def frechet_distance(
    x: Tensor,
    y: Tensor,
    *,
    features: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
    floor: int = 0,
    seed: int = 0,
) -> Metric:
    """Squared Frechet distance between Gaussians fitted to two samples, in squared units of the
    features.

    d^2 = |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^{1/2})

    with means and unbiased covariances of ``features`` (B, *event) -> (B, k) of x (n, *event) and y
    (m, *event); without it, of their flattened values. It is W_2^2 between the two Gaussians; with
    the pooled features of Inception it is the FID. ``features`` is called on batches as they are,
    without gradients; a module is put into evaluation mode for as long. The estimate is biased
    upwards by an amount of order k / n: compare equal n, and see ``floor``, random splits of the
    pooled features. ValueError on samples of different shape or with NaN or inf, of fewer than two
    rows, and on features that are not (B, k).

    Heusel et al. 2017, arXiv 1706.08500, eq. 6; Dowson & Landau 1982.
    """
    batch_size = check_count("batch_size", batch_size, 1)
    check_floor(floor, seed)  # before the features are computed
    if features is not None and not callable(features):
        raise ValueError(
            f"features must be a function from (B, *event) to (B, k), got {type(features).__name__}"
        )
    x, y = check_samples(x, y, 2)
    if features is not None:
        x, y = (apply("features", features, part, batch_size) for part in (x, y))
        x, y = check_samples(x, y, 2, "features of ")
    pool = Pool.of(x, y, floor=floor, seed=seed)

    def statistic(labels: Tensor) -> Tensor:
        return torch.stack([_frechet(pool, label) for label in labels])

    return measure(statistic, pool)


def _frechet(pool: Pool, label: Tensor) -> Tensor:
    """tr (C_x C_y)^{1/2} is the sum of the singular values of C_x^{1/2} C_y^{1/2}."""
    (mean_x, root_x), (mean_y, root_y) = _moments(pool, label), _moments(pool, ~label)
    overlap = torch.linalg.svdvals(root_x @ root_y).sum()
    shift = (mean_x - mean_y).square().sum()
    squared: Tensor = shift + root_x.square().sum() + root_y.square().sum() - 2 * overlap
    return squared.clamp(min=0)


def _moments(pool: Pool, label: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the labelled rows, and the symmetric root C^{1/2} of their covariance; its squared
    entries sum to tr C.
    """
    rows = label.nonzero()[:, 0]
    parts = [rows[part] for part in blocks(len(rows), pool.rows.shape[1])]
    mean = torch.zeros_like(pool.center)
    for part in parts:
        mean += pool.centred(part).sum(dim=0) / len(rows)
    covariance = mean.new_zeros(len(mean), len(mean))
    for part in parts:
        off = pool.centred(part) - mean
        covariance += off.T @ off / (len(rows) - 1)
    return mean, symmetric_root(covariance)


@dataclass(frozen=True, kw_only=True)
class InceptionScore(Metric):
    """The mean over the splits, and the score of each; it has no floor, as it compares with
    nothing.
    """

    splits: tuple[float, ...]


def inception_score(
    x: Tensor,
    classifier: Callable[[Tensor], Tensor],
    *,
    outputs: Literal["logits", "probabilities"],
    splits: int = 1,
    batch_size: int = 256,
) -> InceptionScore:
    """Inception score, between 1 and the number of classes K.

    IS = exp E_x KL(p(y | x) || p(y)),    p(y) = E_x p(y | x)

    for x (n, *event) and a ``classifier`` from (B, *event) to (B, K), called on batches without
    gradients (a module: in evaluation mode). ``outputs`` says what it returns: logits, of which the
    softmax is taken, or probabilities. With ``splits=s`` the rows i, i + s, i + 2s, ... make up
    split i; the value is the mean of the scores of the splits, which are in ``.splits``. The
    estimate is biased upwards for small n / K. ValueError on x with NaN or inf, fewer samples than
    splits, and outputs that are not (B, K), not finite or, as probabilities, negative or without
    sum one.

    Salimans et al. 2016, arXiv 1606.03498, section 4.
    """
    check_choice("outputs", outputs, ("logits", "probabilities"))
    splits = check_count("splits", splits, 1)
    batch_size = check_count("batch_size", batch_size, 1)
    if not callable(classifier):
        raise ValueError(
            "classifier must be a function from (B, *event) to (B, K), got "
            f"{type(classifier).__name__}"
        )
    given = apply("classifier", classifier, check_sample("x", x, splits), batch_size)
    scores = tuple(_score(given[i::splits], outputs == "logits") for i in range(splits))
    return InceptionScore(math.fsum(scores) / splits, splits=scores)


def _score(given: Tensor, logits: bool) -> float:
    """exp(H(E p) - E H(p)), which is the exponential of the mean divergence, block by block."""
    kind = accumulator(given.device)
    mean = torch.zeros(given.shape[1], dtype=kind, device=given.device)
    negentropy = mean.new_zeros(())
    for part in blocks(*given.shape):
        p = class_probabilities(given[part].to(kind), logits)
        mean += p.sum(dim=0) / len(given)
        negentropy += torch.xlogy(p, p).sum() / len(given)
    return math.exp(max(0.0, float(negentropy - torch.xlogy(mean, mean).sum())))


def class_probabilities(given: Tensor, logits: bool) -> Tensor:
    """(n, K): what a classifier returned, as probabilities; a ValueError if it is none."""
    if logits:
        if bool((given.isnan() | (given == math.inf)).any()) or bool(
            (given == -math.inf).all(dim=1).any()
        ):
            raise ValueError(
                "the classifier returned logits that are NaN or inf: look at its inputs and weights"
            )
        return given.softmax(dim=1)
    total = given.sum(dim=1, keepdim=True)
    if not bool(((given >= 0).all(dim=1) & ((total[:, 0] - 1).abs() <= _OFF)).all()):
        raise ValueError(
            "the classifier's probabilities are negative, NaN or do not sum to one: if they are "
            "logits, say outputs='logits'"
        )
    return given / total
