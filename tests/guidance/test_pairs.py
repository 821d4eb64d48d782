"""Autoguidance, rescaled guidance and adaptive projected guidance against their formulas, whatever
networks predict.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from all_sdes import SDES
from labelled import labelled
from reparametrised import reparametrised
from torch import Tensor

import sdediff as sd
from sdediff.guidance import APG, Auto, Classifier, ClassifierFree, Rescale
from sdediff.predictions import PREDICTIONS
from sdediff.protocols import facts

F64 = torch.float64
VP = sd.VP()
LAWS = [
    sd.exact.Gaussian([1.0, -0.5, 0.2], [[0.3, 0.1, 0.0], [0.1, 0.2, 0.05], [0.0, 0.05, 0.4]]),
    sd.exact.Gaussian([-0.8, 0.4, 0.0], [[0.1, -0.05, 0.0], [-0.05, 0.6, 0.1], [0.0, 0.1, 0.3]]),
    sd.exact.Gaussian([0.0, 0.1, 0.3], [[0.9, 0.2, 0.1], [0.2, 0.7, 0.0], [0.1, 0.0, 0.8]]),
]
X = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
LABEL = torch.tensor([0, 1, 1, 0, 1])
NULL = {"label": 2}
EACH = torch.tensor([3.0, 0.0, 1.0, -0.5, 7.0], dtype=F64)
SOME = [
    name if name == "user, alpha and log_snr" else pytest.param(name, marks=pytest.mark.slow)
    for name in SDES
]


def near(found: Tensor, wanted: Tensor, atol: float = 1e-10) -> None:
    size = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found / size, wanted / size, rtol=0, atol=atol)


def both(predicts: str, sde: Any = VP) -> tuple[Tensor, Tensor, Tensor, sd.ScoreModel]:
    """Five times, the predictions of the labels and of the null one, and the network."""
    t = sde.t_min + (sde.t_max - sde.t_min) * torch.linspace(0.1, 0.95, 5, dtype=F64)
    model = labelled(LAWS, sde, "v")
    own, free = (
        getattr(model, predicts)(X, t, label=each) for each in (LABEL, torch.full_like(LABEL, 2))
    )
    return t, own, free, model


@pytest.mark.parametrize("name", SOME)
def test_autoguidance_of_any_two_predictions_is_one_field(name: str) -> None:
    sde = SDES[name]
    t, own, free, _ = both("score", sde)
    wanted = free + EACH[:, None] * (own - free)
    for predicts in PREDICTIONS:
        model = labelled(LAWS, sde, predicts)
        for other in PREDICTIONS:
            weaker = reparametrised(LAWS[2].model(sde), other)
            near(Auto(model, weaker, EACH).score(X, t, label=LABEL), wanted)


def test_autoguidance_minds_sigma_data_of_each_network() -> None:
    t, own, free, _ = both("score")
    model = labelled(LAWS, VP, "edm")
    weaker = reparametrised(LAWS[2].model(VP), "v")
    sized = sd.ScoreModel(lambda x, t: x, VP, "edm", sigma_data=1.3)

    def raw(x: Tensor, time: Tensor) -> Tensor:
        """The output of EDM's network for data of 1.3."""
        alpha, sigma = VP.alpha(time)[:, None], VP.sigma(time)[:, None]
        x = x * (sigma**2 + (1.3 * alpha) ** 2).sqrt()
        return sd.predict.target(sized, weaker.data(x, time), weaker.noise(x, time), time)

    sized.net = raw
    near(Auto(model, sized, 3.0).score(X, t, label=LABEL), 3 * own - 2 * free)


def test_autoguidance_counts_jumps_and_extras_of_both() -> None:
    model = labelled(LAWS, VP)
    weaker = ClassifierFree(model, 2, NULL, interval=(-4.0, 1.0))
    guided = Auto(model, weaker, 3.0, interval=(-1.0, 2.0))
    assert facts(guided).cost == 3
    assert len(facts(guided).breaks) == 4
    given: Any = {"condition": {"label": LABEL}, "seed": 0, "dtype": F64}
    out = sd.sample(guided, (5, 3), solver=sd.EulerMaruyama(), steps=20, **given)
    times = out.times.tolist()[1:]
    t = VP.time_of(torch.tensor([-4.0, -1.0, 1.0, 2.0], dtype=F64)).tolist()
    wanted = 21 + sum(t[3] <= each < t[1] for each in times)
    wanted += sum(t[2] <= each < t[1] for each in times)
    assert out.nfe.tolist() == [wanted] * 5
    alone = sd.sample(Auto(model, weaker, 1.0), (5, 3), solver=sd.DDIM(), steps=9, **given)
    assert torch.equal(alone.nfe, torch.full((5,), 10))


