"""Every named equivalence holds, by Hypothesis over random SDEs, grids, mixtures and predictions;
what is broken is named.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, find, given, settings
from quiet import QUIET

import sdediff as sd
from sdediff.predictions import PREDICTIONS
from sdediff.solvers import PredictorCorrector, ReverseDiffusion, Step
from sdediff.solvers.arithmetic import weighted
from sdediff.solvers.exponential import euler
from sdediff.testing import (
    EQUIVALENCES,
    Case,
    EquivalenceError,
    check_equivalences,
    check_solver,
    evaluate,
    strategies,
)
from sdediff.testing.equivalences import agree, equivalence, markdown

ROOT = Path(__file__).resolve().parents[2]
MIXTURE = sd.exact.GaussianMixture([[-0.8, 0.4], [0.9, 0.1]], [0.3, 0.5])
CASE = Case(sd.VP(), MIXTURE, (1.0, 0.6, 0.3, 0.05))
OF_VE = Case(sd.VE(), MIXTURE, (1.0, 0.6, 0.3, 0.05))


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


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", EQUIVALENCES)
def test_equivalence(name: str) -> None:
    sweep(name, 2 if EQUIVALENCES[name].costly else 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUIVALENCES)
def test_equivalence_deep(name: str) -> None:
    sweep(name, 30 if EQUIVALENCES[name].costly else 250)


# -- the table -------------------------------------------------------------------------------------


def test_the_docs_have_the_table() -> None:
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    assert markdown() in page, "docs/testing.md: put there sdediff.testing.equivalences.markdown()"


@pytest.mark.parametrize("name", EQUIVALENCES)
def test_comparisons_name_the_bound_of_their_line(name: str) -> None:
    case = OF_VE if "constant scale" in EQUIVALENCES[name].needs else CASE
    with torch.no_grad():
        first = next(EQUIVALENCES[name].check(case))
    assert first.bound == EQUIVALENCES[name].bound


def test_agree_names_the_first_place_beyond_the_bound() -> None:
    times, expected = (
        torch.tensor([1.0, 0.5, 0.2]),
        torch.full((3, 2, 2, 2), 4.0, dtype=torch.float64),
    )
    given = expected.clone()
    given[1, 1, 0, 1] += 0.04
    given[2, 0, 1, 1] += 2.0
    found = agree("x", given, expected, times, 1e-3)
    assert found.deviation == 0.5
    assert found.where == "step 1 of 2, t = 0.5, sample 1, coordinate (0, 1)"
    assert found.detail == f"x is 4.04, not 4, first at {found.where}"
    given[2, 0, 0, 0] = torch.nan
    assert agree("x", given, expected, times).deviation == torch.inf
    expected[2] = 0.1  # small after it was large: rounding stays of the size that it had
    assert agree("x", expected + 4e-11, expected, times).deviation < 1.1e-11
    assert agree("x", expected[1:] + 4e-11, 0 * expected[1:] + 0.1, times[1:]).deviation > 10
    assert agree("x", expected[:2], expected, times).deviation == torch.inf
    assert agree("x", 2 * expected, expected, times).hint == "a factor 2"


def test_one_decorated_function_is_a_new_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EQUIVALENCES, "mine", EQUIVALENCES["DDIM"])  # so that it is taken out again

    @equivalence("mine", statement="twice DDIM is DDIM", bound=1e-6)
    def mine(case):
        yield agree("twice DDIM", case.solve(sd.DDIM()), case.solve(sd.DDIM()), case.times, 1e-6)

    assert evaluate("mine", CASE).verdict == "ok"
    assert "| mine | twice DDIM is DDIM | 1e-06 |" in markdown()
    assert check_equivalences(sd.VP(), names=["mine"], verbose=False)["mine"].deviation == 0


# -- check_equivalences ----------------------------------------------------------------------------


class Cubic(sd.LinearSDE):
    def f(self, t):
        return -0.5 * (0.1 + 19.9 * t**3)

    def g(self, t):
        return (0.1 + 19.9 * t**3).sqrt()


@pytest.mark.thin(0)
def test_a_users_sde_has_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    """The costly ones and those with many solvers: by the page docs/testing.md, in
    tests/project/test_docs.py.
    """
    names = [
        "DDPM chain",
        "DDPM sampling",
        "ancestral sampling",
        "DDIM",
        "EDM churn",
        "annealed Langevin",
    ]
    report = check_equivalences(Cubic, names=names)
    assert [(f.name, f.verdict) for f in report.findings] == [(name, "ok") for name in names]
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


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    "sde", [sd.RectifiedFlow(t_max=1.0), sd.Cosine(t_max=1.0), sd.EDM(1e-4, 5000.0)], ids=repr
)
def test_ends_where_signal_or_noise_is_lost_are_cut(sde: sd.LinearSDE) -> None:
    names = ["ancestral sampling", "DDIM", "EDM churn", "predictions"]
    assert check_equivalences(sde, names=names, verbose=False).passed


class Lost(sd.VP):
    def log_snr(self, t):
        return torch.nan * t


def test_bad_input() -> None:
    with pytest.raises(
        ValueError, match=r"no equivalence is called 'DDIN' \(did you mean 'DDIM'\?\)"
    ):
        check_equivalences(sd.VP(), names=["DDIN"])
    with pytest.raises(
        ValueError, match=r"no grid can be made for Lost\(.*see what check_sde says of it"
    ):
        check_equivalences(Lost())
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


# -- mutants: each breaks one line of the library, and the equivalences that it breaks are named ---


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
        return [
            each._replace(**{k: getattr(each, k) * c for k, c in factors.items()})
            for each in plan(self, problem, times)
        ]

    monkeypatch.setattr(cls, "plan", other)


def pushed(cls: type, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Plans of that class whose evaluations keep x + push q have another push."""
    plan = cls.plan

    def other(self, problem, times):
        made = problem.at
        with monkeypatch.context() as patch:
            patch.setattr(
                problem,
                "at",
                lambda times, quantity, keep=0.0, push=1.0: made(
                    times, quantity, keep, factor * push
                ),
            )
            return plan(self, problem, times)

    monkeypatch.setattr(cls, "plan", other)


