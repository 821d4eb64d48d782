"""Orders and laws that a solver promises: the second part of the contracts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from sdediff.exact.chain import affine_moments
from sdediff.reverse import Reverse
from sdediff.solvers import BrownianPath, Noise, Options, RungeKutta, Solver, integrate, seeds
from sdediff.solvers.runge_kutta import DormandPrince
from sdediff.solvers.stochastic import SRA3, EulerMaruyama
from sdediff.testing.contracts import (
    _END,
    _GAUSSIAN,
    _MIXTURE,
    _ROWS,
    _SDE,
    _START,
    _contract,
    _fixed,
    _grid,
    _solve,
    _white,
    _x,
)
from sdediff.testing.identity import Comparison, Skip, compare
from sdediff.testing.paths import Still, slope

__all__: list[str] = []


def _chain(solver: Solver, times: Tensor, lam: float, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean and variance (1,) of the chain on Gaussian data, from the law at times[0], its spread
    multiplied by ``spread``.
    """
    mean, cov = _GAUSSIAN.moments(_SDE, times[0])
    model = _GAUSSIAN.model(_SDE)
    return affine_moments(
        lambda rows: Reverse(model, rows, lam), solver, times, mean, spread * cov.diagonal().sqrt()
    )


def _predictor(solver: Solver) -> None:
    """What moves samples from t to s at its own order."""
    if not solver.evaluations:
        raise Skip("it leaves the samples alone")
    if hasattr(solver, "corrector"):
        raise Skip("its corrector has no order in the step: see that its law is right as snr falls")
    moves = {"drift", "data", "noise"}
    if solver.stochastic and not solver.diffuses and not moves & set(solver.needs):
        raise Skip("a corrector: it leaves time alone")


@cache
def _flow_end() -> Tensor:
    return integrate(
        Reverse(_MIXTURE.model(_SDE), _ROWS), DormandPrince(variable="t"), _x(), _grid(128)
    ).x


def _order(kind: str, errors: list[float], claim: float) -> Comparison:
    measured = slope([max(error, 1e-300) for error in errors])
    shown = ", ".join(f"{error:.2g}" for error in errors)
    hint = ""
    if measured < 0.3:
        hint = "the errors do not fall: a wrong factor or sign in the drift"
    elif measured < claim - 0.25:
        hint = (
            f"order {max(1, round(2 * measured) / 2):g} for a claim of {claim:g}: a stage at the "
            "wrong place, or too high a claim"
        )
    done = errors[-1] < 1e-10
    gap = 0.0 if done else max(0.0, claim - measured)
    detail = (
        f"{kind} order is {measured:.2f}, not {claim:g} (errors {shown}, each at twice the steps)"
    )
    return Comparison(gap, 0.25, "", detail, hint, note=f"{measured:.2f} for a claim of {claim:g}")


@_contract("deterministic order")
def _deterministic(solver: Solver) -> Iterator[Comparison]:
    """On the probability flow of a mixture; orders above 4 are for the tableau's conditions."""
    _fixed(solver)
    _predictor(solver)
    if solver.stochastic and not solver.diffuses:
        raise Skip("noise that is no part of the reverse SDE: see weak order")
    noise = Still((_ROWS, 2)) if solver.stochastic else None
    if solver.stochastic:
        ends = [_flow(solver, 4, n) for n in (_white(seeds(0, _ROWS)), Still((_ROWS, 2)))]
        hint = "draw by problem.diffuse(dw, t), which has lambda in it"
        yield compare(
            "a sample at stochasticity 0, with noise,",
            ends[0],
            ends[1],
            {},
            1e-9,
            scale=1.0,
            hint=hint,
        )
    errors = [float((_flow(solver, n, noise) - _flow_end()).abs().max()) for n in (16, 32, 64)]
    yield _order("deterministic", errors, min(float(solver.deterministic_order), 4.0))


def _flow(solver: Solver, n: int, noise: Noise | None) -> Tensor:
    return solver.solve(
        Reverse(_MIXTURE.model(_SDE), _ROWS, 0.0), _x(), _grid(n), noise, Options()
    ).x


