"""What a chain is to sample: a log-density, a score, or a score model at one time."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sdediff.arguments import check_condition, check_model
from sdediff.calls import Condition
from sdediff.modules import evaluating
from sdediff.predict import affine, predict
from sdediff.protocols import Model, facts, is_model
from sdediff.sde.base import as_time
from sdediff.solvers import White
from sdediff.solvers.arithmetic import along
from sdediff.solvers.given import Record, described, fact, reading
from sdediff.solvers.metropolis import line_integral

__all__ = ["LogDensity", "Point", "Score", "Target", "as_target", "at", "known"]


class Point(NamedTuple):
    """States (chains, *event) and what is known there."""

    x: Tensor
    """The states, (chains, *event)."""
    log_prob: Tensor | None = None
    """(chains,), up to a constant."""
    score: Tensor | None = None
    """grad log p, (chains, *event)."""
    momentum: Tensor | None = None
    """(chains, *event), of the kernels that have one."""


class Target(Record):
    """A law p(x) on events of one shape, known up to its constant; every chain is a row."""

    @fact
    def full_batch(self) -> bool:
        """Whether `look` is at p itself; otherwise at an unbiased estimate of its score, from the
        data that `draw` took.
        """
        return True

    def look(self, x: Tensor, *, score: bool) -> Point:
        """log p and its gradient, as far as there are any; ``score`` says whether the gradient is
        wanted.
        """
        raise NotImplementedError

    def rise(self, here: Point, there: Point) -> Tensor:
        """log p(there) - log p(here), (chains,)."""
        raise NotImplementedError

    def draw(self, noise: White, step: int) -> Target:
        """What to look at in the step number ``step``."""
        return self

    def check(self, chains: int) -> None:
        """Whether this is a target for so many chains; a ValueError if not."""

    def evaluating(self) -> AbstractContextManager[None]:
        """What to be in while it is evaluated."""
        return nullcontext()


@dataclass(frozen=True)
class LogDensity(Target):
    """log p(x) up to a constant: ``log_prob(x)`` is (chains,) for states (chains, *event), a row by
    itself.

    -inf is outside the support. The gradient is that of autograd, or ``score(x)``, (chains,
    *event), where it is given.
    """

    log_prob: Callable[[Tensor], Tensor]
    score: Callable[[Tensor], Tensor] | None = None

    def evaluating(self) -> AbstractContextManager[None]:
        return evaluating(self.log_prob, self.score)

    def look(self, x: Tensor, *, score: bool) -> Point:
        if not score:
            return Point(x, self._value(x))
        if self.score is not None:
            return Point(
                x, self._value(x), _shaped("score", reading("score", self.score, "x", x), x.shape)
            )
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = self._value(leaf)
            if not value.requires_grad:
                raise ValueError(
                    "log_prob(x) has no gradient by autograd; pass LogDensity(log_prob, score), "
                    "or use RandomWalk"
                )
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        # Autograd may find a number beside a NaN, a branch of torch.where: a failure must not pass
        # for a slope.
        failed = along(torch.isnan(value.detach()), x)
        return Point(x, value.detach(), gradient.masked_fill(failed, math.nan))

    def rise(self, here: Point, there: Point) -> Tensor:
        return known(there.log_prob) - known(here.log_prob)

    def _value(self, x: Tensor) -> Tensor:
        return _shaped("log_prob", reading("log_prob", self.log_prob, "x", x), x.shape[:1])


@dataclass(frozen=True)
class Score(Target):
    """grad log p(x): ``score(x)`` is (chains, *event), as its states are.

    A Metropolis test takes log p(y) - log p(x) as the integral of the score from x to y by
    Simpson's rule, for one more evaluation: exact for Gaussian laws and any log-density of degree
    4, otherwise of order 5 in the length of the proposal.
    """

    score: Callable[[Tensor], Tensor]

    def evaluating(self) -> AbstractContextManager[None]:
        return evaluating(self.score)

    def look(self, x: Tensor, *, score: bool) -> Point:
        return Point(x, None, _shaped("score", reading("score", self.score, "x", x), x.shape))

    def rise(self, here: Point, there: Point) -> Tensor:
        """The line integral: one evaluation half-way."""
        middle = self.look(0.5 * (here.x + there.x), score=True)
        return line_integral(
            here.x, there.x, known(here.score), known(middle.score), known(there.score)
        )


@dataclass(frozen=True)
class _AtTime(Score):
    model: Model = field(kw_only=True)
    condition: Condition = field(kw_only=True)

    def check(self, chains: int) -> None:
        """Of the conditions' leading dimension."""
        check_condition(self.condition, chains, facts(self.model).net)

    def evaluating(self) -> AbstractContextManager[None]:
        return evaluating(self.model)


def at(model: Model, t: float | Tensor, condition: Condition | None = None) -> Score:
    """The law p_t of a score model at one time t, in the SDE's usable range; ``condition`` has a
    row a chain, or one value for all chains.

    Under a `Normalizer` it is that of y = mean + std x_t, in the user's units, as states of
    `sample` are.
    """
    check_model(model)
    time = model.sde.check_time(as_time(t))
    if time.ndim:
        raise ValueError(
            f"chains sample the law at one time: t must be a number, got shape {tuple(time.shape)}"
        )
    _ = affine(model, "score", time)  # a ValueError where there is none
    given, normalizer = dict(condition or {}), facts(model).normalizer

    def score(y: Tensor) -> Tensor:
        if normalizer is None:
            return predict(model, "score", y, time, given)
        x = normalizer.normalize(y)
        return predict(model, "score", x, time, given) / normalizer.scale(x)

    return _AtTime(score, model=model, condition=given)


def as_target(target: Target | Callable[[Tensor], Tensor]) -> Target:
    """A target, a function being a log-density."""
    if isinstance(target, Target):
        return target
    if is_model(target):
        raise TypeError("a score model has a law at every time: pass mcmc.at(model, t)")
    if isinstance(target, type) or not callable(target):
        raise TypeError(
            "target must be a function log_prob(x) -> (chains,), mcmc.Score(score), "
            "mcmc.at(model, t) or mcmc.Posterior(...), "
            f"got {target!r}"
        )
    return LogDensity(target)


def _shaped(name: str, value: object, shape: torch.Size) -> Tensor:
    if isinstance(value, Tensor) and value.shape == shape:
        return value
    hint = (
        "; a function that returns the score is mcmc.Score(function)" if name == "log_prob" else ""
    )
    raise ValueError(
        f"{name}(x) must return a tensor of shape {tuple(shape)}, got {described(value)}{hint}"
    )


def known(value: Tensor | None) -> Tensor:
    """What a point must have."""
    if value is None:
        raise ValueError(
            "this point lacks what is asked of it: a kernel that wants the score must look with "
            "score=True"
        )
    return value