def test_ancestral_noise_of_the_wrong_size(monkeypatch: pytest.MonkeyPatch) -> None:
    twisted(euler.Ancestral, monkeypatch, std=1.01)
    said = broken(monkeypatch, "ancestral sampling")
    assert "Ancestral(), against the posterior step, is " in said
    assert "first at step 1 of 8, t = 0." in said
    broken(monkeypatch, "DDPM sampling")


def test_a_ddpm_of_the_other_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sd.DDPM, "__post_init__", lambda self: object.__setattr__(self, "variance", "beta")
    )
    broken(monkeypatch, "DDPM sampling")


def test_a_ddpm_by_another_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """beta_i = beta(t_i) / N, which is right in the limit only."""
    made = sd.DDPM.from_sde

    def song(sde, N, **rest):
        ddpm = made(sde, N, **rest)
        return replace(
            ddpm, betas=tuple(min(0.99, float(sde.beta(torch.tensor(t)) / N)) for t in ddpm.grid)
        )

    monkeypatch.setattr(sd.DDPM, "from_sde", song)
    assert "1 - beta_i is " in broken(monkeypatch, "DDPM chain")


def test_a_ddim_that_does_not_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(euler.DDIM, monkeypatch, 1 + 1e-8)
    said = broken(monkeypatch, "DDIM", sd.VE())
    assert "DDIM(), against exponential Euler, is " in said


def test_a_heun_without_its_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sd.Heun, "tableau", sd.solvers.Midpoint.tableau)
    broken(monkeypatch, "EDM sampler")


def test_churn_with_another_size_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    twisted(sd.solvers.Churn, monkeypatch, std=1 / 1.003)
    broken(monkeypatch, "EDM churn")


def test_a_flow_that_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(sd.VP):
        def g(self, t):
            return 1.001 * super().g(t)

    broken(monkeypatch, "one flow", Wrong())


def test_a_reverse_sde_with_half_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """(1 + lambda)^2 / 4 would pass at lambda = 1; 1 / 2 does not."""
    pushed(ReverseDiffusion, monkeypatch, 0.5)
    said = broken(monkeypatch, "reverse SDE")
    assert "the order in law of ReverseDiffusion(rule='kernel') is " in said
    assert "a wrong factor or sign in the drift, or in the noise" in said


def test_a_langevin_step_with_a_missing_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """sqrt(step) for sqrt(2 step): a slip of widely read notes."""
    twisted(sd.Langevin, monkeypatch, root=0.5**0.5)
    broken(monkeypatch, "annealed Langevin")


def test_a_corrector_that_acts_without_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sd.Langevin, "step", lambda self, problem, x, plan, noise, state: Step(1.001 * x, x)
    )
    broken(monkeypatch, "predictor alone")


def test_noise_where_lambda_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    step = sd.EulerMaruyama.step

    def noisy(self, problem, x, plan, noise, state):
        out = step(self, problem, x, plan, noise, state)
        return Step(weighted((1.0, out.x), (1e-6, noise.over(plan.t, plan.s))), out.mean)

    monkeypatch.setattr(sd.EulerMaruyama, "step", noisy)
    assert "EulerMaruyama() at lambda = 0 is " in broken(monkeypatch, "no noise")


def test_a_prediction_with_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion that takes sigma x_0 - alpha noise for v; the case's own network is not made
    with it.
    """
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
    assert (
        repr(least)
        == (
            "Case(VP(beta_min=0.1, beta_max=20.0, T=1.0, t_min=0.001), "
            "GaussianMixture(means=[[0.0]], stds=[1.0], weights=[1.0]), "
            "(1, 0.001), predicts='noise', seed=0, rows=3)"
        )
        or len(least.grid) == 2
    )


# -- correctors of no steps ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "corrector", [sd.Langevin(n_steps=0), sd.solvers.MetropolisLangevin(n_steps=0)], ids=repr
)
@pytest.mark.parametrize("sequence", ["predictor-first", "corrector-first"])
@pytest.mark.parametrize("last", ["noisy", "mean", "denoise"])
def test_a_corrector_of_no_steps_costs_nothing_and_keeps_the_mean(
    corrector, sequence, last
) -> None:
    model = MIXTURE.model(sd.VP())
    solver = PredictorCorrector(sd.EulerMaruyama(), corrector, sequence)
    out, alone = (
        sd.sample(model, (5, 2), solver=s, steps=6, seed=3, last=last)
        for s in (solver, sd.EulerMaruyama())
    )
    assert torch.equal(out.x, alone.x)
    assert torch.equal(out.nfe, alone.nfe)


def test_a_deterministic_predictor_with_a_corrector_of_no_steps_draws_nothing() -> None:
    assert not PredictorCorrector(sd.DDIM(), sd.Langevin(n_steps=0)).stochastic
    assert PredictorCorrector(sd.DDIM(), sd.Langevin()).stochastic
    report = check_solver(sd.Langevin(n_steps=0), verbose=False)
    assert report["deterministic order"].detail == "it leaves the samples alone"
