"""The loop of an adaptive solve, for every policy. For a shared grid see `integrate.py`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdediff.solvers.arithmetic import along
from sdediff.solvers.controller import Controller, judge
from sdediff.solvers.moving import Moving, Policy
from sdediff.solvers.norm import ErrorNorm
from sdediff.solvers.options import Control, Reached, Stepped
from sdediff.solvers.problem import Problem
from sdediff.solvers.solution import Failure, Status, failing
from sdediff.solvers.solver import Solver, checked, tolerances

__all__ = ["PerSample"]


class PerSample(Control):
    """Every sample has its own time, step size and error. A sample that has reached the end, or has
    failed, leaves the batch.

    ``steps`` says where steps may end. The solver's controller says which are accepted and how long
    the next ones are. With ``last_mean`` the last step adds no noise; with ``recompute`` what steps
    begin with is evaluated again for the gradient, rather than kept.
    """

    def __init__(
        self,
        problem: Problem,
        solver: Solver,
        x: Tensor,
        times: Tensor,
        steps: Policy,
        *,
        last_mean: bool = False,
        recompute: bool = False,
    ) -> None:
        self.solver = solver
        self.steps = steps
        self.end = len(times)
        self.last_mean = last_mean
        self.recompute = recompute
        self.accepted, self.rejected = torch.zeros(2, len(x), dtype=torch.int64)
        self.failures: list[Failure] = []
        self.final = x.clone()
        self.norm = ErrorNorm(*tolerances(solver, problem, x.dtype), problem.parts)
        # `require` has seen that an adaptive solver has one
        self.order = float(solver.error_order)  # type: ignore[attr-defined]
        own: Controller | None = getattr(solver, "controller", None)
        self.controller = steps.controller if own is None else own
        monitor = problem.monitor
        monitor.watch = True
        self.moving = Moving(
            samples=torch.arange(len(x)),
            problem=problem,
            x=x,
            state=(),
            t=times[0].expand(len(x)).clone(),
            u=steps.way.marks[0].clone(),
            target=torch.ones(len(x), dtype=torch.int64),
            moved=torch.zeros(len(x), dtype=torch.bool),
            history=self.controller.start(len(x)),
            own=(),
        )
        self.active = len(x) > 0 and self.end > 1
        if self.active:
            # all begin together
            begun = self.moving._replace(state=solver.init(problem, x, times[0]))
            bad = monitor.bad.clone()
            own_first = steps.first(begun, self.norm, self.controller.goal)
            self.moving = begun._replace(own=own_first)
            # the probe of the step size may have gone where no step will go
            monitor.bad[:] = bad

    @property
    def done(self) -> float:
        if self.end < 2:
            return 1.0
        return 1.0 - self.steps.way.ahead(self.moving) / max(1, len(self.final))

    def where(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.moving.t, self.moving.x, self.moving.samples

    def attempt(self, stepped: Stepped) -> Reached:
        old = self._begin()
        ahead = self.steps.propose(old)
        step = checked(
            stepped(old.problem, old.x, ahead.plan, ahead.noise, old.state), self.solver, old.x
        )
        if step.error is None:
            raise ValueError(f"{self.solver!r} is adaptive but its step gave no error estimate")
        x, state = step.x, old.state if self.solver.init_each_step else step.state
        if self.last_mean:
            last = ahead.landing & (old.target == self.end - 1)
            x = torch.where(along(last, x), step.mean, x)
        norm = self.norm(step.error, old.x, x)
        good, factor, history = judge(self.controller, norm, old.history, self.order)
        own = self.steps.resize(old, ahead, good, factor)
        t, u = ahead.s, ahead.v
        self.accepted.numpy()[old.samples.numpy()] += good.numpy()
        if not (whole := bool(good.all())):
            self.rejected.numpy()[old.samples.numpy()] += ~good.numpy()
            t, u = torch.where(good, t, old.t), torch.where(good, u, old.u)
            pairs = zip((x, *state), (old.x, *old.state), strict=True)
            x, *parts = (torch.where(along(good, new), new, before) for new, before in pairs)
            state = tuple(parts)
        arrived = good & ahead.landing
        target = old.target + arrived
        self.moving = Moving(old.samples, old.problem, x, state, t, u, target, good, history, own)
        if whole and not old.problem.monitor.troubled and not bool(arrived.any()):
            return []
        # A rejected step of the least size cannot be taken again with less.
        stuck = ~good & (ahead.length <= ahead.least * (1 + 1e-10))
        self._leave(target == self.end, stuck)
        return _frames(arrived, old.target, x, old.samples)

    def _begin(self) -> Moving:
        """Evaluate what a step begins with, of the rows that have moved since it was."""
        moving = self.moving
        if not (self.solver.init_each_step and bool(moving.moved.any())):
            return moving
        some = torch.nonzero(moving.moved).flatten()
        there, whole = some.to(moving.x.device), len(some) == len(moving.samples)
        problem, x, t = (
            (moving.problem, moving.x, moving.t)
            if whole
            else (moving.problem.take(some), moving.x[there], moving.t[some])
        )

        def init(x: Tensor) -> tuple[Tensor, ...]:
            return self.solver.init(problem, x, t)

        found = checkpoint(init, x, use_reentrant=False) if self.recompute else init(x)
        if not whole:
            pairs = zip(moving.state, found, strict=True)
            found = tuple(old.index_copy(0, there, new) for old, new in pairs)
        self.moving = moving._replace(state=found, moved=torch.zeros_like(moving.moved))
        return self.moving

    @property
    def _counted(self) -> Tensor:
        """The rows as the monitor counts them."""
        rows = self.moving.problem.rows
        return self.moving.samples if rows is None else rows

    def _leave(self, finished: Tensor, stuck: Tensor) -> None:
        """Remove the samples that have reached the end, and those that failed."""
        bad = self.moving.problem.monitor.bad[self._counted] & ~finished
        if bool((failed := bad | stuck).any()):
            self._fail(bad, Status.NETWORK_NOT_FINITE)
            self._fail(stuck & ~bad, Status.STEP_TOO_SMALL)
        self.hold(finished | failed)

    def _fail(self, mask: Tensor, status: Status, words: str = "") -> None:
        self.failures += failing(self.moving.samples[mask], self.moving.t[mask], status, words)

    def hold(self, failed: Tensor) -> None:
        """Take the rows of a mask out of the batch, their states into the result."""
        if not bool(failed.any()):
            return
        gone, stay = torch.nonzero(failed).flatten(), torch.nonzero(~failed).flatten()
        moving = self.moving
        self.final[moving.samples[gone].to(self.final.device)] = moving.x[gone.to(moving.x.device)]
        self.moving = moving.take(stay)
        self.active = len(stay) > 0

    def stop(self, samples: Tensor, x: Tensor) -> None:
        self.hold(torch.isin(self.moving.samples, samples))
        self.final[samples.to(self.final.device)] = x

    def cap(self, max_nfe: int) -> None:
        counts, each = self.moving.problem.monitor.evaluations, self.moving.problem.cost
        if counts.most + self.solver.evaluations * each <= max_nfe:
            return
        kept = 1 - self.moving.moved.long() if self.solver.init_each_step else 0
        cost = (self.solver.evaluations - kept) * each
        over = counts.total[self._counted] + cost > max_nfe
        self._fail(over, Status.MAX_NFE, f"{max_nfe:,} evaluations")
        self.hold(over)


def _frames(
    arrived: Tensor, target: Tensor, x: Tensor, rows: Tensor
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    for k in target[arrived].unique().tolist():
        here = torch.nonzero(arrived & (target == k)).flatten()
        yield k, x[here.to(x.device)], rows[here]
