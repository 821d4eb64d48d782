"""What a solver is: an immutable value with a plan for the grid and a pure step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from solvers.noise import StepNoise
from solvers.problem import Problem

if TYPE_CHECKING:
    from solvers.integrate import Options
    from solvers.noise import Noise
    from solvers.solution import Solution

__all__ = ["Solver", "Step", "check_tolerances"]


class Step(NamedTuple):
    """The outcome of a step from t to s, everything batch-first.

    ``x`` is the state at s; ``mean`` is the same without the step's last noise; ``state`` is what the solver carries
    to its next step; ``error`` is an embedded pair's estimate of the local error.
    """

    x: Tensor
    mean: Tensor
    state: tuple[Tensor, ...] = ()
    error: Tensor | None = None


def check_tolerances(solver: Any) -> None:
    """A ValueError unless rtol and atol of an adaptive solver make sense."""
    name = type(solver).__name__
    for field, value in (("rtol", solver.rtol), ("atol", solver.atol)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}: {field} must be a finite number >= 0, got {value!r}")
    if solver.rtol == 0 and solver.atol == 0:
        raise ValueError(f"{name}: rtol and atol cannot both be 0; give one, 1e-5 say")


class Solver:
    """Base of all solvers. A subclass is a frozen dataclass that gives ``needs`` and ``step``, and ``plan`` if it plans more.

    Solvers hold no state: what a step leaves for the next one travels in ``Step.state``. A step goes from t to s over an
    interval of an explicit grid, in either direction of time, and never computes a time from a number of steps.
    """

    needs: frozenset[str] = frozenset({"drift"})
    """What the problem must offer."""
    order: float = 1.0
    """Order of convergence: deterministic, or weak for a stochastic solver, unless the two below say more."""
    stochastic: bool = False
    """Whether steps draw noise."""
    diffuses: bool = False
    """Whether steps integrate the diffusion of the reverse SDE: then lambda is 1 by default, else 0."""
    adaptive: bool = False
    """Whether every sample chooses its own steps; then ``error_order``, ``rtol`` and ``atol`` are there too."""
    carries: bool = False
    """Whether a step leaves something to the next one: then nothing may be done to the samples between the two."""
    whole: bool = False
    """Whether it is another library's driver: then it has no step, only `solve`, and cannot be a part of another solver."""
    evaluations: int = 1
    """Evaluations of the network a step makes, for caps and progress (results report what was counted)."""
    times: Tensor | None = None
    """The grid of a discrete model that brings its own."""
    spacing: str = "uniform"
    """The grid that ``steps`` means without a ``grid``: a name in `GRIDS`. Where there is no Gaussian kernel it is uniform."""

    @property
    def deterministic_order(self) -> float:
        """Without noise."""
        return 1.0 if self.stochastic else self.order

    @property
    def weak_order(self) -> float:
        """In law."""
        return self.order

    def cost(self, plan: Any) -> int:
        """Evaluations of the network that the step with this entry of `plan` makes."""
        return self.evaluations

    def plan(self, problem: Problem, times: Tensor) -> Sequence[Any]:
        """Coefficients of every step of the grid ``times`` (N + 1,) or (N + 1, rows): N of them, float64 on the host.

        A plan says by ``problem.prepare`` at which times its steps evaluate the problem; this one takes the ends of the intervals.
        """
        problem.prepare(times)
        return list(itertools.pairwise(times))

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """State carried into the first step."""
        return ()

    def step(self, problem: Problem, x: Tensor, plan: Any, noise: StepNoise, state: tuple[Tensor, ...]) -> Step:
        """One step; ``plan`` is this step's entry of `plan`."""
        raise NotImplementedError

    def solve(self, problem: Problem, x: Tensor, times: Tensor, noise: Noise | None, options: Options) -> Solution:
        """Solve over the grid. Only a wrapper of another library's driver has a reason to override this."""
        from solvers.integrate import integrate

        return integrate(problem, self, x, times, noise, options)
