"""Every named equivalence holds by Hypothesis over random SDEs, grids, mixtures, shapes and predictions; what is broken is named."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

import sdediff as sd
from sdediff.predictions import PREDICTIONS
from sdediff.testing import (
    EQUIVALENCES,
    Case,
    EquivalenceError,
    check_equivalence,
    check_equivalences,
    check_sde,
    evaluate,
    strategies,
)
from sdediff.testing.equivalences import equivalence, markdown
from sdediff.testing.equivalences.case import NEEDS, usual
from sdediff.testing.equivalences.table import agree
from solvers import PredictorCorrector, ReverseDiffusion, Step
from solvers.arithmetic import weighted
from solvers.exponential import euler

ROOT = Path(__file__).resolve().parent.parent
QUIET = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
MIXTURE = sd.exact.GaussianMixture([[-0.8, 0.4], [0.9, 0.1]], [0.3, 0.5])
CASE = Case(sd.VP(), MIXTURE, (1.0, 0.6, 0.3, 0.05))


def sweep(name: str, examples: int) -> None:
    """The property itself; most examples must not be skipped, or it would say nothing."""
    verdicts: Counter[str] = Counter()

    @settings(QUIET, max_examples=examples)
    @given(strategies.cases(EQUIVALENCES[name].needs))
    def holds(case: Case) -> None:
        finding = evaluate(name, case)
        verdicts[finding.verdict] += 1
        assert finding.verdict != "fail", str(finding)

    holds()
    assert set(verdicts) == {"ok"}


@pytest.mark.parametrize("name", EQUIVALENCES)
def test_equivalence(name: str) -> None:
    sweep(name, 2 if EQUIVALENCES[name].costly else 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUIVALENCES)
def test_equivalence_deep(name: str) -> None:
    sweep(name, 30 if EQUIVALENCES[name].costly else 250)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_docs_have_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Printed by `python -m sdediff.testing.equivalences`."""
    runpy.run_module("sdediff.testing.equivalences", run_name="__main__")
    assert capsys.readouterr().out.strip() == markdown()
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    assert markdown() in page, "docs/testing.md: put there what `python -m sdediff.testing.equivalences` prints"


@pytest.mark.parametrize("name", EQUIVALENCES)
def test_every_comparison_is_held_to_the_bound_of_its_line(name: str) -> None:
    with torch.no_grad():
        bounds = {item.bound for item in EQUIVALENCES[name].check(CASE)}
    assert bounds == {EQUIVALENCES[name].bound}


def test_one_decorated_function_is_a_new_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EQUIVALENCES, "mine", EQUIVALENCES["DDIM"])  # so that it is taken out again

    @equivalence("mine", statement="twice DDIM is DDIM", bound=1e-6)
    def mine(case):
        yield agree("twice DDIM", case.solve(sd.DDIM()), case.solve(sd.DDIM()), case.times, 1e-6)

    assert evaluate("mine", CASE).verdict == "ok"
    assert "| mine | twice DDIM is DDIM | 1e-06 |" in markdown()
    assert check_equivalences(sd.VP(), names=["mine"], verbose=False)["mine"].deviation == 0


# -- check_equivalences ------------------------------------------------------------------------------------------------


class Cubic(sd.LinearSDE):
    def f(self, t):
        return -0.5 * (0.1 + 19.9 * t**3)

    def g(self, t):
        return (0.1 + 19.9 * t**3).sqrt()


def test_a_users_sde_has_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    report = check_equivalences(Cubic)
    assert [(f.name, f.verdict) for f in report.findings] == [(name, "ok") for name in EQUIVALENCES]
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "Cubic()"
    assert shown[1].startswith("equivalence")


def test_what_an_sde_lacks_is_skipped_by_name() -> None:
    report = check_equivalences(sd.VE(), names=["DDPM chain", "DDIM"], verbose=False)
    assert [f.verdict for f in report.findings] == ["skipped", "ok"]
    assert "needs alpha^2 + sigma^2 = 1" in report["DDPM chain"].detail

    class Well(sd.SDE):
        def drift(self, x, t):
            return x - x**3

        def diffusion(self, t):
            return 1.0

    report = check_equivalences(Well(), verbose=False)
    assert {f.verdict for f in report.findings} == {"skipped"}
    assert report["DDIM"].detail == "needs a Gaussian kernel"


