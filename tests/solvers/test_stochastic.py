"""Orders, laws and published formulas of the stochastic solvers and the correctors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pytest
import torch
from all_sdes import SDES
from exact_moments import chain_moments, reverse_moments
from pairwise import pairwise
from torch import Tensor

import sdediff as sd
from sdediff.reverse import Reverse
from sdediff.solvers import Solver, StepNoise, expand, integrate
from sdediff.testing.orders import fitted_order

MIXTURE = sd.exact.GaussianMixture([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.0]], 0.3)
STRONG = {
    sd.EulerMaruyama(): 1.0,
    sd.solvers.StochasticHeun(): 1.0,
    sd.solvers.SRA1(): 1.5,
    sd.solvers.SRA3(): 1.5,
}
WEAK = {
    sd.EulerMaruyama(): 1,
    sd.solvers.StochasticHeun(): 2,
    sd.solvers.SRA1(): 2,
    sd.solvers.SRA3(): 2,
    sd.solvers.Ancestral(): 1,
    sd.ReverseDiffusion(): 1,
}


def gentle(sde: sd.LinearSDE, n: int) -> Tensor:
    return torch.linspace(0.8 * sde.T, 0.2 * sde.T, n + 1, dtype=torch.float64)


@pytest.mark.slow  # tests/solvers/test_contracts.py has it for all methods, on a coarser path
@pytest.mark.parametrize("solver", STRONG, ids=repr)
@pytest.mark.parametrize(
    "sde", [sd.VP(), sd.VE(0.05, 5.0), sd.RectifiedFlow()], ids=lambda s: type(s).__name__
)
def test_strong_order_on_a_mixture(sde: sd.LinearSDE, solver: Solver) -> None:
    """One path, coarse and fine: the root mean square error over 200 samples, against the best
    solver on the finest grid.
    """
    rows, fine = 200, 1024
    path = sd.solvers.BrownianPath(
        sd.seeds(0, rows), (2,), 0.8 * sde.T, 0.2 * sde.T, intervals=fine, dtype=torch.float64
    )
    x = torch.randn(
        rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ) * float(sde.sigma(0.8 * sde.T))
    smooth = sd.exact.GaussianMixture([[-0.5, 0.3], [0.5, 0.0], [0.2, -0.5]], 0.5)
    problem = Reverse(smooth.model(sde), rows, 1.0)
    exact = integrate(problem, sd.solvers.SRA3(), x, gentle(sde, fine), path).x
    errors = []
    for n in (64, 128, 256):
        out = integrate(problem, solver, x, gentle(sde, n), path).x
        errors.append(float((out - exact).square().mean().sqrt()))
    assert fitted_order(errors) > STRONG[solver] - 0.25, errors


FOUR = ["VP", "VE", "RectifiedFlow", "user, f and g"]


@pytest.mark.thin(1)
@pairwise("sde, solver", FOUR, WEAK)
def test_weak_order_at_a_stochasticity_that_varies(sde: sd.LinearSDE, solver: Solver) -> None:
    """By exact moments; tests/solvers/test_contracts.py has constant ones."""
    errors = []
    for n in (40, 80, 160):
        times = gentle(sde, n)
        mean, std = reverse_moments(
            sde, solver, times, mean=0.4, std=0.3, stochasticity=lambda t: 1.2 - t
        )
        true_mean, true_cov = sd.exact.Gaussian(0.4, 0.09).moments(sde, times[-1])
        errors.append(abs(mean - float(true_mean)) + abs(std - float(true_cov) ** 0.5))
    assert fitted_order(errors) > WEAK[solver] - 0.25, errors
    assert solver.order == WEAK[solver]


def test_the_pair_of_a_path_has_its_moments() -> None:
    """Var W = h, Var Z = h^3 / 3, Cov = h^2 / 2 with h = 0.3, of 200,000 pairs; within 6 standard
    errors.
    """
    noise = sd.White(sd.seeds(0, 2), (100_000,), dtype=torch.float64).at(3)
    w, z = (part.flatten() for part in noise.pair(torch.tensor(0.7), torch.tensor(0.4)))
    h, n = 0.3, len(w)
    for given, expected, spread in (
        ((w * w).mean(), h, h * 2**0.5),
        ((z * z).mean(), h**3 / 3, h**3 / 3 * 2**0.5),
        ((w * z).mean(), h**2 / 2, (h * h**3 / 3 + h**4 / 4) ** 0.5),
    ):
        assert abs(float(given) - expected) < 6 * spread / n**0.5
    torch.testing.assert_close(
        w.reshape(2, -1), noise.increment(torch.tensor(0.7), torch.tensor(0.4))
    )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_with_eta_is_the_published_formula(
    sde: sd.LinearSDE, gaussian: sd.exact.Gaussian, eta: float
) -> None:
    """Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16; eta = 1 is the ancestral step, in a whole
    run too.
    """
    model, white = gaussian.model(sde), sd.White([5, 6], (2,), dtype=torch.float64)
    t, s = (torch.tensor(share * sde.T, dtype=torch.float64) for share in (0.7, 0.6))
    x = torch.tensor([[3.0, -2.0], [0.5, 1.0]], dtype=torch.float64)
    (a_t, s_t), (a_s, s_s) = ((sde.alpha(r), sde.sigma(r)) for r in (t, s))
    v = eta * s_s / s_t * (s_t**2 - (a_t / a_s * s_s) ** 2).sqrt()
    data, eps = model.data(x, t), model.noise(x, t)
    want = a_s * data + (s_s**2 - v**2).sqrt() * eps + v * white.at(0).normal("path")
    out = integrate(Reverse(model, 2), sd.DDIM(eta), x, torch.stack([t, s]), white).x
    torch.testing.assert_close(out, want, rtol=1e-10, atol=1e-10)
    if eta == 1:
        runs = [
            sd.sample(
                model, (4, 2), solver=solver, steps=20, seed=3, last="noisy", dtype=torch.float64
            ).x
            for solver in (sd.DDIM(1.0), sd.solvers.Ancestral())
        ]
        torch.testing.assert_close(runs[0], runs[1], rtol=1e-9, atol=1e-9)


def test_ddim_with_too_much_noise_says_how_much_is_possible() -> None:
    model = MIXTURE.model(sd.VP())
    with pytest.raises(
        ValueError, match=r"eta = 3 asks for more noise than there is in x at step 0; take eta <= 1"
    ):
        sd.sample(model, (2, 2), solver=sd.DDIM(3.0), steps=5, seed=0)
    with pytest.raises(ValueError, match="eta must be a function of t or a finite number >= 0"):
        sd.DDIM(-1.0)


class Discretized(NamedTuple):
    """`discretize` of an SDE in score_sde's sde_lib.py: x_i = x_{i-1} + f x_{i-1} + G z."""

    f: Tensor
    G: Tensor


