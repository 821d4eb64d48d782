"""Distances between samples against SciPy, closed forms and plain loops; floors and p-values
against all splits and known rates.
"""

import dataclasses
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import torch

import sdediff as sd
from sdediff.metrics import (
    Floor,
    Metric,
    classifier_two_sample_test,
    energy_distance,
    frechet_distance,
    inception_score,
    kolmogorov_smirnov,
    mmd,
    sliced_wasserstein,
)
from sdediff.metrics.classifier import _Network

DISTANCES = {
    "sliced": lambda x, y, **how: sliced_wasserstein(x, y, projections=40, **how),
    "energy": energy_distance,
    "energy V": lambda x, y, **how: energy_distance(x, y, unbiased=False, **how),
    "mmd": mmd,
    "frechet": frechet_distance,
    "ks": kolmogorov_smirnov,
}
each_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def same(value, rel=1e-12, abs=1e-13):
    return pytest.approx(value, rel=rel, abs=abs)


def pairs(x, y):
    """|x_i - y_j| by a loop."""
    return np.array(
        [[np.linalg.norm(a - b) for b in y.flatten(1).numpy()] for a in x.flatten(1).numpy()]
    )


# -- sliced Wasserstein


@pytest.mark.parametrize(("n", "m"), [(7, 7), (6, 4), (5, 8), (1, 3)])
def test_wasserstein_in_one_dimension_is_that_of_copies(n, m):
    """m copies of each x and n copies of each y are as many, and then the sorted ones belong
    together.
    """
    x, y = normal(n, 1), 2 * normal(m, 1, seed=1) + 1
    couples = (
        x.repeat_interleave(m, 0).sort(dim=0).values - y.repeat_interleave(n, 0).sort(dim=0).values
    )
    assert float(sliced_wasserstein(x, y)) == same(float(couples.square().mean().sqrt()))


def test_sliced_wasserstein_does_not_see_copies():
    x, y = normal(6, 3), normal(4, 3, seed=1)
    value = float(sliced_wasserstein(x, y))
    assert float(sliced_wasserstein(x.repeat(2, 1), y.repeat(3, 1))) == same(value)
    assert value > 0.1


def test_sliced_wasserstein_of_a_scaled_and_shifted_sample():
    """y = c x + v: along u the quantiles differ by u.v + (c - 1) u.x, so that d SW^2 = |v|^2 + (1 -
    c)^2 tr C on average.
    """
    x = normal(50, 3) @ torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 0, 0.3]], dtype=torch.float64)
    x -= x.mean(dim=0)
    v = torch.tensor([1.0, -2, 0.5], dtype=torch.float64)
    expected = (v.square().sum() + 0.25 * x.square().mean(dim=0).sum()) / 3
    value = float(sliced_wasserstein(x, 1.5 * x + v, projections=40_000))
    # (u.a)^2 for unit a has mean 1/3 and variance 4/45, so the mean over the directions is off by
    # 0.4 % at 1 sigma, at most
    assert value**2 == pytest.approx(float(expected), rel=0.015)


def test_sliced_wasserstein_of_a_shift_in_many_dimensions():
    v = normal(48, seed=5)
    x = normal(10, 3, 4, 4)
    distance = sliced_wasserstein(x, x + v.view(3, 4, 4), projections=20_000)
    # sqrt(2 / 20,000) / 2 at 1 sigma
    assert float(distance) == pytest.approx(float(v.norm()) / math.sqrt(48), rel=0.02)
    assert float(sliced_wasserstein(x, x + 3 * v.view(3, 4, 4), projections=20_000)) == same(
        3 * float(distance)
    )


def test_sliced_wasserstein_of_gaussians():
    """SW^2 = mean over angles of (u.m)^2 + (sqrt(u C u) - sqrt(u D u))^2."""
    C, D, m = np.diag([4.0, 0.25]), np.array([[1.0, 0.6], [0.6, 1.0]]), np.array([0.3, -0.4])
    u = np.stack([np.cos(a := np.linspace(0, np.pi, 1000, endpoint=False)), np.sin(a)], 1)
    widths = [np.sqrt(np.einsum("ai,ij,aj->a", u, cov, u)) for cov in (C, D)]
    expected = math.sqrt(((u @ m) ** 2 + (widths[0] - widths[1]) ** 2).mean())
    x = normal(10_000, 2) @ torch.from_numpy(np.linalg.cholesky(C)).T
    y = normal(8000, 2, seed=1) @ torch.from_numpy(np.linalg.cholesky(D)).T + torch.from_numpy(m)
    # 300 directions, 3 sigma
    assert float(sliced_wasserstein(x, y, projections=300)) == pytest.approx(expected, rel=0.04)


# -- energy distance


