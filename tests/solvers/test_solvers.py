"""Every solver on Gaussian data, whose score, flow and reverse law are known in closed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from all_sdes import SDES
from exact_moments import chain_moments, reverse_moments
from pairwise import pairwise
from scipy.integrate import solve_ivp
from torch import Tensor

import sdediff as sd
from sdediff.reverse import Reverse
from sdediff.solvers import Midpoint, RungeKutta, Solver, Tableau, integrate
from sdediff.solvers.tableau import BOGACKI_SHAMPINE, DOP853, DORMAND_PRINCE, TSITOURAS
from sdediff.testing.orders import fitted_order

ODE_ORDERS = {
    sd.solvers.Euler(variable="t"): 1,
    sd.DDIM(): 1,
    sd.solvers.Midpoint(variable="t"): 2,
    sd.Heun(): 2,
    sd.Heun(variable="sigma"): 2,
    sd.Heun(variable="log_snr"): 2,
    sd.solvers.RungeKutta4(): 4,
    sd.solvers.RungeKutta4(variable="sigma"): 4,
}
STOCHASTIC = (sd.EulerMaruyama(), sd.ReverseDiffusion(), sd.solvers.Ancestral())
PAIRS = (
    sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin(snr=0.05)),
    sd.PredictorCorrector(sd.EulerMaruyama(), sd.Langevin(snr=0.05, n_steps=2), "corrector-first"),
    sd.PredictorCorrector(sd.DDIM(), sd.Langevin(snr=0.05)),
)
ALL = (
    *ODE_ORDERS,
    *STOCHASTIC,
    *PAIRS,
    sd.RK45(),
    sd.solvers.RK23(1e-4, 1e-4),
    sd.DDPM.from_sde(sd.VP(), 26),
)


FEW = (sd.EulerMaruyama(), PAIRS[1], sd.RK45())
"""Those that stand for the others where test_contracts.py has all methods."""


def ids(solver: Solver) -> str:
    return repr(solver)


def gentle(sde: sd.LinearSDE, n: int) -> torch.Tensor:
    """A grid over the inner part of the range, where steps resolve the coefficients and errors
    follow their order.
    """
    return torch.linspace(0.8 * sde.T, 0.2 * sde.T, n + 1, dtype=torch.float64)


@pytest.mark.thin(2)
@pairwise("sde, solver", SDES, ODE_ORDERS)
def test_order_on_the_exact_flow(
    sde: sd.LinearSDE, gaussian: sd.exact.Gaussian, solver: Solver
) -> None:
    x = torch.tensor([[1.0, -2.0], [0.5, 0.3]], dtype=torch.float64) * sde.prior.std
    errors = []
    for n in (40, 80, 160):
        times = gentle(sde, n)
        out = integrate(Reverse(gaussian.model(sde), 2), solver, x, times).x
        errors.append(float((out - gaussian.flow(sde, x, times[0], times[-1])).abs().max()))
    # Where sigma / alpha = t (up to scale) and data are Gaussian, f''(f, f) / 24 + f' f' f / 6 = 0:
    # Midpoint gains an order.
    gain = isinstance(solver, Midpoint) and str(sde).startswith(("EDM", "RectifiedFlow"))
    assert fitted_order(errors) == pytest.approx(ODE_ORDERS[solver] + gain, abs=0.25), errors
    assert solver.order == ODE_ORDERS[solver]


@pytest.mark.thin(2)
@pairwise("sde, solver, stochasticity", SDES, STOCHASTIC, [1.0, 0.5])
def test_weak_order_by_exact_moments(
    sde: sd.LinearSDE, solver: Solver, stochasticity: float
) -> None:
    """Mean and standard deviation of the chain converge to the exact law at order 1, at any
    stochasticity.
    """
    errors = []
    for n in (40, 80, 160):
        times = gentle(sde, n)
        mean, std = reverse_moments(
            sde, solver, times, mean=0.4, std=0.3, stochasticity=stochasticity
        )
        true_mean, true_cov = sd.exact.Gaussian(0.4, 0.09).moments(sde, times[-1])
        errors.append(abs(mean - float(true_mean)) + abs(std - float(true_cov) ** 0.5))
    assert fitted_order(errors) == pytest.approx(solver.order, abs=0.25), errors


@pytest.mark.thin(1)
@pytest.mark.parametrize("solver", STOCHASTIC, ids=ids)
def test_full_range_reaches_the_data_law(solver: Solver) -> None:
    """From t_max to t_min in 400 steps the law is right to 1 % of the data's standard deviation, on
    every SDE.
    """
    for sde in (sd.VP(), sd.SubVP(), sd.VE(0.02, 10.0)):
        times = torch.linspace(sde.t_max, sde.t_min, 401, dtype=torch.float64)
        mean, std = reverse_moments(sde, solver, times, mean=0.4, std=0.5)
        true_mean, true_cov = sd.exact.Gaussian(0.4, 0.25).moments(sde, times[-1])
        assert mean == pytest.approx(float(true_mean), abs=0.01)
        assert std == pytest.approx(float(true_cov) ** 0.5, rel=0.02)


SAMPLERS = {
    sd.EulerMaruyama(): {"steps": 500, "grid": "quadratic"},
    sd.ReverseDiffusion(): {"steps": 500, "grid": "quadratic"},
    sd.PredictorCorrector(sd.solvers.Ancestral(), sd.Langevin(snr=0.05)): {
        "steps": 300,
        "grid": "quadratic",
    },
    sd.RK45(): {},
    sd.DDPM.from_sde(sd.VP(), 1000): {},
}


@pytest.mark.thin(1)
@pytest.mark.parametrize("solver", SAMPLERS, ids=ids)
def test_samples_have_the_mean_and_covariance_of_the_data(
    gaussian: sd.exact.Gaussian, solver: Solver
) -> None:
    """4,000 samples as a user draws them. The bound is 5 standard errors, for 5 numbers and 5
    solvers: false alarm 1.5e-5.
    """
    n = 4000
    x = sd.sample(
        gaussian.model(sd.VP()),
        (n, 2),
        solver=solver,
        seed=5,
        last="noisy",
        dtype=torch.float64,
        **SAMPLERS[solver],
    ).x
    mean, cov = gaussian.moments(sd.VP(), sd.VP().t_min)
    variance = cov.diagonal()
    assert bool(((x.mean(dim=0) - mean).abs() < 5 * (variance / n).sqrt()).all())
    error = ((variance[:, None] * variance[None, :] + cov**2) / n).sqrt()
    assert bool(((torch.cov(x.T) - cov).abs() < 5 * error).all())


@pytest.mark.thin(1)
@pairwise(
    "sde, sequence",
    ["VP", "VE", "RectifiedFlow", "user, alpha and log_snr"],
    ["predictor-first", "corrector-first"],
)
def test_corrector_law_is_right_as_snr_falls(sde: sd.LinearSDE, sequence: str) -> None:
    """The excess of a Langevin chain with fixed steps is of order snr^2: it falls fourfold as snr
    is halved.
    """
    times = gentle(sde, 250)
    excess = []
    for snr in (0.4, 0.2):
        solver = sd.PredictorCorrector(sd.solvers.Ancestral(), sd.Langevin(snr=snr), sequence)  # type: ignore[arg-type]
        _, std = reverse_moments(sde, solver, times, mean=0.4, std=0.3, draws_a_step=2)
        _, without = reverse_moments(sde, sd.solvers.Ancestral(), times, mean=0.4, std=0.3)
        excess.append(
            abs(std - float(sd.exact.Gaussian(0.4, 0.09).moments(sde, times[-1])[1]) ** 0.5)
        )
        assert without == pytest.approx(std, rel=0.15)
    assert excess[0] < 0.12 * float(sde.sigma(times[-1]))
    assert 2.5 < excess[0] / excess[1] < 8, excess


def test_corrector_alone_keeps_the_law() -> None:
    """Many small Langevin steps at one time move any start to the law there."""
    sde = sd.VP()
    data = sd.exact.Gaussian(0.4, 0.09)
    times = torch.full((2,), 0.3, dtype=torch.float64)
    mean, cov = (float(v) for v in data.moments(sde, times[0]))
    solver = sd.Langevin(snr=0.1, n_steps=600)
    got_mean, got_std = chain_moments(
        Reverse(data.model(sde), 602), solver, times, mean + 1.0, 0.0, 600
    )
    assert got_mean == pytest.approx(mean, abs=1e-4)
    assert got_std == pytest.approx(cov**0.5, rel=0.02)


@pytest.mark.thin(2)
def test_adaptive_reaches_its_tolerance(sde: sd.LinearSDE, gaussian: sd.exact.Gaussian) -> None:
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(6, 2) * sde.prior.std
    exact = gaussian.flow(sde, x, sde.t_max, sde.t_min)
    errors = []
    for tol in (1e-3, 1e-5, 1e-8):
        out = sd.sample(
            gaussian.model(sde),
            (6, 2),
            solver=sd.RK45(tol, tol),
            x_init=x,
            last="noisy",
            dtype=torch.float64,
        )
        errors.append(float((out.x - exact).abs().max()))
        assert out.success
        assert bool((out.nfe == 6 * (out.accepted + out.rejected) + 2).all())
    for error, bound in zip(errors, (0.02, 5e-4, 1e-6), strict=True):
        assert error < bound


def test_adaptive_agrees_with_scipy_in_cost_and_result(gaussian: sd.exact.Gaussian) -> None:
    """SciPy's RK45 is the same pair: the same solution to the tolerance, at a similar number of
    evaluations.
    """
    _sde, model = sd.VP(), gaussian.model(sd.VP())
    x = torch.tensor([[1.2, -0.7]], dtype=torch.float64)
    problem = Reverse(model, 1)
    reference = solve_ivp(
        lambda t, y: problem.drift(torch.as_tensor(y)[None], torch.tensor(t, dtype=torch.float64))[
            0
        ].numpy(),
        (1.0, 1e-3),
        x[0].numpy(),
        rtol=1e-6,
        atol=1e-6,
    )
    ours = sd.sample(
        model, (1, 2), solver=sd.RK45(1e-6, 1e-6), x_init=x, last="noisy", dtype=torch.float64
    )
    torch.testing.assert_close(ours.x[0], torch.as_tensor(reference.y[:, -1]), rtol=0, atol=2e-5)
    assert int(ours.nfe) < 1.3 * reference.nfev


def test_adaptive_lands_on_every_time_of_the_grid(gaussian: sd.exact.Gaussian) -> None:
    sde = sd.VP()
    x = torch.linspace(-2, 2, 10, dtype=torch.float64).reshape(5, 2)
    asked = [1.0, 0.7, 0.31, 0.05, 0.001]
    called: list[float] = []
    model = gaussian.model(sde)
    net = model.net
    model.net = lambda x, t: (called.extend(t.tolist()), net(x, t))[1]
    out = sd.sample(
        model,
        (5, 2),
        solver=sd.RK45(1e-8, 1e-8),
        grid=asked,
        x_init=x,
        last="noisy",
        trajectory=True,
        dtype=torch.float64,
    )
    assert out.trajectory is not None
    for time, frame in zip(asked, out.trajectory, strict=True):
        torch.testing.assert_close(frame, gaussian.flow(sde, x, 1.0, time), rtol=0, atol=1e-6)
    assert min(called) >= 0.001
    assert max(called) <= 1.0


def test_adaptive_rows_leave_as_they_finish(gaussian: sd.exact.Gaussian) -> None:
    """The rows the network sees add up to the samples' own counts, which differ."""
    sde, rows = sd.VE(0.02, 30.0), []
    model = gaussian.model(sde)
    net = model.net
    model.net = lambda x, t: (rows.append(len(x)), net(x, t))[1]
    out = sd.sample(model, (20, 2), solver=sd.RK45(), seed=3)
    assert sum(rows) == int(out.nfe.sum())
    assert int(out.nfe.min()) < int(out.nfe.max())


