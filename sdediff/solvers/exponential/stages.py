"""Single steps of exponential Runge-Kutta methods: predictions at stages inside the step, polynomials through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, entries, numbers, weighted
from sdediff.solvers.exponential.flow import Flow, Moments, Points, Straight, Weight
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
    "history",
    "move",
    "noise_of",
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

    ``c``: the place of each stage in the step. ``through``: for each stage but the first, and for the end, the stages that the
    polynomial goes through which is integrated up to there. ``low``: the end's, of an embedded method of ``low_order``.
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
        # DPM-Solver-3: with the last node at 2/3, Radau's, a polynomial of degree 1 has the order of one of degree 2.
        return Table(3, (0, 1 / 3, 2 / 3), ((0,), (0, 1), (0, 2)), (0, 1), 2)
    # Of the methods of four stages and order 4 (Kutta's), the one whose every stage interpolates: c_3 = 1/2 makes stage 3 exact for
    # degree 1, and then c_2 = 1/3 makes stage 4 exact for degree 2; the end is Simpson's.
    return Table(4, (0, 1 / 3, 0.5, 1), ((0,), (0, 1), (0, 1, 2), (0, 2, 3)), (0, 1), 2)


class Move(NamedTuple):
    """x_s = keep x + sum of weights times predictions + std z."""

    keep: Number
    weights: tuple[tuple[Number, ...], ...]  # of each node: one for each prediction of the form
    s: Tensor
    std: Number = 0.0


class Evaluation(NamedTuple):
    """Where the network is evaluated, and the two that its other prediction is made with."""

    t: Tensor
    alpha: Number
    sigma: Number


class Stages(NamedTuple):
    """A planned single step."""

    at: tuple[Evaluation, ...]  # of each stage
    moves: tuple[Move, ...]  # to each stage but the first, and to the end
    places: tuple[int, ...]  # which of the noises each move has
    noises: tuple[tuple[Tensor, Number, Number], ...]  # of each place in the step: its time, and keep and std up to there
    low: Move | None = None


class Plain(NamedTuple):
    """A step of order 1 in data form, which there is at the ends of time too."""

    at: Evaluation
    move: Move


def evaluate(problem: Problem, theta: float | Straight, x: Tensor, at: Evaluation) -> tuple[Tensor, ...]:
    """The predictions that a form takes, data, or noise, or both, or data - scale noise, by one evaluation."""
    if isinstance(theta, Straight):
        ratio = theta.scale / at.sigma
        return (problem.blend("data", x, at.t, -ratio, 1.0 + ratio * at.alpha),)
    return (problem.noise(x, at.t),) if theta == 0 else history(theta, x, problem.data(x, at.t), at)


def history(theta: float | Straight, x: Tensor, data: Tensor, at: Evaluation) -> tuple[Tensor, ...]:
    """The predictions that a form takes, of that of the data."""
    if theta == 1:
        return (data,)
    noise = weighted((1.0 / at.sigma, x), (-at.alpha / at.sigma, data))
    if isinstance(theta, Straight):
        return (weighted((1.0, data), (-theta.scale, noise)),)
    return (noise,) if theta == 0 else (data, noise)


def noise_of(theta: float | Straight, x: Tensor, found: Sequence[Tensor], alpha: Number, sigma: Number) -> Tensor:
    """The noise by the predictions that a form takes; x = alpha data + sigma noise."""
    if isinstance(theta, Straight):
        size = 1.0 / (theta.scale * alpha + sigma)
        return weighted((size, x), (-alpha * size, found[0]))
    return found[-1] if theta != 1 else weighted((1.0 / sigma, x), (-alpha / sigma, found[0]))


def terms(weights: Sequence[Sequence[Number]], nodes: Sequence[Sequence[Tensor]]) -> list[tuple[Number, Tensor]]:
    """What `weighted` adds up."""
    return [(w, q) for each, node in zip(weights, nodes, strict=True) for w, q in zip(each, node, strict=True)]


def numbers_of(weights: Sequence[Weight]) -> list[tuple[tuple[Number, ...], ...]]:
    """The weights of a step's nodes, a tuple a node, for each step."""
    columns = [each for weight in weights for each in weight if each is not None]
    width = len(columns) // max(1, len(weights))
    return [tuple(zip(*[iter(row)] * width, strict=True)) for row in entries(*columns)]


def plan_moves(flow: Flow, a: Points, b: Points, nodes: Sequence[Tensor], moments: Moments, std: Tensor | None) -> list[Move]:
    """A move for each interval."""
    weights = numbers_of(flow.weights(a, b, nodes, moments))
    stds: Sequence[tuple[Number, ...]] = [(0.0,)] * len(weights) if std is None else entries(std)
    rows = zip(entries(flow.keep(a, b)), weights, b.t.unbind(), stds, strict=True)
    return [Move(keep, each, s, size) for (keep,), each, s, (size,) in rows]


