"""Measurements: adjoints, likelihoods, and what is refused before a solve begins."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff import posterior
from sdediff.posterior.measurements import as_measurement
from sdediff.solvers.given import reals

F64 = torch.float64
H = torch.tensor([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]], dtype=F64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def some(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3)) > 0.5


PICTURE = (3, 4, 6)
SHIPPED = {
    "linear": (posterior.Linear(lambda x: x @ H.T, noise_std=0.1), (3,)),
    "linear, At": (posterior.Linear(lambda x: x @ H.T, lambda y: y @ H, noise_std=0.1), (3,)),
    "mask": (posterior.Mask(some(4, 6), noise_std=0.1), PICTURE),
    "mask, channels": (posterior.Mask(~some(3, 1, 1), noise_std=0.1), PICTURE),
    "mask, points": (posterior.Mask(torch.tensor([True, False, True]), noise_std=0.1), (3,)),
    "blur": (posterior.Blur(randn(2, 3), noise_std=torch.tensor(0.3)), PICTURE),
    "blur, signals": (posterior.Blur(randn(4), noise_std=0.1), (2, 7)),
    "downsample": (posterior.Downsample(2, noise_std=0.1), PICTURE),
    "downsample, volumes": (posterior.Downsample(2, dims=3, noise_std=0.1), (1, 4, 2, 6)),
    "grey": (posterior.Grey(noise_std=0.1), PICTURE),
    "fourier": (posterior.Fourier(some(4, 6), noise_std=0.1), PICTURE),
    "fourier, signals": (posterior.Fourier(some(7), noise_std=0.1), (7,)),
}


def matrix(measurement: Any, event: tuple[int, ...]) -> Tensor:
    """The matrix of a linear measurement, (m, d)."""
    basis = torch.eye(math.prod(event), dtype=F64).reshape(-1, *event)
    return measurement.forward(basis).flatten(1).T


@pytest.mark.parametrize("name", SHIPPED)
def test_the_adjoint_is_the_transpose(name: str) -> None:
    measurement, event = SHIPPED[name]
    y = measurement.forward(randn(2, *event))
    back = measurement.adjoint(y, event)
    expected = y.flatten(1) @ matrix(measurement, event)
    assert torch.allclose(back.flatten(1), expected, atol=1e-12)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_likelihood_is_that_of_normal_noise(name: str) -> None:
    measurement, event = SHIPPED[name]
    x, y = randn(2, *event), measurement.forward(randn(2, *event, seed=1))
    law = torch.distributions.Normal(measurement.forward(x), reals("std", measurement.noise_std))
    expected = law.log_prob(y).flatten(1).sum(dim=1)
    assert torch.allclose(measurement.log_likelihood(x, y), expected, rtol=1e-12)


def test_shipped_measurements_are_what_they_say() -> None:
    picture = randn(1, *PICTURE)
    blurred = posterior.Blur(torch.tensor([[0.0, 0.0, 1.0]]), noise_std=0.0).forward(picture)
    assert torch.allclose(blurred, picture.roll(1, dims=-1))
    small = posterior.Downsample(2, noise_std=0.0).forward(picture)
    assert torch.allclose(small, torch.nn.functional.avg_pool2d(picture, 2))
    grey = posterior.Grey((1.0, 0.0, 2.0), noise_std=0.0).forward(picture)
    assert torch.allclose(grey[:, 0], picture[:, 0] + 2 * picture[:, 2])
    whole = posterior.Fourier(torch.ones(4, 6, dtype=torch.bool), noise_std=0.0).forward(picture)
    assert torch.allclose(whole.square().sum(), picture.square().sum())


def test_physics_of_deepinv_are_taken_by_their_methods() -> None:
    physics = SimpleNamespace(
        A=lambda x: x @ H.T, A_adjoint=lambda y: y @ H, noise_model=SimpleNamespace(sigma=0.2)
    )
    found: Any = as_measurement(physics)
    assert found.noise_std == 0.2
    assert torch.equal(found.adjoint(found.forward(randn(2, 3)), (3,)), randn(2, 3) @ H.T @ H)


class Noise:
    """A noise model of deepinv: a function of x, which draws from torch's global generator."""

    def __init__(self, function: Any, **own: Any) -> None:
        self.function = function
        vars(self).update(own)

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(x)
        return found