@pytest.mark.parametrize("sde", [sd.RectifiedFlow(t_max=1.0), sd.Cosine(t_max=1.0), sd.EDM(1e-4, 5000.0)], ids=repr)
def test_ends_where_signal_or_noise_is_lost_are_cut(sde: sd.LinearSDE) -> None:
    names = [name for name, entry in EQUIVALENCES.items() if not entry.costly]
    assert check_equivalences(sde, names=names, verbose=False).passed


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"no equivalence is called 'DDIN' \(did you mean 'DDIM'\?\)"):
        check_equivalences(sd.VP(), names=["DDIN"])
    with pytest.raises(TypeError, match="check_equivalences takes an SDE"):
        check_equivalences(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a case takes a LinearSDE"):
        Case(sd.DDIM(), MIXTURE, (1.0, 0.5))
    with pytest.raises(ValueError, match="at least two falling times"):
        Case(sd.VP(), MIXTURE, (0.5, 1.0))
    with pytest.raises(ValueError, match="outside the usable range"):
        Case(sd.VP(), MIXTURE, (2.0, 1.0))
    with pytest.raises(ValueError, match="needs must be among"):
        strategies.sdes(["unit varianc"])


# -- mutants: each breaks one line of the library, and the equivalences that it breaks are named -----------------------


def broken(monkeypatch: pytest.MonkeyPatch, name: str, sde: object = None) -> str:
    """The message of `check_equivalences` for that name."""
    with pytest.raises(EquivalenceError) as caught:
        check_equivalences(sd.VP() if sde is None else sde, names=[name], verbose=False)
    assert f"\n- {name}: " in str(caught.value)
    assert "Case(" in str(caught.value)
    return str(caught.value)


def twisted(cls: type, monkeypatch: pytest.MonkeyPatch, **factors: float) -> None:
    """Plans of that class with fields multiplied."""
    plan = cls.plan

    def other(self, problem, times):
        return [each._replace(**{k: getattr(each, k) * c for k, c in factors.items()}) for each in plan(self, problem, times)]

    monkeypatch.setattr(cls, "plan", other)


def test_ancestral_noise_of_the_wrong_size(monkeypatch: pytest.MonkeyPatch) -> None:
    twisted(euler.Ancestral, monkeypatch, std=1.01)
    said = broken(monkeypatch, "ancestral sampling")
    assert "Ancestral(), against the posterior step, is " in said
    assert "first at step 1 of 8, t = 0." in said
    broken(monkeypatch, "DDPM sampling")


def test_a_ddpm_of_the_other_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd.DDPM, "__post_init__", lambda self: object.__setattr__(self, "variance", "beta"))
    broken(monkeypatch, "DDPM sampling")


def test_a_ddpm_by_another_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """beta_i = beta(t_i) / N, which is right in the limit only."""
    made = sd.DDPM.from_sde

    def song(sde, N, **rest):
        ddpm = made(sde, N, **rest)
        return replace(ddpm, betas=tuple(min(0.99, float(sde.beta(torch.tensor(t)) / N)) for t in ddpm.grid))

    monkeypatch.setattr(sd.DDPM, "from_sde", song)
    assert "1 - beta_i is " in broken(monkeypatch, "DDPM chain")


def test_a_ddim_that_does_not_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    twisted(euler.DDIM, monkeypatch, push=1 + 1e-8)
    said = broken(monkeypatch, "DDIM", sd.VE())
    assert "DDIM(eta=0.0), against exponential Euler, is " in said


def test_a_heun_without_its_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd.Heun, "tableau", sd.Midpoint.tableau)
    broken(monkeypatch, "EDM sampler")


def test_churn_with_another_size_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    twisted(sd.Churn, monkeypatch, std=1 / 1.003)
    broken(monkeypatch, "EDM churn")


def test_a_flow_that_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(sd.VP):
        def g(self, t):
            return 1.001 * super().g(t)

    broken(monkeypatch, "one flow", Wrong())


