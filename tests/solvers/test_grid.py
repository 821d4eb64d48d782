"""Grids by name: the published formulas, exact ends, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.solvers import GRIDS, LogSNR
from sdediff.solvers.grid import karras, logistic, polyexponential

SDES = [sd.VP(), sd.VE(), sd.SubVP(), sd.Cosine(), sd.EDM(), sd.RectifiedFlow()]
each_sde = pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)


def schedule(sde: sd.LinearSDE, *, bounded: bool = False) -> LogSNR:
    return LogSNR(sde.log_snr, sde.time_of, bounded=bounded)


def grid(name: str, steps: int, sde: sd.LinearSDE) -> Tensor:
    return GRIDS[name](steps, sde.t_max, sde.t_min, schedule(sde))


@each_sde
@pytest.mark.parametrize("steps", [1, 2, 7, 500])
@pytest.mark.parametrize("name", GRIDS)
def test_ends_are_exact_and_times_fall(name: str, steps: int, sde: sd.LinearSDE) -> None:
    times = grid(name, steps, sde)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert (float(times[0]), float(times[-1])) == (sde.t_max, sde.t_min)
    assert bool((times.diff() < 0).all())


@each_sde
def test_log_snr_is_uniform(sde: sd.LinearSDE) -> None:
    level = sde.log_snr(grid("log_snr", 9, sde))
    torch.testing.assert_close(
        level, torch.linspace(float(level[0]), float(level[-1]), 10, dtype=torch.float64)
    )


def test_karras_is_the_published_formula() -> None:
    """Karras et al. 2022, eq. 5, under their SDE, where t is the standard deviation."""
    sde, n, rho = sd.EDM(), 18, 7
    least, most = 0.002 ** (1 / rho), 80 ** (1 / rho)
    published = [(most + i / (n - 1) * (least - most)) ** rho for i in range(n)]
    torch.testing.assert_close(
        grid("karras", n - 1, sde), torch.tensor(published, dtype=torch.float64), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("rho", [0.5, 1.0, 3.0])
def test_polyexponential_is_the_published_formula(rho: float) -> None:
    """sigma_i = exp(ramp (log sigma_max - log sigma_min) + log sigma_min), ramp = linspace(1, 0,
    n)^rho.
    """
    sde = sd.EDM(0.0292, 14.6146)
    ramp = torch.linspace(1, 0, 10, dtype=torch.float64) ** rho
    published = (ramp * math.log(14.6146 / 0.0292) + math.log(0.0292)).exp()
    got = polyexponential(9, 14.6146, 0.0292, schedule(sde), rho=rho)
    torch.testing.assert_close(got, published, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="rho must be a positive number, got 0"):
        polyexponential(9, 14.0, 0.03, schedule(sde), rho=0)


@each_sde
def test_karras_is_in_sigma_over_alpha(sde: sd.LinearSDE) -> None:
    times = karras(6, sde.t_max, sde.t_min, schedule(sde), rho=3.0)
    root = (sde.sigma(times) / sde.alpha(times)) ** (1 / 3)
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(6), rtol=1e-6, atol=0)


@each_sde
@pytest.mark.parametrize(("steps", "width"), [(5, 4.0), (20, 5.0)])
def test_logistic_is_its_formula(sde: sd.LinearSDE, steps: int, width: float) -> None:
    place = 1 / (1 + (-(sde.log_snr(grid("logistic", steps, sde)) - 2) / width).exp())
    torch.testing.assert_close(place.diff(), place.diff().mean().expand(steps), rtol=1e-6, atol=0)


@each_sde
@pytest.mark.parametrize(
    ("steps", "centre", "width"),
    [(4, 0.75, 3.5), (19, 0.75, 3 + 2 / 19), (20, 0.75, 3.1), (50, 0.3, 3.04)],
)
@pytest.mark.parametrize("name", ["central", "inner"])
def test_central_is_its_formula(
    name: str, sde: sd.LinearSDE, steps: int, centre: float, width: float
) -> None:
    """Of `inner` with few steps the places are those between log-SNR -10.2 and 10.2."""
    times = grid(name, steps, sde)
    levels = sde.log_snr(times)
    cut = levels.clamp(-10.2, 10.2) if name == "inner" and steps < 20 else levels
    place = 1 / (1 + (-(cut - centre) / width).exp())
    torch.testing.assert_close(place.diff(), place.diff().mean().expand(steps), rtol=1e-6, atol=0)
    assert times[[0, -1]].tolist() == [sde.t_max, sde.t_min]


def test_inner_cuts_nothing_on_one_side_of_the_middle() -> None:
    """A start at log-SNR 11 would have no room up to 10.2."""
    sde = sd.RectifiedFlow()
    start = float(sde.time_of(torch.tensor([11.0], dtype=torch.float64)))
    whole, cut = (GRIDS[name](6, start, sde.t_min, schedule(sde)) for name in ("central", "inner"))
    assert torch.equal(whole, cut)
    assert not torch.equal(grid("central", 6, sde), grid("inner", 6, sde))


@each_sde
@pytest.mark.parametrize(("name", "steps"), [("central", 6), ("inner", 6), ("inner", 20)])
def test_where_details_are_fine_only_high_noise_is_cut(
    name: str, steps: int, sde: sd.LinearSDE
) -> None:
    far = math.log(1 / 0.003)
    times = GRIDS[name](steps, sde.t_max, sde.t_min, schedule(sde)._replace(details=0.003))
    levels = sde.log_snr(times)
    levels = levels.clamp(min=-10.2) if (name, steps) == ("inner", 6) else levels
    place = 1 / (1 + (-(levels - 0.65 * far) / (1.6 + 0.55 * far)).exp())
    torch.testing.assert_close(place.diff(), place.diff().mean().expand(steps), rtol=1e-6, atol=0)


def test_logistic_of_centre_0_and_width_2_is_uniform_under_straight_lines() -> None:
    sde = sd.RectifiedFlow()
    times = logistic(10, sde.t_max, sde.t_min, schedule(sde), centre=0.0, width=2.0)
    torch.testing.assert_close(times, grid("uniform", 10, sde), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["log_snr", "karras", "logistic", "central", "inner"])
def test_what_has_no_finite_log_snr_is_refused(name: str) -> None:
    sde = sd.RectifiedFlow(t_max=1.0)
    with pytest.raises(ValueError, match=r"-inf at t = 1: start below"):
        GRIDS[name](5, 1.0, sde.t_min, schedule(sde))
    with pytest.raises(ValueError, match=r"inf at t = 0: end above"):
        GRIDS[name](5, 0.5, 0.0, schedule(sde))
    with pytest.raises(ValueError, match="needs a Gaussian kernel; take grid='uniform'"):
        GRIDS[name](5, 1.0, 0.1, None)
    bounded = GRIDS[name](5, 1.0, 0.0, schedule(sde, bounded=True))
    assert (float(bounded[0]), float(bounded[-1])) == (1.0, 0.0)
    assert bool((bounded.diff() < 0).all())
    assert math.isclose(
        float(sde.log_snr(GRIDS["log_snr"](4, 1.0, 0.0, schedule(sde, bounded=True))[1])),
        -10.0,
        abs_tol=1e-6,
    )


def test_sample_takes_grids_by_name() -> None:
    model = sd.exact.Gaussian([0.2, -0.1], 0.25).model(sd.VP())
    for name in GRIDS:
        out = sd.sample(model, (1, 2), solver=sd.DDIM(), steps=4, grid=name, seed=0)
        # in units of the data's size, 0.5
        torch.testing.assert_close(out.times, grid(name, 4, sd.VP().scaled(2.0)))
    with pytest.raises(ValueError, match="did you mean 'karras'"):
        sd.sample(model, (1, 2), solver=sd.DDIM(), steps=4, grid="karas", seed=0)
    exact = sd.exact.Gaussian([0.2, -0.1], 0.25).model(sd.RectifiedFlow(t_max=1.0))
    with pytest.raises(ValueError, match="-inf at t = 1"):
        sd.sample(exact, (1, 2), solver=sd.DDIM(), steps=4, grid="log_snr", seed=0)


def test_a_solver_names_its_grid() -> None:
    class Spaced(sd.DDIM):
        spacing = "karras"

    model = sd.exact.Gaussian([0.2, -0.1], 0.25).model(sd.VP())
    assert torch.equal(
        sd.sample(model, (1, 2), solver=sd.Heun(), steps=4, seed=0).times,
        grid("uniform", 4, sd.VP()),
    )
    assert torch.equal(
        sd.sample(model, (1, 2), solver=sd.DDIM(), steps=4, seed=0).times,
        grid("logistic", 4, sd.VP().scaled(2.0)),
    )
    assert torch.equal(
        sd.sample(model, (1, 2), solver=Spaced(), steps=4, seed=0).times,
        grid("karras", 4, sd.VP().scaled(2.0)),
    )
    spaced = sd.sample(model, (1, 2), solver=Spaced(), steps=4, grid="uniform", seed=0)
    assert torch.equal(spaced.times, grid("uniform", 4, sd.VP()))
    for noisy, name in ((False, "inner"), (True, "central")):
        angle = sd.ExponentialMultistep(2, variable="angle", startup="published", sde=noisy)
        assert torch.equal(
            sd.sample(model, (1, 2), solver=angle, steps=4, seed=0).times,
            grid(name, 4, sd.VP().scaled(2.0)),
        )
