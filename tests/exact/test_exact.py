"""The laws of `sdediff.exact` against SciPy, autograd and independent formulas. Extreme noise
levels: test_exact_mixture.py.
"""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch import Tensor

import sdediff as sd
from sdediff.exact import Gaussian, GaussianMixture, Law, LowRank
from sdediff.exact.law import Values
from sdediff.predict import predict

VP = sd.VP()
EYE = torch.eye(3, dtype=torch.float64)
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariances(*shape: int, seed: int = 7) -> Tensor:
    root = randn(*shape, shape[-1], seed=seed)
    return 0.3 * root @ root.mT


MEANS, WEIGHTS = 1.5 * randn(4, 3, seed=1), torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)
LAWS: dict[str, Law] = {
    "gaussian": Gaussian(MEANS[0], covariances(3)),
    "gaussian-diagonal": Gaussian(MEANS[0], [0.3, 0.2, 1.1]),
    "low-rank": LowRank(MEANS[0], randn(3, 2, seed=2), [0.9, 0.2]),
    "points": GaussianMixture(MEANS, 0.0, WEIGHTS),
    "isotropic": GaussianMixture(MEANS, [0.2, 0.5, 0.1, 0.9], WEIGHTS),
    "diagonal": GaussianMixture(MEANS, 0.1 + randn(4, 3, seed=3).abs(), WEIGHTS),
    "full": GaussianMixture(MEANS, weights=WEIGHTS, covariances=covariances(4, 3)),
}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


def parts(name: str) -> list[tuple[float, Tensor, Tensor]]:
    """(weight, mean, covariance) of each component, from what the law was made of."""
    one = {
        "gaussian": covariances(3),
        "gaussian-diagonal": torch.diag(torch.tensor([0.3, 0.2, 1.1], dtype=torch.float64)),
        "low-rank": randn(3, 2, seed=2)
        @ torch.diag(torch.tensor([0.81, 0.04], dtype=torch.float64))
        @ randn(3, 2, seed=2).T,
    }
    if name in one:
        return [(1.0, MEANS[0], one[name])]
    many = {
        "points": torch.zeros(4, 3, 3).double(),
        "isotropic": torch.diag_embed(
            torch.tensor([0.2, 0.5, 0.1, 0.9], dtype=torch.float64).square()[:, None].expand(4, 3)
        ),
        "diagonal": torch.diag_embed((0.1 + randn(4, 3, seed=3).abs()).square()),
        "full": covariances(4, 3),
    }
    return list(zip(WEIGHTS.tolist(), MEANS, many[name], strict=True))


# -- density, score and predictions ----------------------------------------------------------------


@pytest.mark.parametrize("name", LAWS)
def test_log_prob_is_scipys(sde: sd.LinearSDE, name: str) -> None:
    x = 2 * randn(6, 3, seed=4)
    for t in torch.linspace(0.05 * sde.T, sde.T, 4, dtype=torch.float64):
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        terms = [
            math.log(w)
            + multivariate_normal(
                alpha * m.numpy(), (alpha**2 * c + sigma**2 * EYE).numpy()
            ).logpdf(x.numpy())
            for w, m, c in parts(name)
        ]
        torch.testing.assert_close(
            LAWS[name].log_prob(sde, x, t),
            torch.as_tensor(logsumexp(np.stack(terms), axis=0)),
            **CLOSE,
        )


@every_law
def test_score_is_the_gradient_of_the_density(sde: sd.LinearSDE, law: Law) -> None:
    x, t = (
        (2 * randn(6, 3, seed=4)).requires_grad_(),
        torch.linspace(0.1 * sde.T, sde.T, 6, dtype=torch.float64),
    )
    (gradient,) = torch.autograd.grad(law.log_prob(sde, x, t).sum(), x)
    torch.testing.assert_close(law.score(sde, x, t).detach(), gradient, rtol=1e-9, atol=1e-9)