def ddpm(sde: Any, t: Tensor, n: int) -> Discretized:
    """`VPSDE.discretize`, times the root of the variance that is preserved."""
    beta = sde.beta(t) * sde.T / n
    return Discretized(
        (1 - beta).sqrt() - 1, (0.5 if isinstance(sde, Halved) else 1.0) * beta.sqrt()
    )


def smld(sde: Any, t: Tensor, n: int) -> Discretized:
    """`VESDE.discretize`, with levels at i T / n."""
    sigma, lower = (
        sde.sigma_min * (sde.sigma_max / sde.sigma_min) ** (v / sde.T) for v in (t, t - sde.T / n)
    )
    return Discretized(torch.zeros_like(t), (sigma**2 - lower**2).sqrt())


def euler(sde: Any, t: Tensor, n: int) -> Discretized:
    """`SDE.discretize`, which sub-VP has."""
    return Discretized(sde.f(t) * sde.T / n, sde.g(t) * (sde.T / n) ** 0.5)


class Halved(sd.VP):
    """VP in which data and noise have half their size: it preserves a variance of 1/4."""

    def g(self, t):
        return 0.5 * super().g(t)

    def sigma(self, t):
        return 0.5 * super().sigma(t)

    def log_snr(self, t):
        return super().log_snr(t) + 2 * math.log(2.0)

    invert = sd.LinearSDE.invert


