"""`check_solver` passes what is right, and names the broken contract of each mutant."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

import sdediff as sd
from sdediff.solvers import RungeKutta, Solver, Step, Tableau, expand
from sdediff.solvers.arithmetic import weighted
from sdediff.testing import Report, SolverError, check_solver
from sdediff.testing.contracts import CONTRACTS


@dataclass(frozen=True)
class MidpointMaruyama(Solver):
    """That of docs/own-solver.md, with the strong order that it has."""

    needs = frozenset({"drift", "diffusion"})
    stochastic = solves_sde = True
    evaluations = 2
    strong_order = 1
    deterministic_order = 2

    def step(self, problem, x, plan, noise, state):
        t, s = plan
        middle = x + expand((s - t) / 2, x) * problem.drift(x, t)
        mean = x + expand(s - t, x) * problem.drift(middle, (t + s) / 2)
        return Step(mean + problem.diffuse(noise.increment(t, s), t), mean)


class Ralston(RungeKutta):
    tableau = Tableau.parse("Ralston", 2, ["2/3"], "1/4 3/4")


@dataclass(frozen=True)
class AdamsBashforth(Solver):
    """x_s = x + h ((1 + r / 2) k - r / 2 k_before), r the ratio of the two steps; Euler at
    first.
    """

    order = 2.0

    def plan(self, problem, times):
        h = times.diff(dim=0)
        half = 0.5 * torch.cat([0 * h[:1], h[1:] / h[:-1]])
        numbers = problem.coefs(len(h), h * (1 + half), -h * half)
        return list(zip(problem.at(times[:-1], "drift"), *numbers, strict=True))

    def step(self, problem, x, plan, noise, state):
        at, now, before = plan
        k = problem.evaluate(x, at)
        x = weighted((1.0, x), (now, k), (before, state[0] if state else k))
        return Step(x, x, (k,))


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    "solver", [MidpointMaruyama(), Ralston(), AdamsBashforth()], ids=lambda s: type(s).__name__
)
def test_right_user_solvers_pass(solver: Solver, capsys: pytest.CaptureFixture[str]) -> None:
    report = check_solver(solver)
    assert report.passed
    shown = capsys.readouterr().out
    assert shown.splitlines()[:2][0] == repr(solver)
    assert shown.splitlines()[1].startswith("contract")
    assert "deterministic order" in shown
    assert [finding.name for finding in report.findings] == list(CONTRACTS)


BUILT_IN = [
    sd.DDIM(),
    sd.DDIM(1.0),
    sd.solvers.Ancestral(),
    sd.solvers.StochasticHeun(),
    sd.solvers.SRA3(),
    sd.solvers.DormandPrince(),
    sd.Langevin(),
    sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin()),
    sd.solvers.RK23(1e-3, 1e-3),
]


@pytest.mark.thin(1)
@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(solver, id=repr(solver), marks=[] if i % 3 == 1 else pytest.mark.slow)
        for i, solver in enumerate(BUILT_IN)
    ],
)
def test_built_in_solvers_pass(solver: Solver) -> None:
    assert check_solver(solver, verbose=False).passed


@pytest.mark.thin(0)
def test_what_does_not_apply_is_skipped_by_name() -> None:
    report = check_solver(sd.Langevin(), verbose=False)
    assert {f.name for f in report.findings if f.verdict == "skipped"} >= {
        "deterministic order",
        "weak order",
        "strong order",
    }
    assert "a corrector" in report["weak order"].detail
    assert (
        check_solver(sd.solvers.RK23(1e-3, 1e-3), verbose=False)["adaptive steps"].verdict == "ok"
    )


# -- mutants ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Maruyama(Solver):
    """Right; each mutant is wrong in one place."""

    needs = frozenset({"drift", "diffusion"})
    stochastic = solves_sde = True

    def step(self, problem, x, plan, noise, state):
        t, s = plan
        mean = x + self.slope(problem, x, t, s)
        return Step(mean + self.shock(problem, noise, t, s), mean)

    def slope(self, problem, x, t, s):
        return expand(s - t, x) * problem.drift(x, t)

    def shock(self, problem, noise, t, s):
        return problem.diffuse(noise.increment(t, s), t)


class DoubledDrift(_Maruyama):
    def slope(self, problem, x, t, s):
        return 2 * expand(s - t, x) * problem.drift(x, t)


class HalfLambda(_Maruyama):
    """The drift of lambda, the noise of lambda / sqrt(2)."""

    def shock(self, problem, noise, t, s):
        return problem.diffuse(noise.increment(t, s), t) / 2**0.5


class LoudNoise(_Maruyama):
    def shock(self, problem, noise, t, s):
        return 2**0.5 * problem.diffuse(noise.increment(t, s), t)


class NoiseByH(_Maruyama):
    def shock(self, problem, noise, t, s):
        return problem.diffuse(noise.normal() * expand((s - t).abs(), noise.normal()), t)


class StubbornNoise(_Maruyama):
    """Noise of its own that lambda does not scale."""

    def shock(self, problem, noise, t, s):
        return noise.increment(t, s)


class ProudMaruyama(_Maruyama):
    order = 2.0


class StronglyProud(_Maruyama):
    strong_order = 2


class GlobalNoise(_Maruyama):
    def shock(self, problem, noise, t, s):
        z = noise.normal()
        return problem.diffuse(torch.randn(z.shape, dtype=z.dtype) * (t - s).sqrt(), t)


class ProudEuler(RungeKutta):
    tableau = Tableau.parse("Euler", 1, [], "1")


ProudEuler.order = 2.0


@dataclass(frozen=True)
class _Euler(Solver):
    def step(self, problem, x, plan, noise, state):
        t, s = plan
        x = x + expand(s - t, x) * problem.drift(x, t)
        return Step(x, x)


class BatchMean(_Euler):
    def step(self, problem, x, plan, noise, state):
        t, s = plan
        k = problem.drift(x, t)
        x = x + expand(s - t, x) * (k + 1e-3 * k.mean(dim=0))
        return Step(x, x)


@dataclass(frozen=True)
class Remembers(Solver):
    """Two-step, its history kept on the object."""

    history: dict[str, torch.Tensor] = field(default_factory=dict, hash=False)

    def step(self, problem, x, plan, noise, state):
        t, s = plan
        k = problem.drift(x, t)
        before = self.history.get("k", k)
        self.history["k"] = k.detach()
        before = before if before.shape == k.shape else k
        x = x + expand(s - t, x) * (1.5 * k - 0.5 * before.detach().to(k))
        return Step(x, x)


class Beyond(_Euler):
    evaluations = 2

    def step(self, problem, x, plan, noise, state):
        t, s = plan
        x = x + expand(s - t, x) * 0.5 * (problem.drift(x, t - 0.01) + problem.drift(x, t + 0.01))
        return Step(x, x)


class Miscounts(_Euler):
    evaluations = 2


class Widens(_Euler):
    def step(self, problem, x, plan, noise, state):
        step = super().step(problem, x, plan, noise, state)
        return Step(step.x.double(), step.mean.double())


class Detaches(_Euler):
    def step(self, problem, x, plan, noise, state):
        return super().step(problem, x.detach(), plan, noise, state)


class Flattens(_Euler):
    def step(self, problem, x, plan, noise, state):
        t, s = plan
        x = x + (s - t) * problem.drift(x, t) * torch.ones(len(x), 1, dtype=x.dtype)
        return Step(x, x)


class Unknown(_Euler):
    needs = frozenset({"drifts"})


class Silent(_Euler):
    """Says that it draws noise."""

    stochastic = True


@dataclass
class Thawed(Solver):
    def step(self, problem, x, plan, noise, state):
        t, s = plan
        x = x + expand(s - t, x) * problem.drift(x, t)
        return Step(x, x)


MUTANTS = [
    (DoubledDrift(), "weak order", "a wrong factor or sign in the drift"),
    (HalfLambda(), "weak order", "a factor 1/2 in the noise's variance"),
    (LoudNoise(), "weak order", "a factor 2 in the noise's variance"),
    (NoiseByH(), "weak order", r"noise of size h where sqrt\(h\) is due"),
    (
        StubbornNoise(),
        "deterministic order",
        r"draw by problem.diffuse\(dw, t\), which has lambda in it",
    ),
    (ProudMaruyama(), "weak order", "order 1 for a claim of 2"),
    (StronglyProud(), "strong order", "order 1 for a claim of 2"),
    (GlobalNoise(), "global generator", "not by torch.randn"),
    (ProudEuler(), "deterministic order", "order 1 for a claim of 2"),
    (BatchMean(), "batch invariance", "over the batch"),
    (Remembers(), "interleaved solves", "hand it on in Step.state"),
    (Beyond(), "grid", "stages lie between t and s"),
    (Miscounts(), "evaluations", "the number of evaluations a step is 1, not 2"),
    (Widens(), "dtype", "the dtype of x"),
    (Detaches(), "gradients", "a detach"),
    (Flattens(), "any rank", "any rank: "),
    (Unknown(), "needs", "drifts"),
    (Silent(), "draws noise iff stochastic", "seeds do not matter"),
    (Thawed(), "a frozen value", r"@dataclass\(frozen=True\)"),
]


@pytest.mark.thin(1)
@pytest.mark.uses_global_rng
@pytest.mark.parametrize(
    ("solver", "contract", "hint"), MUTANTS, ids=[type(mutant[0]).__name__ for mutant in MUTANTS]
)
def test_mutants_are_rejected_by_name(solver: Solver, contract: str, hint: str) -> None:
    with pytest.raises(SolverError, match=hint) as caught:
        check_solver(solver, verbose=False)
    report = caught.value.report
    assert isinstance(report, Report)
    assert report[contract].verdict == "fail", report
    assert contract in str(caught.value)
    assert hint.replace("\\", "") in str(report[contract])


@pytest.mark.thin(0)
def test_the_base_of_the_mutants_passes() -> None:
    for solver in (_Maruyama(), _Euler()):
        assert check_solver(solver, verbose=False).passed


def test_what_is_no_solver_value() -> None:
    with pytest.raises(TypeError, match=r"write MidpointMaruyama\(\)"):
        check_solver(MidpointMaruyama)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a grid of its own"):
        check_solver(sd.DDPM.from_sde(sd.VP(), 5))
