"""`sd.compare` against closed forms: errors of a Gaussian's flow, orders, floors, budgets."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixed_solvers import FIXED
from torch import Tensor

import sdediff as sd
from sdediff import solvers
from sdediff.comparison import Comparison, Errors, Row, allowance, running, tables
from sdediff.comparison.advice import tolerance_for
from sdediff.comparison.measuring import law_of
from sdediff.comparison.written import written

F64 = torch.float64
SDE = sd.VP()
LAW = sd.exact.Gaussian([0.3, -0.2], [[0.5, 0.2], [0.2, 0.3]])
MODEL = LAW.model(SDE)
TWO = [sd.DDIM(), solvers.DPMSolverPP(2)]


def compared(given: Any = TWO, nfe: Any = (5, 10), count: int = 32, **options: Any) -> Comparison:
    return sd.compare(MODEL, (count, 2), solvers=given, nfe=nfe, **options)


def row(found: Comparison, solver: str, budget: int) -> Any:
    (one,) = [each for each in found.rows if (each.solver, each.budget) == (solver, budget)]
    return one


@pytest.fixture(scope="module")
def found() -> Comparison:
    """Of each kind."""
    given = [None, *TWO, sd.Heun(), sd.RK45(), sd.EulerMaruyama(), solvers.ERSDE(3)]
    data = LAW.sample(100, seed=5)
    return compared(given, (2, 5, 10), data=data, tolerances=[1e-1, 1e-2, 1e-3, 1e-4])


# -- what is measured ------------------------------------------------------------------------------


def test_errors_are_those_to_the_exact_flow_of_a_gaussian() -> None:
    """The flow and E[x_0 | x] of a Gaussian in closed form; the reference is off by 1e-8."""
    one = row(compared(dtype=F64), "DDIM()", 10)
    z = sd.White(sd.seeds(0, 32), (2,), dtype=F64).at(0).normal("prior")
    x = LAW.flow(SDE, SDE.prior.from_noise(z), SDE.t_max, SDE.t_min)
    exact = LAW.data(SDE, x, SDE.t_min)
    made = sd.sample(MODEL, (32, 2), solver=sd.DDIM(), steps=9, seed=0, dtype=F64)
    off = (made.x - exact).square().mean(dim=1).sqrt().sort().values / MODEL.data_std
    expected = [off[15], off.square().mean().sqrt(), off[28], off[31]]
    measured = [one.error.median, one.error.rms, one.error.p90, one.error.worst]
    torch.testing.assert_close(
        torch.tensor(measured, dtype=F64), torch.stack(expected), rtol=1e-6, atol=1e-8
    )
    assert (one.nfe, one.slowest, one.steps) == (10, 10, 9)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "order"), [(sd.DDIM(), 1), (solvers.DPMSolverPP(2), 2)])
def test_a_solver_of_order_p_falls_with_slope_p(solver: Any, order: int) -> None:
    found = compared([solver], (81, 321), count=8, dtype=F64)
    few, many = (row(found, repr(solver), nfe).error.rms for nfe in (81, 321))
    assert math.log(few / many) / math.log(4) == pytest.approx(order, abs=0.15)


@pytest.mark.thin(0)
def test_evaluations_are_counted_with_the_last_one_and_all_of_a_step(found: Comparison) -> None:
    assert row(found, "Heun()", 10).nfe == 9  # four steps of two and the end
    assert row(found, "default", 10).steps == 9
    assert row(found, "Heun()", 2).note == "left out: one step takes 3 evaluations"
    assert all(each.slowest <= each.budget for each in found.measured if each.budget)


@pytest.mark.slow
def test_a_guided_model_is_counted_at_its_networks() -> None:
    guided = sd.guidance.Auto(MODEL, sd.exact.Gaussian([0.0, 0.0], 1.0).model(SDE), 1.5)
    found = sd.compare(guided, (8, 2), solvers=[sd.DDIM()], nfe=[3, 10])
    assert [each.nfe for each in found.rows] == [None, 10]
    assert found.rows[0].note == "left out: one step takes 4 evaluations"
    assert found.rows[1].steps == 4


def test_noise_is_judged_by_its_law_and_not_by_errors(found: Comparison) -> None:
    noisy, still = row(found, "EulerMaruyama()", 10), row(found, "default", 10)
    assert noisy.error is None
    assert still.error is not None
    assert noisy.law.energy.floor.repeats > 0
    assert noisy.law.energy.value > noisy.law.energy.floor.quantile
    assert still.law.energy.value < still.law.energy.floor.quantile
    assert still.law.sliced_w2.value > 0.05  # the draws are from other starts
    spread = row(found, "EulerMaruyama()", 5).law.spread.value
    assert spread > 0.2  # far too much noise is left


@pytest.mark.slow
def test_floors_hold_what_exact_draws_have() -> None:
    """By exchangeability P(value above the 95 % quantile of 40 splits) is at most 3 in 41 and 1 in
    41 at least; of 80 pairs more than 17 or none at all have it with probability below 1e-3, 0.14.
    A shift by half a standard deviation is always above.
    """
    above = torch.zeros(2)
    for seed in range(80):
        x, y = (LAW.sample(40, seed=2 * seed + i) for i in (0, 1))
        law = law_of(x, y, seed)
        for i, each in enumerate((law.energy, law.sliced_w2)):
            assert each.floor is not None
            above[i] += each.value > each.floor.quantile
    assert float(above.max()) <= 17
    far = law_of(x + 0.8, y, 0)
    assert far.energy.floor is not None
    assert far.energy.value > far.energy.floor.quantile


def test_spread_is_the_log_of_the_ratio_of_standard_deviations() -> None:
    x = LAW.sample(50, seed=0)
    assert law_of(3 * x, x, 0).spread.value == pytest.approx(math.log(3), abs=1e-12)


@pytest.mark.slow
def test_the_law_given_takes_the_place_of_the_flows() -> None:
    other = sd.exact.Gaussian([1.3, -0.2], [[0.5, 0.2], [0.2, 0.3]])
    draws = other.sample(40, seed=7)
    for against in (other, draws, lambda count: other.sample(count, seed=7)):
        found = compared([None], [10], against=against)
        law = found.rows[0].law
        assert law is not None
        assert law.energy.floor is not None
        assert law.energy.value > law.energy.floor.quantile
    assert found.against == "the law given"
    same = compared([None], [10], against=LAW).rows[0].law
    assert same is not None
    assert same.energy.floor is not None
    assert same.energy.value < same.energy.floor.quantile


# -- the reference ---------------------------------------------------------------------------------


def test_a_loose_reference_is_found_out_by_the_second() -> None:
    good, bad = (compared([None], [50], dtype=F64, **each) for each in ({}, {"reference": 0.5}))
    assert good.reference.error is not None
    assert bad.reference.error is not None
    assert good.reference.error.worst < 1e-7
    assert bad.reference.error.median > 1e-5
    assert "median" in bad.near(bad.rows[0])
    assert not good.near(good.rows[0])
    assert "~" in str(bad)


def test_a_strongly_guided_flow_is_checked_by_a_method_of_high_order() -> None:
    """The default has order 1 or 2 there, which would make good errors look like none."""
    law = sd.exact.GaussianMixture(means=[[-1.0, 0.0], [1.0, 0.5]], stds=0.3)
    strong = sd.guidance.Auto(law.model(sd.VP()), law.model(sd.VP()), 3.0)
    found = sd.compare(strong, (16, 2), solvers=[None], nfe=[14], dtype=F64)
    assert found.reference.checked_by.startswith("Tsit5")
    assert found.reference.error is not None
    assert found.reference.error.worst < 1e-5


class Bent(sd.SDE):  # type: ignore[misc]
    """An SDE without a kernel, whose law stays N(0, I)."""

    T = 1.0
    prior = sd.Prior(1.0)

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        return -0.5 * x

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@pytest.mark.slow
def test_an_sde_without_a_kernel_has_a_reference_too() -> None:
    @dataclass
    class Standard:
        sde: Any = field(default_factory=Bent)
        predicts: str = "score"
        data_std: float = 1.0

        def at(self, times: Tensor, like: Any, piece: Any) -> Sequence[Any]:
            return [None] * len(times)

        def evaluate(self, x: Tensor, at: Any, rows: Any) -> Tensor:
            return -x

    found = sd.compare(Standard(), (16, 2), nfe=[4, 8], tolerances=[1e-2])
    names = {each.solver for each in found.measured}
    assert {"Heun()", "EulerMaruyama()", "RK45()"} <= names
    assert found.reference.error is not None
    assert found.reference.error.worst < 1e-5


# -- the same comparison ---------------------------------------------------------------------------


@pytest.mark.thin(0)
def test_neither_the_order_of_the_solvers_nor_a_second_run_changes_anything() -> None:
    given = [*TWO, solvers.ERSDE(3)]  # noise too
    first, again, turned = (compared(each, [5], 8) for each in (given, given, given[::-1]))
    assert first == again == turned
    assert first != compared(given, [5], 8, seed=1)


def test_two_equal_solvers_tie() -> None:
    found = compared({"one": sd.DDIM(), "other": sd.DDIM()}, [10])
    assert row(found, "one", 10).error == row(found, "other", 10).error
    assert "no better than other" in found.recommend(nfe=10).sentence


def test_json_keeps_all_of_it(found: Comparison) -> None:
    assert Comparison.from_json(found.to_json()) == found
    broken = replace(found.rows[0], error=Errors(math.inf, math.inf, 1.0, math.nan))
    text = replace(found, rows=(broken,)).to_json()
    assert "Infinity" not in text
    back = Comparison.from_json(text).rows[0].error
    assert back is not None
    assert back.median == math.inf
    assert math.isnan(back.worst)
    for junk in ("{}", "no", '{"format": 1, "rows": []}'):
        with pytest.raises(ValueError, match="no comparison written by to_json"):
            Comparison.from_json(junk)


# -- advice ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["median", "rms", "p90", "worst", "energy", "data_energy"])
def test_the_recommendation_is_the_least_and_its_code_runs(found: Comparison, by: str) -> None:
    advice = found.recommend(nfe=10, by=by)
    fits = [each for each in found.measured if each.slowest <= 10 and each.value(by) is not None]
    assert advice.row.value(by) == min(each.value(by) for each in fits)  # type: ignore[type-var]
    space: dict[str, Any] = {"sd": sd, "model": MODEL}
    exec(advice.code, space)
    assert int(space["out"].nfe.max()) == advice.row.slowest
    assert tuple(space["out"].x.shape) == (32, 2)


def test_an_accuracy_is_reached_by_the_fewest_evaluations(found: Comparison) -> None:
    goal = 0.05
    advice = found.recommend(error=goal, by="median")
    reach = [each for each in found.measured if (each.value("median") or 9) <= goal]
    assert advice.row.nfe <= min(each.nfe for each in reach)
    assert "Nothing here reaches" in found.recommend(error=1e-15, by="median").sentence


def test_between_two_tolerances_the_one_that_reaches_the_accuracy(found: Comparison) -> None:
    """Errors of an adaptive solver are near a power of its tolerance: within a factor of 4."""
    swept = [each for each in found.measured if each.tolerance is not None]
    first, last = (each.value("rms") for each in (swept[0], swept[-1]))
    goal = math.sqrt(first * last)
    made = tolerance_for(swept, "rms", goal)
    assert made is not None
    assert swept[0].tolerance > made.tolerance > swept[-1].tolerance
    space: dict[str, Any] = {"sd": sd, "model": MODEL}
    exec(made.code, space)
    z = sd.White(sd.seeds(0, 32), (2,), dtype=F64).at(0).normal("prior")
    x = LAW.flow(SDE, SDE.prior.from_noise(z), SDE.t_max, SDE.t_min)
    off = (space["out"].x - LAW.data(SDE, x, SDE.t_min)).square().mean().sqrt() / MODEL.data_std
    assert goal / 4 < float(off) < 4 * goal
    assert float(space["out"].nfe.double().mean()) == pytest.approx(made.nfe, rel=0.3)


def test_between_two_tolerances_logarithms_are_lines() -> None:
    def at(tolerance: float, error: float, nfe: float) -> Row:
        code = (
            f"out = sd.sample(model, (2, 2), solver=RK45(rtol={tolerance}, atol={tolerance / 2}))"
        )
        errors = Errors(error, error, error, error)
        return Row("RK45()", code, False, tolerance=tolerance, nfe=nfe, error=errors)

    made = tolerance_for([at(1e-4, 4e-5, 40.0), at(1e-2, 4e-3, 10.0)], "median", 4e-4)
    assert made is not None
    assert made.tolerance == pytest.approx(1e-3, rel=0.1)  # two digits, not looser
    assert made.tolerance <= 1e-3
    assert made.nfe == pytest.approx(20.0)
    assert f"rtol={made.tolerance:g}, atol={made.tolerance / 2:g}" in made.code
    assert tolerance_for([at(1e-2, 4e-3, 10.0)], "median", 4e-4) is None


def test_code_of_a_solver_makes_that_solver() -> None:
    for each in FIXED:
        code = written(each)
        assert code is not None
        assert eval(code, {"sd": sd}) == each
    assert written(sd.DDPM.from_sde(SDE, 10)) is None


def test_code_has_the_seed_and_what_changes_the_samples() -> None:
    """Run, each line gives the errors of its row."""
    mask = torch.tensor([True, False]).expand(8, 2)
    for given in ({"seed": 3}, {"mask": mask, "dtype": F64}):
        found = compared([sd.DDIM()], [5], 8, **given)
        space: dict[str, Any] = {"sd": sd, "torch": torch, "model": MODEL, "mask": mask}
        exec(found.rows[0].code, space)
        options: Any = {"seed": 0} | given
        want = sd.sample(MODEL, (8, 2), solver=sd.DDIM(), steps=4, **options).x
        assert torch.equal(space["out"].x, want)


@dataclass(frozen=True, eq=False)
class Table(sd.RK45):
    """A solver that a line cannot write."""

    numbers: Tensor = field(default_factory=lambda: torch.ones(3))


@pytest.mark.thin(0)
def test_code_of_a_solver_that_a_line_cannot_write_takes_it_from_what_was_given() -> None:
    space: dict[str, Any] = {"sd": sd, "model": MODEL, "dataclasses": dataclasses}
    for given in ([sd.DDIM(), Table()], {"mine": Table()}):
        found = compared(given, [5], 8, tolerances=[1e-1, 1e-3])
        rows = [each for each in found.rows if each.tolerance is not None]
        space["solvers"] = given
        for each in rows:
            exec(each.code, space)
            tolerance = each.tolerance or 0.0
            atol = float(f"{tolerance * found.data_std:.6g}")
            own = sd.sample(MODEL, (8, 2), solver=sd.RK45(tolerance, atol), seed=0)
            assert torch.equal(space["out"].x, own.x)
        assert rows[0].code != rows[1].code


def test_adaptive_solvers_are_named_without_the_tolerances_that_they_are_not_run_at() -> None:
    given = [sd.RK45(1e-3, 1e-3), solvers.SciPy("DOP853")]
    found = compared(given, [5], 4, tolerances=[0.1])
    assert sorted({each.solver for each in found.rows}) == ["RK45()", "SciPy(method='DOP853')"]


def test_outcomes_of_each_sample_are_heeded() -> None:
    """In solvers when their evaluations are counted, and in models when time is short."""
    seen = sd.posterior.Mask(torch.tensor([True, False]), noise_std=0.3)
    y = seen.forward(LAW.sample(24, seed=5))
    given = [sd.posterior.DiffPIR(seen, y), sd.posterior.PublishedDPS(seen, y)]
    found = compared(given, [5], 24, against=LAW)
    assert [each.nfe for each in found.rows] == [5, 5]
    assert {each.backward for each in found.rows} == {0, 4}  # none at the last evaluation
    posterior = sd.posterior.PiGDM(MODEL, seen, y)
    kept = sd.compare(posterior, (24, 2), solvers=[sd.DDIM()], nfe=[2], budget_s=1e-4)
    assert kept.shape == (24, 2)


def test_what_counting_would_warn_of_is_a_note_alone() -> None:
    """Warnings are errors here."""
    law = sd.exact.Gaussian([0.0, 0.0], [[1e4, 0.0], [0.0, 1e4]])
    found = sd.compare(law.model(sd.VE()), (4, 2), solvers=[sd.DDIM()], nfe=[3])
    assert any("before noise has taken over" in note for note in found.notes)


def test_a_degradation_has_no_flow_to_compare_with() -> None:
    model = sd.ScoreModel(lambda x, t: x, sd.degradation.Blur(levels=3, std=0.5, size=3), "data")
    with pytest.raises(ValueError, match="has no probability flow"):
        sd.compare(model, (4, 1, 8, 8), nfe=[3])


def test_advice_says_what_it_needs(found: Comparison) -> None:
    for wrong in ({}, {"nfe": 3, "error": 0.1}, {"nfe": 1}, {"error": -1.0}, {"nfe": 5, "by": "x"}):
        with pytest.raises(ValueError, match=r"pass one of|no row has|must be"):
            found.recommend(**wrong)  # type: ignore[arg-type]


# -- what goes wrong -------------------------------------------------------------------------------


@dataclass
class Own:
    """A user's model around the exact one, which fails at one of its calls and takes time."""

    clock: list[float] = field(default_factory=lambda: [0.0])
    pause: float = 0.0
    fails: int = -1
    calls: int = 0
    sde: Any = SDE
    predicts: str = "data"
    data_std: float = 1.0

    def at(self, times: Tensor, like: Any, piece: Any) -> Sequence[Any]:
        return times.unbind()

    def evaluate(self, x: Tensor, at: Any, rows: Any) -> Tensor:
        self.calls += 1
        self.clock[0] += self.pause * len(x)
        if self.calls == self.fails:
            raise RuntimeError("the network is out of memory")
        return LAW.data(SDE, x, at)


