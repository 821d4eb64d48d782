"""Solvers that know a measurement, against the published updates, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff import posterior
from sdediff.posterior.observation import Observed
from sdediff.units import Units

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


D = 4
SDE = sd.VP()
MIXTURE = sd.exact.GaussianMixture(randn(3, D, seed=8), 0.4)
EXACT = MIXTURE.model(SDE)
UNIT = sd.ScoreModel(EXACT.net, SDE, "v", time_dtype=F64, data_std=1.0)  # solver's units are x's
H, STD = randn(2, D, seed=1), 0.3
SEEN = posterior.Linear(lambda x: x @ H.T, noise_std=STD)
MASK = torch.tensor([True, False, True, False])
INPAINT = posterior.Mask(MASK, noise_std=0.1)
TIMES = torch.tensor([0.9, 0.6, 0.4, 0.2, 0.05], dtype=F64)
X, Y = randn(3, D, seed=5), randn(3, 2, seed=6)


def level(t: Tensor) -> tuple[Tensor, Tensor]:
    return SDE.alpha(t), SDE.sigma(t)


def ancestral(x: Tensor, t: Tensor, s: Tensor, data: Tensor, z: Tensor) -> Tensor:
    """DDPM's step with the posterior variance (Ho et al. 2020, eq. 7), between any two times."""
    (alpha, sigma), (alpha_s, sigma_s) = level(t), level(s)
    ratio = alpha / alpha_s
    beta = sigma**2 - ratio**2 * sigma_s**2
    mean = (ratio * sigma_s**2 * x + alpha_s * beta * data) / sigma**2
    return mean + (beta.sqrt() * sigma_s / sigma) * z


class Tape:
    """Normals by step, stream and number, which a reference can look up."""

    def __init__(self, step: int = 0) -> None:
        self.step = step

    def at(self, step: int) -> Tape:
        return Tape(step)

    def take(self, rows: Tensor) -> Tape:
        return self

    def normal(self, stream: str, k: int = 0) -> Tensor:
        return randn(3, D, seed=hash_of(self.step, stream, k))

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return self.normal("path", k)


def hash_of(step: int, stream: str, k: int) -> int:
    return 1000 + 7919 * step + 104729 * sd.solvers.noise.STREAMS[stream] + 15485863 * k


def solve(model: Any, solver: Any) -> Tensor:
    out = sd.sample(
        model, (3, D), solver=solver, grid=TIMES, x_init=X, noise=Tape(), last="noisy", dtype=F64
    )  # type: ignore[arg-type]
    return out.x


@pytest.mark.parametrize("model", [UNIT, EXACT], ids=["unit 1", "unit of the data"])
def test_published_dps(model: Any) -> None:
    """Chung et al. 2023, Algorithm 1, with zeta_i = zeta / |y - A x_0^|."""
    x = X
    for i, (t, s) in enumerate(pairwise(TIMES)):
        z = x.clone().requires_grad_()
        data = model.data(z, t)
        off = (Y - data @ H.T).square().sum(dim=1)
        (gradient,) = torch.autograd.grad(off.sum(), z)
        moved = ancestral(x, t, s, data.detach(), Tape(i).normal("path"))
        x = moved - 0.3 / off.detach().sqrt()[:, None] * gradient
    found = solve(model, posterior.PublishedDPS(SEEN, Y, zeta=0.3))
    assert torch.allclose(found, x, rtol=1e-10, atol=1e-10)


def imposed(x: Tensor, s: Tensor, z: Tensor) -> Tensor:
    """m (alpha y + sigma z) + (1 - m) x at the time s."""
    alpha, sigma = level(s)
    known = torch.zeros(3, D, dtype=F64)
    known[:, MASK] = Y
    return torch.where(MASK, alpha * known + sigma * z, x)


@pytest.mark.parametrize("model", [UNIT, EXACT], ids=["unit 1", "unit of the data"])
def test_replacement(model: Any) -> None:
    """Song et al. 2021, appendix I.2."""
    x = X
    for i, (t, s) in enumerate(pairwise(TIMES)):
        x = ancestral(x, t, s, model.data(x, t), Tape(i).normal("path"))
        x = imposed(x, s, Tape(i).normal("proposal"))
    found = solve(model, posterior.Replacement(INPAINT, Y))
    assert torch.allclose(found, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2])
