"""Mixtures: the kinds agree, data sets are kernel regression, posteriors by quadrature, and 50
digits at extreme noise levels.
"""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.exact import Gaussian, GaussianMixture, Law, LowRank

VP = sd.VP()
NAMES = ("score", "data", "noise", "log_prob")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("std", [[0.3, 0.0, 1.2], [0.4, 0.4, 0.4], 0.0])
def test_kinds_agree(sde: sd.LinearSDE, std: object) -> None:
    """Isotropic, diagonal and full with the same covariances, also in many chunks; and one
    component is the Gaussian.
    """
    means, weights = randn(3, 4), [0.2, 0.5, 0.3]
    stds = torch.as_tensor(std, dtype=torch.float64).expand(3)
    diagonal = stds[:, None].expand(3, 4)
    turn = torch.linalg.qr(randn(4, 4, seed=2))[0]
    kinds = [
        GaussianMixture(means, std, weights),
        GaussianMixture(means, diagonal, weights),
        GaussianMixture(means, weights=weights, covariances=torch.diag_embed(diagonal**2)),
    ]
    x, t = 2 * randn(7, 4, seed=1), torch.linspace(0.05 * sde.T, sde.T, 7, dtype=torch.float64)
    for other in kinds[1:]:
        for name in NAMES:
            torch.testing.assert_close(
                getattr(kinds[0], name)(sde, x, t),
                getattr(other, name)(sde, x, t),
                rtol=1e-10,
                atol=1e-10,
            )
    # A diagonal mixture seen in other axes is a full one.
    spread = 0.1 + randn(3, 4, seed=3).abs()
    straight = GaussianMixture(means, spread, weights)
    turned = GaussianMixture(
        means @ turn.T, weights=weights, covariances=turn @ torch.diag_embed(spread**2) @ turn.T
    )
    for name in ("score", "data"):
        want = getattr(straight, name)(sde, x, t) @ turn.T
        torch.testing.assert_close(
            getattr(turned, name)(sde, x @ turn.T, t), want, rtol=1e-10, atol=1e-10
        )
    torch.testing.assert_close(
        turned.log_prob(sde, x @ turn.T, t), straight.log_prob(sde, x, t), rtol=1e-10, atol=1e-10
    )
    alone, gaussian = GaussianMixture(means[:1], spread[:1]), Gaussian(means[0], spread[0] ** 2)
    for name in NAMES:
        torch.testing.assert_close(
            getattr(alone, name)(sde, x, t),
            getattr(gaussian, name)(sde, x, t),
            rtol=1e-10,
            atol=1e-10,
        )


