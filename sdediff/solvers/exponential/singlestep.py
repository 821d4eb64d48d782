"""Exponential Runge-Kutta methods: everything but the network's prediction is integrated exactly,
with nothing carried over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import weighted
from sdediff.solvers.exponential.flow import MOMENTS, Flow, Moments
from sdediff.solvers.exponential.forms import Form, FormName, Points, check_form, form_of
from sdediff.solvers.exponential.stages import (
    Plain,
    Stages,
    Table,
    evaluate,
    evaluations,
    move,
    plan_plain,
    plan_stages,
    run_stages,
    table,
    unbounded,
)
from sdediff.solvers.given import Share, check_choice, integer
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Adaptive, Solver, Step
from sdediff.solvers.variable import VARIABLES, VariableName

__all__ = ["Exponential", "ExponentialPair", "ExponentialSinglestep"]


@dataclass(frozen=True, repr=False)
class Exponential(Solver):
    """What the exponential integrators share: the form, and the polynomials that the network's
    predictions are taken for.

    ``form``: ``"data"``, ``"noise"``, or a number theta between, the share of the prediction that
    is put as data; the rest is put as noise (see `Mixture`); or any object with the methods of
    `Form`, such as `Straight`, whose share falls with the noise. ``variable``: what
    the polynomials are in, ``"log_snr"``, ``"sigma"`` (over alpha), ``"angle"`` (its arctangent,
    bounded at both ends of time) or ``"t"``. ``moments``: ``"exact"``, or a published
    simplification (see `Flow.weights`). ``sde``: solve the reverse SDE, at the problem's
    stochasticity, with the exact Gaussian integral.
    """

    order: int = 3
    form: FormName | float | Form = "data"
    variable: VariableName = "log_snr"
    moments: Moments = "exact"
    sde: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        _ = integer(f"{name}: order", self.order, 1, 4, kind="1, 2, 3 or 4")
        check_form(name, self.form)
        if self.sde and not self._form.stochastic:
            raise ValueError(
                f"{name}: form={self.form!r} is for the probability flow; take sde=False, or a "
                "number as the form"
            )
        check_choice(f"{name}: variable", self.variable, VARIABLES)
        check_choice(f"{name}: moments", self.moments, MOMENTS)

    @property
    def spacing(self) -> str:
        """Polynomials in the angle take long steps at both ends, where others are far from the
        predictions; without noise the longest.
        """
        if self.variable != "angle":
            return "logistic"
        return "central" if self.sde else "inner"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"marginal", "data", self._form.quantity})

    @property
    def _form(self) -> Form:
        return form_of(self.form)

    @property
    def stochastic(self) -> bool:
        return self.sde

    @property
    def solves_sde(self) -> bool:
        return self.sde

    def flow(self, problem: Problem) -> Flow:
        """The problem in the solver's form."""
        return Flow(problem, self.form, self.variable)

    def _split(self, flow: Flow, times: Tensor) -> tuple[Points, list[int], list[int]]:
        """The grid's points, and which intervals are bounded and which are not."""
        points = flow.points(times)
        if bool((points.sigma[:-1] == 0).any()):
            raise ValueError(
                f"{type(self).__name__} cannot step from sigma = 0: start at t_min > 0"
            )
        ends = unbounded(flow, points).tolist()
        return (
            points,
            [i for i, end in enumerate(ends) if not end],
            [i for i, end in enumerate(ends) if end],
        )


def plain_step(
    problem: Problem, x: Tensor, plan: Plain, noise: StepNoise | None
) -> tuple[Step, Tensor]:
    """A step of order 1 in data form, and the prediction of the data."""
    data = problem.evaluate(x, plan.at.at)
    mean = move(x, plan.move._replace(std=0.0), [(data,)])
    moved = (
        mean if noise is None else move(x, plan.move, [(data,)], noise.over(plan.at.t, plan.move.s))
    )
    return Step(moved, mean), data