@pytest.mark.thin(11)
@pytest.mark.parametrize(
    ("solver", "twin"),
    [
        (sd.EulerMaruyama(), sd.solvers.Euler(variable="t")),
        (sd.solvers.Ancestral(), sd.DDIM()),
        (sd.solvers.Ancestral(), sd.solvers.Euler(variable="sigma")),
    ],
    ids=ids,
)
def test_twins_at_zero_stochasticity(
    sde: sd.LinearSDE, gaussian: sd.exact.Gaussian, solver: Solver, twin: Solver
) -> None:
    model = gaussian.model(sde)
    out = sd.sample(
        model,
        (4, 2),
        solver=solver,
        steps=30,
        grid="uniform",
        seed=1,
        stochasticity=0,
        last="noisy",
        dtype=torch.float64,
    ).x
    expected = sd.sample(
        model,
        (4, 2),
        solver=twin,
        steps=30,
        grid="uniform",
        seed=1,
        last="noisy",
        dtype=torch.float64,
    ).x
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)


@pytest.mark.thin(2)
def test_reverse_diffusion_at_zero_stochasticity_solves_the_flow(
    sde: sd.LinearSDE, gaussian: sd.exact.Gaussian
) -> None:
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64) * sde.prior.std
    errors = []
    for n in (80, 160, 320):
        times = gentle(sde, n)
        out = integrate(
            Reverse(gaussian.model(sde), 1, 0.0),
            sd.ReverseDiffusion(),
            x,
            times,
            sd.White([0], (2,)),
        ).x
        errors.append(float((out - gaussian.flow(sde, x, times[0], times[-1])).abs().max()))
    assert fitted_order(errors) == pytest.approx(1, abs=0.25)


