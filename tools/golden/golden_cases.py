"""The cases of the golden table: products of solvers, SDEs, predictions and ways to call."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from golden_models import LENGTHS, LINEAR, PREDICTS, SDES, closed, fixed
from torch import Tensor

import sdediff as sd

Found = Mapping[str, Tensor]
"""Results by name: floating-point ones are states, all others are counts."""


class Case(NamedTuple):
    """A key that says what it is, and the call."""

    key: str
    run: Callable[[], Found]

    @property
    def family(self) -> str:
        """The first part of the key."""
        return self.key.partition("/")[0]


RUNGE_KUTTA = """
Euler()  Euler(variable='sigma')  Midpoint()  Midpoint(variable='log_snr')  Heun()
Heun(variable='sigma')  RungeKutta4()  RungeKutta4(variable='angle')  DormandPrince()
"""
STOCHASTIC = """
EulerMaruyama()  StochasticHeun()  SRA1()  SRA3()  ReverseDiffusion()
ReverseDiffusion(rule='song')  Ancestral()  DDIM(eta=0.5)  DDIM(eta=1.0)  EulerTrapezoid()
SDEDPMSolverPP(1)  SDEDPMSolverPP(2)  SDEDPMSolverPP(3)  SASolver(1)  SASolver(3)
SASolver(2,corrector=1)  SEEDS(1)  SEEDS(2)  SEEDS(3)  ERSDE(1)  ERSDE(2)  ERSDE(3)
ExponentialMultistep(2,form=0.3,sde=True)
ExponentialSinglestep(2,form='noise',variable='angle',sde=True)
"""
EXPONENTIAL = """
DDIM()  DPMSolver(1)  DPMSolver(2)  DPMSolver(3)  DPMSolverPPSinglestep(2)
DPMSolverPPSinglestep(3)  DPMSolverPP(1)  DPMSolverPP(2)  DPMSolverPP(3)
DPMSolverPP(3,startup='published',lower_final=True)  UniPC(1)  UniPC(2)  UniPC(2,moments='half-h')
UniPC(3)  UniPC(4)  UniPC(3,startup='published')  UniPC(3,startup='published',lower_final=True)
DEIS(1)  DEIS(2)  DEIS(3)  DEIS(4)  DEIS(3,variable='sigma')  DEIS(3,startup='published')  LMS(2)
LMS(4)  LMS(4,startup='published')  IPNDM(2)  IPNDM(4)  IPNDM(4,startup='published')
ExponentialSinglestep(1)  ExponentialSinglestep(2,form=0.3)
ExponentialSinglestep(3,variable='angle')  ExponentialSinglestep(4)
ExponentialSinglestep(3,form=Straight(0.5))
ExponentialMultistep(2,form=Straight(0.1),variable='angle',corrector=2,startup='published')
ExponentialMultistep(3,form=Straight(0.1),variable='angle',corrector=3)
ExponentialMultistep(4,form=Straight(1.0),variable='t',corrector=4,startup='published')
ExponentialMultistep(4,form=0.4,corrector=4)
ExponentialMultistep(3,form='noise',variable='sigma')
"""
COMPOSED = """
Langevin()  Langevin(snr=0.1,n_steps=2)  Langevin(rule='song')
MetropolisLangevin(snr=0.4,n_steps=2)  PredictorCorrector(ReverseDiffusion(),Langevin())
PredictorCorrector(ReverseDiffusion(),Langevin(rule='song'),sequence='corrector-first')
PredictorCorrector(EulerMaruyama(),Langevin(n_steps=2),sequence='corrector-first')
PredictorCorrector(Ancestral(),MetropolisLangevin(n_steps=1))
PredictorCorrector(UniPC(2),MetropolisLangevin(snr=0.3),sequence='corrector-first')
PredictorCorrector(SRA1(),Langevin(n_steps=0))  Churn(Heun(variable='sigma'))
Churn(Heun(),churn=4.0,between=(0.1,5.0),noise=1.003)  Churn(DDIM(),churn=10.0)
Restart(Heun(),between=(0.3,0.6),rounds=2,steps=2)  Restart(DPMSolver(2),between=(0.2,0.5))
Renoise(RungeKutta4())  Renoise(ExponentialSinglestep(2,form=0.3))  Renoise(DDIM())
"""
ADAPTIVE = """
RK45(rtol=1e-3,atol=1e-3)  RK23(rtol=1e-2,atol=1e-2)  Tsit5(rtol=1e-3,atol=1e-3)
DOP853(rtol=1e-5,atol=1e-5)  RK45(rtol=1e-3,atol=1e-3,variable='t')
RK45(rtol=1e-3,variable='log_snr')  ExponentialPair(2,rtol=1e-2,atol=1e-2)
ExponentialPair(3,rtol=1e-2,atol=1e-2)
ExponentialPair(4,form=Straight(0.1),variable='angle',rtol=1e-3,atol=1e-3)
AdaptiveSDE(rtol=0.1,atol=0.1)
"""


def texts(*lists: str) -> list[str]:
    """The solvers of the lists, which stand between double spaces and line breaks."""
    return [text for words in lists for text in words.replace("\n", "  ").split("  ") if text]


FIXED = texts(RUNGE_KUTTA, STOCHASTIC, EXPONENTIAL, COMPOSED)
EXTERNAL = {
    "TorchDiffEq('dopri5',rtol=1e-4,atol=1e-4)": {},
    "TorchDiffEq('rk4')": {"steps": 6},
    "SciPy('RK45',rtol=1e-4,atol=1e-4)": {},
    "SciPy('LSODA',rtol=1e-4,atol=1e-4)": {},
    "TorchSDE('srk')": {"steps": 6},
    "TorchSDE('euler')": {"steps": 6},
    "TorchSDE('heun')": {"steps": 6},
}


def made(text: str | None) -> Any:
    """The solver or objective that the text says; None for the default."""
    return None if text is None else eval(text, {**vars(sd.solvers), **vars(sd.objectives)})


def some_prediction(sde: str, solver: str) -> str:
    """One of the predictions for each pair, spread evenly."""
    if sde not in LINEAR:
        return "score"
    return PREDICTS[zlib.crc32(f"{sde}/{solver}".encode()) % len(PREDICTS)]


def told(out: Any, *names: str) -> Found:
    """What a result says, and the counts."""
    counts = ("nfe", "accepted", "rejected", "status")
    return {name: getattr(out, name) for name in (*names, *counts) if hasattr(out, name)}


def written(options: Mapping[str, object]) -> str:
    """Options as they stand in a key."""
    return "".join(f"/{name}={value}" for name, value in options.items())


def sampled(sde: str, predicts: str, solver: str | None, **options: Any) -> Found:
    """Three samples of two coordinates from noise."""
    model = closed(sde, predicts)
    out = sd.sample(model, (3, 2), solver=made(solver), seed=7, dtype=torch.float64, **options)
    return told(out, "x", "times")


def samples() -> Iterator[Case]:
    """Every solver under every SDE; some of them with every prediction."""
    whole = [
        "DDIM()",
        "EulerMaruyama()",
        "UniPC(3)",
        "RungeKutta4()",
        "Ancestral()",
        "SRA1()",
        "Churn(Heun(variable='sigma'))",
    ]
    for sde in SDES:
        for solver in FIXED:
            every = solver in whole and sde in LINEAR
            for predicts in PREDICTS if every else [some_prediction(sde, solver)]:
                yield Case(
                    f"sample/{sde}/{predicts}/{solver}/steps=6",
                    partial(sampled, sde, predicts, solver, steps=6),
                )
        for options in (
            {"steps": 3},
            {"steps": 10},
            {"steps": 20},
            {"steps": 6, "stochasticity": 1.0},
            {"steps": 12, "stochasticity": 0.5},
        ):
            predicts = some_prediction(sde, str(options))
            key = f"sample/{sde}/{predicts}/default{written(options)}"
            yield Case(key, partial(sampled, sde, predicts, None, **options))


def adaptives() -> Iterator[Case]:
    """Every adaptive solver under every SDE, two of them with every prediction."""
    for sde in SDES:
        for solver in texts(ADAPTIVE):
            slow = solver.startswith("AdaptiveSDE") and sde in ("VP", "VE", "SubVP", "VP.scaled(3)")
            whole = slow or (solver == "RK45(rtol=1e-3,atol=1e-3)" and sde in LINEAR)
            for predicts in PREDICTS if whole else [some_prediction(sde, solver)]:
                yield Case(
                    f"adaptive/{sde}/{predicts}/{solver}",
                    partial(sampled, sde, predicts, solver),
                )
    for sde in ("VP", "VE", "Cubic", "VP.scaled(3)", "Pull"):
        for solver, options in EXTERNAL.items():
            predicts = some_prediction(sde, solver)
            key = f"external/{sde}/{predicts}/{solver}{written(options)}"
            yield Case(key, partial(sampled, sde, predicts, solver, **options))


def density(
    sde: str,
    predicts: str,
    solver: str | None,
    *,
    grad: str = "none",
    **options: Any,
) -> Found:
    """The log-density of three points, and its gradients."""
    model = closed(sde, predicts)
    x = fixed(3, 2, size=0.7 * LENGTHS.get(sde, 1.0)).requires_grad_(grad != "none")
    out = sd.log_prob(model, x, solver=made(solver), grad=grad, **options)  # type: ignore[arg-type]
    found = dict(told(out, "value", "stderr", "z"))
    if grad != "none":
        names = [name for name, _ in model.named_parameters()]
        wrt = [x, *model.parameters()]
        for name, part in zip(
            ["x", *names],
            torch.autograd.grad(out.value.sum(), wrt),
            strict=True,
        ):
            found[f"d/d {name}"] = part
    return {name: part.detach() for name, part in found.items()}


def densities() -> Iterator[Case]:
    """Log-densities by adaptive and fixed steps, by the exact divergence and by probes."""
    ways: list[tuple[str | None, dict[str, Any]]] = [
        ("RK45(rtol=1e-2,atol=1e-2)", {}),
        ("DOP853(rtol=1e-4,atol=1e-4)", {}),
        (None, {"steps": 6}),
        ("Heun()", {"steps": 6}),
        ("RK45(rtol=1e-2,atol=1e-2)", {"divergence": "hutchinson", "probes": 2, "seed": 3}),
        (
            "RungeKutta4()",
            {"steps": 4, "divergence": "hutch++", "probes": 3, "probe": "gaussian", "seed": 3},
        ),
        (
            "RungeKutta4()",
            {"steps": 4, "divergence": "hutchinson", "probes": 3, "probe": "rademacher", "seed": 3},
        ),
    ]
    for sde in SDES:
        for number, (solver, options) in enumerate(ways):
            chosen = some_prediction(sde, f"{solver}{options}")
            for predicts in PREDICTS if sde in LINEAR and number == 0 else [chosen]:
                key = f"log_prob/{sde}/{predicts}/{solver or 'default'}{written(options)}"
                yield Case(key, partial(density, sde, predicts, solver, **options))
        for solver, options in (("RK45(rtol=1e-2,atol=1e-2)", {}), ("RungeKutta4()", {"steps": 4})):
            chosen = some_prediction(sde, f"{solver} grad")
            for predicts in PREDICTS if sde in LINEAR and options else [chosen]:
                for grad in ("full", "checkpoint") if sde in ("VP", "Cubic") else ("full",):
                    key = f"log_prob_grad/{sde}/{predicts}/{solver}/{grad}{written(options)}"
                    run = partial(density, sde, predicts, solver, grad=grad, **options)
                    yield Case(key, run)
    for sde in ("VP", "VE", "Pull"):
        for solver, options in (
            ("SciPy('RK45',rtol=1e-4,atol=1e-4)", {}),
            ("TorchDiffEq('rk4')", {"steps": 4}),
        ):
            predicts = some_prediction(sde, f"{solver} density")
            key = f"log_prob/{sde}/{predicts}/{solver}{written(options)}"
            yield Case(key, partial(density, sde, predicts, solver, **options))


def gradient(sde: str, predicts: str, solver: str, grad: str, **options: Any) -> Found:
    """A state, and the gradient of a weighted sum of it to its start and to the parameters."""
    model = closed(sde, predicts)
    x = (fixed(3, 2) * float(SDES[sde].prior.std)).requires_grad_()
    out = sd.sample(
        model,
        (3, 2),
        solver=made(solver),
        x_init=x,
        seed=7,
        grad=grad,
        dtype=torch.float64,
        **options,
    )  # type: ignore[arg-type]
    found = dict(told(out, "x"))
    total = (out.x * fixed(3, 2, phase=1.0)).sum()
    names = ["x_init", *(name for name, _ in model.named_parameters())]
    for name, part in zip(names, torch.autograd.grad(total, [x, *model.parameters()]), strict=True):
        found[f"d/d {name}"] = part
    return {name: part.detach() for name, part in found.items()}


def gradients() -> Iterator[Case]:
    """Gradients through solves."""
    ways = {
        "DDIM()": {"steps": 5},
        "UniPC(3)": {"steps": 5},
        "ExponentialMultistep(3,form=Straight(0.1),variable='angle',corrector=3)": {"steps": 5},
        "Heun(variable='sigma')": {"steps": 5},
        "EulerMaruyama()": {"steps": 5},
        "SRA3()": {"steps": 5},
        "ReverseDiffusion()": {"steps": 5},
        "PredictorCorrector(ReverseDiffusion(),Langevin())": {"steps": 5},
        "Renoise(RungeKutta4())": {"steps": 5},
        "RK45(rtol=1e-2,atol=1e-2)": {},
        "ExponentialPair(2,rtol=1e-2,atol=1e-2)": {},
        "AdaptiveSDE(rtol=0.2,atol=0.2)": {},
    }
    for sde in ("VP", "VE", "SubVP", "Cubic", "VP.scaled(3)", "Pull"):
        for solver, options in ways.items():
            predicts = some_prediction(sde, f"{solver} grad")
            for grad in ("full", "checkpoint") if sde in ("VP", "Cubic") else ("full",):
                key = f"grad/{sde}/{predicts}/{solver}/{grad}{written(options)}"
                yield Case(key, partial(gradient, sde, predicts, solver, grad, **options))


def cases() -> dict[str, Case]:
    """All cases by key; a ValueError where two have one key."""
    from golden_calls import calls
    from golden_chains import chains
    from golden_flows import flows

    found: dict[str, Case] = {}
    for part in (samples, adaptives, densities, gradients, chains, calls, flows):
        for case in part():
            if case.key in found:
                raise ValueError(f"two cases are called {case.key}")
            found[case.key] = case
    return found
