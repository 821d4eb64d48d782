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
    "Poly",
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
    "pseudo",
    "run_stages",
    "table",
    "terms",
    "unbounded",
]

Nodes = tuple[int, ...]


class Poly(NamedTuple):
    """``weight`` times the polynomial through the predictions of the stages ``nodes``.

    It is integrated up to the stage it serves; with ``to``, up to that place in the step.
    """

    nodes: Nodes
    weight: float = 1.0
    to: float | None = None


Sum = tuple[Poly, ...]


@dataclass(frozen=True)
class Table:
    """An explicit exponential Runge-Kutta method that interpolates.

    ``c``: the place of each stage in the step. ``through``: for each stage but the first, and for
    the end, the sum of polynomials that takes the place of the predictions. ``low``: the end's, of
    an embedded method of ``low_order``.
    """

    order: int
    c: tuple[float, ...]
    through: tuple[Sum, ...]
    low: Sum = ()
    low_order: int = 0


def table(order: int, places: Sequence[float] = ()) -> Table:
    """The method of an order from 1 to 4; ``places`` are those of the later stages of the methods
    of orders 2 and 3, by default 1/2, and 1/3 and 2/3.
    """
    constant, linear = (Poly((0,)),), (Poly((0, 1)),)
    if order == 1:
        return Table(1, (0,), (constant,))
    if order == 2:
        (r,) = places or (0.5,)
        return Table(2, (0, r), (constant, linear), constant, 1)
    if order == 3:
        a, b = places or (1 / 3, 2 / 3)
        # Hochbruck and Ostermann 2005, eq. 5.9. With b = 2/3, Radau's node, gamma is 0: a
        # polynomial of degree 1 through that node has the order of one of degree 2.
        gamma = (3 * b - 2) * b / ((2 - 3 * a) * a) if b != 2 / 3 else 0.0
        if not gamma:
            return Table(3, (0, a, b), (constant, linear, (Poly((0, 2)),)), linear, 2)
        share = gamma * a / (gamma * a + b)
        last = (*linear, Poly((0, 1), gamma, a), Poly((0,), -gamma, a))
        end = (Poly((0, 1), share), Poly((0, 2), 1 - share))
        return Table(3, (0, a, b), (constant, last, end), linear, 2)
    # Of the methods of four stages and order 4 (Kutta's), the one whose every stage interpolates:
    # c_3 = 1/2 makes stage 3 exact for degree 1, and then c_2 = 1/3 makes stage 4 exact for degree
    # 2; the end is Simpson's.
    through = (constant, linear, (Poly((0, 1, 2)),), (Poly((0, 2, 3)),))
    return Table(4, (0, 1 / 3, 0.5, 1), through, linear, 2)


def pseudo(order: int) -> Table:
    """Heun's method (order 2) or the classical one of order 4, of which each stage and the end go
    from the start by DDIM's transfer, with a mean of predictions: the pseudo Runge-Kutta methods of
    Liu et al. 2022 (arXiv 2202.09778, eq. 13).
    """
    if order == 2:
        return Table(2, (0, 1), (_mean(1), _mean(1, 1)))
    through = (_mean(1), _mean(0, 1), _mean(0, 0, 1), _mean(1, 2, 2, 1))
    return Table(4, (0, 0.5, 0.5, 1), through)


def _mean(*weights: int) -> Sum:
    """The mean of the stages' predictions by ``weights``, as polynomials of degree 0."""
    return tuple(Poly((i,), w / sum(weights)) for i, w in enumerate(weights) if w)


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
    return _moves(flow, a, b, flow.weights(a, b, nodes, moments), std)


def _moves(
    flow: Flow, a: Points, b: Points, weights: Sequence[Sequence[Tensor]], std: Tensor | None
) -> list[Move]:
    """Moves by the weights of each node's predictions."""
    keeps, stds, *columns = flow.problem.coefs(
        len(a.u),
        flow.keep(a, b),
        0.0 if std is None else std,
        *itertools.chain.from_iterable(weights),
    )
    width = len(columns) // len(weights)  # predictions of a node
    each = (tuple(zip(*[iter(row)] * width, strict=True)) for row in zip(*columns, strict=True))
    return [Move(*row) for row in zip(keeps, each, b.t.unbind(), stds, strict=True)]


def _stages_of(through: Sum) -> list[int]:
    """The stages whose predictions a sum of polynomials takes."""
    return sorted({i for poly in through for i in poly.nodes})


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

    def moves(c: float, through: Sum) -> list[Move]:
        b, sums = ends[places.index(c)], dict[int, list[Tensor]]()
        for nodes, share, to in through:
            until = b if to is None else ends[places.index(to)]
            found = flow.weights(a, until, [points[i].v for i in nodes], moments, at=b)
            for i, weights in zip(nodes, found, strict=True):
                before = sums.get(i)
                sums[i] = [
                    share * w if before is None else before[k] + share * w
                    for k, w in enumerate(weights)
                ]
        return _moves(flow, a, b, [sums[i] for i in _stages_of(through)], None)

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

    def target(step: Move, through: Sum) -> Tensor:
        return move(x, step, [predictions[i] for i in _stages_of(through)])

    for step, place, at, through in zip(
        plan.moves, plan.places, plan.at[1:], table.through, strict=False
    ):
        y = target(step, through)
        predictions.append(evaluate(problem, form, y + shifts[place] if shifts else y, at))
    mean = target(plan.moves[-1], table.through[-1])
    error = None if plan.low is None else mean - target(plan.low, table.low)
    return mean + shifts[-1] if shifts else mean, mean, error
