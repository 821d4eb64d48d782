"""Tuned solvers: what they start from, what moves them, who decides, and their file."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sdediff as sd
from sdediff.arguments import Span
from sdediff.networks import MLP, initialised
from sdediff.options import chosen, default_solver
from sdediff.predict import predict
from sdediff.progress import Bar
from sdediff.protocols import facts
from sdediff.solvers import GRIDS, LogSNR, Tuned
from sdediff.solving import Solving
from sdediff.tuning import fit, grids, moved, search, transfer, trials, tune
from sdediff.tuning.grids import Moving, cheapest
from sdediff.tuning.guard import Bound, bounds
from sdediff.tuning.start import start_of
from sdediff.tuning.unrolled import Scheme, tabled, unrolled

LAW = sd.exact.GaussianMixture(means=[[-1.0, 0.2], [1.0, 0.5], [0.1, -1.0]], stds=[0.1, 0.2, 0.15])
MODEL = LAW.model(sd.VP())
SMALL: dict[str, Any] = {"nfe": 4, "seconds": 2.0, "seed": 1}
SHAPE = (48, 2)
SOLVERS = {
    "default": None,
    "unipc": sd.solvers.UniPC(3, startup="published"),
    "deis": sd.solvers.DEIS(3, startup="published"),
    "ipndm": sd.solvers.IPNDM(4, startup="published"),
    "2s": sd.solvers.DPMSolverPPSinglestep(2),
    "ddim": sd.DDIM(),
}


@pytest.fixture(autouse=True, scope="module")
def coarse() -> Iterator[None]:
    """Dynamic programming among few times, which is quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_FINE", 9)
        yield


@pytest.fixture(scope="module")
def tuned() -> Tuned:
    return tune(MODEL, SHAPE, method="all", **SMALL)


def table(sde: Any = MODEL.sde, solver: Any = None, last: str = "denoise") -> Tuned:
    """A solver that was moved by nothing, on four steps of its own grid."""
    solver = default_solver(sde, 4, stochastic=False) if solver is None else solver
    inside = sde.scaled(1 / LAW.data_std)
    schedule = LogSNR(inside.log_snr, inside.time_of, bounded=True)
    spacing = sde.spacing if solver.spacing == "uniform" else solver.spacing
    times = GRIDS[spacing](4, sde.t_max, sde.t_min, schedule)
    denoise = last == "denoise"
    scheme = unrolled(solver, inside, times, denoise=denoise)
    return tabled(scheme, inside, 0.0 if denoise else sde.t_min, {"last": last})


@pytest.fixture
def start() -> Tuned:
    return table()