@_contract("weak order")
def _weak(solver: Solver) -> Iterator[Comparison]:
    """Moments of the chain on Gaussian data, without Monte Carlo, at stochasticity 1 and 0.5."""
    _fixed(solver)
    if not solver.stochastic:
        raise Skip("deterministic")
    _predictor(solver)
    for lam in (1.0, 0.5) if solver.diffuses else (0.0,):
        off = []
        wide = []
        ratio = 1.0
        true_mean, true_cov = _GAUSSIAN.moments(_SDE, _END)
        for n in (16, 32, 64):
            mean, cov = _chain(solver, _grid(n), lam)
            off.append(float((mean - true_mean).abs().max()))
            wide.append(float((cov.sqrt() - true_cov.sqrt()).abs().max()))
            ratio = float((cov / true_cov).sqrt().max())
        found = _order("weak", [a + b for a, b in zip(off, wide, strict=True)], solver.weak_order)
        if found.deviation > found.bound:
            alone = _order("weak", off, solver.weak_order)
            spread = (
                f"the mean is right and the spread {ratio:.3g} times what it should be: the size "
                "of the noise, or a factor of x"
            )
            hint = (
                _wrong_noise(solver, lam)
                if solver.diffuses
                else spread
                if alone.deviation <= alone.bound
                else ""
            )
            found = found._replace(hint=hint or found.hint)
        yield found


def _wrong_noise(solver: Solver, lam: float) -> str:
    """By what factor the noise that is added is wrong, told by the variance of one short step; ""
    where it is right.
    """
    h = 1e-4
    grid = torch.tensor([0.5, 0.5 - h], dtype=torch.float64)
    # From a point, so that the drift has no part in it.
    ratio = float(_chain(solver, grid, lam, 0.0)[1] / _chain(EulerMaruyama(), grid, lam, 0.0)[1])
    for factor, words in (
        (2.0, "a factor 2 in the noise's variance"),
        (0.5, "a factor 1/2 in the noise's variance"),
    ):
        if abs(ratio - factor) < 0.01 * factor:
            return words
    if abs(ratio) < 0.05:
        return (
            "noise of size h where sqrt(h) is due: noise.increment(t, s) has the variance of the "
            "step"
        )
    if abs(ratio - 1) < 0.01 or not 0 < ratio < math.inf:
        return ""
    size = "large" if ratio > 1 else "small"
    return (
        f"the noise is too {size} by a factor {ratio**0.5:.3g}: a step's variance is {ratio:.3g} "
        "lambda^2 g^2 h"
    )


@_contract("strong order")
def _strong(solver: Solver) -> Iterator[Comparison]:
    """Along one Brownian path in coarse steps; declared as ``strong_order``."""
    _fixed(solver)
    claim = getattr(solver, "strong_order", None)
    if claim is None:
        raise Skip("no strong_order is declared")
    rows, fine = 128, 256
    path = BrownianPath(seeds(0, rows), (2,), _START, _END, intervals=fine, dtype=torch.float64)
    errors = []
    problem = Reverse(_MIXTURE.model(_SDE), rows, 1.0)
    end = integrate(problem, SRA3(), _x(rows), _grid(fine), path).x
    for n in (16, 32, 64):
        out = solver.solve(problem, _x(rows), _grid(n), path, Options()).x
        errors.append(float((out - end).square().mean().sqrt()))
    found = _order("strong", errors, float(claim))
    if found.deviation > found.bound and solver.diffuses:
        found = found._replace(hint=_wrong_noise(solver, 1.0) or found.hint)
    yield found


@_contract("adaptive steps")
def _adaptive(solver: Solver) -> Iterator[Comparison]:
    """Tolerances are met, and every order condition of the tableau was when it was made."""
    if not solver.adaptive:
        raise Skip("takes fixed steps")
    if isinstance(solver, RungeKutta):
        out = _solve(solver, tuple(range(_ROWS))).x
        bound = 100 * (float(solver.atol) + float(solver.rtol))  # type: ignore[attr-defined]
        yield compare("the end of the probability flow", out, _flow_end(), {}, bound, scale=1.0)
