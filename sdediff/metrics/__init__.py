"""Distances between samples, two-sample tests and scores of samples: torch only, on the device of
the samples, in bounded memory.

Samples are x (n, *event) and y (m, *event); n and m may differ. Sums are in float64 (float32 on
devices without it). Nothing here is differentiable or touches a global random number generator:
what is random depends on ``seed`` alone.

Every function returns a `Metric`, a number with its noise floor. ``floor=50`` splits the pooled
sample at random into n and m rows 50 times: what the metric gives between samples of one law, and
the p-value of the permutation test.

`evaluate`, and `Evaluation` for batches, measure the quality of samples against data on features of
a network (`extractor`): each value is a `Measured`, with its standard error and its bias.
"""

from sdediff.metrics.classifier import classifier_two_sample_test
from sdediff.metrics.distances import energy_distance, mmd, sliced_wasserstein
from sdediff.metrics.evaluation import Evaluated, Evaluation, evaluate
from sdediff.metrics.extractors import Extractor, extractor
from sdediff.metrics.features import InceptionScore, frechet_distance, inception_score
from sdediff.metrics.gaussians import Moments, gaussian_frechet_distance, measured_frechet
from sdediff.metrics.marginals import KolmogorovSmirnov, kolmogorov_smirnov
from sdediff.metrics.measured import Measured
from sdediff.metrics.pairs import PrecisionRecall, kernel_distance, precision_recall
from sdediff.metrics.samples import Floor, Metric

__all__ = [
    "Evaluated",
    "Evaluation",
    "Extractor",
    "Floor",
    "InceptionScore",
    "KolmogorovSmirnov",
    "Measured",
    "Metric",
    "Moments",
    "PrecisionRecall",
    "classifier_two_sample_test",
    "energy_distance",
    "evaluate",
    "extractor",
    "frechet_distance",
    "gaussian_frechet_distance",
    "inception_score",
    "kernel_distance",
    "kolmogorov_smirnov",
    "measured_frechet",
    "mmd",
    "precision_recall",
    "sliced_wasserstein",
]