@pytest.fixture(scope="module")
def unmoved() -> Tuned:
    """What tuning returns where it found nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search._Work, "_try_grids", lambda *_: None)
        return tune(MODEL, SHAPE, method="dp", **SMALL)


def drawn(solver: Any, model: Any = MODEL, **options: Any) -> Tensor:
    given = {"seed": 3, "dtype": torch.float64} | options
    return sd.sample(model, (16, 2), solver=solver, **given).x


# -- the start -------------------------------------------------------------------------------------


@pytest.mark.thin(14)
@pytest.mark.parametrize("sde", [sd.VP(), sd.VE(), sd.RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("last", ["denoise", "noisy"])
def test_before_anything_is_moved_the_error_is_that_of_the_start(
    sde: Any, name: str, last: str
) -> None:
    model, solver = LAW.model(sde), SOLVERS[name]
    found = table(sde, solver, last)
    want = drawn(solver, model, steps=4, last=last)
    assert torch.allclose(drawn(found, model), want, rtol=0, atol=1e-12)
    nfe = (8 if name == "2s" else 4) + (last == "denoise")
    assert sd.sample(model, (4, 2), solver=found, seed=0).nfe.tolist() == [nfe] * 4


def test_where_nothing_is_found_the_start_is_returned(unmoved: Tuned) -> None:
    assert not unmoved.made["improved"]
    assert torch.allclose(drawn(unmoved), drawn(None, steps=3), rtol=0, atol=1e-12)
    assert unmoved.made["starts"] == {"training": 48, "choosing": 24, "deciding": 24}


def test_a_solver_that_differs_by_rounding_alone_is_not_better() -> None:
    """With one step and the end most solvers are the same."""
    found = tune(MODEL, (32, 2), **(SMALL | {"nfe": 2}), method="dp").made
    assert not found["improved"]
    assert found["how"] == "start"


def test_data_of_another_unit_make_the_same_table(start: Tuned) -> None:
    law = sd.exact.GaussianMixture(means=5.0 * LAW.means, stds=[0.5, 1.0, 0.75])
    sde = sd.VP()
    assert law.data_std == pytest.approx(5 * LAW.data_std)
    with pytest.raises(ValueError, match="another standard deviation"):
        drawn(start, law.model(sde))
    mine = moved(start, law.model(sde))
    assert torch.allclose(
        torch.tensor(mine.angles)[1:-2], torch.tensor(start.angles)[1:-2], rtol=0, atol=1e-9
    )


@dataclass(frozen=True)
class Bounded(sd.DDIM):
    """A solver that is no sum of what the model says."""

    def step(self, *given: Any) -> sd.Step:
        taken = super().step(*given)
        return sd.Step(taken.x.clamp(-1.0, 1.0), None, taken.state)


def test_a_solver_that_is_no_sum_is_refused() -> None:
    with pytest.raises(ValueError, match="no sum of the model's predictions"):
        tune(MODEL, SHAPE, solver=Bounded(), **SMALL)


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("sde", [sd.VP(), sd.VE(), sd.RectifiedFlow()], ids=repr)
def test_times_keep_their_order_whatever_the_numbers(sde: Any, short: bool) -> None:
    times = torch.linspace(sde.t_max, sde.t_min, 6, dtype=torch.float64)
    moving = Moving(sde, times, short=short)
    still = moving(torch.zeros(moving.size, dtype=torch.float64))
    assert torch.allclose(still, times, rtol=0, atol=1e-15)
    g = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 3.0):
        numbers = scale * torch.randn(20, moving.size, generator=g, dtype=torch.float64)
        for each in numbers:
            found = moving(each)
            assert bool((found.diff() < 0).all())
            assert found[0] == times[0]
            assert found[-1] == times[-1] or (short and times[-1] - 1e-15 < found[-1])


def test_a_number_that_shortens_the_grid_has_a_slope_at_zero() -> None:
    sde = sd.VP()
    moving = Moving(sde, torch.linspace(1, 1e-3, 5, dtype=torch.float64), short=True)
    numbers = torch.zeros(moving.size, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(moving(numbers)[-1], numbers)
    assert slope[-1] > 0


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
def test_dynamic_programming_finds_what_trying_all_finds(steps: int) -> None:
    g = torch.Generator().manual_seed(steps)
    cost = torch.rand(7, 7, 7, generator=g, dtype=torch.float64)

    def total(path: tuple[int, ...]) -> float:
        return float(
            sum(cost[a, b, c] for a, b, c in zip((0, *path), path, path[1:], strict=False))
        )

    every = [(0, *inner, 6) for inner in itertools.combinations(range(1, 6), steps - 1)]
    best = min(every, key=lambda path: total(path))
    assert tuple(cheapest(cost, steps)) == best


def test_differences_grow_as_they_do_in_the_flow_of_a_gaussian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The flow multiplies each coordinate by the ratio of the standard deviations of its marginals;
    the rows give the root mean square over coordinates within 10 %.
    """
    stds = torch.tensor([0.2, 1.4] * 8, dtype=torch.float64)
    law = sd.exact.GaussianMixture(torch.zeros(1, 16), covariances=torch.diag(stds**2)[None])
    sde = sd.VP()
    seen = []

    def spy(*args: Any) -> Tensor:
        seen.append(growth(*args))
        return seen[-1]

    growth = grids._growth
    monkeypatch.setattr(grids, "_growth", spy)
    monkeypatch.setattr(search, "_FINE", 33)
    made = tune(law.model(sde), (96, 16), method="dp", nfe=5, seed=0).made
    start = torch.tensor(made["start_grid"], dtype=torch.float64)
    times = grids.fine_grid(sde, start, 33)
    sizes = torch.hypot(sde.alpha(times)[:, None] * stds, sde.sigma(times)[:, None])
    due = (sizes[-1] / sizes).square().mean(dim=1).sqrt()
    found = seen[0].square().mean(dim=1).sqrt()
    torch.testing.assert_close(found, due, rtol=0.1, atol=0.0)


def test_local_errors_are_those_of_two_steps_from_exact_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[Any] = []

    def look(self: Any, *_: Any) -> None:
        known = grids.LocalErrors.measured(self.training, self.sde)
        found.extend([self.training, known, known.of(self.found[0].solver)])

    monkeypatch.setattr(search._Work, "_try_grids", look)
    solver = sd.solvers.UniPC(2, startup="published")
    tune(MODEL, SHAPE, solver=solver, **SMALL)
    training, known, cost = found
    unit, times = training.solving.units.unit, training.times

    def data(place: int) -> Tensor:
        x = predict(MODEL, "data", unit * training.states[place], times[place])
        return x / unit

    for i, j, k in ((0, 2, 5), (3, 4, 8), (0, 0, 4)):
        steps = times[sorted({i, j, k})]
        row = unrolled(solver, known.sde, steps, denoise=False).rows[-1].tolist()
        parts = [training.states[i], data(i), data(j)]
        end = sum(number * part for number, part in zip(row, parts, strict=False))
        error = (end - training.states[k]).square().mean(dim=1).sqrt()
        due = float((error * known.growth[k]).mean())
        assert float(cost[i, j, k]) == pytest.approx(due, rel=1e-6)
    assert math.isinf(float(cost[2, 1, 3]))


