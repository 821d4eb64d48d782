"""The solvers that are compared, and how many steps of each a number of evaluations pays for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, cast

from torch import Tensor

from sdediff import solvers
from sdediff.arguments import check_solver, default_solver
from sdediff.processes import dividing
from sdediff.protocols import Facts, Like, Model, Output, Piece, Rows
from sdediff.sampling import sample
from sdediff.solvers import Solver
from sdediff.solvers.given import described

__all__ = ["Candidate", "Job", "Make", "Solvers", "candidates", "jobs"]

Make = Callable[[int], Solver]
"""From a number of steps to a solver, such as a discrete model of so many levels."""
Solvers = Sequence[Solver | Make | None] | Mapping[str, Solver | Make | None]

_TRIES: Final = 40
_FIRST: Final = 30
"""Evaluations that an adaptive solver may take at a tolerance of 0.1, for the order of the runs."""


@dataclass(frozen=True)
class Candidate:
    """A solver with its name in the table; None is the library's default. With ``stochasticity``
    the default is another one.
    """

    name: str
    solver: Solver | Make | None
    grid: str | Callable[[int], Tensor] | None = None
    stochasticity: float | None = None
    chosen: bool = True
    """Whether a user named it; what does not fit the model is left out of the default list without
    a word.
    """
    code: str = ""
    """What it is among the ``solvers`` that the user gave."""

    def at(self, sde: Any, steps: int) -> Solver:
        """The solver for so many steps. Of the default one only the evaluations matter here, which
        are the same for every model: `sample` chooses it.
        """
        if self.solver is None:
            return default_solver(sde, steps, stochastic=bool(self.stochasticity))
        return self.solver if isinstance(self.solver, Solver) else check_solver(self.solver(steps))

    @property
    def adaptive(self) -> bool:
        """Whether it is compared at tolerances."""
        return isinstance(self.solver, Solver) and self.solver.adaptive

    @property
    def whole(self) -> bool:
        """Whether it brings a grid of its own, and so has one cost alone."""
        return isinstance(self.solver, Solver) and self.solver.times is not None


@dataclass(frozen=True)
class Job:
    """One solve of the comparison. ``solver`` is None for the default; ``expected`` evaluations
    order the jobs. ``refused`` says why there is nothing to solve.
    """

    candidate: Candidate
    solver: Solver | None
    known: Solver | None
    """What the default is for these steps; otherwise the solver itself."""
    budget: int | None = None
    steps: int | None = None
    tolerance: float | None = None
    expected: float = 0.0
    refused: str = ""

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise beyond that of the start."""
        return self.known is not None and (self.known.stochastic or self.known.solves_sde)


def candidates(
    given: Solvers | None, model: Model, grids: Sequence[str | Callable[[int], Tensor]] | None
) -> list[Candidate]:
    """Those that the user gave, each on each of the ``grids``, or the default list; a ValueError
    or TypeError for what is no solver.
    """
    chosen = _default_list(model) if given is None else list(_named(given))
    if not chosen:
        raise ValueError("solvers is empty: give some, or leave it out for the default list")
    if grids is None:
        return chosen
    if isinstance(grids, str) or not grids:
        raise ValueError(f"grids must be a list, ['karras', 'log_snr'] say; got {grids!r}")
    found: list[Candidate] = []
    for each in chosen:
        if each.adaptive or each.whole:
            found.append(each)
            continue
        for word, grid in _words(grids):
            found.append(replace(each, name=f"{each.name}, {word}", grid=grid))
    return found


def _words(
    grids: Sequence[str | Callable[[int], Tensor]],
) -> Iterator[tuple[str, str | Callable[[int], Tensor]]]:
    for i, grid in enumerate(grids):
        yield grid if isinstance(grid, str) else getattr(grid, "__name__", f"grid {i}"), grid