def test_a_reverse_sde_with_half_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """(1 + lambda)^2 / 4 would pass at lambda = 1; 1 / 2 does not."""
    twisted(ReverseDiffusion, monkeypatch, push=0.5)
    said = broken(monkeypatch, "reverse SDE")
    assert "the order in law of ReverseDiffusion(rule='kernel') is " in said
    assert "a wrong factor in drift or noise" in said


def test_a_langevin_step_with_a_missing_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """sqrt(step) for sqrt(2 step): a slip of widely read notes."""
    twisted(sd.Langevin, monkeypatch, root=0.5**0.5)
    broken(monkeypatch, "annealed Langevin")


def test_a_corrector_that_acts_without_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd.Langevin, "step", lambda self, problem, x, plan, noise, state: Step(1.001 * x, x))
    broken(monkeypatch, "predictor alone")


def test_noise_where_lambda_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    step = sd.EulerMaruyama.step

    def noisy(self, problem, x, plan, noise, state):
        out = step(self, problem, x, plan, noise, state)
        return Step(weighted((1.0, out.x), (1e-6, noise.over(plan.t, plan.s))), out.mean)

    monkeypatch.setattr(sd.EulerMaruyama, "step", noisy)
    assert "EulerMaruyama() at lambda = 0 is " in broken(monkeypatch, "no noise")


def test_a_prediction_with_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that takes sigma x_0 - alpha noise for v; the case's own network is not made with it."""
    v = PREDICTIONS["v"]
    monkeypatch.setattr("sdediff.testing.equivalences.case.PREDICTIONS", dict(PREDICTIONS))
    monkeypatch.setitem(PREDICTIONS, "v", lambda sde, t, s: tuple(-c for c in v(sde, t, s)))
    assert "the sample by v, against " in broken(monkeypatch, "predictions")


def test_failures_shrink_to_a_small_case(monkeypatch: pytest.MonkeyPatch) -> None:
    twisted(euler.DDIM, monkeypatch, push=1.01)
    least = find(
        strategies.cases(),
        lambda case: evaluate("DDIM", case).verdict == "fail",
        settings=settings(QUIET, phases=[Phase.generate, Phase.shrink], max_examples=50),
    )
    assert repr(least) == (
        "Case(VP(beta_min=0.1, beta_max=20.0, T=1.0, t_min=0.001), GaussianMixture(means=[[0.0]], stds=[1.0], weights=[1.0]), "
        "(1, 0.001), predicts='noise', seed=0, rows=3)"
    ) or len(least.grid) == 2


# -- correctors of no steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corrector", [sd.Langevin(n_steps=0), sd.MetropolisLangevin(n_steps=0)], ids=repr)
@pytest.mark.parametrize("sequence", ["predictor-first", "corrector-first"])
@pytest.mark.parametrize("last", ["noisy", "mean", "denoise"])
def test_a_corrector_of_no_steps_costs_nothing_and_keeps_the_mean(corrector, sequence, last) -> None:
    model = MIXTURE.model(sd.VP())
    solver = PredictorCorrector(sd.EulerMaruyama(), corrector, sequence)
    out, alone = (sd.sample(model, (5, 2), solver=s, steps=6, seed=3, last=last) for s in (solver, sd.EulerMaruyama()))
    assert torch.equal(out.x, alone.x)
    assert torch.equal(out.nfe, alone.nfe)


def test_a_deterministic_predictor_with_a_corrector_of_no_steps_draws_nothing() -> None:
    assert not PredictorCorrector(sd.DDIM(), sd.Langevin(n_steps=0)).stochastic
    assert PredictorCorrector(sd.DDIM(), sd.Langevin()).stochastic


# -- check_equivalence -------------------------------------------------------------------------------------------------


def differ(a, b, **options) -> str:
    with pytest.raises(EquivalenceError) as caught:
        check_equivalence(a, b, verbose=False, **options)
    return str(caught.value)


