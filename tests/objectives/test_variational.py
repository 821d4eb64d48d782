"""The variational bound in continuous time and learned schedules, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gauss_hermite import gauss_hermite
from torch import Tensor, nn

import sdediff as sd
from sdediff.networks import MLP, initialised

MEAN, VAR = 0.4, 0.3
LAW = sd.exact.Gaussian(MEAN, VAR)


def closed_form(first: Tensor, last: Tensor, preserving: bool = True) -> Tensor:
    """Mean bound of N(MEAN, VAR) data with the exact model, bits, gamma from first to last: the
    integral of snr' / snr snr VAR / (1 + snr VAR) / 2 is that of log(1 + snr VAR) / 2. The prior is
    N(0, 1) where the variance of the process is preserved (VDM's loss_klz), else N(0, sigma^2).
    """
    most, least = torch.exp(-first), torch.exp(-last)
    diffusion = 0.5 * torch.log((1 + most * VAR) / (1 + least * VAR))
    prior = 0.5 * least * (MEAN**2 + VAR)
    if preserving:
        mean, variance = torch.sigmoid(-last) * (MEAN**2 + VAR), torch.sigmoid(last)
        prior = 0.5 * (mean + variance - variance.log() - 1)
    return (diffusion + prior + 0.5 * (1 + math.log(2 * math.pi) + first)) / math.log(2)


def mean_bound(model: sd.ScoreModel, points: int = 400) -> Tensor:
    """The mean of the loss over data, noise and times: Gauss-Hermite and Gauss-Legendre."""
    z, w = gauss_hermite(3)
    x = (MEAN + VAR**0.5 * z).repeat_interleave(3, dim=0)
    noise, weights = z.repeat(3, 1), (w[:, None] * w[None, :]).flatten()
    u, v = np.polynomial.legendre.leggauss(points)
    sde = model.sde
    t = sde.t_min + (sde.t_max - sde.t_min) * 0.5 * (torch.as_tensor(u) + 1)
    loss = sd.objectives.VariationalDiffusion()
    values = loss(
        model, x.repeat(points, 1), t=t.repeat_interleave(9), noise=noise.repeat(points, 1)
    )
    return (values * weights.repeat(points) * torch.as_tensor(0.5 * v).repeat_interleave(9)).sum()


@pytest.mark.parametrize(
    "sde", [sd.VP(), sd.VE(0.05, 20.0), sd.RectifiedFlow(t_min=0.01, t_max=0.98)], ids=repr
)
def test_bound_of_gaussian_data(sde: sd.LinearSDE) -> None:
    ends = -sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    bound = mean_bound(LAW.model(sde))
    torch.testing.assert_close(
        bound, closed_form(*ends, preserving=isinstance(sde, sd.VP)), rtol=1e-7, atol=0
    )
    assert float(bound.detach()) > 0.5 * math.log2(2 * math.pi * math.e * VAR)


def bent() -> sd.sde.LearnedVP:
    """A learned schedule away from its start."""
    schedule = sd.sde.MonotoneSchedule(-8.0, 4.0, width=5)
    with torch.no_grad():
        schedule.log_heights.copy_(torch.tensor([0.5, -1.0, 0.3, -2.0, 1.0]))
        schedule.offsets.add_(torch.tensor([0.3, -0.5, 0.2, 0.0, 0.4]))
    return sd.sde.LearnedVP(schedule)


def test_the_bound_depends_on_the_ends_alone() -> None:
    """Kingma et al. 2021, section 5.1: two schedules with the same ends; and its gradient, of the
    ends and of what is between.
    """
    straight, curved = sd.sde.LearnedVP(sd.sde.MonotoneSchedule(-8.0, 4.0, width=1)), bent()
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    assert float((straight.log_snr(t) - curved.log_snr(t)).abs().max().detach()) > 0.5
    for sde in (straight, curved):
        first = torch.tensor(-8.0, dtype=torch.float64, requires_grad=True)
        length = torch.tensor(12.0, dtype=torch.float64).log().requires_grad_()
        expected = closed_form(first, first + length.exp())
        bound = mean_bound(LAW.model(sde))
        torch.testing.assert_close(bound, expected, rtol=1e-7, atol=0)
        schedule = sde.schedule
        names = ["first", "log_length", "offsets", "log_heights"]
        grads = dict(
            zip(
                names,
                torch.autograd.grad(bound, [getattr(schedule, n) for n in names]),
                strict=True,
            )
        )
        want = torch.autograd.grad(expected, (first, length))
        torch.testing.assert_close(grads["first"], want[0], rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(grads["log_length"], want[1], rtol=1e-5, atol=1e-9)
        assert float(grads["offsets"].abs().max()) < 1e-6
        assert float(grads["log_heights"].abs().max()) < 1e-6


@pytest.mark.parametrize("predicts", ["noise", "v", "data"])
def test_the_gradient_inside_the_schedule_is_that_of_the_square(predicts: str) -> None:
    """Of the diffusion part; at the ends, of the network and of the value it is the bound's, by one
    backward pass.
    """
    generator = torch.Generator().manual_seed(3)
    net = initialised(lambda: MLP(2, 16, 1), 0).double()
    model = sd.ScoreModel(net, bent(), predicts=predicts, time="log_snr")
    x, noise = (torch.randn(32, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.rand(32, generator=generator, dtype=torch.float64)
    named = dict(model.sde.schedule.named_parameters()) | {
        f"net.{name}": p for name, p in net.named_parameters()
    }

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        return dict(
            zip(
                named,
                torch.autograd.grad(
                    loss, list(named.values()), retain_graph=True, allow_unused=True
                ),
                strict=True,
            )
        )

    plain, calm = (
        sd.objectives.VariationalDiffusion(),
        sd.objectives.VariationalDiffusion(inside="variance"),
    )
    bound, other = plain(model, x, t=t, noise=noise), calm(model, x, t=t, noise=noise)
    torch.testing.assert_close(other, bound, rtol=1e-11, atol=0)
    square = (plain.diffusion(model, x, t, noise) / (2 * math.log(2))).square()
    found, of_bound, of_square = (
        gradients(other.mean()),
        gradients(bound.mean()),
        gradients(square.mean()),
    )
    inside = {"log_rates", "offsets", "log_heights"}
    assert inside < set(named)
    for name, value in found.items():
        want = of_square[name] if name in inside else of_bound[name]
        assert (value is None) == (want is None), name
        if want is not None:
            torch.testing.assert_close(
                value, want, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
            )
    with torch.no_grad():
        torch.testing.assert_close(
            calm(model, x, t=t, noise=noise), bound.detach(), rtol=1e-11, atol=0
        )


class ExactNoise(nn.Module):
    """E[noise | x] of N(MEAN, VAR) data, from the log-SNR and gamma(0)."""

    def __init__(self, gamma_0: float) -> None:
        super().__init__()
        self.gain = 1 / (1 + math.exp(gamma_0))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        alpha, sigma = (
            torch.sigmoid(sign * log_snr[:, None]).div(self.gain).sqrt() for sign in (1, -1)
        )
        return sigma * (x - alpha * MEAN) / (alpha**2 * VAR + sigma**2)


@pytest.mark.slow
def test_a_schedule_trained_for_it_makes_the_bound_vary_less() -> None:
    """The diffusion part is m(t) chi^2 here: that of constant m has the least spread, sqrt(2) times
    the mean.
    """
    schedule = sd.sde.MonotoneSchedule(-8.0, 4.0, width=16)
    model = sd.ScoreModel(
        ExactNoise(-8.0), sd.sde.LearnedVP(schedule), predicts="noise", time="log_snr"
    )
    loss = sd.objectives.VariationalDiffusion(inside="variance")

    def spread() -> tuple[float, float]:
        generator = torch.Generator().manual_seed(1)
        x = MEAN + VAR**0.5 * torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
        t = torch.rand(20_000, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            values = loss.diffusion(
                model, x, t, torch.randn(x.shape, generator=generator, dtype=torch.float64)
            )
        return float(values.mean()), float(values.std())

    mean, std = spread()
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(
        [schedule.offsets, schedule.log_heights, schedule.log_rates], lr=0.03
    )
    for _ in range(400):
        x = MEAN + VAR**0.5 * torch.randn(256, 1, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss(model, x, generator=generator).mean().backward()
        optimizer.step()
    mean_after, std_after = spread()
    assert mean_after == pytest.approx(mean, abs=6 * std / 20_000**0.5)
    assert std > 1.3 * 2**0.5 * mean
    assert std_after < 1.1 * 2**0.5 * mean_after


def test_a_learned_schedule_is_an_sde() -> None:
    sde = bent()
    sd.testing.check_sde(sde, verbose=False)
    assert repr(sde) == "LearnedVP(gamma -8 to 4)"
    with torch.no_grad():
        sde.schedule.first.fill_(-6.0)
    assert sde.sigma_0 == pytest.approx(math.exp(-3.0))
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    torch.testing.assert_close(sde.time_of(sde.log_snr(t).detach()), t, rtol=1e-9, atol=1e-9)


def test_reconstruction_is_a_distribution_over_the_values() -> None:
    """exp(-L_0) of all 16 values, seen through the same noisy state, adds up to one."""
    sde, bins = sd.VP(t_min=0.05), sd.objectives.Bins(16)
    model, values = LAW.model(sde), torch.linspace(-1, 1, 16, dtype=torch.float64)[:, None]
    scale = torch.exp(0.5 * sde.log_snr(sde.t_min))
    for seen in (-1.3, 0.02, 0.9):
        nats = sd.objectives.VariationalDiffusion(bins).reconstruction(
            model, values, (seen - values) * scale
        )
        assert float((-nats).exp().sum()) == pytest.approx(1, rel=1e-12)


@pytest.mark.thin(0)
def test_fit_trains_the_schedule_and_load_restores_it(tmp_path) -> None:
    data = torch.randn(256, 2, generator=torch.Generator().manual_seed(0)) * 0.5

    def train(out: str, steps: tuple[int, ...]) -> sd.ScoreModel:
        for stop in steps:
            sde = sd.sde.LearnedVP(sd.sde.MonotoneSchedule(-6.0, 1.0, width=4))
            model = sd.ScoreModel(initialised(lambda: MLP(2, 16, 1), 0), sde, time="log_snr")
            options = {
                "loss": sd.objectives.VariationalDiffusion(),
                "lr": 1e-2,
                "warmup": 0,
                "device": "cpu",
                "resume": stop != steps[0],
            }
            if stop != steps[-1]:
                with pytest.raises(KeyboardInterrupt):
                    sd.fit(
                        model, data, out=tmp_path / out, steps=40, callback=_interrupt, **options
                    )
            else:
                sd.fit(model, data, out=tmp_path / out, steps=40, **options)
        return model

    model, again = train("whole", (40,)), train("resumed", (20, 40))
    for name, value in model.sde.schedule.state_dict().items():
        assert torch.equal(value, again.sde.schedule.state_dict()[name]), name
    # Less is left of the data at t = 1, which the bound asks for: snr |x_0|^2 / 2 falls.
    assert float(model.sde.gamma(torch.ones((), dtype=torch.float64)).detach()) > 1.1
    loaded = sd.load(
        tmp_path / "whole", sde=sd.sde.LearnedVP(sd.sde.MonotoneSchedule(-6.0, 1.0, width=4))
    )
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    assert torch.equal(loaded.sde.log_snr(t), model.sde.log_snr(t))
    out = sd.sample(loaded, (4, 2), steps=10, seed=0)
    assert torch.equal(out.x, sd.sample(model, (4, 2), steps=10, seed=0).x)


def _interrupt(step: int, loss: float) -> None:
    import signal

    if step == 20:
        signal.raise_signal(signal.SIGINT)


class Wave(nn.Module):
    def forward(self, t: Tensor) -> Tensor:
        return torch.sin(6 * t)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: sd.sde.LearnedVP(Wave()),
            ValueError,
            r"must rise with t, and does not at t = 0\.26",
        ),
        (
            lambda: sd.sde.LearnedVP(nn.Identity()).check_time(torch.tensor(2.0)),
            ValueError,
            "usable range",
        ),
        (lambda: sd.sde.LearnedVP(3.0), TypeError, r"a module gamma\(t\)"),
        (lambda: sd.sde.LearnedVP(nn.Unflatten(0, (257, 1))), ValueError, "shaped as t"),
        (lambda: sd.sde.MonotoneSchedule(2.0, 1.0), ValueError, "rises from first to last"),
        (lambda: sd.objectives.VariationalDiffusion(inside="mean"), ValueError, "inside must be"),
        (
            lambda: sd.objectives.VariationalDiffusion(inside="variance")(
                LAW.model(sd.VP()), torch.zeros(2, 1)
            ),
            ValueError,
            "module `schedule` that gives",
        ),
        (lambda: sd.sde.MonotoneSchedule(width=0), ValueError, "width must be"),
        (
            lambda: sd.objectives.VariationalDiffusion()(
                LAW.model(sd.VP()), torch.zeros(2, 1).int()
            ),
            TypeError,
            r"use x.float\(\)",
        ),
        (
            lambda: sd.objectives.VariationalDiffusion(sd.objectives.Bins())(
                LAW.model(sd.VP()), torch.full((2, 1), 3.0)
            ),
            ValueError,
            "declare how",
        ),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