def _named(given: Solvers) -> Iterator[Candidate]:
    """Each with a name of its own."""
    if isinstance(given, Solver) or not isinstance(given, Mapping | Sequence):
        raise TypeError(
            f"solvers must be a list of solvers, or a dict of them by name; got {given!r}"
        )
    named = isinstance(given, Mapping)
    pairs: Any = given.items() if isinstance(given, Mapping) else enumerate(given)
    seen: dict[str, int] = {}
    for label, each in pairs:
        if each is not None and (isinstance(each, type | str) or not callable(each)):
            check_solver(each)
        name = label if named else _name_of(each)
        seen[name] = seen.get(name, 0) + 1
        unique = name if seen[name] == 1 else f"{name} ({seen[name]})"
        yield Candidate(unique, each, code=f"solvers[{label!r}]")


def _name_of(each: Solver | Make | None) -> str:
    """A short name; without the tolerances, which are those of the comparison."""
    if each is None:
        return "default"
    if not isinstance(each, Solver):
        return getattr(each, "__name__", described(each))
    if isinstance(each, solvers.Tuned):
        return f"Tuned(nfe={each.nfe})"  # its repr names the model too, which is the same for all
    if not each.adaptive:
        return repr(each)
    words = [
        f"{field.name}={getattr(each, field.name)!r}"
        for field in fields(cast(Any, each))
        if field.name not in ("rtol", "atol") and getattr(each, field.name) != field.default
    ]
    return f"{type(each).__name__}({', '.join(words)})"


def _default_list(model: Model) -> list[Candidate]:
    """What the field uses, of each kind, and the library's defaults; those that the model does not
    offer enough for drop out where their steps are counted.
    """
    found = [Candidate("default", None, chosen=False)]
    if model.sde.solver is not None:
        return found
    few = (
        solvers.DDIM(),
        solvers.Heun(variable="sigma"),
        solvers.DPMSolver(2),
        solvers.DPMSolverPP(2),
        solvers.DPMSolverPP(3),
        solvers.UniPC(3),
        solvers.DEIS(3),
        solvers.RES(2),
        solvers.Ancestral(),
        solvers.SDEDPMSolverPP(2),
        solvers.SASolver(3),
        solvers.SEEDS(2),
        solvers.ERSDE(3),
    )
    general = (solvers.EulerMaruyama(),)
    plain = (solvers.Euler(), solvers.Midpoint(), solvers.Heun(), solvers.StochasticHeun())
    adaptive = (solvers.RK45(), solvers.AdaptiveSDE())
    linear = "kernel" in model.sde.offers
    if linear:
        found.append(Candidate("default, stochasticity=1", None, stochasticity=1.0, chosen=False))
    given = (*(few if linear else plain), *general, *(adaptive if linear else adaptive[:1]))
    return found + [Candidate(repr(each), each, chosen=False) for each in given]


class _StandIn:
    """A model without a network that costs what ``model`` does: counting evaluations needs no
    other.
    """

    def __init__(self, model: Model, known: Facts) -> None:
        self.sde = model.sde
        self.known = known
        self.predicts = "data" if "kernel" in model.sde.offers else "score"
        self.device = known.device
        self.data_std = known.declared_data_std
        self.breaks = known.breaks
        self.extras = known.extras

    def at(self, times: Tensor, like: Like, piece: Piece | None) -> Sequence[Any]:
        return [None] * len(times)

    def evaluate(self, x: Tensor, at: Any, rows: Rows) -> Tensor | Output:
        rows.count(self.known.cost)
        value = 0.0 * x if self.predicts == "data" else -x  # of x: some solvers take gradients
        extras = {name: 0.0 * x for name in self.extras}
        return Output(value, **extras) if extras else value


