"""The judge: its numbers are what their equations say, real digits pass, and junk does not."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats
import torch

from sdediff.cli.quality import Judge, Quality, frechet_distance
from sdediff.data import Dataset, load_data, split


@pytest.fixture(scope="module")
def digits():
    return split(load_data("digits"), 300)


@pytest.fixture(scope="module")
def judge(digits):
    return Judge.fit(*digits)


def refusal(kind, *words):
    """Expect a one-line error of that kind in which all these words occur."""
    return pytest.raises(
        kind, match="(?s)" + "".join(f"(?=.*{word})" for word in words) + r"(?!.*\n)"
    )


def few(n=60, classes=(3, 7)):
    """A small labelled set of images, quick to fit."""
    d = load_data("digits")
    rows = torch.isin(d.labels, torch.tensor(classes)).nonzero().flatten()[:n]
    return split(dataclasses.replace(d, x=d.x[rows], labels=d.labels[rows]), n // 3)


# -- Frechet distance


def with_moments(n, mean, covariance, seed=0):
    """n points whose sample mean and unbiased covariance are exactly these."""
    z = np.random.default_rng(seed).standard_normal((n, len(mean)))
    z -= z.mean(axis=0)
    z = np.linalg.solve(np.linalg.cholesky(np.cov(z, rowvar=False)), z.T).T
    return z @ np.linalg.cholesky(np.asarray(covariance)).T + np.asarray(mean)


def spd(d, seed):
    a = np.random.default_rng(seed).standard_normal((d, d))
    return a @ a.T + 0.1 * np.eye(d)


def test_frechet_of_commuting_gaussians():
    """Diagonal covariances: |m_a - m_b|^2 + sum (s_a - s_b)^2."""
    a = with_moments(40, [1, 2, 3], np.diag([1, 4, 9]))
    b = with_moments(70, [1, 0, 4], np.diag([4, 0.25, 9]), seed=1)
    assert frechet_distance(a, b) == pytest.approx((0 + 4 + 1) + (1 + 1.5**2 + 0), rel=1e-10)


def test_frechet_in_one_dimension():
    a, b = np.array([[0.0], [2.0]]), np.array([[1.0], [7.0], [7.0], [13.0]])
    # means 1 and 7, unbiased variances 2 and 24
    assert frechet_distance(a, b) == pytest.approx(
        36 + (math.sqrt(24) - math.sqrt(2)) ** 2, rel=1e-12
    )


def test_frechet_of_gaussians_that_do_not_commute():
    """In two dimensions tr M^{1/2} = sqrt(tr M + 2 sqrt(det M)), and tr and det of (C_a C_b) are
    known.
    """
    ca, cb = np.array([[2.0, 1.2], [1.2, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    root = math.sqrt(np.trace(ca @ cb) + 2 * math.sqrt(np.linalg.det(ca) * np.linalg.det(cb)))
    expected = 0.25 + np.trace(ca) + np.trace(cb) - 2 * root
    a, b = with_moments(30, [0.5, 0], ca), with_moments(30, [0, 0], cb, seed=1)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_in_many_dimensions_by_the_matrix_square_root():
    ca, cb = spd(6, 0), spd(6, 1)
    expected = np.trace(ca + cb) - 2 * np.trace(scipy.linalg.sqrtm(ca @ cb)).real
    a, b = with_moments(50, np.zeros(6), ca), with_moments(50, np.zeros(6), cb, seed=1)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_is_zero_symmetric_and_blind_to_rotation():
    a = with_moments(40, [0, 1, 0, 2], spd(4, 0))
    b = with_moments(30, [1, 1, 0, 0], spd(4, 1), seed=1)
    turn = np.linalg.qr(spd(4, 2))[0]
    d = frechet_distance(a, b)
    assert d > 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, np.random.default_rng(0).permutation(a)) == pytest.approx(
        0, abs=1e-10
    )
    assert frechet_distance(b, a) == pytest.approx(d, rel=1e-12)
    assert frechet_distance(a @ turn + 5, b @ turn + 5) == pytest.approx(d, rel=1e-10)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * d, rel=1e-10)


def test_frechet_of_fewer_points_than_dimensions():
    """Singular covariances: points on two parallel lines, a distance h apart."""
    a = np.zeros((3, 10))
    a[:, 0] = [-1, 0, 1]
    b = a.copy()
    b[:, 5] = 2.5
    assert frechet_distance(a, b) == pytest.approx(2.5**2, rel=1e-7)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.zeros((5, 2)), np.zeros((5, 3)), [r"\(5, 2\)", r"\(5, 3\)", "first dimension"]),
        (np.zeros((1, 2)), np.zeros((5, 2)), ["at least 2 samples"]),
        (np.zeros((5, 2)), np.full((5, 2), np.inf), ["NaN or inf in 5 of 5 samples"]),
    ],
)
def test_frechet_refuses(a, b, words):
    with refusal(ValueError, *words):
        frechet_distance(a, b)


# -- the classifier


def test_probabilities_follow_their_equation():
    """Kernel ridge regression by scikit-learn, then one sigmoid: the logits of p are an increasing
    line in f.
    """
    from sklearn.kernel_ridge import KernelRidge

    train, held = few()
    x, y = train.x.flatten(1).double().numpy(), train.labels.numpy()
    pairs = ((x[:, None] - x) ** 2).sum(-1)
    model = KernelRidge(alpha=0.01, kernel="rbf", gamma=3 / pairs.mean()).fit(
        x, np.stack([y == 3, y == 7], 1) * 1.0
    )
    noise = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    samples = torch.cat([held.x, noise, 0.9 * held.x.flip(0) + 0.1, 0.5 * (held.x + noise[:20])])
    f = model.predict(samples.flatten(1).double().numpy())
    p = Judge.fit(train, held).probabilities(samples)
    assert p.shape == f.shape
    assert (p.sum(axis=1) <= 1 + 1e-12).all()
    below = p.sum(axis=1) < 1 - 1e-9  # where nothing was normalised
    assert 40 < below.sum() < len(p)
    line = scipy.stats.linregress(f[below].ravel(), np.log(p / (1 - p))[below].ravel())
    assert line.rvalue == pytest.approx(1, abs=1e-9)
    assert line.slope > 5
    q = 1 / (1 + np.exp(-(line.slope * f + line.intercept)))
    np.testing.assert_allclose(p, q / np.maximum(1, q.sum(axis=1, keepdims=True)), rtol=1e-6)


def test_held_out_digits_are_known_and_the_probabilities_honest(judge, digits):
    held = digits[1]
    p, labels = judge.probabilities(held.x), held.labels.numpy()
    right = p.argmax(axis=1) == labels
    assert right.mean() > 0.98
    assert judge.reference.recognised > 0.93
    assert right[p.max(axis=1) > 0.9].mean() > 0.99
    assert abs(p.max(axis=1).mean() - right.mean()) < 0.04
    assert judge.classes == tuple(range(10))
    assert judge.event == (1, 8, 8)


def junk(kind, digits, n=400):
    train, rng = digits[0], np.random.default_rng(1)
    x, y = train.x.numpy(), train.labels.numpy()
    i, j, k = rng.integers(len(x), size=(3, n))
    match kind:
        case "uniform":
            return rng.uniform(-1, 1, (n, 1, 8, 8))
        case "gaussian":
            return rng.standard_normal((n, 1, 8, 8))
        case "weak gaussian":
            return 0.5 * rng.standard_normal((n, 1, 8, 8))
        case "constant":
            return np.linspace(-1, 1, n)[:, None, None, None] * np.ones((1, 1, 8, 8))
        case "shuffled pixels":
            return rng.permuted(x[i].reshape(n, 64), axis=1).reshape(n, 1, 8, 8)
        case "mean of two classes":
            return ((x[i] + x[j]) / 2)[y[i] != y[j]]
        case "mean of three classes":
            return ((x[i] + x[j] + x[k]) / 3)[(y[i] != y[j]) & (y[j] != y[k]) & (y[i] != y[k])]


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("uniform", 0),
        ("gaussian", 0),
        ("weak gaussian", 0),
        ("constant", 0),
        ("shuffled pixels", 0.01),
        ("mean of two classes", 0.06),
        ("mean of three classes", 0.12),
    ],
)
def test_junk_is_not_recognised_and_far_from_the_data(kind, most, judge, digits):
    x = torch.from_numpy(junk(kind, digits)).float()
    quality = judge.score(x)
    assert quality.recognised <= most
    assert quality.frechet > 4 * judge.floor(len(x))


def test_the_held_out_set_teaches_nothing():
    train, held = few()
    other = dataclasses.replace(held, x=-held.x, labels=None)
    a, b = Judge.fit(train, held), Judge.fit(train, other)
    np.testing.assert_array_equal(a.probabilities(held.x), b.probabilities(held.x))
    assert a.reference != b.reference


def test_fit_depends_on_data_and_seed_alone():
    train, held = few()
    a, b, c = (Judge.fit(train, held, seed=seed) for seed in (1, 1, 2))
    assert a.reference == b.reference
    np.testing.assert_array_equal(a.probabilities(held.x), b.probabilities(held.x))
    assert (a.probabilities(held.x) != c.probabilities(held.x)).any()


# -- the score


def test_score_is_what_its_docstring_says(judge, digits):
    x = digits[1].x[:50] * 0.8
    p = judge.probabilities(x)
    quality = judge.score(x)
    assert quality.recognised == (p.max(axis=1) > 0.9).mean()
    assert quality.entropy == pytest.approx(scipy.stats.entropy(p.mean(axis=0)), rel=1e-12)
    assert quality.counts == tuple((p.argmax(axis=1) == k).sum() for k in range(10))
    assert all(type(v) is float for v in (quality.recognised, quality.entropy, quality.frechet))
    assert all(type(n) is int for n in quality.counts)


def test_frechet_is_between_principal_components_of_the_training_images(judge, digits):
    train, held = (d.x.flatten(1).double().numpy() for d in digits)
    axes = np.linalg.svd(train - train.mean(axis=0), full_matrices=False)[2][:24]
    samples = digits[0].x[:90].flip(-1)
    expected = frechet_distance(samples.flatten(1).double().numpy() @ axes.T, held @ axes.T)
    assert judge.score(samples).frechet == pytest.approx(expected, rel=1e-6)
    assert judge.reference.frechet == pytest.approx(
        frechet_distance(train @ axes.T, held @ axes.T), rel=1e-6
    )


def test_the_reference_is_the_held_out_set(judge, digits):
    train, held = digits
    again = judge.score(held.x)
    assert dataclasses.replace(again, frechet=judge.reference.frechet) == judge.reference
    assert again.frechet == pytest.approx(0, abs=1e-8)
    assert judge.reference.frechet == judge.score(train.x).frechet
    assert judge.reference.frechet == pytest.approx(judge.floor(len(train)), rel=1e-9)
    assert judge.reference.entropy == pytest.approx(math.log(10), abs=0.01)
    assert sum(judge.reference.counts) == 300


def test_floor_is_the_bias_of_few_samples(judge, digits):
    assert judge.floor(64) > judge.floor(300) > judge.reference.frechet
    assert judge.floor(64, seed=1) == judge.floor(64, seed=1) != judge.floor(64, seed=2)


def test_one_class_alone_shows_in_entropy_counts_and_distance(judge, digits):
    held = digits[1]
    quality = judge.score(held.x[held.labels == 3])
    assert quality.counts[3] >= 28
    assert quality.entropy < 0.5
    assert quality.frechet > 5


def test_samples_are_clipped_as_when_they_are_looked_at(judge, digits):
    x = digits[1].x[:40]
    assert judge.score(torch.where(x.abs() == 1, 3 * x, x)) == judge.score(x)


def test_many_samples_are_scored_in_pieces(judge, digits):
    x = digits[0].x[:1201]
    whole, piece = judge.probabilities(x), judge.probabilities(x[990:1010])
    np.testing.assert_allclose(whole[990:1010], piece, rtol=1e-9)


def test_labels_may_be_any_integers():
    train, held = few(classes=(2, 9, 4))
    judge = Judge.fit(train, held)
    assert judge.classes == (2, 4, 9)
    p = judge.probabilities(held.x)
    assert (np.array(judge.classes)[p.argmax(axis=1)] == held.labels.numpy()).mean() > 0.8
    assert len(judge.score(held.x).counts) == 3


def test_a_large_training_set_is_thinned(monkeypatch):
    monkeypatch.setattr("sdediff.cli.quality._LARGEST", 25)
    train, held = few(90)
    judge = Judge.fit(train, held)
    assert judge._classifier.support.shape == (25, 64)
    assert (judge.probabilities(train.x).argmax(axis=1) == (train.labels == 7).numpy()).mean() > 0.9


# -- refusals


def make(n=20, shape=(1, 2, 2), labels=True, is_image=True):
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    return Dataset(x, torch.arange(n) % 2 if labels else None, "mine", 0.0, 1.0, is_image)


@pytest.mark.parametrize(
    ("train", "held_out", "words"),
    [
        (make(labels=False), make(), ["mine has no labels", "use labelled images"]),
        (
            make(shape=(2,), is_image=False),
            make(shape=(2,), is_image=False),
            ["holds points", "labelled images"],
        ),
        (make(), make(shape=(1, 4, 4)), [r"\(1, 2, 2\) and \(1, 4, 4\)", r"split\(\)"]),
        (make(n=1), make(), ["1 training images", "at least 10"]),
        (make(), make(n=1), ["1 held out", "use more data"]),
        (dataclasses.replace(make(), labels=torch.zeros(20)), make(), ["of 1 classes"]),
        (
            make(),
            dataclasses.replace(make(), x=torch.full((20, 1, 2, 2), torch.nan)),
            ["NaN or inf in 80 of 80"],
        ),
    ],
)
def test_data_that_cannot_be_judged_by(train, held_out, words):
    with refusal(ValueError, *words):
        Judge.fit(train, held_out)


def test_samples_that_cannot_be_judged(judge):
    x = torch.zeros(3, 1, 8, 8)
    with refusal(ValueError, r"\(3, 1, 9, 9\)", r"\(N, 1, 8, 8\)"):
        judge.score(torch.zeros(3, 1, 9, 9))
    with refusal(ValueError, "got 1 samples", "at least 2"):
        judge.score(x[:1])
    x[2, 0, 1, 1] = torch.nan
    with refusal(ValueError, "NaN or inf in 1 of 192", "sample 2", "leave those samples out"):
        judge.score(x)
    with refusal(ValueError, "count = 1", "2 to 1497"):
        judge.floor(1)


def test_quality_is_a_plain_value():
    quality = Quality(0.5, 1.0, 2.0, (1, 2))
    assert quality == Quality(0.5, 1.0, 2.0, (1, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        quality.frechet = 0.0