def rescaled(own: Tensor, free: Tensor, phi: float) -> Tensor:
    guided = free + EACH[:, None] * (own - free)
    ratio = own.std(dim=1, keepdim=True) / guided.std(dim=1, keepdim=True)
    return guided * (phi * ratio + 1 - phi)


@pytest.mark.parametrize("name", SOME)
def test_rescaling_and_projection_are_the_formulas_whatever_the_network_predicts(
    name: str,
) -> None:
    sde = SDES[name]
    for predicts in PREDICTIONS:
        guided = ClassifierFree(labelled(LAWS, sde, predicts), EACH, NULL)
        for space in ("v", "data", "noise"):
            t, own, free, _ = both(space, sde)
            found = getattr(Rescale(guided, 0.7, space=space), space)(X, t, label=LABEL)
            near(found, rescaled(own, free, 0.7))
        t, own, free, _ = both("data", sde)
        for eta, norm in ((0.0, None), (0.3, 0.5), (1.0, None)):
            apart = own - free
            if norm is not None:
                apart = apart * (norm / apart.norm(dim=1, keepdim=True)).clamp(max=1)
            share = (apart * own).sum(dim=1) / own.square().sum(dim=1)
            across = apart - share[:, None] * own
            wanted = own + (EACH - 1)[:, None] * (across + eta * (apart - across))
            near(APG(guided, eta, norm).data(X, t, label=LABEL), wanted)


def test_without_corrections_they_are_the_guidance_inside() -> None:
    inside = Auto(labelled(LAWS, VP), reparametrised(LAWS[2].model(VP), "data"), 4.0)
    wanted = inside.score(X, 0.3, label=LABEL)
    near(APG(inside, eta=1.0).score(X, 0.3, label=LABEL), wanted)
    near(Rescale(inside, 0.0).score(X, 0.3, label=LABEL), wanted)
    condition = {"label": LABEL}
    given: Any = {"solver": sd.Heun(), "steps": 9, "condition": condition, "seed": 0, "dtype": F64}
    model = labelled(LAWS, VP)
    outside = ClassifierFree(model, 4.0, NULL, interval=(-2.0, 1.0))
    for corrected in (APG(outside), Rescale(outside)):
        out = sd.sample(corrected, (5, 3), **given)
        t = VP.time_of(torch.tensor([1.0, -2.0], dtype=F64)).tolist()
        inside_steps = sum(t[0] <= each < t[1] for each in out.times.tolist())
        assert out.nfe.tolist() == [2 * (9 + inside_steps) + 1] * 5


def test_what_does_not_exist_changes_nothing() -> None:
    """A third coordinate that a mask leaves out, against states of two."""
    pair = [sd.exact.Gaussian(law.mean[:2], law.covariance[:2, :2]) for law in LAWS]
    small = labelled(pair, VP)

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.cat([small.net(x[:, :2], t, label), 9 + 0 * x[:, 2:]], dim=1)

    padded = sd.ScoreModel(net, VP, "v", time_dtype=F64, data_std=1.0)
    mask = torch.tensor([[True, True, False]]).expand(5, 3)
    given: Any = {"condition": {"label": LABEL}, "solver": sd.Heun(), "steps": 6, "dtype": F64}
    for correct in (Rescale, lambda inside: APG(inside, 0.2, 0.4)):
        one, two = (
            sd.sample(correct(ClassifierFree(m, EACH, NULL)), x.shape, x_init=x, mask=its, **given)
            for m, x, its in ((small, X[:, :2], None), (padded, X * mask, mask))
        )
        near(two.x[:, :2], one.x)