@dataclass(frozen=True)
class _Counter:
    """Evaluations of so many steps, counted on a model that costs nothing."""

    model: _StandIn
    count: int
    event: tuple[int, ...]

    def __call__(self, candidate: Candidate, steps: int) -> int:
        solver = candidate.at(self.model.sde, steps)
        own = solver.times is not None
        options: Any = {
            "solver": None if candidate.solver is None else solver,
            "steps": None if own else steps,
            "grid": candidate.grid,
            "stochasticity": candidate.stochasticity,
        }
        with warnings.catch_warnings(), dividing(None):  # among processes each counts for itself
            warnings.simplefilter("ignore")  # the solve says it, and is heard
            try:
                found = sample(
                    self.model, (solver.group, *self.event), seed=0, on_fail="return", **options
                )
            except ValueError:  # of a solver that knows something of each sample, say
                found = sample(
                    self.model, (self.count, *self.event), seed=0, on_fail="return", **options
                )
        return int(found.nfe.max())


def jobs(
    given: Sequence[Candidate],
    model: Model,
    known: Facts,
    shape: tuple[int, ...],
    nfe: Sequence[int],
    tolerances: Sequence[float],
) -> list[Job]:
    """All solves, those that are refused too, the cheapest first; of the same cost in the order
    given, in which the library's default is the first.
    """
    count = _Counter(_StandIn(model, known), shape[0], shape[1:])
    found: list[Job] = []
    for each in given:
        if each.adaptive:
            found += [_adaptive(each, tolerance, known) for tolerance in tolerances]
        elif each.whole:
            found.append(_whole(count, each))
        else:
            found += _fixed(count, each, nfe)
    kept = [job for job in found if job.candidate.chosen or not job.refused]
    return sorted(kept, key=lambda job: job.expected)


def _adaptive(each: Candidate, tolerance: float, known: Facts) -> Job:
    solver: Any = each.solver
    unit = known.data_std
    made: Solver = replace(solver, rtol=tolerance, atol=float(f"{tolerance * unit:.6g}"))
    weak = 4 if made.stochastic else 10
    expected = _FIRST * (0.1 / tolerance) ** (2 / weak) if tolerance < 0.1 else float(_FIRST)
    return Job(each, made, made, tolerance=tolerance, expected=expected)


def _whole(count: _Counter, each: Candidate) -> Job:
    solver = each.at(count.model.sde, 1)
    try:
        spent = count(each, 1)
    except (ValueError, TypeError) as error:
        return Job(each, solver, solver, refused=_reason(error))
    return Job(each, solver, solver, budget=None, expected=spent)


def _fixed(count: _Counter, each: Candidate, nfe: Sequence[int]) -> Iterator[Job]:
    """The most steps whose evaluations stay within each number."""
    sde = count.model.sde
    for budget in nfe:
        solver: Solver | None = None
        try:
            solver = each.at(sde, max(1, budget - 1))
            steps, spent = _steps(count, each, solver, budget)
            solver = each.at(sde, max(1, steps))
        except (ValueError, TypeError) as error:
            yield Job(each, solver, solver, budget, refused=_reason(error), expected=budget)
            continue
        given = None if each.solver is None else solver
        if steps == 0:
            why = f"one step takes {spent} evaluations"
            yield Job(each, given, solver, budget, refused=why, expected=budget)
        else:
            yield Job(each, given, solver, budget, steps, expected=spent)


def _steps(count: _Counter, each: Candidate, solver: Solver, budget: int) -> tuple[int, int]:
    """(steps, evaluations), the most within the budget; (0, those of one step) where none are."""
    a_step = max(1, solver.evaluations * count.model.known.cost)
    steps = max(1, (budget - count.model.known.cost) // a_step)
    spent = count(each, steps)
    for _ in range(_TRIES):
        if spent > budget:
            if steps == 1:
                return 0, spent
            steps = max(1, steps - max(1, (spent - budget) // a_step))
            spent = count(each, steps)
            continue
        if spent + 1 > budget:
            return steps, spent
        more = count(each, steps + 1)
        if more > budget:
            return steps, spent
        steps, spent = steps + 1, more
    return steps, spent


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
