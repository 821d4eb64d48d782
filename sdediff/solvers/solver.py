"""What a solver is: an immutable value with a plan for the grid and a pure step."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from sdediff.solvers.clock import Clock, clock, slope
from sdediff.solvers.controller import Controller
from sdediff.solvers.given import Record
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem

if TYPE_CHECKING:
    from sdediff.solvers.noise import Noise
    from sdediff.solvers.options import Options
    from sdediff.solvers.solution import Solution

__all__ = ["Adaptive", "Solver", "Step", "check_tolerances", "checked", "tolerances"]


class _Step(NamedTuple):
    x: Tensor
    mean: Tensor
    state: tuple[Tensor, ...]
    error: Tensor | None


class Step(_Step):
    """The outcome of a step from t to s, everything batch-first.

    ``x`` is the state at s; ``mean`` is the same without the step's last noise, by default ``x``
    itself; ``state`` is what the solver carries to its next step; ``error`` is an embedded pair's
    estimate of the local error.
    """

    __slots__ = ()

    def __new__(
        cls,
        x: Tensor,
        mean: Tensor | None = None,
        state: tuple[Tensor, ...] = (),
        error: Tensor | None = None,
    ) -> Self:
        """Take x for the mean of a step without noise."""
        return tuple.__new__(cls, (x, x if mean is None else mean, state, error))


def checked(step: Step, solver: Solver, x: Tensor) -> Step:
    """What a solver's ``step`` returned from x; a TypeError or ValueError unless it is a `Step`
    with a state like x.
    """
    name = type(solver).__name__
    if not isinstance(step, Step):
        raise TypeError(
            f"{name}.step must return a Step, got {type(step).__name__}; return Step(x), x the "
            "state at s"
        )
    wrongs = [
        (what, each)
        for what, each in (("x", step.x), ("mean", step.mean))
        if not (isinstance(each, Tensor) and each.shape == x.shape and each.dtype == x.dtype)
    ]
    if not wrongs:
        return step
    what, wrong = wrongs[0]
    if not isinstance(wrong, Tensor):
        raise TypeError(
            f"{name}.step must return a Step with a tensor as {what}, got {type(wrong).__name__}"
        )
    wanted, got = (f"{tuple(state.shape)}, {state.dtype}" for state in (x, wrong))
    which = "a state" if what == "x" else "a mean"
    raise ValueError(
        f"{name}.step must return {which} of the shape and the dtype of x, {wanted}; got {got}"
    )


def tolerances(solver: Any, problem: Problem, dtype: torch.dtype) -> tuple[float, float]:
    """(rtol, atol) of an adaptive solver in the problem's units, in which data have a standard
    deviation near 1.

    ``solver.atol`` is in the user's units, and by default the number ``solver.default_atol`` in the
    problem's. Below the rounding of states of ``dtype``, or of the problem's evaluations, no error
    can be kept: both are raised to that, with a warning.
    """
    given = solver.atol
    rtol = float(solver.rtol)
    atol = float(solver.default_atol if given is None else given / problem.unit)
    least = max(torch.finfo(dtype).eps, problem.rounding)
    if max(rtol, atol) >= least:
        return rtol, atol
    finer = (
        "dtype=torch.float64"
        if least == torch.finfo(dtype).eps
        else "a network of higher precision"
    )
    warnings.warn(
        f"{solver!r}: these tolerances are below the rounding of the solve; {least:.2g} takes "
        "their place. "
        f"Loosen them, or take {finer}",
        stacklevel=2,
    )
    return least, least


def check_tolerances(solver: Any) -> None:
    """A ValueError unless rtol and atol of an adaptive solver make sense, and dt_min where it has
    one; a TypeError if its controller is none.
    """
    name, dt_min = type(solver).__name__, getattr(solver, "dt_min", 0.0)
    if not 0 <= dt_min < float("inf"):
        raise ValueError(
            f"{name}: dt_min must be a finite time >= 0, the least step; got {dt_min!r}"
        )
    for given, value in (("rtol", solver.rtol), ("atol", solver.atol)):
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name}: {given} must be a finite number >= 0, got {value!r}")
    if solver.rtol == 0 and solver.atol == 0:
        raise ValueError(f"{name}: rtol and atol cannot both be 0; give one, 1e-5 say")
    own = getattr(solver, "controller", None)
    if own is not None and (isinstance(own, type) or not isinstance(own, Controller)):
        raise TypeError(
            f"{name}: controller must have goal, start and judge, as PIController(goal=0.1) has; "
            f"got {own!r}"
        )


class Solver(Record):
    """Base of all solvers. A subclass is a frozen dataclass with ``plan``, ``step`` and ``needs``.

    Solvers hold no state: what a step leaves for the next one travels in ``Step.state``. A step
    goes from t to s over an interval of an explicit grid, in either direction of time, and never
    computes a time from a number of steps.
    """

    needs: frozenset[str] = frozenset({"drift"})
    """What the problem must offer: by default the drift, and the diffusion if it ``diffuses``."""
    order: float = 1.0
    """Order of convergence: deterministic, or weak for a stochastic solver, unless the two below
    say more.
    """
    stochastic: bool = False
    """Whether steps draw noise."""
    diffuses: bool = False
    """Whether steps integrate the diffusion of the reverse SDE: then lambda is 1 by default, else
    0.
    """
    senses: frozenset[str] = frozenset()
    """In which senses, "ito" and "stratonovich", it integrates noise that depends on the state."""
    structures: frozenset[str] = frozenset()
    """Which of such noise it integrates: "diagonal", "commutative", "general" (see `solve_sde`)."""
    adaptive: bool = False
    """Whether every sample chooses its own steps; then ``error_order``, ``rtol`` and ``atol`` are
    there too.
    """
    default_atol: ClassVar[float] = 1e-5
    """What ``atol=None`` means in an adaptive solver, in units of the standard deviation of the
    data.
    """
    carries: bool = False
    """Whether the solver is multistep. Wrappers that change the state between steps, such as
    `Churn`, refuse multistep solvers.
    """
    begins: bool = False
    """Whether `init` is called at the start of every adaptive step. A rejected step hands that
    evaluation to the retry.
    """
    whole: bool = False
    """Whether it is another library's driver: then it has no step, only `solve`, and cannot be a
    part of another solver.
    """
    group: int = 1
    """How many rows belong together: particles of one sample, say. A batch never splits a group,
    and a group has one seed.
    """
    evaluations: int = 1
    """Evaluations of the network a step makes, for caps and progress (results report what was
    counted).
    """
    times: Tensor | None = None
    """The grid of a discrete model that brings its own."""
    spacing: str = "uniform"
    """The grid that ``steps`` means without a ``grid``: a name in `GRIDS`. Where there is no
    Gaussian kernel it is uniform.
    """

    def __init_subclass__(cls) -> None:
        """Let a solver that integrates the diffusion need it, unless it says what it needs."""
        super().__init_subclass__()
        if cls.diffuses is True and cls.needs is Solver.needs:
            cls.needs = frozenset({"drift", "diffusion"})

    def __repr__(self) -> str:
        """The class and what differs from its defaults, and an order."""
        known: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        given = [
            each.name
            for each in known
            if each.name == "order" or getattr(self, each.name) != each.default
        ]
        arguments = [f"{name}={getattr(self, name)!r}" for name in given]
        return f"{type(self).__name__}({', '.join(arguments)})"

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
        """What each step of the grid ``times``, (N + 1,) or (N + 1, rows), needs that can be known
        beforehand: N entries.

        A plan has its evaluations by `Problem.at`, the size of its noise by `Problem.spread` and
        its other numbers by `Problem.coefs`, so that no step computes a coefficient. This one has
        the ends (t, s) of each interval. It belongs to the rows of the problem that it was made
        with.
        """
        return list(itertools.pairwise(times.unbind()))

    def plan_to(
        self,
        problem: Problem,
        variable: Clock,
        start: tuple[Tensor, Tensor],
        v: Tensor,
        known: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Any]:
        """(s, plan) of the steps of an adaptive solve, every row its own, from ``start`` = (t, u)
        to v, on the solver's `clock`.

        ``known`` = (mask, times): rows that land on a grid time. Override this if your plan inverts
        the clock too, so that both inversions share one call.
        """
        s = torch.where(*known, variable.time(v))
        return s, self.plan(problem, torch.stack([start[0], s]))[0]

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """State carried into the first step; into every one where the solver ``begins`` them so."""
        return ()

    def clock(self, problem: Problem) -> Clock:
        """The variable in which the steps of an adaptive solver have a length; those of one that
        draws noise are dyadic in it.
        """
        return clock(
            problem, "log_snr" if self.stochastic and "marginal" in problem.offers else "t"
        )

    def split(self, problem: Problem, a: Tensor, m: Tensor, b: Tensor) -> Tensor:
        """The share that a step from a to m has in the variance of the noise of one from a to b,
        for times (n,).
        """
        return (m - a) / (b - a)

    def slope(self, problem: Problem, x: Tensor, t: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """dy / du of the solver's `clock` at the start of an adaptive solve, from what `init`
        evaluated if that will do.
        """
        return slope(problem, self.clock(problem), x, t)

    def step(
        self, problem: Problem, x: Tensor, plan: Any, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        """One step; ``plan`` is this step's entry of `plan`."""
        raise NotImplementedError

    def solve(
        self, problem: Problem, x: Tensor, times: Tensor, noise: Noise | None, options: Options
    ) -> Solution:
        """Solve over the grid. Only a wrapper of another library's driver has a reason to override
        this.
        """
        from sdediff.solvers.integrate import integrate

        return integrate(problem, self, x, times, noise, options)


@dataclass(frozen=True, repr=False)
class Adaptive(Solver):
    """What the solvers share that choose a step size for every sample: bases come after it, so that
    its fields come last.

    The root mean square over the event of error / (atol + rtol max(abs(x_t), abs(x_s))) is kept
    below 1. ``atol`` is in the units of x; by default it is ``default_atol`` times the standard
    deviation of the data. ``dt_min``: a step is not made smaller than that; a sample that would
    need it fails with `Status.STEP_TOO_SMALL`. 0: as small as rounding lets it. ``controller``
    accepts steps and sets the lengths of the next ones; by default it is `PIController()`, with
    ``goal=0.6`` for solvers that draw noise.
    """

    rtol: float = 1e-5
    atol: float | None = None
    dt_min: float = field(default=0.0, kw_only=True)
    controller: Controller | None = field(default=None, kw_only=True)

    adaptive = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tolerances(self)

    @property
    def error_order(self) -> int:
        """The local error estimate is O(h^error_order)."""
        raise NotImplementedError