@pytest.mark.parametrize("ties", [False, True])
def test_energy_distance_is_scipys_squared(ties):
    x, y = normal(13, 1), 1.5 * normal(9, 1, seed=1) + 0.5
    if ties:
        x, y = x.round(), y.round()
    expected = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert float(energy_distance(x, y, unbiased=False)) == same(expected)


@pytest.mark.parametrize("event", [(), (3,), (2, 3, 4)])
@pytest.mark.parametrize("unbiased", [True, False])
def test_energy_distance_is_its_definition(event, unbiased):
    x, y = normal(6, *event), normal(9, *event, seed=1) + 0.3
    shaped = x.view(6, -1), y.view(9, -1)
    xx, yy, xy = pairs(shaped[0], shaped[0]), pairs(shaped[1], shaped[1]), pairs(*shaped)
    within = [d.sum() / (len(d) * (len(d) - unbiased)) for d in (xx, yy)]
    assert float(energy_distance(x, y, unbiased=unbiased)) == same(
        2 * xy.mean() - sum(within), rel=1e-11
    )


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_energy_distance_is_unbiased(shift):
    """E|N(a, 2)| = 2 exp(-a^2 / 4) / sqrt(pi) + a erf(a / 2); the mean of 500 estimates is off by
    less than 4 of its stds.
    """
    values = [
        float(energy_distance(normal(10, 1, seed=2 * i), normal(15, 1, seed=2 * i + 1) + shift))
        for i in range(500)
    ]

    def folded(a):
        return 2 * math.exp(-(a**2) / 4) / math.sqrt(math.pi) + a * math.erf(a / 2)

    stderr = np.std(values) / math.sqrt(len(values))
    assert stderr < 0.025
    assert np.mean(values) == pytest.approx(2 * folded(shift) - 2 * folded(0), abs=4 * stderr)


def test_v_statistics_are_never_negative_and_zero_for_the_same_rows():
    x = normal(30, 20)
    for distance in (energy_distance, mmd):
        # eps^{1/2} where rows coincide
        assert float(distance(x, x.flip(0), unbiased=False)) == pytest.approx(0, abs=1e-8)
        assert (
            float(distance(x, x.flip(0)))
            < 0
            < float(distance(x, normal(20, 20, seed=1), unbiased=False))
        )


def test_far_from_the_origin_no_digits_are_lost():
    x, y = normal(40, 30), normal(30, 30, seed=1) + 0.2
    far = 2.0**20  # x + far is rounded to 1e-10
    for distance in DISTANCES.values():
        assert float(distance(x + far, y + far)) == pytest.approx(float(distance(x, y)), rel=1e-7)


# -- maximum mean discrepancy

KERNELS = {
    "gaussian": lambda r: np.exp(-(r**2) / 2),
    "laplacian": lambda r: np.exp(-r),
    "imq": lambda r: 1 / np.sqrt(1 + r**2),
}


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_mmd_is_its_definition(kernel, unbiased):
    x, y = normal(6, 2, 6), 1.5 * normal(9, 2, 6, seed=1)
    k = [KERNELS[kernel](d / 1.7) for d in (pairs(x, x), pairs(y, y), pairs(x, y))]
    within = [(K.sum() - unbiased * len(K)) / (len(K) * (len(K) - unbiased)) for K in k[:2]]
    value = mmd(x, y, kernel=kernel, bandwidth=1.7, unbiased=unbiased)
    assert float(value) == same(sum(within) - 2 * k[2].mean(), rel=1e-10)


def test_mmd_averages_kernels_of_several_bandwidths():
    x, y = normal(6, 2), normal(9, 2, seed=1) + 1
    single = [float(mmd(x, y, bandwidth=h)) for h in (0.5, 1, 4)]
    assert float(mmd(x, y, bandwidth=[0.5, 1, 4])) == same(np.mean(single))
    assert np.ptp(single) > 0.01


def test_mmds_bandwidth_is_the_median_distance():
    x, y = normal(10, 3), normal(9, 3, seed=1) + 1  # 171 pairs
    pooled = torch.cat([x, y])
    median = np.median(pairs(pooled, pooled)[np.triu_indices(19, 1)])
    assert float(mmd(x, y)) == same(float(mmd(x, y, bandwidth=median)))


def test_mmds_bandwidth_from_some_of_the_rows():
    """The median of chi with two degrees of freedom times sqrt 2; from 2000 rows it is known to
    about 1 %.
    """
    x, y = normal(1500, 2), normal(1600, 2, seed=1) + torch.tensor([0.2, 0])
    exact = math.sqrt(2 * scipy.stats.chi2.median(2))
    assert float(mmd(x, y)) == pytest.approx(float(mmd(x, y, bandwidth=exact)), rel=0.05)
    assert float(mmd(x, y)) != float(mmd(x, y, seed=1))