def test_two_solvers_that_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    report = check_equivalence(sd.Ancestral(), sd.DDIM(1.0))
    assert [f.name.partition("(")[0] for f in report.findings] == ["on VP", "on VE", "on SubVP"]
    assert capsys.readouterr().out.startswith("Ancestral() and DDIM(eta=1.0)\nequivalence")
    assert check_equivalence(sd.Churn(sd.Heun(), churn=0.0), sd.Heun(), grid="karras", steps=6, verbose=False).passed
    assert check_equivalence(sd.SRA1(), sd.SRA1(), sde=Cubic, grid=[0.9, 0.5, 0.1], stochasticity=0.5, verbose=False).passed


def test_a_discrete_model_brings_its_grid() -> None:
    ddpm = sd.DDPM.from_sde(sd.VP(), 10)
    report = check_equivalence(ddpm, sd.Ancestral(), sde=sd.VP(), data=MIXTURE, verbose=False)
    assert " of 9, t = " in report.findings[0].where
    said = differ(replace(ddpm, variance="beta"), sd.Ancestral(), sde=sd.VP())
    assert "without noise they agree: the noise of the first has 1.0" in said
    with pytest.raises(ValueError, match="pass the sde= that it was made from"):
        check_equivalence(sd.Ancestral(), ddpm)


@dataclass(frozen=True)
class Loud(sd.EulerMaruyama):
    """sqrt(2) times the noise."""

    size: float = 2**0.5

    def step(self, problem, x, plan, noise, state):
        out = super().step(problem, x, plan, noise, state)
        return Step(out.mean + self.size * (out.x - out.mean), out.mean)


@dataclass(frozen=True)
class OtherStream(sd.EulerMaruyama):
    def step(self, problem, x, plan, noise, state):
        mean = super().step(problem, x, plan, noise, state).mean
        return Step(problem.shake(mean, noise.normal("corrector"), plan.t, plan.root), mean)


@dataclass(frozen=True)
class LastStepFree(sd.Euler):
    """Right but in the third step."""

    def step(self, problem, x, plan, noise, state):
        out = super().step(problem, x, plan, noise, state)
        return out._replace(x=out.x + 0.01) if float(plan.times[0]) < 0.45 else out


def test_messages_say_where_and_why() -> None:
    said = differ(Loud(), sd.EulerMaruyama(), sde=sd.VP())
    assert said.startswith("Loud(size=1.4142135623730951) and EulerMaruyama() differ:\n- on VP(")
    assert "first at step 1 of 10, t = 0.9001, sample " in said
    assert ", coordinate " in said
    assert "without noise they agree: the noise of the first has 1.41421 times the size in the first step (a factor sqrt(2)" in said
    assert "the noise is of another stream" in differ(OtherStream(), sd.EulerMaruyama(), sde=sd.VP())
    assert "Ancestral() draws noise and DDIM(eta=0.0) does not" in differ(sd.DDIM(), sd.Ancestral(), sde=sd.VE())
    said = differ(LastStepFree(variable="t"), sd.Euler(variable="t"), sde=sd.VP(), grid=[0.8, 0.6, 0.4, 0.2])
    assert "first at step 3 of 3, t = 0.2" in said


def test_two_discretizations_are_told_from_two_processes() -> None:
    said = differ(sd.Heun(variable="t"), sd.Heun(variable="sigma"), sde=sd.VP())
    assert "two discretizations of one process: one step h differs as h^3.0" in said
    said = differ(sd.EulerMaruyama(), sd.Ancestral(), sde=sd.VE())
    assert "two discretizations of one process: one step h differs as h^1.5" in said
    assert "as h^0.5: another amount of noise" in differ(sd.Ancestral(), sd.DDIM(0.5), sde=sd.VP())

    class Wrong(sd.Euler):  # half the score of an SDE's drift
        def step(self, problem, x, plan, noise, state):
            out = super().step(problem, x, plan, noise, state)
            return out._replace(x=2 * out.x - x)

    assert "as h^1.0: another drift" in differ(Wrong(variable="t"), sd.Euler(variable="t"), sde=sd.VP())