NOISES: dict[str, tuple[Noise, Any]] = {
    "normal": (Noise(lambda x: x + 0.2 * torch.randn_like(x), sigma=torch.tensor(0.2)), 0.2),
    "none": (Noise(lambda x: x), 0.0),
    "Poisson": (Noise(torch.poisson, gain=1.0), TypeError),
    "both": (Noise(lambda x: torch.poisson(x) + torch.randn_like(x), sigma=1.0), TypeError),
    "uniform": (Noise(lambda x: x + torch.rand_like(x)), TypeError),
    "one a sample": (Noise(lambda x: x, sigma=torch.ones(2)), ValueError),
}


@pytest.mark.parametrize("kind", NOISES)
def test_noise_of_physics_is_normal_of_one_size_or_refused(kind: str) -> None:
    noise, wanted = NOISES[kind]
    physics = SimpleNamespace(A=lambda x: x, A_adjoint=lambda y: y, noise_model=noise)
    if isinstance(wanted, float):
        found: Any = as_measurement(physics)
        assert float(found.noise_std) == pytest.approx(wanted)
        return
    with pytest.raises(wanted, match=r"noise_model (is Noise|has 2 sigmas)"):
        as_measurement(physics)


MODEL = sd.exact.Gaussian([0.0, 1.0, 0.0], 1.0).model(sd.VP())