def test_mmd_of_gaussians():
    """E k(X, Y) = (h^2 / w)^{d / 2} exp(-|v|^2 / 2w), w = h^2 + s^2 + t^2, for N(0, s^2) and N(v,
    t^2).
    """
    d, s, t, h, shift = 3, 1.0, 1.4, 1.5, 0.8

    def mean_kernel(variance, squared):
        return (h**2 / (h**2 + variance)) ** (d / 2) * math.exp(-squared / (2 * (h**2 + variance)))

    expected = (
        mean_kernel(2 * s**2, 0) + mean_kernel(2 * t**2, 0) - 2 * mean_kernel(s**2 + t**2, shift**2)
    )
    v = torch.tensor([0, shift, 0])
    values = [
        float(mmd(normal(60, d, seed=2 * i), t * normal(80, d, seed=2 * i + 1) + v, bandwidth=h))
        for i in range(300)
    ]
    stderr = np.std(values) / math.sqrt(len(values))
    assert stderr < 0.03 * expected
    assert np.mean(values) == pytest.approx(expected, abs=4 * stderr)


# -- Kolmogorov-Smirnov


@pytest.mark.parametrize("round_to", [None, 0])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 7), (40, 40), (90, 110), (2, 300)])
def test_two_samples_as_scipy(n, m, round_to):
    x, y = normal(n, 2, 3), 1.2 * normal(m, 2, 3, seed=1) + torch.tensor([0, 0.5, 2])
    if round_to is not None:
        x, y = x.round(decimals=round_to), y.round(decimals=round_to)
    result = kolmogorov_smirnov(x, y)
    assert result.statistics.shape == result.p_values.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        expected = scipy.stats.ks_2samp(x[:, i, j].numpy(), y[:, i, j].numpy(), method="exact")
        assert float(result.statistics[i, j]) == same(expected.statistic)
        assert float(result.p_values[i, j]) == same(expected.pvalue, rel=1e-10)
    assert result.value == float(result.statistics.max())
    assert result.p_value == same(min(1, 6 * float(result.p_values.min())))


@pytest.mark.parametrize(
    ("n", "m"), [(150, 151), (101, 1000), (300, 400), (1000, 1000), (10, 2000), (2000, 10)]
)
def test_two_large_samples_within_what_the_docstring_says(n, m):
    shift = torch.linspace(0, 3 * math.sqrt(1 / n + 1 / m), 12)
    x, y = normal(n, 12), normal(m, 12, seed=1) + shift
    result = kolmogorov_smirnov(x, y)
    exact = [
        scipy.stats.ks_2samp(x[:, j].numpy(), y[:, j].numpy(), method="exact").pvalue
        for j in range(12)
    ]
    assert max(exact) > 0.3 > 0.01 > min(exact)
    np.testing.assert_allclose(result.p_values, exact, atol=0.015)


@pytest.mark.parametrize(
    ("n", "atol"), [(1, 1e-12), (2, 1e-12), (17, 1e-12), (50, 1e-12), (51, 1e-12), (3000, 1e-12)]
)
def test_one_sample_as_scipy(n, atol):
    x = normal(n, 12, 1) + torch.linspace(0, 3, 12)[:, None] / math.sqrt(n)
    result = kolmogorov_smirnov(x, torch.special.ndtr)
    expected = [scipy.stats.kstest(x[:, j, 0].numpy(), "norm", method="exact") for j in range(12)]
    np.testing.assert_allclose(result.statistics[:, 0], [e.statistic for e in expected], rtol=1e-12)
    np.testing.assert_allclose(result.p_values[:, 0], [e.pvalue for e in expected], atol=atol)
    assert result.statistics.shape == (12, 1)


def test_p_values_far_out_keep_their_digits():
    x = torch.linspace(0.35, 1, 40, dtype=torch.float64)[:, None]
    for power in (1, 2, 4):
        expected = scipy.stats.kstest(
            x[:, 0].numpy() ** (1 / power), "uniform", method="exact"
        ).pvalue
        assert expected < 1e-3
        assert kolmogorov_smirnov(x ** (1 / power), lambda z: z).p_value == pytest.approx(
            expected, rel=1e-8
        )
    far = kolmogorov_smirnov(normal(1000, 1), normal(1000, 1, seed=1) + 5)
    assert 0 <= far.p_value < 1e-200


def test_the_cdf_sees_float64_in_the_shape_of_the_samples():
    seen = []
    x = normal(20, 2, 3, dtype=torch.float32)
    kolmogorov_smirnov(x, lambda z: (seen.append(z), torch.special.ndtr(z))[1])
    assert torch.equal(torch.cat(seen), x.double())


def test_a_floor_tests_all_coordinates_at_once():
    """Eight equal coordinates are one: the splits know it, Bonferroni does not."""
    x, y = normal(40, 1), normal(40, 1, seed=1) + 0.5
    one, eight = kolmogorov_smirnov(x, y), kolmogorov_smirnov(x.expand(40, 8), y.expand(40, 8))
    assert eight.p_value == same(min(1, 8 * one.p_value))
    split = kolmogorov_smirnov(x.expand(40, 8), y.expand(40, 8), floor=2000)
    assert split.p_value == pytest.approx(one.p_value, abs=4 * math.sqrt(one.p_value / 2000))
    assert torch.equal(split.p_values, eight.p_values)