def test_two_models() -> None:
    one, other = (usual(MIXTURE, sd.VP(), way) for way in ("noise", "v"))
    assert check_equivalence(one, other, data=MIXTURE, verbose=False).passed
    assert check_equivalence(one, other, data=MIXTURE, solver=sd.Heun(), verbose=False).passed
    misread = sd.ScoreModel(other.net, sd.VP(), "score", time_dtype=torch.float64)
    assert "the network of b predicts v, and is declared to predict score" in differ(one, misread)
    flipped = sd.ScoreModel(lambda x, t: -one.net(x, t), sd.VP(), "noise", time_dtype=torch.float64)
    assert "their noise predictions differ by a sign" in differ(one, flipped)
    with pytest.raises(ValueError, match="agree only up to scale"):
        check_equivalence(one, usual(MIXTURE, sd.SubVP(), "v"))


def test_check_equivalence_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(TypeError, match="write it with parentheses"):
        check_equivalence(sd.DDIM, sd.DDIM())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="two solvers or two ScoreModels"):
        check_equivalence(sd.DDIM(), MIXTURE.model(sd.VP()))
    with pytest.raises(ValueError, match="solver= is for two models"):
        check_equivalence(sd.DDIM(), sd.DDIM(), solver=sd.Euler())
    with pytest.raises(TypeError, match="data must be a law"):
        check_equivalence(sd.DDIM(), sd.DDIM(), data=torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bound must be a positive number"):
        check_equivalence(sd.DDIM(), sd.DDIM(), bound=0)
    with pytest.raises(TypeError, match="no Gaussian kernel"):
        check_equivalence(sd.Euler(), sd.Euler(), sde=sd.SDE())


# -- strategies --------------------------------------------------------------------------------------------------------


@settings(QUIET, max_examples=5)
@given(strategies.sdes())
def test_drawn_sdes_are_consistent(sde: sd.LinearSDE) -> None:
    assert check_sde(sde, verbose=False).passed


@pytest.mark.slow
@settings(QUIET, max_examples=80)
@given(strategies.sdes())
def test_drawn_sdes_are_consistent_deep(sde: sd.LinearSDE) -> None:
    assert check_sde(sde, verbose=False).passed


def test_every_family_and_every_way_of_giving_an_sde_is_drawn() -> None:
    seen = Counter()

    @settings(QUIET, max_examples=150, phases=[Phase.generate])
    @given(strategies.sdes())
    def draw(sde: sd.LinearSDE) -> None:
        seen[type(sde).__name__] += 1

    draw()
    assert set(seen) == set("VP VE SubVP EDM Cosine RectifiedFlow Preserving ByRates BySchedule ByLevels".split())


@settings(QUIET, max_examples=15)
@given(st.data())
def test_drawn_cases_are_what_they_promise(data) -> None:
    event = data.draw(strategies.event_shapes(max_dims=2, max_side=2))
    law = data.draw(strategies.mixtures(event, max_components=2))
    assert tuple(law.event) == event
    assert len(law.means) <= 2
    sde = data.draw(strategies.sdes(("unit variance",), built_in=False))
    assert NEEDS["unit variance"][1](sde)
    grid = data.draw(strategies.grids(sde, max_steps=4))
    assert 2 <= len(grid) <= 5
    assert all(sde.t_min <= t <= sde.t_max for t in grid)
    assert all(t > s for t, s in zip(grid, grid[1:], strict=False))
    assert data.draw(strategies.predictions(sde, grid)) in PREDICTIONS


@pytest.mark.parametrize(
    ("strategy", "least"),
    [
        (strategies.sdes(), repr(sd.VP())),
        (strategies.event_shapes(), "(1,)"),
        (strategies.grids(sd.VP()), "(1.0, 0.001)"),
        (strategies.predictions(sd.VP()), "'noise'"),
    ],
    ids=["sdes", "event_shapes", "grids", "predictions"],
)
def test_strategies_shrink_to_what_is_simple(strategy, least: str) -> None:
    assert repr(find(strategy, lambda _: True, settings=settings(QUIET, max_examples=20))) == least
    with pytest.raises(NoSuchExample):
        find(strategy, lambda _: False, settings=settings(QUIET, max_examples=5))


def test_strategies_say_that_they_need_hypothesis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "sdediff.testing.strategies")
    with pytest.raises(ImportError, match=r'hypothesis is not installed; install it with: pip install "sdediff\[testing\]"'):
        importlib.import_module("sdediff.testing.strategies")
