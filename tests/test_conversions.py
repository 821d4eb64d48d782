"""Round trips between parametrisations, where they are singular, the network's time, and finding a
wrong declaration.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.predict import predict, target
from sdediff.predictions import PREDICTIONS, conversion
from sdediff.solvers.arithmetic import Like, weighted

SCHEDULES = {
    "VE": sd.VE(),
    "VP": sd.VP(t_min=1e-5),
    "SubVP": sd.SubVP(),
    "Cosine": sd.Cosine(),
    "EDM": sd.EDM(),
    "RectifiedFlow": sd.RectifiedFlow(t_min=1e-5),
    "steep": sd.LinearSDE(alpha=lambda t: torch.exp(-5 * t), log_snr=lambda t: 19 - 38 * t),
}


def identity(x: Tensor, t: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trips(name: str, dtype: torch.dtype) -> None:
    """From one prediction to another and back: at most 64 eps max(1, alpha / sigma, sigma / alpha),
    relative to the larger of the prediction and what x holds of it.
    """
    sde = SCHEDULES[name]
    generator = torch.Generator().manual_seed(0)
    t = torch.cat(
        [
            torch.linspace(sde.t_min, sde.t_max, 60, dtype=torch.float64),
            sde.t_min * torch.logspace(0, 2, 20).double(),
        ]
    )
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    condition_number = torch.stack([torch.ones_like(t), alpha / sigma, sigma / alpha]).amax(0)
    x_0, noise = (
        torch.randn(len(t), 50, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    x = (alpha[:, None] * x_0 + sigma[:, None] * noise).to(dtype)
    for one, two in itertools.permutations(PREDICTIONS, 2):
        first, second = (sd.ScoreModel(identity, sde, kind) for kind in (one, two))
        p, q = PREDICTIONS[one](sde, t, 0.5)
        given = p[:, None] * x_0 + q[:, None] * noise
        (a, b), (c, d) = first.conversion(two, t), second.conversion(one, t)
        there = weighted((a, x), (b, given.to(dtype)))
        back = weighted((c, x), (d, there))
        size = given.abs().amax(1).clamp(min=1e-300)
        error = (back.double() - given.to(dtype).double()).abs().amax(1) / size
        bound = 64 * torch.finfo(dtype).eps * condition_number
        assert bool((error <= bound).all()), (
            one,
            two,
            float(t[(error / bound).argmax()]),
            float((error / bound).max()),
        )


@pytest.mark.parametrize(
    ("predicts", "wanted", "works"),
    [
        ("noise", "data", False),
        ("score", "data", False),
        ("data", "noise", True),
        ("v", "noise", True),
        ("flow", "data", True),
        ("v", "data", True),
        ("edm", "data", True),
        ("noise", "score", True),
        ("score", "noise", True),
        ("flow", "score", True),
    ],
)
def test_at_alpha_zero(predicts: str, wanted: str, works: bool) -> None:
    """x = noise there, so that noise and score are known whatever is predicted, and data only where
    it is predicted in part.
    """
    sde = sd.RectifiedFlow(t_max=1.0)
    x_0, noise = (
        torch.full((2, 3), 0.5, dtype=torch.float64),
        torch.full((2, 3), -0.2, dtype=torch.float64),
    )
    t = torch.tensor(1.0, dtype=torch.float64)
    model = sd.ScoreModel(identity, sde, predicts)
    output = target(model, x_0, noise, t)
    model.net = lambda x, t: output
    if works:
        p, q = PREDICTIONS[wanted](sde, t, 0.5)
        torch.testing.assert_close(predict(model, wanted, noise, 1.0), p * x_0 + q * noise)
    else:
        with pytest.raises(
            ValueError, match=r"at t = 1, where alpha = 0: no signal is left; .* v or flow or edm"
        ):
            predict(model, wanted, noise, 1.0)


def test_singular_conversions_say_what_to_use() -> None:
    flat = sd.LinearSDE(f=lambda t: -1.0, g=lambda t: torch.where((t > 0.3) & (t < 0.6), 0.0, 1.0))
    x = torch.ones(2, 2)
    with pytest.raises(
        ValueError, match=r"noise cannot be .* predicts flow at t = 0.45, where log_snr is flat"
    ):
        sd.ScoreModel(identity, flat, "flow").noise(x, torch.tensor([0.2, 0.45]))
    sd.ScoreModel(identity, flat, "flow").noise(x, 0.2)
    sd.ScoreModel(identity, flat, "v").flow(x, 0.45)
    early = sd.VP(t_min=1e-3)
    object.__setattr__(early, "t_min", 0.0)
    with pytest.raises(
        ValueError,
        match=r"score cannot .* at t = 0, where sigma = 0: there is no noise; no parametrisation "
        r"has",
    ):
        sd.ScoreModel(identity, early, "noise").score(x, 0.0)


def test_a_start_at_alpha_zero_is_a_data_form_step() -> None:
    """DDIM and Ancestral start there, at order 1; what divides by alpha says so."""
    data = sd.exact.Gaussian([0.3, -0.5], [[0.25, 0.1], [0.1, 0.5]])
    sde = sd.RectifiedFlow(t_max=1.0)
    x = torch.tensor([[0.5, -1.0], [2.0, 0.1]], dtype=torch.float64)
    exact = data.flow(sde, x, 1.0, 0.1)
    errors = []
    for n in (40, 80, 160):
        out = sd.sample(
            data.model(sde),
            (2, 2),
            solver=sd.DDIM(),
            steps=n,
            x_init=x,
            t_end=0.1,
            dtype=torch.float64,
            seed=0,
        )
        errors.append(float((out.x - exact).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.1)
    # One ancestral step from alpha = 0 is the forward law given E[x_0], whatever x was.
    rows = sd.sample(
        data.model(sde),
        (4000, 2),
        solver=sd.solvers.Ancestral(),
        grid=[1.0, 0.5],
        last="noisy",
        seed=0,
        dtype=torch.float64,
    ).x
    assert float((rows.mean(0) - 0.5 * data.mean).abs().max()) < 6 * 0.5 / 4000**0.5
    assert float((rows.std(0) - 0.5).abs().max()) < 6 * 0.5 / 8000**0.5
    infinite = r"f or g of Rect.* is not finite at t = 1: start inside .* by DDIM or Ancestral"
    for solver, message in (
        (sd.EulerMaruyama(), infinite),
        (sd.Heun(variable="sigma"), "a variable that is infinite at t = 1, an end of the grid"),
    ):
        with pytest.raises(ValueError, match=message):
            sd.sample(data.model(sde), (2, 2), solver=solver, steps=5, seed=0)
    with pytest.raises(
        ValueError, match=r"data cannot be .* predicts noise at t = 1, where alpha = 0"
    ):
        sd.sample(sd.ScoreModel(identity, sde, "noise"), (2, 2), solver=sd.DDIM(), steps=5, seed=0)


@pytest.mark.parametrize(
    ("solver", "stages"),
    [(sd.solvers.Euler(), [0.0]), (sd.solvers.Midpoint(), [0.0, 0.5]), (sd.Heun(), [0.0, 1.0])],
    ids=repr,
)
def test_a_flow_is_solved_from_alpha_zero_to_sigma_zero(solver: Any, stages: list[float]) -> None:
    """Along a network's velocity as other libraries have it, t = 0 to 1, which f and g have not."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(2 * x.flip(1) + t[:, None]) - x

    x, steps = torch.tensor([[0.5, -1.0], [2.0, 0.1]], dtype=torch.float64), 5
    sde = sd.RectifiedFlow(t_max=1.0)
    model = sd.ScoreModel(velocity, sde, "flow", time="reversed", data_std=1.7)
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    given: dict[str, Any] = {"x_init": x, "last": "noisy", "dtype": torch.float64}
    found = sd.sample(model, (2, 2), solver=solver, grid=grid, **given).x
    for i in range(steps):
        k = velocity(x, torch.full((2,), i / steps, dtype=torch.float64))
        if len(stages) > 1:
            t = torch.full((2,), (i + stages[1]) / steps, dtype=torch.float64)
            second = velocity(x + stages[1] * k / steps, t)
            k = second if stages[1] == 0.5 else (k + second) / 2
        x = x + k / steps
    torch.testing.assert_close(found, x, rtol=1e-12, atol=1e-12)


