"""A comparison under way: the reference, then one solve after the other, the cheapest first.

Among several processes (`sdediff.processes`) the samples of each solve are divided; what clocks
decide is decided, and what solves gave is measured, by the first process for all.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.comparison.allowance import Allowance, OutOfTimeError
from sdediff.comparison.candidates import Job
from sdediff.comparison.measuring import RealData, Solve, errors_of, law_of, quality_of
from sdediff.comparison.record import Comparison, Errors, Law, Quality, Reference, Row
from sdediff.comparison.reference import (
    Truth,
    fixed,
    flow_draws,
    tolerance_of,
    truth,
    truth_in,
)
from sdediff.comparison.written import call
from sdediff.metrics.extractors import extractor
from sdediff.processes import current
from sdediff.progress import Bar, progress_bar
from sdediff.protocols import Facts
from sdediff.solvers import Solution, Solver

__all__ = ["Comparing"]

_REFERENCE: Final = 400.0
"""Evaluations of the batch that the reference, its check and the reference set take, about; twice
as many where they are in double precision.
"""
_DOUBLE: Final = 1e-6
"""Tolerances below are of double precision."""
_TIGHT, _FIXED = 1 / 3, 1 / 4
"""The shares of the seconds left that a tight reference may have, and then one of fixed steps."""
_STEPS: Final = 20, 1000
"""The fewest and the most of these steps."""
_LEAST: Final = 16
_PROBE: Final = 2
_CAP: Final = 10
"""How many times the largest number of evaluations a sample of an adaptive solver may take."""
_ENOUGH: Final = 2
"""How many times that its mean may be, for it to be run at a tighter tolerance."""
_BAD: Final = 1e-2


@dataclass
class Comparing:
    """A comparison under way; ``result`` is what there is of it."""

    solve: Solve
    known: Facts
    jobs: list[Job]
    seed: int
    taken: Any
    allowance: Allowance
    real: RealData | None
    asked: int
    """How many samples there are if time allows."""
    drawn: Tensor | None = None
    """Draws of the law asked for; where the user gave none, those of the flow, once there are."""
    unseen: Quality | None = None
    """What held-out data have in place of samples."""
    truth: Truth | None = None
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def result(self) -> Comparison:
        """What was found so far."""
        nothing = Reference("", 0.0, None, "", "there is none")
        reference = nothing if self.truth is None else self.truth.facts
        notes = [*self.notes, *self.solve.warned]
        if reference.error is not None and reference.error.median > _BAD:
            notes.append(
                f"the reference is off by {reference.error.median:.2g}, the median of samples: "
                "errors mean nothing below that; pass reference=, a smaller tolerance"
            )
        flow = self.taken["against"] is None
        features = self.taken["features"]
        named = "" if features is None else extractor(features).name
        return Comparison(
            model=type(self.solve.model).__name__,
            shape=self.solve.shape,
            seed=self.seed,
            data_std=self.known.data_std,
            reference=reference,
            rows=tuple(sorted(self.rows, key=_place)),
            against="the probability flow, from other starts" if flow else "the law given",
            flow=flow,
            features=named,
            real=self.unseen,
            notes=tuple(notes),
            seconds=self.allowance.gone,
        )

    def run(self) -> None:
        """Make the reference and all solves."""
        total = _REFERENCE + sum(job.expected for job in self.jobs if not job.refused)
        show = self.taken["progress"] and current().first
        with progress_bar("comparing", total=total, show=show) as bar:
            self._prepare(bar)
            done = _REFERENCE
            for job in self.jobs:
                bar.update(done, job.candidate.name)
                self.rows.append(self._row(job))
                done += 0.0 if job.refused else job.expected
            bar.update(total)

    def _prepare(self, bar: Bar) -> None:
        """The reference, and draws of the law asked for."""
        bar.update(0, "reference")
        pace = None
        try:
            if self.allowance.seconds is not None:
                pace = self._fit_to_time()
            with self.allowance.share(_TIGHT):
                self.truth = truth(self.solve, self.known, self.taken["reference"], self.seed)
                bar.update(_REFERENCE / 2, "law")
                self._draw()
        except OutOfTimeError:
            self._prepare_in_steps(pace)

    @property
    def _lacks_draws(self) -> bool:
        return self.drawn is None and any(job.stochastic for job in self.jobs)

    def _draw(self, steps: int | None = None) -> None:
        if self._lacks_draws:
            self.drawn = flow_draws(self.solve, self.known, self.seed, steps=steps)

    def _prepare_in_steps(self, pace: float | None) -> None:
        """The same by fixed steps, of which it is known what they take: ``pace`` seconds an
        evaluation.
        """
        solver = fixed(self.solve, self.known)
        stages = 1 if solver is None else solver.evaluations
        solves = 1.5 * (self.truth is None) + self._lacks_draws  # it is checked by half its steps
        left = current().once(lambda: self.allowance.left)
        allowed = _FIXED * left / max(1.0, solves)
        least, most = _STEPS
        a_step = max(1e-9, (pace or math.inf) * stages * self.known.cost)
        steps = min(int(allowed / a_step), most)
        lacks = "reference" if self.truth is None else "set of draws of the law"
        try:
            if steps < least:
                raise OutOfTimeError
            if self.truth is None:
                self.truth = truth_in(self.solve, self.known, steps, self.seed)
            self._draw(steps)
        except OutOfTimeError:
            why = f"the seconds were spent before the {lacks} was complete"
        else:
            why = f"a tight {lacks} takes too long, so it is by {steps} fixed steps"
        self.notes.append(f"{why}: give more seconds, or fewer samples")

    def _fit_to_time(self) -> float | None:
        """Watch the clock from now on; fewer samples where the reference would take too long. The
        seconds that an evaluation takes, None where the model fails.
        """
        watched: Any = {**self.solve.shared, "callback": self.allowance.watch()}
        self.solve = replace(self.solve, shared=watched)
        try:
            self._timed(steps=1, seed=self.seed)  # the first call of a network takes longer
            found, seconds = self._timed(steps=_PROBE, seed=self.seed)
        except OutOfTimeError:
            raise
        except Exception:  # of the user's network: the reference meets it again, and says so
            return None
        spent = float(found.nfe.double().mean())
        expected = _REFERENCE * (1 if tolerance_of(self.known) > _DOUBLE else 2)
        allowed = _TIGHT * (self.allowance.seconds or 0.0) / expected
        pace = seconds / max(1.0, spent)
        count = self.solve.shape[0]
        fewer = max(_LEAST, int(count * allowed / pace)) if pace > allowed else count
        if fewer < count and not self._takes(fewer):
            self.notes.append(
                f"the model is one of {count} samples, as it has an outcome for each: there are no "
                "fewer of them, and the reference may take more than its share of the time"
            )
        elif fewer < count:
            self.solve = self.solve.fewer(fewer)
            self.notes.append(
                f"{fewer} samples in place of {count}, so that the reference is there in time"
            )
        share = self.solve.shape[0] / count
        self.allowance.learn("", spent, seconds * share)
        return pace * share

    def _takes(self, count: int) -> bool:
        """Whether the model can be asked for the first ``count`` samples alone."""
        try:
            self.solve.fewer(count)(steps=1, seed=self.seed)
        except (ValueError, TypeError):
            return False
        return True

    def _timed(self, **options: Any) -> tuple[Solution, float]:
        """A solve and its wall time."""
        self._wait()
        began = time.perf_counter()
        found = self.solve(**options)
        self._wait()
        return found, current().once(lambda: time.perf_counter() - began)

    def _wait(self) -> None:
        if self.known.device.type == "cuda":
            torch.cuda.synchronize(self.known.device)

    def _row(self, job: Job) -> Row:
        """What the solve of a job gave, or why it gave nothing."""
        each = job.candidate
        steps = None if job.known is not None and job.known.times is not None else job.steps
        spaced: Any = {"grid": each.grid, "stochasticity": each.stochasticity}
        row = Row(
            solver=each.name,
            code=call(
                (self.asked, *self.solve.shape[1:]),
                job.solver,
                _own(job),
                steps=steps,
                seed=self.seed,
                shared=self.solve.shared,
                **spaced,
            ),
            stochastic=job.stochastic,
            budget=job.budget,
            tolerance=job.tolerance,
            steps=steps,
        )
        if job.refused:
            return replace(row, note=f"left out: {job.refused}")
        if not current().once(lambda: self.allowance.fits(each.name, job.expected)):
            return replace(row, note="left out: no time")
        if each.adaptive:
            most = max([20, *(other.budget or 0 for other in self.jobs)])
            spaced = {"max_nfe": _CAP * most}
            spent = [other.nfe or 0.0 for other in self.rows if other.solver == each.name]
            if spent and max(spent) > _ENOUGH * most:
                why = f"at a looser tolerance it took {max(spent):.0f} evaluations already"
                return replace(row, note=f"left out: {why}")
        try:
            found, seconds = self._timed(solver=job.solver, steps=steps, seed=self.seed, **spaced)
            return current().once(lambda: self._measured(row, job, found, seconds))
        except OutOfTimeError:
            return replace(row, note="left out: it was stopped when the time was over")
        except Exception as error:  # of the user's network, solver or features: others remain
            return replace(row, note=f"failed: {_told(error)}")

    def _measured(self, row: Row, job: Job, found: Solution, seconds: float) -> Row:
        began = time.perf_counter()
        nfe = found.nfe.double()
        good = found.status == 0
        backward = 0.0 if found.backward is None else float(found.backward.double().mean())
        note = ""
        if lost := int((~good).sum()):
            note = f"{lost} of {len(good)} samples failed: {found.failures[0]}"
        made = replace(
            row,
            nfe=float(nfe.mean()),
            slowest=int(nfe.max()),
            backward=backward,
            seconds=seconds,
            error=self._error(job, found, good),
            note=note,
        )
        if int(good.sum()) >= 2:
            x = found.x[good.to(found.x.device)]
            made = replace(made, law=self._law(x), quality=self._quality(x))
        self.allowance.learn(row.solver, float(nfe.mean()), seconds)
        self.allowance.around(time.perf_counter() - began)
        return made

    def _error(self, job: Job, found: Solution, good: Tensor) -> Errors | None:
        exact = self.truth
        if job.stochastic or exact is None or exact.x is None or exact.good is None:
            return None
        x = self.solve.inside(found.x).clone()
        x[~good.to(x.device)] = torch.nan
        return errors_of(x, self.solve.inside(exact.x), exact.good)

    def _law(self, x: Tensor) -> Law | None:
        if self.drawn is None:
            return None
        return law_of(self.solve.inside(x), self.solve.inside(self.drawn), self.seed)

    def _quality(self, x: Tensor) -> Quality | None:
        return None if self.real is None else quality_of(x, self.real, self.solve.inside)


def _own(job: Job) -> str:
    """A solver that no short code makes, as what the user called it."""
    each, solver = job.candidate, job.solver
    if each.adaptive:
        given: Any = solver
        return f"dataclasses.replace({each.code}, rtol={given.rtol!r}, atol={given.atol!r})"
    made = not isinstance(each.solver, Solver) and each.solver is not None
    return each.code + (f"({job.steps})" if made else "")


def _place(row: Row) -> tuple[Any, ...]:
    """Where a row stands: without noise first, then by cost, the best first; tolerances fall."""
    value = row.value("energy" if row.stochastic else "median")
    kind = (row.stochastic, row.tolerance is not None, row.budget is None, row.budget or 0)
    if row.tolerance is not None:
        return (*kind, row.solver, -row.tolerance)
    return (*kind, value is None, value or 0.0, row.solver)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