# -- Frechet distance


def with_moments(n, mean, covariance, seed=0):
    """n points whose sample mean and unbiased covariance are exactly these."""
    z = normal(n, len(mean), seed=seed)
    z -= z.mean(dim=0)
    z = torch.linalg.solve(torch.linalg.cholesky(z.T.cov()), z.T).T
    return z @ torch.linalg.cholesky(
        torch.as_tensor(covariance, dtype=torch.float64)
    ).T + torch.as_tensor(mean)


def spd(d, seed):
    a = normal(d, d, seed=seed).numpy()
    return a @ a.T + 0.1 * np.eye(d)


def test_frechet_by_the_matrix_square_root():
    C, D = spd(6, 0), spd(6, 1)
    expected = 9 + np.trace(C + D) - 2 * np.trace(scipy.linalg.sqrtm(C @ D)).real
    x, y = with_moments(50, [0.0] * 6, C), with_moments(30, [3.0] + [0.0] * 5, D, seed=1)
    assert float(frechet_distance(x.view(50, 2, 3), y.view(30, 2, 3))) == pytest.approx(
        expected, rel=1e-10
    )


def test_frechet_of_features():
    x, y = normal(40, 2, 3), 1.5 * normal(30, 2, 3, seed=1)
    rows = [torch.stack([z[:, 0, 0] ** 2, z.sum(dim=(1, 2))], dim=1) for z in (x, y)]
    sizes = []

    def features(z):
        sizes.append(len(z))
        assert not torch.is_grad_enabled()
        return torch.stack([z[:, 0, 0] ** 2, z.sum(dim=(1, 2))], dim=1)

    weights = torch.ones(1, requires_grad=True)
    value = frechet_distance(weights * x, y, features=features, batch_size=16)
    assert sizes == [16, 16, 8, 16, 14]
    assert float(value) == same(float(frechet_distance(*rows)))
    C, D = (np.cov(r.numpy(), rowvar=False) for r in rows)
    shift = (rows[0].mean(dim=0) - rows[1].mean(dim=0)).square().sum()
    assert float(value) == pytest.approx(
        float(shift) + np.trace(C + D - 2 * scipy.linalg.sqrtm(C @ D)).real, rel=1e-9
    )


@pytest.mark.uses_global_rng  # to initialise a layer
def test_a_module_is_evaluated_and_left_as_it_was():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5)).double()
    x, y = normal(40, 3), normal(30, 3, seed=1)
    assert float(frechet_distance(x, y, features=net)) == same(
        float(frechet_distance(net[0](x), net[0](y)))
    )
    assert all(module.training for module in net.modules())
    assert float(inception_score(x, net, outputs="logits")) == same(
        float(inception_score(x, net[0], outputs="logits"))
    )


def test_frechet_of_fewer_rows_than_dimensions():
    """Points on two parallel lines."""
    x = torch.zeros(3, 10, dtype=torch.float64)
    x[:, 0] = torch.tensor([-1.0, 0, 1])
    y = x.clone()
    y[:, 5] = 2.5
    assert float(frechet_distance(x, y)) == pytest.approx(2.5**2, rel=1e-7)
    assert float(frechet_distance(x, x.flip(0))) == pytest.approx(0, abs=1e-12)


# -- inception score


def test_inception_score_of_sure_and_unsure_classifiers():
    labels = torch.arange(40) % 8
    sure = torch.eye(8)[labels]
    assert float(inception_score(sure, lambda p: p, outputs="probabilities")) == same(8)
    assert float(inception_score(sure, torch.log, outputs="logits")) == same(8)  # logits of -inf
    assert float(
        inception_score(sure[:35], lambda p: torch.ones(len(p), 8), outputs="logits")
    ) == same(1)
    skewed = inception_score(torch.eye(8)[[0, 0, 0, 1]], lambda p: p, outputs="probabilities")
    assert float(skewed) == same(math.exp(scipy.stats.entropy([0.75, 0.25])))


def test_inception_score_is_its_definition_split_by_split():
    x = 2 * normal(30, 2, 3)
    result = inception_score(x, lambda z: z.flatten(1), outputs="logits", splits=3, batch_size=7)
    p = scipy.special.softmax(x.flatten(1).numpy(), axis=1)
    expected = [
        np.exp(np.mean([scipy.stats.entropy(row, part.mean(axis=0)) for row in part]))
        for part in (p[0::3], p[1::3], p[2::3])
    ]
    np.testing.assert_allclose(result.splits, expected, rtol=1e-12)
    assert result.value == same(np.mean(expected))
    given = inception_score(torch.from_numpy(p), lambda q: q, outputs="probabilities")
    assert float(given) == same(float(inception_score(x, lambda z: z.flatten(1), outputs="logits")))


