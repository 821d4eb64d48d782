"""Exponential multistep methods: polynomials through predictions of earlier steps, integrated
exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.exponential.flow import Flow
from sdediff.solvers.exponential.forms import Points
from sdediff.solvers.exponential.singlestep import Exponential, plain_step
from sdediff.solvers.exponential.stages import (
    Move,
    Plain,
    Stages,
    Table,
    evaluate,
    evaluations,
    in_all_rows,
    move,
    plan_moves,
    plan_plain,
    plan_stages,
    pseudo,
    run_stages,
    table,
    terms,
)
from sdediff.solvers.given import integer
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Step

__all__ = ["ExponentialMultistep"]


class _Plan(NamedTuple):
    at: Any  # an `Evaluation` in the solver's form; None where the step is of order 1 in data form
    correct: Move | None  # of the step before, with the prediction at its end
    go: Move | Stages | Plain


@dataclass(frozen=True, repr=False)
class ExponentialMultistep(Exponential):
    """x_s = S_s / S_t x + the integral of the polynomial through the last ``order`` predictions:
    Adams and Bashforth's methods for the exact form of the equation, one evaluation a step.

    ``corrector``: with k > 0 (None: ``order``) each state is corrected, once the network has been
    evaluated there, by the polynomial through that prediction and the k before, at no further
    evaluation (UniC: Zhao et al. 2023, arXiv 2302.04867); the last state is not.
    ``startup``: ``"exact"`` takes single steps for as long as history is too short, which keeps the
    order, at `startup_evaluations` more; ``"published"`` begins with lower orders, which caps the
    order at 2 (at 3 with a corrector); ``"heun"`` begins with a pseudo Heun step and goes on with
    lower orders, which caps it at 3, and ``"runge-kutta"`` takes pseudo Runge-Kutta steps of four
    evaluations for as long as history is too short (`PLMS` and `PNDM`). A step to sigma = 0 is of
    order 1, but in noise form and sigma / alpha, where polynomials can be integrated up to there
    (`LMS`).
    ``lower_final``: lower the order again towards the end, as published codes do for few steps.

    Without noise the order is ``order``, and one more with a corrector of that many. As an SDE
    (``sde``), strong order 1 and weak order 2 at most, whatever the polynomials: a path is nowhere
    smooth.
    """

    corrector: int | None = 0
    startup: Literal["exact", "published", "heun", "runge-kutta"] = "exact"
    lower_final: bool = False

    has_memory = True

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.corrector is not None:
            kind = "an int from 0 (none) to 4, or None for the order"
            _ = integer(f"{name}: corrector", self.corrector, 0, 4, kind=kind)

    @property
    def past(self) -> int:
        """How many earlier predictions the corrector takes."""
        return self.order if self.corrector is None else self.corrector

    @property
    def _full(self) -> int:
        return max(self.order, min(self.order, self.past) + 1 if self.past else 0)

    @property
    def deterministic_order(self) -> float:
        full = self._full
        ramp = 3 if self.past or self.startup == "heun" else 2
        whole = self.startup in ("exact", "runge-kutta") and not self.sde
        smooth = 2 if self.moments == "uniform" else full
        return min(full, smooth, 2 if self.lower_final else full, full if whole else ramp)

    @property
    def weak_order(self) -> float:
        return min(2, self._full)

    @property
    def _single(self) -> tuple[int, Table]:
        """How many steps are single steps, and of which method."""
        if self.sde or self.startup == "published":
            return 0, table(1)
        if self.startup == "heun":
            return min(1, self._full - 1), pseudo(2)
        if self.startup == "runge-kutta":
            return max(self.order, self.past) - 1, pseudo(4)
        count = max(0, self._full - 2 - (self.past > 0))
        return count, table(min(4, max(1, self._full - 1)))

    @property
    def startup_evaluations(self) -> int:
        """Evaluations of the first steps beyond one a step."""
        count, method = self._single
        return count * (len(method.c) - 1)

    @property
    def evaluations(self) -> int:
        """Of a step after the first ones."""
        return 1

    def cost(self, plan: _Plan) -> int:
        return len(plan.go.at) if isinstance(plan.go, Stages) else 1

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        flow, steps = self.flow(problem), len(times) - 1
        points, inside, ends = self._split(flow, times)
        single, method = self._single
        go: dict[int, Move | Stages | Plain] = {}
        first, rest = inside[:single], inside[single:]
        if first:
            a, b = _pairs(points, first)
            moments = self.moments if method.order == 2 else "exact"
            go.update(zip(first, plan_stages(flow, a, b, method, moments), strict=True))
        usable = in_all_rows(flow.bounded(points)).tolist()
        closing = [i for i in ends if self._closes(flow, points, i, usable)]
        ends = [i for i in ends if i not in closing]
        if ends:
            go.update(zip(ends, plan_plain(problem, *_pairs(points, ends)), strict=True))
        for some in (rest, closing):
            go.update(self._moves(flow, points, some, self.order, steps, usable, end=False))
        corrected = [i for i in rest if i < steps - 1] if self.past else []
        correct = self._moves(flow, points, corrected, self.past, steps, usable, end=True)
        forms = [i for i in range(steps) if not isinstance(go[i], Plain)]
        at = (
            dict(zip(forms, evaluations(flow, points.part(torch.tensor(forms))), strict=True))
            if forms
            else {}
        )
        return [_Plan(at.get(i), correct.get(i - 1), go[i]) for i in range(steps)]

    def _closes(self, flow: Flow, points: Points, i: int, usable: list[bool]) -> bool:
        """Whether step i goes to sigma = 0 by the polynomial of the steps before."""
        if self.sde or self.moments != "exact" or not usable[i]:
            return False
        return bool(flow.closes(points.part(slice(i + 1, i + 2))).all())

    def _moves(
        self,
        flow: Flow,
        points: Points,
        which: list[int],
        most: int,
        steps: int,
        usable: list[bool],
        *,
        end: bool,
    ) -> dict[int, Move]:
        """Moves over the intervals ``which``, by polynomials through at most ``most`` past nodes,
        and the end's if asked.
        """
        counts: dict[int, list[int]] = {}
        for i in which:
            count = min(most, i + 1, steps - i if self.lower_final else most)
            counts.setdefault(
                count if all(usable[i + 1 - count : i + 1]) else count - 1, []
            ).append(i)
        moves: dict[int, Move] = {}
        for count, some in counts.items():
            a, b = _pairs(points, some)
            nodes = [points.v[torch.tensor(some) - k] for k in range(count)]
            nodes[1:1] = [b.v] if end else []
            std = flow.std(a, b) if self.sde and not end else None
            moves.update(zip(some, plan_moves(flow, a, b, nodes, self.moments, std), strict=True))
        return moves

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        """One step; the state is the uncorrected part of the last one and the predictions
        before.
        """
        form = self._form
        if isinstance(plan.go, Plain):
            taken, data = plain_step(problem, x, plan.go, noise if self.sde else None)
            last = form.from_data(x, data, plan.go.at.alpha, plan.go.at.sigma)
            return taken._replace(state=(taken.x, *last))
        newest = evaluate(problem, form, x, plan.at)
        before = [state[i : i + len(newest)] for i in range(1, len(state), len(newest))]
        # the state as the terms of a sum: corrected, it is never made
        start: list[tuple[Number, Tensor]] = [(1.0, x)]
        if plan.correct is not None:
            nodes = [before[0], newest, *before[1:]][: len(plan.correct.weights)]
            start = [(1.0, state[0]), *terms(plan.correct.weights, nodes)]
        remembered = [newest, *before][: max(self.order - 1, self.past, 1)]
        past = [each for node in remembered for each in node]
        if isinstance(plan.go, Stages):
            moved, mean, _ = run_stages(
                problem, form, self._single[1], weighted(*start), newest, plan.go, noise
            )
            return Step(moved, mean, (moved, *past))
        nodes = [newest, *before][: len(plan.go.weights)]
        fresh = [(plan.go.std, noise.over(plan.at.t, plan.go.s))] if self.sde else []
        if not self.past:
            mean = move(x, plan.go, nodes)
            # Nothing will be corrected, so the first place is idle: it holds no other tensor alive.
            return Step(weighted((1.0, mean), *fresh), mean, (past[0], *past))
        base = weighted(*((plan.go.keep * c, each) for c, each in start), *fresh)
        moved = weighted((1.0, base), *terms(plan.go.weights, nodes))
        mean = weighted((1.0, moved), *((-std, z) for std, z in fresh))
        return Step(moved, mean, (base, *past))


def _pairs(points: Points, which: list[int]) -> tuple[Points, Points]:
    i = torch.tensor(which)
    return points.part(i), points.part(i + 1)
