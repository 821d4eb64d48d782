"""What a solver is: an immutable value with a plan for the grid and a pure step."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self

import torch
from torch import Tensor

from sdediff.solvers.controller import Controller
from sdediff.solvers.given import Record, fact, real
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.variable import Variable, slope, variable_of

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
    extras: Mapping[str, Tensor]


_NONE: Final[Mapping[str, Tensor]] = {}


class Step(_Step):
    """The outcome of a step from t to s, everything batch-first.

    ``x`` is the state at s; ``mean`` is the same without the step's last noise, by default ``x``
    itself; ``state`` is what the solver carries to its next step; ``error`` is an embedded pair's
    estimate of the local error. ``extras`` of the last step on a fixed grid, tensors (rows, ...) by
    name, become those of the `Solution`: weights of particles, say.
    """

    __slots__ = ()

    def __new__(
        cls,
        x: Tensor,
        mean: Tensor | None = None,
        state: tuple[Tensor, ...] = (),
        error: Tensor | None = None,
        extras: Mapping[str, Tensor] = _NONE,
    ) -> Self:
        """Take x for the mean of a step without noise."""
        return tuple.__new__(cls, (x, x if mean is None else mean, state, error, extras))


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
    goal = 1.0 if own is None else real(f"{name}: the goal of the controller", own.goal)
    if not 0 < goal <= 1:
        raise ValueError(
            f"{name}: the goal of the controller must be in (0, 1], 1 being the tolerance; got "
            f"{goal!r}"
        )


class Solver(Record):
    """Base of all solvers. A subclass is a frozen dataclass with ``plan``, ``step`` and ``needs``.

    Solvers hold no state: what a step leaves for the next one travels in ``Step.state``. A step
    goes from t to s over an interval of an explicit grid, in either direction of time, and never
    computes a time from a number of steps.
    """

    @fact
    def needs(self) -> frozenset[str]:
        """What the problem must offer: by default the drift, and the diffusion if the solver
        ``solves_sde``.
        """
        return frozenset({"drift"})

    @fact
    def order(self) -> float:
        """Order of convergence: deterministic, or weak for a stochastic solver, unless the two
        below say more.
        """
        return 1.0

    @fact
    def solves_sde(self) -> bool:
        """Whether the solver solves the reverse SDE: then lambda is 1 by default, else 0."""
        return False

    @fact
    def stochastic(self) -> bool:
        """Whether steps draw noise: by default if the solver ``solves_sde``. Churn and Langevin
        steps draw noise of their own.
        """
        return False

    @fact
    def senses(self) -> frozenset[str]:
        """In which senses, "ito" and "stratonovich", the solver integrates noise that depends on
        the state.
        """
        return frozenset()

    @fact
    def structures(self) -> frozenset[str]:
        """Which of such noise the solver integrates: "diagonal", "commutative", "general" (see
        `solve_sde`).
        """
        return frozenset()

    @fact
    def adaptive(self) -> bool:
        """Whether every sample chooses its own steps; then ``error_order``, ``rtol`` and ``atol``
        are there too.
        """
        return False

    @fact
    def corrects(self) -> bool:
        """Whether a step changes the law at s alone, as Langevin steps do, and does not take a
        sample from t to s: `PredictorCorrector` takes it as corrector.
        """
        return False

    @fact
    def has_memory(self) -> bool:
        """Whether a step reuses evaluations of the step before, as multistep methods do. Wrappers
        that change the state between steps, such as `Churn`, refuse such a solver.
        """
        return False

    @fact
    def init_each_step(self) -> bool:
        """Whether `init` is called at the start of every adaptive step. A rejected step hands that
        evaluation to the retry.
        """
        return False

    @fact
    def external(self) -> bool:
        """Whether the solver is another library's driver: then it has no step, only `solve`, and
        cannot be a part of another solver.
        """
        return False

    @fact
    def group(self) -> int:
        """How many rows belong together: particles of one sample, say. A batch never splits a
        group, and a group has one seed.
        """
        return 1

    @fact
    def evaluations(self) -> int:
        """Evaluations of the network that a step makes, for caps and progress. Results report what
        was counted.
        """
        return 1

    @fact
    def init_evaluations(self) -> int:
        """Evaluations that `init` makes, for a solver that begins in the middle of a solve, as
        parts of a `Switch` do.
        """
        return 0

    @fact
    def times(self) -> Tensor | None:
        """The grid of a discrete model that brings its own."""
        return None

    @fact
    def ends_clean(self) -> bool:
        """Whether the last of ``times`` is that of clean data, where there is nothing to
        denoise.
        """
        return False

    @fact
    def prior(self) -> Any:
        """The law at the start of a discrete model that is not the SDE's prior: a value with
        ``from_noise(z)``; None: the SDE's.
        """
        return None

    @fact
    def spacing(self) -> str:
        """The grid that ``steps`` means without a ``grid``: a name in `GRIDS`. Where there is no
        Gaussian kernel it is uniform.
        """
        return "uniform"

    default_atol: ClassVar[float] = 1e-5
    """What ``atol=None`` means in an adaptive solver, in units of the standard deviation of the
    data.
    """

    def __init_subclass__(cls) -> None:
        """Let a solver of the reverse SDE draw noise and need the diffusion, unless it says so
        itself.
        """
        super().__init_subclass__()
        kind: Any = cls  # facts are attributes of the class
        if kind.solves_sde is True:
            given = {name for each in cls.__mro__ if each is not Solver for name in vars(each)}
            if "stochastic" not in given:
                kind.stochastic = True
            if "needs" not in given:
                kind.needs = frozenset({"drift", "diffusion"})

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
        variable: Variable,
        start: tuple[Tensor, Tensor],
        v: Tensor,
        known: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Any]:
        """(s, plan) of the steps of an adaptive solve, every row its own, from ``start`` = (t, u)
        to v, on the solver's `step_variable`.

        ``known`` = (mask, times): rows that land on a grid time. Override this if your plan inverts
        the variable too, so that both inversions share one call.
        """
        s = torch.where(*known, variable.time(v))
        return s, self.plan(problem, torch.stack([start[0], s]))[0]

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """State handed to the first step, or to every step where ``init_each_step``."""
        return ()

    def step_variable(self, problem: Problem) -> Variable:
        """The variable in which the steps of an adaptive solver have a length; those of one that
        draws noise are dyadic in it.
        """
        return variable_of(
            problem, "log_snr" if self.stochastic and "marginal" in problem.offers else "t"
        )

    def split(self, problem: Problem, a: Tensor, m: Tensor, b: Tensor) -> Tensor:
        """The share that a step from a to m has in the variance of the noise of one from a to b,
        for times (n,).
        """
        return (m - a) / (b - a)

    def slope(self, problem: Problem, x: Tensor, t: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """dy / du in the solver's `step_variable` at the start of an adaptive solve, from what
        `init` evaluated if that will do.
        """
        return slope(problem, self.step_variable(problem), x, t)

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
    def error_order(self) -> float:
        """The local error estimate is O(h^error_order)."""
        raise NotImplementedError
