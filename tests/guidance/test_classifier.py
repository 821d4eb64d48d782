"""Classifier guidance: the exact classifier gives the exact conditional score; the two published
algorithms; which condition goes where; errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from all_sdes import SDES
from labelled_mixture import CLASSES, EVERY, posterior
from reparametrised import reparametrised
from torch import Tensor

import sdediff as sd
from sdediff.guidance import Classifier, ClassifierFree
from sdediff.predictions import PREDICTIONS

F64 = torch.float64
VP = sd.VP()
ROWS = torch.arange(12)
LABEL = ROWS % 3


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, wanted: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("name", SDES)
def test_the_exact_classifier_gives_the_exact_conditional_score(name: str) -> None:
    """sigma times the score, at times of the whole range, whatever the network predicts."""
    sde = SDES[name]
    t = torch.linspace(sde.t_min, sde.t_max, 12, dtype=F64)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    x = alpha * EVERY.sample(12, seed=1) + sigma * draws(12, 2)
    wanted = torch.stack([law.noise(sde, x, t) for law in CLASSES])[LABEL, ROWS]
    for predicts in PREDICTIONS:
        model = reparametrised(EVERY.model(sde), predicts)
        guided = Classifier(model, posterior(sde), 1.0)
        near(guided.noise(x, t, label=LABEL), wanted)


@pytest.mark.thin(0)
def test_a_solve_is_that_of_the_conditional_model_and_counts_backward_passes() -> None:
    """With a scale of one a sample and in parts of a batch; the density too."""
    guided = Classifier(EVERY.model(VP), posterior(VP), torch.ones(12))
    known = torch.stack([law.sample(12, seed=2) for law in CLASSES])[LABEL, ROWS]

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        each = torch.stack([law.v(VP, x, t) for law in CLASSES])
        return each[label, torch.arange(len(x))]

    model = sd.ScoreModel(net, VP, "v", time_dtype=F64, data_std=EVERY.data_std)
    given: Any = {"condition": {"label": LABEL}, "dtype": F64, "seed": 0, "batch_size": 5}
    for solver, steps in ((sd.DDIM(), 10), (sd.EulerMaruyama(), 10), (sd.RK45(1e-3, 1e-3), None)):
        one, two = (
            sd.sample(m, (12, 2), solver=solver, steps=steps, **given) for m in (guided, model)
        )
        near(one.x, two.x, 1e-9)
        assert torch.equal(one.nfe, two.nfe)
        assert one.backward is not None
        assert torch.equal(one.backward, one.nfe)
    few: Any = {"condition": {"label": LABEL[:2]}, "solver": sd.RK45(1e-4, 1e-4)}
    guided = Classifier(EVERY.model(VP), posterior(VP))
    one, two = (sd.log_prob(m, known[:2], **few) for m in (guided, model))
    near(one.value, two.value, 1e-8)


def test_gradients_of_samples_go_through_the_classifier() -> None:
    x, wanted = (draws(3, 2).requires_grad_() for _ in range(2))

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * (x - 1).square().sum(dim=1)

    model = sd.ScoreModel(lambda x, t: 0.5 * x.sin(), VP, "score", data_std=1.0)
    same = sd.ScoreModel(lambda x, t: 0.5 * x.sin() - 2 * (x - 1), VP, "score", data_std=1.0)
    given: Any = {"solver": sd.Heun(), "steps": 4, "grad": "full", "dtype": F64}
    pulls = [
        torch.autograd.grad(sd.sample(m, (3, 2), x_init=start, **given).x.sum(), start)[0]
        for m, start in ((Classifier(model, log_prob, 2.0), x), (same, wanted))
    ]
    near(*pulls)
    with torch.inference_mode():
        inside = Classifier(model, log_prob, 2.0).score(draws(3, 2), 0.5)
    near(inside.clone(), same.score(draws(3, 2), 0.5))


# The chain: Algorithms 1 and 2 of Dhariwal and Nichol


class Listed:
    """Noise that a test knows: a draw for each step."""

    def __init__(self, rows: int, step: int = 0) -> None:
        self.rows, self.step = rows, step

    def at(self, step: int) -> Listed:
        return Listed(self.rows, step)

    def take(self, rows: Tensor) -> Listed:
        return Listed(len(rows), self.step)

    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        return draws(self.rows, 2, seed=self.step)

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return self.normal()


def eps(x: Tensor, t: Tensor) -> Tensor:
    return 0.8 * x + 0.2 * t[:, None] * x.sin()


def log_prob(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """A classifier of three classes."""
    logits = x @ torch.tensor([[1.0, -0.5, 0.2], [0.3, 0.8, -1.0]], dtype=x.dtype)
    return (logits * (1 + t[:, None])).log_softmax(dim=1).gather(1, label[:, None])[:, 0]


def gradient(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(log_prob(x, t, label).sum(), x)[0]


CHAIN = sd.DDPM.from_schedule("linear", 40)
START, CLASS = draws(6, 2, seed=7), torch.tensor([0, 1, 2, 0, 1, 2])
ON: dict[str, Any] = {"x_init": START, "condition": {"label": CLASS}, "dtype": F64}


@pytest.mark.parametrize("variance", ["beta", "beta_tilde", "learned"])
def test_algorithm_1_is_as_published(variance: Any) -> None:
    """x_{i-1} ~ N(mu + s Sigma grad log p(y | x_i), Sigma), with Sigma of each coordinate where it
    is learned; at i = 1 the mean.
    """
    chain = sd.DDPM(CHAIN.betas, CHAIN.grid, variance)
    learned = variance == "learned"

    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([eps(x, t), x.cos()], dim=1) if learned else eps(x, t)

    model = sd.ScoreModel(net, chain.to_sde(), learned_variance=learned, time_dtype=F64)
    guided = Classifier(model, log_prob, 3.0, chain=chain)
    found = sd.sample(guided, (6, 2), solver=chain, noise=Listed(6), **ON)
    betas = torch.tensor(chain.betas, dtype=F64)
    bars = (1 - betas).cumprod(0)
    x, before = START, torch.cat([torch.ones(1, dtype=F64), bars[:-1]])
    tilde = betas * (1 - before) / (1 - bars)
    low, high = torch.cat([tilde[1:2], tilde[1:]]).log(), torch.cat([tilde[1:2], betas[1:]]).log()
    high = betas.log() if learned else high
    for step, i in enumerate(range(39, -1, -1)):
        t = torch.full((6,), chain.grid[i], dtype=F64)
        share = 0.5 * (x.cos() + 1) if learned else float(variance == "beta")
        size = torch.exp(low[i] + share * (high[i] - low[i]))
        mean = (x - betas[i] / (1 - bars[i]).sqrt() * eps(x, t)) / (1 - betas[i]).sqrt()
        mean = mean + 3.0 * size * gradient(x, t, CLASS)
        x = mean + size**0.5 * draws(6, 2, seed=step) if i else mean
    near(found.x, x)


def test_algorithm_2_is_as_published() -> None:
    """DDIM with eps - sqrt(1 - alpha_bar) s grad."""
    model = sd.ScoreModel(eps, CHAIN.to_sde(), time_dtype=F64)
    found = sd.sample(
        Classifier(model, log_prob, 3.0), (6, 2), solver=sd.DDIM(), grid=CHAIN.times, **ON
    )
    x, bars = START, CHAIN.alphas_bar
    for i in range(39, -1, -1):
        t = torch.full((6,), CHAIN.grid[i], dtype=F64)
        noise = eps(x, t) - (1 - bars[i]).sqrt() * 3.0 * gradient(x, t, CLASS)
        clean = (x - (1 - bars[i]).sqrt() * noise) / bars[i].sqrt()
        x = bars[i - 1].sqrt() * clean + (1 - bars[i - 1]).sqrt() * noise if i else clean
    near(found.x, x)


def test_both_algorithms_agree_to_first_order_in_beta() -> None:
    """By how much the mean of one step moves, over beta: it differs by a quarter when beta is
    halved twice, and is the gradient at beta = 0.
    """
    gaps = []
    for count in (100, 200, 400):
        chain = sd.DDPM.from_sde(VP, count, variance="beta")
        model = sd.ScoreModel(eps, VP, time_dtype=F64)
        x, i = START, count // 2
        t = torch.tensor([chain.grid[i - 1]], dtype=F64)
        each = [
            guided.data(x, t.expand(6), label=CLASS) - model.data(x, t.expand(6))
            for guided in (Classifier(model, log_prob), Classifier(model, log_prob, chain=chain))
        ]
        moved = [chain.posterior_columns[0][i - 1] / chain.betas[i - 1] * one for one in each]
        near(moved[1], gradient(x, t.expand(6), CLASS))
        gaps.append(float((moved[0] - moved[1]).detach().norm()))
    for few, many in itertools.pairwise(gaps):
        assert abs(math.log2(few / many) - 1) < 0.1


def test_a_chain_is_refused_at_other_times_and_for_another_sde() -> None:
    model = sd.ScoreModel(eps, CHAIN.to_sde())
    with pytest.raises(ValueError, match="take solver=chain, or leave chain out"):
        sd.sample(Classifier(model, log_prob, chain=CHAIN), (6, 2), solver=sd.DDIM(), steps=7, **ON)
    with pytest.raises(ValueError, match="does not have the marginals"):
        Classifier(sd.ScoreModel(eps, VP), log_prob, chain=CHAIN)
    fewer = CHAIN.respaced(len(CHAIN.grid) // 2)
    with pytest.raises(ValueError, match="pass the chain that is the solver"):
        sd.sample(Classifier(model, log_prob, chain=CHAIN), (6, 2), solver=fewer, **ON)
    with pytest.raises(TypeError, match="chain must be a DDPM"):
        Classifier(model, log_prob, chain=40)


def test_where_no_signal_is_left_a_shift_of_v_is_refused_unless_the_interval_begins_later() -> None:
    chain = CHAIN.with_zero_terminal_snr()
    model = sd.ScoreModel(eps, chain.to_sde(), "v", time_dtype=F64)
    for solver, grid in ((chain, None), (sd.DDIM(), chain.times)):
        given: Any = {"solver": solver, "grid": grid, "seed": 0, **ON}
        with pytest.raises(ValueError, match=r"alpha = 0, the shift .* begin later"):
            sd.sample(Classifier(model, log_prob), (6, 2), **given)
        late = Classifier(model, log_prob, interval=(-8.0, math.inf))
        if solver is not chain:
            assert bool(torch.isfinite(sd.sample(late, (6, 2), **given).x).all())
    one = Classifier(model, log_prob, chain=chain)
    assert bool(torch.isfinite(sd.sample(one, (6, 2), solver=chain, seed=0, **ON).x).all())
    noise = Classifier(sd.ScoreModel(eps, chain.to_sde(), time_dtype=F64), log_prob)
    ones = torch.ones(6, dtype=F64)
    near(noise(START, 1.0, label=CLASS), eps(START, ones) - gradient(START, ones, CLASS))


# Which condition goes where


def test_each_function_is_handed_the_conditions_that_it_names() -> None:
    def alone(x: Tensor, t: Tensor) -> Tensor:
        return eps(x, t)

    def both(x: Tensor, t: Tensor, label: Tensor, size: Tensor) -> Tensor:
        return eps(x, t) * size[:, None] + label[:, None]

    def style(x: Tensor, t: Tensor, *, size: Tensor) -> Tensor:
        return -0.5 * size * x.square().sum(dim=1)

    size, t = draws(6, seed=3).abs(), torch.full((6,), 0.4, dtype=F64)
    sigma = float(VP.sigma(torch.tensor(0.4, dtype=F64)))
    pull = -sigma * gradient(START, t, CLASS)
    free = sd.ScoreModel(alone, VP, time_dtype=F64)
    near(Classifier(free, log_prob)(START, 0.4, label=CLASS), eps(START, t) + pull)
    nested = Classifier(Classifier(free, log_prob), style)
    shrink = sigma * size[:, None] * START
    near(nested(START, 0.4, label=CLASS, size=size), eps(START, t) + pull + shrink)
    twice = Classifier(Classifier(free, log_prob), log_prob)
    near(twice(START, 0.4, label=CLASS), eps(START, t) + 2 * pull)
    conditional = sd.ScoreModel(both, VP, time_dtype=F64)
    wanted = eps(START, t) * size[:, None] + CLASS[:, None] + pull
    near(Classifier(conditional, log_prob)(START, 0.4, label=CLASS, size=size), wanted)
    guided = Classifier(ClassifierFree(conditional, 2, {"label": 9}), log_prob)
    near(guided(START, 0.4, label=CLASS, size=size), wanted + CLASS[:, None] - 9)


def test_a_classifier_sees_its_own_dtype_and_time_in_evaluation_mode() -> None:
    seen = []

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                self.layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout(0.5))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append((x.dtype, t.dtype, t.tolist(), self.training))
            return self.layers(x)

    net = Net()

    def first(x: Tensor, t: Tensor) -> Tensor:
        return net(x, t).log_softmax(dim=1)[:, 0]

    guided = Classifier(sd.ScoreModel(eps, VP), first, time=sd.network_time.Timesteps(1000))
    sd.sample(
        guided, (2, 2), solver=sd.DDIM(), dtype=F64, grid=[0.5, 0.2], last="noisy", x_init=START[:2]
    )
    assert seen == [(torch.float32, torch.float32, [499.0, 499.0], False)]
    assert net.training


def test_outside_its_interval_a_classifier_is_not_asked() -> None:
    guided = Classifier(sd.ScoreModel(eps, VP), log_prob, interval=(-2.0, 1.0))
    out = sd.sample(guided, (6, 2), solver=sd.Heun(), steps=9, **ON)
    assert out.backward is not None
    low, high = sorted(guided.breaks)
    inside = sum(low <= t < high for t in out.times.tolist())
    assert out.nfe.tolist() == [19] * 6
    assert out.backward.tolist() == [2 * inside] * 6


# Mistakes


def untouched(x: Tensor, t: Tensor) -> Tensor:
    raise AssertionError("the diffusion network was asked before the mistake was found")


with torch.inference_mode():
    FROZEN = torch.ones(2, dtype=F64)


@torch.no_grad()
def blind(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    return log_prob(x, t, label)


MISTAKES: dict[str, tuple[Callable[..., Any], str]] = {
    "probabilities": (lambda x, t, label: log_prob(x, t, label).exp(), "which are at most 0"),
    "logits": (lambda x, t: -x.repeat(1, 2), r"write lambda x, t, label: .*gather"),
    "one number": (lambda x, t: -x.square().sum(), r"a tensor \(6,\); got \(\)"),
    "no tensor": (lambda x, t: None, "got NoneType"),
    "constant": (lambda x, t: -t, "does not depend on x"),
    "no gradients": (blind, "look in it for torch.no_grad"),
    "of frozen weights": (
        lambda x, t: -((x * FROZEN).square().sum(dim=1)),
        "made under torch.inference_mode",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_the_network_is_asked(mistake: str) -> None:
    function, message = MISTAKES[mistake]
    guided = Classifier(sd.ScoreModel(untouched, VP), function)
    with pytest.raises((TypeError, ValueError), match=message):
        sd.sample(guided, (6, 2), solver=sd.DDIM(), steps=4, seed=0, **ON)


def test_a_condition_that_is_not_there_is_named() -> None:
    guided = Classifier(sd.ScoreModel(untouched, VP), log_prob)
    with pytest.raises(TypeError) as told:
        sd.sample(guided, (6, 2), steps=4, seed=0)
    assert "goes into condition=" in "".join(told.value.__notes__)
    with pytest.raises(TypeError, match="log_prob must be a function"):
        Classifier(sd.ScoreModel(untouched, VP), torch.ones(3))


def test_a_null_label_that_a_classifier_does_not_have() -> None:
    """Inside classifier-free guidance a classifier is asked for the null label too: torch's error
    says which labels it was called with, and what to do.
    """
    model = sd.ScoreModel(lambda x, t, label: x, VP, null={"label": 3})

    def log_prob(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return (x @ torch.ones(2, 3)).log_softmax(dim=1).gather(1, label[:, None])[:, 0]

    given: Any = {"condition": {"label": torch.tensor([0, 2])}, "steps": 2}
    inside = ClassifierFree(Classifier(model, log_prob), 2.0)
    with pytest.raises((RuntimeError, IndexError)) as told:
        sd.sample(inside, (2, 2), **given)
    said = "".join(told.value.__notes__)
    assert "label from 0 to 3" in said
    assert "ClassifierFree around it reaches it too: put that inside" in said
    assert (
        sd.sample(Classifier(ClassifierFree(model, 2.0), log_prob), (2, 2), **given)
        .x.isfinite()
        .all()
    )
