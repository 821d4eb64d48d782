"""VE, VP and sub-VP against the closed forms of Song et al. 2021, autograd, SciPy and their own
forward simulation.
"""

from __future__ import annotations

import math

import pytest
import torch
from exact_moments import chain_moments
from scipy.integrate import solve_ivp
from scipy.stats import multivariate_normal

import sdediff as sd
from sdediff.simulation import Forward
from sdediff.solvers import EulerMaruyama
from sdediff.testing.orders import fitted_order

TIMES = torch.linspace(0.02, 1.0, 40, dtype=torch.float64)


def test_published_coefficients() -> None:
    """Song et al. 2021 (arXiv 2011.13456), eq. 29 to 33, written out with Python's math."""
    low, high = 0.1, 20.0
    for t in (0.01, 0.3, 0.77, 1.0):
        time = torch.tensor(t, dtype=torch.float64)
        beta = low + t * (high - low)
        log_mean = -0.25 * t**2 * (high - low) - 0.5 * t * low
        vp, sub, ve = sd.VP(low, high), sd.SubVP(low, high), sd.VE(0.01, 50)
        assert vp.alpha(time).item() == pytest.approx(math.exp(log_mean), rel=1e-14)
        assert vp.sigma(time).item() == pytest.approx(
            math.sqrt(1 - math.exp(2 * log_mean)), rel=1e-12
        )
        assert vp.f(time).item() == pytest.approx(-0.5 * beta, rel=1e-14)
        assert vp.g(time).item() == pytest.approx(math.sqrt(beta), rel=1e-14)
        assert sub.sigma(time).item() == pytest.approx(1 - math.exp(2 * log_mean), rel=1e-12)
        discount = 1 - math.exp(-2 * low * t - (high - low) * t**2)
        assert sub.g(time).item() == pytest.approx(math.sqrt(beta * discount), rel=1e-12)
        std = 0.01 * (50 / 0.01) ** t
        assert ve.sigma(time).item() == pytest.approx(std, rel=1e-13)
        assert ve.g(time).item() == pytest.approx(
            std * math.sqrt(2 * (math.log(50) - math.log(0.01))), rel=1e-13
        )
        assert ve.alpha(time).item() == 1
        assert ve.f(time).item() == 0


def test_coefficients_are_derivatives_of_the_kernel(sde: sd.LinearSDE) -> None:
    """f = alpha' / alpha and g^2 = (sigma^2)' - 2 f sigma^2, by autograd."""
    t = (TIMES * sde.T).requires_grad_()
    alpha, var = sde.alpha(t), sde.sigma(t) ** 2
    d_alpha = (
        torch.autograd.grad(alpha.sum(), t, retain_graph=True, allow_unused=True)[0]
        if alpha.requires_grad
        else 0 * t
    )
    d_var = torch.autograd.grad(var.sum(), t)[0]
    torch.testing.assert_close(sde.f(t), d_alpha / alpha, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sde.g(t) ** 2, d_var - 2 * sde.f(t) * var, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        sde.log_snr(t), 2 * (alpha / sde.sigma(t)).log(), rtol=1e-11, atol=1e-11
    )


def test_log_snr_keeps_its_digits_near_the_ends() -> None:
    """Where sigma^2 = B (1 - B / 2 + ...) the logarithm is known to second order; 1 - exp(-B) would
    have lost it.
    """
    t = torch.tensor(1e-9, dtype=torch.float64)
    b = float(sd.VP(t_min=1e-9).integral(t))
    assert float(sd.VP().log_snr(t)) == pytest.approx(-math.log(b) - b / 2, rel=1e-14)
    assert float(sd.SubVP().log_snr(t)) == pytest.approx(-2 * math.log(b), rel=1e-12)


@pytest.mark.thin(3)
def test_kernel_solves_the_moment_equations(sde: sd.LinearSDE) -> None:
    """m' = f m, v' = 2 f v + g^2 from s to t, integrated by SciPy."""
    s, t = 0.2 * sde.T, 0.9 * sde.T

    def slope_(time: float, y: list[float]) -> list[float]:
        at = torch.tensor(time, dtype=torch.float64)
        f, g = float(sde.f(at)), float(sde.g(at))
        return [f * y[0], 2 * f * y[1] + g * g]

    end = solve_ivp(slope_, (s, t), [1.0, 0.0], rtol=1e-11, atol=1e-13).y[:, -1]
    ratio, std = sde.kernel(torch.tensor(t), torch.tensor(s))
    t32, s32 = float(torch.tensor(t)), float(torch.tensor(s))
    assert (t32, s32) == pytest.approx((t, s), rel=1e-6)
    ratio, std = sde.kernel(
        torch.tensor(t, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)
    )
    assert float(ratio) == pytest.approx(end[0], rel=1e-9)
    assert float(std) ** 2 == pytest.approx(end[1], rel=1e-9)


