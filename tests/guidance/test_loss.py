"""Universal guidance against its published equations, with gradients in closed form on a Gaussian
prior; against DPS; recurrence; mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from all_sdes import SDES
from reparametrised import reparametrised
from torch import Tensor

import sdediff as sd
from sdediff.guidance import Classifier, ClassifierFree, Loss
from sdediff.predictions import PREDICTIONS
from sdediff.solvers import Ancestral, Recurrence

F64 = torch.float64
VP = sd.VP()
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=F64)
STDS = torch.tensor([0.4, 0.8, 1.3], dtype=F64)
LAW = sd.exact.Gaussian(MEAN, STDS**2)
WANTED = torch.tensor([1.0, 0.5, -0.5], dtype=F64)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, wanted: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=atol)


def quadratic(x: Tensor, size: Tensor) -> Tensor:
    """size |x - wanted|^2 / 2, whose gradient is size (x - wanted)."""
    return 0.5 * size * (x - WANTED).square().sum(dim=1)


SIZE = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=F64)
X = draws(4, 3, seed=1)


def closed(sde: Any, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """alpha, sigma, x^_0 = m + J (x - alpha m), J, and the noise prediction, by hand."""
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    gain = alpha * STDS**2 / (alpha**2 * STDS**2 + sigma**2)
    data = MEAN + gain * (X - alpha * MEAN)
    return alpha, sigma, data, gain, (X - alpha * data) / sigma


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", SDES)
def test_forward_and_backward_guidance_are_as_published(name: str) -> None:
    """eps + s sigma grad - alpha / sigma D at times of the whole range, whatever the network
    predicts; D by m steps from x^_0. In units of what they are made of.
    """
    sde = SDES[name]
    t = torch.linspace(sde.t_min, sde.t_max, 4, dtype=F64)
    alpha, sigma, data, gain, noise = closed(sde, t)
    size, s, m, rate = SIZE[:, None], torch.tensor([2.0, 0.5, -1.0, 3.0], dtype=F64), 3, 0.2
    slope = size * (data - WANTED)
    moved = (1 - (1 - rate * size) ** m) * (WANTED - data)
    for predicts in PREDICTIONS:
        model = reparametrised(LAW.model(sde), predicts)
        held = alpha * model.data_std**2 / (alpha**2 * model.data_std**2 + sigma**2)
        pulls = {"network": gain * slope, "data": held * slope, "state": size * (X - WANTED)}
        for gradient, pull in pulls.items():
            for steps in (0, m) if gradient != "state" else (0,):
                more: Any = {"backward": steps, "rate": rate} if steps else {}
                guided = Loss(model, quadratic, s, gradient=gradient, **more)
                shift = sigma * s[:, None] * pull - (alpha / sigma * moved if steps else 0)
                found = guided.noise(X, t, size=SIZE)
                scale = 1 + shift.abs().max(dim=1, keepdim=True).values
                near(found / scale, (noise + shift) / scale)
        alone = Loss(model, quadratic, 0.0, backward=m, rate=rate)
        near(alone.data(X, t, size=SIZE), data + moved, 1e-9)


@pytest.mark.thin(0)
def test_a_solve_counts_passes_and_does_not_depend_on_batches_or_units() -> None:
    """1 pass for forward guidance and 1 for each backward step, of each evaluation in the interval;
    under a Normalizer f sees the user's data.
    """
    guided = Loss(LAW.model(VP), quadratic, SIZE, backward=2, rate=0.1, interval=(-3.0, 3.0))
    given: Any = {"condition": {"size": SIZE}, "dtype": F64, "seed": 0}
    out = sd.sample(guided, (4, 3), solver=sd.Heun(), steps=9, **given)
    low, high = sorted(guided.breaks)
    inside = sum(low <= t < high for t in out.times.tolist())
    assert out.backward is not None
    assert out.nfe.tolist() == [19] * 4
    assert out.backward.tolist() == [3 * 2 * inside] * 4
    parts = sd.sample(guided, (4, 3), solver=sd.Heun(), steps=9, batch_size=3, **given)
    near(parts.x, out.x)
    with torch.inference_mode():
        same = sd.sample(guided, (4, 3), solver=sd.Heun(), steps=9, **given)
    near(same.x.clone(), out.x)
    adaptive = sd.sample(guided, (4, 3), solver=sd.RK45(1e-4, 1e-4), **given)
    finer = sd.sample(guided, (4, 3), solver=sd.Heun(), steps=300, **given)
    near(adaptive.x, finer.x, 1e-3)

    centre, std = 3.0, 2.0
    inner = sd.exact.Gaussian((MEAN - centre) / std, (STDS / std) ** 2).model(VP)
    model = sd.ScoreModel(
        inner.net, VP, inner.predicts, time_dtype=F64, normalizer=sd.Normalizer(centre, std)
    )
    x, t = (X - centre) / std, 0.4
    found = Loss(model, quadratic, 0.0, backward=1, rate=0.1).data(x, t, size=SIZE)
    plain = model.data(x, t)
    moved = plain - 0.1 * std * SIZE[:, None] * (centre + std * plain - WANTED)
    near(found, moved)


def test_it_is_dps_where_the_loss_is_a_likelihood() -> None:
    matrix = draws(2, 3, seed=3)
    measured = sd.posterior.Linear(lambda x: x @ matrix.T, noise_std=0.3)
    y = draws(4, 2, seed=4)

    def f(x: Tensor, seen: Tensor) -> Tensor:
        return 0.5 * (seen - x @ matrix.T).square().sum(dim=1) / 0.3**2

    pair = Loss(LAW.model(VP), f, 0.7), sd.posterior.DPS(LAW.model(VP), measured, y, scale=0.7)
    given: Any = {"solver": sd.Heun(), "steps": 60, "seed": 0, "dtype": F64}
    guided, dps = (
        sd.sample(model, (4, 3), condition=condition, **given)
        for model, condition in zip(pair, ({"seen": y}, None), strict=True)
    )
    near(guided.x, dps.x, 1e-8)
    assert guided.backward is not None
    assert dps.backward is not None
    assert guided.backward.tolist() == dps.backward.tolist()


def test_gradients_of_samples_go_through_the_loss() -> None:
    """Along the flow of a linear field, by automatic and by finite differences."""
    for gradient in ("network", "data", "state"):
        more: Any = {} if gradient == "state" else {"backward": 2, "rate": 0.1}

        def f(x: Tensor) -> Tensor:
            return x.sin().sum(dim=1)

        model = sd.ScoreModel(lambda x, t: 0.5 * x.sin(), VP, "noise", data_std=1.0)
        guided = Loss(model, f, 0.5, gradient=gradient, **more)  # type: ignore[arg-type]

        def end(x: Tensor, guided: Loss = guided, grad: Any = "none") -> Tensor:
            given: Any = {"solver": sd.DDIM(), "grid": [0.6, 0.4, 0.2], "last": "noisy"}
            return sd.sample(guided, x.shape, x_init=x, dtype=F64, grad=grad, **given).x

        x, way = X[:2].clone().requires_grad_(), draws(2, 3, seed=5)
        (slope,) = torch.autograd.grad(end(x, grad="full").sum(), x)
        finite = (end(X[:2] + 1e-5 * way) - end(X[:2] - 1e-5 * way)).sum() / 2e-5
        near((slope * way).sum() / finite, torch.ones((), dtype=F64), 1e-7)


def test_conditions_go_to_the_functions_that_name_them() -> None:
    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return x * label[:, None]

    def plain(x: Tensor, t: Tensor) -> Tensor:
        return 0.3 * x

    label = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=F64)
    sigma = float(VP.sigma(torch.tensor(0.4, dtype=F64)))
    model, other = (sd.ScoreModel(each, VP, time_dtype=F64) for each in (net, plain))
    loss: Any = {"gradient": "state"}
    pull = sigma * SIZE[:, None] * (X - WANTED)
    near(Loss(other, quadratic, **loss)(X, 0.4, size=SIZE), 0.3 * X + pull)
    near(Loss(model, quadratic, **loss)(X, 0.4, size=SIZE, label=label), X * label[:, None] + pull)
    free = ClassifierFree(model, 2.0, {"label": 1.0})
    wanted = X * (2 * label[:, None] - 1)
    near(Loss(free, quadratic, **loss)(X, 0.4, size=SIZE, label=label), wanted + pull)

    def log_prob(x: Tensor, t: Tensor, size: Tensor) -> Tensor:
        return -quadratic(x, size)

    found = Loss(other, quadratic, 1.5, **loss)(X, 0.4, size=SIZE)
    near(found, Classifier(other, log_prob, 1.5)(X, 0.4, size=SIZE).detach())


# Recurrence


class Tape:
    """Normals by the step, the stream and their number."""

    def __init__(self, rows: int, step: int = 0) -> None:
        self.rows, self.step = rows, step

    def at(self, step: int) -> Tape:
        return Tape(self.rows, step)

    def take(self, rows: Tensor) -> Tape:
        return Tape(len(rows), self.step)

    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        return draws(self.rows, 3, seed=1000 * self.step + 100 * len(stream) + k % 2**16 + k // 997)

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return self.normal("path", k)


@pytest.mark.parametrize("solver", [sd.DDIM(), sd.Heun(), Ancestral()])
def test_recurrence_is_as_published(solver: Any) -> None:
    """Bansal et al. 2023, Algorithm 1: k times the step, k - 1 times the noise; the last step too.
    By single solves of one interval each.
    """
    guided = Loss(LAW.model(VP), quadratic, 1.0)
    grid, k = [0.8, 0.5, 0.3, 0.1], 3
    given: Any = {"condition": {"size": SIZE}, "dtype": F64, "last": "noisy"}
    found = sd.sample(
        guided, (4, 3), solver=Recurrence(solver, k), grid=grid, x_init=X, noise=Tape(4), **given
    )

    class Anew(Tape):
        """Of a step that is done for the time number ``turn``."""

        turn = 0

        def at(self, step: int) -> Anew:
            return self

        def normal(self, stream: str = "path", k: int = 0) -> Tensor:
            return Tape(self.rows, self.step).normal(stream, 2**16 * self.turn + k)

        def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
            return super().over(a, b, k) if self.turn == 0 else self.normal("churn", k)

    x = X
    for step, (t, s) in enumerate(pairwise(grid)):
        ends = torch.tensor([t, s], dtype=F64)
        (alpha, alpha_s), (sigma, sigma_s) = VP.alpha(ends), VP.sigma(ends)
        for turn in range(k):
            if turn:
                ratio = alpha / alpha_s
                std = (sigma**2 - ratio**2 * sigma_s**2).sqrt()
                x = ratio * x + std * Tape(4, step).normal("churn", turn - 1)
            noise = Anew(4, step)
            noise.turn = turn
            x = sd.sample(
                guided, (4, 3), solver=solver, grid=[t, s], x_init=x, noise=noise, **given
            ).x
    near(found.x, x)
    assert found.nfe.tolist() == [3 * k * (2 if isinstance(solver, sd.Heun) else 1)] * 4


def test_one_repetition_is_the_solver_and_samples_depend_on_their_seeds() -> None:
    model = LAW.model(VP)
    given: Any = {"steps": 6, "dtype": F64}
    for solver in (sd.DDIM(), Ancestral()):
        one = sd.sample(model, (3, 3), solver=Recurrence(solver, 1), seed=0, **given)
        near(one.x, sd.sample(model, (3, 3), solver=solver, seed=0, **given).x, 0)
        all_of_them = sd.sample(
            model, (3, 3), solver=Recurrence(solver, 2), seed=[5, 6, 7], **given
        )
        last = sd.sample(model, (1, 3), solver=Recurrence(solver, 2), seed=[7], **given)
        near(last.x, all_of_them.x[2:])


class Nothing(Tape):
    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        return torch.zeros(self.rows, 1, dtype=F64)

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return self.normal()

    def at(self, step: int) -> Nothing:
        return self


@pytest.mark.thin(0)
def test_recurrence_brings_forward_guidance_to_the_posterior_mean() -> None:
    """A Gaussian prior and -log p(y | x_0): DPS weighs y too much while much noise is left, and
    each repetition of the steps mends it, to within 1 %. All fields are affine, so that the mean of
    samples is the path without noise from the mean of the prior.
    """
    y, std = 1.5, 0.5
    prior = sd.exact.Gaussian(torch.zeros(1), 1.0)
    guided = Loss(prior.model(VP), lambda x: 0.5 * ((x - y) / std).square().sum(dim=1))
    right, gaps = y / (1 + std**2), []
    for k in (1, 4, 16, 64):
        solver = Recurrence(Ancestral(), k)
        start = torch.zeros(1, 1, dtype=F64)
        out = sd.sample(
            guided, (1, 1), solver=solver, steps=20, x_init=start, noise=Nothing(1), dtype=F64
        )
        gaps.append(abs(float(out.x) / right - 1))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.2
    assert gaps[-1] < 0.01


# Mistakes


def untouched(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the diffusion network was asked before the mistake was found")


with torch.inference_mode():
    FROZEN = torch.ones(3, dtype=F64)


@torch.no_grad()
def blind(x: Tensor) -> Tensor:
    return x.sum(dim=1)


@torch.inference_mode()
def inferring(x: Tensor) -> Tensor:
    return x.sum(dim=1)


MISTAKES: dict[str, tuple[Callable[..., Any], str]] = {
    "constant": (lambda x: torch.ones(len(x)), "Loss: f does not depend on x"),
    "other variables": (lambda x: torch.ones(4, requires_grad=True), "does not depend on x"),
    "no gradients": (blind, "look in it for torch.no_grad"),
    "inference": (inferring, "torch.inference_mode, detach"),
    "detached": (lambda x: x.detach().sum(dim=1), "detach"),
    "frozen": (lambda x: (x * FROZEN).square().sum(dim=1), "made under torch.inference_mode"),
    "one number": (lambda x: x.square().mean(), r"a tensor \(4,\); got \(\). Take sums or means"),
    "no sums": (lambda x: x.square(), r"got \(4, 3\)"),
    "no tensor": (lambda x: None, "got NoneType"),
    "writes": (lambda x: x.mul_(2).sum(dim=1), "writes to x in place"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("gradient", ["network", "state"])
def test_mistakes_are_told_before_the_network_is_asked(mistake: str, gradient: Any) -> None:
    function, message = MISTAKES[mistake]
    guided = Loss(sd.ScoreModel(untouched, VP), function, gradient=gradient)
    with pytest.raises(ValueError, match=message):
        sd.sample(guided, (4, 3), solver=sd.DDIM(), steps=4, seed=0, dtype=F64)


@torch.no_grad()
def closed_off(x: Tensor, t: Tensor) -> Tensor:
    return 0.5 * x


@torch.inference_mode()
def inferred(x: Tensor, t: Tensor) -> Tensor:
    return 0.5 * x


def size_one(x: Tensor) -> Tensor:
    return quadratic(x, torch.ones(1, dtype=x.dtype))


@pytest.mark.parametrize("net", [closed_off, inferred, lambda x, t: 0.5 * x.detach()])
def test_a_network_without_gradients_is_refused_where_they_are_needed(net: Any) -> None:
    model = sd.ScoreModel(net, VP)
    given: Any = {"solver": sd.DDIM(), "steps": 4, "seed": 0, "dtype": F64}
    with pytest.raises(ValueError, match=r"whose output has none: look in it for torch\.no_grad"):
        sd.sample(Loss(model, size_one), (4, 3), **given)
    measured = sd.posterior.Linear(lambda x: x[:, :2], noise_std=0.3)
    with pytest.raises(ValueError, match="DPS takes a gradient through the network"):
        sd.sample(sd.posterior.DPS(model, measured, draws(4, 2)), (4, 3), **given)
    assert bool(
        torch.isfinite(sd.sample(Loss(model, size_one, gradient="data"), (4, 3), **given).x).all()
    )


EXACT = LAW.model(VP)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no function": (lambda: Loss(EXACT, 3.0), "f must be a function"),  # type: ignore[arg-type]
    "gradient": (lambda: Loss(EXACT, size_one, gradient="x_0"), "must be one of"),  # type: ignore[arg-type]
    "no rate": (lambda: Loss(EXACT, size_one, backward=3), "backward steps have a length"),
    "no steps": (lambda: Loss(EXACT, size_one, rate=0.1), "give both, backward=5, rate=0.1"),
    "rate": (lambda: Loss(EXACT, size_one, backward=1, rate=-1.0), "rate must be a positive"),
    "backward": (lambda: Loss(EXACT, size_one, backward=-1), "backward must be an int"),
    "of states": (
        lambda: Loss(EXACT, size_one, gradient="state", backward=1, rate=0.1),
        "with gradient='state' f sees states",
    ),
    "no such condition": (
        lambda: sd.sample(Loss(EXACT, quadratic), (4, 3), steps=3, seed=0, dtype=F64),
        "size",
    ),
    "k": (lambda: Recurrence(sd.DDIM(), 0), "k must be an int of at least 1"),
    "adaptive": (lambda: Recurrence(sd.RK45()), "chooses its own steps"),
    "adaptive SDE": (lambda: Recurrence(sd.AdaptiveSDE()), "chooses its own steps"),
    "memory": (lambda: Recurrence(sd.ExponentialMultistep(2)), "carries history"),
    "no solver": (lambda: Recurrence("ddim"), "must be a solver value"),  # type: ignore[arg-type]
    "likelihood": (
        lambda: sd.log_prob(EXACT, X, solver=Recurrence(sd.DDIM()), steps=4),
        "there is no noise",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_says_what_is_wrong(name: str) -> None:
    call, match = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=match):
        call()


def test_where_no_signal_is_left_the_interval_begins_later() -> None:
    chain = sd.DDPM.from_schedule("linear", 40).with_zero_terminal_snr()
    model = sd.ScoreModel(lambda x, t: 0.5 * x, chain.to_sde(), "v", time_dtype=F64)
    given: Any = {"solver": sd.DDIM(), "grid": chain.times, "seed": 0, "dtype": F64}
    with pytest.raises(ValueError, match=r"alpha = 0, .* begin later"):
        sd.sample(Loss(model, size_one), (4, 3), **given)
    late = Loss(model, size_one, interval=(-8.0, math.inf))
    assert bool(torch.isfinite(sd.sample(late, (4, 3), **given).x).all())