def test_a_row_that_fails_says_so_and_the_others_remain() -> None:
    whole = Own()
    sd.compare(whole, (8, 2), solvers=TWO, nfe=[5, 10])
    found = sd.compare(Own(fails=whole.calls - 3), (8, 2), solvers=TWO, nfe=[5, 10])
    (broken,) = [each for each in found.rows if each.nfe is None]
    assert broken.note == "failed: RuntimeError: the network is out of memory"
    assert len(found.measured) == 3
    assert all(each.error is not None for each in found.measured)
    assert "out of memory" in found.markdown()


def test_without_a_reference_there_are_laws_and_costs() -> None:
    found = sd.compare(Own(fails=3), (8, 2), solvers=[sd.DDIM()], nfe=[5], against=LAW)
    assert "out of memory" in found.reference.note
    assert found.rows[0].error is None
    assert found.rows[0].law is not None


def test_samples_that_fail_are_infinitely_far() -> None:
    class Late(Own):
        def evaluate(self, x: Tensor, at: Any, rows: Any) -> Tensor:
            out = super().evaluate(x, at, rows)
            if x.dtype == torch.float32:
                out[rows.index == 0] = torch.nan
            return out

    found = sd.compare(Late(), (8, 2), solvers=[sd.DDIM()], nfe=[5])
    error = found.rows[0].error
    assert error is not None
    assert error.worst == math.inf
    assert error.median < 1
    assert found.rows[0].note.startswith("1 of 8 samples failed")