def test_published_updates_with_noise_given(sde: sd.LinearSDE, gaussian: sd.exact.Gaussian) -> None:
    """One step of each, written out: Song et al. 2021 eq. 6 and 46, the posterior q(x_s | x_t,
    x_0), DDIM, Langevin.
    """
    model, white = gaussian.model(sde), sd.White([5, 6], (2,), dtype=torch.float64)
    t, s = (torch.tensor(v, dtype=torch.float64) for v in (0.7, 0.6))
    x = torch.tensor([[3.0, -2.0], [0.5, 1.0]], dtype=torch.float64)
    z, c = white.at(0).normal("path"), white.at(0).normal("corrector")
    score, data, lam = model.score(x, t), model.data(x, t), 0.7
    (alpha_t, sigma_t), (alpha_s, sigma_s) = ((sde.alpha(r), sde.sigma(r)) for r in (t, s))
    a = alpha_t / alpha_s
    v = sigma_t**2 - a**2 * sigma_s**2
    size = 2 * (1 + 2 * sde.f(s) * (t - s)).clamp(min=0) * (0.2 * sigma_s) ** 2
    precision = a**2 / v + 1 / sigma_s**2
    g = sde.g(t)
    expected = [
        (
            sd.EulerMaruyama(),
            1.0,
            x - (t - s) * (sde.f(t) * x - g**2 * score) + g * (t - s).sqrt() * z,
        ),
        (
            sd.EulerMaruyama(),
            lam,
            x
            - (t - s) * (sde.f(t) * x - (1 + lam**2) / 2 * g**2 * score)
            + lam * g * (t - s).sqrt() * z,
        ),
        (sd.ReverseDiffusion(), 1.0, (2 - a) * x + v * score + v.sqrt() * z),
        (
            sd.ReverseDiffusion(),
            lam,
            (2 - a) * x + (1 + lam**2) / 2 * v * score + lam * v.sqrt() * z,
        ),
        (
            sd.solvers.Ancestral(),
            1.0,
            (a * x / v + alpha_s * data / sigma_s**2) / precision + precision**-0.5 * z,
        ),
        (sd.DDIM(), 0.0, alpha_s * data + sigma_s * (x - alpha_t * data) / sigma_t),
        (sd.Langevin(snr=0.2), 0.0, x + size * model.score(x, s) + (2 * size).sqrt() * c),
    ]
    for solver, stochasticity, want in expected:
        out = integrate(Reverse(model, 2, stochasticity), solver, x, torch.stack([t, s]), white).x
        torch.testing.assert_close(
            out, want, rtol=1e-10, atol=1e-10, msg=lambda m, s=solver: f"{s}: {m}"
        )


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(solver, id=repr(solver), marks=[] if solver in FEW else [pytest.mark.slow])
        for solver in ALL
    ],
)
def test_sample_depends_on_its_seed_alone(solver: Solver, gaussian: sd.exact.Gaussian) -> None:
    """Alone, in a batch of 7, permuted, and in parts: the same sample."""
    model = gaussian.model(sd.VP())
    steps = None if solver.adaptive or solver.times is not None else 25
    seeds = sd.seeds(11, 7)
    whole = sd.sample(model, (7, 2), solver=solver, steps=steps, seed=11, dtype=torch.float64)
    assert whole.seeds == seeds
    order = [3, 0, 6, 2, 5, 1, 4]
    permuted = sd.sample(
        model,
        (7, 2),
        solver=solver,
        steps=steps,
        seed=[seeds[i] for i in order],
        dtype=torch.float64,
    )
    torch.testing.assert_close(permuted.x, whole.x[order], rtol=0, atol=1e-9)
    for i in (0, 4):
        alone = sd.sample(
            model, (1, 2), solver=solver, steps=steps, seed=[seeds[i]], dtype=torch.float64
        )
        torch.testing.assert_close(alone.x[0], whole.x[i], rtol=0, atol=1e-9)
    parts = sd.sample(
        model, (7, 2), solver=solver, steps=steps, seed=11, batch_size=3, dtype=torch.float64
    )
    torch.testing.assert_close(parts.x, whole.x, rtol=0, atol=1e-9)
    assert torch.equal(parts.nfe, whole.nfe)
    other = sd.sample(model, (7, 2), solver=solver, steps=steps, seed=12, dtype=torch.float64)
    assert float((other.x - whole.x).abs().min()) > 1e-6


