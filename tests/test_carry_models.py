"""Models that a user brings: each is a stub of at most 20 lines by the protocol alone, and a test
against an exact answer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdediff as sd
from sdediff.exact.chain import affine_moments
from sdediff.reverse import Reverse
from sdediff.solvers import expand

VP = sd.VP()
X = torch.tensor(
    [[2.0, -1.5], [0.1, 0.2], [-3.0, 0.4], [0.7, 1.1], [-0.4, -2.2]], dtype=torch.float64
)
EXACT = {"dtype": torch.float64, "seed": 3}
NULL = 2
LAWS = [
    sd.exact.Gaussian([1.0, -0.5], [[0.3, 0.1], [0.1, 0.2]]),
    sd.exact.Gaussian([-0.8, 0.4], [[0.1, -0.05], [-0.05, 0.6]]),
    sd.exact.Gaussian([0.0, 0.0], [[0.9, 0.2], [0.2, 0.7]]),
]
LABEL = torch.tensor([0, 1, 1, 0, 1])
SOLVERS: list[tuple[Any, int | None]] = [
    (sd.DDIM(), 8),
    (sd.solvers.UniPC(), 8),
    (sd.EulerMaruyama(), 20),
    (sd.RK45(1e-6, 1e-6), None),
    (sd.AdaptiveSDE(0.2, 0.2), None),
]
EACH_SOLVER = pytest.mark.parametrize(
    ("solver", "steps"), SOLVERS, ids=lambda each: repr(each) if each else ""
)


def ready(net: Callable[..., Tensor], predicts: str = "v", **more: Any) -> sd.ScoreModel:
    """The reference: a `ScoreModel` of a function whose times stay float64."""
    return sd.ScoreModel(net, VP, predicts, time_dtype=torch.float64, data_std=1.0, **more)


def laws(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """The v prediction of the law that each row's label names."""
    return torch.stack([law.v(VP, x, t) for law in LAWS])[label, torch.arange(len(x))]