def test_kernels_compose(sde: sd.LinearSDE) -> None:
    """Chapman-Kolmogorov; and the kernel from 0 with the noise that data carry there is the
    marginal.
    """
    r, s, t = (torch.tensor(share * sde.T, dtype=torch.float64) for share in (0.1, 0.45, 1.0))
    (a1, s1), (a2, s2), (a, std) = sde.kernel(s, r), sde.kernel(t, s), sde.kernel(t, r)
    assert float(a1 * a2) == pytest.approx(float(a), rel=1e-14)
    assert float((a2 * s1) ** 2 + s2**2) == pytest.approx(float(std) ** 2, rel=1e-12)
    zero = torch.zeros((), dtype=torch.float64)
    ratio, std = sde.kernel(t, zero)
    assert float(ratio * sde.alpha(zero)) == pytest.approx(float(sde.alpha(t)), rel=1e-14)
    assert float(std**2 + (ratio * sde.sigma(zero)) ** 2) == pytest.approx(
        float(sde.sigma(t)) ** 2, rel=1e-12
    )


@pytest.mark.thin(2)
def test_forward_simulation_converges_to_the_kernel(sde: sd.LinearSDE) -> None:
    """Euler-Maruyama on the forward SDE: mean and variance of the chain, exactly, approach the
    kernel at order 1.
    """
    errors = []
    for n in (100, 200, 400):
        times = torch.linspace(0.1 * sde.T, 0.8 * sde.T, n + 1, dtype=torch.float64)
        mean, std = chain_moments(Forward(sde, n + 2), EulerMaruyama(), times, 1.5, 0.0, n)
        ratio, expected = sde.kernel(times[-1], times[0])
        errors.append(abs(mean - 1.5 * float(ratio)) + abs(std - float(expected)))
    assert errors[-1] < 0.03 * float(sde.sigma(times[-1]))
    assert fitted_order(errors) > 0.9


def test_perturb_is_alpha_x_plus_sigma_noise_for_any_rank() -> None:
    sde = sd.VP()
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for shape in ((3,), (3, 1), (3, 2, 4, 5), (3, 2, 2, 2, 3)):
        generator = torch.Generator().manual_seed(1)
        x, z = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        rows = [sde.alpha(t[i]) * x[i] + sde.sigma(t[i]) * z[i] for i in range(3)]
        torch.testing.assert_close(sde.perturb(x, t, z), torch.stack(rows).float())


def test_prior_density_against_scipy(sde: sd.LinearSDE) -> None:
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(2, 3, 2)
    prior = sde.prior
    alpha, sigma = float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max))
    published = isinstance(sde, sd.SubVP) or abs(alpha**2 + sigma**2 - 1) < 1e-12
    assert prior.std == (1.0 if published else sigma)
    expected = multivariate_normal(
        cov=prior.std**2 * torch.eye(6, dtype=torch.float64).numpy()
    ).logpdf(x.reshape(2, 6).numpy())
    torch.testing.assert_close(prior.log_prob(x), torch.as_tensor(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sd.VE(0.0, 50), "sigma_min must be a positive number"),
        (lambda: sd.VE(2.0, 1.0), "sigma_max must exceed sigma_min"),
        (lambda: sd.VP(-0.1), "beta_min must be a positive number"),
        (lambda: sd.VP(t_min=1.5), "t_min must lie in"),
        (lambda: sd.SubVP(beta_max=float("nan")), "beta_max must be a positive number"),
    ],
)
def test_bad_parameters(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("t", [0.0, 1.01, -0.5, float("nan")])
def test_time_outside_the_usable_range(t: float) -> None:
    x = torch.zeros(2, 2)
    with pytest.raises(
        ValueError, match=r"outside the usable range \[t_min, t_max\] = \[0.001, 1\]"
    ):
        sd.VP().perturb(x, t, x)
    with pytest.raises(ValueError, match="outside the usable range"):
        sd.exact.Gaussian(0.0, 1.0).model(sd.VP()).score(torch.zeros(2, 1), torch.tensor([0.5, t]))