# -- classifier two-sample test


class Says:
    """A classifier that calls the first so many of x, and then of y, x."""

    def __init__(self, *counts):
        self.counts = list(counts)

    def says_x(self, pool, rows):
        return torch.arange(len(rows)) < self.counts.pop(0)


def test_p_value_is_fishers(monkeypatch):
    for right, n, m, called in [
        (7, 10, 12, 9),
        (0, 5, 5, 5),
        (5, 5, 5, 5),
        (5, 5, 8, 13),
        (520, 1000, 900, 1000),
        (900, 1000, 900, 950),
    ]:
        says = Says(right, called - right)
        monkeypatch.setattr(_Network, "fit", lambda *_, says=says: says)
        result = classifier_two_sample_test(normal(2 * n, 1), normal(2 * m, 1))
        table = [[right, n - right], [called - right, m - called + right]]
        expected = scipy.stats.fisher_exact(table, alternative="greater").pvalue
        assert result.p_value == pytest.approx(expected, rel=1e-8)


def test_accuracy_is_that_of_the_best_classifier():
    """Phi(1) for unit Gaussians two apart, 0.841; of 3000 + 2000 held out, the standard deviation
    is 0.005.
    """
    x, y = normal(6000, 2), normal(4000, 2, seed=1) + torch.tensor([2.0, 0])
    result = classifier_two_sample_test(x, y, steps=300)
    assert result.value == pytest.approx(scipy.stats.norm.cdf(1), abs=0.02)
    assert result.p_value < 1e-100


@pytest.mark.thin(1)
@pytest.mark.parametrize("difference", ["variance", "correlation", "shape"])
def test_differences_that_no_linear_classifier_sees(difference):
    x, z = normal(1200, 2), normal(1200, 2, seed=1)
    y = {
        "variance": z * torch.tensor([1.5, 1]),
        "correlation": z @ torch.tensor([[1.0, 0.6], [0, 0.8]], dtype=torch.float64),
        "shape": torch.where(z > 0, 1.0, -1.0) * (1 - 0.09) ** 0.5 + 0.3 * z.flip(0),
    }[difference]
    assert classifier_two_sample_test(x, y).p_value < 1e-4


@pytest.mark.thin(0)
def test_classifiers_false_alarms_and_floor():
    """200 tests of equal laws, n = 40 and m = 60. P(p <= 0.1) <= 0.1, the count exceeds 34 with
    probability 0.001.
    """
    results = [
        classifier_two_sample_test(
            normal(40, 2, seed=2 * i), normal(60, 2, seed=2 * i + 1), steps=8, hidden=4, seed=i
        )
        for i in range(200)
    ]
    assert 4 <= sum(r.p_value <= 0.1 for r in results) <= 34
    values = np.array([r.value for r in results])
    assert values.mean() == pytest.approx(0.5, abs=4 * values.std() / math.sqrt(200))
    assert values.std() == pytest.approx(
        np.sqrt(np.mean([r.floor.std**2 for r in results])), rel=4 / math.sqrt(400)
    )
    above = np.mean([r.value > r.floor.quantile for r in results])
    assert above == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 200))


def test_classifier_of_constant_rows_says_nothing():
    result = classifier_two_sample_test(torch.zeros(20, 3), torch.zeros(30, 3), steps=3)
    assert (result.value, result.p_value, result.floor.std) == (0.5, 1.0, 0.0)


# -- floors and p-values of random splits


@pytest.mark.thin(2)
@each_distance
def test_splits_are_all_splits(distance):
    """Of 3 + 4 rows there are 35, and the p-value and the mean of 2000 of them are known to 1 %,
    relative to the range.
    """
    x, y = normal(3, 1), normal(4, 1, seed=1) + 1
    pooled = torch.cat([x, y])
    values = []
    for chosen in itertools.combinations(range(7), 3):
        rest = [i for i in range(7) if i not in chosen]
        values.append(float(distance(pooled[list(chosen)], pooled[rest])))
    result = distance(x, y, floor=2000)
    assert result.value == same(values[0])
    share = np.mean(np.array(values) >= values[0] - 1e-12)
    assert result.p_value == pytest.approx(share, abs=4 * math.sqrt(share / 2000))
    assert result.floor.mean == pytest.approx(
        np.mean(values), abs=4 * np.std(values) / math.sqrt(2000)
    )
    assert result.floor.std == pytest.approx(np.std(values), rel=0.15)
    assert (
        np.quantile(values, 0.92) - 1e-12
        <= result.floor.quantile
        <= np.quantile(values, 0.98) + 1e-12
    )
    assert result.floor.repeats == 2000


