"""What LinearSDE derives from two coefficients: against SciPy, mpmath, and the closed forms of the
built-ins.
"""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import pairwise
from scipy.integrate import solve_ivp
from torch import Tensor

import sdediff as sd


class MyVP(sd.LinearSDE):
    def beta(self, t):
        return 0.1 + 19.9 * t

    def f(self, t):
        return -0.5 * self.beta(t)

    def g(self, t):
        return self.beta(t).sqrt()


class MyVPKernel(sd.LinearSDE):
    def alpha(self, t):
        return torch.exp(-0.5 * t * (0.1 + 9.95 * t))

    def sigma(self, t):
        return (-torch.expm1(-t * (0.1 + 9.95 * t))).sqrt()


FAMILIES = ["VE", "VP", "SubVP", "Cosine", "EDM", "RectifiedFlow"]


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def early(count: int) -> Tensor:
    """Times just after 0, as shares of T."""
    return torch.logspace(-9, -3, count, dtype=torch.float64)


# -- a user's VP is the built-in -------------------------------------------------------------------

SOLVERS = {
    "Euler-Maruyama": (sd.EulerMaruyama(), 40),
    "reverse diffusion": (sd.ReverseDiffusion(), 40),
    "ancestral": (sd.solvers.Ancestral(), 40),
    "predictor-corrector": (
        sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin(snr=0.1, n_steps=2)),
        20,
    ),
    "corrector-predictor": (
        sd.PredictorCorrector(sd.EulerMaruyama(), sd.Langevin(), "corrector-first"),
        20,
    ),
    "annealed Langevin": (sd.Langevin(snr=0.2), 20),
    "stochastic Heun": (sd.solvers.StochasticHeun(), 20),
    "SRA1": (sd.solvers.SRA1(), 20),
    "SRA3": (sd.solvers.SRA3(), 20),
    "DDIM, eta = 0.5": (sd.DDIM(0.5), 20),
    "churn": (sd.solvers.Churn(sd.Heun(variable="sigma"), 10.0), 20),
    "Restart": (sd.solvers.Restart(sd.Heun(), (0.2, 0.5)), 20),
    "Metropolis": (
        sd.PredictorCorrector(sd.solvers.Ancestral(), sd.solvers.MetropolisLangevin()),
        20,
    ),
    "Euler": (sd.solvers.Euler(), 40),
    "Midpoint": (sd.solvers.Midpoint(), 20),
    "Heun": (sd.Heun(), 20),
    "RungeKutta4": (sd.solvers.RungeKutta4(), 10),
    "DDIM": (sd.DDIM(), 20),
    # Step-size control magnifies rounding in proportion to the tolerance (at 1e-5 to 2e-9, the
    # number of steps unchanged).
    "RK45": (sd.RK45(1e-8, 1e-8), None),
    "RK23": (sd.solvers.RK23(1e-7, 1e-7), None),
}


MINE = {"f and g": (MyVP(), 1e-10), "alpha and sigma": (MyVPKernel(), 1e-12)}


