"""`check_equivalence` passes what is one, and says of what is not where it parts and why."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

import sdediff as sd
from sdediff.solvers import Step, expand
from sdediff.testing import EquivalenceError, check_equivalence
from sdediff.testing.equivalences.case import usual

MIXTURE = sd.exact.GaussianMixture([[-0.8, 0.4], [0.9, 0.1]], [0.3, 0.5])


class Cubic(sd.LinearSDE):
    def f(self, t):
        return -0.5 * (0.1 + 19.9 * t**3)

    def g(self, t):
        return (0.1 + 19.9 * t**3).sqrt()


def differ(a, b, **options) -> str:
    with pytest.raises(EquivalenceError) as caught:
        check_equivalence(a, b, verbose=False, **options)
    return str(caught.value)


def test_two_solvers_that_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    report = check_equivalence(sd.solvers.Ancestral(), sd.DDIM(1.0))
    assert [f.name.partition("(")[0] for f in report.findings] == ["on VP", "on VE", "on SubVP"]
    assert capsys.readouterr().out.startswith("Ancestral() and DDIM(eta=1.0)\nequivalence")
    assert check_equivalence(
        sd.solvers.Churn(sd.Heun(), churn=0.0), sd.Heun(), grid="karras", steps=6, verbose=False
    ).passed
    assert check_equivalence(
        sd.solvers.SRA1(),
        sd.solvers.SRA1(),
        sde=Cubic,
        grid=[0.9, 0.5, 0.1],
        stochasticity=0.5,
        verbose=False,
    ).passed
    assert check_equivalence(
        sd.EulerMaruyama(), sd.solvers.Euler(variable="t"), stochasticity=0.0, verbose=False
    ).passed


def test_a_discrete_model_brings_its_grid() -> None:
    ddpm = sd.DDPM.from_sde(sd.VP(), 10)
    report = check_equivalence(
        ddpm, sd.solvers.Ancestral(), sde=sd.VP(), data=MIXTURE, verbose=False
    )
    assert " of 9, t = " in report.findings[0].where
    report = check_equivalence(sd.DDIM(1.0), ddpm, sde=sd.VP(), verbose=False)
    assert " of 9, t = " in report.findings[0].where
    said = differ(replace(ddpm, variance="beta"), sd.solvers.Ancestral(), sde=sd.VP())
    assert "without noise they agree: the noise of the first has 1.0" in said
    with pytest.raises(ValueError, match="pass the sde= that it was made from"):
        check_equivalence(sd.solvers.Ancestral(), ddpm)


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
        return Step(mean + expand(plan.spread, mean) * noise.normal("corrector"), mean)


@dataclass(frozen=True)
class LastStepFree(sd.solvers.Euler):
    """Right but in the third step."""

    def plan(self, problem, times):
        return list(zip(super().plan(problem, times), times[:-1], strict=True))

    def step(self, problem, x, plan, noise, state):
        plan, t = plan
        out = super().step(problem, x, plan, noise, state)
        return out._replace(x=out.x + 0.01) if float(t) < 0.45 else out


def test_messages_say_where_and_why() -> None:
    said = differ(Loud(), sd.EulerMaruyama(), sde=sd.VP())
    assert said.startswith("Loud(size=1.4142135623730951) and EulerMaruyama() differ:\n- on VP(")
    assert "first at step 1 of 10, t = 0.9001, sample " in said
    assert ", coordinate " in said
    assert (
        "without noise they agree: the noise of the first has 1.41421 times the size in the "
        "first step (a factor sqrt(2)" in said
    )
    assert "the noise is of another stream" in differ(
        OtherStream(), sd.EulerMaruyama(), sde=sd.VP()
    )
    assert "Ancestral() draws noise and DDIM() does not" in differ(
        sd.DDIM(), sd.solvers.Ancestral(), sde=sd.VE()
    )
    said = differ(
        LastStepFree(variable="t"),
        sd.solvers.Euler(variable="t"),
        sde=sd.VP(),
        grid=[0.8, 0.6, 0.4, 0.2],
    )
    assert "first at step 3 of 3, t = 0.2" in said


def test_two_discretizations_are_told_from_two_processes() -> None:
    said = differ(sd.Heun(variable="t"), sd.Heun(variable="sigma"), sde=sd.VP())
    assert "two discretizations of one process: one step h differs as h^3.0" in said
    said = differ(sd.EulerMaruyama(), sd.solvers.Ancestral(), sde=sd.VE())
    assert "two discretizations of one process: one step h differs as h^1.5" in said
    assert "as h^0.5: another amount of noise" in differ(
        sd.solvers.Ancestral(), sd.DDIM(0.5), sde=sd.VP()
    )

    class Wrong(sd.solvers.Euler):  # half the score of an SDE's drift
        def step(self, problem, x, plan, noise, state):
            out = super().step(problem, x, plan, noise, state)
            return out._replace(x=2 * out.x - x)

    assert "as h^1.0: another drift" in differ(
        Wrong(variable="t"), sd.solvers.Euler(variable="t"), sde=sd.VP()
    )


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
        check_equivalence(sd.DDIM(), sd.DDIM(), solver=sd.solvers.Euler())
    with pytest.raises(TypeError, match="data must be a law"):
        check_equivalence(sd.DDIM(), sd.DDIM(), data=torch.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bound must be a positive number"):
        check_equivalence(sd.DDIM(), sd.DDIM(), bound=0)
    with pytest.raises(TypeError, match="no Gaussian kernel"):
        check_equivalence(sd.solvers.Euler(), sd.solvers.Euler(), sde=sd.SDE())
