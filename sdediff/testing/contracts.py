"""What a solver promises of its form: each contract a function of the solver that yields what it
compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.exact import Gaussian, GaussianMixture
from sdediff.model import ScoreModel
from sdediff.reverse import Reverse
from sdediff.sde import LinearSDE
from sdediff.solvers import Noise, Options, Snapshot, Solution, Solver, White, seeds
from sdediff.solvers.needs import unknown_needs
from sdediff.testing.report import (
    Check,
    Comparison,
    Skip,
    compare,
    require,
)

__all__ = [
    "CONTRACTS",
    "END",
    "GAUSSIAN",
    "MIXTURE",
    "ROWS",
    "SDE",
    "START",
    "contract",
    "fixed",
    "grid",
    "solve",
    "states",
]

CONTRACTS: Final[dict[str, Check]] = {}


SDE: Final = LinearSDE(
    alpha=lambda t: torch.cos(0.5 * math.pi * t),
    sigma=lambda t: torch.sin(0.5 * math.pi * t),
    t_min=0.02,
    t_max=0.98,
)
"""Smooth on all of its usable range, and of unit variance."""
SPREADING: Final = LinearSDE(
    alpha=lambda t: torch.ones_like(t), sigma=lambda t: 0.05 * 200**t, sigma_0=0.05
)
"""The noise explodes."""
MIXTURE: Final = GaussianMixture([[-0.5, 0.3], [0.5, 0.0], [0.2, -0.5]], 0.5)
GAUSSIAN: Final = Gaussian(0.4, 0.09)
START: Final = 0.8
END: Final = 0.2
ROWS: Final = 6


def contract(name: str) -> Callable[[Check], Check]:
    """Enter a function of the solver into the table under that name."""

    def enter(check: Check) -> Check:
        CONTRACTS[name] = check
        return check

    return enter


def grid(n: int) -> Tensor:
    """n intervals from START to END."""
    return torch.linspace(START, END, n + 1, dtype=torch.float64)


@cache
def states(rows: int = ROWS) -> Tensor:
    """Samples of the mixture's law at START, (rows, 2)."""
    z = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return SDE.perturb(MIXTURE.sample(rows, seed=0), START, z)


def solve(
    solver: Solver,
    rows: tuple[int, ...] | int = 2,
    n: int = 5,
    *,
    model: ScoreModel | None = None,
    lam: float | None = None,
    x: Tensor | None = None,
    times: Tensor | None = None,
    noise: Noise | None = None,
    options: Options | None = None,
) -> Solution:
    """Solve for some of the rows of `states` in n steps, or as an adaptive solver will, on the
    mixture's model, at stochasticity 1 if the solver solves_sde.
    """
    chosen = tuple(range(rows)) if isinstance(rows, int) else rows
    x = states()[list(chosen)] if x is None else x
    if noise is None:
        keys = tuple(seeds(0, ROWS)[i] for i in chosen)
        noise = White(keys, tuple(x.shape[1:]), dtype=x.dtype)
    lam = float(solver.solves_sde) if lam is None else lam
    problem = Reverse(MIXTURE.model(SDE) if model is None else model, len(x), lam)
    times = grid(1 if solver.adaptive else n) if times is None else times
    return solver.solve(problem, x, times, noise, options or Options())


def fixed(solver: Solver) -> None:
    """Skip adaptive solvers."""
    if solver.adaptive:
        raise Skip("chooses its own steps")


@contract("a frozen value")
def _frozen(solver: Solver) -> Iterator[Comparison]:
    what = f"{type(solver).__name__} must be a frozen dataclass"
    hint = "write @dataclass(frozen=True) above the class"
    parameters: Any = getattr(type(solver), "__dataclass_params__", None)
    yield require(parameters is not None and parameters.frozen, what, hint=hint)
    if not is_dataclass(solver):
        return
    names = [field.name for field in fields(solver)]
    for name in names:
        try:
            setattr(solver, name, getattr(solver, name))
        except FrozenInstanceError:
            continue
        yield require(False, f"{what}: {name} can be set", hint=hint)
    try:
        hash(solver)
    except TypeError as error:
        hint = "take tuples for lists and dictionaries"
        yield require(False, f"{what} whose fields are hashable: {error}", hint=hint)
    before = repr([vars(solver).get(name) for name in names])
    solve(solver)
    same = before == repr([vars(solver).get(name) for name in names])
    hint = "hand on what is remembered in Step.state"
    yield require(same, "a solve changed the fields", hint=hint)


@contract("needs")
def _needs(solver: Solver) -> Iterator[Comparison]:
    unknown = unknown_needs(solver)
    yield require(not unknown, unknown)


def _claimed(solver: Solver, n: int) -> int:
    """The evaluations that the plans of n steps say."""
    problem = Reverse(MIXTURE.model(SDE), 1, float(solver.solves_sde))
    return sum(map(solver.cost, solver.plan(problem, grid(n))))


@contract("evaluations")
def _evaluations(solver: Solver) -> Iterator[Comparison]:
    """NFE = the steps' `Solver.cost`, and one to start where steps share a stage."""
    fixed(solver)
    few, many = (int(solve(solver, 1, n).nfe.max()) for n in (3, 6))
    claims = [_claimed(solver, n) for n in (3, 6)]
    what, hint = "the number of evaluations a step", "count them in `evaluations`"
    yield compare(what, (many - few) / 3, (claims[1] - claims[0]) / 3, {}, 0.0, hint=hint)
    start = few - claims[0]
    detail = f"{start:g} evaluations are made before the first step; 1 at most"
    yield require(start in (0, 1) or many - few != claims[1] - claims[0], detail)


