"""Any ODE and any SDE, given by functions: `solve_ode` and `solve_sde`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Final, Literal, TypedDict, Unpack

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import at_least_float32
from sdediff.solvers.brownian import BrownianPath
from sdediff.solvers.events import Event
from sdediff.solvers.external.sde import Path
from sdediff.solvers.functions import (
    SENSES,
    STRUCTURES,
    Function,
    FunctionProblem,
    Sense,
    Structure,
)
from sdediff.solvers.given import (
    Numbers,
    callback_of,
    check_choice,
    chosen,
    described,
    flag,
    integer,
    plain,
)
from sdediff.solvers.grid import check_grid
from sdediff.solvers.integrate import integrate, require
from sdediff.solvers.noise import Noise, fresh_seed
from sdediff.solvers.options import Options, Shared, Snapshot, check_grad
from sdediff.solvers.recorder import watched
from sdediff.solvers.runge_kutta import RK45
from sdediff.solvers.solution import Solution
from sdediff.solvers.solver import Solver
from sdediff.solvers.stochastic import EulerMaruyama
from sdediff.solvers.white import White, seeds

__all__ = ["EquationOptions", "solve_ode", "solve_sde"]


class EquationOptions(TypedDict, total=False):
    """The options of `solve_ode` and `solve_sde`.

    ``events``: `Event` objects. Their `Crossings` are in ``Solution.events``. A sample that a
    terminal event ends has `Status.EVENT`, and its state there in ``x`` and at all later times of
    the trajectory.
    ``dense``: whether the steps are kept, so that ``Solution.dense(t)`` gives the states at any
    times: by the solver's own step, shortened, of the solver's order; for another library by a
    cubic, with an error O(h^4).
    ``condition``: tensors with a row for each sample, which all functions get by name. What
    differs from sample to sample belongs here, because an adaptive solver calls the functions
    with some of the samples.
    ``trajectory``: whether ``Solution.trajectory`` has the states at all ``times``.
    ``grad``: ``"full"`` keeps the graph of the solve; ``"checkpoint"`` evaluates again in the
    backward pass.
    ``callback``: a function that is called with a `Snapshot` after each step.
    ``max_nfe``: the most evaluations of a sample. Adaptive solvers have a limit of 50,000 by
    default.
    ``on_fail``: ``"raise"`` raises `SolveError` where a sample fails, ``"return"`` hands back what
    was reached.
    """

    events: Event | Sequence[Event]
    dense: bool
    condition: Mapping[str, Tensor] | None
    trajectory: bool
    grad: Literal["none", "full", "checkpoint"]
    callback: Callable[[Snapshot], None] | None
    max_nfe: int | None
    on_fail: Literal["raise", "return"]


_DEFAULTS: Final[EquationOptions] = {
    "events": (),
    "dense": False,
    "condition": None,
    "trajectory": True,
    "grad": "none",
    "callback": None,
    "max_nfe": None,
    "on_fail": "raise",
}
SHARED: Final = Shared(_DEFAULTS, (EquationOptions,))


@dataclass(frozen=True)
class Driving:
    """The `EquationOptions`, checked; ``what`` is the function whose output counts as the
    problem's.
    """

    what: str
    events: tuple[Event, ...]
    dense: bool
    condition: Mapping[str, Tensor] | None
    options: Options
    on_fail: Literal["raise", "return"]

    @classmethod
    def checked(
        cls, what: str, function: Callable[..., Solution], given: EquationOptions
    ) -> Driving:
        """From the options of a call of ``function``; ValueError or TypeError for wrong ones."""
        taken = chosen(function, given, _DEFAULTS)
        events, max_nfe, grad = taken["events"], taken["max_nfe"], taken["grad"]
        known = tuple(events) if isinstance(events, Sequence) else (events,)
        wrong = [each for each in known if not isinstance(each, Event)]
        if wrong:
            raise TypeError(f"events must be Event objects, Event(g) say; got {wrong[0]!r}")
        check_choice("on_fail", taken["on_fail"], ("raise", "return"))
        check_grad(grad)
        options = Options(
            trajectory=flag("trajectory", taken["trajectory"]),
            callback=callback_of("callback", taken["callback"], "of a Snapshot"),
            max_nfe=None if max_nfe is None else integer("max_nfe", max_nfe, 1),
            on_fail="return",
            grad=grad,
        )
        dense = flag("dense", taken["dense"])
        return cls(what, known, dense, taken["condition"], options, taken["on_fail"])

    def rows(self, x: Tensor) -> Mapping[str, Tensor]:
        """The condition; a ValueError unless it has a row for each of x."""
        if not isinstance(self.condition, Mapping | None):
            raise TypeError(
                "condition must be a dict from an argument of the functions to a tensor, "
                f"condition={{'k': k}} say; got {type(self.condition).__name__}"
            )
        for name, value in (self.condition or {}).items():
            if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != len(x):
                raise ValueError(
                    f"condition[{name!r}] must be a tensor with {len(x)} rows, one a sample; got "
                    f"{described(value)}. What all samples share goes into the function by "
                    "functools.partial"
                )
        return self.condition or {}

    @property
    def watches(self) -> bool:
        """Whether anything asks for the states between the steps."""
        return self.dense or bool(self.events)

    def solve(
        self,
        problem: FunctionProblem,
        solver: Solver,
        times: Tensor,
        noise: Noise | None,
    ) -> Solution:
        """The solution from the problem's start."""
        x = problem.start
        if len(times) > 1 and (solver.adaptive or times.ndim > 1):
            near = times[:2].detach().reshape(2, -1)[:, 0]
            problem.check_rows(x, torch.stack([near[0], near.mean()]))
        if self.watches:
            solution = watched(
                problem, solver, times, noise, self.options, self.events, dense=self.dense
            )
        else:
            solution = integrate(problem, solver, x, times, noise, self.options)
        failures = tuple(replace(each, what=self.what) for each in solution.failures)
        return replace(solution, failures=failures).failed((), self.on_fail)