@pytest.mark.thin(5)
@pairwise("kind, solver", MINE, SOLVERS)
def test_a_users_vp_samples_as_the_built_in_does(kind: str, solver: str) -> None:
    (mine, close), (method, steps) = MINE[kind], SOLVERS[solver]
    weight = torch.randn(2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    outs = [
        sd.sample(
            sd.ScoreModel(lambda x, t: torch.tanh(x @ weight) - t[:, None] * x, sde, "v"),
            (8, 2),
            solver=method,
            steps=steps,
            seed=1,
            dtype=torch.float64,
        )
        for sde in (sd.VP(), mine)
    ]
    torch.testing.assert_close(outs[0].nfe, outs[1].nfe)
    torch.testing.assert_close(outs[1].x, outs[0].x, rtol=close, atol=close)


@pytest.mark.parametrize(
    ("mine", "close"), [(MyVP(), 1e-10), (MyVPKernel(), 1e-12)], ids=["f and g", "alpha and sigma"]
)
def test_a_users_vp_has_the_loss_and_the_ddpm_of_the_built_in(
    mine: sd.LinearSDE, close: float
) -> None:
    x_0 = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(32, 2)
    for predicts in ("noise", "data", "score", "v", "flow", "edm"):
        for weighting in ("sigma2", "likelihood", "edm"):
            losses = [
                sd.DenoisingScoreMatching(weighting)(
                    sd.ScoreModel(lambda x, t: 0.3 * x, sde, predicts),
                    x_0,
                    generator=torch.Generator().manual_seed(5),
                )
                for sde in (sd.VP(), mine)
            ]
            torch.testing.assert_close(losses[1], losses[0], rtol=close, atol=close)
    betas = [
        torch.tensor(sd.DDPM.from_sde(sde, 500).betas, dtype=torch.float64)
        for sde in (sd.VP(), mine)
    ]
    torch.testing.assert_close(betas[1], betas[0], rtol=1e-10, atol=0)


def test_functions_are_as_good_as_a_class() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    as_class, as_functions = (
        MyVP(),
        sd.LinearSDE(f=lambda t: -0.5 * (0.1 + 19.9 * t), g=lambda t: (0.1 + 19.9 * t).sqrt()),
    )
    for name in ("f", "g", "alpha", "sigma", "log_snr"):
        assert torch.equal(getattr(as_class, name)(t), getattr(as_functions, name)(t))
    constant = sd.LinearSDE(f=lambda t: -5.0, g=lambda t: 10**0.5, T=2.0)
    torch.testing.assert_close(constant.alpha(t), torch.exp(-5 * t), rtol=1e-13, atol=0)
    torch.testing.assert_close(
        constant.sigma(t), (-torch.expm1(-10 * t)).sqrt(), rtol=1e-13, atol=0
    )
    assert (constant.t_min, constant.t_max, constant.sigma_0) == (0.002, 2.0, 0.0)


# -- quadrature, against closed forms and independent integrators ----------------------------------


@pytest.mark.parametrize(
    "sde",
    [sd.VE(), sd.VP(), sd.SubVP(), sd.Cosine(), sd.EDM(), sd.RectifiedFlow()],
    ids=lambda s: type(s).__name__,
)
def test_quadrature_gives_the_closed_forms(sde: sd.LinearSDE) -> None:
    """Also from f infinite at T, and relative to sigma itself as it vanishes at 0."""
    mine = sd.LinearSDE(f=sde.f, g=sde.g, T=sde.T, sigma_0=sde.sigma_0)
    t = torch.cat(
        [
            sde.T * torch.logspace(-9, -3, 13, dtype=torch.float64),
            torch.linspace(sde.t_min, sde.t_max, 300, dtype=torch.float64),
        ]
    )
    torch.testing.assert_close(mine.alpha(t), sde.alpha(t), rtol=1e-13, atol=0)
    torch.testing.assert_close(mine.sigma(t), sde.sigma(t), rtol=1e-13, atol=0)
    torch.testing.assert_close(mine.log_snr(t), sde.log_snr(t), rtol=1e-13, atol=1e-13)
    assert mine.t_max == pytest.approx(sde.t_max, abs=2e-6)
    back = sd.LinearSDE(alpha=sde.alpha, sigma=sde.sigma, T=sde.T)
    inside = t[t >= sde.t_min]
    torch.testing.assert_close(back.f(inside), sde.f(inside), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(back.g(inside), sde.g(inside), rtol=1e-11, atol=1e-13)


def test_jumps_kinks_and_roots_are_found() -> None:
    jump = sd.LinearSDE(
        f=lambda t: torch.where(t < 0.3, -1.0, torch.where(t < 0.6, 0.0, -3.0)),
        g=lambda t: torch.where(t < 0.3, 1.0, torch.where(t < 0.6, 0.0, 2.0)),
    )
    ratio = (1 - math.exp(-0.6)) / 2 * math.exp(0.6)  # sigma^2 / alpha^2 at 0.3
    torch.testing.assert_close(
        jump.alpha(numbers(0.3, 0.5, 1.0)), numbers(-0.3, -0.3, -1.5).exp(), rtol=1e-13, atol=0
    )
    torch.testing.assert_close(
        jump.log_snr(numbers(0.3, 0.45, 0.6)),
        -numbers(ratio, ratio, ratio).log(),
        rtol=1e-13,
        atol=1e-13,
    )
    assert float(jump.time_of(jump.log_snr(0.45))) == pytest.approx(0.3, abs=1e-10), (
        "the earliest t where g = 0"
    )
    root = sd.LinearSDE(f=lambda t: 0 * t, g=lambda t: t**0.25)
    torch.testing.assert_close(
        root.sigma(numbers(1e-6, 0.1, 1.0)) ** 2,
        numbers(1e-6, 0.1, 1.0) ** 1.5 / 1.5,
        rtol=1e-12,
        atol=0,
    )
    kink = sd.LinearSDE(f=lambda t: -(t - 1 / 3).abs(), g=lambda t: 1.0)
    assert float(kink.alpha(1.0).log()) == pytest.approx(-(1 / 9 + 4 / 9) / 2, rel=1e-13)


def test_large_rates_neither_overflow_nor_lose_digits() -> None:
    stiff = sd.LinearSDE(f=lambda t: -1500.0 * t, g=lambda t: (3000 * t).sqrt())
    assert float(stiff.sigma(1.0)) == pytest.approx(1.0, rel=1e-12)
    assert float(stiff.log_snr(1.0)) == pytest.approx(-1500, rel=1e-12)
    assert float(stiff.log_snr(stiff.t_max)) == pytest.approx(-20, rel=1e-9)


Coefficients = tuple[float, float, float, float]
_RATES = st.tuples(st.floats(-6, 2), st.floats(-2, 2), st.floats(0.3, 6), st.floats(0, 3))


def rate(c: Coefficients, t: float, lib=math) -> float:
    return c[0] + c[1] * lib.sin(c[2] * t) + c[3] * t * t


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    a=_RATES,
    b=_RATES,
    T=st.floats(0.2, 4),
    sigma_0=st.sampled_from([0.0, 0.05, 2.0]),
    share=st.floats(0.01, 1),
)
def test_random_f_and_g_against_scipy(
    a: Coefficients, b: Coefficients, T: float, sigma_0: float, share: float
) -> None:
    """log alpha' = f and (sigma^2 / alpha^2)' = g^2 / alpha^2, by DOP853; g = exp(rate / 4) is
    smooth and positive.
    """
    sde = sd.LinearSDE(
        f=lambda t: rate(a, t, torch),
        g=lambda t: torch.exp(rate(b, t, torch) / 4),
        T=T,
        sigma_0=sigma_0,
    )
    t = share * T

    def slopes(u: float, y: list[float]) -> list[float]:
        return [rate(a, u), math.exp(rate(b, u) / 2 - 2 * y[0])]

    log_alpha, ratio = solve_ivp(
        slopes, (0, t), [0.0, sigma_0**2], method="DOP853", rtol=1e-12, atol=1e-13
    ).y[:, -1]
    assert float(sde.alpha(t)) == pytest.approx(math.exp(log_alpha), rel=1e-10)
    assert float(sde.sigma(t)) == pytest.approx(math.exp(log_alpha) * math.sqrt(ratio), rel=1e-10)
    assert float(sde.log_snr(t)) == pytest.approx(-math.log(ratio), rel=1e-10, abs=1e-10)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(a=_RATES, b=_RATES, t=st.floats(0.01, 1))
def test_random_f_and_g_against_mpmath(a: Coefficients, b: Coefficients, t: float) -> None:
    """The relative error is near 1e-13."""
    sde = sd.LinearSDE(f=lambda t: rate(a, t, torch), g=lambda t: torch.exp(rate(b, t, torch) / 4))
    with mpmath.workdps(30):

        def log_alpha(u: mpmath.mpf) -> mpmath.mpf:
            return (
                a[0] * u
                + mpmath.mpf(a[1]) / a[2] * (1 - mpmath.cos(a[2] * u))
                + mpmath.mpf(a[3]) * u**3 / 3
            )

        ratio = mpmath.quad(
            lambda u: mpmath.exp(rate(b, u, mpmath) / 2 - 2 * log_alpha(u)),
            mpmath.linspace(0, t, 5),
        )
        alpha, sigma = (
            float(mpmath.exp(log_alpha(t))),
            float(mpmath.exp(log_alpha(t)) * mpmath.sqrt(ratio)),
        )
    assert float(sde.alpha(t)) == pytest.approx(alpha, rel=2e-13)
    assert float(sde.sigma(t)) == pytest.approx(sigma, rel=2e-13)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(a=_RATES, slope=st.floats(0.5, 20), bend=st.floats(0, 5), t=st.floats(0.01, 0.99))
def test_random_alpha_and_log_snr_against_mpmath(
    a: Coefficients, slope: float, bend: float, t: float
) -> None:
    """f and g by autograd against differences of 40 digits; the inverse of log_snr; and g from
    sigma as from log_snr.
    """
    sde = sd.LinearSDE(
        alpha=lambda t: torch.exp(t * rate(a, t, torch) / 3),
        log_snr=lambda t: 6 - slope * t - bend * t**3,
    )
    plain = sd.LinearSDE(alpha=sde.alpha, sigma=sde.sigma)
    with mpmath.workdps(40):
        f = mpmath.diff(lambda u: u * rate(a, u, mpmath) / 3, t)
        variance = lambda u: mpmath.exp(  # noqa: E731
            2 * u * rate(a, u, mpmath) / 3 - 6 + slope * u + bend * u**3
        )
        g = mpmath.sqrt(mpmath.diff(variance, t) - 2 * f * variance(t))
    for derived in (sde, plain):
        assert float(derived.f(t)) == pytest.approx(float(f), rel=1e-11, abs=1e-11)
        assert float(derived.g(t)) == pytest.approx(float(g), rel=1e-11)
        assert float(derived.time_of(derived.log_snr(t))) == pytest.approx(t, abs=1e-10)


# -- log_snr, its inverse, kernel, posterior, prior ------------------------------------------------


def _log_snr(name: str, t: float) -> float:
    """log(alpha^2 / sigma^2) of the built-ins with 50 digits."""
    with mpmath.workdps(50):
        t = mpmath.mpf(t)
        integral = t * (mpmath.mpf(0.1) + (mpmath.mpf(20) - mpmath.mpf(0.1)) * t / 2)
        variance = 1 - mpmath.exp(-integral)
        s = mpmath.mpf(0.008)
        start, angle = (mpmath.pi / 2 * u / (1 + s) for u in (s, t + s))
        square = (mpmath.cos(angle) / mpmath.cos(start)) ** 2
        return float(
            {
                "VE": lambda: (
                    -2
                    * (
                        mpmath.log(mpmath.mpf(0.01))
                        + t * mpmath.log(mpmath.mpf(50) / mpmath.mpf(0.01))
                    )
                ),
                "VP": lambda: mpmath.log(mpmath.exp(-integral) / variance),
                "SubVP": lambda: mpmath.log(mpmath.exp(-integral) / variance**2),
                "Cosine": lambda: mpmath.log(square / (1 - square)),
                "EDM": lambda: -2 * mpmath.log(t),
                "RectifiedFlow": lambda: 2 * mpmath.log((1 - t) / t),
            }[name]()
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_log_snr_is_right_to_twelve_digits_at_both_ends(name: str) -> None:
    sde = getattr(sd, name)()
    for t in (1e-9, 1e-6, sde.t_min, 2 * sde.t_min, sde.t_max * (1 - 1e-6), sde.t_max):
        if t > 0:
            assert float(sde.log_snr(t)) == pytest.approx(_log_snr(name, t), rel=1e-12), t


def test_time_of_inverts_log_snr_everywhere(sde: sd.LinearSDE) -> None:
    t = torch.cat(
        [
            torch.linspace(sde.t_min, sde.t_max, 200, dtype=torch.float64),
            sde.T * torch.logspace(-9, -3, 20, dtype=torch.float64),
        ]
    )
    torch.testing.assert_close(sde.time_of(sde.log_snr(t)), t, rtol=0, atol=1e-10)
    assert float(sde.time_of(sde.log_snr(0.0))) == 0
    assert sde.time_of(sde.log_snr(t[3])).shape == ()
    assert -20.01 < float(sde.log_snr(sde.t_max)) < 0
    with pytest.raises(ValueError, match=r"log_snr = -1e\+06 is never reached"):
        sd.VP().time_of(-1e6)


def test_posterior_is_bayes_rule(sde: sd.LinearSDE) -> None:
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0): mean and variance on a fine
    lattice.
    """
    s, t = (sde.t_min + share * (sde.t_max - sde.t_min) for share in (0.3, 0.7))
    x_0, x_t = 0.4, float(sde.alpha(t)) * 0.4 + 0.8 * float(sde.sigma(t))
    ratio, std = (float(c) for c in sde.kernel(t, s))
    mean, spread = sde.posterior(numbers(x_t), numbers(x_0), t, s)
    x = torch.linspace(
        float(mean) - 12 * float(spread),
        float(mean) + 12 * float(spread),
        4001,
        dtype=torch.float64,
    )
    log = (
        -0.5 * ((x_t - ratio * x) / std) ** 2
        - 0.5 * ((x - float(sde.alpha(s)) * x_0) / float(sde.sigma(s))) ** 2
    )
    weight = torch.softmax(log, 0)
    assert float((weight * x).sum()) == pytest.approx(float(mean), rel=1e-9, abs=1e-9)
    assert float((weight * (x - mean) ** 2).sum().sqrt()) == pytest.approx(float(spread), rel=1e-9)


def test_posterior_at_the_ends() -> None:
    x_t, x_0 = numbers(0.7, -1.0), numbers(0.2, 0.5)
    mean, std = sd.VP().posterior(x_t, x_0, 0.5, 0.0)
    torch.testing.assert_close(mean, x_0)
    assert float(std) == 0
    straight = sd.RectifiedFlow(t_max=1.0)
    mean, std = straight.posterior(x_t, x_0, 1.0, 0.25)
    torch.testing.assert_close(mean, 0.75 * x_0)
    assert float(std) == 0.25
    mean, std = sd.VP().posterior(x_t, x_0, 0.5, 0.5)
    torch.testing.assert_close(mean, x_t)
    assert float(std) == 0
    assert [float(c) for c in sd.VP().kernel(0.0, 0.0)] == [1.0, 0.0]


def test_prior_gap_is_the_kl_between_the_law_at_the_end_and_the_prior(sde: sd.LinearSDE) -> None:
    mean, variance = numbers(0.3, -2.0, 1.0), numbers(0.5, 1.0, 0.0)
    alpha, sigma = float(sde.alpha(sde.t_max)), float(sde.sigma(sde.t_max))
    law = torch.distributions.Normal(alpha * mean, (alpha**2 * variance + sigma**2).sqrt())
    gap = torch.distributions.kl_divergence(
        law, torch.distributions.Normal(torch.zeros(3).double(), sde.prior.std)
    ).sum()
    assert sde.prior_gap(mean, variance) == pytest.approx(float(gap), rel=1e-6, abs=1e-13)
    with pytest.raises(ValueError, match="variance not negative"):
        sde.prior_gap(0.0, -1.0)


def test_rates_are_the_derivatives_of_alpha_and_sigma(sde: sd.LinearSDE) -> None:
    t = torch.linspace(0.1 * sde.T, 0.9 * sde.T, 9, dtype=torch.float64)
    step = 1e-5 * sde.T
    for rate_, function in zip(sde.rates(t), (sde.alpha, sde.sigma), strict=True):
        torch.testing.assert_close(
            rate_, (function(t + step) - function(t - step)) / (2 * step), rtol=1e-7, atol=1e-7
        )


def test_coefficients_are_differentiable_in_time(sde: sd.LinearSDE) -> None:
    t = torch.linspace(0.2 * sde.T, 0.8 * sde.T, 5, dtype=torch.float64).requires_grad_()
    step = 1e-5 * sde.T
    for function in (sde.alpha, sde.sigma, sde.log_snr, sde.g):
        value = function(t)
        given = torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros(5)
        moved = [function(t.detach() + h) for h in (step, -step)]
        torch.testing.assert_close(
            given.double(), (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-6
        )


def test_derivatives_are_right_on_the_edges_of_panels() -> None:
    """T / 4, T / 2 and 3 T / 4 are edges, where the last integral is empty."""
    t = numbers(0.125, 0.25, 0.5, 0.75).requires_grad_()
    for function in (MyVP().log_snr, MyVP().alpha, MyVP().sigma):
        expected = getattr(sd.VP(), function.__name__)
        given, wanted = (torch.autograd.grad(f(t).sum(), t)[0] for f in (function, expected))
        torch.testing.assert_close(given, wanted, rtol=1e-11, atol=0)


def test_coefficients_work_in_inference_mode_and_take_any_time(sde: sd.LinearSDE) -> None:
    expected = [float(getattr(sde, name)(0.5)) for name in ("f", "g", "alpha", "sigma", "log_snr")]
    with torch.inference_mode():
        assert [
            float(getattr(sde, name)(torch.tensor(0.5)))
            for name in ("f", "g", "alpha", "sigma", "log_snr")
        ] == expected
    batch = sde.sigma(torch.tensor([0.5, 0.25], dtype=torch.float32))
    assert batch.dtype == torch.float64
    assert float(batch[0]) == pytest.approx(expected[3], rel=1e-14)


@pytest.mark.thin(24)
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2), (3, 1, 4, 4), (3, 2, 3, 4, 5)])
def test_any_rank(sde: sd.LinearSDE, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    t, s = numbers(0.5, 0.7, 0.9) * sde.T, numbers(0.2, 0.7, 0.3) * sde.T
    x_t = sde.perturb(x_0, t, noise)
    mean, std = sde.posterior(x_t, x_0, t, s)
    for i in range(3):
        torch.testing.assert_close(
            x_t[i], sde.alpha(t[i]) * x_0[i] + sde.sigma(t[i]) * noise[i], rtol=1e-12, atol=1e-12
        )
        row, one = sde.posterior(x_t[i : i + 1], x_0[i : i + 1], t[i], s[i])
        torch.testing.assert_close(mean[i], row[0], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(std[i], one, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            sde.drift(x_t, t)[i], sde.f(t[i]) * x_t[i], rtol=1e-12, atol=1e-12
        )
    model = sd.ScoreModel(lambda x, t: 0.1 * x, sde, "v")
    out = sd.sample(model, shape, steps=3, seed=0)
    assert out.x.shape == shape
    flat = sd.sample(model, (3, math.prod(shape[1:])), steps=3, seed=0)
    torch.testing.assert_close(out.x.reshape(3, -1), flat.x)


# -- overrides and ranges --------------------------------------------------------------------------


def test_an_override_is_used_where_it_is_given() -> None:
    class Told(MyVP):
        def log_snr(self, t):
            return super().log_snr(t) + 1

        def sigma(self, t):
            return 2 * super().sigma(t)

    t = numbers(0.3)
    torch.testing.assert_close(Told().log_snr(t), MyVP().log_snr(t) - math.log(4) + 1)
    torch.testing.assert_close(Told().sigma(t), 2 * MyVP().sigma(t))
    torch.testing.assert_close(Told().alpha(t), MyVP().alpha(t))


def test_ranges_come_from_class_attributes_fields_and_arguments() -> None:
    class Short(MyVP):
        T = 0.5
        t_min = 0.01

    assert (Short().t_min, Short().t_max, Short().T) == (0.01, 0.5, 0.5)
    assert (MyVP(T=0.8).t_min, MyVP(T=0.8).t_max, MyVP(t_max=0.9).t_max) == (0.0008, 0.8, 0.9)
    assert repr(MyVP(T=0.8, t_min=0.02)) == "MyVP(T=0.8, t_min=0.02)"
    noisy = sd.LinearSDE(f=lambda t: -t, g=lambda t: 1.0, sigma_0=0.1)
    assert (noisy.sigma_0, noisy.t_min) == (0.1, 0.0)
    assert sd.LinearSDE(alpha=lambda t: 1.0, sigma=lambda t: 0.2 + t).sigma_0 == pytest.approx(0.2)
    steep = sd.LinearSDE(alpha=lambda t: torch.exp(-30 * t), sigma=lambda t: t.sqrt())
    assert float(steep.log_snr(steep.t_max)) == pytest.approx(-20)


# -- refusals --------------------------------------------------------------------------------------


class OnlyF(sd.LinearSDE):
    def f(self, t):
        return -t


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (OnlyF, TypeError, "OnlyF gives f: give f and g, or alpha and sigma, or alpha and log_snr"),
        (sd.LinearSDE, TypeError, "LinearSDE gives no coefficient"),
        (
            lambda: sd.LinearSDE(f=-1.0, g=lambda t: t),
            TypeError,
            r"f must be a function of t, got -1.0; write f=lambda t: -1.0",
        ),
        (
            lambda: sd.LinearSDE(f=lambda t: t, g=lambda t: t, T=0),
            ValueError,
            "T must be a positive number",
        ),
        (
            lambda: sd.LinearSDE(f=lambda t: t, g=lambda t: t, t_min=2),
            ValueError,
            r"t_min must lie in \[0, T\)",
        ),
        (
            lambda: sd.LinearSDE(f=lambda t: t, g=lambda t: t, t_max=2),
            ValueError,
            r"t_max must lie in \(t_min, T\]",
        ),
        (
            lambda: sd.LinearSDE(f=lambda t: t, g=lambda t: t, sigma_0=-1),
            ValueError,
            "sigma_0 must be a finite number >= 0",
        ),
        (
            lambda: sd.VP().perturb(torch.zeros(3, 2), numbers(0.1, 0.2), torch.zeros(3, 2)),
            ValueError,
            "with B = 3 as in x_0",
        ),
        (
            lambda: sd.VP().perturb(torch.zeros(3, 2), 0.1, torch.zeros(2)),
            ValueError,
            r"the shape of x_0, \(3, 2\), got \(2,\)",
        ),
        (lambda: MyVP().kernel(0.2, 0.5), ValueError, "kernel.* goes forward in time.*swap them"),
        (
            lambda: MyVP().alpha(torch.zeros(2, 2)),
            ValueError,
            r"t must be a number or one number a sample.*\(2, 2\)",
        ),
        (
            lambda: sd.LinearSDE(f=lambda t: torch.zeros(3), g=lambda t: t).f(torch.zeros(2)),
            ValueError,
            r"f\(t\) must return one number for each time, shape \(2,\); got shape \(3,\)",
        ),
        (
            lambda: sd.LinearSDE(f=lambda t: 1 / (0.5 - t).clamp(min=0), g=lambda t: 1.0).alpha(
                1.0
            ),
            ValueError,
            r"f\(t\) is inf at t = 0\.\d+, inside \(0, T\)",
        ),
        (
            lambda: sd.LinearSDE(alpha=lambda t: torch.tensor(t.tolist()), sigma=lambda t: t).f(
                numbers(0.2, 0.5)
            ),
            ValueError,
            "changes with t but carries no gradient",
        ),
        (lambda: sd.Cosine(offset=-1.0), ValueError, "offset must be a positive number"),
        (lambda: sd.Cosine(t_max=1.5), ValueError, r"t_max must lie in \(t_min, T\]"),
        (lambda: sd.EDM(2.0, 1.0), ValueError, "sigma_max must exceed sigma_min"),
        (lambda: sd.RectifiedFlow(t_min=-0.1), ValueError, "t_min must be a positive number"),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_function_of_python_numbers_is_told_what_it_is_called_with() -> None:
    sde = sd.LinearSDE(f=lambda t: -math.sqrt(t), g=lambda t: 1.0)
    with pytest.raises((TypeError, ValueError)) as caught:
        sde.f(numbers(0.1, 0.2))
    assert caught.value.__notes__ == [
        "f(t) was called with a float64 tensor of shape (2,): write it with torch functions"
    ]


def test_a_rising_log_snr_has_no_g() -> None:
    wrong = sd.LinearSDE(alpha=lambda t: 1.0, sigma=lambda t: 1 - 0.5 * t)
    assert bool(wrong.g(0.5).isnan())


@pytest.mark.parametrize(
    "sde",
    [sd.VP(), sd.VE(), sd.SubVP(), sd.Cosine(), sd.EDM(), sd.RectifiedFlow()],
    ids=lambda s: type(s).__name__,
)
def test_closed_forms_of_the_inverse(sde: sd.LinearSDE) -> None:
    """`invert` of the built-ins, and what is found where there is none."""
    t = torch.linspace(sde.t_min, sde.t_max, 57, dtype=torch.float64)
    levels = sde.log_snr(t)
    assert type(sde).invert is not sd.LinearSDE.invert
    torch.testing.assert_close(sde.invert(levels), t, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(sd.LinearSDE.invert(sde, levels), t, rtol=1e-12, atol=1e-13)


class Tabulated(sd.VP):
    """Its inverse is by a table of equal times: right at those and nowhere else."""

    nodes = 1001

    def invert(self, log_snr: Tensor) -> Tensor:
        times = torch.linspace(0.0, self.T, self.nodes, dtype=torch.float64)
        levels = self.log_snr(times)
        k = torch.searchsorted(-levels, -log_snr.contiguous()).clamp(1, self.nodes - 1)
        share = ((levels[k - 1] - log_snr) / (levels[k - 1] - levels[k])).nan_to_num(1.0)
        return torch.lerp(times[k - 1], times[k], share)


class Coarse(Tabulated):
    nodes = 65


class Steeper(sd.VP):
    """Another schedule, the inverse of VP's."""

    def beta(self, t: Tensor) -> Tensor:
        return 0.2 + 30 * t

    def integral(self, t: Tensor) -> Tensor:
        return 0.2 * t + 15 * t**2


@pytest.mark.parametrize("sde", [Tabulated(), Coarse(), Steeper()], ids=lambda s: type(s).__name__)
def test_an_inverse_that_is_none_is_not_used(sde: sd.LinearSDE) -> None:
    t = torch.tensor([0.1004, 0.25, 0.5004, 0.9], dtype=torch.float64)
    assert float((sde.invert(sde.log_snr(t)) - t).abs().max()) > 1e-7
    torch.testing.assert_close(sde.time_of(sde.log_snr(t)), t, rtol=1e-9, atol=1e-10)


def test_a_level_beyond_the_range_is_refused_whatever_was_asked_before() -> None:
    sde = sd.VP()
    assert float(sde.time_of(sde.log_snr(0.3))) == pytest.approx(0.3, abs=1e-12)
    for levels in (-30.0, torch.tensor([1.0, -30.0], dtype=torch.float64)):
        with pytest.raises(ValueError, match="log_snr = -30 is never reached"):
            sde.time_of(levels)


def test_time_beyond_goes_on_where_the_sde_does(sde: sd.LinearSDE) -> None:
    levels = sde.log_snr(torch.tensor([0.3 * sde.t_max, sde.t_max], dtype=torch.float64))
    levels = torch.cat([levels, levels[1:] - 1.0])
    found = sde.time_beyond(levels)
    torch.testing.assert_close(found[:2], sde.time_of(levels[:2]), rtol=0, atol=0)
    if isinstance(sde, sd.EDM | sd.VE):
        assert float(found[2]) > sde.T
        torch.testing.assert_close(sde.log_snr(found), levels, rtol=1e-12, atol=1e-12)
    else:
        assert float(found[2]) == pytest.approx(sde.t_max, rel=1e-9)
    assert sde.time_beyond(float(levels[2])).shape == ()


class Rescaled(sd.EDM):
    def sigma(self, t):
        return 2 * t

    def log_snr(self, t):
        return -2 * (2 * t).log()


def test_time_beyond_looks_whether_a_closed_form_holds() -> None:
    """EDM's inverse is not that of this subclass."""
    assert float(Rescaled().time_beyond(-2 * math.log(200.0))) == pytest.approx(80.0)


def test_time_of_is_differentiable_where_it_is_found_by_search() -> None:
    own = sd.LinearSDE(f=lambda t: -0.5 - t, g=lambda t: 1 + t)
    levels = (
        own.log_snr(torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)).detach().requires_grad_()
    )
    assert torch.autograd.gradcheck(own.time_of, (levels,), eps=1e-6, atol=1e-7)


def test_schedules_are_handed_contiguous_times() -> None:
    """torch.searchsorted and others warn of slices, which solvers take of their stages: the warning
    would name the user's line.
    """
    seen = []

    def log_snr(t):
        seen.append(t.is_contiguous())
        return 8 - 14 * t

    sde = sd.LinearSDE(alpha=lambda t: 1 - 0.5 * t, log_snr=log_snr)
    times = torch.linspace(0.9, 0.1, 9, dtype=torch.float64)[::2]
    assert not times.is_contiguous()
    for method in (sde.log_snr, sde.sigma, sde.g, sde.rates):
        method(times)
    assert seen
    assert all(seen)