def test_a_start_that_is_better_than_the_default_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    poor = start_of(MODEL.sde, sd.DDIM(), 5, denoise=True, known=facts(MODEL))
    monkeypatch.setattr(search, "start_of", lambda *_, **__: poor)
    found = tune(MODEL, (96, 2), nfe=5, method="dp", seed=1).made
    assert found["improved"]
    assert found["start"]["class"] == "DDIM"
    assert found["how"].startswith(("ExponentialMultistep", "DEIS", "IPNDM", "DPMSolverPP"))
    named = tune(MODEL, (96, 2), nfe=5, method="dp", seed=1, solver=sd.DDIM()).made
    assert all(each.startswith(("start", "DDIM")) for each in named["tried"])


@pytest.mark.parametrize("net", [None, initialised(lambda: MLP(2, width=16, depth=1), 0)])
@pytest.mark.parametrize("nfe", [4, 9, 25])
def test_the_reference_is_far_more_accurate_than_the_start(
    net: Any, nfe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By order 8, and by order 5 where a network in single precision rounds."""
    model = MODEL if net is None else sd.ScoreModel(net, sd.VP(), "edm", sigma_data=0.7)
    start = default_solver(model.sde, nfe - 1, stochastic=False)
    span = Span(model.sde, model.sde.t_max, model.sde.t_min)
    taken = chosen(tune, {"dtype": torch.float64})
    solving = Solving.checked(model, facts(model), SHAPE, span, start, nfe - 1, taken)
    made = set()
    for name in ("DOP853", "RK45"):
        kind = getattr(trials, name)
        monkeypatch.setattr(trials, name, lambda *a, kind=kind: made.add(kind.__name__) or kind(*a))
    tolerance = trials.tolerance_for(solving, start, denoise=True)
    by_it = trials.Trials.drawn(solving, 3, tolerance, denoise=True)
    tight = trials.Trials.drawn(solving, 3, 1e-9, denoise=True)
    apart = (by_it.ends - tight.ends).square().mean(dim=1).sqrt()
    of_start = by_it.errors_of(start, solving.times)
    share = 0.003 if net is None else 0.03
    assert float(apart.quantile(0.9)) < share * float(of_start.median())
    assert made == {"DOP853" if net is None else "RK45"}


class Half(torch.nn.Module):
    """The exact network of `MODEL`, of half precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = MODEL.net(x.double(), t.double())
        return found.to(x.dtype)


@pytest.mark.thin(1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_known_of_a_network_in_half_precision_is_that_of_the_exact_one(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """The ends of references, and how differences grow on the way there."""
    found: list[Any] = []

    def look(self: Any, *_: Any) -> None:
        known = grids.LocalErrors.measured(self.training, self.sde)
        found.append((self.deciding.ends, known.growth, self.deciding.errors(self.found[0].scheme)))

    monkeypatch.setattr(search._Work, "_try_grids", look)
    for model in (MODEL, sd.ScoreModel(Half(dtype), sd.VP(), "v", data_std=MODEL.data_std)):
        tune(model, SHAPE, method="dp", **SMALL)
    (ends, growth, of_start), (half_ends, half_growth, _) = found
    apart = (half_ends - ends).square().mean(dim=1).sqrt()
    assert float(apart.quantile(0.9)) < 0.1 * float(of_start.median())
    off = (half_growth / growth).log().abs()
    assert float(off.quantile(0.9)) < 0.2


# -- gradients -------------------------------------------------------------------------------------


def test_preparations_are_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no time left is made up from them."""
    seen: list[tuple[float, str]] = []
    bar = Bar(lambda done, note: seen.append((done, note)))
    monkeypatch.setattr(search, "progress_bar", lambda *_, **__: contextlib.nullcontext(bar))
    tune(MODEL, SHAPE, method="dp", **SMALL)
    assert [done for done, _ in seen[:3]] == [0, 0, 0]
    assert seen[2][1] == "local errors"


@pytest.mark.thin(0)
def test_gradients_are_those_of_differences_and_of_any_batches() -> None:
    found: dict[str, Any] = {}

    def look(self: Any, *_: Any) -> None:
        begin = self.found[0]
        given = begin.solver, self.sde, begin.times, self.training
        adjusted = found.setdefault("adjusted", fit.Adjusted(*given, every=True))
        g = torch.Generator().manual_seed(0)
        for each in adjusted.numbers:
            each.data = 0.1 * torch.randn(each.shape, generator=g, dtype=torch.float64)
        fit._with_gradients(adjusted, self.training, 0.3)
        slopes = torch.cat([each.grad for each in adjusted.numbers])
        found.setdefault("slopes", []).append(slopes)
        if len(found["slopes"]) == 1:
            for i, each in enumerate(adjusted.numbers):
                ends = []
                for h in (1e-5, -1e-5):
                    each.data[0] += h
                    value = fit.loss(self.training.squares(adjusted.scheme()), 0.3)
                    ends.append(float(value.detach()))
                    each.data[0] -= h
                assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(
                    float(each.grad[0]), rel=1e-4, abs=1e-6
                ), i

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search._Work, "_try_grids", lambda *_: None)
        patch.setattr(search._Work, "_by_gradients", look)
        for batch in (None, 20):
            tune(MODEL, SHAPE, method="all", batch_size=batch, **SMALL)
    whole, parts = found["slopes"]
    assert torch.allclose(whole, parts, rtol=1e-9, atol=1e-12)


def best_of(work: Any) -> fit.Best:
    return fit.Best(work.found[0].scheme, 0.0)


def test_a_descent_that_is_interrupted_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[Tensor] = []
    rounds = iter(())

    def look(self: Any, *_: Any) -> None:
        nonlocal rounds
        begin = self.found[0]
        for parts in ((4,), (1, 3)):
            adjusted = fit.Adjusted(begin.solver, self.sde, begin.times, self.training, every=True)
            descent = fit.Descent(adjusted, self.training, self.judged, best_of(self), tail=0.3)
            for count in parts:
                rounds = iter([10] * count)
                descent.go_on(0.0, lambda note: None)
            found.append(torch.cat(adjusted.numbers).detach())

    monkeypatch.setattr(fit.Descent, "_fitting", lambda self, deadline: next(rounds, 0))
    monkeypatch.setattr(search._Work, "_try_grids", lambda *_: None)
    monkeypatch.setattr(search._Work, "_by_gradients", look)
    tune(MODEL, SHAPE, method="all", **SMALL)
    assert torch.equal(*found)
    assert float(found[0].abs().max()) > 0.01


def test_gradients_of_a_slow_network_keep_to_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One iteration shows how long it takes, and then there are as many as fit. A closure takes 10
    seconds here, a line search up to 25 of them.
    """
    clock = [0.0]
    counts: list[int] = []
    ends: list[float] = []
    with_gradients, one_round = fit._with_gradients, fit.Descent._round

    def slow(*given: Any) -> Tensor:
        clock[0] += 10
        return with_gradients(*given)

    def counted(self: Any, count: int) -> None:
        counts.append(count)
        one_round(self, count)

    def look(self: Any, *_: Any) -> None:
        begin = self.found[0]
        given = begin.solver, self.sde, begin.times, self.training
        takes = None
        for seconds in (400, 400, 15):
            descent = fit.Descent(
                fit.Adjusted(*given, every=True),
                self.training,
                self.judged,
                best_of(self),
                tail=0.3,
                takes=takes,
            )
            descent.go_on(clock[0] + seconds, lambda note: None)
            takes = descent.takes
            ends.append(clock[0])

    monkeypatch.setattr(fit, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(fit, "_with_gradients", slow)
    monkeypatch.setattr(fit.Descent, "_round", counted)
    monkeypatch.setattr(search._Work, "_try_grids", lambda *_: None)
    monkeypatch.setattr(search._Work, "_by_gradients", look)
    tune(MODEL, SHAPE, method="all", **SMALL)
    assert counts[0] == 1
    assert max(counts) == 10
    assert 300 < ends[0] < 500
    assert 300 < ends[1] - ends[0] < 500
    assert ends[2] == ends[1]


@pytest.mark.thin(0)
def test_a_start_at_which_the_model_fails_ends_a_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the best so far is kept."""
    found: list[Any] = []

    def look(self: Any, *_: Any) -> None:
        begin = self.found[0]
        x = self.training.x.clone()
        x[3, 1] = math.nan
        failing = replace(self.training, x=x)
        adjusted = fit.Adjusted(begin.solver, self.sde, begin.times, failing, every=True)
        descent = fit.Descent(adjusted, failing, self.judged, best_of(self), tail=0.3)
        descent.go_on(math.inf, lambda note: None)
        found.append(descent)

    monkeypatch.setattr(search._Work, "_try_grids", lambda *_: None)
    monkeypatch.setattr(search._Work, "_by_gradients", look)
    tune(MODEL, SHAPE, method="all", **SMALL)
    assert found[0].over
    assert found[0].lost
    assert found[0].best.score == 0


def test_that_no_time_was_left_is_said() -> None:
    found = tune(MODEL, (32, 2), **(SMALL | {"seconds": 1e-6}))
    trials, gradients = found.made["notes"]
    assert re.fullmatch(r"time for \d of \d\d solvers and grids alone", trials)
    assert gradients == "no time was left for gradients: give more seconds, or fewer starts"
    names = list(found.made["tried"])
    assert 2 <= len(names) <= 4
    own = repr(default_solver(MODEL.sde, 3, stochastic=False))
    assert all(name.startswith(f"{own}, grid by dp") for name in names[1:])


def test_trials_show_what_is_tried_and_stop_at_half_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []
    asked: list[float] = []
    bar = Bar(lambda done, note: seen.append(note))
    monkeypatch.setattr(search, "progress_bar", lambda *_, **__: contextlib.nullcontext(bar))
    monkeypatch.setattr(search, "before", lambda deadline: asked.append(deadline) or len(asked) < 6)
    began = time.monotonic()
    found = tune(MODEL, (32, 2), **(SMALL | {"seconds": 1e6}))
    assert 5e5 <= asked[0] - began < 6e5
    names = [name for name in found.made["tried"] if name != "start"]
    assert 5 <= len(names) <= 8
    assert set(names) < set(seen)
    assert re.match(r"time for [678] of ", found.made["notes"][0])


@pytest.mark.parametrize(
    ("solver", "nfe", "words"),
    [
        ("2s", 5, "the start makes more than one evaluation a step"),
        (None, 12, "it chooses among 9 times, for fewer steps"),
    ],
)
def test_why_there_is_no_dynamic_programming_is_said(
    solver: str | None, nfe: int, words: str
) -> None:
    given: Any = None if solver is None else SOLVERS[solver]
    found = tune(MODEL, (32, 2), method="dp", solver=given, **(SMALL | {"nfe": nfe}))
    assert f"no dynamic programming: {words}" in found.made["notes"][0]


class Told:
    """A descent whose scores are told, and which writes down until when it may go on."""

    scores: Iterator[float]
    asked: list[tuple[int, float]]
    begun: list[tuple[sd.Solver, float]]

    takes = 7.0
    lost = False

    def __init__(self, adjusted: Any, *_: Any, tail: float, takes: float | None) -> None:
        scheme = adjusted.scheme()
        self.number = len(self.asked)
        assert takes == (7.0 if self.begun else None)
        self.begun.append((adjusted.solver, tail))
        fixed = Scheme(scheme.times.detach(), scheme.rows.detach())
        self.best = fit.Best(fixed, next(self.scores))

    def go_on(self, deadline: float, *_: Any) -> None:
        self.asked.append((self.number, deadline))


@pytest.mark.parametrize(
    ("scores", "order"), [((-0.2, -0.5), [0, 1, 1]), ((-0.2, -0.1, -0.25), [0, 1, 2, 2])]
)
def test_the_best_of_a_few_descents_has_the_rest_of_the_time(
    monkeypatch: pytest.MonkeyPatch, scores: tuple[float, ...], order: list[int]
) -> None:
    """Each has a quarter; a third one, with a heavier tail, where neither has gained much."""
    Told.scores, Told.asked, Told.begun = iter(scores), [], []
    monkeypatch.setattr(search, "Descent", Told)
    began = time.monotonic()
    tune(MODEL, SHAPE, method="all", **(SMALL | {"seconds": 1000.0}))
    assert [number for number, _ in Told.asked] == order
    solvers, tails = zip(*Told.begun, strict=True)
    assert tails == (0.3, 0.3, 2.0)[: len(scores)]
    assert solvers[0] == default_solver(MODEL.sde, 3, stochastic=False)
    assert solvers[2:] == solvers[:1] * (len(scores) - 2)  # that with the better score
    *heats, (_, last) = Told.asked
    assert all(200 < deadline - began < 250 + 30 for _, deadline in heats)
    assert 1000 <= last - began < 1030


class Opaque(torch.nn.Module):
    """An exact network that keeps no graph."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = MODEL.net(x, t)
            return found


class Unsmooth(torch.nn.Module):
    """An exact network whose gradients are not numbers."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = MODEL.net(x, t)
        return found + (0 * x).abs().sqrt()


@pytest.mark.thin(0)
def test_gradients_that_are_not_numbers_are_said() -> None:
    model = sd.ScoreModel(Unsmooth(), sd.VP(), "v", data_std=MODEL.data_std)
    found = tune(model, (32, 2), method="all", **(SMALL | {"seconds": 6.0}))
    assert any("gradients ended where they" in note for note in found.made["notes"])


def test_a_model_without_gradients_is_tuned_by_dynamic_programming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which has all of the time."""
    asked: list[float] = []
    monkeypatch.setattr(search, "before", lambda deadline: asked.append(deadline) or True)
    model = sd.ScoreModel(Opaque(), sd.VP(), "v", data_std=MODEL.data_std)
    began = time.monotonic()
    found = tune(model, (32, 2), method="all", **(SMALL | {"seconds": 1000.0}))
    assert asked[0] - began >= 1000
    assert any("no gradients" in note for note in found.made["notes"])
    assert all(not name.startswith("all") for name in found.made["tried"])


@pytest.mark.thin(0)
def test_parameters_of_the_network_get_no_gradients_from_tuning() -> None:
    net = initialised(lambda: MLP(2, width=8), seed=0)
    tune(sd.ScoreModel(net, sd.VP(), data_std=1.0), (32, 2), **(SMALL | {"seconds": 0.1}))
    assert all(each.grad is None for each in net.parameters())


@pytest.mark.thin(0)
def test_outcomes_and_conditions_stay_with_their_samples_among_the_starts_held_out() -> None:
    """Each sample has a measurement of its own: halves of the starts held out solve as all do."""
    seen = sd.posterior.Mask(torch.tensor([True, False]), noise_std=0.3)
    y = seen.forward(LAW.sample(32, seed=5))
    found: list[Any] = []

    def look(self: Any, *_: Any) -> None:
        found.extend([self.deciding, self.sde, self.found[0].solver])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search._Work, "_try_grids", look)
        tune(sd.posterior.PiGDM(MODEL, seen, y), (32, 2), method="dp", **SMALL)
    deciding, sde, start = found
    assert deciding.rows.tolist() == list(range(16, 32))
    grid = deciding.solving.times[[0, -1]]
    tolerance = trials.tolerance_for(deciding.solving, start, denoise=True)
    given = deciding.solving, deciding.rows, deciding.x, grid, tolerance
    assert torch.equal(trials._tight(*given, denoise=True)[1], deciding.ends)
    steps = deciding.solving.times
    by_sums = deciding.errors(unrolled(sd.DDIM(), sde, steps, denoise=True))
    assert torch.allclose(deciding.errors_of(sd.DDIM(), steps), by_sums, rtol=1e-9, atol=1e-12)


# -- who decides -----------------------------------------------------------------------------------


def test_bounds_hold_as_often_as_they_say() -> None:
    # Ratio 1 in truth: the upper bound of one of the two is below it in at most 5 % of the cases.
    # Of 50 cases more than 9 have a probability of 2e-4.
    g = torch.Generator().manual_seed(0)
    wrong = 0
    for seed in range(50):
        a, b = torch.randn(2, 80, generator=g, dtype=torch.float64).exp()
        wrong += any(each.upper < 1 for each in bounds(a, b, seed=seed).values())
    assert wrong <= 9
    exact = bounds(0.5 * a, a)
    assert all(each == (0.5, 0.5) for each in exact.values())


class Claiming:
    """A descent that is worse, and claims to be better."""

    takes = None
    lost = False

    def __init__(self, adjusted: Any, *_: Any, **__: Any) -> None:
        scheme = adjusted.scheme()
        worse = Scheme(scheme.times.detach(), scheme.rows.detach() * 1.05)
        self.best = fit.Best(worse, -5.0)

    def go_on(self, *_: Any) -> None: ...


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search._Work, "_try_grids", lambda *_: None)
    monkeypatch.setattr(search, "Descent", Claiming)


@pytest.mark.usefixtures("claimed")
def test_what_is_worse_on_held_out_starts_is_not_returned() -> None:
    found = tune(MODEL, SHAPE, method="all", **SMALL)
    assert not found.made["improved"]
    assert found.made["how"] == "start"
    assert found.made["bounds"]["median"][0] > 1
    assert torch.allclose(drawn(found), drawn(None, steps=3), rtol=0, atol=1e-12)


@pytest.mark.thin(1)
@pytest.mark.usefixtures("claimed")
@pytest.mark.parametrize(
    ("median", "high", "improved"), [(0.5, 1.01, False), (1.01, 0.5, False), (0.9, 0.99, True)]
)
def test_both_quantiles_have_to_be_better(
    monkeypatch: pytest.MonkeyPatch, median: float, high: float, improved: bool
) -> None:
    bound = {"median": Bound(0.4, median), "p90": Bound(0.4, high)}
    monkeypatch.setattr(search, "bounds", lambda a, b: bound)
    assert tune(MODEL, SHAPE, method="all", **SMALL).made["improved"] == improved


@pytest.mark.slow
def test_tuning_halves_the_error_on_starts_that_it_has_not_seen() -> None:
    found = tune(MODEL, (256, 2), nfe=5, method="all", seconds=60.0, seed=1)
    assert found.made["improved"]
    options = {"seed": 99, "dtype": torch.float64}
    exact = sd.sample(MODEL, (512, 2), solver=sd.solvers.DOP853(1e-8, 1e-8), **options).x
    errors = [
        (sd.sample(MODEL, (512, 2), **each, **options).x - exact).square().mean(dim=1).sqrt()
        for each in ({"solver": found}, {"steps": 4})
    ]
    for share in (0.5, 0.9):
        assert errors[0].quantile(share) < 0.5 * errors[1].quantile(share)


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.thin(0)
def test_a_file_gives_the_same_samples_to_the_bit(tuned: Tuned, tmp_path: Path) -> None:
    tuned.save(tmp_path / "tuned.json")
    found = Tuned.load(tmp_path / "tuned.json")
    assert found == tuned
    assert torch.equal(drawn(found), drawn(tuned))
    with (tmp_path / "tuned.json").open() as file:
        assert json.load(file)["version"] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "no tuned solver"),
        ({"version": 2}, "version 2"),
        ({"weigths": []}, "did you mean 'weights'"),
        ({"keep": None}, "lacks keep"),
        ({"keep": [math.nan] * 5}, "finite numbers"),
        ({"keep": [1.0] * 3}, "K numbers in keep"),
        ({"grid": [1.0, 0.9, 0.95, 0.3, 0.1, 0.0]}, "must fall"),
        ({"weights": [[1.0]] * 5}, r"rows of 1 to 5 numbers, got rows of \[1, 1, 1, 1, 1\]"),
        ({"made": 3}, "made must be a mapping"),
        ({"grid": "0.5"}, "'0.5' as grid, which must be a list"),
        ({"weights": 1.0}, "1.0 as weights, which must be a list"),
    ],
)
def test_a_file_that_is_none_is_refused(
    start: Tuned, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    start.save(tmp_path / "start.json")
    content = json.loads((tmp_path / "start.json").read_text()) | change
    content = {name: each for name, each in content.items() if each is not None}
    (tmp_path / "start.json").write_text(json.dumps(content))
    with pytest.raises((ValueError, TypeError), match=words):
        Tuned.load(tmp_path / "start.json")


def test_a_file_whose_model_is_missing_has_a_name(start: Tuned) -> None:
    assert repr(replace(start, made={"model": None})) == "Tuned(nfe=5, made_for=None)"


class Constant:
    """Data of one point: the last evaluation has no error, however the solver got there."""

    sde = sd.VP()
    predicts = "data"
    data_std = 1.0

    def at(self, times: Tensor, like: Any, piece: Any) -> list[Any]:
        return list(times)

    def evaluate(self, x: Tensor, at: Any, rows: Any) -> Tensor:
        rows.count(1)
        return torch.full_like(x, 0.5)


def test_a_solver_for_data_of_one_point_goes_to_a_file(tmp_path: Path) -> None:
    """All errors are 0, and so is what is better than another."""
    found = tune(Constant(), SHAPE, method="dp", **SMALL)
    found.save(tmp_path / "tuned.json")
    assert not found.made["improved"]
    assert Tuned.load(tmp_path / "tuned.json") == found
    report = transfer(found, Constant(), SHAPE)
    assert report.there == {"median": 1.0, "p90": 1.0}


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\x80PK")
    with pytest.raises(ValueError, match="no JSON"):
        Tuned.load(tmp_path / "x.json")


# -- other models ----------------------------------------------------------------------------------


def test_moved_to_another_process_it_makes_the_same_states(start: Tuned) -> None:
    """With z = x / hypot(alpha, sigma) nothing of the process is left but its angles, here in the
    range that VP and a rectified flow have in common.
    """
    z = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends, angles = [], torch.tensor([1.4, 1.0, 0.7, 0.3, 0.1], dtype=torch.float64)
    for sde in (sd.VP(), sd.RectifiedFlow()):
        inside = sde.scaled(1 / LAW.data_std)
        times = inside.time_of(-2 * angles.tan().log())
        grid = (*times.tolist(), 0.0)
        solver = replace(start, grid=grid, angles=(*angles.tolist(), 0.0))
        size = LAW.data_std * float(torch.hypot(inside.alpha(times[:1]), inside.sigma(times[:1])))
        options: dict[str, Any] = {"x_init": size * z, "seed": 0, "dtype": torch.float64}
        ends.append(sd.sample(LAW.model(sde), (8, 2), solver=solver, **options).x)
        again = moved(solver, LAW.model(sde))
        assert torch.allclose(again.times[1:], times.new_tensor(grid[1:]), rtol=0, atol=1e-9)
    assert torch.allclose(*ends, rtol=0, atol=1e-8)


def test_on_the_model_that_it_was_made_for_nothing_is_said(unmoved: Tuned) -> None:
    found = transfer(unmoved, MODEL, (32, 2))
    assert found.differences == ()
    assert all(each.ratio == pytest.approx(1, abs=1e-6) for each in found.here.values())
    assert all(each == pytest.approx(1, abs=1e-6) for each in found.gap.values())


def test_on_another_model_the_loss_is_said(unmoved: Tuned) -> None:
    bad = replace(unmoved, keep=(0.5 * unmoved.keep[0], *unmoved.keep[1:]))
    other = sd.exact.GaussianMixture(means=[[0.9, 0.1], [-0.9, 0.3]], stds=0.3).model(sd.VP())
    other = sd.ScoreModel(other.net, other.sde, "v", data_std=MODEL.data_std)
    with pytest.warns(UserWarning, match=r"made for another model \(the answers.*tune for this"):
        found = transfer(bad, other, (32, 2))
    assert found.differences == ("the answers to fixed states",)
    assert found.here["median"].ratio > 1


def test_another_process_is_refused_with_the_way_out(start: Tuned) -> None:
    with pytest.raises(ValueError, match=r"another process.*tuning\.moved"):
        drawn(start, LAW.model(sd.Cosine()))


# -- arguments -------------------------------------------------------------------------------------


def test_a_field_that_jumps_is_refused_before_the_network_is_asked(start: Tuned) -> None:
    def net(x: Tensor, t: Tensor) -> Tensor:
        raise RuntimeError("asked")

    model = sd.ScoreModel(net, sd.VP())
    guided = sd.guidance.Auto(model, model, 1.5, interval=(-2.0, 2.0))
    with pytest.raises(ValueError, match=r"jumps at t = .*leave the interval out"):
        tune(guided, SHAPE, nfe=4)
    with pytest.raises(ValueError, match=r"jumps at t = .*leave the interval out"):
        transfer(start, guided, SHAPE)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nfe": 1}, "nfe = 1 is too few"),
        ({"nfe": 0}, "nfe must be an int of at least 1"),
        ({"nfe": 4, "solver": sd.solvers.DPMSolverPPSinglestep(2)}, "no number of steps"),
        ({"nfe": 5, "solver": sd.Heun()}, "evaluates twice at one time"),
        ({"solver": sd.RK45()}, "is adaptive"),
        ({"solver": sd.EulerMaruyama()}, "draws noise"),
        ({"solver": sd.solvers.SDEDPMSolverPP(2)}, "draws noise"),
        ({"solver": sd.DDPM.from_sde(sd.VP(), 5)}, "draws noise|grid of its own"),
        ({"solver": sd.solvers.SciPy("RK45")}, "is adaptive|another library"),
        ({"solver": "unipc"}, "did you mean"),
        ({"shape": (16, 2)}, "too few to tell solvers apart"),
        ({"method": "everything"}, "method must be one of"),
        ({"seconds": 0}, "seconds must be positive"),
        ({"last": "mean"}, "last must be one of"),
        ({"t_end": 0.5}, "takes no option 't_end'"),
    ],
)
def test_wrong_arguments_are_refused_before_the_network_is_asked(
    given: dict[str, Any], words: str
) -> None:
    def net(x: Tensor, t: Tensor) -> Tensor:
        raise RuntimeError("asked")

    model = sd.ScoreModel(net, sd.VP())
    arguments: dict[str, Any] = {"shape": SHAPE, "nfe": 4, **given}
    with pytest.raises((ValueError, TypeError), match=words):
        tune(model, **arguments)