@pytest.mark.parametrize("std", [0.0, 0.1, None])
def test_chunks_are_seamless(monkeypatch: pytest.MonkeyPatch, std: float | None) -> None:
    means = randn(5, 2)
    law = GaussianMixture(means, 0.1 + randn(5, 2, seed=1).abs() if std is None else std)
    x, t = randn(11, 2, seed=2), torch.linspace(0.1, 1, 11, dtype=torch.float64)
    whole = [getattr(law, name)(VP, x, time) for name in NAMES for time in (t, 0.3)]
    monkeypatch.setattr("sdediff.exact.mixture._CHUNK", 30)
    for got, want in zip(
        [getattr(law, name)(VP, x, time) for name in NAMES for time in (t, 0.3)], whole, strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


def test_a_data_set_is_kernel_regression(sde: sd.LinearSDE) -> None:
    """E[x_0 | x] = sum w_k N(x; alpha x_k, sigma^2) x_k / sum w_k N(x; alpha x_k, sigma^2), for 40
    points as large as an image.
    """
    points, x = 0.3 * randn(40, 3, 5, 5), randn(6, 3, 5, 5, seed=1)
    law, largest = GaussianMixture(points, 0.0), []
    for t in sde.time_of(-2 * torch.tensor([1.5, 2.0, 4.0], dtype=torch.float64).log()):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        kernel = torch.softmax(
            -0.5 * (x[:, None] - alpha * points).square().sum(dim=(2, 3, 4)) / sigma**2, dim=1
        )
        torch.testing.assert_close(
            law.data(sde, x, t),
            torch.einsum("bk,k...->b...", kernel, points),
            rtol=1e-10,
            atol=1e-10,
        )
        largest.append(float(kernel.max(dim=1).values.min()))
    assert 0.1 < largest[0] < 1 - 1e-6, "neither one point nor all alike"


def test_a_large_data_set() -> None:
    """1,800 points in 64 dimensions and 256 states: no (256, 1800, 64) tensor of 236 MB is made,
    and the rows are right.
    """
    points, x = 4 * randn(1800, 64), randn(256, 64, seed=1)
    law = GaussianMixture(points, 0.1)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        data = law.data(VP, x, 0.6)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 40e6
    few = GaussianMixture(points, torch.full_like(points, 0.1))
    torch.testing.assert_close(data[:3], few.data(VP, x[:3], 0.6), rtol=1e-10, atol=1e-10)


# -- the posterior under a linear measurement ------------------------------------------------------

POSTERIORS = {
    "isotropic": GaussianMixture(
        [[-1.0, 0.3], [0.8, -0.2], [0.1, 1.1]], [0.2, 0.4, 0.3], [0.5, 0.2, 0.3]
    ),
    "diagonal": GaussianMixture([[-1.0, 0.3], [0.8, -0.2]], [[0.2, 0.5], [0.4, 0.3]], [0.7, 0.3]),
    "full": GaussianMixture(
        [[-1.0, 0.3], [0.8, -0.2]],
        None,
        [0.7, 0.3],
        covariances=[[[0.4, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.3]]],
    ),
}
MEASUREMENTS = {
    "one row": ([[1.0, -0.5]], [0.7], 0.3),
    "two rows": ([[1.0, -0.5], [0.2, 0.8]], [0.7, -0.1], [0.3, 0.6]),
    "three rows": ([[1.0, -0.5], [0.2, 0.8], [0.0, 1.0]], [0.7, -0.1, 0.4], [0.3, 0.6, 0.5]),
}


@pytest.mark.thin(5)
@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.parametrize("name", POSTERIORS)
def test_posterior_by_quadrature(name: str, measurement: str) -> None:
    """Density and moments against prior times likelihood on a grid, where the trapezoidal rule is
    exact to rounding.
    """
    law, (H, y, noise_std) = (
        POSTERIORS[name],
        (torch.tensor(v, dtype=torch.float64) for v in MEASUREMENTS[measurement]),
    )
    axis = torch.linspace(-7, 7, 401, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    cell = (axis[1] - axis[0]) ** 2
    likelihood = (-0.5 * ((y - x @ H.T) / noise_std).square()).sum(dim=1)
    joint = law.log_prob(VP, x, 0.0) + likelihood
    evidence = joint.exp().sum() * cell
    weight = joint.exp() * cell / evidence
    mean = weight @ x
    covariance = (x - mean).T @ (weight[:, None] * (x - mean))
    given = law.posterior(H, y, noise_std)
    assert type(given) is GaussianMixture
    assert float(given.weights.sum()) == pytest.approx(1, abs=1e-14)
    torch.testing.assert_close(given.moments(VP, 0.0), (mean, covariance), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        given.log_prob(VP, x, 0.0), joint - evidence.log(), rtol=1e-9, atol=1e-8
    )


def test_posterior_of_points_reweights_them() -> None:
    points, weights, H = (
        randn(6, 2, 2),
        torch.full((6,), 1 / 6, dtype=torch.float64),
        randn(3, 4, seed=1),
    )
    y = H @ points[2].flatten()
    given = GaussianMixture(points, 0.0, weights).posterior(H, y, 0.5)
    assert torch.equal(given.means, points)
    fit = -0.5 * ((y - points.reshape(6, 4) @ H.T) / 0.5).square().sum(dim=1)
    torch.testing.assert_close(given.weights, torch.softmax(fit, dim=0), rtol=1e-12, atol=1e-12)
    many = GaussianMixture(points.reshape(6, 4), torch.zeros(6, 4), weights).posterior(H, y, 0.5)
    torch.testing.assert_close(many.weights, given.weights, rtol=1e-12, atol=1e-12)
    x = randn(5, 2, 2, seed=2)
    torch.testing.assert_close(
        many.data(VP, x.reshape(5, 4), 0.5),
        given.data(VP, x, 0.5).reshape(5, 4),
        rtol=1e-11,
        atol=1e-11,
    )


def test_posterior_twice_is_posterior_once() -> None:
    law, H, y = POSTERIORS["full"], randn(2, 2), randn(2, seed=1)
    once, twice = (
        law.posterior(H, y, [0.2, 0.4]),
        law.posterior(H[:1], y[:1], 0.2).posterior(H[1:], y[1:], 0.4),
    )
    torch.testing.assert_close(once.weights, twice.weights, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        once.moments(VP, 0.1), twice.moments(VP, 0.1), rtol=1e-11, atol=1e-11
    )


# -- 50 digits -------------------------------------------------------------------------------------


def precise(
    means: Tensor, roots: Tensor, weights: Tensor, x: Tensor, alpha: float, sigma: float
) -> tuple[float, list[mp.mpf], list[mp.mpf]]:
    """log p, score and E[x_0 | x] at x (d,) of a mixture with C_k = root_k root_k^T, to 50 digits
    from the numbers given.
    """
    with mp.workdps(50):
        a, s, d = mp.mpf(alpha), mp.mpf(sigma), len(x)
        logs, pulls, datas = [], [], []
        for m, root, w in zip(means.tolist(), roots.tolist(), weights.tolist(), strict=True):
            c = mp.matrix(root) * mp.matrix(root).T
            total = a**2 * c + s**2 * mp.eye(d)
            z = mp.matrix(x.tolist()) - a * mp.matrix(m)
            u = mp.lu_solve(total, z)
            square = sum(z[i] * u[i] for i in range(d))
            logs.append(mp.log(w) - (square + mp.log(mp.det(total)) + d * mp.log(2 * mp.pi)) / 2)
            pulls.append(u)
            datas.append(mp.matrix(m) + a * (c * u))
        top = max(logs)
        total_weight = sum(mp.exp(v - top) for v in logs)
        r = [mp.exp(v - top) / total_weight for v in logs]
        score = [-sum(q * u[i] for q, u in zip(r, pulls, strict=True)) for i in range(d)]
        data = [sum(q * v[i] for q, v in zip(r, datas, strict=True)) for i in range(d)]
        return float(top + mp.log(total_weight)), score, data


def off(got: Tensor, want: list[mp.mpf]) -> float:
    """Distance relative to the length of ``want``."""
    with mp.workdps(50):
        difference = mp.sqrt(
            sum((mp.mpf(a) - b) ** 2 for a, b in zip(got.tolist(), want, strict=True))
        )
        return float(difference / mp.sqrt(sum(b**2 for b in want)))


MEANS = randn(5, 3, seed=11)
MEANS[1] = MEANS[0] + 2e-6  # two that only the smallest noise tells apart
WEIGHTS = torch.tensor([0.3, 0.2, 0.1, 0.15, 0.25], dtype=torch.float64)
ROOTS = randn(5, 3, 3, seed=12)
STDS = torch.tensor([0.3, 1.2, 0.5, 0.7, 0.01], dtype=torch.float64)
U = torch.linalg.qr(randn(3, 2, seed=13))[0]
PRECISE: dict[str, tuple[Law, Tensor, Tensor, Tensor]] = {
    "points": (GaussianMixture(MEANS, 0.0, WEIGHTS), MEANS, torch.zeros(5, 3, 3), WEIGHTS),
    "points, diagonal": (
        GaussianMixture(MEANS, torch.zeros(5, 3), WEIGHTS),
        MEANS,
        torch.zeros(5, 3, 3),
        WEIGHTS,
    ),
    "isotropic": (
        GaussianMixture(MEANS, STDS, WEIGHTS),
        MEANS,
        STDS[:, None, None] * torch.eye(3),
        WEIGHTS,
    ),
    "full": (
        GaussianMixture(MEANS, weights=WEIGHTS, covariances=ROOTS @ ROOTS.mT),
        MEANS,
        ROOTS,
        WEIGHTS,
    ),
    "gaussian": (Gaussian(MEANS[0], ROOTS[0] @ ROOTS[0].T), MEANS[:1], ROOTS[:1], torch.ones(1)),
    "low-rank": (
        LowRank(MEANS[0], U, [0.5, 2.0]),
        MEANS[:1],
        (U * torch.tensor([0.5, 2.0]))[None],
        torch.ones(1),
    ),
}
WIDE, NARROW = sd.VE(1e-6, 1e4), sd.VP(t_min=1e-13)


@pytest.mark.parametrize(
    ("sde", "t"),
    [(WIDE, 0.0), (WIDE, 0.5), (WIDE, 1.0), (NARROW, 1e-8), (NARROW, 0.4), (NARROW, 1.0)],
)
@pytest.mark.parametrize("name", PRECISE)
def test_fifty_digits(sde: sd.LinearSDE, t: float, name: str) -> None:
    """Relative 1e-10 from sigma = 1e-6 to 1e4, of the law and of its model.

    Where sigma is small, x - alpha m is of the size of sigma and rounded to eps |m|, so that eps
    |m| / sigma is the best that the score can have: 1e-10 is met at 1e-6 where alpha = 1 makes the
    difference exact. What a projection leaves of x beyond a subspace is rounded to eps |x|, for
    which the low-rank law is given ten times as much.
    """
    law, means, roots, weights = PRECISE[name]
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(time)), float(sde.sigma(time))
    x = alpha * means[:1] + sigma * randn(1, 3, seed=5)
    log_prob, score, data = precise(means, roots, weights, x[0], alpha, sigma)
    noise = [-sigma * v for v in score]
    model, bound = law.model(sde), 1e-9 if name == "low-rank" and sigma < 1e-3 else 1e-10
    errors = {
        "score": off(law.score(sde, x, t)[0], score),
        "noise": off(law.noise(sde, x, t)[0], noise),
        "data": off(law.data(sde, x, t)[0], data),
        "model's noise": off(model.noise(x, t)[0], noise),
        "model's data": off(model.data(x, t)[0], data),
    }
    assert max(errors.values()) < bound, errors
    assert float(law.log_prob(sde, x, t)[0]) == pytest.approx(log_prob, rel=1e-10, abs=1e-10)


def test_many_dimensions_at_large_sigma() -> None:
    """3,072 dimensions at sigma = 1e4: logits of size d / 2 that differ by 1e-2 give E[x_0 | x] to
    1e-10.
    """
    points = randn(6, 3072)
    law = GaussianMixture(points, 0.0)
    x = points[:1] + 1e4 * randn(1, 3072, seed=1)
    _, score, data = fast_points(points, x[0], 1e4)
    assert off(law.data(WIDE, x, 1.0)[0], data) < 1e-10
    assert off(law.score(WIDE, x, 1.0)[0], score) < 1e-10
    assert math.isfinite(float(law.log_prob(WIDE, x, 1.0)))


def fast_points(points: Tensor, x: Tensor, sigma: float) -> tuple[None, list[mp.mpf], list[mp.mpf]]:
    """`precise` for equal points with alpha = 1, without matrices."""
    with mp.workdps(50):
        s = mp.mpf(float(WIDE.sigma(torch.tensor(1.0, dtype=torch.float64))))
        assert abs(s / sigma - 1) < 1e-12
        z = [mp.mpf(v) for v in x.tolist()]
        rows = [[mp.mpf(v) for v in p] for p in points.tolist()]
        logs = [-sum((a - b) ** 2 for a, b in zip(z, p, strict=True)) / (2 * s**2) for p in rows]
        e = [mp.exp(v - max(logs)) for v in logs]
        data = [sum(w * p[i] for w, p in zip(e, rows, strict=True)) / sum(e) for i in range(len(z))]
        return None, [(d - v) / s**2 for d, v in zip(data, z, strict=True)], data