@SHARED.takes(EquationOptions)
def solve_ode(
    f: Function,
    x: Tensor,
    times: Numbers,
    solver: Solver | None = None,
    **options: Unpack[EquationOptions],
) -> Solution:
    """Solve dx / dt = f(x, t) from x (B, *event) at ``times[0]`` over ``times``.

    ``f`` returns a tensor like x. Its t is () or, where every sample has its own steps, (rows,):
    ``expand(t, x)`` shapes it for x. ``times`` rise or fall, (N + 1,), or (N + 1, B) with a grid
    for each sample. ``solver`` is `RK45` by default, with rtol = atol = 1e-5. Adaptive solvers land
    on each time; fixed ones take the times as their steps. `SciPy`, which has implicit methods for
    stiff problems, and `TorchDiffEq` are solvers too.

    Raises ValueError or TypeError before any work where an argument is wrong, `SolveError` where a
    sample fails, with its time.
    """
    driving = Driving.checked("f", solve_ode, options)
    solver = RK45() if solver is None else _solver(solver)
    if solver.stochastic or solver.solves_sde:
        raise ValueError(
            f"{solver!r} draws noise, and an ODE has none: take RK45(), say, or solve_sde for an "
            "SDE"
        )
    with torch.inference_mode(False):
        state, grid = _state(x), _times(times, x)
        problem = FunctionProblem(state, _function("f", f), condition=driving.rows(state))
        return driving.solve(problem, solver, grid, None)


