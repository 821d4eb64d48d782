"""Steps that are done several times, with noise on the way back: recurrence around any solver with
fixed steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from sdediff.solvers.arithmetic import Number, weighted
from sdediff.solvers.churn import Around, check_inner
from sdediff.solvers.given import Count
from sdediff.solvers.noise import StepNoise, elapsed, paired, root_of
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Step

__all__ = ["Recurrence", "Repeated", "done", "repeated"]


class _Again(NamedTuple):
    """The way back at the end of a block: x_t = ratio x_s + std z, and the plans of the block."""

    ratio: Number
    std: Number
    plans: Sequence[Any]


class Repeated(NamedTuple):
    """A step, and what follows if it is the last one of a block."""

    inner: Any
    again: _Again | None = None


def repeated(
    problem: Problem, plans: Sequence[Any], times: Tensor, length: int = 1, *, last: bool = True
) -> list[Repeated]:
    """Plans of steps over ``times``, in blocks of ``length`` steps that are done again; with the
    one that ends the grid, unless ``last`` is False.
    """
    ends = list(range(length, len(plans) + last, length))
    found = [Repeated(plan) for plan in plans]
    if not ends:
        return found
    t, s = (times[[end - ago for end in ends]] for ago in (length, 0))
    sizes = problem.coefs(len(ends), *problem.kernel(t, s))
    for end, ratio, std in zip(ends, *sizes, strict=True):
        again = _Again(ratio, std, plans[end - length : end])
        found[end - 1] = found[end - 1]._replace(again=again)
    return found


def done(
    step: Callable[[Tensor, Any, StepNoise], Step],
    x: Tensor,
    plan: Repeated,
    rounds: int,
    noise: StepNoise,
) -> Step:
    """The step, and ``rounds`` times back to the start of its block and through the block again."""
    found = step(x, plan.inner, noise)
    if plan.again is None:
        return found
    ratio, std, plans = plan.again
    for k in range(rounds):
        x = weighted((ratio, found.x), (std, noise.normal("churn", k)))
        for i, inner in enumerate(plans):
            found = step(x, inner, _Anew(noise, 1 + k * len(plans) + i))
            x = found.x
    return found


@dataclass(eq=False)
class _Anew(StepNoise):
    """Noise for a step that is done again, number 1, 2, ...: as good as that of another step."""

    noise: StepNoise
    number: int

    def normal(self, stream: str, k: int = 0) -> Tensor:
        return self.noise.normal(stream, 2**16 * self.number + k)

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return self.normal("churn", k)

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        z = self.over(a, b)
        return z * root_of(elapsed(a, b), z)

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return paired(self.over(a, b), self.over(a, b, 1), elapsed(a, b))


@dataclass(frozen=True)
class Recurrence(Around):
    """Each step of ``solver`` from t to s is done ``k`` times: after each but the last of them the
    state goes back to t by the forward process,

        x_t = alpha_t / alpha_s x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) z,

    with the sample's own noise z. k = 1 is ``solver`` itself.

    Under the score of the law both ways keep it. Under guidance, which is the score of no law, the
    repetitions bring the state nearer to what guidance and model both allow, at k times the
    evaluations. How much is repeated depends on the steps, so that the law which is sampled does
    too. For the same reason adaptive solvers are refused, likelihoods as with all noise, and
    solvers that carry history from step to step.

    Bansal et al. 2023 (arXiv 2302.07121, Algorithm 1: per-step self-recurrence, with the last step
    as all others). `posterior.RePaint` repeats blocks of steps so.
    """

    k: Count = 2

    def __post_init__(self) -> None:
        check_inner(type(self).__name__, self.solver, noisy=True)

    @property
    def stochastic(self) -> bool:
        """Whether it adds noise."""
        return self.k > 1 or self.solver.stochastic

    @property
    def solves_sde(self) -> bool:
        return self.solver.solves_sde

    @property
    def evaluations(self) -> int:
        return self.k * self.solver.evaluations

    def cost(self, plan: Repeated) -> int:
        return self.k * self.solver.cost(plan.inner)

    def plan(self, problem: Problem, times: Tensor) -> Sequence[Repeated]:
        """The solver's plan, and the way back from the end of each step."""
        return repeated(problem, self.solver.plan(problem, times), times)

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: Repeated,
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        def step(x: Tensor, inner: Any, noise: StepNoise) -> Step:
            return self.solver.step(problem, x, inner, noise, ())

        return done(step, x, plan, self.k - 1, noise)