@contract("draws noise iff stochastic")
def _draws(solver: Solver) -> Iterator[Comparison]:
    other = White(seeds(9, 2), (2,), dtype=torch.float64)
    moved = bool((solve(solver).x != solve(solver, noise=other).x).any())
    detail = f"stochastic = {solver.stochastic}, and seeds {'do' if moved else 'do not'} matter"
    yield require(moved == solver.stochastic, detail)
    yield require(solver.stochastic or not solver.solves_sde, "solves_sde, and is not stochastic")


@contract("global generator")
def _global(solver: Solver) -> Iterator[Comparison]:
    before = torch.get_rng_state()
    solve(solver)
    same = torch.equal(before, torch.get_rng_state())
    hint = "draw from the `noise` that step is handed, not by torch.randn"
    yield require(same, "torch's global generator was moved", hint=hint)


@contract("batch invariance")
def _batch(solver: Solver) -> Iterator[Comparison]:
    whole = solve(solver, ROWS).x
    hint = "a mean, norm or maximum over the batch: reduce over the event only"
    for rows in ((3, 0, 5, 2, 1, 4), (0,), (4,)):
        what = "a sample alone" if len(rows) == 1 else "a sample of a permuted batch"
        out = solve(solver, rows).x
        yield compare(what, out, whole[list(rows)], {}, 1e-6, scale=1.0, hint=hint)


@contract("interleaved solves")
def _interleaved(solver: Solver) -> Iterator[Comparison]:
    """A solve inside another after each of its first steps."""
    alone, inside = (solve(solver, rows).x for rows in ((0, 1), (2, 3)))
    within: list[Tensor] = []

    def between(snapshot: Snapshot) -> None:
        if snapshot.step <= 3:
            within.append(solve(solver, (2, 3)).x)

    mixed = solve(solver, options=Options(callback=between)).x
    same = torch.equal(mixed, alone) and all(torch.equal(x, inside) for x in within)
    what = "two interleaved solves differ from separate ones"
    yield require(same, what, hint="state on the solver: hand it on in Step.state")


@contract("grid")
def _honoured(solver: Solver) -> Iterator[Comparison]:
    """No evaluation outside the grid; `Solution.times` is the grid."""
    model = MIXTURE.model(SDE)
    asked: list[float] = []

    def record(x: Tensor, t: Tensor) -> Tensor:
        asked.extend(t.double().tolist())
        out: Tensor = model.net(x, t)
        return out

    times = torch.tensor([0.8, 0.7, 0.69, 0.4, 0.2], dtype=torch.float64)
    watched = ScoreModel(record, SDE, model.predicts)
    out = solve(solver, model=watched, times=times, options=Options(trajectory=True))
    low, high = min(asked, default=END), max(asked, default=START)
    yield require(
        low >= END - 1e-9 and high <= START + 1e-9,
        f"the model is asked at times from {low:.6g} to {high:.6g}; the grid goes from {START} "
        f"to {END}",
        hint="stages lie between t and s: t + c (s - t), 0 <= c <= 1",
    )
    yield require(torch.equal(out.times, times), "Solution.times is not the grid")


@contract("any rank")
def _rank(solver: Solver) -> Iterator[Comparison]:
    model = ScoreModel(
        lambda x, t: x * SDE.sigma(t.double()).to(x).reshape(-1, *(1,) * (x.ndim - 1)), SDE
    )
    for event in ((), (2, 3), (1, 2, 3)):
        x = torch.ones(2, *event).double()
        out, flat = (solve(solver, n=3, model=model, x=y).x for y in (x, x.reshape(2, -1)))
        what = f"a state of shape {(2, *event)}"
        yield require(out.shape == x.shape, f"{what} came back as {tuple(out.shape)}")
        yield compare(what, out.reshape(-1), flat.reshape(-1), {}, 1e-6, scale=1.0)


@contract("dtype")
def _dtype(solver: Solver) -> Iterator[Comparison]:
    model = ScoreModel(lambda x, t: 0.5 * x, SDE)
    hint = "multiply by expand(c, x), which has the dtype of x"
    for dtype in (torch.float32, torch.float64):
        out = solve(solver, n=3, model=model, x=states()[:2].to(dtype)).x
        given, got = (str(d).removeprefix("torch.") for d in (dtype, out.dtype))
        yield require(out.dtype == dtype, f"a {given} state came back as {got}", hint=hint)


@contract("finite")
def _finite(solver: Solver) -> Iterator[Comparison]:
    """1 to 5 steps over the whole usable range of an SDE of unit variance and of one whose noise
    explodes.
    """
    for sde in (SDE, SPREADING):
        for n in range(1, 2 if solver.adaptive else 6):
            times = torch.linspace(sde.t_max, sde.t_min, n + 1, dtype=torch.float64)
            x = states()[:2] * float(sde.sigma(times[0]))
            model = MIXTURE.model(sde)
            out = solve(solver, model=model, x=x, times=times, options=Options(on_fail="return"))
            yield require(
                out.success and bool(torch.isfinite(out.x).all()),
                f"not finite after {n} steps from {times[0]:g} to {times[-1]:g}",
            )


@contract("gradients")
def _gradients(solver: Solver) -> Iterator[Comparison]:
    grads = []
    for options in (Options(grad="full"), Options(grad="checkpoint")):
        x = states()[:2].clone().requires_grad_()
        with torch.enable_grad():
            out = solve(solver, n=3, x=x, options=options).x
            if not out.requires_grad:
                what = "no gradient flows from the end to the start"
                yield require(False, what, hint="a detach(), .data or torch.no_grad()")
                return
            grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    full, again = grads
    yield require(bool((full != 0).all()), "the gradient with respect to the start is 0")
    what = "the gradient by grad='checkpoint'"
    yield compare(what, again, full, {}, 1e-6, scale=full.abs().max())