@SHARED.takes(EquationOptions)
def solve_sde(
    drift: Function,
    diffusion: Function | float,
    x: Tensor,
    times: Numbers,
    solver: Solver | None = None,
    *,
    structure: Structure = "diagonal",
    sense: Sense = "ito",
    derivative: Function | None = None,
    seed: int | Iterable[int] | None = None,
    noise: Noise | None = None,
    **options: Unpack[EquationOptions],
) -> Solution:
    """Solve dx = a(x, t) dt + b(x, t) dw from x (B, *event) at ``times[0]`` over ``times``, by
    `EulerMaruyama` if there is no ``solver``.

    ``drift`` is a, as f in `solve_ode`. ``diffusion`` is b, of the ``structure``

    - ``"diagonal"``: of the shape of x. Coordinate i of b depends on coordinate i of x alone, and
      multiplies its own Brownian motion;
    - ``"additive"``: b does not depend on x: of its shape, or a matrix (rows, d, m). A number is
      additive noise;
    - ``"general"``: a matrix (rows, d, m) for states (rows, d) and m Brownian motions;
      ``"commutative"``: the same, with (D b_k)[b_j] = (D b_j)[b_k] for its columns, as one column
      alone has.

    ``sense`` is ``"ito"`` or ``"stratonovich"``; dw has the variance abs(dt), also where times
    fall. ``derivative`` is that of b, for `Milstein`: d b_i / d x_i of the shape of x, or (rows,
    d, m, d) for a matrix; by default torch differentiates b.

    ``seed`` is one int, or one for each sample; ``noise`` is a noise object in its place, for the
    event of the Brownian motion. The path between the steps (``dense``, ``events``) has to be
    known: it is a `BrownianPath` then, which a seed makes of itself.

    Raises ValueError or TypeError before any work where an argument is wrong or the solver is not
    for such noise, `SolveError` where a sample fails.
    """
    driving = Driving.checked("the drift", solve_sde, options)
    solver = EulerMaruyama() if solver is None else _solver(solver)
    check_choice("structure", structure, STRUCTURES)
    check_choice("sense", sense, SENSES)
    if isinstance(plain(diffusion), Real):
        size = float(plain(diffusion))
        structure = "additive"

        def constant(x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
            return torch.full_like(x, size)

        diffusion = constant
    _check_noise(solver, structure, sense)
    with torch.inference_mode(False):
        state, grid = _state(x), _times(times, x)
        problem = FunctionProblem(
            state,
            _function("drift", drift),
            _function("diffusion", diffusion),
            derivative=None if derivative is None else _function("derivative", derivative),
            structure=structure,
            sense=sense,
            condition=driving.rows(state),
        )
        require(problem, solver)
        if driving.watches:
            _check_between(solver, noise)
        given = None if noise is not None else _seeds(seed, len(state))
        if noise is not None and seed is not None:
            raise ValueError("seed and noise are two ways to say the same: pass one of them")
        problem.probe(state, grid[0], derivative="iterated" in solver.needs)
        if given is not None:
            noise = _noise(given, problem, grid, path=driving.watches)
        shape = (len(state), *problem.brownian)
        own = (len(getattr(noise, "seeds", state)), *getattr(noise, "event", problem.brownian))
        if own != shape:
            raise ValueError(f"the noise is for {own}, and the Brownian motion is {shape}")
        return replace(driving.solve(problem, solver, grid, noise), seeds=given)


def _check_between(solver: Solver, noise: Noise | None) -> None:
    """A ValueError unless the path between the steps of a solver can be known."""
    if solver.external:
        raise ValueError(
            f"{solver!r} does not tell the path between its steps, so that there are no events "
            "and no dense output: take EulerMaruyama() or Milstein(), or put the times into "
            "the grid"
        )
    if noise is not None and not isinstance(noise, Path):
        raise ValueError(
            f"{noise!r} is not known between the steps, where events and dense output need it: "
            "pass a BrownianPath, or a seed"
        )


def _check_noise(solver: Solver, structure: Structure, sense: Sense) -> None:
    """A ValueError unless the solver integrates noise of the structure and sense."""
    if not solver.solves_sde:
        raise ValueError(
            f"{solver!r} integrates no diffusion: take EulerMaruyama() or Milstein(), or "
            "solve_ode for the drift alone"
        )
    if structure == "additive":  # where the senses are one
        return
    if structure not in solver.structures:
        reason = (
            "needs iterated integrals of pairs of Brownian motions, which increments do not give "
            "where noise does not commute"
            if solver.structures
            else "is for noise that does not depend on the state, which is structure='additive'"
        )
        raise ValueError(
            f"{solver!r} {reason}, and structure={structure!r}: take EulerMaruyama() in Ito's "
            "sense, StratonovichHeun() in Stratonovich's"
        )
    if sense not in solver.senses:
        sign, other = ("+", "ito") if sense == "stratonovich" else ("-", "stratonovich")
        takes = "StratonovichHeun() or Milstein()" if other == "ito" else "EulerMaruyama()"
        raise ValueError(
            f"{solver!r} solves SDEs in the sense {other!r}, and sense={sense!r}: take {takes}, "
            f"or hand over the drift a {sign} 1/2 sum over k of (D b_k)[b_k] (times that fall: the "
            f"other sign) with sense={other!r}"
        )


# -- arguments -------------------------------------------------------------------------------------


def _solver(solver: Solver) -> Solver:
    if not isinstance(solver, Solver):
        hint = "; pass an instance, RK45() say" if isinstance(solver, type) else ""
        raise TypeError(f"solver must be a Solver, got {solver!r}{hint}")
    return solver


def _function(name: str, value: Function | float) -> Function:
    if not callable(value):
        raise TypeError(f"{name} must be a function of (x, t), got {value!r}")
    return value


def _state(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a tensor of real numbers, float64 say; got {described(x)}")
    if x.ndim < 1:
        raise ValueError("x must be (B, *event), a batch of states; got one number: x[None]")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x has entries that are not finite")
    return at_least_float32(x).clone()


def _times(times: Numbers, x: Tensor) -> Tensor:
    grid = check_grid(times)
    if grid.ndim == 2 and grid.shape[1] != len(x):
        raise ValueError(f"there are {grid.shape[1]} grids for {len(x)} samples: pass one, or each")
    return grid


def _seeds(seed: int | Iterable[int] | None, count: int) -> tuple[int, ...]:
    if seed is None:
        return seeds(fresh_seed(), count)
    one = plain(seed)
    if not isinstance(one, Iterable):
        return seeds(integer("seed", one), count)
    given = tuple(integer("seed", each) for each in one)
    if len(given) != count:
        raise ValueError(f"seed must be one int, or one for each of {count} samples")
    return given


def _noise(given: tuple[int, ...], problem: FunctionProblem, times: Tensor, *, path: bool) -> Noise:
    x = problem.start
    if not path or len(times) < 2:
        return White(given, problem.brownian, dtype=x.dtype, device=x.device)
    grid = times.detach()
    ends = (grid.max(), grid.min())
    start, end = (
        float(each) for each in (ends if bool(grid[0].max() > grid[-1].max()) else ends[::-1])
    )
    return BrownianPath(
        given,
        problem.brownian,
        start,
        end,
        intervals=grid if grid.ndim == 1 else 64,
        dtype=x.dtype,
        device=x.device,
    )
