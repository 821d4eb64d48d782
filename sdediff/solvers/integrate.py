"""The one loop that drives every solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdediff.solvers.arithmetic import rowwise
from sdediff.solvers.control import Control, PerSample
from sdediff.solvers.dyadic import DyadicSteps
from sdediff.solvers.fixed import FixedSteps
from sdediff.solvers.needs import unknown_needs
from sdediff.solvers.noise import Noise
from sdediff.solvers.problem import Problem
from sdediff.solvers.scalars import Record
from sdediff.solvers.solution import MOST_NFE, Failure, Solution, SolveError, Status
from sdediff.solvers.solver import Solver, Step

__all__ = ["Options", "Snapshot", "integrate", "require"]


class Snapshot(NamedTuple):
    """What a callback sees after a step: copies, so that what it does to them does not reach the solve."""

    step: int
    """Number of steps (attempts, if adaptive) made."""
    done: float
    """Share of the way that is behind, 0 to 1."""
    t: Tensor
    """Time, () or (rows,)."""
    x: Tensor
    """States (rows, *event) of the samples still moving."""
    rows: Tensor | None
    """Which samples those are; None: all."""
    nfe: Tensor
    """Evaluations so far, (B,)."""


@dataclass(frozen=True)
class Options(Record):
    """How to drive a solve; `sdediff.sample` documents each."""

    last: Literal["mean", "noisy"] = "noisy"
    trajectory: bool = False
    callback: Callable[[Snapshot], None] | None = None
    max_nfe: int | None = None
    on_fail: Literal["raise", "return"] = "raise"
    grad: Literal["none", "full", "checkpoint"] = "none"
    progress: Callable[[float], None] | None = None

    def limit(self, solver: Solver) -> int | None:
        """Evaluations a sample at most: ``max_nfe``, and `MOST_NFE` for an adaptive solver without one."""
        return MOST_NFE if self.max_nfe is None and solver.adaptive else self.max_nfe


_INSTEAD = "EulerMaruyama and RK45 need drift and diffusion only"


def require(problem: Problem, solver: Solver) -> None:
    """A ValueError unless ``problem`` offers all that ``solver`` needs, a TypeError where the solver lacks a part."""
    if unknown := unknown_needs(solver, problem.offers):
        raise ValueError(unknown)
    name = type(solver).__name__
    if type(solver).step is Solver.step and not solver.whole:
        raise TypeError(f"{name} has no step: give step(self, problem, x, plan, noise, state), which returns a Step")
    lacking = [part for part in ("rtol", "atol", "error_order") if solver.adaptive and not hasattr(solver, part)]
    if lacking and not solver.whole:
        raise TypeError(f"{name} is adaptive and lacks {', '.join(lacking)}: it has fields rtol and atol, and an error_order")
    missing = sorted(solver.needs - problem.offers)
    if missing:
        raise ValueError(f"{solver!r} needs {', '.join(missing)}, which this problem does not offer; {_INSTEAD}")


def integrate(
    problem: Problem, solver: Solver, x: Tensor, times: Tensor, noise: Noise | None = None, options: Options | None = None
) -> Solution:
    """Solve ``problem`` by ``solver`` from ``x`` (B, *event) at ``times[0]`` over the grid ``times`` (N + 1,), float64 on the host.

    Fixed-step solvers step from each time to the next; adaptive ones land on each. A solve that ends with numbers that are not
    finite is run again with every step checked, to name the sample, the time and what went bad; the noise being stateless, it
    fails the same way. Raises `SolveError` if a sample failed, unless ``options.on_fail == "return"``.
    """
    options = options or Options()
    if solver.whole and type(solver).solve is not Solver.solve:  # another library's driver has a loop of its own
        return solver.solve(problem, x, times, noise, options)
    require(problem, solver)
    if solver.stochastic and noise is None:
        raise ValueError(f"{solver!r} draws noise: pass a noise object, White(seeds, event) say")
    with torch.set_grad_enabled(options.grad != "none"):
        control, frames = _drive(problem, solver, x, times, noise, options, watch=False)
        # The one look at the states, which is where the host waits for the device.
        lost = not control.failures and not bool(torch.isfinite(control.result()).all())
        if lost:
            problem.monitor.clear()
            control, frames = _drive(problem, solver, x, times, noise, options, watch=True)
    solution = _solution(control, frames, lost=lost)
    if solution.failures and options.on_fail == "raise":
        raise SolveError(solution)
    return solution


def _drive(
    problem: Problem, solver: Solver, x: Tensor, times: Tensor, noise: Noise | None, options: Options, *, watch: bool
) -> tuple[Control, Tensor | None]:
    control: Control
    last_mean = options.last == "mean"
    if solver.adaptive and solver.stochastic:
        control = DyadicSteps(problem, solver, x, times, noise, last_mean=last_mean)
    elif solver.adaptive:
        control = PerSample(problem, solver, x, times, noise)
    else:
        control = FixedSteps(problem, solver, x, times, noise, watch=watch, last_mean=last_mean)
    control.recompute = options.grad == "checkpoint"
    frames = [x] + [x.clone() for _ in times[1:]] if options.trajectory else None
    index, limit = 0, options.limit(solver)
    while control.active:
        if limit is not None:
            control.cap(limit)
            if not control.active:
                break
        if options.grad == "checkpoint":
            step = _checkpointed(solver, control)
        else:
            step = solver.step(control.problem, control.x, control.propose(), control.noise, control.state)
        reached = control.accept(_checked(step, solver, control.x))
        if frames is not None:
            for k, state, rows in reached:
                if rows is None:
                    frames[k] = state
                else:
                    frames[k][rows.to(x.device)] = state
        index += 1
        if options.progress is not None:
            options.progress(control.done)
        if options.callback is not None:
            rows = None if control.rows is None else control.rows.clone()
            snapshot = Snapshot(index, control.done, control.t.clone(), control.x.clone(), rows, problem.monitor.nfe)
            options.callback(snapshot)
    return control, None if frames is None else torch.stack(frames)


def _checked(step: Step, solver: Solver, x: Tensor) -> Step:
    """What a solver's ``step`` returned from x; a TypeError or ValueError unless it is a `Step` with a state like x."""
    name = type(solver).__name__
    if not isinstance(step, Step):
        raise TypeError(f"{name}.step must return a Step, got {type(step).__name__}; return Step(x), x the state at s")
    if not isinstance(step.x, Tensor):
        raise TypeError(f"{name}.step must return a Step with a tensor as x, got {type(step.x).__name__}")
    if step.x.shape != x.shape or step.x.dtype != x.dtype:
        wanted, got = (f"{tuple(state.shape)}, {state.dtype}" for state in (x, step.x))
        raise ValueError(f"{name}.step must return a state of the shape and the dtype of x, {wanted}; got {got}")
    return step


def _checkpointed(solver: Solver, control: Control) -> Step:
    problem, plan, noise, state = control.problem, control.propose(), control.noise, control.state

    def stepped(x: Tensor) -> Step:
        return _checked(solver.step(problem, x, plan, noise, state), solver, x)

    return Step(*checkpoint(stepped, control.x, use_reentrant=False))


def _solution(control: Control, frames: Tensor | None, *, lost: bool) -> Solution:
    x = control.result()
    failures = sorted(control.failures, key=lambda failure: failure.sample)
    if lost and not failures:  # the replay found nothing: the network answered differently the second time
        rows = torch.nonzero(~torch.isfinite(rowwise(x)).all(dim=1)).flatten().tolist()
        failures = [Failure(sample, Status.STATE_NOT_FINITE, float("nan")) for sample in rows]
    status = torch.zeros(len(x), dtype=torch.int64)
    for failure in failures:
        status[failure.sample] = failure.status
    return Solution(
        x=x,
        times=control.times,
        nfe=control.problem.monitor.nfe,
        accepted=control.accepted,
        rejected=control.rejected,
        status=status,
        trajectory=frames,
        failures=tuple(failures),
    )
