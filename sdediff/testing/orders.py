"""Whether a solver keeps what it promises: `check_solver`, and the contracts of its orders and
laws; with no noise at all, and orders read off errors, for tests of solvers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Literal, Self

import torch
from torch import Tensor

from sdediff.exact.chain import affine_moments
from sdediff.reverse import Reverse
from sdediff.solvers import BrownianPath, RungeKutta, Solver, seeds
from sdediff.solvers.noise import Silence
from sdediff.solvers.runge_kutta import DormandPrince
from sdediff.solvers.stochastic import SRA3, EulerMaruyama
from sdediff.testing.contracts import (
    CONTRACTS,
    END,
    GAUSSIAN,
    ROWS,
    SDE,
    START,
    contract,
    fixed,
    grid,
    solve,
    states,
)
from sdediff.testing.convergence import fitted_order, measured
from sdediff.testing.report import Comparison, Report, Skip, SolverError, compare, settle
from sdediff.testing.steps import Equation, StepFunction, check_step

__all__ = ["Still", "check_solver", "fitted_order", "measured"]


def check_solver(
    solver: Solver | StepFunction,
    *,
    equation: Equation | None = None,
    order: float | None = None,
    arrays: Literal["torch", "numpy"] = "torch",
    verbose: bool = True,
) -> Report:
    """Check what every solver promises, and raise `SolverError` naming the contracts that fail.

    - form: a frozen, hashable value that a solve leaves as it is; ``needs`` are known; as many
      ``evaluations`` a step as it says;
    - noise: seeds matter if and only if it is ``stochastic``; torch's global generator is not
      touched;
    - samples: alone, permuted or interleaved with another solve the same; no evaluation outside the
      grid;
    - states: any rank, the dtype kept, finite in 1 to 5 steps; gradients flow, and checkpointed
      they are the same;
    - order: that of the probability flow at stochasticity 0 (``order`` if deterministic;
      ``deterministic_order``, else 1, if stochastic), the weak ``order`` by exact moments of
      Gaussian data, and, where it declares one, ``strong_order`` along a path. Measured orders may
      fall short by 0.25; deterministic ones above 4 are checked as 4.

    A solver of another library is a function step(x, t, s), which returns the states (rows, d) at
    time s that follow x at time t. It comes with the `Equation` that it solves, as it solves it: x
    is an array of torch or NumPy as ``arrays`` says, t and s are numbers. An ODE tests that the
    kind, shape and dtype of arrays are kept, that rows are independent, and the order; an SDE that
    a step's noise has the right variance and is drawn anew, and the weak order, by the mean and
    spread of 131,072 draws, which may deviate by five standard errors. ``order`` is the claim;
    where it is None, the order is measured and printed.

    What does not apply is skipped, by name: correctors and solvers that move samples nowhere have
    no order, adaptive ones are held against the flow by their tolerances. Prints a table unless
    ``verbose`` is false and returns it as a `Report`. Takes about a second. Raises TypeError for
    what is no solver, and ValueError for a discrete model with a grid of its own.
    """
    if callable(solver) and not isinstance(solver, type | Solver):
        return check_step(solver, equation, order, arrays, verbose)
    if equation is not None or order is not None or arrays != "torch":
        raise TypeError(
            "equation, order and arrays are for a function step(x, t, s); a Solver declares its "
            "order, and is checked on problems of its own"
        )
    if isinstance(solver, type) or not isinstance(solver, Solver):
        hint = f"; write {solver.__name__}()" if isinstance(solver, type) else ""
        raise TypeError(f"check_solver takes a solver value, got {solver!r}{hint}")
    if solver.times is not None:
        raise ValueError(
            f"{solver!r} is a discrete model with a grid of its own: hold its moments against "
            "the law by Gaussian.chain"
        )
    with torch.inference_mode(False), torch.no_grad():
        findings = tuple(settle(name, check(solver)) for name, check in CONTRACTS.items())
    return Report(repr(solver), findings, "contract").conclude(SolverError, verbose)


class Still(Silence):
    """Noise that is 0 everywhere, for states of that shape (rows, *event)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(None)
        self.shape = shape

    def at(self, step: int) -> Self:
        """No noise."""
        return self

    def take(self, rows: Tensor) -> Still:
        """No noise for some of the rows."""
        return Still((len(rows), *self.shape[1:]))

    def tree(self) -> None:
        """None: any steps will do."""

    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        return torch.zeros(self.shape, dtype=torch.float64)


