"""How good samples of small labelled images are, judged by a classifier and by features fitted to
real ones.

The classifier is kernel ridge regression on one-hot labels, calibrated out of fold. With K classes,
k(x, y) = exp(-3 |x - y|^2 / 2V) and V the total variance of the training pixels (2V is the mean
squared distance of two of them),

    f(x) = Y^T (K + 0.01 I)^{-1} k(X, x)                         (K,), about 1 for the class of x, 0
    for the others q_k(x) = sigmoid(a f_k(x) + b),    p = q / max(1, sum_k q_k)

so that p sums to at most one, and the rest is the probability of being none of the classes. Far
from the training images k(X, x) = 0, hence f = 0 and all p are near 0: noise is recognised as
nothing, without having been trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff import metrics
from sdediff._extras import require
from sdediff.data import Dataset

__all__ = ["Judge", "Quality", "frechet_distance"]

_SURE: Final = 0.9  # a sample counts as recognised above this probability
_FEATURES: Final = 24  # principal components, between which the Frechet distance is measured
_LARGEST: Final = 3000  # training images: the classifier's cost grows with their cube
_SHARPNESS: Final = 3.0
_RIDGE: Final = 0.01
_FOLDS: Final = 3

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """What a judge says of N samples.

    recognised: share of samples to which the classifier gives a class with p > 0.9.
    entropy: of the mean of p over the samples, normalised, in nats; at most log K (all classes
    equally frequent). It means
        little where few samples are recognised.
    frechet: Frechet distance to the held-out images in the space of the first 24 principal
    components, in squared pixel
        units of [-1, 1]. Estimated from finitely many samples it is biased upwards: compare equal N
        (``Judge.floor``).
    counts: how many samples have their largest p at each of the K classes, recognised or not.
    """

    recognised: float
    entropy: float
    frechet: float
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier and features fitted to training images; ``reference`` is what it says of the
    held-out ones.

    classes: the K labels, in the order of ``Quality.counts``. event: (C, H, W).
    ``reference.frechet`` is the distance from the training to the held-out images, all of them.
    """

    classes: tuple[int, ...]
    event: tuple[int, ...]
    reference: Quality
    _classifier: _Classifier
    _features: Any
    _train: _Array
    _held_out: _Array

    @classmethod
    def fit(cls, train: Dataset, held_out: Dataset, seed: int = 0) -> Judge:
        """Fit to ``train`` and take ``held_out``, which is never trained on, as the reference.

        seed: chooses the folds of the calibration and, above 3000 training images, which 3000 train
        the classifier.
        """
        _check_datasets(train, held_out)
        x, real = _flat(train.x), _flat(held_out.x)
        labels: NDArray[np.int64] = (
            np.zeros(0, np.int64) if train.labels is None else train.labels.cpu().numpy()
        )
        classifier = _Classifier.fit(x, labels, seed)
        count = min(_FEATURES, x.shape[1], len(x) - 1)
        features = (
            require("sklearn.decomposition", "data").PCA(count, svd_solver="covariance_eigh").fit(x)
        )
        known, unseen = features.transform(x), features.transform(real)
        reference = _quality(classifier.predict(real), frechet_distance(known, unseen))
        classes = tuple(int(label) for label in np.unique(labels))
        return cls(
            classes, tuple(train.x.shape[1:]), reference, classifier, features, known, unseen
        )

    def probabilities(self, x: Tensor) -> _Array:
        """(N, K): p of each class for images (N, C, H, W), clipped to [-1, 1]; what is missing to
        one is "none of them".
        """
        return self._classifier.predict(self._pixels(x))

    def score(self, x: Tensor) -> Quality:
        """The quality of at least two samples (N, C, H, W), clipped to [-1, 1] as they are when
        they are looked at.
        """
        pixels = self._pixels(x)
        if len(pixels) < 2:
            raise ValueError(
                f"got {len(pixels)} samples: expected at least 2, for their covariance; draw more"
            )
        distance = frechet_distance(self._features.transform(pixels), self._held_out)
        return _quality(self._classifier.predict(pixels), distance)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The principal components (N, 24) of images (N, C, H, W), and logits (N, K + 1) of the
        classes and of none of them.
        """
        pixels = self._pixels(x)
        p = self._classifier.predict(pixels)
        every = np.concatenate([p, 1 - p.sum(axis=1, keepdims=True)], axis=1)
        logits = np.log(np.maximum(every, np.finfo(np.float64).tiny))
        return torch.from_numpy(self._features.transform(pixels)), torch.from_numpy(logits)

    def floor(self, count: int, seed: int = 0) -> float:
        """The Frechet distance that ``count`` real images, drawn from the training set, have: the
        best to hope for.
        """
        if not 2 <= count <= len(self._train):
            raise ValueError(
                f"count = {count}: expected 2 to {len(self._train)}, the number of training images"
            )
        rows = np.random.default_rng(seed).permutation(len(self._train))[:count]
        return frechet_distance(self._train[rows], self._held_out)

    def _pixels(self, x: Tensor) -> _Array:
        if tuple(x.shape[1:]) != self.event or len(x) == 0:
            wanted = f"(N, {', '.join(map(str, self.event))})"
            raise ValueError(
                f"samples have shape {tuple(x.shape)}: expected {wanted}, as the training images"
            )
        return _flat(x)


@dataclass(frozen=True, eq=False)
class _Classifier:
    """Calibrated kernel ridge regression; the module's docstring has the equations."""

    support: _Array  # (M, d)
    weights: _Array  # (M, K)
    gamma: float
    slope: float
    intercept: float

    @classmethod
    def fit(cls, x: _Array, labels: NDArray[np.int64], seed: int) -> _Classifier:
        linear = require("sklearn.linear_model", "data")
        order = np.random.default_rng(seed).permutation(len(x))[:_LARGEST]
        one_hot = (labels[order, None] == np.unique(labels)).astype(np.float64)
        x = x[order]
        gamma = _SHARPNESS / (2 * float(x.var(axis=0).sum()))
        kernel = _rbf(x, x, gamma)
        unseen = np.empty_like(one_hot)
        for fold in range(_FOLDS):
            out = np.arange(len(x)) % _FOLDS == fold  # of rows in random order
            unseen[out] = kernel[np.ix_(out, ~out)] @ _ridge(
                kernel[np.ix_(~out, ~out)], one_hot[~out]
            )
        # One sigmoid for all classes: with one each, a rare class would have its own from a handful
        # of images. C keeps the slope finite where the classes separate perfectly; elsewhere it
        # changes nothing that could be seen.
        sigmoid = linear.LogisticRegression(C=100).fit(unseen.reshape(-1, 1), one_hot.ravel())
        return cls(
            x,
            _ridge(kernel, one_hot),
            gamma,
            float(sigmoid.coef_[0, 0]),
            float(sigmoid.intercept_[0]),
        )

    def predict(self, x: _Array) -> _Array:
        """(N, K) probabilities, in pieces, so that the kernel to the training images never takes
        much memory.
        """
        pieces = [
            _rbf(x[i : i + 1000], self.support, self.gamma) @ self.weights
            for i in range(0, len(x), 1000)
        ]
        q = 1 / (1 + np.exp(-(self.slope * np.concatenate(pieces) + self.intercept)))
        p: _Array = q / np.maximum(1, q.sum(axis=1, keepdims=True))
        return p