def solve(measurement: Any, y: Tensor, method: Any = posterior.MMPS, count: int = 4) -> None:
    """A solve whose network must not be called."""

    def net(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the network was called")

    model = method(sd.ScoreModel(net, sd.VP()), measurement, y)
    sd.sample(model, (count, 3), steps=3, seed=0, dtype=F64)


GOOD = SHIPPED["linear"][0]
REFUSED: dict[str, tuple[Any, ...]] = {
    "no adjoint": (
        posterior.Linear(lambda x: x @ H.T, lambda y: y @ H.flip(0), noise_std=0.1),
        randn(4, 2),
        r"<A x, y> = .* and <x, A\^T y> = .*the adjoint is not that of A",
    ),
    "not linear": (
        posterior.Linear(lambda x: (x @ H.T).square(), noise_std=0.1),
        randn(4, 2),
        "A is not linear: use Nonlinear",
    ),
    "affine": (
        posterior.Linear(lambda x: x @ H.T + 1, noise_std=0.1),
        randn(4, 2),
        "the adjoint is not that of A",
    ),
    "an adjoint of another shape": (
        posterior.Linear(lambda x: x @ H.T, lambda y: y, noise_std=0.1),
        randn(4, 2),
        r"the adjoint must return events \(3,\), got \(2,\)",
    ),
    "outcomes": (GOOD, randn(4, 3), r"outcomes of shape \(3,\), and the measurement makes \(2,\)"),
    "samples": (GOOD, randn(3, 2), "y has 3 outcomes for 4 samples"),
    "more samples": (GOOD, randn(5, 2), "y has 5 outcomes for 4 samples"),
    "y": (GOOD, randn(4, 2).long(), "y must be a floating-point tensor"),
    "nan": (GOOD, randn(4, 2) / 0, "not finite"),
    "mask's shape": (
        posterior.Mask(torch.ones(2, dtype=torch.bool), noise_std=0.1),
        randn(4, 2),
        "does not fit an event",
    ),
    "another rank": (
        posterior.Linear(lambda x: x @ H, noise_std=0.1),
        randn(4, 2),
        r"the measurement failed on an event \(3,\), torch.float64: .*H.to\(x\)",
    ),
    "noise of each sample": (
        posterior.Linear(lambda x: x @ H.T, noise_std=torch.tensor([[0.1], [2.0]])),
        randn(4, 2),
        r"noise_std has shape \(2, 1\), and an outcome \(2,\)",
    ),
    "noise of more entries": (
        posterior.Linear(lambda x: x @ H.T, noise_std=torch.ones(3)),
        randn(4, 2),
        r"noise_std has shape \(3,\), and an outcome \(2,\): give a number, or numbers that",
    ),
    "no measurement": (H, randn(4, 2), "measurement must have forward and log_likelihood"),
    "nonlinear": (
        posterior.Nonlinear(torch.sin, lambda y, z: (y - z).sum(1)),
        randn(4, 3),
        "MMPS is for linear measurements",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_the_first_call(name: str) -> None:
    measurement, y, match = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=match):
        solve(measurement, y)


def test_a_measurement_without_a_gradient_is_refused_before_the_first_call() -> None:
    """A function with a threshold or with detach() has none."""
    seen = posterior.Nonlinear(lambda x: x.detach().sin(), lambda y, z: (y - z).sum(dim=1))
    match = "Nonlinear: the outcome does not depend on x"
    with pytest.raises(ValueError, match=match):
        solve(seen, randn(4, 3), posterior.DPS)
    solver = posterior.PublishedDPS(seen, randn(4, 3))
    with pytest.raises(ValueError, match=match):
        sd.sample(MODEL, (4, 3), solver=solver, steps=3, seed=0, dtype=F64)


def test_events_of_one_number_are_checked_too() -> None:
    """States (B,) are events of shape ()."""
    model = sd.exact.Gaussian(0.0, 1.0).model(sd.VP())
    wrong = posterior.Linear(lambda x: 2 * x, lambda y: y, noise_std=0.1)
    with pytest.raises(ValueError, match="the adjoint is not that of A"):
        sd.sample(posterior.MMPS(model, wrong, randn(4)), (4,), steps=3, seed=0, dtype=F64)


def test_a_noise_of_zero_is_refused_where_it_divides() -> None:
    sharp = posterior.Linear(lambda x: x @ H.T, noise_std=0.0)
    with pytest.raises(ValueError, match="DPS divides by noise_std, and it is 0"):
        posterior.DPS(MODEL, sharp, randn(1, 2))
    for method in (posterior.MMPS, posterior.PiGDM):
        out = sd.sample(method(MODEL, sharp, randn(1, 2)), (4, 3), steps=20, seed=0, dtype=F64)
        assert torch.allclose(out.x @ H.T, randn(1, 2).expand(4, 2), atol=0.05)


WRONG = {
    "kind of mask": (lambda: posterior.Mask(torch.ones(3), noise_std=0.1), "must be a bool tensor"),
    "empty mask": (
        lambda: posterior.Fourier(torch.zeros(3, dtype=torch.bool), noise_std=0.1),
        "False everywhere",
    ),
    "noise": (lambda: posterior.Grey(noise_std=-1.0), "noise_std must be finite and >= 0"),
    "matrix": (lambda: posterior.Linear(H, noise_std=0.1), "A must be a function"),
    "kernel": (lambda: posterior.Blur([1.0], noise_std=0.1), "kernel must be a floating-point"),
    "kernel of NaN": (
        lambda: posterior.Blur(torch.tensor([1.0, torch.nan]), noise_std=0.1),
        "not finite",
    ),
    "channels": (
        lambda: posterior.Grey(noise_std=0.1).forward(randn(1, 2, 4)),
        "one weight for each",
    ),
    "factor": (
        lambda: posterior.Downsample(4, noise_std=0.1).forward(randn(1, 4, 6)),
        "multiples of the factor 4",
    ),
    "long kernel": (
        lambda: posterior.Blur(randn(5), noise_std=0.1).forward(randn(1, 4)),
        "is longer than the event's",
    ),
    "likelihood": (
        lambda: posterior.Nonlinear(torch.sin, lambda y, z: y - z).log_likelihood(
            randn(2, 3), randn(2, 3)
        ),
        "one number a sample",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_measurements_say_what_is_wrong(name: str) -> None:
    make, match = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=match):
        make()