class OwnVP(sd.LinearSDE):
    """VP by its f and g alone, which are 0 from t = 0.4 to 0.6."""

    def beta(self, t):
        return 10 * ((0.4 - t).clamp(min=0) + (t - 0.6).clamp(min=0))

    def f(self, t):
        return -0.5 * self.beta(t)

    def g(self, t):
        return self.beta(t).sqrt()


@pytest.mark.thin(5)
@pytest.mark.parametrize(
    ("family", "chain"),
    [
        (sd.VP(), ddpm),
        (sd.VP(0.2, 5.0, T=2.0), ddpm),
        (Halved(), ddpm),
        (OwnVP(), ddpm),
        (sd.VE(), smld),
        (sd.VE(0.02, 10.0, T=2.0), smld),
        (sd.SubVP(), euler),
    ],
    ids=lambda value: value.__name__ if callable(value) else repr(value),
)
@pytest.mark.parametrize("lam", [1.0, 0.0])
def test_reverse_diffusion_by_songs_rule(
    gaussian: sd.exact.Gaussian,
    family: sd.LinearSDE,
    chain: Callable[[Any, Tensor, int], Discretized],
    lam: float,
) -> None:
    """`ReverseDiffusionPredictor` of score_sde: x - f x + G^2 score + G z, half the score and no
    noise for the flow.
    """
    n = 50
    model, white = gaussian.model(family), sd.White([5, 6], (2,), dtype=torch.float64)
    times = torch.linspace(family.T, 0, n + 1, dtype=torch.float64)[:46]
    want = x = torch.tensor([[3.0, -2.0], [0.5, 1.0]], dtype=torch.float64)
    for i, t in enumerate(times[:-1]):
        f, G = chain(family, t, n)
        score, z = model.score(want, t), white.at(i).normal("path")
        want = want - f * want + (1.0 if lam else 0.5) * G**2 * score + lam * G * z
    out = integrate(Reverse(model, 2, lam), sd.ReverseDiffusion("song"), x, times, white).x
    torch.testing.assert_close(out, want, rtol=1e-9, atol=1e-10)


def test_reverse_diffusion_says_where_songs_rule_ends() -> None:
    model = MIXTURE.model(sd.VP())
    with pytest.raises(
        ValueError, match=r"needs beta h < 1, and beta h = 7.2: take 7.2 times as many steps"
    ):
        sd.sample(model, (2, 2), solver=sd.ReverseDiffusion("song"), grid=[1.0, 0.9, 0.5], seed=0)
    model = MIXTURE.model(sd.Cosine(t_max=1.0))
    with pytest.raises(
        ValueError, match=r"not finite at t = 1: start inside .* or take rule='kernel'"
    ):
        sd.sample(model, (2, 2), solver=sd.ReverseDiffusion("song"), steps=50, seed=0)
    with pytest.raises(ValueError, match="rule must be one of 'kernel', 'song'"):
        sd.ReverseDiffusion("songs")


# -- churn and Restart -----------------------------------------------------------------------------


KARRAS = torch.tensor([20.0, 8.0, 3.0, 1.0, 0.3], dtype=torch.float64)