def order_one(a: Points, b: Points) -> tuple[Tensor, Tensor, Tensor]:
    """(keep, push, std) of x_s = keep x + push data + std z, the step of order 1 in data form from a to b: it has a limit where
    alpha is 0 at a, or sigma at b."""
    gone = torch.exp((a.mixing - b.mixing).nan_to_num(nan=-torch.inf))
    keep = b.sigma / a.sigma * gone
    return keep, b.alpha - keep * a.alpha, b.sigma * (1 - gone**2).clamp(min=0).sqrt()


def plan_plain(a: Points, b: Points) -> list[Plain]:
    """That step for each interval."""
    rows = zip(evaluations(a), b.t.unbind(), entries(*order_one(a, b)), strict=True)
    return [Plain(at, Move(kept, ((push,),), s, std)) for at, s, (kept, push, std) in rows]


def unbounded(flow: Flow, points: Points) -> Tensor:
    """Which of the intervals between the points end or begin where the form has no bound, (n,)."""
    bounded = flow.bounded(points)
    bounded = bounded.flatten(1).all(dim=1) if bounded.ndim > 1 else bounded
    return ~(bounded[:-1] & bounded[1:])


def evaluations(points: Points) -> list[Evaluation]:
    """For each of the times."""
    return [Evaluation(t, *row) for t, row in zip(points.t.unbind(), entries(points.alpha, points.sigma), strict=True)]


def move(x: Tensor, step: Move, nodes: Sequence[Sequence[Tensor]], z: Tensor | None = None) -> Tensor:
    """The state after a move."""
    noise: list[tuple[Number, Tensor]] = [] if z is None else [(step.std, z)]
    return weighted((step.keep, x), *terms(step.weights, nodes), *noise)


def plan_stages(
    flow: Flow, a: Points, b: Points, table: Table, moments: Moments, *, stochastic: bool = False, embedded: bool = False
) -> list[Stages]:
    """A single step for each interval, with the table's lower method where it is ``embedded``."""
    points = [a if c == 0 else b if c == 1 else flow.between(a, b, c) for c in table.c]
    for each in points:
        flow.problem.prepare(each.t)
    # The path of the noise is drawn in pieces, between the places where stages are.
    places = sorted({*table.c[1:], 1.0})
    ends = [b if c == 1 else points[table.c.index(c)] for c in places]
    pairs = list(zip([a, *ends[:-1]], ends, strict=True)) if stochastic else []
    noises: list[tuple[tuple[Tensor, Number, Number], ...]] = [()] * len(a.u)
    if pairs:
        numbered = (zip(y.t.unbind(), numbers(flow.keep(x, y)), numbers(flow.std(x, y)), strict=True) for x, y in pairs)
        noises = list(zip(*numbered, strict=True))

    def moves(c: float, through: Nodes) -> list[Move]:
        return plan_moves(flow, a, ends[places.index(c)], [points[i].v for i in through], moments, None)

    targets = [*table.c[1:], 1.0]
    steps = list(zip(*(moves(c, through) for c, through in zip(targets, table.through, strict=True)), strict=True))
    lows: Sequence[Move | None] = moves(1.0, table.low) if embedded else [None] * len(a.u)
    at, where = list(zip(*map(evaluations, points), strict=True)), tuple(map(places.index, targets))
    return [Stages(at[i], steps[i], where, noises[i], lows[i]) for i in range(len(a.u))]


def run_stages(
    problem: Problem, theta: float | Straight, table: Table, x: Tensor, first: tuple[Tensor, ...], plan: Stages, noise: StepNoise
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(state, the same without noise, embedded estimate of the local error); ``first`` are the predictions at the start."""
    shifts: list[Tensor] = []
    here = plan.at[0].t
    for k, (there, keep, std) in enumerate(plan.noises):
        fresh = (std, noise.over(here, there, k))
        shifts.append(weighted((keep, shifts[-1]), fresh) if shifts else weighted(fresh))
        here = there
    found = [first]

    def target(step: Move, through: Nodes) -> Tensor:
        return move(x, step, [found[i] for i in through])

    for step, place, at, through in zip(plan.moves, plan.places, plan.at[1:], table.through, strict=False):
        y = target(step, through)
        found.append(evaluate(problem, theta, y + shifts[place] if shifts else y, at))
    mean = target(plan.moves[-1], table.through[-1])
    error = None if plan.low is None else mean - target(plan.low, table.low)
    return mean + shifts[-1] if shifts else mean, mean, error