@pytest.mark.parametrize("budget", [20.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_seconds_are_kept_to_a_tenth(monkeypatch: pytest.MonkeyPatch, budget: float) -> None:
    """A clock that goes on by evaluations alone; all of it would take 100 s and more."""
    own = Own(pause=0.002)
    clock = SimpleNamespace(perf_counter=lambda: own.clock[0])
    for module in (allowance, running):
        monkeypatch.setattr(module, "time", clock)
    given = [None, *TWO, solvers.UniPC(3), sd.RK45()]
    found = sd.compare(own, (64, 2), solvers=given, nfe=[5, 20, 100, 400], budget_s=budget)
    assert own.clock[0] <= 1.1 * budget
    assert found.seconds == own.clock[0]
    out = [each for each in found.rows if each.note.startswith("left out: ")]
    assert any(each.note == "left out: no time" for each in out)
    assert found.measured
    assert max(each.nfe for each in found.measured) <= min(
        each.budget for each in out if each.budget is not None
    )
    assert any("samples in place of 64" in note for note in found.notes)


class Rough(Own):
    """A network that has hardly learned takes thousands of evaluations of an adaptive solver."""

    def evaluate(self, x: Tensor, at: Any, rows: Any) -> Tensor:
        rough = 0.01 * torch.sin(300 * x)
        if self.predicts == "data":
            return super().evaluate(x, at, rows) + rough
        self.clock[0] += self.pause * len(x)
        return 50 * rough - x


@pytest.mark.parametrize("kind", ["flow", "noise", "no kernel"])
def test_a_model_too_rough_for_a_tight_reference_has_one_of_fixed_steps(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """By the default solver, or by Heun's method where that would draw noise."""
    made: dict[str, Any] = {"sde": Bent(), "predicts": "score"} if kind == "no kernel" else {}
    own = Rough(pause=0.0004, **made)
    clock = SimpleNamespace(perf_counter=lambda: own.clock[0])
    for module in (allowance, running):
        monkeypatch.setattr(module, "time", clock)
    first = sd.Heun() if made else None
    given = [first, solvers.Ancestral() if kind == "noise" else sd.solvers.Euler()]
    found = sd.compare(own, (16, 2), solvers=given, nfe=[5, 10], budget_s=12.0)
    assert own.clock[0] <= 13.2
    assert len(found.measured) == 4
    name, steps = re.fullmatch(r"(.*) in (\d+) steps", found.reference.solver).groups()
    assert name == ("Heun" if made else "the default solver")
    assert found.reference.nfe == int(steps) * (2 if made else 1) + (not made)
    assert 100 <= found.reference.nfe <= 1000
    solves = 2.5 if kind == "noise" else 1.5  # its check by half as many steps, and draws
    assert solves * found.reference.nfe * 16 * own.pause < 0.25 * 8 * 1.1  # of the seconds left
    assert found.reference.error is not None
    assert found.reference.error.median < 1e-2
    assert any("a tight reference takes too long" in note for note in found.notes)
    assert all(
        (each.law is not None) if each.stochastic else (each.error is not None)
        for each in found.rows
    )
    whole = sd.compare(Rough(**made), (16, 2), solvers=[first], nfe=[5], budget_s=None)
    plain, short = whole.rows[0].error, found.rows[0].error
    assert plain is not None
    assert short is not None
    assert short.median == pytest.approx(plain.median, rel=0.3)


def test_the_default_is_left_out_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the solves of one cost."""
    own = Own(pause=0.001)
    clock = SimpleNamespace(perf_counter=lambda: own.clock[0])
    for module in (allowance, running):
        monkeypatch.setattr(module, "time", clock)
    given = [None, *(solvers.DPMSolverPP(order) for order in (1, 2, 3)), *TWO]
    found = sd.compare(own, (16, 2), solvers=given, nfe=[100], reference=1e-2, budget_s=9.0)
    measured = {each.solver for each in found.measured}
    assert "default" in measured
    assert len(measured) < len(given)
    own = Own(pause=0.001)
    short = sd.compare(own, (16, 2), solvers=TWO, nfe=[5, 300], reference=1e-2, budget_s=6.0)
    assert "nothing was measured at 300" in short.recommend(nfe=300).sentence
    assert "nothing was measured" not in short.recommend(nfe=5).sentence


def test_a_solve_that_turns_out_slower_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slower(Own):
        def evaluate(self, x: Tensor, at: Any, rows: Any) -> Tensor:
            self.pause = 0.002 if self.calls < 300 else 0.05
            return super().evaluate(x, at, rows)

    own = Slower()
    clock = SimpleNamespace(perf_counter=lambda: own.clock[0])
    for module in (allowance, running):
        monkeypatch.setattr(module, "time", clock)
    found = sd.compare(own, (8, 2), solvers=TWO, nfe=[5, 200], budget_s=20.0)
    assert own.clock[0] <= 22
    assert row(found, "DDIM()", 5).error is not None
    assert row(found, "DDIM()", 200).note == "left out: it was stopped when the time was over"


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"nfe": [0]}, ValueError, "nfe must be"),
    ({"nfe": 10}, ValueError, "nfe must be a list"),
    ({"nfe": []}, ValueError, "nfe must be a list"),
    ({"solvers": []}, ValueError, "solvers is empty"),
    ({"solvers": ["unipc"]}, TypeError, "did you mean sdediff.solvers.UniPC"),
    ({"solvers": [sd.DDIM]}, TypeError, "not a class"),
    ({"solvers": sd.DDIM()}, TypeError, "must be a list of solvers"),
    ({"solvers": [sd.Heun()], "nfe": [2]}, ValueError, "no solver fits"),
    ({"tolerances": [0.0]}, ValueError, "tolerances must be a positive number"),
    ({"budget_s": -1}, ValueError, "budget_s must be a positive number"),
    ({"reference": 0}, ValueError, "reference must be a positive number"),
    ({"features": "inception"}, ValueError, "needs the file of its weights"),
    ({"features": 3}, TypeError, "features must be"),
    ({"features": torch.nn.Flatten()}, ValueError, "pass data too"),
    ({"data": torch.zeros(9, 3)}, ValueError, "have to be the same"),
    ({"against": 3}, TypeError, "against must be draws"),
    ({"against": torch.zeros(9, 3)}, ValueError, "have to be the same"),
    ({"dtype": torch.float16}, ValueError, "dtype must be"),
    ({"batch_size": 0}, ValueError, "batch_size must be"),
    ({"mask": torch.ones(3, 3)}, ValueError, "mask"),
    ({"grids": "karras"}, ValueError, "grids must be a list"),
    ({"budget": 3}, TypeError, "budget_s"),
    ({"seed": -1}, ValueError, "seed must be"),
]


@pytest.mark.thin(8)
@pytest.mark.parametrize(("options", "kind", "words"), BAD, ids=[str(case[0]) for case in BAD])
def test_what_is_wrong_is_refused_before_the_first_evaluation(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    own = Own()
    with pytest.raises(kind, match=words):
        sd.compare(own, (8, 2), **options)
    assert own.calls == 0


def test_a_shape_is_asked_for_where_nothing_says_it() -> None:
    with pytest.raises(ValueError, match="shape is needed"):
        sd.compare(Own())
    assert sd.compare(MODEL, solvers=[sd.DDIM()], nfe=[2]).shape == (512, 2)


# -- grids, chains and the default list ------------------------------------------------------------


def test_each_grid_is_a_row_of_its_own() -> None:
    found = compared([sd.DDIM(), sd.RK45()], [10], grids=["karras", "log_snr"], tolerances=[0.1])
    names = [each.solver for each in found.measured]
    assert sorted(names) == ["DDIM(), karras", "DDIM(), log_snr", "RK45()"]
    space: dict[str, Any] = {"sd": sd, "model": MODEL}
    exec(found.rows[0].code, space)
    assert "grid=" in found.rows[0].code


@pytest.mark.slow
def test_a_chain_is_made_for_each_number_of_evaluations() -> None:
    found = compared({"ddpm": lambda n: sd.DDPM.from_sde(SDE, n)}, [30, 50])
    assert [each.nfe for each in found.measured] == [30, 50]
    assert "solver=solvers['ddpm'](30)" in found.rows[0].code


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VE", "Cosine", "RectifiedFlow", "EDM"])
def test_the_default_list_fits_the_model(name: str) -> None:
    sde = getattr(sd, name)()
    found = sd.compare(LAW.model(sde), (16, 2), nfe=[8, 12], tolerances=[0.1])
    assert len({each.solver for each in found.measured}) > 12
    assert found.reference.error is not None
    assert found.reference.error.median < 1e-6


# -- how it looks ----------------------------------------------------------------------------------


def test_tables_hold_every_row(
    found: Comparison, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found.show()
    by_rich = capsys.readouterr().out
    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    found.show()
    bare = capsys.readouterr().out
    assert bare == f"{found}\n"
    for text in (by_rich, bare, found.markdown()):
        assert all(each.solver in text for each in found.rows)
        assert "real data, held out" in text
        assert "one step takes 3 evaluations" in text


def test_the_picture_is_a_file(found: Comparison, tmp_path: Any) -> None:
    found.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
