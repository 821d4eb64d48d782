"""DDPM as an exact discretization of VP."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from exact_moments import reverse_moments

import sdediff as sd


def test_betas_are_the_exact_transition() -> None:
    """1 - beta_i = exp(-integral of beta over the interval), with the integral in exact arithmetic."""
    ddpm = sd.DDPM.from_sde(sd.VP(), 50)
    low, high = Fraction(1, 10), Fraction(20)

    def integral(t: Fraction) -> Fraction:
        return low * t + (high - low) * t * t / 2

    for i, beta in enumerate(ddpm.betas):
        exact = -torch.expm1(-torch.tensor(float(integral(Fraction(i + 1, 50)) - integral(Fraction(i, 50))), dtype=torch.float64))
        assert beta == pytest.approx(float(exact), rel=1e-12)


def test_marginals_are_those_of_the_sde() -> None:
    sde = sd.VP()
    ddpm = sd.DDPM.from_sde(sde, 1000)
    times = torch.tensor(ddpm.grid, dtype=torch.float64)
    torch.testing.assert_close(ddpm.alphas_bar.sqrt(), sde.alpha(times), rtol=1e-12, atol=0)
    x, z = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    for i in (1, 17, 1000):
        torch.testing.assert_close(ddpm.perturb(x, i, z), sde.perturb(x, ddpm.grid[i - 1], z), rtol=1e-11, atol=1e-11)


def test_posterior_is_bayes_rule() -> None:
    """q(x_{i-1} | x_i, x_0) from the product of the two Gaussians q(x_i | x_{i-1}) q(x_{i-1} | x_0)."""
    ddpm = sd.DDPM((0.1, 0.2, 0.3), (0.2, 0.5, 1.0))
    bar = {1: 0.9, 2: 0.9 * 0.8, 3: 0.9 * 0.8 * 0.7}
    x, x_0 = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
    for i, beta in ((2, 0.2), (3, 0.3)):
        precision = (1 - beta) / beta + 1 / (1 - bar[i - 1])
        mean = ((1 - beta) ** 0.5 * float(x) / beta + bar[i - 1] ** 0.5 * float(x_0) / (1 - bar[i - 1])) / precision
        got_mean, got_variance = ddpm.posterior(x, x_0, i)
        assert float(got_mean) == pytest.approx(mean, rel=1e-12)
        assert got_variance == pytest.approx(1 / precision, rel=1e-12)
    mean, variance = ddpm.posterior(x, x_0, 1)
    assert float(mean) == pytest.approx(-0.4)
    assert variance == 0


@pytest.mark.parametrize("n", [1, 2, 10, 200])
def test_ancestral_sampling_is_the_exact_posterior_step(gaussian: sd.exact.Gaussian, n: int) -> None:
    """DDPM's own update on its own betas equals the exponential integrator of the reverse SDE on the same times."""
    model, ddpm = gaussian.model(sd.VP()), sd.DDPM.from_sde(sd.VP(), n)
    x = sd.sample(model, (5, 2), solver=ddpm, seed=2, dtype=torch.float64, trajectory=True)
    if n > 1:
        twin = sd.sample(model, (5, 2), solver=sd.Ancestral(), grid=ddpm.times, seed=2, dtype=torch.float64, trajectory=True)
        assert x.trajectory is not None
        assert twin.trajectory is not None
        torch.testing.assert_close(x.trajectory, twin.trajectory, rtol=0, atol=1e-10)
    assert x.nfe.tolist() == [n] * 5
    assert repr(ddpm) == f"DDPM(N={n}, variance='beta_tilde')"


def test_variance_beta_is_exact_for_unit_gaussian_data() -> None:
    """With unit Gaussian data the reverse transition has variance beta (Ho et al. 2020, section 3.2)."""
    sde = sd.VP()
    large, small = (sd.DDPM.from_sde(sde, 20, variance=v) for v in ("beta", "beta_tilde"))
    _, std = reverse_moments(sde, large, large.times, mean=0.0, std=1.0)
    _, too_small = reverse_moments(sde, small, small.times, mean=0.0, std=1.0)
    assert std == pytest.approx(1.0, abs=1e-12)
    assert too_small < 0.97


def test_reverse_law_converges_to_the_data() -> None:
    errors = []
    for n in (50, 100, 200):
        ddpm = sd.DDPM.from_sde(sd.VP(), n)
        _, std = reverse_moments(sd.VP(), ddpm, ddpm.times, mean=0.4, std=0.5)
        errors.append(abs(std - float(sd.exact.Gaussian(0.4, 0.25).moments(sd.VP(), ddpm.times[-1])[1]) ** 0.5))
    assert errors[0] > 1.6 * errors[1] > 1.6 * 1.6 * errors[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sd.DDPM.from_sde(sd.VE(), 10), r"needs alpha\^2 \+ sigma\^2 = 1.*use Ancestral\(\)"),
        (lambda: sd.DDPM.from_sde(sd.VP(), 0), "N must be an int of at least 1"),
        (lambda: sd.DDPM.from_sde(sd.VP(), 5000), r"below t_min = 0.001; take N <= 1000"),
        (lambda: sd.DDPM((0.1, 1.2), (0.5, 1.0)), r"beta_2 = 1.2"),
        (lambda: sd.DDPM((0.1, 0.2), (0.5,)), "one time for each of the 2 betas"),
        (lambda: sd.DDPM((0.1,), (0.5,), "gamma"), "variance must be"),
        (lambda: sd.DDPM((0.1,), (0.5,)).posterior(torch.zeros(1), torch.zeros(1), 2), "i must lie in 1..1"),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