@every_law
def test_data_and_noise_are_tweedies(sde: sd.LinearSDE, law: Law) -> None:
    """x + sigma^2 score = alpha data and noise = -sigma score; and the model gives the same
    four.
    """
    x, t = 2 * randn(6, 3, seed=4), torch.linspace(0.1 * sde.T, 0.6 * sde.T, 6, dtype=torch.float64)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    score, model = law.score(sde, x, t), law.model(sde)
    data, noise = (x + sigma**2 * score) / alpha, -sigma * score
    near = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(law.data(sde, x, t), data, **near)
    torch.testing.assert_close(law.noise(sde, x, t), noise, **near)
    torch.testing.assert_close(law.v(sde, x, t), alpha * noise - sigma * data, **near)
    for name, want in {
        "score": score,
        "data": data,
        "noise": noise,
        "v": alpha * noise - sigma * data,
    }.items():
        torch.testing.assert_close(predict(model, name, x, t), want, **near)


@every_law
def test_one_time_for_all_is_each_time_alone(law: Law) -> None:
    x, t = 2 * randn(5, 3, seed=4), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    for method in (law.score, law.data, law.noise, law.log_prob):
        rows = torch.cat([method(VP, x[i : i + 1], float(t[i])) for i in range(5)])
        torch.testing.assert_close(method(VP, x, t), rows, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(
            method(VP, x, t[:1].expand(5)), method(VP, x, t[0]), rtol=0, atol=0
        )


@every_law
def test_low_precision_input_is_rounded_once(law: Law) -> None:
    x = randn(5, 3, seed=4).float()
    for method in (law.score, law.data, law.log_prob):
        assert torch.equal(method(VP, x, 0.3), method(VP, x.double(), 0.3).float())
    assert law.model(VP).noise(x.bfloat16(), 0.3).dtype == torch.bfloat16


@pytest.mark.parametrize("event", [(), (1,), (4,), (2, 2), (1, 2, 2), (2, 1, 2, 1)])
def test_events_of_any_rank_are_the_flat_law(event: tuple[int, ...]) -> None:
    d = math.prod(event)
    means, c, u = randn(3, d), covariances(3, d), randn(d, 1)
    stds = 0.2 + randn(3, d, seed=5).abs()
    shaped = [
        Gaussian(means[0].reshape(event), c[0]),
        Gaussian(means[0].reshape(event), stds[0].reshape(event)),
        LowRank(means[0].reshape(event), u.reshape(*event, 1) if event else u, 0.7),
        GaussianMixture(means.reshape(3, *event), [0.0, 0.3, 0.4]),
        GaussianMixture(means.reshape(3, *event), stds.reshape(3, *event)),
        GaussianMixture(means.reshape(3, *event), covariances=c),
    ]
    flat = [
        Gaussian(means[0], c[0]),
        Gaussian(means[0], torch.diag(stds[0])),
        LowRank(means[0], u, 0.7),
        GaussianMixture(means, [0.0, 0.3, 0.4]),
        GaussianMixture(means, stds),
        GaussianMixture(means, covariances=c),
    ]
    x = randn(5, d, seed=6)
    for one, two in zip(shaped, flat, strict=True):
        assert one.event == (event or (1,))
        assert one.sample(3, seed=0).shape == (3, *(event or (1,)))
        for name in ("score", "data", "noise"):
            out = getattr(one, name)(VP, x.reshape(5, *event), 0.4)
            assert out.shape == (5, *event)
            torch.testing.assert_close(
                out.reshape(5, d), getattr(two, name)(VP, x, 0.4), rtol=1e-13, atol=1e-13
            )
        torch.testing.assert_close(
            one.log_prob(VP, x.reshape(5, *event), 0.4),
            two.log_prob(VP, x, 0.4),
            rtol=1e-13,
            atol=1e-13,
        )
        assert sd.sample(one.model(VP), (2, *(event or (1,))), steps=3, seed=0).x.shape == (
            2,
            *(event or (1,)),
        )


# -- samples and moments ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAWS)
def test_samples_have_the_laws_moments(name: str) -> None:
    """20,000 samples; 9 moments of 7 laws within 6 standard errors each: a false alarm in 8e6
    seeds.
    """
    n, law = 20_000, LAWS[name]
    x = law.sample(n, seed=3)
    mean = sum(w * m for w, m, _ in parts(name))
    covariance = sum(w * (c + torch.outer(m - mean, m - mean)) for w, m, c in parts(name))
    product = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert x.shape == (n, 3)
    assert x.dtype == torch.float64
    assert bool(((x.mean(dim=0) - mean).abs() < 6 * x.std(dim=0) / n**0.5).all())
    assert bool(((product.mean(dim=0) - covariance).abs() < 6 * product.std(dim=0) / n**0.5).all())
    got_mean, got_covariance = law.moments(VP, 0.4)
    time = torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = float(VP.alpha(time)), float(VP.sigma(time))
    torch.testing.assert_close(got_mean, alpha * mean, **CLOSE)
    torch.testing.assert_close(got_covariance, alpha**2 * covariance + sigma**2 * EYE, **CLOSE)


def test_samples_come_from_their_seed_and_weights() -> None:
    law = LAWS["points"]
    assert torch.equal(law.sample(50, seed=1), law.sample(50, seed=1))
    assert not torch.equal(law.sample(50, seed=1), law.sample(50, seed=2))
    never = GaussianMixture([[0.0], [1.0], [2.0]], 0.0, [0.0, 1.0, 0.0]).sample(1000, seed=0)
    assert bool((never == 1).all())
    x = law.sample(10_000, seed=4)
    for mean, weight in zip(MEANS, WEIGHTS, strict=True):
        count = float((x == mean).all(dim=1).sum())
        assert abs(count - 10_000 * weight) < 6 * (10_000 * weight * (1 - weight)) ** 0.5


# -- Gaussian and LowRank --------------------------------------------------------------------------


def test_low_rank_is_the_gaussian_on_its_subspace(sde: sd.LinearSDE) -> None:
    """Also for columns that are not orthonormal, more of them than dimensions, and one whose std is
    0.
    """
    mean, x = randn(4, seed=1), 2 * randn(6, 4, seed=2)
    t, s = torch.linspace(0.1 * sde.T, 0.9 * sde.T, 6, dtype=torch.float64), 0.05 * sde.T
    orthonormal = torch.linalg.qr(randn(4, 2, seed=3))[0]
    for basis, stds in [
        (orthonormal, [0.5, 2.0]),
        (orthonormal, [0.5, 0.0]),
        (randn(4, 2, seed=4), [0.5, 2.0]),
        (randn(4, 6, seed=5), 0.7),
        (randn(4, 1, seed=6) * torch.ones(2), [0.3, 0.4]),
    ]:
        law = LowRank(mean, basis, stds)
        covariance = (
            basis
            @ torch.diag(torch.as_tensor(stds, dtype=torch.float64).expand(basis.shape[1]) ** 2)
            @ basis.T
        )
        twin = Gaussian(mean, covariance)
        for name in ("score", "data", "noise", "log_prob"):
            torch.testing.assert_close(
                getattr(law, name)(sde, x, t), getattr(twin, name)(sde, x, t), **CLOSE
            )
        torch.testing.assert_close(law.flow(sde, x, t, s), twin.flow(sde, x, t, s), **CLOSE)
        torch.testing.assert_close(law.moments(sde, s), twin.moments(sde, s), **CLOSE)
        H, y = randn(3, 4, seed=8), randn(3, seed=9)
        torch.testing.assert_close(
            law.posterior(H, y, 0.3).moments(sde, s),
            twin.posterior(H, y, 0.3).moments(sde, s),
            **CLOSE,
        )


def test_large_low_rank_law_runs_without_square_matrices() -> None:
    event = (3, 64, 64)
    law = LowRank(torch.full(event, 0.2), randn(*event, 10), torch.arange(1.0, 11.0))
    x = law.sample(3, seed=0)
    out = sd.sample(law.model(VP), (3, *event), steps=5, seed=0)
    assert out.x.shape == x.shape == (3, *event)
    inside = (out.x.double() - 0.2).reshape(3, -1) @ law.basis
    assert float(inside.square().sum() / (out.x.double() - 0.2).square().sum()) == pytest.approx(
        1, abs=1e-6
    )
    assert law.log_prob(VP, x, 0.1).shape == (3,)
    assert law.posterior(randn(4, 3 * 64 * 64), torch.zeros(4), 0.1).event == event
    with pytest.raises(ValueError, match=r"\(12288, 12288\) matrix"):
        law.moments(VP, 0.1)


def test_flow_solves_the_probability_flow(sde: sd.LinearSDE, gaussian: Gaussian) -> None:
    """d flow / ds = f x - g^2 score / 2 by a central difference, and there and back is where it
    was.
    """
    x, t, s, h = randn(4, 2), 0.7 * sde.T, 0.4 * sde.T, 1e-5 * sde.T
    slope = (gaussian.flow(sde, x, t, s + h) - gaussian.flow(sde, x, t, s - h)) / (2 * h)
    y, time = gaussian.flow(sde, x, t, s), torch.tensor(s, dtype=torch.float64)
    torch.testing.assert_close(
        slope,
        sde.f(time) * y - 0.5 * sde.g(time) ** 2 * gaussian.score(sde, y, s),
        rtol=1e-7,
        atol=1e-7,
    )
    torch.testing.assert_close(gaussian.flow(sde, y, s, t), x, **CLOSE)
    assert not hasattr(GaussianMixture, "flow")


def test_clean_data_where_there_is_a_density() -> None:
    """At t = 0 with sigma = 0 a Gaussian is itself; a law on a subspace or points has no
    density.
    """
    law, x = LAWS["gaussian"], randn(5, 3)
    want = multivariate_normal(MEANS[0].numpy(), covariances(3).numpy()).logpdf(x.numpy())
    torch.testing.assert_close(law.log_prob(VP, x, 0.0), torch.as_tensor(want), **CLOSE)
    torch.testing.assert_close(law.data(VP, x, 0.0), x, **CLOSE)
    assert not law.noise(VP, x, 0.0).any()
    torch.testing.assert_close(LowRank(MEANS[0], randn(3, 3), 1.0).data(VP, x, 0.0), x, **CLOSE)
    singular = Gaussian(MEANS[0], randn(3, 2) @ randn(3, 2).T)
    for flat in (singular, Gaussian(0.0, [1.0, 1.0, 0.0]), LAWS["low-rank"], LAWS["points"]):
        for t in (0.0, torch.tensor([0.1, 0.2, 0.0, 0.3, 0.4], dtype=torch.float64)):
            with pytest.raises(ValueError, match=r"no density at t = 0: sigma\(t\) is 0"):
                flat.log_prob(VP, x, t)
        assert bool(torch.isfinite(flat.log_prob(sd.VE(), x, 0.0)).all())


@pytest.mark.parametrize("m", [1, 2, 3, 5])
@pytest.mark.parametrize("noise_std", [0.3, None, 1e-7])
def test_posterior_of_a_gaussian_in_precision_form(m: int, noise_std: float | None) -> None:
    """(C^-1 + H^T R^-1 H)^-1 and its mean, for fewer, as many and more measurements than
    dimensions.
    """
    law, H, y = LAWS["gaussian"], randn(m, 3, seed=2), randn(m, seed=3)
    std = (
        torch.linspace(0.1, 0.6, m, dtype=torch.float64)
        if noise_std is None
        else torch.full((m,), noise_std, dtype=torch.float64)
    )
    if noise_std == 1e-7:  # an exact measurement: H x_0 = y
        if m <= 3:
            mean, covariance = law.posterior(H, y, std).moments(VP, 0.0)
            torch.testing.assert_close(H @ mean, y, rtol=1e-6, atol=1e-6)
            assert float((H @ covariance @ H.T).abs().max()) < 1e-13
        return
    prior = torch.linalg.inv(covariances(3))
    weight = H.T @ torch.diag(std**-2)
    covariance = torch.linalg.inv(prior + weight @ H)
    mean = covariance @ (prior @ MEANS[0] + weight @ y)
    torch.testing.assert_close(
        law.posterior(H, y, std).moments(VP, 0.0), (mean, covariance), rtol=1e-9, atol=1e-9
    )
    given = law.posterior(H, y, 0.3 if noise_std else std)
    assert type(given) is Gaussian
    torch.testing.assert_close(given.covariance, covariance, rtol=1e-9, atol=1e-9)


# -- the interface ---------------------------------------------------------------------------------


class Coin(Law):
    """-1 or 1, as a user would write it."""

    event = torch.Size((2,))  # type: ignore[assignment]

    def evaluate(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Values:
        data = torch.tanh(alpha * x / sigma**2)
        terms = -0.5 * torch.stack([(x - alpha) ** 2, (x + alpha) ** 2]) / sigma**2
        log_prob = terms.logsumexp(dim=0) - 0.5 * (8 * math.pi * sigma**2).log()
        return Values(log_prob.sum(dim=1), (alpha * data - x) / sigma**2, data)


def test_a_users_law_needs_event_and_evaluate() -> None:
    corners = GaussianMixture([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], 0.0)
    x, t = randn(6, 2), torch.linspace(0.2, 1, 6, dtype=torch.float64)
    for name in ("score", "data", "noise", "log_prob"):
        torch.testing.assert_close(
            getattr(Coin(), name)(VP, x, t), getattr(corners, name)(VP, x, t), **CLOSE
        )
    ours, theirs = (
        sd.sample(law.model(VP), (9, 2), steps=20, seed=0, dtype=torch.float64).x
        for law in (Coin(), corners)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    with pytest.raises(NotImplementedError, match="not known in closed form"):
        Coin().posterior([[1.0, 0.0]], [0.0], 0.1)


@every_law
def test_models_are_copied_and_pickled(law: Law) -> None:
    model, x = law.model(VP), randn(4, 3)
    assert not list(model.parameters())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.data(x, 0.3), model.data(x, 0.3))
    for t in (
        torch.tensor(0.3, dtype=torch.float64),
        torch.full((4,), 0.3, dtype=torch.float64),
        torch.full((4,), 0.3),
    ):
        torch.testing.assert_close(model.net(x, t), law.v(VP, x, 0.3), rtol=1e-6, atol=1e-6)
    with pytest.raises(TypeError, match="label"):
        model.data(x, 0.3, label=torch.zeros(4))


@pytest.mark.uses_global_rng
@every_law
def test_predictions_are_differentiable_twice(law: Law) -> None:
    x = randn(3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: law.model(VP).score(v, 0.4), x)
    assert torch.autograd.gradgradcheck(lambda v: law.data(VP, v, 0.4), x)


def test_parameters_are_the_laws_own() -> None:
    means = torch.zeros(2, dtype=torch.float64)
    law = Gaussian(means, 1.0)
    means += 1
    assert not law.mean.any()


X = torch.zeros(2, 3)
BAD = {
    "empty mean": (lambda: Gaussian([], 1.0), ValueError, "mean must not be empty"),
    "text": (lambda: Gaussian("0", 1.0), TypeError, "mean must be numbers"),
    "not finite": (
        lambda: Gaussian([0.0, math.nan], 1.0),
        ValueError,
        "mean must be finite, got nan",
    ),
    "covariance's shape": (
        lambda: Gaussian([0.0, 0.0], torch.eye(3)),
        ValueError,
        r"symmetric \(2, 2\) matrix.*\(3, 3\)",
    ),
    "asymmetric": (
        lambda: Gaussian([0.0, 0.0], [[1e-9, 5e-10], [0.0, 1e-9]]),
        ValueError,
        "must be symmetric",
    ),
    "negative": (lambda: Gaussian(0.0, -1.0), ValueError, "no negative eigenvalue, got -1"),
    "basis": (
        lambda: LowRank([0.0, 0.0], torch.ones(3, 1), 1.0),
        ValueError,
        r"basis must be \(d, k\).*got shape \(3, 1\)",
    ),
    "stds of a basis": (
        lambda: LowRank([0.0, 0.0], torch.ones(2, 1), [1.0, 1.0]),
        ValueError,
        r"a number or \(1,\)",
    ),
    "negative std": (
        lambda: LowRank([0.0, 0.0], torch.ones(2, 1), -1.0),
        ValueError,
        "stds must be >= 0, got -1",
    ),
    "x": (
        lambda: LAWS["gaussian"].score(VP, [0.0], 0.5),
        TypeError,
        "x must be a floating-point tensor, got list",
    ),
    "integers": (lambda: LAWS["gaussian"].score(VP, X.int(), 0.5), TypeError, "got torch.int32"),
    "event": (
        lambda: LAWS["points"].score(VP, X[:, :2], 0.5),
        ValueError,
        r"event \(3,\), got shape \(2, 2\)",
    ),
    "times": (
        lambda: LAWS["points"].data(VP, X, torch.ones(3)),
        ValueError,
        r"B = 2 as in x, got shape \(3,\)",
    ),
    "moments": (lambda: LAWS["full"].moments(VP, torch.ones(2)), ValueError, "t must be a number"),
    "count": (
        lambda: LAWS["full"].sample(-1, seed=0),
        ValueError,
        "count must be a non-negative int",
    ),
    "seed": (
        lambda: LAWS["full"].sample(1, seed=0.5),
        ValueError,
        "seed must be a non-negative int",
    ),
    "H": (
        lambda: LAWS["full"].posterior([[1.0, 0.0]], [0.0], 1.0),
        ValueError,
        r"\(m, 3\) matrix.*got shape \(1, 2\)",
    ),
    "y": (
        lambda: LAWS["low-rank"].posterior(torch.eye(3), [0.0], 1.0),
        ValueError,
        r"y must be \(3,\)",
    ),
    "noise": (
        lambda: LAWS["points"].posterior(torch.eye(3), X[0], 0.0),
        ValueError,
        "noise_std must be positive, got 0",
    ),
    "noises": (
        lambda: LAWS["points"].posterior(torch.eye(3), X[0], [1.0, 1.0]),
        ValueError,
        r"a number or \(3,\)",
    ),
    "means": (lambda: GaussianMixture(0.0, 1.0), ValueError, r"means must be \(K, \*event\)"),
    "neither": (lambda: GaussianMixture(MEANS), ValueError, "pass either stds"),
    "both": (
        lambda: GaussianMixture(MEANS, 1.0, covariances=covariances(4, 3)),
        ValueError,
        "pass either stds",
    ),
    "stds": (
        lambda: GaussianMixture(MEANS, [1.0, 2.0]),
        ValueError,
        r"a number, \(4,\) or the shape of the means \(4, 3\)",
    ),
    "std": (lambda: GaussianMixture(MEANS, -0.1), ValueError, "stds must be >= 0, got -0.1"),
    "infinite": (lambda: GaussianMixture(MEANS, math.inf), ValueError, "stds must be finite"),
    "weights": (
        lambda: GaussianMixture(MEANS, 1.0, [0.5, 0.5]),
        ValueError,
        r"weights must be \(4,\)",
    ),
    "sum": (
        lambda: GaussianMixture(MEANS, 1.0, [1.0, 1.0, 1.0, 1.0]),
        ValueError,
        "must sum to 1, got a sum of 4; pass weights /",
    ),
    "weight": (
        lambda: GaussianMixture(MEANS, 1.0, [1.5, -0.5, 0.0, 0.0]),
        ValueError,
        "weights must be >= 0, got -0.5",
    ),
    "covariances": (
        lambda: GaussianMixture(MEANS, covariances=torch.eye(3)),
        ValueError,
        r"must be \(4, 3, 3\)",
    ),
    "indefinite": (
        lambda: GaussianMixture(MEANS[:2], covariances=[[[1.0]], [[-1.0]]]),
        ValueError,
        r"\(2, 3, 3\)",
    ),
    "negative second": (
        lambda: GaussianMixture([0.0, 0.0], covariances=[[[1.0]], [[-1.0]]]),
        ValueError,
        "component 1",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]
