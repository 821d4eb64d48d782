"""Single steps of exponential Runge-Kutta methods: predictions at stages inside the step,
polynomials through them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.exponential.flow import Flow, Moments
from sdediff.solvers.exponential.forms import Form, Points
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem

__all__ = [
    "Evaluation",
    "Move",
    "Plain",
    "Stages",
    "Table",
    "evaluate",
    "evaluations",
    "in_all_rows",
    "move",
    "order_one",
    "plan_moves",
    "plan_plain",
    "plan_stages",
    "run_stages",
    "table",
    "terms",
    "unbounded",
]

Nodes = tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """An explicit exponential Runge-Kutta method that interpolates.

    ``c``: the place of each stage in the step. ``through``: for each stage but the first, and for
    the end, the stages that the polynomial goes through which is integrated up to there. ``low``:
    the end's, of an embedded method of ``low_order``.
    """

    order: int
    c: tuple[float, ...]
    through: tuple[Nodes, ...]
    low: Nodes = ()
    low_order: int = 0


def table(order: int, r: float = 0.5) -> Table:
    """The method of an order from 1 to 4; ``r`` is where that of order 2 has its stage."""
    if order == 1:
        return Table(1, (0,), ((0,),))
    if order == 2:
        return Table(2, (0, r), ((0,), (0, 1)), (0,), 1)
    if order == 3:
        # DPM-Solver-3: with the last node at 2/3, Radau's, a polynomial of degree 1 has the order
        # of one of degree 2.
        return Table(3, (0, 1 / 3, 2 / 3), ((0,), (0, 1), (0, 2)), (0, 1), 2)
    # Of the methods of four stages and order 4 (Kutta's), the one whose every stage interpolates:
    # c_3 = 1/2 makes stage 3 exact for degree 1, and then c_2 = 1/3 makes stage 4 exact for degree
    # 2; the end is Simpson's.
    return Table(4, (0, 1 / 3, 0.5, 1), ((0,), (0, 1), (0, 1, 2), (0, 2, 3)), (0, 1), 2)


class Move(NamedTuple):
    """x_s = keep x + sum of weights times predictions + std z."""

    keep: Number
    weights: tuple[tuple[Number, ...], ...]  # of each node: one for each prediction of the form
    s: Tensor
    std: Number = 0.0


class Evaluation(NamedTuple):
    """Where the network is evaluated, and the two that its other prediction is made with."""

    at: Any  # the problem's entry; None where what is evaluated is there already
    t: Tensor
    alpha: Number
    sigma: Number


class Stages(NamedTuple):
    """A planned single step."""

    at: tuple[Evaluation, ...]  # of each stage
    moves: tuple[Move, ...]  # to each stage but the first, and to the end
    places: tuple[int, ...]  # which of the noises each move has
    # of each place in the step: its time, and keep and std up to there
    noises: tuple[tuple[Tensor, Number, Number], ...]
    low: Move | None = None


class Plain(NamedTuple):
    """A step of order 1 in data form, which there is at the ends of time too."""

    at: Evaluation
    move: Move


def evaluate(problem: Problem, form: Form, x: Tensor, at: Evaluation) -> tuple[Tensor, ...]:
    """The predictions of the form, by one evaluation."""
    return form.predictions(x, problem.evaluate(x, at.at), at.alpha, at.sigma)


def terms(
    weights: Sequence[Sequence[Number]], nodes: Sequence[Sequence[Tensor]]
) -> list[tuple[Number, Tensor]]:
    """What `weighted` adds up."""
    return [
        (w, q)
        for each, node in zip(weights, nodes, strict=True)
        for w, q in zip(each, node, strict=True)
    ]


def plan_moves(
    flow: Flow, a: Points, b: Points, nodes: Sequence[Tensor], moments: Moments, std: Tensor | None
) -> list[Move]:
    """A move for each interval."""
    weights = itertools.chain.from_iterable(flow.weights(a, b, nodes, moments))
    keeps, stds, *columns = flow.problem.coefs(
        len(a.u), flow.keep(a, b), 0.0 if std is None else std, *weights
    )
    width = len(columns) // len(nodes)  # predictions of a node
    each = (tuple(zip(*[iter(row)] * width, strict=True)) for row in zip(*columns, strict=True))
    return [Move(*row) for row in zip(keeps, each, b.t.unbind(), stds, strict=True)]


def order_one(a: Points, b: Points) -> tuple[Tensor, Tensor, Tensor]:
    """(keep, push, std) of x_s = keep x + push data + std z, the step of order 1 in data form from
    a to b: it has a limit where alpha is 0 at a, or sigma at b.
    """
    gone = torch.exp((a.mixing - b.mixing).nan_to_num(nan=-torch.inf))
    keep = b.sigma / a.sigma * gone
    return keep, b.alpha - keep * a.alpha, b.sigma * (1 - gone**2).clamp(min=0).sqrt()


def plan_plain(problem: Problem, a: Points, b: Points) -> list[Plain]:
    """That step for each interval."""
    numbers = problem.coefs(len(a.u), *order_one(a, b))
    at = problem.at(a.t, "data")
    rows = zip(at, a.t.unbind(), *problem.coefs(len(a.u), a.alpha, a.sigma), strict=True)
    moves = (
        Move(kept, ((push,),), s, std)
        for s, kept, push, std in zip(b.t.unbind(), *numbers, strict=True)
    )
    return [Plain(Evaluation(*row), move) for row, move in zip(rows, moves, strict=True)]


def unbounded(flow: Flow, points: Points) -> Tensor:
    """Which of the intervals between the points end or begin where the form has no bound for some
    row, (n,).
    """
    bounded = in_all_rows(flow.bounded(points))
    return ~(bounded[:-1] & bounded[1:])


def in_all_rows(holds: Tensor) -> Tensor:
    """Whether it holds of all rows, (n,), of bool (n,) or (n, rows)."""
    return holds.flatten(1).all(dim=1) if holds.ndim > 1 else holds


def evaluations(flow: Flow, points: Points, *, known: bool = False) -> list[Evaluation]:
    """For each of the times; ``known``: what is evaluated there is there already."""
    count = len(points.t)
    at = [None] * count if known else flow.at(points)
    rows = zip(
        at, points.t.unbind(), *flow.problem.coefs(count, points.alpha, points.sigma), strict=True
    )
    return [Evaluation(*row) for row in rows]


def move(
    x: Tensor, step: Move, nodes: Sequence[Sequence[Tensor]], z: Tensor | None = None
) -> Tensor:
    """The state after a move."""
    noise: list[tuple[Number, Tensor]] = [] if z is None else [(step.std, z)]
    return weighted((step.keep, x), *terms(step.weights, nodes), *noise)


def plan_stages(
    flow: Flow,
    a: Points,
    b: Points,
    table: Table,
    moments: Moments,
    *,
    stochastic: bool = False,
    embedded: bool = False,
    init_each_step: bool = False,
) -> list[Stages]:
    """A single step for each interval, with the table's lower method where it is ``embedded``.

    ``init_each_step``: a step is handed what its first stage evaluates.
    """
    points = [a if c == 0 else b if c == 1 else flow.between(a, b, c) for c in table.c]
    # The path of the noise is drawn in pieces, between the places where stages are.
    places = sorted({*table.c[1:], 1.0})
    ends = [b if c == 1 else points[table.c.index(c)] for c in places]
    pairs = list(zip([a, *ends[:-1]], ends, strict=True)) if stochastic else []
    noises: list[tuple[tuple[Tensor, Number, Number], ...]] = [()] * len(a.u)
    if pairs:
        sizes = (flow.problem.coefs(len(a.u), flow.keep(x, y), flow.std(x, y)) for x, y in pairs)
        numbered = (
            zip(y.t.unbind(), *size, strict=True) for (_, y), size in zip(pairs, sizes, strict=True)
        )
        noises = list(zip(*numbered, strict=True))

    def moves(c: float, through: Nodes) -> list[Move]:
        return plan_moves(
            flow, a, ends[places.index(c)], [points[i].v for i in through], moments, None
        )

    targets = [*table.c[1:], 1.0]
    steps = list(
        zip(
            *(moves(c, through) for c, through in zip(targets, table.through, strict=True)),
            strict=True,
        )
    )
    lows: Sequence[Move | None] = moves(1.0, table.low) if embedded else [None] * len(a.u)
    each = [evaluations(flow, point, known=init_each_step and point is a) for point in points]
    at, where = list(zip(*each, strict=True)), tuple(map(places.index, targets))
    return [Stages(at[i], steps[i], where, noises[i], lows[i]) for i in range(len(a.u))]


def run_stages(
    problem: Problem,
    form: Form,
    table: Table,
    x: Tensor,
    first: tuple[Tensor, ...],
    plan: Stages,
    noise: StepNoise,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(state, the same without noise, embedded estimate of the local error); ``first`` are the
    predictions at the start.
    """
    shifts: list[Tensor] = []
    start = plan.at[0].t
    for k, (end, keep, std) in enumerate(plan.noises):
        fresh = (std, noise.over(start, end, k))
        shifts.append(weighted((keep, shifts[-1]), fresh) if shifts else weighted(fresh))
        start = end
    predictions = [first]

    def target(step: Move, through: Nodes) -> Tensor:
        return move(x, step, [predictions[i] for i in through])

    for step, place, at, through in zip(
        plan.moves, plan.places, plan.at[1:], table.through, strict=False
    ):
        y = target(step, through)
        predictions.append(evaluate(problem, form, y + shifts[place] if shifts else y, at))
    mean = target(plan.moves[-1], table.through[-1])
    error = None if plan.low is None else mean - target(plan.low, table.low)
    return mean + shifts[-1] if shifts else mean, mean, error
