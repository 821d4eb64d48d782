"""The one loop that drives every solver."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdediff.solvers.arithmetic import along, rowwise
from sdediff.solvers.control import PerSample
from sdediff.solvers.dyadic import DyadicSteps
from sdediff.solvers.free import FreeSteps
from sdediff.solvers.legs import Leg, legs_of
from sdediff.solvers.moving import Policy
from sdediff.solvers.needs import unknown_needs
from sdediff.solvers.noise import Noise, Silence, StepNoise
from sdediff.solvers.options import Control, Options, Reached, Snapshot, Stepped
from sdediff.solvers.problem import Problem
from sdediff.solvers.run import Run, show
from sdediff.solvers.solution import Failure, Solution, Status, failing
from sdediff.solvers.solver import Solver, Step, checked

__all__ = ["Options", "Snapshot", "integrate", "require"]

_INSTEAD = "EulerMaruyama and RK45 need drift and diffusion only"


def require(problem: Problem, solver: Solver) -> None:
    """A ValueError unless ``problem`` offers all that ``solver`` needs, a TypeError where the
    solver lacks a part.
    """
    met = isinstance(solver.needs, Set) and solver.needs <= problem.offers
    if not met and (unknown := unknown_needs(solver, problem.offers)):
        raise ValueError(unknown)
    name = type(solver).__name__
    if type(solver).step is Solver.step and not solver.external:
        raise TypeError(
            f"{name} has no step: give step(self, problem, x, plan, noise, state), which returns "
            "a Step"
        )
    lacking = [
        part
        for part in ("rtol", "atol", "error_order")
        if solver.adaptive and not hasattr(solver, part)
    ]
    if lacking and not solver.external:
        raise TypeError(
            f"{name} is adaptive and lacks {', '.join(lacking)}: it has fields rtol and atol, "
            "and an error_order"
        )
    if not met:
        missing = ", ".join(sorted(solver.needs - problem.offers))
        has = f"it offers {', '.join(sorted(problem.offers))}"
        instead = _INSTEAD if "drift" in problem.offers else has
        raise ValueError(
            f"{solver!r} needs {missing}, which this problem does not offer; {instead}"
        )


def integrate(
    problem: Problem,
    solver: Solver,
    x: Tensor,
    times: Tensor,
    noise: Noise | None = None,
    options: Options | None = None,
) -> Solution:
    """Solve ``problem`` by ``solver`` from ``x`` (B, *event) at ``times[0]`` over the grid
    ``times``, float64 on the host.

    The grid is (N + 1,), or (N + 1, B) where every sample has its own. A problem with breaks is
    solved from each to the next, and the grid gets them added.

    Fixed-step solvers step from each time to the next; adaptive ones land on each. A solve that
    ends with numbers that are not finite is run again with every step checked, to name the sample,
    the time and what went bad; the noise being stateless, it fails the same way. Raises
    `SolveError` if a sample failed, unless ``options.on_fail == "return"``.
    """
    options = options or Options()
    # another library's driver has a loop of its own
    if solver.external and type(solver).solve is not Solver.solve:
        return solver.solve(problem, x, times, noise, options)
    require(problem, solver)
    if solver.stochastic and not hasattr(noise, "at"):
        raise ValueError(f"{solver!r} draws noise: pass a noise object, White(seeds, event) say")
    with torch.set_grad_enabled(options.grad != "none"):
        run = _drive(problem, solver, x, times, noise, options, watch=False)
        # The one look at the states, which is where the host waits for the device.
        lost = not run.failures and not bool(torch.isfinite(run.x).all())
        if lost:
            problem.monitor.clear()
            run = _drive(problem, solver, x, times, noise, options, watch=True)
    # the replay found nothing: the network answered differently the second time
    if lost and not run.failures:
        rows = torch.nonzero(~torch.isfinite(rowwise(run.x)).all(dim=1)).flatten()
        run.failures = failing(rows, torch.tensor(torch.nan), Status.STATE_NOT_FINITE)
    solution = Solution(
        x=run.x,
        times=run.times,
        nfe=problem.monitor.evaluations.total,
        accepted=run.accepted,
        rejected=run.rejected,
        status=torch.zeros(len(x), dtype=torch.int64),
        trajectory=None if run.frames is None else torch.stack(run.frames),
        backward=problem.monitor.backward_passes.total,
        extras=run.extras,
    )
    return solution.failed(run.failures, options.on_fail) if run.failures else solution


def _drive(
    problem: Problem,
    solver: Solver,
    x: Tensor,
    times: Tensor,
    noise: Noise | None,
    options: Options,
    *,
    watch: bool,
) -> Run:
    legs = [Leg(problem, times, 0, True)]
    # A discrete model evaluates at its own levels alone, and steps over a break as it steps over
    # all between them.
    if problem.breaks and solver.times is None:
        times, legs = legs_of(problem, times)
    for leg in legs[1:] if not solver.adaptive else []:
        solver.plan(leg.problem, leg.times)  # what it cannot do it says before the first evaluation
    accepted, rejected = torch.zeros(2, len(x), dtype=torch.int64)
    frames = [x] + [x.clone() for _ in times[1:]] if options.trajectory else None
    run = Run(x, times, accepted, rejected, frames)
    for leg in legs:
        if not run.failures:
            control = _solve_leg(solver, leg, run, noise, None, options, watch=watch)
            run.x, run.failures = control.final, control.failures
            run.extras = control.extras
            run.accepted += control.accepted
            run.rejected += control.rejected
        else:
            rows = run.going(solver.group)
            leg = leg._replace(problem=leg.problem.take(rows))
            own = None if noise is None else noise.take(rows)
            control = _solve_leg(solver, leg, run, own, rows, options, watch=watch)
            run.x = run.x.index_copy(0, rows.to(x.device), control.final)
            run.failures += [
                replace(each, sample=int(rows[each.sample])) for each in control.failures
            ]
            run.accepted[rows] += control.accepted
            run.rejected[rows] += control.rejected
    return run


def _solve_leg(
    solver: Solver,
    leg: Leg,
    run: Run,
    noise: Noise | None,
    samples: Tensor | None,
    options: Options,
    *,
    watch: bool,
) -> Control:
    """Take the steps of a leg of the samples ``samples`` (None: all)."""
    problem = leg.problem
    times = leg.times
    last_mean = options.last == "mean" and leg.last
    recompute = options.grad == "checkpoint"
    x = run.x if samples is None else run.x[samples.to(run.x.device)]
    control: Control
    if not solver.adaptive:
        control = FixedSteps(
            problem, solver, x, times, noise, watch=watch, last_mean=last_mean, first=leg.first
        )
    else:
        steps: Policy = (
            DyadicSteps(problem, solver, times, len(x), noise, leg.first)
            if solver.stochastic
            else FreeSteps(problem, solver, times, len(x))
        )
        control = PerSample(
            problem, solver, x, times, steps, last_mean=last_mean, recompute=recompute
        )
    if samples is not None and solver.group > 1:
        control.hold(run.failed[samples])
    stepped = partial(_recomputed, solver=solver) if recompute else solver.step
    limit = options.limit(solver) if solver.adaptive else options.max_nfe
    told = options.progress is not None or options.callback is not None
    while control.active:
        if limit is not None:
            control.cap(limit)
            if not control.active:
                break
        watcher = options.observer
        reached = control.attempt(stepped) if watcher is None else watcher.attempt(control, stepped)
        run.steps += 1
        if run.frames is not None:
            run.keep(reached, leg.first, samples)
        if told:
            show(control, leg, samples, run, options)
    return control


class FixedSteps(Control):
    """Every sample takes every step of the grid.

    With ``watch`` each step is checked, and a sample that goes bad stays at its last finite state;
    without it nothing is looked at on the way, so that a step costs no synchronisation with the
    device.
    """

    def __init__(
        self,
        problem: Problem,
        solver: Solver,
        x: Tensor,
        times: Tensor,
        noise: Noise | None,
        *,
        watch: bool,
        last_mean: bool,
        first: int = 0,
    ) -> None:
        self.problem = problem
        self.solver = solver
        self.times = times
        self.x = self.final = x
        self.accepted, self.rejected = torch.zeros(2, len(x), dtype=torch.int64)
        self.failures: list[Failure] = []
        self.watch = watch
        self.last_mean = last_mean
        self.first = first
        problem.monitor.watch = watch
        self.plans = (
            solver.plan(problem, times) if len(times) > 1 or solver.times is not None else []
        )
        if not isinstance(self.plans, Sequence | Tensor):
            name, got = type(solver).__name__, type(self.plans).__name__
            raise TypeError(f"{name}.plan must return a list, an entry for each step; got {got}")
        if len(self.plans) != len(times) - 1:
            raise ValueError(
                f"{solver!r} planned {len(self.plans)} steps for a grid of {len(times) - 1}; "
                "plan() gives one entry a step"
            )
        self.index, self.end = 0, len(self.plans) - 1
        self.active = bool(self.plans)
        self.noise = noise if solver.stochastic else None
        self.silent = Silence(solver)
        self.failed = torch.zeros(len(x), dtype=torch.bool)
        self.state = solver.init(problem, x, times[0]) if self.plans else ()

    @property
    def done(self) -> float:
        return self.index / max(1, len(self.plans))

    def where(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.times[self.index], self.x, None

    def attempt(self, stepped: Stepped) -> Reached:
        index, x = self.index, self.x
        noise = self.silent if self.noise is None else self.noise.at(self.first + index)
        step = stepped(self.problem, x, self.plans[index], noise, self.state)
        if index == 0 or type(step) is not Step:
            step = checked(step, self.solver, x)
        last = index == self.end
        x = step.mean if last and self.last_mean else step.x
        self.x = self.final = self._hold_failed(x) if self.watch else x
        self.index = index + 1
        self.state = step.state
        self.active = not last
        if last:
            self.accepted[~self.failed] = self.index
            self.extras = step.extras
        return [(self.index, self.x, None)]

    def _hold_failed(self, x: Tensor) -> Tensor:
        finite = torch.isfinite(rowwise(x)).all(dim=1).cpu()
        network = (
            self.problem.monitor.bad
            if self.problem.rows is None
            else self.problem.monitor.bad[self.problem.rows]
        )
        self._fail(network & ~self.failed, Status.NETWORK_NOT_FINITE)
        self._fail(~finite & ~self.failed, Status.STATE_NOT_FINITE)
        return torch.where(along(self.failed, x), self.x, x)

    def _fail(self, which: Tensor, status: Status, words: str = "") -> None:
        """Note that samples, a mask (B,), go no further."""
        some = torch.nonzero(which).flatten()
        ends = self.times[self.index].expand(len(which))[some]
        self.failures += failing(some, ends, status, words)
        self.accepted[some] = self.index
        self.failed = self.failed | which

    def hold(self, failed: Tensor) -> None:
        self.failed = failed

    def stop(self, samples: Tensor, x: Tensor) -> None:
        self.x = self.final = self.x.index_copy(0, samples.to(self.x.device), x)
        self.accepted[samples] = self.index
        self.failed[samples] = True
        # From here on samples are held, as those that failed are.
        self.watch = self.problem.monitor.watch = True
        self.active = self.active and not bool(self.failed.all())

    def cap(self, max_nfe: int) -> None:
        nfe = self.problem.monitor.evaluations.total
        nfe = nfe if self.problem.rows is None else nfe[self.problem.rows]
        if (
            len(nfe)
            and int(nfe.max()) + self.solver.cost(self.plans[self.index]) * self.problem.cost
            > max_nfe
        ):
            self._fail(~self.failed, Status.MAX_NFE, f"{max_nfe:,} evaluations")
            self.active = False


def _recomputed(
    problem: Problem,
    x: Tensor,
    plan: Any,
    noise: StepNoise,
    state: tuple[Tensor, ...],
    *,
    solver: Solver,
) -> Step:
    """A step of which the backward pass makes the states anew."""

    def stepped(x: Tensor) -> Step:
        return checked(solver.step(problem, x, plan, noise, state), solver, x)

    return Step(*checkpoint(stepped, x, use_reentrant=False))