def test_repaint(length: int) -> None:
    """Lugmayr et al. 2022, Algorithm 1 with U = 3 for length 1; longer jumps by section 4.2."""
    jumps, x, blocks = 3, X, range(0, len(TIMES) - 1, length)
    for start in blocks:
        for u in range(jumps if start != blocks[-1] else 1):
            for i in range(start, start + length):
                t, s = TIMES[i], TIMES[i + 1]
                tape = Tape(start + length - 1) if u else Tape(i)
                number = 2**16 * (1 + (u - 1) * length + i - start) if u else 0
                z = tape.normal("churn" if u else "path", number)
                x = ancestral(x, t, s, EXACT.data(x, t), z)
                x = imposed(x, s, tape.normal("proposal", number))
            if u < jumps - 1 and start != blocks[-1]:
                t, s = TIMES[start], TIMES[start + length]
                (alpha, sigma), (alpha_s, sigma_s) = level(t), level(s)
                std = (sigma**2 - (alpha / alpha_s * sigma_s) ** 2).sqrt()
                z = Tape(start + length - 1).normal("churn", u)
                x = alpha / alpha_s * x + std * z
    solver = posterior.RePaint(INPAINT, Y, jumps=jumps, length=length)
    assert torch.allclose(solve(EXACT, solver), x, rtol=1e-10, atol=1e-10)
    out = sd.sample(EXACT, (3, D), solver=solver, steps=4, seed=0)
    assert out.nfe.tolist() == [1 + length + jumps * (4 - length)] * 3


@pytest.mark.parametrize("model", [UNIT, EXACT], ids=["unit 1", "unit of the data"])
@pytest.mark.parametrize("std", [STD, 0.0])
def test_diffpir(model: Any, std: float) -> None:
    """Zhu et al. 2023, Algorithm 1; without noise the minimum is a projection."""
    lam, zeta, x = 2.0, 0.6, X
    for i, (t, s) in enumerate(pairwise(TIMES)):
        (alpha, sigma), (alpha_s, sigma_s) = level(t), level(s)
        rho = lam * std**2 * alpha**2 / sigma**2
        data = model.data(x, t)
        inverse = torch.linalg.inv(H @ H.T + rho * torch.eye(2, dtype=F64))
        clean = data + (Y - data @ H.T) @ inverse @ H
        noise = (x - alpha * clean) / sigma
        z = Tape(i).normal("proposal")
        x = alpha_s * clean + sigma_s * ((1 - zeta) ** 0.5 * noise + zeta**0.5 * z)
    measured = posterior.Linear(lambda x: x @ H.T, noise_std=std)
    found = solve(model, posterior.DiffPIR(measured, Y, lam=lam, zeta=zeta))
    assert torch.allclose(found, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["fourier", "blur", "grey"])
def test_the_nearest_state_is_by_the_pseudoinverse(name: str) -> None:
    """Also where rows of A depend on each other, as Fourier coefficients that are conjugates do,
    and y contradicts itself.
    """
    event = (3, 4, 6)
    measured: Any = {
        "fourier": posterior.Fourier(randn(4, 6) > 0, noise_std=0.1),
        "blur": posterior.Blur(torch.ones(1, 2, dtype=F64), noise_std=0.1),
        "grey": posterior.Grey(noise_std=0.1),
    }[name]
    x = torch.zeros(2, *event, dtype=F64)
    y = randn(*measured.forward(x).shape)
    matrix = measured.forward(torch.eye(72, dtype=F64).reshape(-1, *event)).flatten(1).T
    normalizer = sd.Normalizer(0.0, torch.tensor([1.0, 2.0, 0.5]))
    scale = normalizer.scale(x).expand(1, *event).flatten()
    seen = Observed(measured, y, Units(1.5, normalizer))
    expected = y.flatten(1) @ torch.linalg.pinv(1.5 * matrix * scale, rcond=1e-6).T
    assert torch.allclose(seen.nearest(y, x).flatten(1), expected, atol=1e-9)


ALL = {
    "PublishedDPS": posterior.PublishedDPS(SEEN, Y, sd.DDIM(), zeta=0.1),
    "Replacement": posterior.Replacement(SEEN, Y),
    "RePaint": posterior.RePaint(SEEN, Y, jumps=2, length=2, solver=sd.EulerMaruyama()),
    "DiffPIR": posterior.DiffPIR(SEEN, Y),
}


