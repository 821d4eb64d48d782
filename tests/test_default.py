"""The default solver: the rule, what it costs, and that it is better than what it was chosen over (docs/solvers.md)."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import sdediff as sd
from solvers import GRIDS, LogSNR

SDES = [sd.VP(), sd.VE(), sd.SubVP(), sd.Cosine(), sd.EDM(), sd.RectifiedFlow()]
each_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)


def mixture(seed: int = 3, d: int = 2, stds: float = 0.1) -> sd.exact.GaussianMixture:
    means = torch.randn(8, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    means = (means - means.mean(dim=0)) / means.var(dim=0, correction=0).mean().sqrt() * (1 - stds**2) ** 0.5
    return sd.exact.GaussianMixture(means, stds=stds)


def spaced(sde: sd.LinearSDE, name: str, steps: int) -> Tensor:
    return GRIDS[name](steps, sde.t_max, sde.t_min, LogSNR(sde.log_snr, sde.time_of))


@each_sde
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 12, 25, 60])
def test_costs_one_evaluation_a_step_and_one_at_the_end(sde: sd.LinearSDE, steps: int) -> None:
    out = sd.sample(mixture().model(sde), (3, 2), steps=steps, seed=0)
    assert out.nfe.tolist() == [steps + 1] * 3
    assert bool(torch.isfinite(out.x).all())
    torch.testing.assert_close(out.times, spaced(sde, "logistic", steps))


@pytest.mark.parametrize(("steps", "order", "corrector"), [(1, 2, 0), (11, 2, 0), (12, 3, 3), (24, 3, 3), (25, 4, 4), (80, 4, 4)])
def test_the_rule(steps: int, order: int, corrector: int) -> None:
    rule = sd.ExponentialMultistep(order, form=0.4, corrector=corrector, startup="published")
    one, two = (sd.sample(mixture().model(sd.VP()), (3, 2), solver=solver, steps=steps, seed=0).x for solver in (None, rule))
    assert torch.equal(one, two)


@each_sde
def test_median_error_is_below_unipc_on_every_grid(sde: sd.LinearSDE) -> None:
    """At 20 evaluations, UniPC as published, of order 2 and 3: at most 0.9 of the best of its eight errors."""
    model, x = mixture().model(sde), sd.sample(mixture().model(sde), (256, 2), grid=[sde.t_max], last="noisy", seed=5).x.double()

    def error(solver: sd.Solver | None, grid: Tensor) -> float:
        out = sd.sample(model, (256, 2), solver=solver, grid=grid, x_init=x, last="noisy", seed=0, dtype=torch.float64)
        assert int(out.nfe.max()) == len(grid) - 1
        return float((out.x - exact).square().mean(dim=1).sqrt().median())

    fine = spaced(sde, "log_snr", 200)
    exact = sd.sample(
        model, (256, 2), solver=sd.DormandPrince(variable="log_snr"), grid=fine, x_init=x, last="noisy", seed=0, dtype=torch.float64
    ).x
    published = [
        error(sd.UniPC(order, startup="published", lower_final=low), spaced(sde, name, 20))
        for order, low, name in itertools.product((2, 3), (False, True), ("uniform", "log_snr", "karras"))
    ]
    assert error(None, spaced(sde, "logistic", 20)) < 0.9 * min(published)


@each_sde
@pytest.mark.parametrize("stochasticity", [0.5, 1.0])
def test_stochastic_default_has_the_right_spread(sde: sd.LinearSDE, stochasticity: float) -> None:
    """Within 2 % at 20 evaluations, of lambda = 1 and of less."""
    data = mixture(d=16)
    out = sd.sample(data.model(sde), (2000, 16), steps=10, stochasticity=stochasticity, last="noisy", seed=1)
    assert int(out.nfe.max()) == 20
    alpha, sigma = float(sde.alpha(sde.t_min)), float(sde.sigma(sde.t_min))
    apart = torch.cdist(out.x.double(), alpha * data.means).min(dim=1).values
    spread = float((apart.square().mean() / 16 / (alpha**2 * 0.01 + sigma**2)).sqrt())
    assert abs(spread - 1) < 0.02


def test_where_there_is_no_kernel_or_no_steps() -> None:
    class Well(sd.SDE):
        def drift(self, x: Tensor, t: Tensor) -> Tensor:
            return x - x**3

        def diffusion(self, t: Tensor) -> float:
            return 1.0

    well = sd.ScoreModel(lambda x, t: 2 * (x - x**3), Well(), predicts="score")
    start = torch.zeros(3, 1)
    drawn = sd.sample(well, (3, 1), steps=9, x_init=start, seed=0)
    assert torch.equal(drawn.x, sd.sample(well, (3, 1), solver=sd.EulerMaruyama(), steps=9, x_init=start, seed=0).x)
    torch.testing.assert_close(drawn.times, torch.linspace(1, 1e-3, 10, dtype=torch.float64))
    adaptive = sd.sample(mixture().model(sd.VP()), (3, 2), seed=0)
    assert torch.equal(adaptive.x, sd.sample(mixture().model(sd.VP()), (3, 2), solver=sd.RK45(), seed=0).x)


@pytest.mark.parametrize("stochasticity", [None, 0.0, 0.5, lambda t: t])
def test_starts_at_infinite_log_snr(stochasticity: object) -> None:
    """The first step is then one of order 1 in data form; a grid of the user's own is taken as it is."""
    for sde in (sd.RectifiedFlow(t_max=1.0), sd.Cosine(t_max=1.0)):
        model = mixture().model(sde)
        for steps in (1, 2, 6, 20, 40):
            out = sd.sample(model, (4, 2), steps=steps, seed=0, stochasticity=stochasticity)
            assert bool(torch.isfinite(out.x).all())
    out = sd.sample(mixture().model(sd.VP()), (4, 2), grid=[1.0, 0.5, 0.2, 0.1], seed=0, stochasticity=stochasticity)
    assert out.times.tolist() == [1.0, 0.5, 0.2, 0.1]
    part = sd.sample(mixture().model(sd.VP()), (4, 2), steps=6, t_end=0.3, seed=0)
    assert float(part.times[-1]) == 0.3


@each_sde
@pytest.mark.parametrize("predicts", ["noise", "data", "score", "v", "flow", "edm"])
def test_float32_follows_float64_whatever_the_network_predicts(sde: sd.LinearSDE, predicts: str) -> None:
    exact = mixture().model(sde)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return exact.net(x, t)

    model = sd.ScoreModel(net, sde, predicts=exact.predicts) if predicts == exact.predicts else _as(exact, predicts)
    single, double = (sd.sample(model, (6, 2), steps=30, seed=1, dtype=dtype).x for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-3)


def _as(exact: sd.ScoreModel, predicts: str) -> sd.ScoreModel:
    """A network that predicts the same in another way."""
    if predicts == "edm":
        read = sd.ScoreModel(lambda x, t: x, exact.sde, "edm", sigma_data=1.0)

        def net(x: Tensor, t: Tensor) -> Tensor:
            t = t.double()
            x = x / read.inputs(t, torch.float64, t.device)[0][:, None].to(x.dtype)
            return read.target(exact.data(x, t), exact.noise(x, t), t)

        return sd.ScoreModel(net, exact.sde, "edm", sigma_data=1.0, time_dtype=torch.float64)
    return sd.ScoreModel(lambda x, t: getattr(exact, predicts)(x, t), exact.sde, predicts=predicts)