# -- clocks ----------------------------------------------------------------------------------------


def handed(sde: sd.SDE, time: object, t: object, **options: object) -> Tensor:
    seen: list[Tensor] = []

    def net(x: Tensor, time: Tensor) -> Tensor:
        seen.append(time)
        return x

    sd.ScoreModel(net, sde, time=time, **options).noise(torch.zeros(2, 3), t)
    return seen[0]


def test_the_network_is_handed_the_time_it_asks_for() -> None:
    vp, t = sd.VP(), torch.tensor([0.3, 0.4567], dtype=torch.float64)
    torch.testing.assert_close(handed(vp, "t", t), t.float())
    torch.testing.assert_close(handed(vp, "t", t, time_dtype=torch.float64), t, rtol=0, atol=0)
    torch.testing.assert_close(handed(vp, "reversed", t), 1 - t.float())
    torch.testing.assert_close(handed(sd.EDM(), "reversed", 30.0), torch.tensor([50.0, 50.0]))
    torch.testing.assert_close(handed(vp, "log_snr", t), vp.log_snr(t).float())
    torch.testing.assert_close(handed(vp, "sigma", t), vp.sigma(t).float())
    torch.testing.assert_close(
        handed(vp, lambda t: 0.25 * vp.sigma(t).log(), t), (0.25 * vp.sigma(t).log()).float()
    )
    torch.testing.assert_close(
        handed(vp, sd.network_time.Timesteps(1000), t), torch.tensor([299.0, 455.7])
    )
    torch.testing.assert_close(
        handed(vp, sd.network_time.Timesteps(1000, rounded=True), t), torch.tensor([299, 456])
    )
    torch.testing.assert_close(
        handed(vp, sd.network_time.Timesteps(999, shift=0), 0.5), torch.tensor([499.5, 499.5])
    )
    torch.testing.assert_close(
        handed(sd.EDM(), sd.network_time.Timesteps(1000, shift=0), 40.0),
        torch.tensor([500.0, 500.0]),
    )