def test_nfe_counts_evaluations_of_the_network() -> None:
    guided = sd.guidance.Auto(MODEL, MODEL, 1.5)
    found = tune(guided, (32, 2), nfe=8, method="dp", seed=1)
    assert found.nfe == 4
    assert sd.sample(guided, (4, 2), solver=found, seed=0).nfe.tolist() == [8] * 4
    with pytest.raises(
        ValueError, match=r"nfe = 7 counts .* each call .* makes 2 at most: .* multiple"
    ):
        tune(guided, (32, 2), nfe=7)
    with pytest.raises(ValueError, match=r"nfe = 2 is too few.*take 4 or more"):
        tune(guided, (32, 2), nfe=2)


def test_the_start_is_the_default_under_strong_guidance() -> None:
    found = tune(sd.guidance.Auto(MODEL, MODEL, 3.0), (32, 2), nfe=8, method="dp", seed=1)
    assert found.made["start"]["parameters"]["order"] == 1


def test_transfer_starts_with_as_many_calls_of_a_guided_model(start: Tuned) -> None:
    """The field of a model that is guided by itself is its own: nothing is lost or gained."""
    found = transfer(start, sd.guidance.Auto(MODEL, MODEL, 1.5), (32, 2))
    assert found.here["median"].ratio == pytest.approx(1.0, abs=1e-6)


def test_it_goes_along_its_own_grid(start: Tuned) -> None:
    with pytest.raises(ValueError, match="grid of its own"):
        drawn(start, steps=5)
    with pytest.raises(ValueError, match="from its first time to its last"):
        drawn(start, t_start=start.grid[1], x_init=torch.zeros(16, 2))
    with pytest.raises(ValueError, match="nothing is left to denoise"):
        drawn(start, last="denoise")


def test_schemes_of_several_grids_are_those_of_each() -> None:
    sde = sd.VP()
    solver = sd.solvers.UniPC(2, startup="published")
    grids = torch.tensor([[1.0, 0.6, 0.2], [0.9, 0.5, 0.01]], dtype=torch.float64)
    many = unrolled(solver, sde, grids.T, denoise=False)
    for i, times in enumerate(grids):
        one = unrolled(solver, sde, times, denoise=False)
        assert torch.allclose(many.rows[:, i], one.rows, rtol=0, atol=1e-13)
        assert torch.equal(many.times[:, i], one.times)
