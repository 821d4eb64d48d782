"""The default solver: the rule, what it costs, and that it is better than what it was chosen over
(docs/solvers.md).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from all_methods import Method, law_errors
from pairwise import pairwise
from torch import Tensor

import sdediff as sd
from sdediff.arguments import default_solver
from sdediff.options import Stochasticity
from sdediff.predict import target
from sdediff.solvers import GRIDS, LogSNR
from sdediff.solvers.arithmetic import Like

SDES = [sd.VP(), sd.VE(), sd.SubVP(), sd.Cosine(), sd.EDM(), sd.RectifiedFlow()]
each_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)


MOST = {8: 0.6, 20: 0.25}
"""Share of the best published error at that many steps."""


SPREAD = {7: 0.2, 9: 0.18, 14: 0.13}
"""Most of the log of the spread over the right one, on Gaussian data at that many steps."""


def mixture(seed: int = 3, d: int = 2, stds: float = 0.1) -> sd.exact.GaussianMixture:
    means = torch.randn(8, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    means = (
        (means - means.mean(dim=0))
        / means.var(dim=0, correction=0).mean().sqrt()
        * (1 - stds**2) ** 0.5
    )
    return sd.exact.GaussianMixture(means, stds=stds)


def spaced(sde: sd.LinearSDE, name: str, steps: int) -> Tensor:
    return GRIDS[name](steps, sde.t_max, sde.t_min, LogSNR(sde.log_snr, sde.time_of))


@pytest.mark.thin(18)
@each_sde
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 12, 25, 60])
def test_costs_one_evaluation_a_step_and_one_at_the_end(sde: sd.LinearSDE, steps: int) -> None:
    out = sd.sample(mixture().model(sde), (3, 2), steps=steps, seed=0)
    assert out.nfe.tolist() == [steps + 1] * 3
    assert bool(torch.isfinite(out.x).all())
    torch.testing.assert_close(out.times, spaced(sde, "inner", steps))


@pytest.mark.parametrize(
    ("steps", "order", "corrector"),
    [(1, 2, 2), (7, 2, 2), (8, 3, 3), (14, 3, 3), (15, 4, 3), (19, 4, 3), (20, 4, 4), (80, 4, 4)],
)
def test_the_rule(steps: int, order: int, corrector: int) -> None:
    form = sd.solvers.Straight(0.1)
    rule = sd.ExponentialMultistep(
        order, form=form, variable="angle", corrector=corrector, startup="published"
    )
    one, two = (
        sd.sample(mixture().model(sd.VP()), (3, 2), solver=solver, steps=steps, seed=0).x
        for solver in (None, rule)
    )
    assert torch.equal(one, two)


@pytest.mark.thin(1)
@pairwise("sde, steps", SDES, MOST)
def test_median_error_is_below_published_ones_on_every_grid(sde: sd.LinearSDE, steps: int) -> None:
    """UniPC of order 2 and 3, as published, and iPNDM, on three grids: at most that much of the
    best of their errors.
    """
    model, x = (
        mixture().model(sde),
        sd.sample(
            mixture().model(sde), (256, 2), grid=[sde.t_max], last="noisy", seed=5
        ).x.double(),
    )

    def error(solver: sd.Solver | None, grid: Tensor) -> float:
        out = sd.sample(
            model,
            (256, 2),
            solver=solver,
            grid=grid,
            x_init=x,
            last="noisy",
            seed=0,
            dtype=torch.float64,
        )
        assert int(out.nfe.max()) == len(grid) - 1
        return float((out.x - exact).square().mean(dim=1).sqrt().median())

    fine = spaced(sde, "log_snr", 100)
    exact = sd.sample(
        model,
        (256, 2),
        solver=sd.solvers.DormandPrince(variable="log_snr"),
        grid=fine,
        x_init=x,
        last="noisy",
        seed=0,
        dtype=torch.float64,
    ).x
    unipc = [
        sd.solvers.UniPC(order, startup="published", lower_final=low)
        for order in (2, 3)
        for low in (False, True)
    ]
    others = [
        *unipc,
        sd.solvers.IPNDM(3, startup="published"),
        sd.solvers.IPNDM(4, startup="published"),
    ]
    published = [
        error(s, spaced(sde, name, steps))
        for s, name in itertools.product(others, ("uniform", "log_snr", "karras"))
    ]
    assert error(None, spaced(sde, "inner", steps)) < MOST[steps] * min(published)


NOISY = sd.ExponentialMultistep(
    2, form=sd.solvers.Straight(0.1), variable="angle", corrector=1, sde=True
)
"""The stochastic default."""


@pairwise("sde, steps", SDES, [1, 2, 9, 20, 31])
def test_evaluations_of_the_stochastic_default(sde: sd.LinearSDE, steps: int) -> None:
    """One a step, and one at the end: counted by the network too."""
    exact, calls = mixture().model(sde), list[int]()

    def net(x: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x))
        return exact.data(x, t.double())

    model = sd.ScoreModel(net, sde, "data", data_std=1.0)
    out = sd.sample(model, (3, 2), steps=steps, stochasticity=1.0, seed=0)
    assert out.nfe.tolist() == [steps + 1] * 3
    assert calls == [3] * (steps + 1)
    assert bool(torch.isfinite(out.x).all())


@pairwise("sde, steps, stochasticity", SDES, [1, 15, 31], [0.5, 1.0, torch.ones_like])
def test_the_stochastic_rule(sde: sd.LinearSDE, steps: int, stochasticity: Stochasticity) -> None:
    """The default is that value to the last bit, on its grid."""
    model = mixture().model(sde)
    own, named = (
        sd.sample(model, (3, 2), solver=solver, steps=steps, stochasticity=stochasticity, seed=0)
        for solver in (None, NOISY)
    )
    assert torch.equal(own.x, named.x)
    torch.testing.assert_close(own.times, spaced(sde, "central", steps))


def spread(sde: sd.LinearSDE, solver: sd.Solver, steps: int, grid: str, std: float) -> float:
    """|log| of the samples' standard deviation over the right one, of data N(0, std^2)."""
    times = spaced(sde, grid, steps)
    _, covariance = sd.exact.Gaussian(0.0, std**2).chain(sde, solver, times, stochasticity=1.0)
    alpha, sigma = float(sde.alpha(times[-1])), float(sde.sigma(times[-1]))
    return abs(0.5 * math.log(float(covariance) / (alpha**2 * std**2 + sigma**2)))


