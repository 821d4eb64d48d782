"""Classifier-free guidance against its formula, in every space, at its ends, and its errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from all_sdes import SDES
from labelled import labelled
from torch import Tensor

import sdediff as sd
from sdediff.guidance import ClassifierFree, NoiseLevels
from sdediff.predictions import PREDICTIONS
from sdediff.protocols import facts

F64 = torch.float64
VP = sd.VP()
LAWS = [
    sd.exact.Gaussian([1.0, -0.5], [[0.3, 0.1], [0.1, 0.2]]),
    sd.exact.Gaussian([-0.8, 0.4], [[0.1, -0.05], [-0.05, 0.6]]),
    sd.exact.Gaussian([0.0, 0.0], [[0.9, 0.2], [0.2, 0.7]]),
]
X = torch.tensor([[2.0, -1.5], [0.1, 0.2], [-3.0, 0.4], [0.7, 1.1], [-0.4, -2.2]], dtype=F64)
LABEL = torch.tensor([0, 1, 1, 0, 1])
NULL = {"label": 2}


def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """A smooth network whose field a label turns and shifts."""
    weight = (0.3 + 0.2 * label.to(x))[:, None]
    return weight * torch.sin(x.flip(1) + t[:, None]) - 0.2 * x + weight


NET = sd.ScoreModel(net, VP, "v", time_dtype=F64, data_std=1.0)
ON: dict[str, Any] = {"condition": {"label": LABEL}, "dtype": F64, "seed": 3}
SOLVERS: list[tuple[Any, int | None]] = [
    (sd.DDIM(), 8),
    (sd.solvers.UniPC(), 8),
    (sd.EulerMaruyama(), 20),
    (sd.RK45(1e-4, 1e-4), None),
    (sd.AdaptiveSDE(0.2, 0.2), None),
]


def near(found: Tensor, wanted: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def formula(scale: Callable[[Tensor], Tensor] | Tensor | float) -> sd.ScoreModel:
    """u + s (c - u) of the v predictions, by hand; ``scale`` is of (B,) times or of the samples."""

    def net(x: Tensor, t: Tensor, label: Tensor, s: Tensor) -> Tensor:
        own, free = (NET.net(x, t, each) for each in (label, torch.full_like(label, 2)))
        return free + (scale(t) if callable(scale) else s)[:, None] * (own - free)

    return sd.ScoreModel(net, VP, "v", time_dtype=F64, data_std=1.0)


EACH = torch.tensor([2.5, 0.0, 1.0, -0.5, 7.0], dtype=F64)
SCALES: dict[str, Any] = {
    "number": (2.5, torch.full((5,), 2.5, dtype=F64)),
    "of samples": (EACH, EACH),
    "of time": (lambda t: 1 + 2 * t, lambda t: 1 + 2 * t),
}


@pytest.mark.thin(3)
@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize(("solver", "steps"), SOLVERS, ids=lambda s: repr(s) if s else "")
def test_samples_are_those_of_the_formula(solver: Any, steps: int | None, kind: str) -> None:
    """For each kind of scale, in parts of a batch, by one call or two; evaluations are counted."""
    scale, known = SCALES[kind]
    model = formula(known)
    given = {**ON, "solver": solver, "steps": steps}
    s = known if isinstance(known, Tensor) else torch.zeros(5, dtype=F64)
    wanted = sd.sample(model, (5, 2), **{**given, "condition": {"label": LABEL, "s": s}})
    for size, batched in ((None, True), (2, False)):
        guided = ClassifierFree(NET, scale, NULL, batched=batched)
        found = sd.sample(guided, (5, 2), batch_size=size, **given)
        near(found.x, wanted.x)
        assert torch.equal(found.nfe, 2 * wanted.nfe)


@pytest.mark.thin(1)
@pytest.mark.parametrize("name", SDES)
def test_every_prediction_is_guided_alike(name: str) -> None:
    """Both conventions, and a few times with an own one for each row."""
    sde = SDES[name]
    t = torch.linspace(sde.t_min, sde.t_max, 7, dtype=F64)[[1, 2, 3, 4, 5]]
    free = torch.full_like(LABEL, 2)
    for predicts in PREDICTIONS:
        model = labelled(LAWS, sde, predicts)
        wanted = -1.2 * model.score(X, t, label=free) + 2.2 * model.score(X, t, label=LABEL)
        for scale, convention in ((2.2, "s"), (1.2, "1+w")):
            for batched in (True, False):
                guided = ClassifierFree(model, scale, NULL, convention=convention, batched=batched)
                found = guided.score(X, t, label=LABEL)
                size = float(wanted.abs().max())
                near(found / size, wanted / size)


def test_conventions_agree() -> None:
    for s, w in ((3.0, 2.0), (EACH, EACH - 1), (lambda t: 1 + 2 * t, lambda t: 2 * t)):
        one = ClassifierFree(NET, s, NULL).data(X, 0.4, label=LABEL)
        two = ClassifierFree(NET, w, NULL, convention="1+w").data(X, 0.4, label=LABEL)
        near(one, two, 1e-12)


@pytest.mark.parametrize(("scale", "label"), [(1.0, LABEL), (0.0, torch.full_like(LABEL, 2))])
def test_no_guidance_and_no_condition_cost_one_evaluation(scale: float, label: Tensor) -> None:
    given = {**ON, "solver": sd.Heun(), "steps": 5}
    found = sd.sample(ClassifierFree(NET, scale, NULL), (5, 2), **given)
    wanted = sd.sample(NET, (5, 2), **{**given, "condition": {"label": label}})
    near(found.x, wanted.x, 1e-13)
    assert torch.equal(found.nfe, wanted.nfe)
    vanishing = ClassifierFree(NET, lambda t: scale + 0 * t, NULL)
    assert torch.equal(sd.sample(vanishing, (5, 2), **given).nfe, wanted.nfe)


def test_null_may_be_of_each_sample_and_leaves_other_conditions_alone() -> None:
    def told(x: Tensor, t: Tensor, text: Tensor, size: Tensor) -> Tensor:
        return x * size[:, None] + text.mean(dim=(1, 2))[:, None]

    draws = torch.Generator().manual_seed(0)
    text, negative = torch.randn(2, 5, 3, 4, dtype=F64, generator=draws)
    size = torch.arange(5.0, dtype=F64)
    model = sd.ScoreModel(told, VP, "noise")
    wanted = X * size[:, None] + (3 * text - 2 * negative).mean(dim=(1, 2))[:, None]
    rows = torch.tensor([4, 2])
    for batched in (True, False):
        guided = ClassifierFree(model, 3, {"text": negative}, batched=batched)
        near(guided(X, 0.5, text=text, size=size), wanted)
        batch = sd.Rows.of(5, {"text": text, "size": size}).take(rows)
        (at,) = guided.at(torch.tensor([0.5], dtype=F64), sd.protocols.Like.of(X[rows]))
        near(guided.evaluate(X[rows], at, batch), wanted[rows])
        one = ClassifierFree(model, 3, {"text": negative[:1]}, batched=batched)
        same = ClassifierFree(model, 3, {"text": negative[0]}, batched=batched)
        assert torch.equal(one(X, 0.5, text=text, size=size), same(X, 0.5, text=text, size=size))


def test_null_is_by_default_that_of_the_model() -> None:
    """Also of one with a constraint around it, and of guidance inside; another one may be given."""
    declared = sd.ScoreModel(net, VP, "v", time_dtype=F64, data_std=1.0, null=NULL)
    for inside, plain in (
        (declared, NET),
        (declared.constrained(sd.Clip(-1, 1)), NET.constrained(sd.Clip(-1, 1))),
        (
            ClassifierFree(declared, 2, interval=(-3, 3)),
            ClassifierFree(NET, 2, NULL, interval=(-3, 3)),
        ),
    ):
        wanted = ClassifierFree(plain, 3, NULL).data(X, 0.4, label=LABEL)
        assert torch.equal(ClassifierFree(inside, 3).data(X, 0.4, label=LABEL), wanted)
    other = ClassifierFree(declared, 3, {"label": 4}).data(X, 0.4, label=LABEL)
    assert torch.equal(other, ClassifierFree(NET, 3, {"label": 4}).data(X, 0.4, label=LABEL))


def test_a_learned_variance_is_that_of_the_condition() -> None:
    def doubled(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.cat([x, label[:, None].expand_as(x).to(x)], dim=1)

    model = sd.ScoreModel(doubled, VP, learned_variance=True)
    for scale in (3.0, 0.0, 1.0):
        for batched in (True, False):
            guided = ClassifierFree(model, scale, NULL, batched=batched)
            (at,) = guided.at(torch.tensor([0.5], dtype=F64), sd.protocols.Like.of(X))
            found: Any = guided.evaluate(X, at, sd.Rows.of(5, {"label": LABEL}))
            near(found.value, X)
            near(found.variance, LABEL[:, None].expand_as(X).to(X))


# An interval of noise levels


LEVELS = -3.0, 2.0
HIGH, LOW = VP.time_of(torch.tensor(LEVELS, dtype=F64)).tolist()
BETWEEN = ClassifierFree(NET, 2.5, NULL, interval=LEVELS)
PATH = {**ON, "x_init": X, "last": "noisy"}


def in_parts(solver: Any) -> Tensor:
    """From X at 0.9 to 0.1 in three solves without breaks."""
    x = X
    ends = (NET, 0.9, HIGH), (ClassifierFree(NET, 2.5, NULL), HIGH, LOW), (NET, LOW, 0.1)
    for model, start, end in ends:
        given = {**PATH, "x_init": x}
        x = sd.sample(model, (5, 2), solver=solver, t_start=start, t_end=end, **given).x
    return x


TIGHT = in_parts(sd.solvers.DOP853(1e-13, 1e-13))


def even(steps: int) -> Tensor:
    """A grid from 0.9 to 0.1 that is even in each part of the way."""
    parts = [
        torch.linspace(a, b, n + 1, dtype=F64)[:-1]
        for a, b, n in zip(
            (0.9, HIGH, LOW), (HIGH, LOW, 0.1), (steps // 4, steps // 2, steps // 4), strict=True
        )
    ]
    return torch.cat([*parts, torch.tensor([0.1], dtype=F64)])


ORDERS = {
    "DDIM": (sd.DDIM(), 1, 32),
    "Heun": (sd.Heun(), 2, 32),
    "singlestep": (sd.solvers.ExponentialSinglestep(3), 3, 32),
    "multistep": (sd.ExponentialMultistep(3, startup="exact"), 3, 32),
    "UniPC": (sd.solvers.UniPC(2), 3, 64),
}


@pytest.mark.parametrize("name", ORDERS)
def test_orders_survive_the_ends_of_an_interval(name: str) -> None:
    """And are lost (below 1.25) where the scale jumps without an interval."""
    solver, order, least = ORDERS[name]

    def measured(model: Any) -> float:
        few, many = (
            float((sd.sample(model, (5, 2), solver=solver, grid=even(n), **PATH).x - TIGHT).norm())
            for n in (least, 2 * least)
        )
        return math.log2(few / many)

    def jumping(t: Tensor) -> Tensor:
        return torch.where((t <= HIGH) & (t >= LOW), 2.5, 1.0)

    assert abs(measured(BETWEEN) - order) < 0.25
    assert measured(ClassifierFree(NET, jumping, NULL)) < 1.25


@pytest.mark.parametrize(
    "solver", [sd.ExponentialMultistep(3), sd.Heun(), sd.RK45(1e-8, 1e-8)], ids=repr
)
def test_grids_that_know_nothing_of_the_interval_reach_one_solution(solver: Any) -> None:
    found = [
        sd.sample(BETWEEN, (5, 2), solver=solver, steps=n, t_start=0.9, t_end=0.1, **PATH)
        for n in ((20, 40) if not solver.adaptive else (None,))
    ]
    errors = [float((out.x - TIGHT).abs().max()) for out in found]
    assert {HIGH, LOW} <= set(found[-1].times.tolist())
    assert errors[-1] < (1e-7 if solver.adaptive else 0.4 * errors[0])


def test_a_row_costs_one_evaluation_outside_and_two_inside() -> None:
    out = sd.sample(BETWEEN, (5, 2), solver=sd.EulerMaruyama(), steps=12, **ON)
    inside = sum(LOW <= time < HIGH for time in out.times.tolist())  # steps that end there
    assert out.nfe.tolist() == [13 + inside] * 5
    assert 0 < inside < 12


def test_no_adaptive_step_crosses_an_end() -> None:
    """The reverse SDE in parts of a batch, whose rows have their own steps."""
    solver = sd.AdaptiveSDE(0.05, 0.05)
    one, two = (
        sd.sample(BETWEEN, (5, 2), solver=solver, batch_size=size, **ON) for size in (None, 2)
    )
    near(one.x, two.x, 1e-12)
    assert {HIGH, LOW} <= set(one.times.tolist())


@pytest.mark.parametrize("name", SDES)
def test_noise_levels_are_the_same_interval_in_units_of_the_data(name: str) -> None:
    """sigma / (alpha data_std) at the breaks is what was asked for; in other units too."""
    for sde, unit in ((SDES[name], 0.5), (SDES[name].scaled(100.0), 50.0)):
        model = sd.ScoreModel(net, sde, data_std=unit)
        guided = ClassifierFree(model, 2, NULL, interval=NoiseLevels(0.38, 3.22))
        t = torch.tensor(guided.breaks, dtype=F64)
        near(sde.sigma(t) / (sde.alpha(t) * unit), torch.tensor([0.38, 3.22], dtype=F64), 1e-8)
    for interval, ends in ((NoiseLevels(0, math.inf), 0), ((-math.inf, 1), 1), ((1, 50), 1)):
        sde = SDES[name]
        guided = ClassifierFree(sd.ScoreModel(net, sde), 2, NULL, interval=interval)
        assert sum(sde.t_min < t < sde.t_max for t in guided.breaks) == ends


def test_density_and_gradients_are_those_of_the_formula() -> None:
    condition = {"label": LABEL, "s": torch.full((5,), 2.5, dtype=F64)}
    guided, model = ClassifierFree(NET, 2.5, NULL), formula(2.5)
    found = sd.log_prob(guided, X, condition={"label": LABEL})
    wanted = sd.log_prob(model, X, condition=condition)
    near(found.value, wanted.value, 1e-8)
    pulls = []
    for each, given in ((guided, {"label": LABEL}), (model, condition)):
        x = X.clone().requires_grad_()
        out = sd.sample(
            each,
            (5, 2),
            solver=sd.Heun(),
            steps=4,
            x_init=x,
            condition=given,
            grad="full",
            dtype=F64,
        )
        pulls += torch.autograd.grad(out.x.square().sum(), x)
    near(*pulls)


# -- the default solver under it -------------------------------------------------------------------


def rule(order: int, corrector: int) -> sd.Solver:
    form = sd.solvers.Straight(0.1)
    ends: Any = {"corrector": corrector, "startup": "published"}
    return sd.ExponentialMultistep(order, form=form, variable="angle", **ends)


STRONG: list[tuple[Any, dict[str, Any], int, int, int]] = [
    (2.0, {}, 6, 2, 2),
    (2.1, {}, 6, 1, 1),
    (1.5, {"convention": "1+w"}, 7, 1, 1),
    (2.5, {}, 8, 2, 2),
    (-1.5, {}, 7, 1, 1),
    (12.0, {}, 23, 1, 1),
    (12.0, {}, 24, 2, 2),
    (torch.ones(5), {}, 23, 1, 1),  # the solver of a sample is the same whatever another's scale
    (lambda t: 1 + 0 * t, {}, 24, 2, 2),
    (8.0, {"interval": (-2.0, 2.0)}, 6, 2, 2),
]


@pytest.mark.parametrize(("scale", "more", "steps", "order", "corrector"), STRONG)
def test_the_default_is_of_low_order_where_guidance_is_strong(
    scale: Any, more: dict[str, Any], steps: int, order: int, corrector: int
) -> None:
    guided = ClassifierFree(NET, scale, NULL, **more)
    one, two = (
        sd.sample(sd.guidance.Rescale(guided), (5, 2), solver=solver, steps=steps, **ON).x
        for solver in (None, rule(order, corrector))
    )
    assert torch.equal(one, two)


def test_the_largest_scale_of_guidance_in_guidance_counts() -> None:
    inside = ClassifierFree(NET, 8.0, NULL)
    somewhere = {"interval": (-2.0, 2.0)}
    pull = sd.guidance.Classifier(inside, lambda x, t: -x.square().sum(dim=1), 0.2)
    scales = {
        NET: 1.0,
        inside: 8.0,
        sd.guidance.APG(inside): 8.0,
        pull: 8.0,
        sd.guidance.Auto(inside, NET, 1.5, **somewhere): 8.0,
        ClassifierFree(NET, 8.0, NULL, **somewhere): 1.0,
        ClassifierFree(NET, -2.0, NULL): 3.0,
        ClassifierFree(NET, 0.0, NULL): 1.0,
        sd.posterior.Product([(NET, 1.0), (inside, 1.0)]): 8.0,
    }
    for model, scale in scales.items():
        assert facts(model).guidance_scale == scale


def test_what_a_model_says_of_its_scale_is_read() -> None:
    class Mine(sd.Operator):
        guidance_scale: Any = None

    mine = Mine(NET)
    assert facts(mine).guidance_scale == 1.0
    for mine.guidance_scale, scale in ((torch.tensor(3.0), 3.0), (torch.ones(2), math.inf)):
        assert facts(mine).guidance_scale == scale
    for wrong in ("3", math.nan):
        mine.guidance_scale = wrong
        with pytest.raises((TypeError, ValueError), match=r"Mine\.guidance_scale must be"):
            facts(mine)


@pytest.mark.parametrize("steps", [5, 9, 30])
@pytest.mark.parametrize("scale", [3.0, 8.0])
def test_the_default_comes_near_a_strongly_guided_flow(scale: float, steps: int) -> None:
    """On a ring of eight Gaussians whose class is three neighbours: less than half as far as
    DDIM, and with few steps than the default without guidance.
    """
    angles = torch.arange(8, dtype=F64) * (math.pi / 4)
    ring = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    laws = [sd.exact.GaussianMixture(means, 0.35) for means in (ring[:3], ring)]
    guided = ClassifierFree(labelled(laws, VP), scale, {"label": 1})
    given: Any = ON | {"condition": {"label": torch.zeros(200, dtype=torch.int64)}}

    def solved(solver: sd.Solver | None, **more: Any) -> Tensor:
        return sd.sample(guided, (200, 2), solver=solver, **more, **given).x

    end = solved(sd.RK45(1e-6, 1e-6))
    ours, ddim, usual = (
        float((solved(each, steps=steps) - end).norm(dim=1).median())
        for each in (None, sd.DDIM(), rule(2, 2))
    )
    assert ours < 0.5 * ddim
    assert steps > 5 or ours < 0.5 * usual


class Refusing(torch.nn.Module):
    """A network that must not be asked."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        raise AssertionError("the network was asked before the mistake was found")