@pytest.mark.parametrize(
    "between", [(0.5, 10.0), (0.0, math.inf)], ids=["inside", "from sigma_max"]
)
@pytest.mark.parametrize(
    "family",
    [sd.EDM(0.01, 20.0), sd.VE(0.01, 20.0), sd.VE(0.01, 100.0), sd.VP(), sd.RectifiedFlow()],
    ids=repr,
)
def test_churned_heun_is_karras_algorithm_2(
    gaussian: sd.exact.Gaussian, family: sd.LinearSDE, between: tuple[float, float]
) -> None:
    """Karras et al. 2022 (arXiv 2206.00364), Algorithm 2, written out for D(x; sigma) = E[x_0 | x],
    with x / alpha and sigma / alpha elsewhere. At T too the noise rises before the step, under EDM
    and VE; it does not above the start of a grid elsewhere."""
    edm = sd.EDM(1e-3, 1e3)  # D does not depend on the SDE
    model, exact = gaussian.model(family), gaussian.model(edm)
    white = sd.White([5, 6], (2,), dtype=torch.float64)
    times = family.time_of(-2 * KARRAS.log())
    goes_on = family in (sd.EDM(0.01, 20.0), sd.VE(0.01, 20.0))
    x = torch.tensor([[3.0, -2.0], [0.5, 1.0]], dtype=torch.float64)
    solver = sd.solvers.Churn(sd.Heun(variable="sigma"), churn=1.2, between=between, noise=1.003)
    out = integrate(Reverse(model, 2), solver, family.alpha(times[0]) * x, times, white).x
    for i in range(4):
        t, s = KARRAS[i], KARRAS[i + 1]
        gamma = min(1.2 / 4, 2**0.5 - 1) if between[0] <= float(t) <= between[1] else 0.0
        hat = t + gamma * t if goes_on else min(t + gamma * t, KARRAS[0])
        x = x + (hat**2 - t**2).sqrt() * 1.003 * white.at(i).normal("churn")
        d = (x - exact.data(x, hat)) / hat
        y = x + (s - hat) * d
        x = x + (s - hat) * (0.5 * d + 0.5 * (y - exact.data(y, s)) / s)
    torch.testing.assert_close(out / family.alpha(times[-1]), x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "start", "first"),
    [
        (sd.VP(), 1.0, 1.0),
        (sd.EDM(0.01, 20.0), 20.0, 20 * 2**0.5),
        (sd.EDM(0.01, 30.0), 20.0, 20.0),
        (sd.VE(0.01, 20.0, T=2.0), 2.0, 2 + math.log(2) / math.log(2000)),
    ],
    ids=repr,
)
def test_where_a_churned_step_asks_the_network(
    family: sd.LinearSDE, start: float, first: float
) -> None:
    seen: list[float] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(t.max()))
        return 0 * x

    solver = sd.solvers.Churn(sd.solvers.Euler(variable="sigma"), churn=40.0)
    noise = sd.White([5, 6], (2,), dtype=torch.float64)
    grid = torch.tensor([start, 0.4 * start], dtype=torch.float64)
    model = sd.ScoreModel(watched, family, predicts="data")
    integrate(Reverse(model, 2), solver, torch.ones(2, 2, dtype=torch.float64), grid, noise)
    assert seen == [pytest.approx(first, rel=1e-12)]


def test_churn_of_zero_is_the_solver(sde: sd.LinearSDE) -> None:
    model = MIXTURE.model(sde)
    one, two = (
        sd.sample(model, (4, 2), solver=solver, steps=8, seed=3, dtype=torch.float64).x
        for solver in (sd.solvers.Churn(sd.Heun(), 0.0), sd.Heun())
    )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def renoised(start: float, width: float) -> list[float]:
    """Errors of the moments of `Renoise` around `RungeKutta4` under VP from 0.6 to 0.2, in 8, 16
    and 32 steps, from the law of data N(0.4, 0.3^2) moved by ``start`` and ``width`` times as wide.

    For Gaussian data the reverse SDE goes from x_t to the law of x_s given x_t, exactly.
    """
    sde, data = sd.VP(), sd.exact.Gaussian(0.4, 0.09)
    (mean_t, var_t), (mean_s, var_s) = (
        data.moments(sde, torch.tensor(t).double()) for t in (0.6, 0.2)
    )
    gain = sde.alpha(0.6) / sde.alpha(0.2) * var_s / var_t
    mean, var = mean_s + gain * start, var_s + gain**2 * (width**2 - 1) * var_t
    levels = sde.log_snr(torch.tensor([0.6, 0.2], dtype=torch.float64)).tolist()
    errors = []
    for n in (8, 16, 32):
        times = sde.time_of(torch.linspace(*levels, n + 1, dtype=torch.float64))
        problem = Reverse(data.model(sde), n + 2, 1.0)
        std_t = width * float(var_t) ** 0.5
        out = chain_moments(
            problem,
            sd.solvers.Renoise(sd.solvers.RungeKutta4()),
            times,
            float(mean_t) + start,
            std_t,
            n,
        )
        errors.append(abs(out[0] - float(mean)) + abs(out[1] - float(var) ** 0.5))
    return errors