def test_a_learned_variance_goes_through_all_of_them() -> None:
    """In the steps of a chain that takes it from the network."""

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.cat([0.9 * x, label[:, None].expand_as(x).to(x)], dim=1)

    model = sd.ScoreModel(net, VP, learned_variance=True, time_dtype=F64)
    weaker = sd.ScoreModel(lambda x, t: 0.5 * x, VP, time_dtype=F64)
    chain = sd.DDPM.from_sde(VP, 5, variance="learned")
    free = ClassifierFree(model, 2.0, NULL)
    for guided in (
        free,
        Auto(model, weaker, 2.0),
        Rescale(free),
        APG(free),
        Classifier(free, pull),
    ):
        (at,) = guided.at(torch.tensor([0.5], dtype=F64), sd.protocols.Like.of(X))
        found: Any = guided.evaluate(X, at, sd.Rows.of(5, {"label": LABEL}))
        near(found.variance, LABEL[:, None].expand_as(X).to(X))
        given: Any = {"condition": {"label": LABEL}, "seed": 0, "dtype": F64}
        assert bool(torch.isfinite(sd.sample(guided, (5, 3), solver=chain, **given).x).all())


def pull(x: Tensor, t: Tensor) -> Tensor:
    """log p(y | x_t) of a y near the origin."""
    return -0.5 * x.square().sum(dim=1)


def test_operators_compose_and_their_costs_multiply() -> None:
    model, weaker = labelled(LAWS, VP), reparametrised(LAWS[2].model(VP), "data")
    inner = Auto(model, weaker, 1.5)
    outer = ClassifierFree(inner, 2.0, NULL)
    t, own, free, _ = both("score")
    wanted = 2 * (1.5 * own - 0.5 * free) - (1.5 * free - 0.5 * free)
    near(outer.score(X, t, label=LABEL), wanted)
    assert facts(outer).cost == 4

    near(Classifier(outer, pull).score(X, t, label=LABEL).detach(), wanted - X)
    clipped = APG(ClassifierFree(model, 9.0, NULL)).constrained(sd.Clip(-0.2, 0.2))
    out = sd.sample(clipped, (5, 3), steps=5, seed=0, condition={"label": LABEL})
    assert bool((out.x.abs() <= 0.2).all())


NET = labelled(LAWS, VP)


def test_a_sample_of_one_coordinate_is_not_rescaled() -> None:
    """A mask leaves one of two: its standard deviation is 0."""
    model = sd.ScoreModel(lambda x, t, label: (1 + label[:, None]) * x / 9, VP, "v")
    free, mask = ClassifierFree(model, 3.0, NULL), torch.tensor([[True, False], [False, True]])
    one, two = (
        sd.sample(each, (2, 2), steps=4, seed=0, condition={"label": 1}, mask=mask).x
        for each in (free, Rescale(free))
    )
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


class Cubed(sd.SDE):
    """An SDE without a Gaussian kernel."""

    prior = sd.Prior(1.0)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return -(x**3)

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


FREE = ClassifierFree(sd.ScoreModel(lambda x, t, label: -x, Cubed(), "score"), 2, NULL)
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "no pair": (lambda: Rescale(NET), "goes around guidance by two predictions"),
    "no pair either": (lambda: APG(Rescale(ClassifierFree(NET, 2, NULL))), "got Rescale"),
    "phi": (lambda: Rescale(ClassifierFree(NET, 2, NULL), 1.5), "phi must lie in"),
    "space": (lambda: Rescale(ClassifierFree(NET, 2, NULL), space="eta"), "space must be one of"),
    "no kernel": (lambda: APG(FREE), "APG combines predictions of data, and Cubed.* no Gaussian"),
    "norm": (lambda: APG(ClassifierFree(NET, 2, NULL), norm=0), "norm must be positive"),
    "eta": (lambda: APG(ClassifierFree(NET, 2, NULL), eta=math.nan), "eta must be finite"),
    "other SDE": (lambda: Auto(NET, LAWS[2].model(sd.VE()), 2), "must have one SDE, got VP"),
    "other units": (
        lambda: Auto(NET, sd.ScoreModel(NET.net, VP, normalizer=sd.Normalizer(0, 2)), 2),
        "must have one normalizer",
    ),
    "no weaker": (lambda: Auto(NET, NET.net, 2), "Auto: the weaker model: .* must be a ScoreModel"),
    "scale": (lambda: Auto(NET, NET, "much"), "Auto: scale must be a number"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_when_the_model_is_made(mistake: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_one_coordinate_has_no_spread_to_rescale() -> None:
    model = sd.ScoreModel(lambda x, t, label: x, VP)
    with pytest.raises(ValueError, match="it needs two at least"):
        Rescale(ClassifierFree(model, 2, NULL))(X[:, :1], 0.5, label=LABEL)