def test_a_ddpm_of_n_steps_is_handed_its_indices() -> None:
    seen: list[float] = []

    def net(x: Tensor, time: Tensor) -> Tensor:
        seen.append(float(time[0]))
        return x

    model = sd.ScoreModel(net, sd.VP(), time=sd.network_time.Timesteps(50))
    sd.sample(model, (2, 2), solver=sd.DDPM.from_sde(sd.VP(), 50), seed=0)
    assert seen == pytest.approx(list(range(49, -1, -1)), abs=1e-4)


@pytest.mark.parametrize(
    ("time", "error", "message"),
    [
        ("log_sn", ValueError, "did you mean 'log_snr'"),
        (1000, TypeError, r"write Timesteps\(1000\)"),
        (lambda t: t[..., None], ValueError, r"time\(t\) must return a tensor of the shape of t"),
        (lambda t: 3.0, ValueError, "got float"),
    ],
)
def test_bad_clocks(time: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        handed(sd.VP(), time, 0.5)
    with pytest.raises(ValueError, match="n must be a number other than 0"):
        sd.network_time.Timesteps(0)


# -- diagnose --------------------------------------------------------------------------------------


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    "sde", [sd.VP(), sd.VE(), sd.EDM(), sd.RectifiedFlow()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_diagnose_finds_what_is_predicted(sde: sd.LinearSDE, predicts: str) -> None:
    """An exact network, declared as each of the six: the true reading is found, and named in what
    is printed.
    """
    data = sd.exact.GaussianMixture([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.0]], 0.1)
    x_0 = data.sample(300, seed=1)
    exact = data.model(sde)
    truth = sd.ScoreModel(identity, sde, predicts, time_dtype=torch.float64)

    def net(x: Tensor, t: Tensor) -> Tensor:
        t = t.double()
        if predicts == "edm":
            x = x / truth.at(t[None], Like.of(x))[0].scale
        return target(truth, exact.data(x, t), exact.noise(x, t), t)

    for declared in PREDICTIONS:
        found = sd.diagnose(sd.ScoreModel(net, sde, declared, time_dtype=torch.float64), x_0)
        same = (
            {"noise", "flow"}
            if isinstance(sde, sd.EDM) and predicts in ("noise", "flow")
            else {predicts}
        )
        assert found.best in same, (declared, found.errors)
        assert found.ok == (declared in same)
        # The levels are log-SNRs: the error of the exact network is the same under every SDE and in
        # every parametrisation.
        assert found.errors[predicts] == pytest.approx(0.728226121450, rel=1e-8)
        assert f"predicts {declared}, as declared" in str(
            found
        ) or f"denoises as {found.best}" in str(found)


def test_diagnose_knows_the_error_of_a_guess_and_of_no_network() -> None:
    """For white Gaussian data no network beats the linear guess: the exact score has error 1, and
    nothing fits.
    """
    data = sd.exact.Gaussian([0.0, 0.0], 0.25)
    found = sd.diagnose(data.model(sd.VP()), data.sample(4000, seed=0))
    assert found.errors["v"] == pytest.approx(1, abs=0.1)
    assert not found.ok
    assert "No reading beats a linear guess" in str(found)


def test_diagnose_passes_conditions_and_leaves_the_network_as_it_was() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
            assert not self.training
            assert len(shift) == len(x)
            return x + shift

    model = sd.ScoreModel(Net(), sd.VP())
    x_0 = torch.linspace(-1, 1, 6).reshape(3, 2)
    before = sd.diagnose(model, x_0, condition={"shift": torch.zeros(3, 1)})
    assert model.net.training
    assert before.errors == sd.diagnose(model, x_0, condition={"shift": torch.zeros(3, 1)}).errors
    with pytest.raises(ValueError, match="leading dimension 3"):
        sd.diagnose(model, x_0, condition={"shift": torch.zeros(2, 1)})
    with pytest.raises(ValueError, match="x_0 must be a floating-point tensor"):
        sd.diagnose(model, torch.ones(3, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("source", "target"), [("noise", "data"), ("data", "noise"), ("noise", "score"), ("data", "v")]
)
def test_gradients_in_time(source: str, target: str) -> None:
    t = torch.tensor([0.2, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t: conversion(sd.VP(), source, target, t, 0.5), (t,), eps=1e-6, atol=1e-6
    )