def test_the_order_of_renoise_is_that_of_the_law() -> None:
    """4 from the exact law; from another one order 1, in proportion to the deviation."""
    exact, wide, wider, point = (
        renoised(0, 1),
        renoised(0, 1.01),
        renoised(0, 1.02),
        renoised(1, 1e-9),
    )
    assert fitted_order(exact) > 3
    assert 0.9 < fitted_order(point) < 1.3
    assert wide[-1] > 30 * exact[-1]
    assert wider[-1] / wide[-1] == pytest.approx(2, rel=0.05)


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    "solver",
    [sd.solvers.Churn(sd.Heun(), 30.0), sd.solvers.Restart(sd.Heun(), (0.3, 0.6), 2, 60)],
    ids=["churn", "restart"],
)
@pytest.mark.parametrize(
    "family", [sd.VP(), sd.VE(0.02, 10.0), sd.RectifiedFlow()], ids=lambda s: type(s).__name__
)
def test_churn_and_restart_keep_the_law(family: sd.LinearSDE, solver: Solver) -> None:
    """Exact moments of the whole chain, from the exact law at t_max to t_min, in 200 steps uniform
    in log-SNR.
    """
    ends = [float(family.log_snr(family.t_max)), float(family.log_snr(family.t_min))]
    grid = family.time_of(torch.linspace(*ends, 201, dtype=torch.float64))
    grid[0], grid[-1] = family.t_max, family.t_min
    data = sd.exact.Gaussian(0.4, 0.09)
    mean, cov = data.chain(family, solver, grid)
    true_mean, true_cov = data.moments(family, family.t_min)
    torch.testing.assert_close(mean, true_mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(cov.sqrt(), true_cov.sqrt(), rtol=5e-3, atol=0)


def test_restart_does_what_it_says() -> None:
    """One interval written out: step, noise up to t_high, solve back; NFE counts all of it."""
    sde = sd.VP()
    model, white = MIXTURE.model(sde), sd.White([5, 6], (2,), dtype=torch.float64)
    grid = torch.tensor([0.8, 0.5, 0.2], dtype=torch.float64)
    x = torch.tensor([[1.0, -0.5], [0.5, 1.0]], dtype=torch.float64)
    problem = Reverse(model, 2)
    out = integrate(problem, sd.solvers.Restart(sd.DDIM(), (0.48, 0.7), 2, 3), x, grid, white)
    assert out.nfe.tolist() == [2 + 2 * 3] * 2
    y = integrate(Reverse(model, 2), sd.DDIM(), x, grid[:2]).x
    levels = torch.linspace(
        float(sde.log_snr(0.7)), float(sde.log_snr(0.5)), 4, dtype=torch.float64
    )
    ratio, std = sde.kernel(0.7, 0.5)
    for k in range(2):
        y = integrate(
            Reverse(model, 2),
            sd.DDIM(),
            ratio * y + std * white.at(0).normal("churn", k),
            sde.time_of(levels),
        ).x
    y = integrate(Reverse(model, 2), sd.DDIM(), y, grid[1:]).x
    torch.testing.assert_close(out.x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sd.solvers.Churn(sd.RK45()), ValueError, "chooses its own steps"),
        (lambda: sd.solvers.Churn(sd.EulerMaruyama()), ValueError, "adds noise itself"),
        (lambda: sd.solvers.Churn(sd.solvers.DormandPrince()), ValueError, "carries history"),
        (lambda: sd.solvers.Churn("heun"), TypeError, "must be a solver value such as Heun"),
        (
            lambda: sd.solvers.Churn(sd.Heun(), -1.0),
            ValueError,
            "churn must be a finite number",
        ),
        (
            lambda: sd.solvers.Churn(sd.Heun(), between=(2.0, 1.0)),
            ValueError,
            r"between must be \(low, high\)",
        ),
        (
            lambda: sd.solvers.Churn(sd.Heun(), noise=0.0),
            ValueError,
            "noise must be a positive number",
        ),
        (
            lambda: sd.solvers.Restart(sd.Heun(), (0.5, 0.2)),
            ValueError,
            r"between must be \(t_low, t_high\)",
        ),
        (
            lambda: sd.solvers.Restart(sd.Heun(), (0.2, 0.5), rounds=0),
            ValueError,
            "rounds must be an int of at least 1",
        ),
        (
            lambda: sd.sample(
                MIXTURE.model(sd.VP()),
                (2, 2),
                solver=sd.solvers.Restart(sd.Heun(), (0.2, 1.5)),
                steps=10,
                seed=0,
            ),
            ValueError,
            "not above the grid's start, 1",
        ),
        (
            lambda: sd.Heun(variable="snr"),
            ValueError,
            "variable must be one of 'log_snr', 'sigma', 'angle', 't'",
        ),
        (lambda: sd.Langevin(rule="songs"), ValueError, "rule must be one of 'schedule', 'song'"),
        (
            lambda: sd.solvers.MetropolisLangevin(n_steps=-1),
            ValueError,
            "n_steps must be an int of at least 0",
        ),
        (lambda: sd.solvers.MetropolisLangevin(snr=0), ValueError, "snr must be a positive number"),
    ],
)
def test_bad_arguments(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_heun_in_sigma_ends_with_an_euler_step_where_sigma_is_zero() -> None:
    """NFE is 2 N - 1, as in Karras et al.'s Algorithm 1, and the result is E[x_0 | x] of the step
    before.
    """
    sde = sd.LinearSDE(alpha=lambda t: 1.0, sigma=lambda t: t, T=10.0, t_min=0.0)
    model = MIXTURE.model(sde)
    x = torch.tensor([[3.0, -2.0], [0.5, 1.0]], dtype=torch.float64)
    out = sd.sample(
        model,
        (2, 2),
        solver=sd.Heun(),
        grid=[10.0, 3.0, 1.0, 0.0],
        x_init=x,
        last="noisy",
        dtype=torch.float64,
    )
    assert out.nfe.tolist() == [5, 5]
    before = sd.sample(
        model,
        (2, 2),
        solver=sd.Heun(),
        grid=[10.0, 3.0, 1.0],
        x_init=x,
        last="denoise",
        dtype=torch.float64,
    )
    torch.testing.assert_close(out.x, before.x, rtol=0, atol=1e-12)


# -- correctors ------------------------------------------------------------------------------------


Rule = Literal["song", "schedule"]


def of_song(
    model: sd.ScoreModel, x: Tensor, t: Tensor, rule: Rule, alpha: Tensor | float, noise: StepNoise
) -> Tensor:
    """Two steps of score_sde's `LangevinCorrector` ("song") or `AnnealedLangevinDynamics`."""
    for k in range(2):
        score, z = model.score(x, t), noise.normal("corrector", k)
        norms = z.norm(dim=-1).mean() / score.norm(dim=-1).mean()
        size = norms if rule == "song" else model.sde.sigma(t)
        step = (0.16 * size) ** 2 * 2 * alpha
        x = x + step * score + (step * 2).sqrt() * z
    return x


THREE = torch.tensor([[3.0, -2.0], [0.5, 1.0], [0.1, 0.2]], dtype=torch.float64)


@pytest.mark.parametrize("rule", ["song", "schedule"])
@pytest.mark.parametrize(
    "family", [sd.VE(0.02, 10.0), sd.VP(), sd.SubVP(), sd.VP(0.2, 5.0, T=2.0)], ids=repr
)
def test_langevin_is_song_et_als(
    gaussian: sd.exact.Gaussian, family: sd.LinearSDE, rule: Rule
) -> None:
    """alpha_i = 1 - beta(t) T / N on a grid of steps T / N under VP and sub-VP, and 1 under VE:
    alone, and before each step of the predictor (their order) or after it."""
    n = 50
    model, white = gaussian.model(family), sd.White([5, 6, 7], (2,), dtype=torch.float64)
    times = torch.linspace(family.T, 0, n + 1, dtype=torch.float64)[:4]
    solver = sd.Langevin(0.16, 2, rule)

    def alpha(t: Tensor) -> Tensor | float:
        return 1 - family.beta(t) * family.T / n if isinstance(family, sd.VP | sd.SubVP) else 1.0

    def corrected(x: Tensor, i: int, at: Tensor) -> Tensor:
        return of_song(model, x, at, rule, alpha(at), white.at(i))

    def predicted(x: Tensor, i: int) -> Tensor:
        return integrate(Reverse(model, 3), sd.DDIM(), x, times[i : i + 2]).x

    alone = before = after = THREE
    for i in range(3):
        alone = corrected(alone, i, times[i + 1])
        before = predicted(corrected(before, i, times[i]), i)
        after = corrected(predicted(after, i), i, times[i + 1])
    for want, made in (
        (alone, solver),
        (before, sd.PredictorCorrector(sd.DDIM(), solver, "corrector-first")),
        (after, sd.PredictorCorrector(sd.DDIM(), solver)),
    ):
        out = integrate(Reverse(model, 3), made, THREE, times, white).x
        torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)


