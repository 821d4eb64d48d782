"""The one loop that drives every solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdediff.solvers.arithmetic import rowwise
from sdediff.solvers.control import PerSample
from sdediff.solvers.dyadic import DyadicSteps
from sdediff.solvers.fixed import FixedSteps
from sdediff.solvers.legs import Leg, legs_of
from sdediff.solvers.needs import unknown_needs
from sdediff.solvers.noise import Noise, StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.scalars import Record
from sdediff.solvers.solution import MOST_NFE, Failure, Solution, SolveError, Status
from sdediff.solvers.solver import Solver, Step
from sdediff.solvers.stepping import Control, checked

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
    """Solve ``problem`` by ``solver`` from ``x`` (B, *event) at ``times[0]`` over the grid ``times``, float64 on the host.

    The grid is (N + 1,), or (N + 1, B) where every sample has its own. A problem with breaks is solved from each to the next, and
    the grid gets them added.

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
        run = _drive(problem, solver, x, times, noise, options, watch=False)
        # The one look at the states, which is where the host waits for the device.
        lost = not run.failures and not bool(torch.isfinite(run.x).all())
        if lost:
            problem.monitor.clear()
            run = _drive(problem, solver, x, times, noise, options, watch=True)
    solution = _solution(problem, run, lost=lost)
    if solution.failures and options.on_fail == "raise":
        raise SolveError(solution)
    return solution


@dataclass
class _Run:
    """What has come of each sample so far; its failures are those of samples that go no further."""

    x: Tensor
    times: Tensor
    accepted: Tensor
    rejected: Tensor
    frames: list[Tensor] | None
    failures: list[Failure] = field(default_factory=list)
    steps: int = 0

    @classmethod
    def begun(cls, x: Tensor, times: Tensor, *, trajectory: bool) -> _Run:
        """Before the first step."""
        accepted, rejected = torch.zeros(2, len(x), dtype=torch.int64)
        frames = [x] + [x.clone() for _ in times[1:]] if trajectory else None
        return cls(x, times, accepted, rejected, frames)

    @property
    def failed(self) -> Tensor:
        """Which samples have failed, bool (B,) on the host."""
        failed = torch.zeros(len(self.x), dtype=torch.bool)
        failed[[failure.sample for failure in self.failures]] = True
        return failed

    def going(self, group: int) -> Tensor | None:
        """The samples in whose ``group`` one has not failed, int64 (k,) on the host; None: all."""
        if not self.failures:
            return None
        gone = self.failed.reshape(-1, group).all(dim=1).repeat_interleave(group)
        return torch.nonzero(~gone).flatten()

    def keep(self, k: int, x: Tensor, rows: Tensor | None) -> None:
        """States of the samples ``rows`` (None: all) at time k of the grid."""
        if self.frames is None:
            return
        if rows is None:
            self.frames[k] = x
        else:
            self.frames[k][rows.to(x.device)] = x

    def close(self, control: Control, rows: Tensor | None) -> None:
        """What a leg has made of the samples ``rows`` (None: all)."""
        x = control.result()
        if rows is None:
            self.x, self.failures = x, control.failures
        else:
            self.x = self.x.index_copy(0, rows.to(x.device), x)
            self.failures += [replace(each, sample=int(rows[each.sample])) for each in control.failures]
        own = slice(None) if rows is None else rows
        self.accepted[own] += control.accepted
        self.rejected[own] += control.rejected


def _drive(
    problem: Problem, solver: Solver, x: Tensor, times: Tensor, noise: Noise | None, options: Options, *, watch: bool
) -> _Run:
    # A discrete model evaluates at its own levels alone, and steps over a break as it steps over all between them.
    times, legs = (times, [Leg(problem, times, 0, True)]) if solver.times is not None else legs_of(problem, times)
    for leg in legs[1:] if not solver.adaptive else []:
        solver.plan(leg.problem, leg.times)  # what it cannot do it says before the first evaluation
    run = _Run.begun(x, times, trajectory=options.trajectory)
    for leg in legs:
        rows = run.going(solver.group)
        if rows is not None:
            leg = leg._replace(problem=leg.problem.take(rows))
        own = noise if rows is None or noise is None else noise.take(rows)
        state = run.x if rows is None else run.x[rows.to(x.device)]
        control = _control(solver, leg, state, own, options, watch=watch)
        if rows is not None and solver.group > 1:
            control.hold(run.failed[rows])
        _step_through(control, leg, rows, run, options)
        run.close(control, rows)
    return run


