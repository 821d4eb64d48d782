"""Simulation-based calibration: exact posteriors pass, miscalibrated ones fail, and ignoring y is
seen by the log-likelihood alone.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff import posterior
from sdediff.testing import Calibration, calibrate, posterior_draws
from sdediff.testing.ranks import holm

F64 = torch.float64
STD = 0.5
"""Of the noise of y = x_0 + noise, x_0 ~ N(0, I) in the plane."""
PRIOR = torch.randn(2000, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
SEEN = posterior.Linear(lambda x: x, noise_std=STD)


def conjugate(
    y: Tensor, n: int, seed: int, bias: float = 0.0, wide: float = 1.0, know: float = 1.0
) -> Tensor:
    """Draws of N(y / (1 + STD^2), STD^2 / (1 + STD^2)), off by ``bias`` and ``wide`` standard
    deviations; with ``know = 0`` of the prior.
    """
    z = torch.randn(
        (len(y), n, 2), generator=torch.Generator().manual_seed(seed % 2**62), dtype=F64
    )
    variance = STD**2 / (1 + STD**2) if know else 1.0
    return know * y[:, None] / (1 + STD**2) + variance**0.5 * (bias + wide * z)


def ranked(**wrong: float) -> Calibration:
    return calibrate(partial(conjugate, **wrong), None, SEEN, data=PRIOR, seed=1, verbose=False)


def test_draws_of_the_posterior_pass() -> None:
    """A false alarm has probability 0.01, and of coverage (4.5 standard errors) 1e-4."""
    report = ranked()
    assert report.passed
    assert report.ranks.shape == (3, 500)
    assert report.names == ("x[0]", "x[1]", "log-likelihood of y")
    assert report.levels == (0.5, 0.9)
    for found in report.findings:
        for share, level in zip(found.coverage, report.levels, strict=True):
            assert abs(share - level) < 4.5 * report.coverage_error(level)
    assert "data, which tests the method and the network" in str(report)


WRONG: dict[str, tuple[dict[str, float], set[str], str]] = {
    "bias": ({"bias": 0.3}, {"x[0]", "x[1]"}, "draws are too high"),
    "too wide": ({"wide": 1.3}, {"x[0]", "x[1]", "log-likelihood of y"}, "draws are too wide"),
    "too narrow": ({"wide": 0.75}, {"x[0]", "x[1]"}, "draws are too narrow"),
    "ignores y": ({"know": 0.0}, {"log-likelihood of y"}, "draws are too low"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_fails_and_is_said(name: str) -> None:
    """The prior has uniform ranks of x_0, and only the log-likelihood tells that y is ignored."""
    wrong, names, words = WRONG[name]
    report = ranked(**wrong)
    assert not report.passed
    failed = {found.name for found in report.failures}
    assert names <= failed
    assert name != "ignores y" or failed == names
    assert f"fail: {words}" in str(report)


def test_the_p_value_is_uniform_under_uniform_ranks() -> None:
    """The components are orthonormal under the law of the ranks, exactly; 4,000 p-values are
    uniform, and 1 % of them below 0.01, by 4.5 standard errors.
    """
    every = Calibration("data", ("q",), 99, torch.arange(100)[None], 0.01).findings[0]
    assert every.p_value == pytest.approx(1.0)
    assert every.bias == pytest.approx(0.0, abs=1e-12)
    assert every.spread == pytest.approx(0.0, abs=1e-12)
    ranks = torch.randint(0, 100, (4000, 300), generator=torch.Generator().manual_seed(0))
    report = Calibration("data", ("q",) * 4000, 99, ranks, 0.01)
    p = torch.tensor([found.p_value for found in report.findings])
    assert abs(float((p < 0.01).double().mean()) - 0.01) < 4.5 * (0.01 / 4000) ** 0.5
    assert abs(float(p.mean()) - 0.5) < 4.5 * (1 / 12 / 4000) ** 0.5


def test_p_values_are_adjusted_by_holm() -> None:
    """In order 0.01 x 4, 0.02 x 3, 0.03 x 2 and 0.5: never falling."""
    p = torch.tensor([0.03, 0.01, 0.5, 0.02], dtype=F64)
    assert torch.allclose(holm(p), torch.tensor([0.06, 0.04, 0.5, 0.06], dtype=F64))
    assert holm(torch.tensor([0.9, 0.8]).double()).max() == 1


def test_ties_are_broken_at_random() -> None:
    """A quantity of one value has uniform ranks."""
    report = calibrate(
        conjugate, None, SEEN, data=PRIOR, quantities={"one": lambda x: torch.ones(len(x))},
        verbose=False,
    )  # fmt: skip
    assert report.findings[0].p_value > 1e-3
    assert len(report.ranks[0].unique()) > 90


def test_methods_of_the_library_draw_by_one_call(capsys: pytest.CaptureFixture[str]) -> None:
    """Large events have projections; what is drawn is what `sample` draws of each outcome."""
    means = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))
    law = sd.exact.GaussianMixture(means, 0.3)
    model = law.model(sd.VP())
    measured = posterior.Linear(lambda x: x.flatten(1)[:, :2], noise_std=0.5)
    draw = posterior_draws(posterior.PiGDM, model, measured, (3, 4), steps=5)
    y = torch.randn(2, 2, generator=torch.Generator().manual_seed(1))
    own = sd.sample(
        posterior.PiGDM(model, measured, y.repeat_interleave(3, dim=0)), (6, 3, 4), steps=5, seed=7
    )
    assert torch.equal(draw(y, 3, 7), own.x.reshape(2, 3, 3, 4))
    options: dict[str, Any] = {"draws": 9, "replications": 4, "batch_size": 3}
    report = calibrate(draw, model, measured, event=(3, 4), **options)
    assert capsys.readouterr().out == f"{report}\n"
    assert "samples of the model, which tests the method" in str(report)
    assert report.names == (*(f"projection {i}" for i in range(8)), "log-likelihood of y")
    again = calibrate(draw, model, measured, event=(3, 4), verbose=False, **options)
    assert torch.equal(again.ranks, report.ranks)
    particles = posterior_draws(posterior.Particles(16), model, measured, (3, 4), steps=4)
    with pytest.warns(UserWarning, match="not exact"):
        found = particles(y, 9, 0)
    assert found.shape == (2, 9, 3, 4)
    with pytest.raises(ValueError, match="20 draws of 16 particles"):
        particles(y, 20, 0)


def test_ranks_are_drawn(tmp_path: Path) -> None:
    """A panel for each quantity, with its p-value, the bars of all replications."""
    report = ranked(bias=0.3)
    figure = report.plot()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left").split(",")[0] for axes in shown] == list(report.names)
    bars = [bar for bar in shown[0].patches if bar.get_width() < 0.5]
    assert len(bars) == 20
    assert sum(bar.get_height() for bar in bars) == 500
    sd.plots.save_png(figure, tmp_path / "ranks.png")


BLIND: Any = posterior.Nonlinear(torch.sin, lambda y, x: x.sum(dim=1))
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": posterior.Particles(8)}, "method must be a function"),
    "shape": ({"method": lambda y, n, seed: y}, r"must return draws \(R, n, \*event\)"),
    "finite": (
        {"method": lambda y, n, seed: torch.full((len(y), n, 2), torch.nan)}, "not finite",
    ),
    "few data": ({"data": PRIOR[:20]}, "N >= 500"),
    "no x_0": ({"data": None}, "pass one of the two"),
    "both": ({"event": (2,)}, "pass one of the two"),
    "level": ({"level": 1.0}, "level is the probability"),
    "draws": ({"draws": 3}, "draws"),
    "noise": ({"measurement": posterior.Linear(lambda x: x, noise_std=0)}, "noise_std of 0"),
    "nonlinear": ({"measurement": BLIND}, "pass simulate="),
    "quantity": ({"quantities": {"all": lambda x: x}}, "quantity 'all' must return one number"),
    "quantity of NaN": (
        {"quantities": {"log": lambda x: x[:, 0].log()}}, "quantity 'log' is NaN at some x_0",
    ),
    "likelihood of NaN": (
        {
            "measurement": posterior.Nonlinear(torch.sin, lambda y, f: f.sum(dim=1).log()),
            "simulate": lambda x, seed: x,
        },
        "quantity 'log-likelihood of y' is NaN",
    ),
    "quantities": ({"quantities": [torch.sum]}, "dict of functions of x .* got list"),
    "outcomes": (
        {"simulate": lambda x, seed: x[:5]}, r"\(500, \*outcome\); got \(5, 2\)",
    ),
    "more outcomes": (
        {"simulate": lambda x, seed: torch.cat([x, x])}, r"\(500, \*outcome\); got \(1000, 2\)",
    ),
    "outcomes of NaN": ({"simulate": lambda x, seed: x / 0 * 0}, "not finite: look at the data"),
    "taken": ({"quantities": {"log-likelihood of y": torch.sum}}, "always there"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_what_is_wrong(name: str) -> None:
    wrong, match = BAD[name]
    given: dict[str, Any] = {
        "method": conjugate, "model": None, "measurement": SEEN, "data": PRIOR, "verbose": False,
    }  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=match):
        calibrate(**(given | wrong))


def test_a_solver_beside_particles_is_refused() -> None:
    model = sd.exact.Gaussian([0.0, 0.0], 1.0).model(sd.VP())
    with pytest.raises(ValueError, match="is the solver: leave out"):
        posterior_draws(posterior.Particles(8), model, SEEN, (2,), solver=sd.RK45())


def test_methods_and_events_of_another_kind() -> None:
    """An event of one number n is (n,); steps=0 is no default."""
    model = sd.exact.Gaussian([0.0, 0.0], 1.0).model(sd.VP())
    with pytest.raises(TypeError, match=r"method must be a function .* got 'mmps'"):
        posterior_draws("mmps", model, SEEN, (2,))  # type: ignore[arg-type]
    draw: Any = posterior_draws(posterior.PiGDM, model, SEEN, 2, steps=2)
    found = draw(torch.zeros(1, 2), 9, 0)
    assert found.shape == (1, 9, 2)
    options: dict[str, Any] = {"draws": 9, "replications": 4, "verbose": False}
    one = calibrate(draw, model, SEEN, event=2, **options)
    assert torch.equal(one.ranks, calibrate(draw, model, SEEN, event=(2,), **options).ranks)
    none = posterior_draws(posterior.Particles(16), model, SEEN, (2,), steps=0)
    with pytest.raises(ValueError, match="steps must be an int of at least 1"):
        none(torch.zeros(1, 2), 9, 0)


LAW = sd.exact.GaussianMixture([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0]], 0.3)
H = torch.tensor([[1.0, 0.5]], dtype=F64)
MEASURED = posterior.Linear(lambda x: x @ H.T.to(x), noise_std=0.3)
MODEL = LAW.model(sd.VP())


def exact(y: Tensor, n: int, seed: int) -> Tensor:
    """Samples of the models whose scores are those of the posteriors."""
    return torch.stack(
        [
            sd.sample(LAW.posterior(H, each, 0.3).model(sd.VP()), (n, 2), steps=20, seed=own).x
            for each, own in zip(y, sd.seeds(seed, len(y)), strict=True)
        ]
    )


METHODS: dict[str, tuple[Any, bool]] = {
    "exact score": (exact, True),
    "particles": (
        posterior_draws(posterior.Particles(500, islands=4), MODEL, MEASURED, (2,), steps=50), True,
    ),
    "DPS": (posterior_draws(posterior.DPS, MODEL, MEASURED, (2,), steps=100), False),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the particles of sample")
@pytest.mark.parametrize("name", METHODS)
def test_calibration_tells_methods_apart(name: str) -> None:
    """99 draws a rank, 500 replications: the right ones pass, DPS does not."""
    method, right = METHODS[name]
    report = calibrate(method, MODEL, MEASURED, event=(2,))
    assert report.passed == right, str(report)