def _chain(solver: Solver, times: Tensor, lam: float, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean and variance (1,) of the chain on Gaussian data, from the law at times[0], its spread
    multiplied by ``spread``.
    """
    mean, cov = GAUSSIAN.moments(SDE, times[0])
    model, std = GAUSSIAN.model(SDE), spread * cov.diagonal().sqrt()
    return affine_moments(lambda rows: Reverse(model, rows, lam), solver, times, mean, std)


def _predictor(solver: Solver) -> None:
    """Skip what does not move samples from t to s at its own order."""
    fixed(solver)
    if not solver.evaluations:
        raise Skip("it leaves the samples alone")
    if hasattr(solver, "corrector"):
        raise Skip("its corrector has no order in the step: see that its law is right as snr falls")
    moves = {"drift", "data", "noise"}
    if solver.stochastic and not solver.solves_sde and not moves & set(solver.needs):
        raise Skip("a corrector: it leaves time alone")


@cache
def _flow_end() -> Tensor:
    return solve(DormandPrince(variable="t"), ROWS, times=grid(128)).x


@contract("deterministic order")
def _deterministic(solver: Solver) -> Iterator[Comparison]:
    """On the probability flow of a mixture; orders above 4 are for the tableau's conditions."""
    _predictor(solver)
    if solver.stochastic and not solver.solves_sde:
        raise Skip("noise that is no part of the reverse SDE: see weak order")
    still = Still((ROWS, 2))
    if solver.stochastic:
        noisy, quiet = (solve(solver, ROWS, 4, lam=0.0, noise=n).x for n in (None, still))
        what = "a sample at stochasticity 0, with noise,"
        hint = "draw by problem.diffuse(dw, t), which has lambda in it"
        yield compare(what, noisy, quiet, {}, 1e-9, scale=1.0, hint=hint)
    ends = (solve(solver, ROWS, n, lam=0.0, noise=still).x for n in (16, 32, 64))
    errors = [float((end - _flow_end()).abs().max()) for end in ends]
    yield measured("deterministic order", errors, min(float(solver.deterministic_order), 4.0))


@contract("weak order")
def _weak(solver: Solver) -> Iterator[Comparison]:
    """Moments of the chain on Gaussian data, without Monte Carlo, at stochasticity 1 and 0.5."""
    fixed(solver)
    if not solver.stochastic:
        raise Skip("deterministic")
    _predictor(solver)
    true_mean, true_cov = GAUSSIAN.moments(SDE, END)
    for lam in (1.0, 0.5) if solver.solves_sde else (0.0,):
        chains = [_chain(solver, grid(n), lam) for n in (16, 32, 64)]
        off = [float((mean - true_mean).abs().max()) for mean, _ in chains]
        wide = [float((cov.sqrt() - true_cov.sqrt()).abs().max()) for _, cov in chains]
        claim = solver.weak_order
        found = measured("weak order", [a + b for a, b in zip(off, wide, strict=True)], claim)
        if found.broken and solver.solves_sde:
            found = found._replace(hint=_wrong_noise(solver, lam) or found.hint)
        elif found.broken and not measured("", off, claim).broken:
            ratio = float((chains[-1][1] / true_cov).sqrt().max())
            hint = f"the mean is right and the spread {ratio:.3g} times what it should be: the size"
            found = found._replace(hint=f"{hint} of the noise, or a factor of x")
        yield found


def _wrong_noise(solver: Solver, lam: float) -> str:
    """By what factor the noise that is added is wrong, told by the variance of one short step; ""
    where it is right.
    """
    times = torch.tensor([0.5, 0.5 - 1e-4], dtype=torch.float64)
    # From a point, so that the drift has no part in it.
    mine, due = (_chain(each, times, lam, 0.0)[1] for each in (solver, EulerMaruyama()))
    ratio = float(mine / due)
    for factor, words in ((2.0, "2"), (0.5, "1/2")):
        if abs(ratio - factor) < 0.01 * factor:
            return f"a factor {words} in the noise's variance"
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


@contract("strong order")
def _strong(solver: Solver) -> Iterator[Comparison]:
    """Along one Brownian path in coarse steps; declared as ``strong_order``."""
    fixed(solver)
    claim = getattr(solver, "strong_order", None)
    if claim is None:
        raise Skip("no strong_order is declared")
    rows, fine = 128, 256
    path = BrownianPath(seeds(0, rows), (2,), START, END, intervals=fine, dtype=torch.float64)
    end, *others = (
        solve(each, n=n, lam=1.0, x=states(rows), noise=path).x
        for each, n in ((SRA3(), fine), (solver, 16), (solver, 32), (solver, 64))
    )
    errors = [float((out - end).square().mean().sqrt()) for out in others]
    found = measured("strong order", errors, float(claim))
    if found.broken and solver.solves_sde:
        found = found._replace(hint=_wrong_noise(solver, 1.0) or found.hint)
    yield found


@contract("adaptive steps")
def _adaptive(solver: Solver) -> Iterator[Comparison]:
    """Tolerances are met, and every order condition of the tableau was when it was made."""
    if not solver.adaptive:
        raise Skip("takes fixed steps")
    if isinstance(solver, RungeKutta):
        bound = 100 * (float(solver.atol) + float(solver.rtol))  # type: ignore[attr-defined]
        out = solve(solver, ROWS).x
        yield compare("the end of the probability flow", out, _flow_end(), {}, bound, scale=1.0)