class Still(sd.SDE):
    """An SDE without a Gaussian kernel."""

    prior = sd.Prior(1.0)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return 0 * x

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


NO = sd.ScoreModel(Refusing(), VP)
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "no null": (lambda: ClassifierFree(NO, 2), "null must be .* and the model declares none"),
    "empty null": (lambda: ClassifierFree(NO, 2, {}), "null={'label': 10}"),
    "null of words": (lambda: ClassifierFree(NO, 2, {"label": "cat"}), r"null\['label'\] must be"),
    "scale of words": (lambda: ClassifierFree(NO, "high", NULL), "scale must be a number"),
    "scale not finite": (lambda: ClassifierFree(NO, math.nan, NULL), "scale must be finite"),
    "scale of two axes": (
        lambda: ClassifierFree(NO, torch.ones(5, 1), NULL),
        r"got shape \(5, 1\)",
    ),
    "convention": (lambda: ClassifierFree(NO, 2, NULL, convention="w"), "did you mean '1\\+w'"),
    "interval of one": (lambda: ClassifierFree(NO, 2, NULL, interval=3), "two log-SNRs"),
    "interval reversed": (lambda: ClassifierFree(NO, 2, NULL, interval=(2, -2)), "is empty"),
    "interval elsewhere": (
        lambda: ClassifierFree(NO, 2, NULL, interval=(40, 50)),
        "goes from -10 .noise. to 9.12 .data.",
    ),
    "no log-SNR": (
        lambda: ClassifierFree(sd.ScoreModel(net, Still(), "score"), 2, NULL, interval=(0, 1)),
        "has no Gaussian kernel, so none: let the scale be a function of t",
    ),
    "levels reversed": (lambda: NoiseLevels(3, 1), "0 <= low < high"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_when_the_model_is_made(mistake: str) -> None:
    call, message = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


IN_CALLS: dict[str, tuple[ClassifierFree, dict[str, Tensor] | None, str]] = {
    "no condition": (ClassifierFree(NO, 2, NULL), None, r"pass condition=\{'label': ...\}"),
    "a name not right": (
        ClassifierFree(NO, 2, {"lable": 2}),
        {"label": LABEL},
        r"'lable', which the call does not have \(did you mean 'label'\?\).*; it has label",
    ),
    "scales": (ClassifierFree(NO, EACH[:4], NULL), {"label": LABEL}, "4 numbers for 5 samples"),
    "scale of time": (
        ClassifierFree(NO, lambda t: torch.ones(3), NULL),
        {"label": LABEL},
        "must return a finite number, or one for each",
    ),
    "null of another shape": (
        ClassifierFree(NO, 2, {"label": torch.zeros(3, dtype=torch.int64)}),
        {"label": LABEL},
        r"give \(\) for all samples, or \(5,\)",
    ),
    "null of another kind": (
        ClassifierFree(NO, 2, {"label": 0.5}),
        {"label": LABEL},
        "the condition is torch.int64",
    ),
}


@pytest.mark.parametrize("mistake", IN_CALLS)
def test_mistakes_are_told_before_the_network_is_asked(mistake: str) -> None:
    guided, condition, message = IN_CALLS[mistake]
    for interval in (None, (-1.0, 1.0)):
        both = ClassifierFree(guided.model, guided.scale, guided.null, interval=interval)
        if interval and mistake == "scale of time":
            continue  # it is asked inside the interval
        with pytest.raises((TypeError, ValueError), match=message):
            sd.sample(both, (5, 2), solver=sd.DDIM(), steps=4, condition=condition, seed=0)


def test_facts_are_those_of_the_network() -> None:
    guided = ClassifierFree(BETWEEN, 2, NULL, interval=(-1, 1))
    assert facts(guided).cost == 4
    assert len(facts(guided).breaks) == 4
    assert facts(guided).data_std == NET.data_std
