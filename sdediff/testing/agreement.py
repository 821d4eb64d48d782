"""Whether two solvers, or two models, give the same samples; and the named equivalences of an
SDE.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, cast

import torch
from torch import Tensor

from sdediff.arguments import Grid, Span, intervals, make_times
from sdediff.exact.law import Law
from sdediff.model import ScoreModel
from sdediff.modules import evaluating
from sdediff.predictions import PREDICTIONS
from sdediff.protocols import facts, is_model
from sdediff.sde import SDE, VE, VP, LinearSDE, SubVP
from sdediff.solvers import DDIM, EulerMaruyama, Noise, Solver
from sdediff.solvers.given import check_name, integer, real
from sdediff.stochasticity import check_stochasticity
from sdediff.testing.check import instance_of
from sdediff.testing.equivalences import EQUIVALENCES, agree, evaluate
from sdediff.testing.equivalences.case import POINTS, Case, default_cases
from sdediff.testing.orders import Still, fitted_order
from sdediff.testing.report import (
    Comparison,
    EquivalenceError,
    Finding,
    Report,
    likely_slip,
    settle,
)

__all__ = ["Run", "cause", "check_equivalence", "check_equivalences"]

_STEPS: Final = 10
_Pairs = Iterator[tuple[str, LinearSDE, tuple[Solver, Solver], tuple[ScoreModel, ScoreModel]]]
"""What to run: a name for it, the SDE, two solvers and two models."""


def check_equivalences(
    sde: SDE | type[SDE], *, names: Iterable[str] | None = None, verbose: bool = True
) -> Report:
    """Check the named equivalences under an SDE, and raise `EquivalenceError` naming those that
    fail.

    Each of `EQUIVALENCES` (``names``: of these) holds for every linear SDE, or for those that have
    what it needs: DDPM's chain is the kernel, DDIM exponential Euler, EDM's sampler Heun on the
    variable sigma, and so on (docs/testing.md has the table). Each is checked at three settings:
    mixtures of different shapes, grids of 8, 4 and 1 steps over the usable range, three predictions
    (those that are costly at the first of them).
    What does not apply is skipped, by name; all of them are, under an SDE without a Gaussian
    kernel. An SDE that is not consistent breaks them as well: `check_sde` tells why.

    Prints a table unless ``verbose`` is false and returns it as a `Report`. Takes a few seconds.
    Raises TypeError for what is no SDE and ValueError for a name that is none.
    """
    instance = instance_of(sde, "check_equivalences")
    chosen = list(EQUIVALENCES if names is None else names)
    for name in chosen:
        check_name("equivalence", name, EQUIVALENCES)
    cases = _cases(_linear(instance)) if "kernel" in instance.offers else []
    findings = tuple(_over(name, cases) for name in chosen)
    return Report(repr(instance), findings, "equivalence").conclude(EquivalenceError, verbose)


def _cases(sde: LinearSDE) -> list[Case]:
    try:
        with torch.inference_mode(False), torch.no_grad():
            return default_cases(sde)
    except Exception as error:
        raise ValueError(
            f"no grid can be made for {sde!r}: {error}; see what check_sde says of it"
        ) from error


def _over(name: str, cases: list[Case]) -> Finding:
    """The first failure, with its case; else the largest deviation."""
    found = [Finding(name, "skipped", detail="needs a Gaussian kernel")]
    for case in cases[:1] if EQUIVALENCES[name].costly else cases:
        finding = evaluate(name, case)
        if finding.verdict == "fail":
            return finding._replace(detail=f"{finding.detail}, in {case!r}")
        found.append(finding)
    held = [finding for finding in found if finding.verdict == "ok"]
    return max(held, key=lambda finding: finding.deviation) if held else found[-1]


def check_equivalence(
    a: Solver | ScoreModel,
    b: Solver | ScoreModel,
    *,
    sde: SDE | type[SDE] | None = None,
    data: Law | None = None,
    solver: Solver | None = None,
    steps: int | None = None,
    grid: Grid | None = None,
    stochasticity: float | Callable[[torch.Tensor], torch.Tensor] | None = None,
    seed: int = 0,
    rows: int = 4,
    bound: float = 1e-9,
    verbose: bool = True,
) -> Report:
    """Check that two solvers, or two models, take one start and one noise to the same states at
    every time of a grid.

    Two solvers run on the exact model of ``data`` under ``sde``; by default VP, VE and SubVP, one
    after the other. A discrete model (`DDPM`) brings its grid, on which the other runs too, and
    needs its ``sde``. Two `ScoreModel` of one SDE run by ``solver``, by default `DDIM` and
    `EulerMaruyama`, on events of the shape of ``data``'s.
    ``data``: a law of `sdediff.exact`, by default a mixture of three Gaussians in the plane;
    ``rows`` samples start from its law at grid[0]. ``steps`` (10 by default), ``grid``,
    ``stochasticity``: as in `sample`; the last holds for whichever of the two integrates the
    reverse SDE. ``bound``: of the largest deviation over the size of the states; loosen it to 1e-4
    for networks in float32, and to the tolerances where a solver is adaptive.

    Raises `EquivalenceError` that says where the two part first (step, time, sample, coordinate),
    by how much, and the likely cause: a factor in the noise, another stream of noise, two
    discretizations of one process, a network read as the wrong prediction. Prints a table unless
    ``verbose`` is false and returns it as a `Report`.
    """
    bound = real("bound", bound)
    seed = integer("seed", seed, kind="a non-negative int")
    rows = integer("rows", rows, 1)
    if not bound > 0 or not math.isfinite(bound):
        raise ValueError(f"bound must be a positive number, got {bound!r}")
    law = POINTS if data is None else data
    if not isinstance(law, Law):
        raise TypeError(
            f"data must be a law of sdediff.exact such as GaussianMixture(...), got {data!r}"
        )
    who = f"{a!r} and {b!r}"
    if isinstance(a, Solver) and isinstance(b, Solver):
        pairs = _solvers(a, b, sde, solver, law)
    elif is_model(a) and is_model(b):
        one, other = (getattr(each, "predicts", "") for each in (a, b))
        who = f"a model of {one} and one of {other}"
        pairs = _models(cast(ScoreModel, a), cast(ScoreModel, b), sde, solver)
    else:
        classes = any(isinstance(each, type) for each in (a, b))
        hint = "; write it with parentheses, as a value" if classes else ""
        raise TypeError(f"check_equivalence takes two solvers or two ScoreModels, got {who}{hint}")
    runs = []
    for name, process, pair, models in pairs:
        times = _times(pair, process, steps, grid)
        lams = [
            check_stochasticity(each, stochasticity if each.solves_sde else None, times)
            for each in pair
        ]
        case = Case(process, law, tuple(times.tolist()), "v", seed, rows)
        labels = (repr(a), repr(b))
        if is_model(a):
            labels = (f"a ({models[0].predicts})", f"b ({models[1].predicts})")
        refinable = not any(each.adaptive or each.times is not None for each in pair)
        runs.append((name, Run(case, pair, models, tuple(lams), labels, bound, refinable)))
    with torch.inference_mode(False), torch.no_grad():
        findings = tuple(settle(name, _compared(run)) for name, run in runs)
    report = Report(who, findings, "equivalence")
    return report.conclude(EquivalenceError, verbose, "differ")


def _solvers(
    a: Solver, b: Solver, sde: SDE | type[SDE] | None, solver: Solver | None, law: Law
) -> _Pairs:
    if solver is not None:
        raise ValueError("solver= is for two models; two solvers are compared with one another")
    for each in (a, b):
        if each.times is not None and sde is None:
            raise ValueError(
                f"{each!r} is a discrete model with a grid of its own: pass the sde= that it "
                "was made from"
            )
    given = () if sde is None else (_linear(instance_of(sde, "check_equivalence")),)
    for process in given or (VP(), VE(), SubVP()):
        yield f"on {process!r}", process, (a, b), (law.model(process),) * 2


def _models(
    a: ScoreModel, b: ScoreModel, sde: SDE | type[SDE] | None, solver: Solver | None
) -> _Pairs:
    process = _linear(a.sde if sde is None else instance_of(sde, "check_equivalence"))
    t = torch.linspace(process.t_min, process.t_max, 9, dtype=torch.float64)
    for name, model in (("a", a), ("b", b)):
        if model.sde is not process and not all(
            torch.allclose(getattr(process, c)(t), getattr(_linear(model.sde), c)(t), 1e-9, 0)
            for c in ("alpha", "sigma")
        ):
            raise ValueError(
                f"the model {name} belongs to {model.sde!r}, not to {process!r}: samples of "
                "two SDEs agree only up to scale"
            )
        if facts(model).device.type != "cpu":
            raise ValueError(
                f"check_equivalence runs on the host, in float64: move the model {name} "
                "there, by .cpu()"
            )
    for each in (DDIM(), EulerMaruyama()) if solver is None else (solver,):
        yield f"by {each!r}", process, (each, each), (a, b)


def _times(
    pair: tuple[Solver, Solver], sde: SDE, steps: int | None, grid: Grid | None
) -> torch.Tensor:
    """The grid of the first discrete solver of the two, or else of the first with fixed steps, 10
    of them unless it is given.
    """
    fixed = min(pair, key=lambda each: (each.times is None, each.adaptive))
    free = fixed.times is None and not fixed.adaptive and intervals(steps, grid) is None
    span = Span(sde, sde.t_max, sde.t_min)
    return make_times(span, fixed, _STEPS if free else steps, grid, None, None)


def _linear(sde: SDE) -> LinearSDE:
    if "kernel" not in sde.offers:
        raise TypeError(
            f"check_equivalence runs on exact models, which need a LinearSDE; {sde!r} has no "
            "Gaussian kernel"
        )
    return cast(LinearSDE, sde)


def _compared(run: Run) -> Iterator[Comparison]:
    found = agree(run.labels[0], *run.states(), run.case.times, run.bound)
    yield found._replace(hint=cause(run) or found.hint) if found.broken else found


Lam = float | Callable[[Tensor], Tensor]

_SHARES: Final = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Run:
    """Two solvers, each with its model and stochasticity, on one case."""

    case: Case
    pair: tuple[Solver, Solver]
    models: tuple[ScoreModel, ScoreModel]
    lams: tuple[Lam, ...]
    labels: tuple[str, str]
    bound: float
    refinable: bool

    def states(self, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        """What each makes of the start, at all times of the grid."""
        found = []
        for solver, model, lam in zip(self.pair, self.models, self.lams, strict=True):
            with evaluating(model):
                found.append(self.case.solve(solver, lam, model=model, noise=noise))
        return found[0], found[1]

    def short(self, share: float) -> Run:
        """On one step, that share of the middle interval of the grid."""
        t, s = self.case.grid[(k := (len(self.case.grid) - 1) // 2) : k + 2]
        return replace(self, case=replace(self.case, grid=(t, t + share * (s - t))))


def cause(run: Run) -> str:
    """The likely one, "" where none is recognised."""
    if run.models[0] is not run.models[1] and (found := _misread(run)):
        return found
    draws = [solver.stochastic for solver in run.pair]
    if draws[0] != draws[1]:
        one, other = (run.labels[i] for i in (draws.index(True), draws.index(False)))
        return f"{one} draws noise and {other} does not"
    if draws[0] and (found := _noise(run)):
        return found
    return _order(run) if run.refinable else ""


def _misread(run: Run) -> str:
    """Whether a network of one model, read as another prediction, is the other model; else how
    their noises differ.
    """
    t = run.case.times[len(run.case.times) // 2]
    x = run.case.start(t)
    for i, name in ((1, "b"), (0, "a")):
        mine, due = run.models[i], _noise_of(run.models[1 - i], x, t)
        for way in PREDICTIONS:
            read = copy.copy(mine)
            read.predicts = way
            if way != mine.predicts and _close(_noise_of(read, x, t), due, run.bound):
                return (
                    f"the network of {name} predicts {way}, and is declared to predict "
                    f"{mine.predicts}"
                )
    one, other = (_noise_of(model, x, t).numpy() for model in run.models)
    slip = likely_slip(one, other)
    return f"their noise predictions differ by {slip}" if slip else ""


def _noise_of(model: ScoreModel, x: Tensor, t: Tensor) -> Tensor:
    try:
        with evaluating(model):
            return model.noise(x, t)
    except ValueError:
        return torch.full_like(x, torch.nan)


def _noise(run: Run) -> str:
    """Whether only the noise differs, and how."""
    still = run.states(Still((run.case.rows, *run.case.law.event)))
    if not _close(*still, run.bound):
        return ""
    one, other = (noisy[1] - quiet[1] for noisy, quiet in zip(run.states(), still, strict=True))
    ratio = float((one * other).sum() / other.square().sum()) if bool(other.any()) else float("nan")
    if not _close(one, ratio * other, 1e-6):
        return (
            "without noise they agree: the noise is of another stream or number, or of more than "
            "one draw"
        )
    if abs(ratio - 1) < 1e-6:
        return "without noise, and in the first step, they agree: the noise of later steps differs"
    named = likely_slip(one.numpy(), other.numpy())
    known = f" ({named})" if named and "constant" not in named else ""
    return (
        f"without noise they agree: the noise of the first has {ratio:.6g} times the size in the "
        f"first step{known}"
    )


def _order(run: Run) -> str:
    """How fast one step of the one approaches one step of the other as it shrinks."""
    gaps = []
    for share in _SHARES:
        one, other = run.short(share).states()
        gaps.append(float((one[-1] - other[-1]).abs().max()))
    if not all(0 < gap < float("inf") for gap in gaps):
        return ""
    power = fitted_order(gaps, 10.0)
    said = f"one step h differs as h^{power:.1f}"
    if power >= 1.3:
        return f"two discretizations of one process: {said}"
    kind = "drift" if power >= 0.75 else "amount of noise (stochasticity, eta)"
    return f"{said}: another {kind}"


def _close(given: Tensor, expected: Tensor, bound: float) -> bool:
    size: Tensor = expected.abs().max()
    return bool((given - expected).abs().max() <= bound * size)