def frechet_distance(a: _Array, b: _Array) -> float:
    """`sdediff.metrics.frechet_distance` between features a (N, d) and b (M, d), N and M at least
    2.
    """
    return float(metrics.frechet_distance(torch.tensor(a), torch.tensor(b)))


def _ridge(kernel: _Array, targets: _Array) -> _Array:
    """(K + 0.01 I)^{-1} Y."""
    # By torch: its Cholesky factorization took half the time of SciPy's, a quarter of
    # scikit-learn's KernelRidge.
    matrix = torch.from_numpy(kernel.copy())
    matrix.diagonal().add_(_RIDGE)
    weights: _Array = torch.cholesky_solve(
        torch.from_numpy(targets), torch.linalg.cholesky(matrix)
    ).numpy()
    return weights


def _rbf(x: _Array, y: _Array, gamma: float) -> _Array:
    kernel: _Array = require("sklearn.metrics.pairwise", "data").rbf_kernel(x, y, gamma=gamma)
    return kernel


def _quality(p: _Array, frechet: float) -> Quality:
    mean = p.mean(axis=0) / p.mean(axis=0).sum()
    entropy = -float((mean * np.log(np.maximum(mean, np.finfo(np.float64).tiny))).sum())
    counts = np.bincount(p.argmax(axis=1), minlength=p.shape[1])
    return Quality(
        float((p.max(axis=1) > _SURE).mean()), entropy, frechet, tuple(int(n) for n in counts)
    )


def _flat(x: Tensor) -> _Array:
    """(N, d) float64 in [-1, 1]."""
    pixels: _Array = x.detach().flatten(1).double().cpu().numpy()
    bad = np.argwhere(~np.isfinite(pixels))
    if len(bad):
        raise ValueError(
            f"NaN or inf in {len(bad)} of {pixels.size} values, first in sample {bad[0, 0]}: "
            "leave those samples out"
        )
    return pixels.clip(-1, 1)


def _check_datasets(train: Dataset, held_out: Dataset) -> None:
    if train.labels is None:
        raise ValueError(
            f"{train.name} has no labels, and the judge learns from them: use labelled images, "
            "digits say"
        )
    if not (train.is_image and held_out.is_image):
        raise ValueError(
            f"{train.name} holds points: the judge looks at images (N, C, H, W) only; use "
            "labelled images"
        )
    if train.x.shape[1:] != held_out.x.shape[1:]:
        shapes = f"{tuple(train.x.shape[1:])} and {tuple(held_out.x.shape[1:])}"
        raise ValueError(
            f"training and held-out images have shapes {shapes}: expected one shape; take both "
            "from split()"
        )
    classes = len(train.labels.unique())
    if len(train) < 10 or len(held_out) < 2 or classes < 2:
        got = f"{len(train)} training images of {classes} classes and {len(held_out)} held out"
        raise ValueError(f"{got}: expected at least 10 of 2 classes and 2 held out; use more data")