@each_sde
@pytest.mark.parametrize("stochasticity", [0.5, 1.0])
def test_stochastic_default_has_the_right_spread(sde: sd.LinearSDE, stochasticity: float) -> None:
    """Within 2 % at 19 evaluations, of lambda = 1 and of less."""
    data = mixture(d=16)
    out = sd.sample(
        data.model(sde), (2000, 16), steps=19, stochasticity=stochasticity, last="noisy", seed=1
    )
    assert int(out.nfe.max()) == 19
    alpha, sigma = float(sde.alpha(sde.t_min)), float(sde.sigma(sde.t_min))
    apart = torch.cdist(out.x.double(), alpha * data.means).min(dim=1).values
    spread = float((apart.square().mean() / 16 / (alpha**2 * 0.01 + sigma**2)).sqrt())
    assert abs(spread - 1) < 0.02


@pairwise("sde, steps", SDES, SPREAD)
def test_spread_of_the_stochastic_default_on_gaussian_data(sde: sd.LinearSDE, steps: int) -> None:
    """Without Monte Carlo: at most that off in log, and less than a third of the ancestral sampler
    on the best of three grids, at as many evaluations.
    """
    for std in (0.1, 0.3):
        ours = spread(sde, NOISY, steps, "central", std)
        grids = ("uniform", "log_snr", "karras")
        ancestral = min(spread(sde, sd.solvers.Ancestral(), steps, each, std) for each in grids)
        assert ours < min(SPREAD[steps], 0.33 * ancestral)


@pairwise("sde, steps", SDES, [32, 64, 128])
def test_law_of_the_stochastic_default_has_order_2(sde: sd.LinearSDE, steps: int) -> None:
    """Errors of mean and standard deviation, which fall faster than that while they are of both
    signs: at most 0.7 / N^2.
    """
    solver = default_solver(sde, steps, stochastic=True)
    (error,) = law_errors(sde, Method(solver), (steps,))
    assert error < 0.7 / steps**2


def test_the_stochastic_default_of_a_process_of_ones_own() -> None:
    """Processes with one sigma / alpha and any alpha have the same samples, for the same start in
    units of alpha.
    """
    vp = sd.VP()
    times = spaced(vp, "central", 9)
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def drawn(alpha: Callable[[Tensor], Tensor]) -> Tensor:
        own = sd.LinearSDE(alpha=alpha, sigma=lambda t: alpha(t) * torch.exp(-0.5 * vp.log_snr(t)))
        return sd.sample(
            mixture().model(own),
            (6, 2),
            grid=times,
            x_init=alpha(times[0]) * z,
            stochasticity=1.0,
            seed=0,
            dtype=torch.float64,
        ).x

    torch.testing.assert_close(drawn(torch.ones_like), drawn(vp.alpha), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        drawn(torch.ones_like), drawn(lambda t: 3 - 2 * t**2), rtol=0, atol=1e-9
    )