def test_permutation_p_of_the_ks_statistic_is_its_exact_one():
    x, y = normal(10, 1), normal(14, 1, seed=1) + 0.7
    exact = kolmogorov_smirnov(x, y).p_value
    assert 0.02 < exact < 0.5
    assert kolmogorov_smirnov(x, y, floor=5000).p_value == pytest.approx(
        exact, abs=4 * math.sqrt(exact / 5000)
    )


@pytest.mark.thin(0)
def test_false_alarms_of_random_splits():
    """p <= 0.05 is one of 20 equally likely ranks: of 1000 tests of equal laws 50 +- 6.9, within 4
    stds.
    """
    tests = [
        energy_distance(normal(8, 2, seed=2 * i), normal(12, 2, seed=2 * i + 1), floor=19, seed=i)
        for i in range(1000)
    ]
    assert 23 <= sum(test.p_value <= 0.05 for test in tests) <= 77


@pytest.mark.thin(2)
@each_distance
def test_floor_is_what_samples_of_one_law_give(distance):
    fresh = [
        float(distance(normal(30, 3, seed=2 * i), normal(50, 3, seed=2 * i + 1)))
        for i in range(10, 110)
    ]
    floors = [
        distance(normal(30, 3, seed=2 * i), normal(50, 3, seed=2 * i + 1), floor=40).floor
        for i in range(10)
    ]
    stderr = np.std(fresh) / 10
    assert np.mean([floor.mean for floor in floors]) == pytest.approx(
        np.mean(fresh), abs=4 * stderr
    )
    assert np.mean([floor.std for floor in floors]) == pytest.approx(np.std(fresh), rel=0.35)
    assert np.mean([floor.quantile for floor in floors]) == pytest.approx(
        np.quantile(fresh, 0.95), rel=0.35
    )


@each_distance
def test_a_shift_is_found_and_equal_laws_are_not_told_apart(distance):
    x, y = normal(40, 2), normal(30, 2, seed=1)
    found = distance(
        x, y + 1.5, floor=12_000 if distance is energy_distance or distance is mmd else 300
    )
    assert found.p_value == same(1 / (1 + found.floor.repeats))
    assert found.value > found.floor.quantile
    assert distance(x, y, floor=200).p_value > 0.05


@pytest.mark.thin(0)
def test_the_classical_tests_find_a_shift_at_once():
    x, y = normal(200, 2), normal(150, 2, seed=1) + 0.9
    assert energy_distance(x, y, floor=10_000).p_value < 1e-4
    assert kolmogorov_smirnov(x, y).p_value < 1e-4
    assert classifier_two_sample_test(x, y).p_value < 1e-4
    assert kolmogorov_smirnov(x, y - 0.9).p_value > 0.05
    assert classifier_two_sample_test(x, y - 0.9).p_value > 0.05


@each_distance
def test_seed_alone_decides(distance):
    x, y = normal(20, 3), normal(30, 3, seed=1)
    a, b, c = (distance(x, y, floor=30, seed=seed) for seed in (1, 1, 2))
    assert (a.value, a.floor, a.p_value) == (b.value, b.floor, b.p_value)
    assert a.floor != c.floor
    assert distance(x, y, seed=1).value == same(a.value)
    assert distance(x, y, seed=1).floor is None


# -- all of them

EVERY = {
    **DISTANCES,
    "classifier": lambda x, y, floor=0: classifier_two_sample_test(x, y, steps=30),
    "mmd, several": lambda x, y, **how: mmd(x, y, kernel="imq", bandwidth=(1, 2), **how),
    "features": lambda x, y, **how: frechet_distance(
        x, y, features=lambda z: z.flatten(1)[:, :4].square(), batch_size=9, **how
    ),
    "one sample": lambda x, y, floor=0: kolmogorov_smirnov(x, torch.special.ndtr),
    "inception": lambda x, y, floor=0: inception_score(
        x, lambda z: z.flatten(1), outputs="logits", splits=2
    ),
}


@pytest.mark.thin(6)
@pytest.mark.parametrize("size", [1, 100, 1000])
@pytest.mark.parametrize("metric", EVERY.values(), ids=EVERY)
def test_blocks_change_nothing(metric, size, monkeypatch):
    x, y = normal(23, 2, 10), normal(17, 2, 10, seed=1) + 0.1
    whole = metric(x, y, floor=11)
    monkeypatch.setattr("sdediff.metrics.samples.ELEMENTS", size)
    monkeypatch.setattr("sdediff.metrics.samples._AT_ONCE", 5)  # the twelve labels: 5 + 5 + 2
    pieces = metric(x, y, floor=11)
    assert pieces.value == same(whole.value, rel=1e-11)
    assert pieces.p_value == (None if whole.p_value is None else same(whole.p_value))
    if whole.floor is not None:
        assert dataclasses.astuple(pieces.floor) == same(
            dataclasses.astuple(whole.floor), rel=1e-10
        )


