"""Whether two solvers, or two models, give the same samples; and the named equivalences of an
SDE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from sdediff.arguments import Grid, Span, check_stochasticity, intervals, make_times
from sdediff.exact import GaussianMixture
from sdediff.exact.law import Law
from sdediff.model import ScoreModel
from sdediff.protocols import facts, is_model
from sdediff.sde import VE, VP, SubVP
from sdediff.solvers import DDIM, EulerMaruyama, Solver
from sdediff.solvers.given import nearest, real, whole
from sdediff.solvers.portable import Portable
from sdediff.testing.causes import Run, cause
from sdediff.testing.check import instance_of
from sdediff.testing.equivalences import EQUIVALENCES, Case, evaluate
from sdediff.testing.equivalences.case import default_cases
from sdediff.testing.equivalences.table import agree
from sdediff.testing.identity import settle
from sdediff.testing.report import Finding, Report

__all__ = ["EquivalenceError", "EquivalenceReport", "check_equivalence", "check_equivalences"]

_STEPS: Final = 10


@dataclass(frozen=True)
class EquivalenceReport(Report):
    """The findings of `check_equivalence` and `check_equivalences`; ``sde`` holds the repr of what
    was checked.
    """

    kind = "equivalence"


class EquivalenceError(Portable, ValueError):
    """Two things that should be one are not; ``report`` has all findings."""

    def __init__(self, report: Report, what: str = "breaks") -> None:
        self.report = report
        count = (
            "an equivalence"
            if len(report.failures) == 1
            else f"{len(report.failures)} equivalences"
        )
        head = f"{report.sde} {what}" if what != "breaks" else f"{report.sde} breaks {count}"
        super().__init__("\n".join([f"{head}:", *report.lines()]))


def check_equivalences(
    sde: Any, *, names: Iterable[str] | None = None, verbose: bool = True
) -> Report:
    """Check the named equivalences under an SDE, and raise `EquivalenceError` naming those that
    fail.

    Each of `EQUIVALENCES` (``names``: of these) holds for every linear SDE, or for those that have
    what it needs: DDPM's chain is the kernel, DDIM exponential Euler, EDM's sampler Heun on the
    sigma clock, and so on (docs/testing.md has the table). Each is checked at three settings:
    mixtures of different shapes, grids of 8, 4 and 1 steps over the usable range, three predictions
    (those that are costly at the first of them).
    What does not apply is skipped, by name; all of them are, under an SDE without a Gaussian
    kernel. An SDE that is not consistent breaks them as well: `check_sde` tells why.

    Prints a table unless ``verbose`` is false and returns it as a `Report`. Takes a few seconds.
    Raises TypeError for what is no SDE and ValueError for a name that is none.
    """
    instance = instance_of(sde, "check_equivalences")
    chosen = list(EQUIVALENCES) if names is None else list(names)
    for name in chosen:
        if name not in EQUIVALENCES:
            raise ValueError(
                f"no equivalence is called {name!r}{nearest(name, EQUIVALENCES)}; known: "
                f"{', '.join(EQUIVALENCES)}"
            )
    if "kernel" in instance.offers:
        cases = _cases(instance)
        findings = [_over(name, cases) for name in chosen]
    else:
        findings = [Finding(name, "skipped", detail="needs a Gaussian kernel") for name in chosen]
    return _settled(EquivalenceReport(repr(instance), tuple(findings)), verbose)


def _cases(sde: Any) -> list[Case]:
    try:
        with torch.inference_mode(False), torch.no_grad():
            return default_cases(sde)
    except Exception as error:
        raise ValueError(
            f"no grid can be made for {sde!r}: {error}; see what check_sde says of it"
        ) from error


def _over(name: str, cases: Sequence[Case]) -> Finding:
    """The first failure, with its case; else the largest deviation."""
    found = []
    for case in cases[:1] if EQUIVALENCES[name].costly else cases:
        finding = evaluate(name, case)
        if finding.verdict == "fail":
            return finding._replace(detail=f"{finding.detail}, in {case!r}")
        found.append(finding)
    held = [finding for finding in found if finding.verdict == "ok"]
    return max(held, key=lambda finding: finding.deviation) if held else found[0]


def check_equivalence(
    a: Solver | ScoreModel,
    b: Solver | ScoreModel,
    *,
    sde: Any = None,
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
    seed = whole("seed", seed, kind="a non-negative int")
    rows = whole("rows", rows, 1)
    if not bound > 0 or not math.isfinite(bound):
        raise ValueError(f"bound must be a positive number, got {bound!r}")
    law = (
        GaussianMixture([[-0.8, 0.4], [0.9, 0.1], [0.0, -1.0]], [0.3, 0.5, 0.2], [0.5, 0.3, 0.2])
        if data is None
        else data
    )
    if not isinstance(law, Law):
        raise TypeError(
            f"data must be a law of sdediff.exact such as GaussianMixture(...), got {data!r}"
        )
    runs = []
    for pair, process, models, name in _pairs(a, b, sde, solver, law):
        times = _times(pair, process, steps, grid)
        lams = tuple(
            check_stochasticity(each, stochasticity if each.diffuses else None, times)
            for each in pair
        )
        case = Case(process, law, tuple(times.tolist()), "v", seed, rows)
        labels = (
            (repr(a), repr(b))
            if isinstance(a, Solver)
            else (f"a ({models[0].predicts})", f"b ({models[1].predicts})")
        )
        refinable = not any(each.adaptive or each.times is not None for each in pair)
        run = Run(case, pair, models, lams, labels, bound, refinable=refinable)
        runs.append((name, run))
    with torch.inference_mode(False), torch.no_grad():
        findings = [_compared(name, run) for name, run in runs]
    one, other = runs[0][1].models
    who = (
        f"{a!r} and {b!r}"
        if isinstance(a, Solver)
        else f"a model of {one.predicts} and one of {other.predicts}"
    )
    return _settled(EquivalenceReport(who, tuple(findings)), verbose, "differ")


def _pairs(
    a: Any, b: Any, sde: Any, solver: Solver | None, law: Law
) -> list[tuple[tuple[Solver, Solver], Any, tuple[Any, Any], str]]:
    """What to run: two solvers, the SDE, two models, and a name for it."""
    if isinstance(a, Solver) and isinstance(b, Solver):
        if solver is not None:
            raise ValueError("solver= is for two models; two solvers are compared with one another")
        discrete = next((each for each in (a, b) if each.times is not None), None)
        if discrete is not None and sde is None:
            raise ValueError(
                f"{discrete!r} is a discrete model with a grid of its own: pass the sde= that it "
                "was made from"
            )
        processes = (
            [VP(), VE(), SubVP()]
            if sde is None
            else [_linear(instance_of(sde, "check_equivalence"))]
        )
        return [((a, b), each, (law.model(each),) * 2, f"on {each!r}") for each in processes]
    if is_model(a) and is_model(b):
        process = _linear(a.sde if sde is None else instance_of(sde, "check_equivalence"))
        for name, model in (("a", a), ("b", b)):
            _same_schedule(process, model.sde, name)
            if facts(model).device.type != "cpu":
                raise ValueError(
                    f"check_equivalence runs on the host, in float64: move the model {name} "
                    "there, by .cpu()"
                )
        chosen: list[Solver] = [DDIM(), EulerMaruyama()] if solver is None else [solver]
        return [((each, each), process, (a, b), f"by {each!r}") for each in chosen]
    hint = (
        "; write it with parentheses, as a value"
        if any(isinstance(each, type) for each in (a, b))
        else ""
    )
    raise TypeError(
        f"check_equivalence takes two solvers or two ScoreModels, got {a!r} and {b!r}{hint}"
    )


def _times(
    pair: tuple[Solver, Solver], sde: Any, steps: int | None, grid: Grid | None
) -> torch.Tensor:
    """The grid of the first discrete solver of the two, or else of the first with fixed steps, 10
    of them unless it is given.
    """
    fixed = min(pair, key=lambda each: (each.times is None, each.adaptive))
    free = fixed.times is None and not fixed.adaptive and intervals(steps, grid) is None
    span = Span(sde, sde.t_max, sde.t_min)
    return make_times(span, fixed, _STEPS if free else steps, grid, None, None)


def _linear(sde: Any) -> Any:
    if "kernel" not in sde.offers:
        raise TypeError(
            f"check_equivalence runs on exact models, which need a LinearSDE; {sde!r} has no "
            "Gaussian kernel"
        )
    return sde


def _same_schedule(sde: Any, other: Any, name: str) -> None:
    t = torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64)
    if other is not sde and not all(
        torch.allclose(getattr(sde, c)(t), getattr(_linear(other), c)(t), rtol=1e-9, atol=0)
        for c in ("alpha", "sigma")
    ):
        raise ValueError(
            f"the model {name} belongs to {other!r}, not to {sde!r}: samples of two SDEs agree "
            "only up to scale"
        )


def _compared(name: str, run: Run) -> Finding:
    def comparisons() -> Any:
        found = agree(run.labels[0], *run.states(), run.case.times, run.bound)
        yield (
            found._replace(hint=cause(run) or found.hint)
            if found.deviation > found.bound
            else found
        )

    return settle(name, comparisons())


def _settled(report: Report, verbose: bool, what: str = "breaks") -> Report:
    if verbose:
        print(report)
    if not report.passed:
        raise EquivalenceError(report, what) from next(
            (f.error for f in report.failures if f.error is not None), None
        )
    return report