@dataclass(frozen=True, repr=False)
class ExponentialSinglestep(Exponential):
    """An exponential Runge-Kutta method of order 1 to 4: predictions at stages inside the step, and
    nothing carried over.

    Orders 1 to 3 have DPM-Solver's stages (Lu et al. 2022, arXiv 2206.00927, Algorithms 1 and 2),
    order 4 has them at 1/3, 1/2 and 1; as many evaluations a step as the order. Steps that begin at
    alpha = 0 or end at sigma = 0 are of order 1. As an SDE the weak order is at most 2.

    ``r1``, ``r2``: the places of the stages in the step, shares of its length in ``variable``.
    Order 2 has one, 0 < r1 <= 1 (None: 1/2). Order 3 has two, 0 < r1 < r2 <= 1 with r1 farther
    than 0.01 from 2/3 (None: 1/3 and 2/3). The other orders have none to choose. DPM-Solver-3's
    own formula is of order 3 at r2 = 2/3 alone; for other r2 the weights are those of Hochbruck and
    Ostermann 2005 (SIAM Journal on Numerical Analysis 43, eq. 5.9), which are the same there.
    ``moments`` concerns order 2 alone.
    """

    r1: Share | None = None
    r2: Share | None = None

    usual: ClassVar[Mapping[int, tuple[float, ...]]] = {2: (0.5,), 3: (1 / 3, 2 / 3)}
    """The places of the stages where none are given, by the order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name, most = type(self).__name__, len(self.usual.get(self.order, ()))
        given = [each for each in ("r1", "r2")[most:] if getattr(self, each) is not None]
        if given:
            has = "stage r1 alone" if most else "no stage"
            raise ValueError(
                f"{name}: order {self.order} has {has} to place: drop {given[0]}, or take "
                f"order={'3' if given[0] == 'r2' else '2 or 3'}"
            )
        if most == 2:
            a, b = self._places
            if a >= b or abs(a - 2 / 3) < 0.01:
                raise ValueError(
                    f"{name}: order 3 takes stages r1 < r2 with r1 farther than 0.01 from 2/3, "
                    f"where the method has no order 3; got r1 = {a:.6g} and r2 = {b:.6g}"
                )

    @property
    def _places(self) -> tuple[float, ...]:
        given = zip((self.r1, self.r2), self.usual.get(self.order, ()), strict=False)
        return tuple(usual if place is None else place for place, usual in given)

    @property
    def evaluations(self) -> int:
        return self.order

    @property
    def deterministic_order(self) -> float:
        return self.order

    @property
    def weak_order(self) -> float:
        return min(2, self.order)

    @property
    def table(self) -> Table:
        """The method."""
        return table(self.order, self._places)

    def plan(self, problem: Problem, times: Tensor) -> Sequence[Any]:
        flow = self.flow(problem)
        points, inside, ends = self._split(flow, times)
        if ends and self.adaptive:
            raise ValueError(
                f"{type(self).__name__} cannot choose steps where log-SNR is infinite: start and "
                "end inside"
            )
        plans: dict[int, Stages | Plain] = {}
        if inside:
            i = torch.tensor(inside)
            moments = self.moments if self.order == 2 else "exact"
            a, b = points.part(i), points.part(i + 1)
            stages = plan_stages(
                flow,
                a,
                b,
                self.table,
                moments,
                stochastic=self.sde,
                embedded=self.adaptive,
                init_each_step=self.init_each_step,
            )
            plans.update(zip(inside, stages, strict=True))
        if ends:
            i = torch.tensor(ends)
            plans.update(
                zip(ends, plan_plain(problem, points.part(i), points.part(i + 1)), strict=True)
            )
        return [plans[i] for i in range(len(times) - 1)]

    def step(
        self, problem: Problem, x: Tensor, plan: Any, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        if isinstance(plan, Plain):
            return plain_step(problem, x, plan, noise if self.sde else None)[0]
        first = state or evaluate(problem, self._form, x, plan.at[0])
        moved, mean, error = run_stages(problem, self._form, self.table, x, first, plan, noise)
        return Step(moved, mean, (), error)


@dataclass(frozen=True, repr=False)
class ExponentialPair(Adaptive, ExponentialSinglestep):
    """`ExponentialSinglestep` of order 2, 3 or 4 and the lower method in its stages: adaptive for
    each sample, as `RK45`.

    Orders 2(1), 3(2) and 4(2): DPM-Solver-12 and -23 (Lu et al. 2022, arXiv 2206.00927, Appendix C)
    under the controller of the Runge-Kutta methods. In noise form by default; as many evaluations a
    step as the order, one less after a rejected one, which leaves its first, and one to start. For
    the probability flow.
    """

    form: FormName | float | Form = "noise"

    init_each_step = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order == 1 or self.sde:
            raise ValueError("ExponentialPair: order must be 2, 3 or 4, for the probability flow")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"drift", "coefficients"}

    @property
    def error_order(self) -> int:
        return self.table.low_order + 1

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        flow = self.flow(problem)
        return evaluate(problem, self._form, x, evaluations(flow, flow.points(t[None]))[0])

    def slope(self, problem: Problem, x: Tensor, t: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """f x + g^2 / (2 sigma) noise, by the predictions at the start."""
        (f, g), (alpha, sigma) = problem.coefficients(t), problem.marginal(t)
        noise = self._form.noise(x, state, alpha, sigma)
        return weighted((f, x), (g**2 / (2 * sigma), noise))