def _control(solver: Solver, leg: Leg, x: Tensor, noise: Noise | None, options: Options, *, watch: bool) -> Control:
    control: Control
    problem, times, last_mean = leg.problem, leg.times, options.last == "mean" and leg.last
    if solver.adaptive and solver.stochastic:
        control = DyadicSteps(problem, solver, x, times, noise, last_mean=last_mean, first=leg.first)
    elif solver.adaptive:
        control = PerSample(problem, solver, x, times, noise)
    else:
        control = FixedSteps(problem, solver, x, times, noise, watch=watch, last_mean=last_mean, first=leg.first)
    control.recompute = options.grad == "checkpoint"
    return control


def _step_through(control: Control, leg: Leg, samples: Tensor | None, run: _Run, options: Options) -> None:
    """Take the steps of a leg of the samples ``samples`` (None: all)."""
    solver, limit = control.solver, options.limit(control.solver)
    told = options.progress is not None or options.callback is not None
    stepped = partial(_recomputed, solver=solver) if control.recompute else solver.step
    while control.active:
        if limit is not None:
            control.cap(limit)
            if not control.active:
                break
        reached = control.attempt(stepped)
        run.steps += 1
        if run.frames is not None:
            for k, state, rows in reached:
                run.keep(leg.first + k, state, _among(samples, rows))
        if told:
            _show(control, leg, samples, run, options)


def _show(control: Control, leg: Leg, samples: Tensor | None, run: _Run, options: Options) -> None:
    """Tell the user's functions how far the solve is."""
    done = _done(run.times, leg, control)
    if options.progress is not None:
        options.progress(done)
    if options.callback is not None:
        rows = _among(samples, control.rows)
        rows = None if rows is None else rows.clone()
        nfe = control.problem.monitor.nfe
        options.callback(Snapshot(run.steps, done, control.t.clone(), control.x.clone(), rows, nfe))


def _among(samples: Tensor | None, rows: Tensor | None) -> Tensor | None:
    """Rows of some samples as samples of the solve."""
    return rows if samples is None else samples if rows is None else samples[rows]


def _done(times: Tensor, leg: Leg, control: Control) -> float:
    """The share of the whole way that is behind."""
    if leg.first == 0 and leg.last:
        return control.done
    before, behind = abs(float(leg.times[0] - times[0])), abs(float(leg.times[-1] - leg.times[0]))
    return (before + control.done * behind) / abs(float(times[-1] - times[0]))


def _recomputed(problem: Problem, x: Tensor, plan: Any, noise: StepNoise, state: tuple[Tensor, ...], *, solver: Solver) -> Step:
    """A step of which the backward pass makes the states anew."""

    def stepped(x: Tensor) -> Step:
        return checked(solver.step(problem, x, plan, noise, state), solver, x)

    return Step(*checkpoint(stepped, x, use_reentrant=False))


def _solution(problem: Problem, run: _Run, *, lost: bool) -> Solution:
    x = run.x
    failures = sorted(run.failures, key=lambda failure: failure.sample)
    if lost and not failures:  # the replay found nothing: the network answered differently the second time
        rows = torch.nonzero(~torch.isfinite(rowwise(x)).all(dim=1)).flatten().tolist()
        failures = [Failure(sample, Status.STATE_NOT_FINITE, float("nan")) for sample in rows]
    status = torch.zeros(len(x), dtype=torch.int64)
    for failure in failures:
        status[failure.sample] = failure.status
    return Solution(
        x=x,
        times=run.times,
        nfe=problem.monitor.nfe,
        accepted=run.accepted,
        rejected=run.rejected,
        status=status,
        trajectory=None if run.frames is None else torch.stack(run.frames),
        failures=tuple(failures),
        backward=problem.monitor.backward_passes.total,
    )