@each_distance
def test_neither_order_nor_place_nor_sides_matter(distance):
    x, y = normal(25, 4), normal(35, 4, seed=1) * 1.3
    value = float(distance(x, y))
    turn = torch.linalg.qr(normal(4, 4, seed=2)).Q
    assert float(distance(x.flip(0), y.roll(3, 0))) == same(value, rel=1e-10)
    assert float(distance(x + 5, y + 5)) == same(value, rel=1e-10)
    assert float(distance(y, x)) == same(value, rel=1e-10)
    assert float(distance(x.view(25, 2, 2), y.view(35, 2, 2))) == value
    if distance in (energy_distance, mmd, frechet_distance):
        assert float(distance(x @ turn, y @ turn)) == same(value, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "power"), [("sliced", 1), ("energy", 1), ("mmd", 0), ("frechet", 2), ("ks", 0)]
)
def test_units(name, power):
    x, y = normal(25, 4), normal(35, 4, seed=1) * 1.3
    assert float(DISTANCES[name](3 * x, 3 * y)) == same(
        3**power * float(DISTANCES[name](x, y)), rel=1e-10
    )


@each_distance
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_in_float64(distance, dtype):
    x, y = normal(40, 3, dtype=dtype), normal(30, 3, seed=1, dtype=dtype)
    assert float(distance(x, y, floor=3)) == float(distance(x.double(), y.double(), floor=3))


@each_distance
def test_sums_in_float32_where_there_is_no_float64(distance, monkeypatch):
    x, y = normal(40, 3, dtype=torch.float32), normal(30, 3, seed=1, dtype=torch.float32) + 0.5
    exact = distance(x, y, floor=5)
    monkeypatch.setattr("sdediff.metrics.samples.accumulator", lambda device: torch.float32)
    rounded = distance(x, y, floor=5)
    assert rounded.value == pytest.approx(exact.value, rel=1e-4)
    assert dataclasses.astuple(rounded.floor) == pytest.approx(
        dataclasses.astuple(exact.floor), rel=1e-3, abs=1e-5
    )


