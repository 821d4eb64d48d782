"""Posteriors as solvers around solvers: published algorithms whose steps know the measurement."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from sdediff.posterior.observation import Observation, Observed, observed
from sdediff.reverse import Reverse
from sdediff.solvers import Ancestral, rowwise
from sdediff.solvers.arithmetic import Number, along, weighted
from sdediff.solvers.churn import PassedOn, check_inner
from sdediff.solvers.coefficients import Coef
from sdediff.solvers.given import Count, NotNegative, Positive, Record, reals
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.recurrence import Repeated, done, repeated
from sdediff.solvers.solver import Solver, Step

__all__ = ["DiffPIR", "PublishedDPS", "RePaint", "Replacement"]


class _Measured(Solver):
    """What the solvers that know a measurement share: a subclass is a frozen dataclass with these
    fields.

    Their steps move by amounts of their own, so that the law has no density that is known:
    likelihoods refuse them, as they do all that draw noise.
    """

    measurement: Any
    y: Tensor
    linear: ClassVar[bool] = True
    stochastic = True

    def __post_init__(self) -> None:
        Record.__post_init__(self)
        _ = self._observation

    def _check(self, problem: Problem) -> Reverse:
        """The problem; a ValueError unless y has an outcome for each of its samples."""
        known = cast(Reverse, problem)
        if known.like is not None:
            self._observation.check_count(known.batch.size)
            self._observation.check(known.like)
        return known

    @cached_property
    def _observation(self) -> Observation:
        return observed(type(self).__name__, self.measurement, self.y, linear=self.linear)

    def _seen(self, problem: Problem, x: Tensor) -> Observed:
        """The outcomes of the rows of x."""
        known, own = cast(Reverse, problem), self._observation
        measurement: Any = own.measurement
        return Observed(measurement, own.take(known.batch.index, x), known.units)

    def __repr__(self) -> str:
        """The class, the measurement and the shape of y, not its numbers."""
        return f"{type(self).__name__}({type(self.measurement).__name__}, y {tuple(self.y.shape)})"


class _Around(PassedOn, _Measured):
    """A `_Measured` solver around another."""

    solver: Solver

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inner(type(self).__name__, self.solver, noisy=True)

    @property
    def needs(self) -> frozenset[str]:
        return self.solver.needs | {"data", "marginal", "kernel"}

    @property
    def solves_sde(self) -> bool:
        return self.solver.solves_sde


class _Pulled(NamedTuple):
    inner: Any
    at: Any
    """The data at t."""


@dataclass(frozen=True, eq=False, repr=False)
class PublishedDPS(_Around):
    """Diffusion posterior sampling as published: after each step of ``solver`` from x_t,

        x_s <- x_s - zeta / |y - A x^_0| grad |y - A x^_0|^2,    x^_0 = E[x_0 | x_t],

    with the gradient in x_t, and A any measurement, linear or not; noise_std plays no part.
    (Chung et al. 2023, arXiv 2209.14687, Algorithm 1 and section 3.3 with zeta_i = zeta / |...|.)
    The lengths of these moves do not shrink with the steps, so that the law which it samples
    depends on their number and has no limit: state both beside a result. Lengths are in the units
    of the model, and of y. Their code takes the gradient of the norm itself, which is half of this
    move: its scale is 2 zeta; its norm is over the whole batch, here it is each sample's own; and
    it clips x^_0 to [-1, 1], for which use ``model.constrained(Clip())``. The inner solver of the
    paper is `Ancestral`. A step shares the inner step's evaluation at x_t, and takes one backward
    pass. `DPS` is the same idea as a score, for any solver.
    """

    measurement: Any
    y: Tensor
    solver: Solver = field(default_factory=Ancestral)
    zeta: NotNegative = 1.0

    linear = False

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Pulled]:
        """The inner plan, and the data where each step begins."""
        self._check(problem)
        rows = zip(self.solver.plan(problem, times), problem.at(times[:-1], "data"), strict=True)
        return [_Pulled(*row) for row in rows]

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: _Pulled,
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            z = x if keep and x.requires_grad else x.detach().requires_grad_()
            tapped, outs = _tapped(cast(Reverse, problem), z)
            moved = self.solver.step(tapped, z, plan.inner, noise, ())
            if not outs:
                tapped.evaluate(z, plan.at)
            data = weighted((plan.at.keep, z), (plan.at.push, outs[0]))
            off = rowwise(self._seen(problem, x).residual(data)).norm(dim=1)
            (pull,) = torch.autograd.grad(off.sum(), z, create_graph=keep)
        cast(Reverse, problem).batch.count(0, 1)
        size = -2.0 * self.zeta / problem.unit**2
        found, mean = (weighted((1.0, each), (size, pull)) for each in (moved.x, moved.mean))
        return Step(found, mean) if keep else Step(found.detach(), mean.detach())


def _tapped(problem: Reverse, z: Tensor) -> tuple[Problem, list[Tensor]]:
    """The problem, and what the model returns at the state z itself when it is evaluated there."""
    outs: list[Tensor] = []

    def evaluate(x: Tensor, at: Any, said: list[Any] | None = None) -> Tensor:
        own: list[Any] = []
        value = problem.evaluate(x, at, own)
        if x is z:
            outs.append(own[0])
        if said is not None:
            said += own
        return value

    tapped = copy.copy(problem)
    vars(tapped)["evaluate"] = evaluate
    return tapped, outs


class _Imposed(NamedTuple):
    inner: Any
    alpha: Number
    """At s."""
    sigma: Number


class _Imposing(_Around):
    """What Replacement and RePaint share: after a step the state is made to agree with y."""

    def _planned(self, problem: Problem, times: Tensor) -> list[_Imposed]:
        self._check(problem)
        levels = problem.coefs(len(times) - 1, *problem.marginal(times[1:]))
        return [
            _Imposed(*row) for row in zip(self.solver.plan(problem, times), *levels, strict=True)
        ]

    def _moved(self, problem: Problem, x: Tensor, plan: _Imposed, noise: StepNoise) -> Tensor:
        """A step of the solver, and the nearest state whose A x is alpha y + sigma A z."""
        x = self.solver.step(problem, x, plan.inner, noise, ()).x
        seen = self._seen(problem, x)
        known = seen.residual(torch.zeros_like(x))
        drawn = seen.forward(noise.normal("proposal"))
        rows: list[tuple[Coef, Tensor]] = [(plan.alpha, known), (plan.sigma, drawn)]
        target = _like(rows) - seen.forward(x)
        return x + seen.nearest(target, x)


def _like(rows: list[tuple[Coef, Tensor]]) -> Tensor:
    """`weighted`, of outcomes, whose rank may be another than that of states."""
    terms = [
        (c.reshape(-1, *(1,) * (y.ndim - 1)) if isinstance(c, Tensor) and c.ndim else c, y)
        for c, y in rows
    ]
    return weighted(*terms)


@dataclass(frozen=True, eq=False, repr=False)
class Replacement(_Imposing):
    """After each step of ``solver`` to s, the seen part of x_s is replaced by alpha y + sigma A z.

    z is standard normal, drawn anew at each step. For a `Mask` this replaces the seen entries; for
    any other linear A it goes to the nearest state whose A x_s is closest to alpha y + sigma A z,
    which magnifies the noise of y where A has small singular values, as a blur has. noise_std plays
    no part. (Song et al. 2021, arXiv 2011.13456, appendix I.2. Their code takes alpha and
    sigma at t, before the step.) Only the network connects the unseen part with y, because it
    sees both parts together. So the samples are not from the posterior, also not in the limit of
    many steps.
    """

    measurement: Any
    y: Tensor
    solver: Solver = field(default_factory=Ancestral)

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Imposed]:
        """The inner plan, and the level of noise at the end of each step."""
        return self._planned(problem, times)

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: _Imposed,
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        return Step(self._moved(problem, x, plan, noise))


@dataclass(frozen=True, eq=False, repr=False)
class RePaint(_Imposing):
    """`Replacement` with repetition: each block of ``length`` steps is done ``jumps`` times, and
    noise is added in between to go back to its start.

    The noise is that of the SDE's kernel from the end of the block to its start. The last block is
    done once. So a solve takes about ``jumps`` times as many steps as its grid has. (Lugmayr et al.
    2022, arXiv 2201.09865, Algorithm 1, where length = 1 and jumps is U; section 4.2 has longer
    ones. The outcome gets the noise of s, where eq. 8a writes that of t. Their code imposes it
    before the network is evaluated, so that the result itself has the network's values in the seen
    part, goes back from the last block too, and not from the first; it has jumps = length = 10.)
    """

    measurement: Any
    y: Tensor
    jumps: Count = 10
    length: Count = 1
    solver: Solver = field(default_factory=Ancestral)

    @property
    def evaluations(self) -> int:
        """Of the last step of a block."""
        return self.solver.evaluations * (1 + (self.jumps - 1) * self.length)

    def cost(self, plan: Repeated) -> int:
        return self.evaluations if plan.again is not None else self.solver.evaluations

    def plan(self, problem: Problem, times: Tensor) -> Sequence[Repeated]:
        """The inner plan, and at the end of each block the way back."""
        plans = self._planned(problem, times)
        return repeated(problem, plans, times, self.length, last=False)

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: Repeated,
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        def step(x: Tensor, inner: _Imposed, noise: StepNoise) -> Step:
            return Step(self._moved(problem, x, inner, noise))

        return done(step, x, plan, self.jumps - 1, noise)


class _Proximal(NamedTuple):
    at: Any
    """The data at t."""
    ratio: Number
    """lam alpha^2 / sigma^2 at t."""
    stay: Number
    """x_s = stay x_t + go x_0 + std z."""
    go: Number
    std: Number


@dataclass(frozen=True, eq=False, repr=False)
class DiffPIR(_Measured):
    """Plug-and-play restoration without a backward pass: each step moves the data prediction
    towards y, and then adds noise to reach the time s.

        x_0 = argmin |y - A x|^2 + rho |x - E[x_0 | x_t]|^2,    rho = lam noise_std^2 alpha^2 /
        sigma^2,
        x_s = alpha_s x_0 + sigma_s (sqrt(1 - zeta) (x_t - alpha x_0) / sigma + sqrt(zeta) z).

    A step takes one evaluation, and finds the minimum by conjugate gradients. With noise_std = 0
    the minimum is the nearest x that agrees with y. ``lam`` > 0 weighs the model against y, and
    ``zeta`` in [0, 1] is the share of fresh noise. Both have to be tuned for each problem. (Zhu et
    al. 2023, arXiv 2305.08995, Algorithm 1. Their code leaves out the minimisation in the last
    step, which ``last="denoise"`` here is too, and pastes y into the result of inpainting.)
    """

    measurement: Any
    y: Tensor
    lam: Positive = 1.0
    zeta: NotNegative = 1.0

    needs = frozenset({"data", "marginal"})
    spacing = "log_snr"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zeta > 1:
            raise ValueError(
                f"DiffPIR: zeta is the share of new noise, from 0 to 1, got {self.zeta}"
            )

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Proximal]:
        """The data at the start of each step, and what x_s is made of."""
        self._check(problem)
        alpha, sigma = problem.marginal(times)
        stay = (1 - self.zeta) ** 0.5 * sigma[1:] / sigma[:-1]
        columns = (
            self.lam * (alpha / sigma)[:-1] ** 2,
            stay,
            alpha[1:] - stay * alpha[:-1],
            self.zeta**0.5 * sigma[1:],
        )
        rows = zip(
            problem.at(times[:-1], "data"),
            *problem.coefs(len(times) - 1, *columns),
            strict=True,
        )
        return [_Proximal(*row) for row in rows]

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: _Proximal,
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        data = problem.evaluate(x, plan.at)
        seen = self._seen(problem, x)
        residual, ratio = seen.residual(data), plan.ratio
        if isinstance(ratio, Tensor) and ratio.ndim:
            ratio = along(ratio.flatten(), seen.y)
        if bool(reals("noise_std", seen.measurement.noise_std).any()):
            pull = seen.solve(residual, x, lambda v: v, ratio * seen.variance)
        else:
            pull = seen.nearest(residual, x)
        mean = weighted((plan.stay, x), (plan.go, data + pull))
        return Step(weighted((1.0, mean), (plan.std, noise.normal("proposal"))), mean)
