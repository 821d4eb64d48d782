"""Straight flows: how straightness is measured, and one step by reflow and distillation."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

import sdediff as sd
from sdediff.networks import MLP
from sdediff.networks.choice import initialised
from sdediff.objectives import Coupled, FlowMatching, StepTimes, reflow, straightness

F64 = torch.float64
SDE = sd.RectifiedFlow()
ONE = {"grid": "uniform", "last": "noisy"}


def test_step_times_are_those_from_which_steps_start():
    model = sd.exact.Gaussian([0.0], [1.0]).model(SDE)
    for steps in (1, 2, 4):
        u = (torch.arange(8 * steps, dtype=F64) + 0.5) / (8 * steps)
        found = StepTimes(steps)(SDE, torch.cat([torch.zeros(1, dtype=F64), u, torch.ones(1)]))
        out = sd.sample(model, (1, 1), solver=sd.DDIM(), steps=steps, seed=0, **ONE)
        expected = out.times[:-1].flip(0)
        torch.testing.assert_close(found[1:-1], expected.repeat_interleave(8), rtol=1e-12, atol=0)
        torch.testing.assert_close(found[[0, -1]], expected[[0, -1]], rtol=1e-12, atol=0)


def test_distillation_into_one_step_is_the_error_of_the_data():
    """|x_0 - (z - net(z, 1))|^2 on pairs (x_0, z), where sampling starts at no signal."""
    model = sd.ScoreModel(lambda x, t: 0.3 * x, sd.RectifiedFlow(t_max=1.0), "flow")
    pairs = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    x_0, z = pairs.unbind(dim=1)
    generator = torch.Generator().manual_seed(1)
    found = Coupled(FlowMatching(times=StepTimes(1)))(model, pairs, generator=generator)
    torch.testing.assert_close(found, (x_0 - 0.7 * z).square().mean(dim=1), rtol=1e-12, atol=0)


def test_straightness_of_known_flows():
    """The flow to one point is straight; that of a Gaussian of standard deviation s has x_t in
    proportion to sqrt((1 - t)^2 s^2 + t^2), by quadrature; its reflow, the same pairs joined by
    lines, is straight, and one step of it takes noise to the pair's data.
    """
    point = sd.ScoreModel(lambda x, t: (x - 0.7) / t[:, None], SDE, "flow")
    assert float(straightness(point, (4, 2), seed=1).max()) < 1e-5  # float32
    s = 0.2
    model = sd.exact.Gaussian([0.0], [s**2]).model(SDE)
    low, high = SDE.t_min, SDE.t_max

    def size(t: float) -> float:
        return math.sqrt((1 - t) ** 2 * s**2 + t**2)

    def rate(t: float) -> float:
        return (t - (1 - t) * s**2) / size(t)

    energy = quad(lambda t: rate(t) ** 2, low, high, epsabs=1e-12, limit=200)[0]
    expected = energy * (high - low) / (size(high) - size(low)) ** 2 - 1
    found = straightness(model, (3, 1), solver=sd.Heun(), steps=400, seed=2)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-3, atol=0)
    assert expected > 0.05
    again = sd.ScoreModel(
        lambda x, t: (1 - s) * x / ((1 - t) * s + t)[:, None], sd.RectifiedFlow(), "flow"
    )
    assert float(straightness(again, (3, 1), seed=2).max()) < 1e-5
    pairs = reflow(model, (20, 1), solver=sd.RK45(1e-6, 1e-6), seed=4)
    out = sd.sample(again, (20, 1), solver=sd.DDIM(), steps=1, seed=4, **ONE)
    assert out.nfe.tolist() == [1] * 20
    torch.testing.assert_close(out.x, pairs[:, 0], rtol=0, atol=3e-3)  # noise left at t_min


def test_straightness_refuses_noise():
    model = sd.exact.Gaussian([0.0], [1.0]).model(SDE)
    with pytest.raises(ValueError, match="take a solver of the flow"):
        straightness(model, (3, 1), solver=sd.EulerMaruyama())
    with pytest.raises(ValueError, match="steps"):
        StepTimes(0)


def two_moons(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    side = torch.where(torch.rand(count, 1, generator=generator) < 0.5, 1.0, -1.0)
    return side * upper + 0.06 * torch.randn(count, 2, generator=generator)


@pytest.mark.uses_global_rng
@pytest.mark.slow
def test_two_moons_in_one_step(tmp_path: Path):
    """One evaluation of a distilled flow, with and without reflow: the energy distance squared to
    fresh data is at most 5 % of that of the Gaussian of the same moments. The flow itself is far
    from it in one step; reflow straightens it.
    """
    count = 12_000
    fresh = two_moons(count, 2)
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(3))
    gaussian = fresh.mean(dim=0) + z @ torch.linalg.cholesky(fresh.T.cov()).T
    whole = float(sd.metrics.energy_distance(gaussian, fresh))
    between = sd.metrics.energy_distance(two_moons(count, 4), fresh, floor=20).floor
    assert between.quantile < 0.04 * whole  # 95 % of distances between two samples of the data

    def trained(model: sd.ScoreModel, data: Tensor, loss, steps: int, name: str) -> sd.ScoreModel:
        given = {"steps": steps, "batch_size": 256, "lr": 2e-3, "ema": 0.99}
        return sd.fit(copy.deepcopy(model), data, out=tmp_path / name, loss=loss, **given)

    def ratio(model: sd.ScoreModel) -> float:
        out = sd.sample(model, (count, 2), solver=sd.DDIM(), steps=1, seed=7, **ONE)
        assert int(out.nfe.max()) == 1
        return float(sd.metrics.energy_distance(out.x, fresh)) / whole

    loss = FlowMatching(stratified=True)
    one_step = Coupled(FlowMatching(times=StepTimes(1)))
    net = initialised(lambda: MLP(2, 128, 3), 0)
    flow = trained(sd.ScoreModel(net, SDE, "flow"), two_moons(20_000, 1), loss, 3000, "flow")
    found, bent = {"flow": ratio(flow)}, []
    for name in ("distilled", "reflowed and distilled"):
        bent.append(float(straightness(flow, (512, 2)).median()))
        pairs = reflow(flow, (20_000, 2), solver=sd.RK45(1e-3, 1e-3), seed=10 + len(bent))
        found[name] = ratio(trained(flow, pairs, one_step, 2000, name))
        flow = trained(flow, pairs, Coupled(loss), 2000, f"flow after {name}")
    assert found["flow"] > 0.3, found
    assert found["distilled"] <= 0.05, found
    assert found["reflowed and distilled"] <= 0.05, found
    assert bent[1] < 0.5 * bent[0], bent
