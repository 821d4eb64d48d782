"""The reverse SDE with a step size for each sample: EulerTrapezoid, its dyadic steps and the noise
that they split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from all_sdes import SDES
from scipy import stats
from torch import Tensor

import sdediff as sd
from sdediff.reverse import Reverse
from sdediff.solvers import LogSNR, Options, Solver, Status, Step, White, expand, integrate
from sdediff.solvers.control import PerSample
from sdediff.solvers.dyadic import _DEPTH, DyadicSteps
from sdediff.solvers.grid import log_snr
from sdediff.testing.orders import Still

MEANS = torch.tensor([[1.2, 0.1], [-0.6, 1.1], [-0.7, -1.2]], dtype=torch.float64)
MIXTURE = sd.exact.GaussianMixture(MEANS.tolist(), 0.15)
F64 = torch.float64


def solve(
    sde: sd.SDE,
    law: sd.exact.GaussianMixture | sd.exact.Gaussian,
    shape: tuple[int, ...],
    tol: float,
    **options,
) -> sd.Solution:
    return sd.sample(
        law.model(sde),
        shape,
        **{"solver": sd.AdaptiveSDE(tol, tol), "seed": 1, "dtype": F64, **options},
    )


def control(problem: Reverse, rows: int, times: Tensor, event: tuple[int, ...] = (1,)) -> PerSample:
    noise = White(sd.seeds(5, rows), event, dtype=F64)
    solver = sd.AdaptiveSDE()
    steps = DyadicSteps(problem, solver, times, rows, noise)
    return PerSample(problem, solver, torch.zeros(rows, *event, dtype=F64), times, steps)


def at(
    control: PerSample, number: int, depth: int, segment: int = 0
) -> tuple[Tensor, tuple[float, ...]]:
    """The noise of the interval number ``number`` of 2^depth of an interval of the grid, and the
    plan's (keep, push, correct, std).
    """
    moving, steps = control.moving, control.steps
    target = torch.full_like(moving.target, segment + 1)
    spot, level = target * 0 + (number << (_DEPTH - depth)), torch.full_like(target, depth)
    t = steps.lattice(target - 1, spot)
    ahead = steps.propose(
        moving._replace(t=t, u=t, target=target, own=(level, spot, moving.own[2]))
    )
    (std,) = ahead.plan.stds
    return ahead.noise.over(t, ahead.s), tuple(
        float(c[0]) for c in (ahead.plan.keep, ahead.plan.push, ahead.plan.correct, std)
    )


# The coefficients.


@pytest.mark.parametrize("sde", SDES, indirect=True)
@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0, 1.7])
def test_data_of_unit_variance_are_exact_in_any_steps(sde: sd.LinearSDE, lam: float) -> None:
    """Where v is 0 throughout, at N(0, 1) data, mean and variance of each step are exact: the law
    stays N(0, alpha^2 + sigma^2).
    """
    solver = sd.solvers.EulerTrapezoid()
    times = torch.tensor([0.9, 0.5, 0.49, 0.1, 0.02], dtype=F64) * sde.T
    problem = Reverse(sd.exact.Gaussian(0.0, 1.0).model(sde), 1, lam)
    for plan in solver.plan(problem, times):
        (a, sa), (b, sb) = (tuple(map(float, problem.marginal(t))) for t in (plan.t, plan.s))
        (std,) = plan.stds
        assert plan.keep**2 * (a**2 + sa**2) + std**2 == pytest.approx(b**2 + sb**2, rel=1e-12)
        if lam == 0:
            assert std == 0


@pytest.mark.parametrize("sde", [sd.VP(), sd.VE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_the_push_is_the_integral(sde: sd.LinearSDE, lam: float) -> None:
    """Against SciPy's quadrature of (1 + lambda^2) exp(-(m_b - m)) over the angle, m = lambda^2 log
    cos.
    """
    from scipy.integrate import quad

    problem = Reverse(MIXTURE.model(sde), 1, lam)
    times = torch.tensor([1.0, 0.6, 0.2, 0.001], dtype=F64)
    for plan in sd.solvers.EulerTrapezoid().plan(problem, times):
        a, b = (math.atan2(float(sde.sigma(t)), float(sde.alpha(t))) for t in (plan.t, plan.s))
        exact = (1 + lam**2) * quad(
            lambda phi, b=b: (math.cos(phi) / math.cos(b)) ** (lam**2),
            a,
            b,
            epsabs=1e-13,
            epsrel=1e-13,
        )[0]
        # a broken power of the cosine is no polynomial near pi / 2
        rel = 1e-8 if lam == 0.6 else 1e-12
        sizes = [math.hypot(float(sde.sigma(t)), float(sde.alpha(t))) for t in (plan.t, plan.s)]
        assert plan.push == pytest.approx(exact * sizes[1] / sizes[0], rel=rel)
        assert plan.correct == pytest.approx(exact / 2, rel=rel)


def test_a_function_of_time_that_is_constant_is_the_constant() -> None:
    times = torch.linspace(1.0, 1e-3, 9, dtype=F64)
    model = MIXTURE.model(sd.VP())
    one, same = (
        sd.solvers.EulerTrapezoid().plan(Reverse(model, 1, lam), times)
        for lam in (0.7, lambda t: 0.7 + 0 * t)
    )
    torch.testing.assert_close(
        [list(p[3:]) for p in one], [list(p[3:]) for p in same], rtol=1e-9, atol=1e-12
    )


def test_ends_of_time() -> None:
    """From alpha = 0 to sigma = 0 with a network that predicts the data: there is a limit at both
    ends.
    """
    law, sde, rows = sd.exact.Gaussian(0.3, 0.25), sd.RectifiedFlow(), 4000
    model = sd.ScoreModel(
        lambda x, t: torch.where(t[:, None] > 0, law.data(sde, x, t.clamp(1e-9)), x), sde, "data"
    )
    x = torch.randn(rows, 1, generator=torch.Generator().manual_seed(0), dtype=F64)

    def run(solver: sd.solvers.EulerTrapezoid, times: Tensor) -> Tensor:
        return integrate(
            Reverse(model, rows, 1.0), solver, x, times, White(sd.seeds(1, rows), (1,), dtype=F64)
        ).x

    assert float(
        run(sd.solvers.EulerTrapezoid(), torch.linspace(1.0, 0.0, 41, dtype=F64)).std()
    ) == pytest.approx(0.5, rel=0.04)
    with pytest.raises(ValueError, match=r"at sigma = 0 there is none: end above that time"):
        run(sd.AdaptiveSDE(), torch.tensor([1.0, 0.0], dtype=F64))
    assert float(
        run(sd.AdaptiveSDE(), torch.tensor([1.0, 0.001], dtype=F64)).std()
    ) == pytest.approx(0.5, rel=0.04)


# The noise.


@pytest.mark.parametrize(
    "sde", [sd.VP(), sd.VE(), sd.RectifiedFlow()], ids=lambda sde: type(sde).__name__
)
@pytest.mark.parametrize("lam", [0.5, 1.0])
def test_halves_add_up_to_the_whole(sde: sd.LinearSDE, lam: float) -> None:
    """std e of a step is keep std e of its first half and std e of its second: the path does not
    know how it is cut.
    """
    steps = control(
        Reverse(MIXTURE.model(sde), 50, lam),
        50,
        torch.tensor([sde.t_max, sde.t_min], dtype=F64),
        (2,),
    )
    for spot, level in ((0, 3), (5, 3), (7, 3), (11, 4), (37, 6), (1000, 11), (200_000, 20)):
        whole, (*_, std) = at(steps, spot, level)
        first, (*_, std_1) = at(steps, 2 * spot, level + 1)
        second, (keep, *_, std_2) = at(steps, 2 * spot + 1, level + 1)
        torch.testing.assert_close(
            keep * std_1 * first + std_2 * second, std * whole, rtol=1e-6, atol=1e-6 * std
        )


def test_noise_is_standard_normal_and_of_disjoint_steps_independent() -> None:
    """Kolmogorov and Smirnov, and correlations, of 20,000 paths: each fails by chance once in a
    million runs of other seeds.
    """
    n = 20_000
    law = sd.exact.Gaussian(0.3, 0.25)
    steps = control(Reverse(law.model(sd.VP()), n, 1.0), n, torch.tensor([1.0, 1e-3], dtype=F64))
    found = torch.stack(
        [
            at(steps, spot, level)[0].flatten()
            for spot, level in ((2, 3), (6, 4), (28, 6), (29, 6), (60, 7), (7, 3))
        ]
    )
    for z in found[[0, 1, 2, 4]]:
        assert stats.kstest(z.numpy(), "norm").pvalue > 1e-6
    # (6, 4) is half of (3, 3), and (28, 6), (29, 6) are in (7, 4): all but the two pairs below are
    # disjoint.
    correlations = torch.corrcoef(found)
    for i, j in ((0, 1), (1, 2), (2, 3), (0, 5), (3, 4)):
        assert abs(float(correlations[i, j])) < 4.9 / math.sqrt(n)


def test_noise_of_two_intervals_of_the_grid_is_independent() -> None:
    n = 20_000
    steps = control(
        Reverse(sd.exact.Gaussian(0.3, 0.25).model(sd.VP()), n, 1.0),
        n,
        torch.tensor([1.0, 0.5, 1e-3], dtype=F64),
    )
    first, second = (at(steps, 1, 4, segment)[0].flatten() for segment in (0, 1))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 4.9 / math.sqrt(n)


def test_noise_that_cannot_be_split_is_refused() -> None:
    class Fixed:
        def at(self, step: int) -> object:
            return self

        def take(self, rows: Tensor) -> Fixed:
            return self

    with pytest.raises(ValueError, match="splits the noise of its steps: pass White"):
        sd.sample(
            MIXTURE.model(sd.VP()),
            (2, 2),
            solver=sd.AdaptiveSDE(),
            noise=Fixed(),
            x_init=torch.zeros(2, 2),
        )


def test_noise_for_other_samples_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"the noise is for samples of shape \(3, 2\), and shape is \(4, 2\)"
    ):
        solve(
            sd.VP(),
            MIXTURE,
            (4, 2),
            0.1,
            seed=None,
            noise=sd.solvers.BrownianPath(sd.seeds(0, 3), (2,), 1.0, 1e-3),
        )
    with pytest.raises(
        ValueError,
        match="the noise is on cpu, and the states are on meta: make it with device='meta'",
    ):
        solve(
            sd.VP(), MIXTURE, (4, 2), 0.1, seed=None, noise=sd.White(range(4), (2,)), device="meta"
        )


@pytest.mark.thin(0)
def test_on_a_brownian_path_it_follows_other_solvers() -> None:
    """The same path seen by DDPM's ancestral steps, 1,024 of them: nearer as the tolerance
    falls.
    """
    sde, rows = sd.VP(), 30
    grid = log_snr(1024, 1.0, 1e-3, LogSNR(sde.log_snr, sde.time_of))
    path = sd.solvers.BrownianPath(sd.seeds(3, rows), (2,), 1.0, 1e-3, intervals=grid, dtype=F64)
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    options = {"noise": path, "seed": None, "x_init": x}
    fine = solve(sde, MIXTURE, (rows, 2), 1, solver=sd.solvers.Ancestral(), grid=grid, **options).x
    errors = [
        float((solve(sde, MIXTURE, (rows, 2), tol, **options).x - fine).norm(dim=1).median())
        for tol in (0.3, 0.03)
    ]
    assert errors[1] < 0.02
    assert errors[1] < 0.5 * errors[0]


# The law.


@pytest.mark.parametrize(
    ("sde", "d", "n"), [(sd.VP(), 1, 8000), (sd.VE(), 2, 3000), (sd.SubVP(), 16, 400)]
)
def test_moments_of_a_gaussian_at_a_loose_tolerance(sde: sd.LinearSDE, d: int, n: int) -> None:
    """At 0.05 the standard deviation is right to 2 %, and the mean to 4 standard errors; its
    standard error is below 0.9 %.
    """
    law = sd.exact.Gaussian(torch.full((d,), 0.3, dtype=F64), torch.full((d,), 0.25, dtype=F64))
    out = solve(sde, law, (n, d), 0.05)
    assert float(out.x.std()) == pytest.approx(0.5, rel=0.02)
    assert abs(float(out.x.mean()) - 0.3) < 4 * 0.5 / math.sqrt(n * d)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sde", [sd.VP(), sd.VE(), sd.RectifiedFlow()], ids=lambda sde: type(sde).__name__
)
@pytest.mark.parametrize("d", [1, 2, 16])
def test_moments_fall_to_the_standard_error(sde: sd.LinearSDE, d: int) -> None:
    """Gaussian and mixture data: mean and variance at 0.01 within 4 standard errors, whatever was
    rejected.
    """
    n = 24_000 // d
    means = torch.randn(3, d, generator=torch.Generator().manual_seed(d), dtype=F64)
    for law in (
        sd.exact.Gaussian(means[0], torch.full((d,), 0.25, dtype=F64)),
        sd.exact.GaussianMixture(means.tolist(), 0.3),
    ):
        out, exact = solve(sde, law, (n, d), 0.01), law.sample(200_000, seed=7)
        for power in (1, 2):
            ours, theirs = (x - exact.mean(dim=0) for x in (out.x, exact))
            error = (ours**power).mean(dim=0) - (theirs**power).mean(dim=0)
            assert (
                float(
                    (
                        error.abs() / ((theirs**power).std(dim=0) * (1 / n + 1 / len(exact)) ** 0.5)
                    ).max()
                )
                < 4.5
            )


@pytest.mark.thin(0)
@pytest.mark.parametrize("sde", [sd.VP(), sd.VE(0.01, 50.0)], ids=lambda sde: type(sde).__name__)
def test_one_seed_gives_near_samples_at_all_tolerances(sde: sd.LinearSDE) -> None:
    """Root mean square of the distance to the samples at 5e-3, median over samples."""
    reference = solve(sde, MIXTURE, (100, 2), 5e-3).x
    errors = [
        float((solve(sde, MIXTURE, (100, 2), tol).x - reference).norm(dim=1).median())
        for tol in (0.3, 0.05)
    ]
    assert errors[0] < 0.05
    assert errors[1] < 0.5 * errors[0]


def test_stochasticity_zero_is_the_probability_flow() -> None:
    out = solve(sd.VP(), MIXTURE, (30, 2), 1e-3, stochasticity=0.0, last="noisy")
    flow = solve(sd.VP(), MIXTURE, (30, 2), 1, solver=sd.solvers.DOP853(1e-9, 1e-9), last="noisy")
    assert float((out.x - flow.x).norm(dim=1).median()) < 2e-3


def test_a_function_of_time_is_taken() -> None:
    """lambda(t) = t: the moments stay right."""
    law = sd.exact.Gaussian(0.3, 0.25)
    out = solve(sd.VP(), law, (6000, 1), 0.05, stochasticity=lambda t: t)
    assert float(out.x.std()) == pytest.approx(0.5, rel=0.03)


def test_any_drift_of_zero_leaves_the_noise() -> None:
    """With no drift and no score a step is (g_t + g_s) / 2 times the path's increment."""

    class Still(sd.SDE):
        def drift(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.zeros_like(x)

        def diffusion(self, t: Tensor) -> Tensor:
            return 1 + t

    model = sd.ScoreModel(lambda x, t: torch.zeros_like(x), Still(), predicts="score")
    noise, (t, s) = White(sd.seeds(0, 3), (2,), dtype=F64), torch.tensor([0.9, 0.4], dtype=F64)
    out = integrate(
        Reverse(model, 3, 1.0),
        sd.solvers.EulerTrapezoid(),
        torch.ones(3, 2, dtype=F64),
        torch.stack([t, s]),
        noise,
    )
    torch.testing.assert_close(out.x, 1 + (1.9 + 1.4) / 2 * noise.at(0).increment(t, s))


def test_any_drift() -> None:
    """Without a Gaussian kernel it is the trapezoidal rule in t: a double well keeps its stationary
    law.
    """

    class Well(sd.SDE):
        def drift(self, x: Tensor, t: Tensor) -> Tensor:
            return x - x**3

        def diffusion(self, t: Tensor) -> Tensor:
            return torch.full_like(t, 0.8)

    # Density exp(2 (x^2/2 - x^4/4) / 0.64): where the forward process is stationary, so is the
    # reverse one, with this score.
    model = sd.ScoreModel(lambda x, t: (x - x**3) * 2 / 0.64, Well(), predicts="score")
    grid = torch.linspace(-2.5, 2.5, 4001, dtype=F64)
    density = ((grid**2 / 2 - grid**4 / 4) * 2 / 0.64).exp()
    weights = density / density.sum()
    start = grid[
        torch.multinomial(
            weights, 3000, replacement=True, generator=torch.Generator().manual_seed(1)
        )
    ]
    out = sd.sample(
        model,
        (3000, 1),
        solver=sd.AdaptiveSDE(0.02, 0.02),
        x_init=start[:, None],
        seed=2,
        dtype=F64,
    )
    assert out.rejected.sum() > 0
    cdf = weights.cumsum(0).numpy()
    assert (
        stats.kstest(out.x.flatten().numpy(), lambda x: np.interp(x, grid.numpy(), cdf)).pvalue
        > 1e-4
    )


@dataclass(frozen=True)
class Mine(Solver):
    """A user's own pair: Euler-Maruyama and Heun, in t."""

    rtol: float = 0.02
    atol: float = 0.02

    needs = frozenset({"drift", "diffusion"})
    stochastic = solves_sde = adaptive = True
    evaluations = 2
    error_order = 1.5

    def step(self, problem, x, plan, noise, state):
        h = expand(plan[1] - plan[0], x)
        first = problem.drift(x, plan[0])
        guess = x + h * first + problem.diffuse(noise.increment(*plan), plan[0])
        error = h / 2 * (problem.drift(guess, plan[1]) - first)
        return Step(guess + error, guess + error, (), error)


@pytest.mark.thin(0)
def test_a_solver_of_ones_own_takes_dyadic_steps() -> None:
    law = sd.exact.Gaussian(0.3, 0.25)
    out = solve(sd.VP(), law, (4000, 1), 1, solver=Mine())
    assert float(out.x.std()) == pytest.approx(0.5, rel=0.03)
    assert abs(float(out.x.mean()) - 0.3) < 4 * 0.5 / math.sqrt(4000)
    assert out.nfe.tolist() == (2 * (out.accepted + out.rejected) + 1).tolist()


# Every sample by itself.


@cache
def batch(dtype: torch.dtype) -> sd.Solution:
    return solve(sd.VP(), MIXTURE, (7, 2), 0.05, dtype=dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_a_sample_does_not_depend_on_its_batch(dtype: torch.dtype, bound: float) -> None:
    whole, seeds = batch(dtype), sd.seeds(1, 7)
    order = [4, 0, 6, 2, 1, 5, 3]
    for rows in ([2], [5], order):
        part = solve(
            sd.VP(), MIXTURE, (len(rows), 2), 0.05, dtype=dtype, seed=[seeds[i] for i in rows]
        )
        torch.testing.assert_close(part.x, whole.x[rows], rtol=0, atol=bound)
        assert part.accepted.tolist() == whole.accepted[rows].tolist()


def test_the_network_sees_the_rows_that_move() -> None:
    rows = 0
    exact = MIXTURE.model(sd.VP())

    def net(x: Tensor, t: Tensor) -> Tensor:
        nonlocal rows
        rows += len(x)
        return exact.noise(x, t)

    out = sd.sample(sd.ScoreModel(net, sd.VP()), (60, 2), solver=sd.AdaptiveSDE(0.05, 0.05), seed=0)
    assert rows == int(out.nfe.sum())
    # one to start and one to denoise
    assert out.nfe.tolist() == (out.accepted + out.rejected + 2).tolist()
    assert int(out.nfe.max()) > int(out.nfe.min())


def test_lands_on_the_times_of_a_grid() -> None:
    grid = torch.tensor([1.0, 0.7, 0.69, 0.2, 1e-3], dtype=F64)
    times: list[float] = []
    exact = MIXTURE.model(sd.VP())

    def net(x: Tensor, t: Tensor) -> Tensor:
        times.extend(t.tolist())
        return exact.noise(x, t)

    model = sd.ScoreModel(net, sd.VP(), time_dtype=F64)
    out = sd.sample(
        model,
        (5, 2),
        solver=sd.AdaptiveSDE(0.1, 0.1),
        grid=grid,
        seed=0,
        trajectory=True,
        last="noisy",
    )
    assert out.trajectory.shape == (5, 5, 2)
    assert torch.equal(out.trajectory[-1], out.x)
    assert set(grid.tolist()) <= set(times)
    assert (min(times), max(times)) == (1e-3, 1.0)
    assert len(set(out.trajectory[:, 0, 0].tolist())) == 5


def test_the_last_step_without_noise() -> None:
    """``last="mean"``: all is as with noise until the end, where each sample is short of its last
    step's noise.
    """
    law, grid = sd.exact.Gaussian(0.3, 0.25), [1.0, 0.5, 0.1]
    options = {"grid": grid, "trajectory": True}
    noisy, mean = (
        solve(sd.VP(), law, (2000, 1), 0.05, last=last, **options) for last in ("noisy", "mean")
    )
    assert torch.equal(noisy.trajectory[:2], mean.trajectory[:2])
    gone = noisy.x - mean.x
    assert float(gone.abs().min()) > 0
    assert abs(
        float(torch.corrcoef(torch.stack([gone.flatten(), mean.x.flatten()]))[0, 1])
    ) < 4.9 / math.sqrt(2000)
    assert float(mean.x.var() + gone.var()) == pytest.approx(float(noisy.x.var()), rel=0.05)


def test_landing_costs_little() -> None:
    """Two short intervals on the way: steps are as long after them as before, and no shorter
    within.
    """
    free, cut = (
        float(solve(sd.VP(), MIXTURE, (60, 2), 0.05, grid=grid).nfe.double().mean())
        for grid in ([1.0, 1e-3], [1.0, 0.3, 0.29, 0.28, 1e-3])
    )
    assert cut < 1.35 * free


# Failures.


def failing(t_bad: float, row: int, how: str) -> sd.ScoreModel:
    """Sample ``row``, known by its condition, has a bad network below t_bad."""
    exact = MIXTURE.model(sd.VP())

    def net(x: Tensor, t: Tensor, mark: Tensor) -> Tensor:
        out = exact.noise(x, t)
        bad = (mark == row) & (t < t_bad)
        worse = (
            torch.full_like(out, torch.nan)
            if how == "nan"
            else out + 500 * torch.sin(1e9 * x).sign()
        )
        return torch.where(bad[:, None], worse, out)

    return sd.ScoreModel(net, sd.VP())


@pytest.mark.parametrize(
    ("how", "solver", "status"),
    [
        ("nan", sd.AdaptiveSDE(0.05, 0.05), Status.NETWORK_NOT_FINITE),
        ("stiff", sd.AdaptiveSDE(0.05, 0.05, dt_min=1e-3), Status.STEP_TOO_SMALL),
    ],
)
def test_a_bad_sample_fails_alone(how: str, solver: sd.AdaptiveSDE, status: Status) -> None:
    options = {
        "solver": solver,
        "seed": 4,
        "dtype": F64,
        "condition": {"mark": torch.arange(5)},
        "on_fail": "return",
    }
    bad = sd.sample(failing(0.4, 2, how), (5, 2), **options)
    good = sd.sample(failing(0.0, 2, how), (5, 2), **options)
    others = [0, 1, 3, 4]
    assert bad.status.tolist() == [0, 0, int(status), 0, 0]
    assert torch.equal(bad.x[others], good.x[others])
    assert bad.nfe[others].tolist() == good.nfe[others].tolist()
    assert bad.failures[0].t > 0.3
    with pytest.raises(sd.SolveError, match="sample 2 failed at t = "):
        sd.sample(failing(0.4, 2, how), (5, 2), **{**options, "on_fail": "raise"})


def test_max_nfe() -> None:
    out = solve(sd.VP(), MIXTURE, (20, 2), 0.05, max_nfe=36, on_fail="return")
    assert int(out.nfe.max()) <= 36
    assert set(out.status.tolist()) == {0, int(Status.MAX_NFE)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": -1.0}, "rtol must be a finite number"),
        ({"rtol": 0.0, "atol": 0.0}, "cannot both be 0"),
        ({"dt_min": -1.0}, "dt_min must be"),
    ],
)
def test_bad_arguments(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sd.AdaptiveSDE(**options)


def test_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="chooses its own steps"):
        solve(sd.VP(), MIXTURE, (2, 2), 0.1, steps=10)


def test_without_noise_nothing_is_random() -> None:
    """All noises 0: the same problem integrated twice is the same to the bit."""
    problem = [Reverse(MIXTURE.model(sd.VP()), 3, 1.0) for _ in range(2)]
    x, times = (
        torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=F64),
        torch.tensor([1.0, 1e-3], dtype=F64),
    )
    one, two = (
        integrate(each, sd.AdaptiveSDE(), x, times, Still((3, 2)), Options()).x for each in problem
    )
    assert torch.equal(one, two)