@pytest.mark.slow
def test_memory_stays_below_a_gibibyte():
    """Above what is in use after a small call: the matrix of the pairs of 40,000 rows alone would
    take 12 GiB.
    """
    code = """
import resource, torch, sdediff.metrics as M
def draw(n, seed): return torch.randn(n, 64, generator=torch.Generator().manual_seed(seed))
def use(n):
    x, y = draw(n, 0), draw(n, 1)
    M.sliced_wasserstein(x, y, floor=2), M.energy_distance(x, y, floor=20)
    M.mmd(x, y), M.kolmogorov_smirnov(x, y, floor=2)
    M.frechet_distance(x, y, floor=2), M.classifier_two_sample_test(x, y, steps=20)
    M.inception_score(x, lambda z: z, outputs="logits"), M.kolmogorov_smirnov(x, torch.special.ndtr)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(-use(100) + use(20_000))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=900
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 2**30


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_distance
def test_on_a_gpu(distance):
    x, y = normal(300, 5), normal(200, 5, seed=1) + 0.1
    here, there = distance(x, y, floor=10), distance(x.cuda(), y.cuda(), floor=10)
    assert there.value == same(here.value, rel=1e-9)
    assert dataclasses.astuple(there.floor) == same(dataclasses.astuple(here.floor), rel=1e-8)


# -- refusals and results

X = normal(10, 3)
BAD = X.clone()
BAD[4, 1] = math.nan


def refusal(*words):
    """Expect a one-line ValueError in which all these words occur."""
    return pytest.raises(
        ValueError, match="(?s)" + "".join(f"(?=.*{word})" for word in words) + r"(?!.*\n)"
    )


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (X, X[:, :2], [r"x \(10, 3\)", r"y \(10, 2\)", r"\(m, \*event\)"]),
        (X, BAD, ["y has NaN or inf in 1 of 10", "sample 4"]),
        (X / 0, X, ["x has NaN or inf in 10 of 10", "sample 0"]),
        (X.long(), X, ["x must be a floating-point tensor", "int64"]),
        (X, X.numpy(), ["y must be a floating-point tensor", "ndarray"]),
        (X[:0], X, [r"x has shape \(0, 3\)", "at least"]),
        (X[:, :0], X[:, :0], [r"\(10, 0\)", "at least one number"]),
        (X, X[0, 0], ["y must be", r"\(n, \*event\)"]),
        (X, X.to("meta"), ["x on cpu and y on meta", "one device"]),
    ],
)
@pytest.mark.parametrize(
    "distance", [*DISTANCES.values(), classifier_two_sample_test], ids=[*DISTANCES, "classifier"]
)
def test_samples_that_cannot_be_compared(distance, x, y, words):
    with refusal(*words):
        distance(x, y)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: energy_distance(X, X[:1]), ["y has shape", "at least 2"]),
        (lambda: mmd(X[:1], X), ["x has shape", "at least 2"]),
        (lambda: frechet_distance(X[:1], X), ["x has shape", "at least 2"]),
        (lambda: classifier_two_sample_test(X[:7], X), ["x has shape", "at least 8"]),
        (lambda: inception_score(X, torch.exp, outputs="logits", splits=11), ["at least 11"]),
        (lambda: sliced_wasserstein(X, X, projections=0), ["projections", "at least 1", "0"]),
        (lambda: sliced_wasserstein(X, X, projections=2.5), ["projections", "an int", "2.5"]),
        (lambda: energy_distance(X, X, floor=1), ["floor", "0 \\(none\\) or an int of at least 2"]),
        (lambda: energy_distance(X, X, floor=True), ["floor", "True"]),
        (lambda: energy_distance(X, X, seed=-1), ["seed", "non-negative"]),
        (lambda: kolmogorov_smirnov(X, X, seed=1.5), ["seed", "non-negative"]),
        (lambda: mmd(X, X, kernel="gausian"), ["kernel", "did you mean 'gaussian'"]),
        (lambda: mmd(X, X, bandwidth=0), ["bandwidth", "positive"]),
        (lambda: mmd(X, X, bandwidth=[1, math.inf]), ["bandwidth", "positive"]),
        (lambda: mmd(X, X, bandwidth=[]), ["bandwidth", "positive"]),
        (lambda: mmd(X * 0, X * 0), ["median distance is 0", "pass bandwidth"]),
        (lambda: kolmogorov_smirnov(X, torch.special.ndtr, floor=5), ["drop floor"]),
        (lambda: kolmogorov_smirnov(X, lambda z: z[:, 0]), ["the cdf returned", "same shape"]),
        (lambda: kolmogorov_smirnov(X, lambda z: z), ["outside \\[0, 1\\]"]),
        (lambda: kolmogorov_smirnov(X, lambda z: z * math.nan), ["NaN"]),
        (lambda: frechet_distance(X, X, features="inception"), ["features", "str"]),
        (
            lambda: frechet_distance(X, X, features=lambda z: z[:, 0]),
            ["features returned torch.float64 of shape \\(10,\\)", "\\(10, k\\)"],
        ),
        (
            lambda: frechet_distance(X, X, features=lambda z: z[:4]),
            ["features returned torch.float64 of shape \\(4, 3\\)"],
        ),
        (lambda: frechet_distance(X, X, features=lambda z: z / 0), ["features of x has NaN"]),
        (lambda: frechet_distance(X, X, batch_size=0), ["batch_size"]),
        (
            lambda: inception_score(X, torch.exp, outputs="logit"),
            ["outputs", "did you mean 'logits'"],
        ),
        (
            lambda: inception_score(X, torch.exp, outputs="probabilities"),
            ["sum to one", "outputs='logits'"],
        ),
        (
            lambda: inception_score(X, lambda z: z * math.nan, outputs="logits"),
            ["logits that are NaN"],
        ),
        (lambda: inception_score(X, lambda z: z * math.nan, outputs="probabilities"), ["NaN"]),
        (
            lambda: inception_score(X, torch.eye(3), outputs="logits"),
            ["classifier must be a function", "Tensor"],
        ),
        (lambda: inception_score(BAD, torch.exp, outputs="logits"), ["x has NaN"]),
        (lambda: classifier_two_sample_test(X, X, steps=0), ["steps"]),
        (lambda: classifier_two_sample_test(X, X, hidden=-1), ["hidden"]),
    ],
)
def test_arguments_that_mean_nothing(call, words):
    with refusal(*words):
        call()


def test_outputs_have_to_be_named():
    with pytest.raises(TypeError, match="outputs"):
        inception_score(X, torch.exp)


def test_a_metric_is_a_value():
    metric = Metric(0.25, Floor(0.125, 0.03, 0.2, 50), 0.0196)
    assert float(metric) == 0.25
    assert str(metric) == "0.25 (floor 0.125 ± 0.03, p = 0.02)"
    assert str(Metric(1 / 3)) == "0.3333"
    assert metric == Metric(0.25, Floor(0.125, 0.03, 0.2, 50), 0.0196)
    with pytest.raises(dataclasses.FrozenInstanceError):
        metric.value = 1.0
    assert all(hasattr(sd.metrics, name) for name in sd.metrics.__all__)


def test_values_are_python_floats():
    for metric in EVERY.values():
        result = metric(normal(20, 3), normal(30, 3, seed=1), floor=4)
        numbers = [
            result.value,
            *([] if result.floor is None else dataclasses.astuple(result.floor)[:3]),
        ]
        assert all(type(number) is float for number in numbers)
        assert result.p_value is None or type(result.p_value) is float