@pytest.mark.parametrize("shape", [(3,), (3, 1), (2, 3, 4, 4), (2, 2, 3, 2, 2)])
@pytest.mark.parametrize(
    "solver",
    [sd.PredictorCorrector(sd.EulerMaruyama(), sd.Langevin()), sd.solvers.Ancestral(), sd.RK45()],
    ids=ids,
)
def test_any_rank_is_the_flat_problem(shape: tuple[int, ...], solver: Solver) -> None:
    """Unit Gaussian data in any shape give what the flattened problem gives."""
    model = sd.ScoreModel(
        lambda x, t: x * sd.VP().sigma(t.double()).to(x).reshape(-1, *(1,) * (x.ndim - 1)), sd.VP()
    )
    steps = None if solver.adaptive else 10
    out = sd.sample(model, shape, solver=solver, steps=steps, seed=0, dtype=torch.float64)
    flat = sd.sample(
        model, (shape[0], out.x[0].numel()), solver=solver, steps=steps, seed=0, dtype=torch.float64
    )
    torch.testing.assert_close(out.x.flatten(), flat.x.flatten(), rtol=0, atol=1e-9)


def test_nfe_is_counted_at_the_network(gaussian: sd.exact.Gaussian) -> None:
    calls = 0
    model = gaussian.model(sd.VP())
    net = model.net

    def counting(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return net(x, t)

    model.net = counting
    expected = {
        sd.EulerMaruyama(): 9,
        sd.Heun(): 17,
        sd.solvers.RungeKutta4(): 33,
        PAIRS[0]: 17,
        PAIRS[1]: 25,
        sd.DDIM(): 9,
    }
    for solver, nfe in expected.items():
        calls = 0
        # 8 steps and the denoising evaluation
        out = sd.sample(model, (3, 2), solver=solver, steps=8, seed=0)
        assert (calls, out.nfe.tolist()) == (nfe, [nfe] * 3), solver
        assert (out.accepted.tolist(), out.rejected.tolist()) == ([8] * 3, [0] * 3)


def test_tableaus_are_checked() -> None:
    with pytest.raises(ValueError, match=r"b breaks a condition of order 1 by -0\.167"):
        Tableau.parse("bad", 1, ["1/2"], "1/2 1/3")
    with pytest.raises(ValueError, match="breaks a condition of order 2"):
        Tableau.parse("bad", 2, ["1/3"], "0 1")
    with pytest.raises(ValueError, match="breaks a condition of order 3"):
        Tableau.parse("bad", 3, ["2/3", "2/3 0"], "1/4 3/8 3/8")
    with pytest.raises(ValueError, match="one weight for each of the 2 stages"):
        Tableau.parse("bad", 1, ["1"], "1")


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    "tableau",
    [DORMAND_PRINCE, BOGACKI_SHAMPINE, TSITOURAS, DOP853],
    ids=lambda tableau: tableau.name,
)
def test_embedded_pairs_have_the_orders_they_claim(
    gaussian: sd.exact.Gaussian, tableau: Tableau
) -> None:
    """With fixed steps: the solution's order over an interval, and the error estimate's over one
    step.
    """

    class Fixed(RungeKutta):
        pass

    class Estimate(RungeKutta):
        adaptive = True

    Fixed.tableau = Estimate.tableau = tableau
    sde, problem = sd.VP(), Reverse(gaussian.model(sd.VP()), 1)
    x = torch.ones(1, 2, dtype=torch.float64)
    errors, estimates = [], []
    ladder = (20, 40, 80) if tableau.order < 8 else (4, 8, 16)
    for n in ladder:
        times = gentle(sde, n)
        out = integrate(problem, Fixed(), x, times).x
        errors.append(float((out - gaussian.flow(sde, x, times[0], times[-1])).abs().max()))
        solver = Estimate(variable="t")
        plan = solver.plan(problem, times[:2])[0]
        step = solver.step(
            problem, x, plan, sd.White([0], (2,)).at(0), solver.init(problem, x, times[0])
        )
        assert step.error is not None
        estimates.append(float(step.error.abs().max()))
    # at order 8 rounding is reached before the slope: the order conditions stand for it
    if tableau.order < 8:
        assert fitted_order(errors) > tableau.order - 0.4, errors
    assert errors[-1] < (1e-7 if tableau.order < 8 else 1e-12)
    assert fitted_order(estimates) == pytest.approx(tableau.error_order, abs=0.5), estimates