@pytest.mark.slow
@pairwise("sde, steps", SDES, [7, 9])
def test_energy_distance_is_below_that_of_published_stochastic_solvers(
    sde: sd.LinearSDE, steps: int
) -> None:
    """Of 4,000 samples, at most 0.8 of the best of three solvers on three grids."""
    law = mixture()
    true = law.sample(4000, seed=11)

    def energy(solver: sd.Solver | None, grid: str | None) -> float:
        noise = 1.0 if solver is None else None
        out = sd.sample(
            law.model(sde),
            (4000, 2),
            solver=solver,
            steps=steps,
            grid=grid,
            stochasticity=noise,
            seed=3,
        )
        return float(sd.metrics.energy_distance(out.x.double(), true))

    peers = [sd.solvers.ERSDE(3), sd.solvers.SDEDPMSolverPP(2), sd.solvers.Ancestral()]
    grids = ("uniform", "log_snr", "karras")
    best = min(energy(each, grid) for each, grid in itertools.product(peers, grids))
    assert energy(None, None) < 0.8 * best


def test_where_there_is_no_kernel_or_no_steps() -> None:
    class Well(sd.SDE):
        def drift(self, x: Tensor, t: Tensor) -> Tensor:
            return x - x**3

        def diffusion(self, t: Tensor) -> float:
            return 1.0

    well = sd.ScoreModel(lambda x, t: 2 * (x - x**3), Well(), predicts="score")
    start = torch.zeros(3, 1)
    drawn = sd.sample(well, (3, 1), steps=9, x_init=start, seed=0)
    assert torch.equal(
        drawn.x, sd.sample(well, (3, 1), solver=sd.EulerMaruyama(), steps=9, x_init=start, seed=0).x
    )
    torch.testing.assert_close(drawn.times, torch.linspace(1, 1e-3, 10, dtype=torch.float64))
    adaptive = sd.sample(mixture().model(sd.VP()), (3, 2), seed=0)
    assert torch.equal(
        adaptive.x, sd.sample(mixture().model(sd.VP()), (3, 2), solver=sd.RK45(), seed=0).x
    )


@pytest.mark.thin(2)
@pytest.mark.parametrize("stochasticity", [None, 0.0, 0.5, lambda t: t])
def test_starts_at_infinite_log_snr(stochasticity: object) -> None:
    """And on a grid of the user's own, which is taken as it is."""
    for sde in (sd.RectifiedFlow(t_max=1.0), sd.Cosine(t_max=1.0)):
        model = mixture().model(sde)
        for steps in (1, 2, 20):
            out = sd.sample(model, (4, 2), steps=steps, seed=0, stochasticity=stochasticity)
            assert bool(torch.isfinite(out.x).all())
    out = sd.sample(
        mixture().model(sd.VP()),
        (4, 2),
        grid=[1.0, 0.5, 0.2, 0.1],
        seed=0,
        stochasticity=stochasticity,
    )
    assert out.times.tolist() == [1.0, 0.5, 0.2, 0.1]
    part = sd.sample(mixture().model(sd.VP()), (4, 2), steps=6, t_end=0.3, seed=0)
    assert float(part.times[-1]) == 0.3


@pytest.mark.parametrize("family", [sd.RectifiedFlow, sd.Cosine])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_a_start_at_infinite_log_snr_costs_no_accuracy(
    family: type[sd.RectifiedFlow | sd.Cosine], steps: int
) -> None:
    """The same states as from log-SNR -20, but for what differs there: 5e-5 of the data."""
    near, far = family(), family(t_max=1.0)
    ends = [
        sd.sample(mixture(d=16).model(sde), (32, 16), steps=steps, seed=2, dtype=torch.float64).x
        for sde in (near, far)
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=2e-3)


@pairwise("sde, predicts", SDES, ["noise", "data", "score", "v", "flow", "edm"])
def test_float32_follows_float64_whatever_the_network_predicts(
    sde: sd.LinearSDE, predicts: str
) -> None:
    exact = mixture().model(sde)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return exact.net(x, t)

    model = (
        sd.ScoreModel(net, sde, predicts=exact.predicts)
        if predicts == exact.predicts
        else _as(exact, predicts)
    )
    single, double = (
        sd.sample(model, (6, 2), steps=30, seed=1, dtype=dtype).x
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-3)


def _as(exact: sd.ScoreModel, predicts: str) -> sd.ScoreModel:
    """A network that predicts the same in another way."""
    if predicts == "edm":
        read = sd.ScoreModel(lambda x, t: x, exact.sde, "edm", sigma_data=1.0)

        def net(x: Tensor, t: Tensor) -> Tensor:
            t = t.double()
            x = x / read.at(t[None], Like.of(x))[0].scale
            return target(read, exact.data(x, t), exact.noise(x, t), t)

        return sd.ScoreModel(net, exact.sde, "edm", sigma_data=1.0, time_dtype=torch.float64)
    return sd.ScoreModel(lambda x, t: getattr(exact, predicts)(x, t), exact.sde, predicts=predicts)