@pytest.mark.parametrize("name", ALL)
def test_the_users_units_and_batches(name: str) -> None:
    """Under a Normalizer the solver does what it does to the user's states without one."""
    mean, std = 1.5, 2.0
    law = sd.exact.GaussianMixture(mean + std * MIXTURE.means, 0.4 * std)
    sde, solver = sd.VE(0.01, 50.0), ALL[name]
    other = law.model(sde.scaled(std))
    inside = MIXTURE.model(sde)
    model = sd.ScoreModel(
        inside.net, sde, "v", time_dtype=F64, normalizer=sd.Normalizer(mean, std),
        data_std=inside.data_std,
    )  # fmt: skip
    if name == "PublishedDPS":  # its moves have a length in the units of the model
        solver = posterior.PublishedDPS(SEEN, Y, sd.DDIM(), zeta=0.1 / std)
        reference = posterior.PublishedDPS(SEEN, Y, sd.DDIM(), zeta=0.1 * std)
    else:
        reference = solver
    options: dict[str, Any] = {"steps": 8, "seed": 1, "dtype": F64, "grid": "log_snr"}
    out = sd.sample(model, (3, D), solver=solver, **options)
    parts = sd.sample(model, (3, D), solver=solver, batch_size=2, **options)
    assert torch.allclose(out.x, parts.x, atol=1e-10)
    start = sde.prior.from_noise(sd.White(out.seeds, (D,), dtype=F64).at(0).normal("prior"))
    # VE's state in the user's units is about the data's mean, where the other model's is about 0
    moved = sd.sample(other, (3, D), solver=reference, x_init=mean + std * start, **options)
    assert torch.allclose(out.x, moved.x, atol=1e-7)


@pytest.mark.parametrize("name", ["PublishedDPS", "DiffPIR"])
def test_each_sample_may_have_its_own_times(name: str) -> None:
    grid = torch.stack([TIMES, TIMES * 0.9, TIMES * 0.8], dim=1)
    options: dict[str, Any] = {"x_init": X, "noise": Tape(), "last": "noisy", "dtype": F64}
    whole = sd.sample(EXACT, (3, D), solver=ALL[name], grid=grid, **options).x
    for i in range(3):
        alone = sd.sample(EXACT, (3, D), solver=ALL[name], grid=grid[:, i], **options).x
        assert torch.allclose(whole[i], alone[i], atol=1e-10)


def test_passes_are_counted() -> None:
    options: dict[str, Any] = {"steps": 6, "seed": 0, "dtype": F64}
    out = sd.sample(EXACT, (3, D), solver=posterior.PublishedDPS(SEEN, Y), **options)
    assert out.backward is not None
    assert out.nfe.tolist() == [7] * 3
    assert out.backward.tolist() == [6] * 3
    out = sd.sample(EXACT, (3, D), solver=posterior.DiffPIR(SEEN, Y), **options)
    assert out.nfe.tolist() == [7] * 3


WRONG: dict[str, Any] = {
    "adaptive": (lambda: posterior.PublishedDPS(SEEN, Y, sd.RK45()), "chooses its own steps"),
    "memory": (
        lambda: posterior.RePaint(SEEN, Y, solver=sd.ExponentialMultistep(2)),
        "carries history from step to step",
    ),
    "no solver": (lambda: posterior.Replacement(SEEN, Y, "ddim"), "solver must be a solver value"),
    "likelihood": (
        lambda: sd.log_prob(EXACT, X, solver=ALL["PublishedDPS"], steps=4),
        "there is no noise, and PublishedDPS",
    ),
    "encoding": (
        lambda: sd.encode(EXACT, X, solver=ALL["DiffPIR"], steps=4),
        "there is no noise, and DiffPIR",
    ),
    "outcomes": (
        lambda: sd.sample(EXACT, (5, D), solver=ALL["DiffPIR"], steps=4),
        "y has 3 outcomes for 5 samples",
    ),
    "shapes": (
        lambda: sd.sample(EXACT, (3, D), solver=posterior.RePaint(INPAINT, randn(3, 3)), steps=4),
        "y has outcomes of shape",
    ),
    "nonlinear": (
        lambda: posterior.DiffPIR(posterior.Nonlinear(torch.sin, torch.mul), Y),
        "DiffPIR is for linear measurements",
    ),
    "zeta": (lambda: posterior.DiffPIR(SEEN, Y, zeta=1.5), "zeta is the share of new noise"),
    "jumps": (lambda: posterior.RePaint(SEEN, Y, jumps=0), "jumps must be an int of at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_says_what_is_wrong(name: str) -> None:
    call, match = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=match):
        call()


def test_repr_has_no_numbers() -> None:
    assert repr(ALL["DiffPIR"]) == "DiffPIR(Linear, y (3, 2))"
