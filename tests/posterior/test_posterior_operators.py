"""Posteriors as models: exact for Gaussian data, the published formulas, and any solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff import posterior

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


H, Y, STD, D = randn(2, 4, seed=1), randn(1, 2, seed=2), 0.3, 4
ROOT = randn(D, D, seed=3)
LAW = sd.exact.Gaussian(randn(D, seed=4), ROOT @ ROOT.T / 4 + 0.1 * torch.eye(D))
MEASURED = posterior.Linear(lambda x: x @ H.T.to(x), noise_std=STD)
TRUTH = LAW.posterior(H, Y[0], STD)


def states(sde: sd.LinearSDE, t: float) -> Tensor:
    time = torch.tensor(t, dtype=F64)
    return sde.alpha(time) * LAW.sample(5, seed=0) + sde.sigma(time) * randn(5, D, seed=5)


def test_moment_matching_is_exact_for_gaussian_data(sde: sd.LinearSDE) -> None:
    """The score of the posterior under noise, at all levels of noise."""
    model = posterior.MMPS(LAW.model(sde), MEASURED, Y, iterations=4)
    low, high = max(sde.t_min, 1e-3 * sde.T), sde.t_max
    for share in (0.0, 0.1, 0.5, 1.0):
        t = low + share * (high - low)
        x = states(sde, t)
        expected = TRUTH.score(sde, x, t)
        assert (model.score(x, t) - expected).norm() <= 1e-8 * expected.norm()


@pytest.mark.parametrize("predicts", ["noise", "data", "score", "v", "flow", "edm"])
def test_any_prediction_and_the_users_units(predicts: str) -> None:
    """Data u = mean + std x, with the measurement on u and the network on x."""
    sde = sd.VP()
    mean, std = randn(D, seed=6), randn(D, seed=7).abs() + 0.5
    law = sd.exact.Gaussian((LAW.mean - mean) / std, LAW.covariance / (std[:, None] * std))
    exact = law.model(sde)

    def net(x: Tensor, t: Tensor) -> Tensor:
        if predicts != "edm":
            return getattr(exact, predicts)(x, t)
        root = (sde.sigma(t) ** 2 + sde.alpha(t) ** 2)[:, None].sqrt()
        p, q = sde.sigma(t)[:, None] / root, -sde.alpha(t)[:, None] / root
        x = x * root
        return p * exact.data(x, t) + q * exact.noise(x, t)

    model = sd.ScoreModel(
        net, sde, predicts, time_dtype=F64, normalizer=sd.Normalizer(mean, std), sigma_data=1.0
    )
    x, t = randn(3, D), 0.4
    truth = sd.exact.Gaussian((TRUTH.mean - mean) / std, TRUTH.covariance / (std[:, None] * std))
    found = posterior.MMPS(model, MEASURED, Y, iterations=4).data(x, t)
    assert torch.allclose(found, truth.data(sde, x, t), rtol=1e-8, atol=1e-8)


def linearised(method: str, x: Tensor, t: float) -> Tensor:
    """The published E[x_0 | x_t, y], by matrices: x_0^ + sigma^2 / alpha J^T A^T K^{-1} (y - A
    x_0^).
    """
    sde, model = sd.VP(), MIXTURE.model(sd.VP())
    alpha, sigma = (f(torch.tensor(t, dtype=F64)) for f in (sde.alpha, sde.sigma))
    lift = sigma**2 / alpha
    rows = []
    for row in x:
        data = model.data(row[None], t)[0]
        jacobian = torch.autograd.functional.jacobian(lambda z: model.data(z[None], t)[0], row)
        d = MIXTURE.data_std
        spread = {
            "PiGDM": d**2 * sigma**2 / (sigma**2 + alpha**2 * d**2) * torch.eye(D, dtype=F64),
            "MMPS": lift * jacobian,
            "DPS": torch.zeros(D, D, dtype=F64),
        }[method]
        inside = H @ spread @ H.T + STD**2 * torch.eye(2, dtype=F64)
        pull = H.T @ torch.linalg.solve(inside, Y[0] - H @ data)
        rows.append(data + lift * jacobian.T @ pull)
    return torch.stack(rows)


MIXTURE = sd.exact.GaussianMixture(randn(3, D, seed=8), 0.4)


@pytest.mark.parametrize("method", ["PiGDM", "MMPS", "DPS"])
def test_methods_are_the_published_formulas(method: str) -> None:
    x, t = randn(4, D), 0.35
    options: dict[str, Any] = {"iterations": 4} if method == "MMPS" else {}
    model = getattr(posterior, method)(MIXTURE.model(sd.VP()), MEASURED, Y, **options)
    assert torch.allclose(model.data(x, t), linearised(method, x, t), rtol=1e-10, atol=1e-10)


def test_dps_takes_any_likelihood() -> None:
    """The scale multiplies the score of the likelihood, of whatever kind."""
    sde = sd.VP()
    measured = posterior.Nonlinear(lambda x: x.square(), lambda y, z: -(y - z).abs().sum(dim=1))
    base = MIXTURE.model(sde)
    y, x, t = randn(4, D, seed=9), randn(4, D), 0.35
    z = x.clone().requires_grad_()
    loss = measured.log_likelihood(base.data(z, t), y)
    (pull,) = torch.autograd.grad(loss.sum(), z)
    model = posterior.DPS(base, measured, y, scale=0.7)
    assert torch.allclose(model.score(x, t), base.score(x, t) + 0.7 * pull, rtol=1e-9, atol=1e-9)


def test_samples_have_the_law_of_the_posterior_of_their_own_outcome() -> None:
    """Two outcomes in one call, and batches that split them; false alarms: 1e-6 a number."""
    n = 4000
    y = torch.cat([Y.expand(n, 2), -Y.expand(n, 2)])
    model = posterior.MMPS(LAW.model(sd.VP()), MEASURED, y, iterations=3)
    out = sd.sample(model, (2 * n, D), steps=25, seed=0, batch_size=3000)
    for x, law in (
        (out.x[:n], TRUTH),
        (out.x[n:], LAW.posterior(H, -Y[0], STD)),
    ):
        spread = law.covariance.diagonal().sqrt()
        assert bool(((x.mean(dim=0) - law.mean).abs() < 5 * spread / n**0.5 + 0.01 * spread).all())
        assert bool(((x.std(dim=0) / spread - 1).abs() < 5 / (2 * n) ** 0.5 + 0.01).all())


@pytest.mark.thin(0)
def test_passes_are_counted_and_every_kind_of_solver_runs() -> None:
    model = posterior.PiGDM(LAW.model(sd.VP()), MEASURED, Y)
    exact = posterior.MMPS(LAW.model(sd.VP()), MEASURED, Y, iterations=4)
    out = sd.sample(model, (3, D), steps=7, seed=0)
    assert out.nfe.tolist() == [8] * 3
    assert out.backward is not None
    assert out.backward.tolist() == [8] * 3
    for solver in (sd.RK45(1e-3), sd.AdaptiveSDE(1e-2), sd.EulerMaruyama(), sd.DDIM()):
        steps = {} if solver.adaptive else {"steps": 10}
        assert sd.sample(model, (3, D), solver=solver, seed=0, **steps).success
    # the density of the posterior, for which second derivatives are taken
    x = TRUTH.sample(3, seed=1)
    found, expected = (
        sd.log_prob(each, x, solver=sd.solvers.RungeKutta4(), steps=20, dtype=F64).value
        for each in (exact, TRUTH.model(sd.VP()))
    )
    assert torch.allclose(found, expected, atol=2e-4)


def test_a_sample_knows_its_own_outcome_whoever_else_is_there() -> None:
    """An adaptive solver's samples leave the batch one by one."""
    y, solver = randn(3, 2, seed=9), sd.RK45(1e-4)
    model = posterior.PiGDM(MIXTURE.model(sd.VP()), MEASURED, y)
    options: dict[str, Any] = {"solver": solver, "dtype": F64}
    whole = sd.sample(model, (3, D), seed=[1, 2, 3], **options)
    for i in range(3):
        alone = posterior.PiGDM(MIXTURE.model(sd.VP()), MEASURED, y[i : i + 1])
        found = sd.sample(alone, (1, D), seed=[i + 1], **options)
        assert torch.allclose(whole.x[i], found.x[0], atol=1e-10)
        assert int(whole.nfe[i]) == int(found.nfe[0])


def test_gradients_reach_the_network() -> None:
    weight = torch.nn.Parameter(torch.tensor(0.5, dtype=F64))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.weight * x

    model = posterior.MMPS(sd.ScoreModel(Net(), sd.VP()), MEASURED, Y, iterations=2)

    def loss() -> Tensor:
        out = sd.sample(model, (2, D), steps=3, seed=0, dtype=F64, grad="full")
        return out.x.square().sum()

    (found,) = torch.autograd.grad(loss(), weight)
    weight.data += 1e-6
    high = loss().item()
    weight.data -= 2e-6
    low = loss().item()
    assert found.item() == pytest.approx((high - low) / 2e-6, rel=1e-5)