def near(found: Tensor, wanted: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


# A plain object


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: nn.Parameter(  # noqa: E731
            torch.randn(*shape, generator=generator, dtype=torch.float64)
        )
        self.a, self.b, self.c = draw(3, 16), draw(16), draw(16, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return (torch.cat([x, t[:, None]], dim=1) @ self.a + self.b).tanh() @ self.c / 4


class Plain:
    """A model that knows neither torch's modules nor ours."""

    def __init__(
        self, function: Callable[..., Any], predicts: str = "noise", sde: Any = VP
    ) -> None:
        self.function, self.predicts, self.sde = function, predicts, sde

    def at(self, times, like, piece):
        return times.unbind()

    def evaluate(self, x, at, rows):
        return self.function(x, at.expand(len(x)), **rows.condition)


NET = Net()
PLAIN, SAME = Plain(NET), sd.ScoreModel(NET, VP)


@EACH_SOLVER
def test_a_plain_object_samples_as_the_score_model_of_its_network(
    solver: sd.DDIM, steps: int | None
) -> None:
    one, two = (sd.sample(m, (5, 2), solver=solver, steps=steps, **EXACT) for m in (PLAIN, SAME))
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.nfe, two.nfe)
    assert torch.equal(one.rejected, two.rejected)


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(1)


CHAIN = sd.DDPM.from_sde(VP, 20)
USES: dict[str, Callable[[Any], Tensor]] = {
    "encode": lambda m: sd.encode(m, X).x,
    "decode": lambda m: sd.decode(m, X, solver=sd.Heun(), steps=5).x,
    "log_prob": lambda m: sd.log_prob(m, X).value,
    "log_prob by probes": lambda m: (
        sd.log_prob(m, X, divergence="hutchinson", probes=1, seed=0).value
    ),
    "bits_per_dim": lambda m: (
        sd.bits_per_dim(m, X.sign(), bins=sd.objectives.Bins(3, -1, 1), seed=0).value
    ),
    "denoising": lambda m: sd.DenoisingScoreMatching()(m, X, generator=draws()),
    "flow matching": lambda m: sd.objectives.FlowMatching()(m, X, generator=draws()),
    "sliced": lambda m: sd.objectives.SlicedScoreMatching()(m, X, generator=draws()),
    "implicit": lambda m: sd.objectives.ImplicitScoreMatching()(m, X, generator=draws()),
    "DDPM's loss": lambda m: sd.discrete.DDPMLoss(CHAIN)(m, X, generator=draws()),
    "variational bound": lambda m: (
        sd.discrete.variational_bound(CHAIN, m, X, bins=None, seed=0).total
    ),
    "score of a target": lambda m: sd.mcmc.at(m, 0.3).score(X),
    "chains": lambda m: (
        sd.mcmc.run(sd.mcmc.MALA(0.1), sd.mcmc.at(m, 0.5), X, steps=5, seed=0).samples
    ),
    "diagnosis": lambda m: torch.tensor(list(sd.diagnose(m, X).errors.values())),
}


@pytest.mark.thin(4)
@pytest.mark.parametrize("use", USES)
def test_all_that_takes_a_model_takes_a_plain_object(use: str) -> None:
    found, wanted = (USES[use](model) for model in (PLAIN, SAME))
    assert torch.equal(found, wanted)


# Classifier-free guidance: both predictions by one call of 2 B rows


class Guided(sd.Operator):
    cost = 2

    def __init__(self, model: Any, scale: float) -> None:
        super().__init__(model)
        self.scale = scale

    def at(self, times, like, piece=None):
        return self.model.at(times.repeat(1, 2) if times.ndim > 1 else times, like, piece)

    def evaluate(self, x, at, rows):
        n = len(rows)
        both = rows.take(torch.arange(2 * n) % n)
        label = both.condition["label"].clone()
        label[n:] = NULL
        own, free = self.ask(x.repeat(2, 1), at, both.under({"label": label})).chunk(2)
        return free + self.scale * (own - free)


def combined(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """The same field by formula, from a law at a time."""
    free = LAWS[NULL].v(VP, x, t)
    own = torch.where(label[:, None] == 0, LAWS[0].v(VP, x, t), LAWS[1].v(VP, x, t))
    return free + 2.5 * (own - free)


@pytest.mark.thin(2)
@EACH_SOLVER
@pytest.mark.parametrize("batch_size", [None, 2])
def test_guidance_by_2b_rows_is_the_formula_and_counts_two_a_call(
    solver: sd.DDIM, steps: int | None, batch_size: int | None
) -> None:
    given = {
        "solver": solver,
        "steps": steps,
        "condition": {"label": LABEL},
        "batch_size": batch_size,
        **EXACT,
    }
    guided = sd.sample(Guided(ready(laws), 2.5), (5, 2), **given)
    wanted = sd.sample(ready(combined), (5, 2), **given)
    near(guided.x, wanted.x)
    assert torch.equal(guided.nfe, 2 * wanted.nfe)
    assert torch.equal(guided.accepted, wanted.accepted)
    if steps is None:
        assert len(wanted.nfe.unique()) > 1, "no row left the batch before another"


@pytest.mark.parametrize(
    ("solver", "steps", "most"),
    [(sd.Heun(), 10, 20), (sd.RK45(1e-9, 1e-9), None, 120)],
    ids=["Heun", "RK45"],
)
def test_guidance_stays_below_the_evaluations_that_are_allowed(
    solver: sd.Heun, steps: int | None, most: int
) -> None:
    given = {
        "solver": solver,
        "steps": steps,
        "condition": {"label": LABEL},
        "on_fail": "return",
        **EXACT,
    }
    guided = sd.sample(Guided(ready(laws), 2.5), (5, 2), max_nfe=2 * most, **given)
    wanted = sd.sample(ready(combined), (5, 2), max_nfe=most, **given)
    assert torch.equal(guided.status, wanted.status)
    assert torch.equal(guided.nfe, 2 * wanted.nfe)
    assert int(guided.nfe.max()) <= 2 * most
    near(guided.x, wanted.x)


def test_guidance_has_the_density_and_the_predictions_of_the_formula() -> None:
    condition = {"label": LABEL}
    guided, formula = Guided(ready(laws), 2.5), ready(combined)
    found, wanted = (sd.log_prob(m, X, condition=condition) for m in (guided, formula))
    near(found.value, wanted.value, 1e-8)
    assert torch.equal(found.nfe, 2 * wanted.nfe)
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    near(guided.data(X, t, label=LABEL), formula.data(X, t, label=LABEL))
    losses = [
        sd.DenoisingScoreMatching()(m, X, condition, generator=draws()) for m in (guided, formula)
    ]
    near(losses[0], losses[1])


def test_guidance_that_forgets_the_times_of_its_rows_is_told() -> None:
    class Forgetful(Guided):
        def at(self, times, like, piece=None):
            return self.model.at(times, like, piece)

    given = {"condition": {"label": LABEL}, **EXACT}
    shared, own = ({"solver": sd.Heun(), "steps": 5}, {"solver": sd.RK45(1e-4, 1e-4)})
    near(
        *(
            sd.sample(kind(ready(laws), 2.5), (5, 2), **shared, **given).x
            for kind in (Forgetful, Guided)
        ),
        1e-14,
    )
    with pytest.raises(
        ValueError,
        match=r"for 5 rows, each at its own time, was evaluated at 10 rows: .*times\[:, i\]",
    ):
        sd.sample(Forgetful(ready(laws), 2.5), (5, 2), **own, **given)


# A learned variance


def doubled(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([NET(x, t), torch.tanh(x) * t[:, None]], dim=1)


class WithVariance(Plain):
    extras = ("variance",)

    def evaluate(self, x, at, rows):
        value, variance = doubled(x, at.expand(len(x))).chunk(2, dim=1)
        return sd.Output(value, variance=variance)


def test_a_learned_variance_of_a_plain_object_is_the_score_models() -> None:
    chain = sd.DDPM.from_sde(VP, 30, variance="learned")
    same = sd.ScoreModel(doubled, VP, learned_variance=True)
    one, two = (sd.sample(m, (5, 2), solver=chain, **EXACT) for m in (WithVariance(NET), same))
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.nfe, two.nfe)
    with pytest.raises(ValueError, match="needs variance"):
        sd.sample(PLAIN, (5, 2), solver=chain, **EXACT)
    bounds = [
        sd.discrete.variational_bound(chain, m, X, bins=None, seed=0).total
        for m in (WithVariance(NET), same)
    ]
    assert torch.equal(*bounds)


def test_a_variance_that_is_promised_and_missing_is_an_error() -> None:
    class Silent(Plain):
        extras = ("variance",)

    chain = sd.DDPM.from_sde(VP, 5, variance="learned")
    with pytest.raises(ValueError, match=r"Silent\.evaluate .*variance"):
        sd.sample(Silent(NET), (5, 2), solver=chain, **EXACT)


# A gradient through the network


class Pulled(sd.Operator):
    """x_0 moved down the gradient of |E[x_0 | x] - y|^2, as posterior sampling and universal
    guidance do.
    """

    predicts = "data"

    def __init__(self, model: Any, scale: float) -> None:
        super().__init__(model)
        self.scale = scale

    def evaluate(self, x, at, rows):
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            data = self.ask(x, at, rows)
            misfit = (data - rows.condition["y"]).square().sum()
            (slope,) = torch.autograd.grad(misfit, x, create_graph=graph)
        rows.count(0, backward=1)
        out = data - self.scale * slope
        return out if graph else out.detach()


class Affine(nn.Module):
    """E[x_0 | x] = gain(t) K x + b: its gradient is known."""

    def __init__(self) -> None:
        super().__init__()
        self.K = nn.Parameter(torch.tensor([[0.5, 0.2], [-0.1, 0.4]], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (1.2 - t[:, None]) * (x @ self.K.T) + self.b


class Bent(Affine):
    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, t, y).tanh()


def pulled(net: Affine, scale: float) -> Callable[..., Tensor]:
    """The same field by formula."""

    def field(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        data = net(x, t, y)
        return data - scale * 2 * (1.2 - t[:, None]) * ((data - y) @ net.K)

    return field


Y = {
    "y": torch.tensor(
        [[0.5, 0.1], [-0.3, 0.8], [1.0, -1.0], [0.0, 0.0], [0.2, -0.6]], dtype=torch.float64
    )
}
AFFINE = Affine()
PULLED, FORMULA = Pulled(ready(AFFINE, "data"), 0.1), ready(pulled(AFFINE, 0.1), "data")


@EACH_SOLVER
def test_a_model_takes_the_gradient_of_its_network_in_any_solver(
    solver: sd.DDIM, steps: int | None
) -> None:
    given = {"solver": solver, "steps": steps, "condition": Y, "batch_size": 3, **EXACT}
    found, wanted = (sd.sample(m, (5, 2), **given) for m in (PULLED, FORMULA))
    near(found.x, wanted.x)
    assert not found.x.requires_grad
    assert torch.equal(found.nfe, wanted.nfe)
    assert torch.equal(found.backward, found.nfe)
    assert not wanted.backward.any()


def test_a_plain_object_counts_what_it_calls_itself() -> None:
    class Counting(Plain):
        def evaluate(self, x, at, rows):
            rows.count(3, backward=2)
            return super().evaluate(x, at, rows)

    out = sd.sample(Counting(NET), (5, 2), solver=sd.DDIM(), steps=4, **EXACT)
    assert out.nfe.tolist() == [15] * 5
    assert out.backward.tolist() == [10] * 5


@pytest.mark.thin(0)
def test_the_divergence_goes_through_the_models_own_gradient() -> None:
    found, wanted = (
        sd.log_prob(m, X, condition=Y, solver=sd.RK45(1e-8, 1e-8)) for m in (PULLED, FORMULA)
    )
    near(found.value, wanted.value)
    bent = Pulled(ready(Bent(), "data"), 0.1)
    given = {"condition": {"y": Y["y"][:1]}, "solver": sd.solvers.DOP853(1e-11, 1e-11)}
    value = sd.log_prob(bent, X[:1], **given).value
    h = 1e-4
    moved = torch.cat(
        [X[:1] + h * step for step in torch.eye(2).double()]
        + [X[:1] - h * step for step in torch.eye(2).double()]
    )
    ends = sd.encode(
        bent, moved, condition={"y": Y["y"][:1].expand(4, 2)}, solver=given["solver"]
    ).x
    volume = torch.linalg.det((ends[:2] - ends[2:]) / (2 * h)).abs().log()
    z = sd.encode(bent, X[:1], **given).x
    torch.testing.assert_close(value, VP.prior.log_prob(z) + volume, rtol=1e-8, atol=0)


@pytest.mark.parametrize("grad", ["full", "checkpoint"])
@pytest.mark.parametrize(
    ("solver", "steps"),
    [(sd.solvers.UniPC(), 4), (sd.RK45(1e-3, 1e-3), None), (sd.EulerMaruyama(), 4)],
    ids=repr,
)
def test_the_samples_have_their_gradient_through_the_models_own(
    solver: sd.solvers.UniPC, steps: int | None, grad: str
) -> None:
    """To the start and to a parameter, by central differences with the steps that were taken."""
    net = Bent()
    model, start = Pulled(ready(net, "data"), 0.1), X[:2].clone().requires_grad_()
    # differences of steps that adapt are rough: they go along the steps that the first solve took
    if steps is None:
        solver, steps = sd.solvers.RungeKutta4(), 4
    given = {"solver": solver, "steps": steps, "condition": {"y": Y["y"][:2]}, **EXACT}

    def total(x: Tensor, **more: Any) -> Tensor:
        return sd.sample(model, (2, 2), x_init=x, **given, **more).x.square().sum()

    total(start, grad=grad).backward()
    h = 1e-5
    for tensor, at in ((start, (1, 0)), (net.K, (0, 1)), (net.b, (1,))):
        ends = []
        for side in (h, -h):
            with torch.no_grad():
                tensor[at] += side
            ends.append(float(total(start.detach())))
            with torch.no_grad():
                tensor[at] -= side
        assert float(tensor.grad[at]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


# Repeated rows


class Averaged(sd.Operator):
    """The mean of k evaluations at shifted states, whose shifts cancel."""

    cost = 4

    def at(self, times, like, piece=None):
        return self.model.at(
            times.repeat_interleave(4, dim=1) if times.ndim > 1 else times, like, piece
        )

    def evaluate(self, x, at, rows):
        several = rows.take(torch.arange(len(rows)).repeat_interleave(4))
        shift = torch.tensor([0.3, -0.3, 0.1, -0.1], dtype=x.dtype).repeat(len(rows))[:, None]
        states = x.repeat_interleave(4, dim=0) + (
            shift if rows.mask is None else shift * several.mask
        )
        return self.ask(states, at, several).unflatten(0, (-1, 4)).mean(dim=1)


def averaged(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    return sum(laws(x + shift, t, label) for shift in (0.3, -0.3, 0.1, -0.1)) / 4


MIXED = [sd.exact.GaussianMixture([[-0.9, 0.3], [0.8, c]], 0.5) for c in (0.0, 0.5)]


def mixed(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    return torch.where(label[:, None] == 0, *(law.v(VP, x, t) for law in MIXED))


@pytest.mark.thin(2)
@EACH_SOLVER
def test_rows_may_repeat_and_take_their_conditions_along(
    solver: sd.DDIM, steps: int | None
) -> None:
    def formula(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.stack([mixed(x + shift, t, label) for shift in (0.3, -0.3, 0.1, -0.1)]).mean(
            dim=0
        )

    given = {
        "solver": solver,
        "steps": steps,
        "condition": {"label": LABEL},
        "batch_size": 3,
        **EXACT,
    }
    found = sd.sample(Averaged(ready(mixed)), (5, 2), **given)
    wanted = sd.sample(ready(formula), (5, 2), **given)
    near(found.x, wanted.x)
    assert torch.equal(found.nfe, 4 * wanted.nfe)


class OverExisting(Plain):
    """A field that needs to know which coordinates exist: it draws each to the mean of those."""

    def evaluate(self, x, at, rows):
        mask = torch.ones_like(x) if rows.mask is None else rows.mask.to(x.dtype)
        mean = (x * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        return x - 0.3 * mean * mask


@pytest.mark.thin(2)
@EACH_SOLVER
def test_rows_that_repeat_take_their_mask_along(solver: sd.DDIM, steps: int | None) -> None:
    """The field being linear, the mean over shifts that cancel is the field."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
    inner = OverExisting(NET)
    given = {"solver": solver, "steps": steps, "mask": mask, "batch_size": 2, **EXACT}
    found, wanted = (sd.sample(m, (5, 3), **given) for m in (Averaged(inner), inner))
    near(found.x, wanted.x)
    assert torch.equal(found.nfe, 4 * wanted.nfe)
    assert torch.equal(found.x == 0, ~mask)


# Constraints and operators


def over_the_batch(x_0: Tensor) -> Tensor:
    """A constraint that knows something of each sample of the call, by its place."""
    bound = torch.linspace(0.2, 0.6, 5, dtype=x_0.dtype)[:, None]
    return torch.minimum(torch.maximum(x_0, -bound), bound)


def over_rows(x_0: Tensor, rows: Tensor) -> Tensor:
    bound = torch.linspace(0.2, 0.6, 5, dtype=x_0.dtype)[rows, None]
    return torch.minimum(torch.maximum(x_0, -bound), bound)


def data_of(law: sd.exact.Gaussian, x: Tensor, t: Tensor) -> Tensor:
    return law.data(VP, x, t)


def guided_data(x: Tensor, t: Tensor, label: Tensor, bound: Tensor, *, inside: bool) -> Tensor:
    """Guidance of clipped predictions, or the clipped guidance, by formula."""

    def clip(x_0: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x_0, -bound), bound)

    free = data_of(LAWS[NULL], x, t)
    own = torch.where(label[:, None] == 0, data_of(LAWS[0], x, t), data_of(LAWS[1], x, t))
    if inside:
        own, free = clip(own), clip(free)
        return free + 2.5 * (own - free)
    return clip(free + 2.5 * (own - free))


@pytest.mark.thin(1)
@EACH_SOLVER
@pytest.mark.parametrize("constraint", [over_the_batch, over_rows])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_constraints_go_inside_and_outside_an_operator(
    inside: bool, constraint: Callable[..., Tensor], solver: sd.DDIM, steps: int | None
) -> None:
    plain = ready(laws)
    model = (
        Guided(plain.constrained(constraint), 2.5)
        if inside
        else Guided(plain, 2.5).constrained(constraint)
    )
    bound = torch.linspace(0.2, 0.6, 5, dtype=torch.float64)[:, None]
    formula = ready(
        lambda x, t, label, bound: guided_data(x, t, label, bound, inside=inside), "data"
    )
    given = {"solver": solver, "steps": steps, **EXACT}
    found = sd.sample(model, (5, 2), condition={"label": LABEL}, batch_size=3, **given)
    wanted = sd.sample(
        formula, (5, 2), condition={"label": LABEL, "bound": bound}, batch_size=3, **given
    )
    near(found.x, wanted.x, 1e-8)
    assert torch.equal(found.nfe, 2 * wanted.nfe)
    limit = bound * (4 if inside else 1)
    assert bool((found.x.abs() <= limit + 1e-12).all())


# An interval of guidance, whose ends are breaks


LOW, HIGH = 0.3, 0.7


class Between(sd.Operator):
    """Guidance for t in [LOW, HIGH] alone: one evaluation outside, two inside."""

    cost, breaks = 2, (LOW, HIGH)

    def __init__(self, model: Any, scale: float) -> None:
        super().__init__(model)
        self.scale = scale

    def at(self, times, like, piece=None):
        there = times if piece is None else torch.full_like(times, sum(piece) / 2)
        scale = torch.where((there >= LOW) & (there <= HIGH), self.scale, 0.0)
        return list(zip(self.model.at(times, like, piece), scale.unbind(), strict=True))

    def evaluate(self, x, at, rows):
        inner, scale = at
        own = self.ask(x, inner, rows)
        if not scale.any():
            return own
        free = self.ask(
            x, inner, rows.under({"label": torch.full_like(rows.condition["label"], NULL)})
        )
        return own + expand(scale, x) * (own - free)


class Jumping(Between):
    """The same field, which does not say where it jumps."""

    breaks = ()


LABELLED = {"condition": {"label": LABEL}, **EXACT}
ON = {"x_init": X, "last": "noisy", **LABELLED}
BETWEEN, JUMPING = Between(ready(laws), 1.5), Jumping(ready(laws), 1.5)


def in_parts(solver: sd.Heun) -> Tensor:
    """From X at 0.9 to 0.1 in three solves of models without breaks."""
    x, plain, guided = X, ready(laws), Guided(ready(laws), 2.5)
    for model, start, end in ((plain, 0.9, HIGH), (guided, HIGH, LOW), (plain, LOW, 0.1)):
        x = sd.sample(
            model, (5, 2), solver=solver, t_start=start, t_end=end, **{**ON, "x_init": x}
        ).x
    return x


TIGHT = in_parts(sd.solvers.DOP853(1e-13, 1e-13))


def even(steps: int) -> Tensor:
    """A grid from 0.9 to 0.1 that is even in each part of the way."""
    ends, shares = (0.9, HIGH, LOW, 0.1), (steps // 4, steps // 2, steps // 4)
    parts = [
        torch.linspace(a, b, n + 1, dtype=torch.float64)[:-1]
        for a, b, n in zip(ends[:-1], ends[1:], shares, strict=True)
    ]
    return torch.cat([*parts, torch.tensor(ends[-1:], dtype=torch.float64)])


ORDERS = {
    "DDIM": (sd.DDIM(), 1, 32),
    "Heun": (sd.Heun(), 2, 32),
    "RungeKutta4": (sd.solvers.RungeKutta4(), 4, 32),
    "DormandPrince": (sd.solvers.DormandPrince(), 5, 32),
    "ExponentialSinglestep": (sd.solvers.ExponentialSinglestep(3), 3, 32),
    "ExponentialMultistep": (sd.ExponentialMultistep(3), 3, 32),
    "DPMSolverPP": (sd.solvers.DPMSolverPP(3), 3, 32),
    "UniPC": (sd.solvers.UniPC(2), 3, 64),
}


@pytest.mark.thin(1)
@pytest.mark.parametrize("name", ORDERS)
def test_a_solver_keeps_its_order_across_breaks(name: str) -> None:
    solver, order, least = ORDERS[name]

    def measured(model: Any) -> float:
        few, many = (
            float(
                (sd.sample(model, (5, 2), solver=solver, grid=even(n), **ON).x - TIGHT).abs().max()
            )
            for n in (least, 2 * least)
        )
        return math.log2(few / many)

    assert abs(measured(BETWEEN) - order) < 0.25
    assert measured(JUMPING) < 1.25, (
        "the order is not lost where breaks are not known: the test would pass anything"
    )


ADAPTIVE = [
    sd.RK45(1e-8, 1e-8),
    sd.solvers.Tsit5(1e-8, 1e-8),
    sd.solvers.DOP853(1e-8, 1e-8),
    sd.solvers.RK23(1e-6, 1e-6),
    sd.solvers.SciPy("RK45", 1e-8, 1e-8),
]


@pytest.mark.thin(1)
@pytest.mark.parametrize("solver", ADAPTIVE, ids=repr)
def test_an_adaptive_solver_stops_at_breaks_and_meets_its_tolerance(solver: sd.RK45) -> None:
    found, blind = (
        sd.sample(m, (5, 2), solver=solver, t_start=0.9, t_end=0.1, **ON)
        for m in (BETWEEN, JUMPING)
    )
    near(found.x, TIGHT, 10 * solver.rtol)
    assert found.times.tolist() == [0.9, HIGH, LOW, 0.1]
    assert 1.4 * int(found.nfe.max()) < int(blind.nfe.min()), (
        "steps over a jump are taken again and again"
    )


@pytest.mark.parametrize("solver", [sd.RK45(1e-6, 1e-6), sd.AdaptiveSDE(0.05, 0.05)], ids=repr)
def test_adaptive_rows_cross_breaks_alike_in_batches_of_any_size(solver: sd.RK45) -> None:
    one, two = (
        sd.sample(BETWEEN, (5, 2), solver=solver, batch_size=size, **LABELLED) for size in (None, 2)
    )
    near(one.x, two.x, 1e-12)
    assert torch.equal(one.nfe, two.nfe)
    assert {LOW, HIGH} <= set(one.times.tolist())


FIXED = [
    sd.DDIM(),
    sd.Heun(),
    sd.EulerMaruyama(),
    sd.solvers.SRA1(),
    sd.solvers.ExponentialSinglestep(3),
    sd.solvers.SASolver(),
    sd.solvers.Renoise(sd.Heun()),
]


@pytest.mark.thin(9)
@pytest.mark.parametrize("solver", FIXED, ids=repr)
@pytest.mark.parametrize("steps", [3, 4, 7, 20])
def test_steps_stay_as_many_and_evaluations_are_two_inside_and_one_outside(
    solver: sd.Heun, steps: int
) -> None:
    out = sd.sample(BETWEEN, (5, 2), solver=solver, steps=steps, **LABELLED)
    times = out.times.tolist()
    assert len(times) == steps + 1
    assert {LOW, HIGH} <= set(times)
    inside = sum(LOW <= time < HIGH for time in times)  # the steps that end there
    assert out.nfe.tolist() == [solver.evaluations * (steps + inside) + 1] * 5
    with pytest.raises(ValueError, match="takes 3 steps at least; got steps = 2"):
        sd.sample(BETWEEN, (5, 2), solver=solver, steps=2, **LABELLED)


def test_a_solve_over_breaks_is_the_solves_of_its_parts() -> None:
    """To the bit, for a multistep method too: its history starts anew."""
    grid = even(24)
    whole = sd.sample(BETWEEN, (5, 2), solver=sd.solvers.UniPC(), grid=grid, trajectory=True, **ON)
    assert torch.equal(whole.times, grid)
    x, plain, guided = X, ready(laws), Guided(ready(laws), 2.5)
    for model, part in ((plain, slice(0, 7)), (guided, slice(6, 19)), (plain, slice(18, 25))):
        x = sd.sample(
            model, (5, 2), solver=sd.solvers.UniPC(), grid=grid[part], **{**ON, "x_init": x}
        ).x
        near(whole.trajectory[part.stop - 1], x, 1e-14)
    blind = sd.sample(BETWEEN, (5, 2), solver=sd.solvers.UniPC(), grid=[0.9, 0.6, 0.1], **ON)
    assert blind.times.tolist() == [0.9, HIGH, 0.6, LOW, 0.1]


def test_a_solve_that_ends_at_a_break_denoises_with_the_value_inside() -> None:
    given = {"solver": sd.Heun(), "steps": 3, **ON, "last": "denoise"}
    for model, start, end in (
        (ready(laws), 0.9, HIGH),
        (Guided(ready(laws), 2.5), HIGH, LOW),
        (ready(laws), LOW, 0.1),
    ):
        found, wanted = (
            sd.sample(m, (5, 2), t_start=start, t_end=end, **given) for m in (BETWEEN, model)
        )
        near(found.x, wanted.x, 1e-14)
        assert torch.equal(found.nfe, wanted.nfe)


@pytest.mark.thin(0)
def test_encoding_and_decoding_cross_breaks_both_ways() -> None:
    given = {"condition": {"label": LABEL}, "solver": sd.solvers.DOP853(1e-12, 1e-12)}
    there = sd.encode(BETWEEN, X, **given)
    near(sd.decode(BETWEEN, there.x, **given).x, X)
    assert there.times.tolist() == [VP.t_min, LOW, HIGH, VP.t_max]


@pytest.mark.thin(2)
@pytest.mark.parametrize("bad", [0.9, 0.6, 0.2])
@pytest.mark.parametrize(
    ("solver", "steps"),
    [(sd.Heun(), 9), (sd.RK45(1e-4, 1e-4), None), (sd.AdaptiveSDE(), None)],
    ids=repr,
)
def test_a_sample_that_fails_in_one_part_leaves_the_others_alone(
    solver: sd.Heun, steps: int | None, bad: float
) -> None:
    class Sick(Between):
        def at(self, times, like, piece=None):
            return list(zip(super().at(times, like, piece), times.unbind(), strict=True))

        def evaluate(self, x, at, rows):
            lost = (rows.index == 2) & (at[1] < bad)
            return torch.where(lost[:, None], torch.nan, super().evaluate(x, at[0], rows))

    given = {"solver": solver, "steps": steps, "on_fail": "return", **LABELLED}
    found, wanted = (sd.sample(m, (5, 2), **given) for m in (Sick(ready(laws), 1.5), BETWEEN))
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(found.x[others], wanted.x[others])
    assert torch.equal(found.nfe[others], wanted.nfe[others])
    assert [failure.sample for failure in found.failures] == [2]
    assert bool(torch.isfinite(found.x).all())


LINE = [
    sd.exact.GaussianMixture([[-0.9], [0.8]], 0.4),
    sd.exact.GaussianMixture([[-1.5], [0.9]], 0.8),
]


def on_the_line(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    return torch.where(label[:, None] == NULL, LINE[1].v(VP, x, t), LINE[0].v(VP, x, t))


@pytest.mark.slow
def test_the_density_across_breaks_is_a_density() -> None:
    model = Between(ready(on_the_line), 0.5)
    x = torch.linspace(-5, 5, 81, dtype=torch.float64)[:, None]
    label = {"label": torch.zeros(len(x), dtype=torch.int64)}
    loose = sd.log_prob(model, x, condition=label, solver=sd.RK45(1e-6, 1e-6))
    assert float(loose.value.exp().sum() * (x[1] - x[0])) == pytest.approx(1, abs=1e-6)
    few, label = x[::16], {"label": label["label"][::16]}
    given = {"condition": label, "solver": sd.solvers.DOP853(1e-11, 1e-11)}
    tight = sd.log_prob(model, few, **given).value
    near(loose.value[::16], tight, 1e-4)
    h = 1e-3
    ends = [sd.encode(model, few + k * h, **given).x for k in (-2, -1, 0, 1, 2)]
    slope = (ends[0] - 8 * ends[1] + 8 * ends[3] - ends[4]) / (12 * h)
    near(tight, VP.prior.log_prob(ends[2]) + slope.log()[:, 0], 1e-7)
    fixed = sd.log_prob(model, few, condition=label, solver=sd.solvers.RungeKutta4(), steps=80)
    near(fixed.value, tight, 2e-3)
    assert fixed.nfe.tolist() == [fixed.nfe[0]] * len(few)
    capped = sd.log_prob(model, few, condition=label, max_nfe=100, on_fail="return")
    assert int(capped.nfe.max()) <= 100
    assert bool(capped.status.any())


# A phase space: a small matrix as diffusion


RATE = torch.tensor([[-0.3, 1.0], [-1.2, -0.8]], dtype=torch.float64)
START = torch.tensor([[0.5, 0.2], [0.2, 0.9]], dtype=torch.float64)
MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
NODES, WEIGHTS = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(24))


def root(t: Tensor) -> Tensor:
    """g at times (n,): lower triangular, and neither symmetric nor normal."""
    entries = [0.6 + 0.3 * t, torch.zeros_like(t), 0.5 - t, 0.4 + t**2]
    return torch.stack(entries, dim=-1).unflatten(-1, (2, 2))


def law_at(t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the forward process at times (n,), by matrix exponentials and Gauss
    and Legendre's rule.
    """
    grown = torch.linalg.matrix_exp(t[:, None, None] * RATE)
    u = 0.5 * t[:, None] * (1 + NODES)
    kernel = torch.linalg.matrix_exp((t[:, None] - u)[..., None, None] * RATE) @ root(u)
    noise = (0.5 * t[:, None] * WEIGHTS)[..., None, None] * (kernel @ kernel.mT)
    return grown @ MEAN, grown @ START @ grown.mT + noise.sum(dim=1)


def gaussian_log_prob(x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    law = torch.distributions.MultivariateNormal(mean[0], covariance[0])
    return law.log_prob(x.movedim(1, -1)).sum(dim=1)


class PhasePrior:
    """The law at the end, which is no N(0, std^2 I)."""

    def from_noise(self, z):
        mean, covariance = law_at(torch.ones(1, dtype=torch.float64))
        return mean[..., None] + torch.linalg.cholesky(covariance).to(z) @ z

    def log_prob(self, x):
        return gaussian_log_prob(x, *law_at(torch.ones(1, dtype=torch.float64)))


class Phase(sd.SDE):
    """Positions and velocities: events (2, d), the matrices being on the first axis."""

    data_std = 0.8
    prior = PhasePrior()

    def drift(self, x, t):
        return torch.einsum("ij,bjd->bid", RATE.to(x), x)

    def diffusion(self, t):
        return sd.solvers.Matrix(root(t.reshape(-1)), axis=0)


def phase_score(x: Tensor, t: Tensor) -> Tensor:
    mean, covariance = law_at(t[:1] if bool((t == t[0]).all()) else t)
    return -torch.linalg.solve(covariance, x - mean[..., None])


PHASE = sd.ScoreModel(phase_score, Phase(), "score", time_dtype=torch.float64)


class Pulses:
    """Noise that is 1 in one coordinate of one step in each row, and 0 elsewhere: an affine chain
    tells all it does.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def at(self, step: int) -> Pulses:
        return _Pulse(self.steps, step)

    def take(self, rows: Tensor) -> Pulses:
        return self


class _Pulse(Pulses):
    def __init__(self, steps: int, step: int) -> None:
        super().__init__(steps)
        self.step = step

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        z = torch.zeros(3 + 2 * self.steps, 2, 1, dtype=torch.float64)
        z[3 + 2 * self.step, 0], z[4 + 2 * self.step, 1] = 1.0, 1.0
        return z


def chain_law(solver: Any, grid: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of an affine chain from N(mean, covariance), without Monte Carlo."""
    steps = len(grid) - 1
    x = mean[:, None].repeat(3 + 2 * steps, 1, 1)
    x[1:3] += torch.linalg.cholesky(covariance).T[..., None]
    noise = {"noise": Pulses(steps)} if solver.stochastic else {"seed": 0}
    out = sd.sample(
        PHASE, x.shape, solver=solver, grid=grid, x_init=x, dtype=torch.float64, **noise
    ).x[..., 0]
    response = out[1:] - out[0]
    return out[0], response.T @ response


def maruyama_law(grid: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The same for the Euler-Maruyama chain of the reverse SDE, by its recursion."""
    for t, s in itertools.pairwise(grid):
        h, (m, C), g = t - s, law_at(t[None]), root(t[None])[0]
        pull = g @ g.T @ torch.linalg.inv(C[0])
        move = torch.eye(2, dtype=torch.float64) - h * (RATE + pull)
        mean, covariance = move @ mean + h * pull @ m[0], move @ covariance @ move.T + h * g @ g.T
    return mean, covariance


def phase_gaps(steps: int = 64) -> dict[str, float]:
    """How far each solver's law at 0.1 is from what it should be, from the exact law at 0.9."""
    ends = torch.tensor([0.9, 0.1], dtype=torch.float64)
    (mean, wanted_mean), (covariance, wanted) = law_at(ends)
    fine = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
    gaps = {}
    for name, solver, grid in (
        ("RK45", sd.RK45(1e-10, 1e-10), ends),
        ("DormandPrince", sd.solvers.DormandPrince(), fine),
        ("Heun", sd.Heun(), fine),
        ("StochasticHeun", sd.solvers.StochasticHeun(), fine),
    ):
        found = chain_law(solver, grid, mean, covariance)
        gaps[name] = max(
            float((found[0] - wanted_mean).abs().max()), float((found[1] - wanted).abs().max())
        )
    found, own = (
        chain_law(sd.EulerMaruyama(), fine, mean, covariance),
        maruyama_law(fine, mean, covariance),
    )
    gaps["EulerMaruyama"] = max(float((a - b).abs().max()) for a, b in zip(found, own, strict=True))
    return gaps


BOUNDS = {
    "RK45": 1e-8,
    "DormandPrince": 1e-8,
    "Heun": 1e-3,
    "StochasticHeun": 1e-3,
    "EulerMaruyama": 1e-12,
}


@pytest.mark.thin(0)
def test_a_phase_space_has_its_law_under_ode_and_sde_solvers() -> None:
    few, many = phase_gaps(32), phase_gaps(64)
    assert all(many[name] < bound for name, bound in BOUNDS.items()), many
    for name in ("Heun", "StochasticHeun"):
        assert math.log2(few[name] / many[name]) == pytest.approx(2, abs=0.25)
    (mean, wanted_mean), (covariance, wanted) = law_at(
        torch.tensor([0.9, 0.1], dtype=torch.float64)
    )
    gaps = []
    for steps in (400, 800):
        found = maruyama_law(
            torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64), mean, covariance
        )
        gaps.append(
            max(float((found[0] - wanted_mean).abs().max()), float((found[1] - wanted).abs().max()))
        )
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(1, abs=0.1)


WRONG = {
    "g * g": lambda g: g * g,
    "g^T g": lambda g: g.mT @ g,
    "diagonal": lambda g: torch.diag_embed((g @ g.mT).diagonal(0, -2, -1)),
}


@pytest.mark.thin(1)
@pytest.mark.parametrize("name", WRONG)
def test_another_product_than_g_g_transposed_gives_another_law(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = property(lambda self: sd.solvers.Matrix(WRONG[name](self.values), self.axis))
    monkeypatch.setattr(sd.solvers.Matrix, "outer", wrong)
    gaps = phase_gaps()
    assert all(gaps[solver] > 10 * bound for solver, bound in BOUNDS.items()), gaps


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    "solver", [sd.solvers.SRA1(), sd.solvers.SRA3(), sd.AdaptiveSDE(0.02, 0.02)], ids=repr
)
def test_a_phase_space_has_its_law_by_samples(solver: sd.solvers.SRA1) -> None:
    """By 2,000 samples: each of five numbers is within 5 standard errors of them, so that one false
    alarm comes in 3e5 runs.
    """
    (mean, wanted_mean), (covariance, wanted) = law_at(
        torch.tensor([0.9, 0.1], dtype=torch.float64)
    )
    z = torch.randn(2000, 2, 1, generator=draws(), dtype=torch.float64)
    x = mean[:, None] + torch.linalg.cholesky(covariance) @ z
    steps = None if solver.adaptive else 40
    out = sd.sample(
        PHASE, x.shape, solver=solver, steps=steps, t_start=0.9, t_end=0.1, x_init=x, **EXACT
    ).x[..., 0]
    off = out - wanted_mean
    root_n = len(out) ** 0.5
    assert bool((off.mean(dim=0).abs() < 5 * wanted.diagonal().sqrt() / root_n + 2e-3).all())
    spread = (wanted.diagonal()[:, None] * wanted.diagonal() + wanted**2).sqrt() / root_n
    assert bool(((off.T @ off / len(out) - wanted).abs() < 5 * spread + 2e-3).all())


def test_a_phase_space_has_its_density_and_its_prior() -> None:
    x = torch.tensor(
        [[[0.3, -1.0], [0.5, 0.2]], [[1.5, 0.0], [-1.0, 2.0]], [[-0.4, 0.9], [0.0, -0.3]]],
        dtype=torch.float64,
    )
    found = sd.log_prob(PHASE, x, solver=sd.solvers.DOP853(1e-10, 1e-10))
    near(
        found.value,
        gaussian_log_prob(
            x, *law_at(torch.tensor([Phase.t_min.func(Phase())], dtype=torch.float64))
        ),
        1e-8,
    )
    start = PhasePrior().from_noise(
        sd.White((1, 2), (2, 2), dtype=torch.float64).at(0).normal("prior")
    )
    given = {"solver": sd.Heun(), "steps": 5, "seed": (1, 2), "dtype": torch.float64}
    one, two = (sd.sample(PHASE, (2, 2, 2), **given, **more) for more in ({}, {"x_init": start}))
    near(one.x, two.x, 1e-14)


def test_a_phase_space_is_simulated_with_its_law() -> None:
    """Forward, 2,000 paths by SRA1, within 5 standard errors."""
    z = torch.randn(2000, 2, 1, generator=draws(), dtype=torch.float64)
    x_0 = MEAN[:, None] + torch.linalg.cholesky(START) @ z
    out = sd.simulate(Phase(), x_0, solver=sd.solvers.SRA1(), steps=40, seed=0).x[..., 0]
    (mean,), (covariance,) = law_at(torch.ones(1, dtype=torch.float64))
    spread = (covariance.diagonal()[:, None] * covariance.diagonal() + covariance**2).sqrt() / len(
        out
    ) ** 0.5
    assert bool(
        ((out - mean).mean(dim=0).abs() < 5 * covariance.diagonal().sqrt() / len(out) ** 0.5).all()
    )
    assert bool(
        (((out - mean).T @ (out - mean)) / len(out) - covariance).abs().lt(5 * spread + 1e-3).all()
    )


# A flat state of several parts


SIZES = (3, 1, 2)
RATES, NOISES, SPREADS = (0.5, 2.0, 0.0), (0.4, 1.0, 2.0), (0.3, 1.0, 0.5)


class Part(sd.SDE):
    """dx = -a x dt + b (1 + t) dw."""

    data_std = 1.0

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a, self.b = a, b

    def drift(self, x, t):
        return -self.a * x

    def diffusion(self, t):
        return self.b * (1 + t)


def each(values: tuple[float, ...]) -> Tensor:
    return torch.cat(
        [
            torch.full((size,), value, dtype=torch.float64)
            for size, value in zip(SIZES, values, strict=True)
        ]
    )


class Parts(sd.SDE):
    """Three parts in one flat event of 6, each with its own coefficients."""

    data_std = 1.0

    def drift(self, x, t):
        return -each(RATES).to(x) * x

    def diffusion(self, t):
        return sd.solvers.Coordinates((1 + t)[..., None] * each(NOISES))


def part_variance(t: Tensor, a: Any, b: Any, std: Any) -> Tensor:
    """Of dx = -a x dt + b (1 + t) dw from N(0, std^2), by Gauss and Legendre's rule."""
    a, b, std = (torch.as_tensor(value, dtype=torch.float64) for value in (a, b, std))
    t = t[:, None]
    u = 0.5 * t * (1 + NODES)
    grown = torch.exp(-2 * a[..., None, None] * (t - u)) * (b[..., None, None] * (1 + u)) ** 2
    return torch.exp(-2 * a[..., None] * t[:, 0]) * std[..., None] ** 2 + 0.5 * t[:, 0] * (
        grown * WEIGHTS
    ).sum(dim=-1)


def score_of(a: Any, b: Any, std: Any) -> Callable[..., Tensor]:
    def score(x: Tensor, t: Tensor) -> Tensor:
        variance = part_variance(t, a, b, std)
        return -x / (variance.T if variance.ndim > 1 else variance[:, None])

    return score


class Share:
    """The part of a noise that belongs to some coordinates."""

    def __init__(self, noise: Any, which: slice) -> None:
        self.noise, self.which = noise, which

    def at(self, step: int) -> Share:
        return Share(self.noise.at(step), self.which)

    def take(self, rows: Tensor) -> Share:
        return Share(self.noise.take(rows), self.which)

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return self.noise.over(a, b, k)[:, self.which]

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        w, z = self.noise.pair(a, b)
        return w[:, self.which], z[:, self.which]


PARTS = sd.ScoreModel(
    score_of(each(RATES), each(NOISES), each(SPREADS)), Parts(), "score", time_dtype=torch.float64
)


@pytest.mark.parametrize(
    "solver",
    [
        sd.EulerMaruyama(),
        sd.solvers.StochasticHeun(),
        sd.solvers.SRA1(),
        sd.Heun(),
        sd.solvers.RungeKutta4(),
    ],
    ids=repr,
)
def test_parts_of_a_flat_state_are_solved_as_if_alone(solver: sd.solvers.SRA1) -> None:
    x = torch.randn(4, sum(SIZES), generator=draws(), dtype=torch.float64)
    white = sd.White((1, 2, 3, 4), (sum(SIZES),), dtype=torch.float64)
    given = {"solver": solver, "steps": 10, "dtype": torch.float64}
    whole = sd.sample(PARTS, x.shape, x_init=x, noise=white, **given).x
    place = 0
    for size, a, b, std in zip(SIZES, RATES, NOISES, SPREADS, strict=True):
        which = slice(place, place + size)
        place += size
        model = sd.ScoreModel(score_of(a, b, std), Part(a, b), "score", time_dtype=torch.float64)
        own = sd.sample(model, (4, size), x_init=x[:, which], noise=Share(white, which), **given)
        near(whole[:, which], own.x, 1e-12)


def test_parts_of_a_flat_state_have_their_laws() -> None:
    """By the moments of the affine chain, and by the flow, which scales every coordinate."""
    ends = torch.tensor([0.9, 0.1], dtype=torch.float64)
    before, wanted = part_variance(ends, each(RATES), each(NOISES), each(SPREADS)).T.sqrt()
    given = {"t_start": 0.9, "t_end": 0.1, "x_init": before[None], "dtype": torch.float64}
    flow = sd.sample(PARTS, (1, 6), solver=sd.RK45(1e-10, 1e-10), **given).x
    near(flow[0], wanted, 1e-8)
    gaps = []
    for steps in (100, 200):
        grid = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
        _, found = affine_moments(
            lambda rows: Reverse(PARTS, rows, 1.0),
            sd.solvers.StochasticHeun(),
            grid,
            0 * before,
            before,
        )
        gaps.append(float((found.sqrt() - wanted).abs().max()))
    assert gaps[1] < 1e-4
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(2, abs=0.1)


# A bridge as a shift


class Shifted(sd.Operator):
    """The model of x = x' + shift(t) y, seen from x'."""

    def at(self, times, like, piece=None):
        shift = times * (1 - times) + 0.5 * times**2
        return list(zip(self.model.at(times, like, piece), shift.unbind(), strict=True))

    def evaluate(self, x, at, rows):
        inner, shift = at
        return self.ask(x + expand(shift, x) * rows.condition["y"], inner, rows)


PRIOR = sd.exact.Gaussian([0.5, -0.2], [[0.6, 0.2], [0.2, 0.3]])
COUPLED, NOISE = torch.tensor([[0.8, 0.3], [-0.2, 0.5]], dtype=torch.float64), 0.4
GIVEN_Y = torch.tensor([0.7, -0.9], dtype=torch.float64)


def bridge_data(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """E[x_0 | x, y] where y = COUPLED x_0 + NOISE n and x = alpha x_0 + shift y + sigma e, by one
    joint Gaussian.
    """
    alpha, sigma, shift = (
        each[:, None, None] for each in (VP.alpha(t), VP.sigma(t), t * (1 - t) + 0.5 * t**2)
    )
    eye, C, none = torch.eye(2, dtype=torch.float64), PRIOR.covariance, torch.zeros_like(alpha)
    seen = torch.cat([alpha * eye + shift * COUPLED, none + COUPLED], dim=1)  # of x_0, in (x, y)
    own = torch.cat([shift * NOISE * eye, none + NOISE * eye], dim=1)
    noise = own @ own.mT
    noise[:, :2, :2] += sigma**2 * eye
    gain = torch.linalg.solve(seen @ C @ seen.mT + noise, seen @ C)
    off = torch.cat([x, y], dim=1) - seen @ PRIOR.mean
    return PRIOR.mean + torch.einsum("bij,bi->bj", gain, off)


BRIDGE = Shifted(ready(bridge_data, "data"))
POSTERIOR = PRIOR.posterior(COUPLED, GIVEN_Y, NOISE)
BRIDGED = [
    (sd.solvers.Ancestral(), 12, None),
    (sd.DDIM(), 12, None),
    (sd.solvers.UniPC(), 12, None),
    (sd.solvers.SASolver(), 12, 0.0),
    (sd.solvers.SASolver(), 12, 1.0),
    (sd.RK45(1e-6, 1e-6), None, None),
]


@pytest.mark.parametrize(("solver", "steps", "stochasticity"), BRIDGED, ids=repr)
def test_a_bridge_is_the_law_of_the_data_given_its_other_end(
    solver: sd.solvers.SASolver, steps: int | None, stochasticity: float | None
) -> None:
    given = {"solver": solver, "steps": steps, "stochasticity": stochasticity, **EXACT}
    found = sd.sample(BRIDGE, (5, 2), condition={"y": GIVEN_Y.expand(5, 2)}, **given)
    exact = sd.ScoreModel(
        lambda x, t: POSTERIOR.v(VP, x, t), VP, "v", time_dtype=torch.float64, data_std=1.0
    )
    wanted = sd.sample(exact, (5, 2), **given)
    near(found.x, wanted.x, 1e-9)
    assert torch.equal(found.nfe, wanted.nfe)


@pytest.mark.parametrize(("solver", "steps", "stochasticity"), BRIDGED[:5], ids=repr)
def test_a_bridge_has_the_moments_of_the_exact_chain(
    solver: sd.solvers.SASolver, steps: int, stochasticity: float | None
) -> None:
    """Along the principal axes of the posterior, where coordinates are independent, with no
    samples.
    """
    grid = torch.linspace(1, 0.01, 4 * steps + 1, dtype=torch.float64)
    mean, covariance = POSTERIOR.chain(VP, solver, grid, stochasticity=stochasticity)
    turn = POSTERIOR.basis

    class Turned(Shifted):
        def evaluate(self, x, at, rows):
            return super().evaluate(x @ turn.T, at, rows) @ turn

    lam = (1.0 if solver.solves_sde else 0.0) if stochasticity is None else stochasticity
    alpha, sigma = VP.alpha(grid[0]), VP.sigma(grid[0])
    start = alpha * POSTERIOR.mean @ turn, (alpha**2 * POSTERIOR.variances + sigma**2).sqrt()

    def problem(rows: int) -> Reverse:
        own = sd.Rows.of(rows, {"y": GIVEN_Y.expand(rows, 2)})
        return Reverse(Turned(BRIDGE.model), own, lam)

    found_mean, found = affine_moments(problem, solver, grid, *start)
    near(turn @ found_mean, mean, 1e-9)
    near((turn * found) @ turn.T, covariance, 1e-9)


# A class of one's own, and mistakes


@pytest.mark.parametrize("name", ["data", "score", "noise", "v", "flow"])
@pytest.mark.parametrize("base", [sd.ScoreModel, sd.Operator])
def test_a_class_that_overrides_what_is_derived_is_refused(base: type, name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"Mine overrides {name}, .*override evaluate\(self, x, at, rows\)"
    ):
        type("Mine", (base,), {name: lambda self, x, t: x})


class Halved(sd.ScoreModel):
    """A score model with a post-processing of its own."""

    def evaluate(self, x, at, rows):
        return 0.5 * super().evaluate(x, at, rows)


@EACH_SOLVER
def test_a_class_that_overrides_evaluate_is_heard_by_samplers(
    solver: sd.DDIM, steps: int | None
) -> None:
    found, wanted = (
        sd.sample(m, (5, 2), solver=solver, steps=steps, **EXACT) for m in (HALVED, HALF)
    )
    assert torch.equal(found.x, wanted.x)
    assert torch.equal(found.nfe, wanted.nfe)


HALVED, HALF = Halved(NET, VP), sd.ScoreModel(lambda x, t: 0.5 * NET(x, t), VP)


@pytest.mark.thin(4)
@pytest.mark.parametrize("use", USES)
def test_a_class_that_overrides_evaluate_is_heard_by_all_else(use: str) -> None:
    assert torch.equal(*(USES[use](model) for model in (HALVED, HALF)))


def test_a_class_that_overrides_evaluate_is_heard_by_its_predictions() -> None:
    for name in ("data", "noise", "score", "v", "flow"):
        assert torch.equal(*(getattr(model, name)(X, 0.4) for model in (HALVED, HALF)))
    assert torch.equal(HALVED(X, 0.4), 0.5 * NET(X, torch.full((5,), 0.4, dtype=torch.float64)))
    each_own = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    assert torch.equal(HALVED(X, each_own), 0.5 * NET(X, each_own))
    assert torch.equal(
        ready(laws)(X, 0.4, label=LABEL), laws(X, torch.full((5,), 0.4, dtype=torch.float64), LABEL)
    )


@pytest.mark.parametrize("name", ["sde", "predicts", "at", "evaluate"])
def test_an_object_that_lacks_a_member_is_told_which(name: str) -> None:
    members = {"sde": VP, "predicts": "noise", "at": lambda *_: [], "evaluate": lambda *_: X}
    lacking = type("Mine", (), {key: value for key, value in members.items() if key != name})()
    for call in (
        lambda: sd.sample(lacking, (5, 2), steps=3),
        lambda: sd.log_prob(lacking, X),
        lambda: sd.encode(lacking, X),
        lambda: sd.mcmc.at(lacking, 0.3),
        lambda: sd.Operator(lacking),
        lambda: sd.diagnose(lacking, X),
    ):
        with pytest.raises(TypeError, match=f"got Mine without {name};"):
            call()
    with pytest.raises(TypeError, match="model must be"):
        sd.DenoisingScoreMatching()(lacking, X)


RETURNS: dict[str, tuple[Callable[[Tensor], Any], type, str]] = {
    "shape": (
        lambda x: x[:, :1],
        ValueError,
        r"Mine\.evaluate must return .*\(5, 2\), torch\.float64; got \(5, 1\)",
    ),
    "rows": (lambda x: x[:2], ValueError, r"Mine\.evaluate must return .*got \(2, 2\)"),
    "dtype": (
        lambda x: x.float(),
        ValueError,
        r"Mine\.evaluate must return .*got \(5, 2\), torch\.float32",
    ),
    "no tensor": (
        lambda x: None,
        TypeError,
        r"Mine\.evaluate must return a tensor or an Output, got NoneType",
    ),
    "numpy": (
        lambda x: x.numpy(),
        TypeError,
        r"Mine\.evaluate must return a tensor or an Output, got ndarray",
    ),
    "output": (
        lambda x: sd.Output(x[:, :1]),
        ValueError,
        r"Mine\.evaluate must return .*got \(5, 1\)",
    ),
}


@pytest.mark.parametrize("kind", RETURNS)
def test_an_answer_that_is_no_prediction_is_told_at_once(kind: str) -> None:
    answer, error, match = RETURNS[kind]

    class Mine(Plain):
        def evaluate(self, x, at, rows):
            return answer(x.detach())

    for call in (
        lambda m: sd.sample(m, (5, 2), solver=sd.DDIM(), steps=3, **EXACT),
        lambda m: sd.sample(m, (5, 2), solver=sd.RK45(), **EXACT),
        lambda m: sd.log_prob(m, X),
        lambda m: sd.DenoisingScoreMatching()(m, X, generator=draws()),
        lambda m: sd.mcmc.at(m, 0.3).score(X),
        lambda m: sd.Operator(m).data(X, 0.3),
    ):
        with pytest.raises(error, match=match):
            call(Mine(NET))


@pytest.mark.parametrize(
    "entries",
    [lambda times: [], lambda times: times, lambda times: None],
    ids=["none", "all", "nothing"],
)
def test_entries_that_are_not_one_a_time_are_told_at_once(entries: Callable[[Tensor], Any]) -> None:
    class Mine(Plain):
        def at(self, times, like, piece):
            found = entries(times)
            return found if found is None else found[:-1]

    for call in (
        lambda m: sd.sample(m, (5, 2), solver=sd.DDIM(), steps=3, **EXACT),
        lambda m: sd.log_prob(m, X),
        lambda m: sd.DenoisingScoreMatching()(m, X, generator=draws()),
    ):
        with pytest.raises(ValueError, match=r"Mine\.at must return a sequence of . entries"):
            call(Mine(NET))