def test_langevin_where_beta_exceeds_one() -> None:
    """Their code takes the root of a negative step there. With alpha_i = 0 the samples stay, and
    the evaluation is counted."""
    model = MIXTURE.model(sd.RectifiedFlow(t_max=1.0))
    white = sd.White([5, 6, 7], (2,), dtype=torch.float64)
    pair = sd.PredictorCorrector(sd.DDIM(), sd.Langevin(), "corrector-first")
    grid = torch.tensor([1.0, 0.7], dtype=torch.float64)  # from alpha = 0, where f is infinite
    out = integrate(Reverse(model, 3), pair, THREE, grid, white)
    alone = integrate(Reverse(model, 3), sd.DDIM(), THREE, grid, white)
    torch.testing.assert_close(out.x, alone.x, rtol=0, atol=0)
    assert out.nfe.tolist() == [2, 2, 2]


def at_one_time(
    solver: Solver, data: sd.exact.Law, t: float, rows: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Samples of the law at t, and what a corrector makes of them."""
    sde = sd.VP()
    x = sde.perturb(
        data.sample(rows, seed=seed),
        t,
        torch.randn(rows, 2, generator=torch.Generator().manual_seed(9)).double(),
    )
    noise = sd.White(sd.seeds(seed, rows), (2,), dtype=torch.float64)
    return x, integrate(
        Reverse(data.model(sde), rows), solver, x, torch.full((2,), t, dtype=torch.float64), noise
    ).x


def test_metropolis_keeps_the_law_where_langevin_does_not() -> None:
    """12 steps of size 2 (0.8 sigma)^2 at t = 0.3 from 3,000 samples of the law: second moments
    within 5 standard errors (Gaussian data, where Simpson's rule is exact); the unadjusted chain is
    off by many more.
    """
    data = sd.exact.Gaussian([0.4, -0.2], [[0.3, 0.1], [0.1, 0.2]])
    _, cov = data.moments(sd.VP(), 0.3)
    n = 3000
    errors = {}
    for solver in (sd.solvers.MetropolisLangevin(0.8, 12), sd.Langevin(0.8, 12)):
        before, after = at_one_time(solver, data, 0.3, n, 1)
        errors[type(solver).__name__] = (
            float(((torch.cov(after.T) - cov) / cov.diagonal().mean()).abs().max()) * (n / 2) ** 0.5
        )
        assert float((after - before).abs().mean()) > 0.3
    assert errors["MetropolisLangevin"] < 5
    assert errors["Langevin"] > 10


def test_metropolis_on_a_mixture() -> None:
    """Energy of the mixture's law: E log p before and after 12 adjusted steps, 3,000 samples,
    within 5 standard errors.
    """
    before, after = at_one_time(sd.solvers.MetropolisLangevin(0.8, 12), MIXTURE, 0.1, 3000, 2)
    log = [MIXTURE.log_prob(sd.VP(), x, 0.1) for x in (before, after)]
    assert abs(float(log[0].mean() - log[1].mean())) < 5 * float(log[0].std()) * (2 / 3000) ** 0.5
    _, plain = at_one_time(sd.Langevin(0.8, 12), MIXTURE, 0.1, 3000, 2)
    assert (
        abs(float(log[0].mean() - MIXTURE.log_prob(sd.VP(), plain, 0.1).mean()))
        > 10 * float(log[0].std()) * (2 / 3000) ** 0.5
    )


def test_metropolis_step_written_out() -> None:
    """With the exact density in place of Simpson's rule: the same proposals are accepted (Gaussian
    data).
    """
    data, sde, t = (
        sd.exact.Gaussian([0.4, -0.2], [[0.3, 0.1], [0.1, 0.2]]),
        sd.VP(),
        torch.tensor(0.3, dtype=torch.float64),
    )
    rows = 500
    white = sd.White(sd.seeds(0, rows), (2,), dtype=torch.float64)
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = integrate(
        Reverse(data.model(sde), rows),
        sd.solvers.MetropolisLangevin(1.0),
        x,
        torch.stack([t, t]),
        white,
    )
    assert out.nfe.tolist() == [3] * rows
    step = 2 * sde.sigma(t) ** 2
    z = white.at(0).normal("corrector", 0)
    drift = lambda at: at + step * data.score(sde, at, t)  # noqa: E731
    y = drift(x) + (2 * step).sqrt() * z
    log_q = lambda to, start: -((to - drift(start)) ** 2).sum(1) / (4 * step)  # noqa: E731
    log_ratio = data.log_prob(sde, y, t) + log_q(x, y) - data.log_prob(sde, x, t) - log_q(y, x)
    uniform = torch.special.ndtr(white.at(0).normal("corrector", 1)[:, 0])
    accept = uniform.log() < log_ratio
    assert 0.1 < float(accept.double().mean()) < 0.95
    torch.testing.assert_close(out.x, torch.where(accept[:, None], y, x), rtol=1e-10, atol=1e-10)


# -- stochasticity as a function of time -----------------------------------------------------------


@pairwise("sde, solver", SDES, WEAK)
def test_a_constant_function_is_the_constant(sde: sd.LinearSDE, solver: Solver) -> None:
    one, two = (
        sd.sample(
            MIXTURE.model(sde),
            (4, 2),
            solver=solver,
            steps=12,
            seed=3,
            stochasticity=lam,
            dtype=torch.float64,
        ).x
        for lam in (0.7, lambda t: 0.7 + 0 * t)
    )
    torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.thin(14)
@pytest.mark.parametrize(
    ("solver", "twin"),
    [
        (sd.solvers.StochasticHeun(), sd.Heun(variable="t")),
        (sd.EulerMaruyama(), sd.solvers.Euler(variable="t")),
        (sd.solvers.Ancestral(), sd.DDIM()),
        (sd.DDIM(0.0), sd.solvers.Euler(variable="sigma")),
    ],
    ids=repr,
)
def test_twins_at_zero(sde: sd.LinearSDE, solver: Solver, twin: Solver) -> None:
    lam = 0.0 if solver.solves_sde else None

    def end(method: Solver, lam: float | None) -> Tensor:
        return sd.sample(
            MIXTURE.model(sde),
            (4, 2),
            solver=method,
            steps=9,
            grid="uniform",
            seed=1,
            stochasticity=lam,
            last="noisy",
            dtype=torch.float64,
        ).x

    torch.testing.assert_close(end(solver, lam), end(twin, None), rtol=0, atol=1e-10)


def test_stages_of_sra_see_the_diffusion_at_their_times() -> None:
    """dx = a x dt + g(t) dw has an exact solution on one path: SRA1 against it, written out for one
    step.
    """
    sde = sd.LinearSDE(f=lambda t: -1.0, g=lambda t: 1 + t)
    x = torch.tensor([[0.5]], dtype=torch.float64)
    path = sd.solvers.BrownianPath([0], (1,), 0.5, 0.75, intervals=8, dtype=torch.float64)
    from sdediff.simulation import Forward

    out = integrate(
        Forward(sde, 1), sd.solvers.SRA1(), x, torch.tensor([0.5, 0.75], dtype=torch.float64), path
    ).x
    w, z = path.pair(torch.tensor(0.5), torch.tensor(0.75))
    h, z = 0.25, z / 0.25
    stage = x + 0.75 * h * (-x) + 1.5 * z * 1.75
    want = x + h * (-x / 3 - 2 * stage / 3) + (w - z) * 1.75 + z * 1.5
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)
    assert expand(w[:, 0], x).shape == (1, 1)
