"""A solve whose steps are seen: for dense output, and for events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import along, expand
from sdediff.solvers.dense import Cubic, Dense, Segments, Shortened, Within
from sdediff.solvers.events import Event, ridders
from sdediff.solvers.functions import FunctionProblem
from sdediff.solvers.integrate import integrate
from sdediff.solvers.noise import Noise, StepNoise
from sdediff.solvers.options import Control, Options, Reached, Snapshot, Stepped
from sdediff.solvers.problem import Problem
from sdediff.solvers.solution import Crossings, Solution, Status
from sdediff.solvers.solver import Solver, Step

__all__ = ["watched"]

_NEAR: Final = 1e-10


@dataclass
class Recorder:
    """Sees the accepted steps of a solve, keeps them if ``keep``, and looks for events."""

    problem: FunctionProblem
    within: Within
    events: Sequence[Event]
    x: Tensor
    times: Tensor
    keep: bool
    smooth: bool = True
    """Whether the states have a slope along the way, as those of an ODE."""
    steps: list[Segments] = field(default_factory=list)
    found: list[list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=list)
    _control: Control | None = None

    def begin(self) -> None:
        """Forget what was seen: the solve starts."""
        self.steps, self.found = [], [[] for _ in self.events]
        self.every = torch.arange(len(self.x))
        start = self.times[0].expand(len(self.x))
        with torch.no_grad():
            self.values = [each.value(self.problem, self.x, start) for each in self.events]
        self.stopped = torch.zeros(len(self.x), dtype=torch.bool)
        self.ends = torch.full((len(self.x),), math.nan, dtype=torch.float64)
        self.sign = -1.0 if bool((self.times[-1] < self.times[0]).any()) else 1.0
        span = float((self.times[-1] - self.times[0]).detach().abs().max())
        self.near = span * max(_NEAR, 4 * torch.finfo(self.x.dtype).eps)
        self._before = self.times[0], self.x
        self.last = self.x

    def attempt(self, control: Control, stepped: Stepped) -> Reached:
        """Let the driver take a step, and look at what was accepted."""
        if control is not self._control:
            self._control = control
            self.begin()
        t, _, samples = control.where()
        rows = self.every if samples is None else samples
        t = t.expand(len(rows))
        before = control.accepted.clone()
        seen = []

        def watched(
            problem: Problem, x: Tensor, plan: Any, noise: StepNoise, state: tuple[Tensor, ...]
        ) -> Step:
            step = stepped(problem, x, plan, noise, state)
            seen.append((x, step.x, state))
            return step

        reached = control.attempt(watched)
        now, _, samples = control.where()
        good = ~self.stopped if samples is None else control.accepted[rows] > before[rows]
        moving = self.every if samples is None else samples
        ends = self.times[-1].expand(len(self.x)).clone()  # a sample that has left is at the end
        ends[moving] = now.expand(len(moving))
        part = Segments(rows, t, ends[rows], *seen[-1])
        self._see(part if bool(good.all()) else part.take(good.nonzero().flatten()), control)
        return reached

    def snapshot(self, seen: Snapshot) -> None:
        """The same for a driver of another library, which tells where it is."""
        t, x = self._before
        rows = (~self.stopped).nonzero().flatten()
        part = Segments(torch.arange(len(x)), t.expand(len(x)), seen.t.expand(len(x)), x, seen.x)
        self._before = seen.t, seen.x
        if float(t) != float(seen.t):
            self._see(part.take(rows), None)

    def _see(self, part: Segments, control: Control | None) -> None:
        problem = self.problem.take(part.sample)
        happened = []
        for k, event in enumerate(self.events):
            with torch.no_grad():
                after = event.value(problem, part.y, part.s)
            before = self.values[k][part.sample]
            self.values[k][part.sample] = after
            some = event.happened(before, after).nonzero().flatten()
            if len(some):
                own = part.take(some)
                t, x = self._located(event, own, before[some], after[some])
                happened.append((k, some, t, x))
        if happened:
            part = self._ended(part, happened, control)
        if self.keep:
            self.steps.append(part)

    def _ended(
        self,
        part: Segments,
        happened: list[tuple[int, Tensor, Tensor, Tensor]],
        control: Control | None,
    ) -> Segments:
        """Note events, but none after a terminal one; the steps, cut where a sample's way ends."""
        ends = torch.full((len(part.sample),), torch.inf, dtype=torch.float64)
        s, y = part.s.clone(), part.y.clone()
        for k, some, t, x in happened:
            way = self.sign * t.detach()
            if self.events[k].terminal:
                first = way < ends[some]
                ends[some[first]] = way[first]
                s[some[first]] = t.detach()[first]
                y[some[first].to(y.device)] = x[first.to(x.device)]
        for k, some, t, x in happened:
            kept = (self.sign * t.detach() <= ends[some]).nonzero().flatten()
            there = kept.to(x.device)
            self.found[k].append((part.sample[some[kept]], t[kept], x[there]))
        over = torch.isfinite(ends).nonzero().flatten()
        if len(over):
            samples = part.sample[over]
            self.stopped[samples] = True
            self.ends[samples] = s[over]
            states = y[over.to(y.device)]
            self.last = self.last.index_copy(0, samples.to(states.device), states)
            if control is not None:
                control.stop(samples, states)
        return part._replace(s=s, y=y)

    def _located(
        self, event: Event, part: Segments, before: Tensor, after: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(t, x) of the sign change within each step."""
        problem = self.problem.take(part.sample)
        with torch.no_grad():
            state = self.within(part)
            bracket = part.t.detach(), part.s.detach()
            t = ridders(
                lambda t: event.value(problem, state(t), t), *bracket, before, after, self.near
            )
        if not torch.is_grad_enabled():
            return t, state(t)
        x = self.within(part)(t)
        if not self.smooth or not x.requires_grad:
            return t, x
        # One step of Newton's method, which moves nothing and has the derivatives of the root.
        slope = problem.drift(x.detach(), t)

        r = torch.zeros_like(t, requires_grad=True)
        passed = event.value(problem, x.detach() + expand(r, x) * slope.detach(), t + r)
        (rate,) = torch.autograd.grad(passed.sum(), r)
        shift = -event.value(problem, x, t) / rate
        return t + shift, x + expand(shift, x) * slope

    def crossings(self) -> tuple[Crossings, ...]:
        """What was found of each event."""
        out = []
        for each in self.found:
            if not each:
                empty = torch.zeros(0, dtype=torch.int64)
                out.append(Crossings(empty, empty.double(), self.x[:0]))
                continue
            sample, t, x = (torch.cat(parts) for parts in zip(*each, strict=True))
            order = torch.argsort(sample, stable=True)
            out.append(Crossings(sample[order], t[order], x[order.to(x.device)]))
        return tuple(out)


def watched(
    problem: FunctionProblem,
    solver: Solver,
    times: Tensor,
    noise: Noise | None,
    options: Options,
    events: tuple[Event, ...],
    *,
    dense: bool,
) -> Solution:
    """A solve, from the problem's start, whose steps a `Recorder` sees."""
    x = problem.start
    within: Within = Cubic(problem) if solver.external else Shortened(problem, solver, noise)
    recorder = Recorder(problem, within, events, x, times, keep=dense, smooth=noise is None)
    if solver.external:
        own = options.callback

        def both(seen: Snapshot) -> None:
            recorder.snapshot(seen)
            if own is not None:
                own(seen)

        options = replace(options, callback=both)
    else:
        options = replace(options, observer=recorder)
    with torch.set_grad_enabled(options.grad != "none"):
        recorder.begin()
    found = integrate(problem, solver, x, times, noise, options)
    found = replace(found, nfe=problem.monitor.evaluations.total, events=recorder.crossings())
    stopped = recorder.stopped
    if bool(stopped.any()):
        found = _ended(found, recorder)
    if dense:
        grad = options.grad != "none"
        found = replace(found, dense=Dense(recorder.steps, within, x, times, grad=grad))
    return found


def _ended(found: Solution, recorder: Recorder) -> Solution:
    """The solution with the samples that an event ended at their states there."""
    stopped, last = recorder.stopped, recorder.last

    def at(mask: Tensor, states: Tensor) -> Tensor:
        return torch.where(along(mask, last), last, states)

    frames = found.trajectory
    if frames is not None:
        times = found.times if found.times.ndim > 1 else found.times[:, None]
        way = recorder.sign * times.detach()
        frames = at(stopped & (way >= recorder.sign * recorder.ends), frames)
    status = torch.where(stopped, int(Status.EVENT), found.status)
    failures = tuple(each for each in found.failures if not bool(stopped[each.sample]))
    return replace(
        found, x=at(stopped, found.x), trajectory=frames, status=status, failures=failures
    )
