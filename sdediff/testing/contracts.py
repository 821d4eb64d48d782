"""What a solver promises: each contract a function of the solver that yields what it compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass
from functools import cache
from typing import Final, Literal

import torch
from torch import Tensor

from sdediff.exact import Gaussian, GaussianMixture
from sdediff.model import ScoreModel
from sdediff.reverse import Reverse
from sdediff.sde import LinearSDE
from sdediff.solvers import Options, Snapshot, Solution, Solver, White, seeds
from sdediff.solvers.needs import unknown_needs
from sdediff.testing.identity import Comparison, Skip, compare, require

__all__ = ["CONTRACTS", "Contract"]

Contract = Callable[[Solver], Iterator[Comparison]]

CONTRACTS: Final[dict[str, Contract]] = {}


class _Rotating(LinearSDE):
    """alpha = cos(pi t / 2) and sigma = sin(pi t / 2): smooth on all of its usable range, and of
    unit variance.
    """

    t_min, t_max = 0.02, 0.98

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * torch.tan(0.5 * math.pi * t)

    def g(self, t: Tensor) -> Tensor:
        return torch.sqrt(math.pi * torch.tan(0.5 * math.pi * t))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)


class _Spreading(LinearSDE):
    """alpha = 1 and sigma = 0.05 * 200^t: the noise explodes."""

    sigma_0 = 0.05

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return 0.05 * 200**t


_SDE, _WIDE = _Rotating(), _Spreading()
_MIXTURE: Final = GaussianMixture([[-0.5, 0.3], [0.5, 0.0], [0.2, -0.5]], 0.5)
_GAUSSIAN: Final = Gaussian(0.4, 0.09)
_START = 0.8
_END = 0.2
_ROWS = 6


def _contract(name: str) -> Callable[[Contract], Contract]:
    def enter(check: Contract) -> Contract:
        CONTRACTS[name] = check
        return check

    return enter


def _lam(solver: Solver) -> float:
    return 1.0 if solver.diffuses else 0.0


def _grid(n: int) -> Tensor:
    return torch.linspace(_START, _END, n + 1, dtype=torch.float64)


@cache
def _x(rows: int = _ROWS) -> Tensor:
    z = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return _SDE.perturb(_MIXTURE.sample(rows, seed=0), _START, z)


def _white(
    keys: tuple[int, ...], event: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64
) -> White:
    return White(keys, event, dtype=dtype)


def _solve(
    solver: Solver,
    rows: tuple[int, ...],
    callback: Callable[[Snapshot], None] | None = None,
    n: int = 5,
) -> Solution:
    problem = Reverse(_MIXTURE.model(_SDE), len(rows), _lam(solver))
    keys = tuple(seeds(0, _ROWS)[i] for i in rows)
    return solver.solve(
        problem, _x()[list(rows)], _times(solver, n), _white(keys), Options(callback=callback)
    )


def _times(solver: Solver, n: int) -> Tensor:
    return _grid(n) if not solver.adaptive else _grid(1)


def _fixed(solver: Solver) -> None:
    if solver.adaptive:
        raise Skip("chooses its own steps")


# -- form ------------------------------------------------------------------------------------------


@_contract("a frozen value")
def _frozen(solver: Solver) -> Iterator[Comparison]:
    what = f"{type(solver).__name__} must be a frozen dataclass"
    hint = "write @dataclass(frozen=True) above the class"
    parameters = getattr(type(solver), "__dataclass_params__", None)
    yield require(
        is_dataclass(solver) and parameters is not None and parameters.frozen, what, hint=hint
    )
    if not is_dataclass(solver):
        return
    for field in fields(solver):
        try:
            setattr(solver, field.name, getattr(solver, field.name))
        except FrozenInstanceError:
            continue
        yield require(False, f"{what}: {field.name} can be set", hint=hint)
    try:
        hash(solver)
    except TypeError as error:
        yield require(
            False,
            f"{what} whose fields are hashable: {error}",
            hint="take tuples for lists and dictionaries",
        )
    kept = {field.name for field in fields(solver)}
    before = {name: value for name, value in vars(solver).items() if name in kept}
    _solve(solver, (0, 1))
    now = {name: value for name, value in vars(solver).items() if name in kept}
    yield require(
        repr(before) == repr(now),
        "a solve changed the fields",
        hint="hand on what is remembered in Step.state",
    )


@_contract("needs")
def _needs(solver: Solver) -> Iterator[Comparison]:
    unknown = unknown_needs(solver)
    yield require(not unknown, unknown)


@_contract("evaluations")
def _evaluations(solver: Solver) -> Iterator[Comparison]:
    """NFE = evaluations a step, and one to start where steps share a stage."""
    _fixed(solver)
    counts = [int(_solve(solver, (0,), n=n).nfe.max()) for n in (3, 6)]
    per_step = (counts[1] - counts[0]) / 3
    yield compare(
        "the number of evaluations a step",
        per_step,
        float(solver.evaluations),
        {},
        0.0,
        hint="count them in `evaluations`",
    )
    start = counts[0] - 3 * per_step
    yield require(
        start in (0, 1), f"{start:g} evaluations are made before the first step; 1 at most"
    )


@_contract("draws noise iff stochastic")
def _draws(solver: Solver) -> Iterator[Comparison]:
    one = _solve(solver, (0, 1)).x
    other = solver.solve(
        Reverse(_MIXTURE.model(_SDE), 2, _lam(solver)),
        _x()[:2],
        _times(solver, 5),
        _white(seeds(9, 2)),
        Options(),
    ).x
    moved = bool((one != other).any())
    yield require(
        moved == solver.stochastic,
        f"stochastic = {solver.stochastic}, and seeds {'do' if moved else 'do not'} matter",
    )
    yield require(solver.stochastic or not solver.diffuses, "diffuses, and is not stochastic")


@_contract("global generator")
def _global(solver: Solver) -> Iterator[Comparison]:
    before = torch.get_rng_state()
    _solve(solver, (0, 1))
    moved = not torch.equal(before, torch.get_rng_state())
    yield require(
        not moved,
        "torch's global generator was moved",
        hint="draw from the `noise` that step is handed, not by torch.randn",
    )


@_contract("batch invariance")
def _batch(solver: Solver) -> Iterator[Comparison]:
    hint = "a mean, norm or maximum over the batch: reduce over the event only"
    whole, order = _solve(solver, tuple(range(_ROWS))).x, (3, 0, 5, 2, 1, 4)
    yield compare(
        "a sample of a permuted batch",
        _solve(solver, order).x,
        whole[list(order)],
        {},
        1e-6,
        scale=1.0,
        hint=hint,
    )
    for i in (0, 4):
        yield compare(
            "a sample alone", _solve(solver, (i,)).x[0], whole[i], {}, 1e-6, scale=1.0, hint=hint
        )


@_contract("interleaved solves")
def _interleaved(solver: Solver) -> Iterator[Comparison]:
    """A solve inside another after each of its first steps."""
    alone, inside = (_solve(solver, rows).x for rows in ((0, 1), (2, 3)))
    within: list[Tensor] = []

    def between(snapshot: Snapshot) -> None:
        if snapshot.step <= 3:
            within.append(_solve(solver, (2, 3)).x)

    mixed = _solve(solver, (0, 1), between).x
    same = torch.equal(mixed, alone) and all(torch.equal(x, inside) for x in within)
    yield require(
        same,
        "two interleaved solves differ from separate ones",
        hint="state on the solver: hand it on in Step.state",
    )


@_contract("grid")
def _honoured(solver: Solver) -> Iterator[Comparison]:
    """No evaluation outside the grid; `Solution.times` is the grid."""
    model, times = _MIXTURE.model(_SDE), []
    net = model.net

    def record(x: Tensor, t: Tensor) -> Tensor:
        times.extend(t.double().tolist())
        out: Tensor = net(x, t)
        return out

    model = ScoreModel(record, _SDE, model.predicts)
    grid = torch.tensor([0.8, 0.7, 0.69, 0.4, 0.2], dtype=torch.float64)
    out = solver.solve(
        Reverse(model, 2, _lam(solver)),
        _x()[:2],
        grid,
        _white(seeds(0, 2)),
        Options(trajectory=True),
    )
    low, high = min(times, default=_END), max(times, default=_START)
    detail = (
        f"the model is asked at times from {low:.6g} to {high:.6g}; the grid goes from {_START} "
        f"to {_END}"
    )
    yield require(
        low >= _END - 1e-9 and high <= _START + 1e-9,
        detail,
        hint="stages lie between t and s: t + c (s - t), 0 <= c <= 1",
    )
    yield require(torch.equal(out.times, grid), "Solution.times is not the grid")


@_contract("any rank")
def _rank(solver: Solver) -> Iterator[Comparison]:
    model = ScoreModel(
        lambda x, t: x * _SDE.sigma(t.double()).to(x).reshape(-1, *(1,) * (x.ndim - 1)), _SDE
    )
    for event in ((), (2, 3), (1, 2, 3)):
        out, flat = (
            solver.solve(
                Reverse(model, 2, _lam(solver)),
                torch.ones(2, *shape).double(),
                _times(solver, 3),
                _white((1, 2), shape),
                Options(),
            ).x
            for shape in (event, (math.prod(event),))
        )
        yield require(
            out.shape == (2, *event),
            f"a state of shape {(2, *event)} came back as {tuple(out.shape)}",
        )
        yield compare(
            f"a state of shape {(2, *event)}",
            out.reshape(-1),
            flat.reshape(-1),
            {},
            1e-6,
            scale=1.0,
        )


@_contract("dtype")
def _dtype(solver: Solver) -> Iterator[Comparison]:
    model = ScoreModel(lambda x, t: 0.5 * x, _SDE)
    for dtype in (torch.float32, torch.float64):
        problem, noise = Reverse(model, 2, _lam(solver)), _white((1, 2), dtype=dtype)
        out = solver.solve(problem, _x()[:2].to(dtype), _times(solver, 3), noise, Options()).x
        name = str(dtype).removeprefix("torch.")
        hint = "multiply by expand(c, x), which has the dtype of x"
        yield require(
            out.dtype == dtype,
            f"a {name} state came back as {str(out.dtype).removeprefix('torch.')}",
            hint=hint,
        )


@_contract("finite")
def _finite(solver: Solver) -> Iterator[Comparison]:
    """1 to 5 steps over the whole usable range of an SDE of unit variance and of one whose noise
    explodes.
    """
    for sde in (_SDE, _WIDE):
        for n in range(1, 2 if solver.adaptive else 6):
            grid = torch.linspace(sde.t_max, sde.t_min, n + 1, dtype=torch.float64)
            x = _x()[:2] * float(sde.sigma(grid[0]))
            problem = Reverse(_MIXTURE.model(sde), 2, _lam(solver))
            out = solver.solve(problem, x, grid, _white((1, 2)), Options(on_fail="return"))
            yield require(
                out.success and bool(torch.isfinite(out.x).all()),
                f"not finite after {n} steps from {grid[0]:g} to {grid[-1]:g}",
            )


@_contract("gradients")
def _gradients(solver: Solver) -> Iterator[Comparison]:
    grads = []
    ways: tuple[Literal["full", "checkpoint"], ...] = ("full", "checkpoint")
    for grad in ways:
        x = _x()[:2].clone().requires_grad_()
        problem = Reverse(_MIXTURE.model(_SDE), 2, _lam(solver))
        options = Options(grad=grad)
        with torch.enable_grad():
            out = solver.solve(problem, x, _times(solver, 3), _white((1, 2)), options).x
            if not out.requires_grad:
                yield require(
                    False,
                    "no gradient flows from the end to the start",
                    hint="a detach(), .data or torch.no_grad()",
                )
                return
            grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    yield require(bool((grads[0] != 0).all()), "the gradient with respect to the start is 0")
    yield compare(
        "the gradient by grad='checkpoint'",
        grads[1],
        grads[0],
        {},
        1e-6,
        scale=grads[0].abs().max(),
    )
