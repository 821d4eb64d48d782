"""The law of guided samples: exact for Gaussians, by chains of affine models; by samples for the
exact classifier of a mixture.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from fixed_solvers import FIXED
from labelled import labelled
from labelled_mixture import CLASSES, EVERY, posterior
from scipy.integrate import solve_ivp
from torch import Tensor

import sdediff as sd
from sdediff.exact.chain import affine_law
from sdediff.guidance import APG, Auto, Classifier, ClassifierFree
from sdediff.reverse import Reverse

F64 = torch.float64
VP = sd.VP()
C = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=F64)
U = torch.tensor([[0.9, -0.3], [-0.3, 0.6]], dtype=F64)  # does not commute with C
MEANS = torch.tensor([[0.8, -0.4], [-0.1, 0.3]], dtype=F64)
LAWS = [sd.exact.Gaussian(mean, c) for mean, c in zip(MEANS, (C, U), strict=True)]
SCALE = 1.8
GUIDED: dict[str, Any] = {
    "ClassifierFree": ClassifierFree(labelled(LAWS, VP, "noise"), SCALE, {"label": 1}),
    "Auto": Auto(LAWS[0].model(VP), LAWS[1].model(VP), SCALE),
}
START = torch.eye(2, dtype=F64)


def ratio(x: Tensor, t: Tensor) -> Tensor:
    """log p_c(x) - log p_u(x): its gradient is the difference of the scores."""
    return LAWS[0].log_prob(VP, x, t) - LAWS[1].log_prob(VP, x, t) - 20


GUIDED["Classifier"] = Classifier(LAWS[1].model(VP), ratio, SCALE)


def law(name: str, solver: Any, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what a solver makes of N(0, I)."""

    def problem(rows: int) -> Reverse:
        label = {"label": torch.zeros(rows, dtype=torch.int64)}
        batch = sd.Rows.of(rows, label if name == "ClassifierFree" else {})
        return Reverse(GUIDED[name], batch, float(solver.solves_sde))

    with torch.no_grad():
        return affine_law(problem, solver, grid, torch.zeros(2, dtype=F64), START)


def field(t: float) -> tuple[Tensor, Tensor]:
    """(M, b) of the guided score M x + b, by dense matrices."""
    time = torch.tensor(t, dtype=F64)
    alpha, sigma, total = VP.alpha(time), VP.sigma(time), []
    for mean, c in zip(MEANS, (C, U), strict=True):
        inverse = torch.linalg.inv(alpha**2 * c + sigma**2 * torch.eye(2, dtype=F64))
        total.append((-inverse, alpha * inverse @ mean))
    (mc, bc), (mu, bu) = total
    return mu + SCALE * (mc - mu), bu + SCALE * (bc - bu)


def by_hand(grid: list[float], kind: str) -> tuple[Tensor, Tensor]:
    """The law of Euler-Maruyama or DDIM, as a recursion of matrices."""
    mean, cov = torch.zeros(2, dtype=F64), START
    one = torch.eye(2, dtype=F64)
    for t, s in itertools.pairwise(grid):
        (M, b), h = field(t), t - s
        ends = torch.tensor([t, s], dtype=F64)
        if kind == "Euler-Maruyama":
            f, g2 = float(VP.f(ends[:1])), float(VP.g(ends[:1])) ** 2
            A, shift, size = one * (1 - h * f) + h * g2 * M, h * g2 * b, h * g2
        else:
            (at, a_s), (st, ss) = VP.alpha(ends), VP.sigma(ends)
            push = a_s / at * st**2 - ss * st
            A, shift, size = a_s / at * one + push * M, push * b, 0.0
        mean, cov = A @ mean + shift, A @ cov @ A.T + size * one
    return mean, cov