def test_a_new_method_is_a_tableau(gaussian: sd.exact.Gaussian) -> None:
    class Ralston(RungeKutta):
        tableau = Tableau.parse("Ralston", 2, ["2/3"], "1/4 3/4")

    sde = sd.VP()
    x = torch.ones(1, 2, dtype=torch.float64)
    errors = []
    for n in (40, 80, 160):
        times = gentle(sde, n)
        out = integrate(Reverse(gaussian.model(sde), 1), Ralston(), x, times).x
        errors.append(float((out - gaussian.flow(sde, x, times[0], times[-1])).abs().max()))
    assert fitted_order(errors) == pytest.approx(2, abs=0.2)


@pytest.mark.slow  # test_carry_solvers.py has it for `sample`
@pytest.mark.parametrize(
    "solver",
    [
        *ODE_ORDERS,
        *STOCHASTIC,
        sd.solvers.SRA1(),
        sd.solvers.SRA3(),
        sd.solvers.StochasticHeun(),
        sd.DDIM(0.5),
        sd.solvers.DormandPrince(),
        sd.solvers.ExponentialSinglestep(3, "noise"),
        sd.ExponentialMultistep(4, corrector=3),
        sd.solvers.EulerTrapezoid(),
        sd.solvers.UniPC(),
        sd.solvers.LMS(4),
        sd.solvers.SDEDPMSolverPP(2),
        sd.solvers.SEEDS(3),
        sd.solvers.ERSDE(3),
        sd.Langevin(),
        PAIRS[0],
        PAIRS[1],
    ],
    ids=ids,
)
def test_coefficients_are_made_once_for_a_grid(solver: Solver) -> None:
    """A solve of more steps asks the SDE and the network's time no more often."""
    asked: list[str] = []

    def counted(name: str) -> Callable[[sd.VP, Tensor], Tensor]:
        return lambda sde, t: (asked.append(name), getattr(sd.VP, name)(sde, t))[1]

    names = ("alpha", "sigma", "f", "g", "log_snr", "time_of")
    sde = type("Counted", (sd.VP,), {name: counted(name) for name in names})()
    model = sd.ScoreModel(
        lambda x, t: torch.tanh(x), sde, time=lambda t: (asked.append("time"), t)[1]
    )
    x, found = torch.ones(2, 2, dtype=torch.float64), []
    for n in (12, 12, 48):  # the first one makes the table from which the SDE inverts its log-SNR
        problem = Reverse(model, 2, float(solver.solves_sde))
        asked.clear()
        integrate(problem, solver, x, gentle(sde, n), sd.White([0, 1], (2,), dtype=torch.float64))
        found.append(Counter(asked))
        assert int(problem.monitor.evaluations.total[0]) >= n
    assert found[1]["time"] >= 1
    assert found[1] == found[2]
