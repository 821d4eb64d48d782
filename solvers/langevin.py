"""Correctors: Markov chain Monte Carlo steps that leave the law at one time as it is, and predictor-corrector pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from solvers.noise import StepNoise
from solvers.problem import Problem, expand
from solvers.solver import Solver, Step

__all__ = ["Langevin", "PredictorCorrector"]


class _Plan(NamedTuple):
    t: Tensor
    step: Tensor
    root: Tensor


@dataclass(frozen=True)
class Langevin(Solver):
    """x <- x + step score(x, t) + sqrt(2 step) z with step = 2 (snr sigma(t))^2, ``n_steps`` times at one time t.

    A corrector: over the interval from t to s it leaves time alone and moves the samples towards the law at s. The step is
    Song et al.'s (arXiv 2011.13456, Algorithms 4 and 5) with the norms of noise and score replaced by what they are on
    average, so that a sample does not depend on its batch. A chain with a fixed step has a variance excess of order snr^2.
    Alone on a grid it is annealed Langevin dynamics.
    """

    snr: float = 0.16
    n_steps: int = 1

    needs = frozenset({"score", "marginal"})
    stochastic = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not 0 < self.snr < float("inf"):
            raise ValueError(f"Langevin: snr must be a positive number, got {self.snr!r}; 0.16 is a common choice")
        if self.n_steps < 1:
            raise ValueError(f"Langevin: n_steps must be at least 1, got {self.n_steps!r}")

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        """One a Langevin step."""
        return self.n_steps

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The step size at the end of each interval."""
        problem.prepare(times)
        s = times[1:]
        size = 2 * (self.snr * problem.marginal(s)[1]) ** 2
        root = (2 * size).sqrt()
        return [_Plan(s[i], size[i], root[i]) for i in range(len(s))]

    def step(self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]) -> Step:
        """``n_steps`` steps at the end of the interval."""
        mean = x
        for k in range(self.n_steps):
            mean = x + expand(plan.step, x) * problem.score(x, plan.t)
            x = mean + expand(plan.root, x) * noise.normal("corrector", k)
        return Step(x, mean)


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """A solver made of two: the predictor moves from t to s, the corrector improves the samples at one time.

    ``order="predictor-first"`` corrects at s, after the move (Song et al. 2021, arXiv 2011.13456, Algorithm 1);
    ``"corrector-first"`` corrects at t, before it (the order of their code), so that the last samples are not corrected.
    """

    predictor: Solver
    corrector: Solver
    sequence: Literal["predictor-first", "corrector-first"] = "predictor-first"

    def __post_init__(self) -> None:
        """Check the arguments."""
        for role, part in (("predictor", self.predictor), ("corrector", self.corrector)):
            if not isinstance(part, Solver):
                raise TypeError(f"PredictorCorrector: the {role} must be a solver such as ReverseDiffusion(), got {part!r}")
            if part.adaptive:
                raise ValueError(f"PredictorCorrector: the {role} {part!r} chooses its own steps; take a solver with fixed steps")
        if self.sequence not in ("predictor-first", "corrector-first"):
            raise ValueError(f"PredictorCorrector: sequence must be 'predictor-first' or 'corrector-first', got {self.sequence!r}")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """What the two need."""
        return self.predictor.needs | self.corrector.needs

    @property
    def order(self) -> float:  # type: ignore[override]
        """The predictor's."""
        return self.predictor.order

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """Whether either draws noise."""
        return self.predictor.stochastic or self.corrector.stochastic

    @property
    def diffuses(self) -> bool:  # type: ignore[override]
        """Whether the predictor does."""
        return self.predictor.diffuses

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        """The sum of the two."""
        return self.predictor.evaluations + self.corrector.evaluations

    def plan(self, problem: Problem, times: Tensor) -> Sequence[Any]:
        """The two plans side by side."""
        # A corrector acts at the end of its interval: shifted by one, the ends are the starts.
        ends = times if self.sequence == "predictor-first" else torch.cat([times[:1], times[:-1]])
        return list(zip(self.predictor.plan(problem, times), self.corrector.plan(problem, ends), strict=True))

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """The predictor's."""
        return self.predictor.init(problem, x, t)

    def step(self, problem: Problem, x: Tensor, plan: Any, noise: StepNoise, state: tuple[Tensor, ...]) -> Step:
        """One of each."""
        move, correct = plan
        if self.sequence == "corrector-first":
            x = self.corrector.step(problem, x, correct, noise, ()).x
            return self.predictor.step(problem, x, move, noise, state)
        moved = self.predictor.step(problem, x, move, noise, state)
        corrected = self.corrector.step(problem, moved.x, correct, noise, ())
        return Step(corrected.x, corrected.mean, moved.state)