@pytest.mark.thin(3)
@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize(
    ("solver", "kind"), [(sd.EulerMaruyama(), "Euler-Maruyama"), (sd.DDIM(), "DDIM")], ids=repr
)
def test_the_law_of_a_chain_is_the_recursion_of_matrices(solver: Any, kind: str, name: str) -> None:
    grid = torch.linspace(1.0, 0.05, 30, dtype=F64)
    found = law(name, solver, grid)
    for one, two in zip(found, by_hand(grid.tolist(), kind), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


def test_guidance_that_is_not_affine_is_told() -> None:
    GUIDED["APG"] = APG(GUIDED["Auto"], norm=0.5)
    with pytest.raises(ValueError, match="is not affine in its start"):
        law("APG", sd.DDIM(), torch.linspace(1.0, 0.05, 5, dtype=F64))
    del GUIDED["APG"]


def limit(end: float, stochasticity: float) -> tuple[Tensor, Tensor]:
    """The law of the guided equation itself, from the equations of its moments."""

    def slope(t: float, y: Any) -> Any:
        time = torch.tensor([t], dtype=F64)
        f, g2 = float(VP.f(time)), float(VP.g(time)) ** 2
        M, b = field(t)
        pull = 0.5 * (1 + stochasticity**2) * g2
        A = f * np.eye(2) - pull * M.numpy()
        mean, cov = y[:2], y[2:].reshape(2, 2)
        spread = A @ cov + cov @ A.T - stochasticity**2 * g2 * np.eye(2)
        return np.concatenate([A @ mean - pull * b.numpy(), spread.flatten()])

    start = np.concatenate([np.zeros(2), np.eye(2).flatten()])
    y = solve_ivp(slope, (1.0, end), start, "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    return torch.tensor(y[:2]), torch.tensor(y[2:].reshape(2, 2))


# These have a stochasticity of their own: `Switch` in one part of the grid, and `Recurrence` adds
# noise that keeps the law of a process, which a guided score has none of.
OTHER = "eta=0.7", "ERSDE", "Churn", "Switch", "Recurrence"
MEASURED = [s for s in FIXED if not any(w in repr(s) for w in ("Langevin", "Renoise", "Restart"))]


@pytest.mark.slow
@pytest.mark.parametrize("solver", MEASURED, ids=repr)
def test_every_solver_reaches_the_law_of_the_guided_equation(solver: Any) -> None:
    """Its mean and covariance, with errors that fall by more than 1.8 from 48 steps to 96 or are
    below 1e-6; the three kinds of guidance have one law to 1e-9.
    """

    def after(steps: int, name: str) -> tuple[Tensor, Tensor]:
        return law(name, solver, torch.linspace(1.0, 0.05, steps + 1, dtype=F64))

    each = [after(12, name) for name in GUIDED]
    for other in each[1:]:
        for one, two in zip(other, each[0], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    if any(word in repr(solver) for word in OTHER):
        return
    wanted = limit(0.05, float(solver.solves_sde))
    errors = [
        [float((x - y).abs().max()) for x, y in zip(after(steps, "Auto"), wanted, strict=True)]
        for steps in (48, 96)
    ]
    for few, many in zip(*errors, strict=True):
        assert many < 1e-6 or few / many > 1.8


# Samples of a mixture guided by its exact classifier

COUNT, SEEDS = 2000, range(5)
LABEL = torch.arange(COUNT) % 3
FAMILIES: dict[str, tuple[Any, int | None]] = {
    "DDIM": (sd.DDIM(), 200),
    "multistep": (sd.ExponentialMultistep(3), 30),
    "Runge-Kutta": (sd.Heun(), 40),
    "adaptive": (sd.RK45(1e-4, 1e-4), None),
    "Euler-Maruyama": (sd.EulerMaruyama(), 500),
    "chain": (sd.DDPM.from_sde(VP, 500, variance="beta"), None),
    "high weak order": (sd.solvers.SRA1(), 60),
    "adaptive SDE": (sd.AdaptiveSDE(0.02, 0.02), None),
    "predictor-corrector": (sd.PredictorCorrector(sd.ReverseDiffusion(), sd.Langevin(0.05)), 300),
    "restart": (sd.solvers.Restart(sd.Heun(), (0.2, 0.5)), 40),
}


def changed(weight: float, size: float) -> list[sd.exact.GaussianMixture]:
    """The laws of the classes with the weight of a component changed, and wider components."""
    shift = torch.tensor([weight, -weight], dtype=F64)
    return [
        sd.exact.GaussianMixture(one.means, one.components.variances.sqrt() * size, w)
        for one in CLASSES
        for w in (one.weights + shift,)
    ]


WRONG = {"weight": changed(0.1, 1.0), "noise": changed(0.0, 1.1)}


def density(laws: list[sd.exact.GaussianMixture], x: Tensor) -> Tensor:
    one, none = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)
    each = torch.stack([law.evaluate(x, one, none).log_prob for law in laws])
    return each[LABEL, torch.arange(COUNT)]


def drawn(laws: list[sd.exact.GaussianMixture], seed: int) -> Tensor:
    return torch.stack([law.sample(COUNT, seed=seed) for law in laws])[LABEL, torch.arange(COUNT)]


def accuracies(samples: list[Tensor]) -> dict[str, float]:
    """How often the best classifier of each wrong law against the right one tells samples from
    draws of the right one: the mean over the seeds, whose standard error is 0.0035.
    """
    found = {}
    for name, wrong in WRONG.items():

        def called(x: Tensor, wrong: Any = wrong) -> float:
            return float((density(wrong, x) > density(CLASSES, x)).double().mean())

        right = [called(drawn(CLASSES, 100 + seed)) for seed in SEEDS]
        pairs = zip(samples, right, strict=True)
        found[name] = sum(0.5 * (1 + called(x) - y) for x, y in pairs) / len(samples)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_samples_have_the_conditional_law(family: str) -> None:
    """Accuracies of 0.50 within 0.02, which is 5.7 standard errors: false alarm 1e-8."""
    solver, steps = FAMILIES[family]
    guided = Classifier(EVERY.model(VP), posterior(VP))
    given: Any = {
        "solver": solver,
        "steps": steps,
        "condition": {"label": LABEL.repeat(len(SEEDS))},
    }
    seeds = [one for seed in SEEDS for one in sd.seeds(seed, range(COUNT))]
    x = sd.sample(guided, (len(seeds), 2), seed=seeds, dtype=F64, **given).x
    assert all(abs(each - 0.5) < 0.02 for each in accuracies(list(x.split(COUNT))).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_the_classifiers_reject_a_wrong_law(name: str) -> None:
    assert accuracies([drawn(WRONG[name], seed) for seed in SEEDS])[name] > 0.52
