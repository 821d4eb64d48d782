"""What the solvers share that hand a problem to another library: what it is given, and what becomes
of its failures.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from textwrap import shorten
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdediff.solvers.arithmetic import along, rowwise
from sdediff.solvers.given import check_name
from sdediff.solvers.integrate import require
from sdediff.solvers.legs import legs_of
from sdediff.solvers.noise import Noise, StepNoise
from sdediff.solvers.options import Options, Snapshot
from sdediff.solvers.portable import Portable
from sdediff.solvers.problem import Problem
from sdediff.solvers.solution import Failure, Solution, Status, failing
from sdediff.solvers.solver import Solver, Step

__all__ = ["External", "Run", "Stop", "check_method"]

T = TypeVar("T")


class Stop(Portable, Exception):
    """Leaves the other library's driver: all samples that still move fail."""

    def __init__(self, status: Status, words: str = "") -> None:
        super().__init__(words)
        self.status, self.words = status, words


class Run:
    """One solve: the problem as the other library sees it, and what is noted on the way.

    ``x`` and ``t`` are the last accepted state and its time, ``accepted`` and ``rejected`` count
    steps.
    """

    def __init__(
        self,
        problem: Problem,
        x: Tensor,
        times: Tensor,
        noise: Noise | None,
        options: Options,
        limit: int | None,
    ) -> None:
        self.problem = problem
        self.x = x
        self.times = times
        self.noise = noise
        self.options = options
        self.limit = limit
        self.t = times[0]
        self.sign = 1.0 if len(times) < 2 or times[1] > times[0] else -1.0
        self.accepted, self.rejected = 0, 0
        self.steps = torch.zeros(len(x), dtype=torch.int64)
        self.failures: list[Failure] = []
        self.failed = torch.zeros(len(x), dtype=torch.bool)
        self.own: Exception | None = None
        self.memory: Any = None
        """What a call of the library leaves to the next."""
        self._known = sorted((time, i) for i, time in enumerate(times.tolist()))
        problem.monitor.watch = True

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The problem's drift, 0 for samples that failed; the library's time is kept inside the
        span of the grid.
        """
        if (
            self.limit is not None
            and int(self.problem.monitor.evaluations.total.max()) >= self.limit
        ):
            raise Stop(Status.MAX_NFE, f"{self.limit:,} evaluations")
        time = self.time(t, x.dtype)
        if self.options.grad == "checkpoint":
            out: Tensor = self.ours(
                lambda: checkpoint(self.problem.drift, x, time, use_reentrant=False)
            )
        else:
            out = self.ours(lambda: self.problem.drift(x, time))
        bad = self.problem.monitor.bad
        if bool(bad.any()):
            self.fail(
                bad if self.problem.rows is None else bad[self.problem.rows],
                Status.NETWORK_NOT_FINITE,
                self.t,
            )
        return self.still(out)

    def diffuse(self, dw: Tensor, t: Tensor | float) -> Tensor:
        """The problem's diffusion applied to an increment, 0 for samples that failed."""
        time = self.time(t, dw.dtype)
        return self.still(self.ours(lambda: self.problem.diffuse(dw, time)))

    def still(self, out: Tensor) -> Tensor:
        """Samples that failed stay where they are, so that they do not disturb the steps of the
        others.
        """
        return torch.where(along(self.failed, out), 0.0, out) if self.failures else out

    def time(self, t: Tensor | float, dtype: torch.dtype) -> Tensor:
        """The library's time: inside the span of the grid, and one of the grid's where it differs
        from that by rounding alone.
        """
        low, high = self._known[0][0], self._known[-1][0]
        value = min(max(float(t.detach()) if isinstance(t, Tensor) else t, low), high)
        after = bisect(self._known, (value,))
        for time, i in self._known[max(0, after - 1) : after + 1]:
            if abs(time - value) <= 2 * torch.finfo(dtype).eps * abs(time):
                return self.times[i]
        return torch.tensor(value, dtype=torch.float64)

    def ours(self, call: Callable[[], T]) -> T:
        """Call the network or the callback: what they raise is not taken for the library's
        failure.
        """
        try:
            return call()
        except Exception as error:
            self.own = error
            raise

    def arrive(self, t: Tensor | float, x: Tensor) -> None:
        """A step to t was accepted."""
        self.accepted += 1
        self.t, self.x = torch.as_tensor(t, dtype=torch.float64).detach().cpu(), x
        done = float((self.t - self.times[0]) / (self.times[-1] - self.times[0]))
        if self.options.progress is not None:
            self.options.progress(done)
        if self.options.callback is not None:
            snapshot = Snapshot(
                self.accepted,
                done,
                self.t.clone(),
                x.clone(),
                None,
                self.problem.monitor.evaluations.total,
            )
            self.ours(lambda: self.options.callback and self.options.callback(snapshot))

    def fail(self, which: Tensor, status: Status, t: Tensor, words: str = "") -> None:
        """Note the failure of the samples ``which`` (B,), except of those that failed before."""
        some = torch.nonzero(which & ~self.failed).flatten()
        self.failures += failing(some, t, status, words)
        self.steps[some] = self.accepted
        self.failed = self.failed | which

    def checked(self, before: Tensor, states: Sequence[Tensor], starts: Tensor) -> list[Tensor]:
        """The states, finite: a sample whose state is not fails at the start of the step and keeps
        the state before it.
        """
        if not states or bool(torch.isfinite(states[-1]).all()):
            return list(states)
        kept = []
        for state, t in zip(states, starts, strict=True):
            lost = ~torch.isfinite(rowwise(state)).all(dim=1).cpu()
            self.fail(lost, Status.STATE_NOT_FINITE, t)
            before = torch.where(along(lost, state), before, state)
            kept.append(before)
        return kept

    def solution(self, frames: list[Tensor]) -> Solution:
        """The result; a `SolveError` where samples failed and that is what the options ask for."""
        self.steps[~self.failed] = self.accepted
        solution = Solution(
            x=frames[-1],
            times=self.times,
            nfe=self.problem.monitor.evaluations.total,
            accepted=self.steps,
            rejected=torch.full_like(self.steps, self.rejected),
            status=torch.zeros_like(self.steps),
            trajectory=torch.stack(frames) if self.options.trajectory else None,
            backward=self.problem.monitor.backward_passes.total,
        )
        return solution.failed(self.failures, self.options.on_fail)


class External(Solver):
    """Base of the solvers that are another library's driver. A subclass gives ``advance``, and
    ``pieces`` and ``check`` if it must.

    The library takes the batch for one state: where it chooses steps it chooses them for all
    samples together, so that a sample depends on the others in its batch (no solver of our own
    does). A sample whose network output is not finite stays where it is, and the others go on. What
    ends the library's driver fails all samples, with its words in the `Failure`.
    """

    library: ClassVar[str]
    external = True

    def plan(self, problem: Problem, times: Tensor) -> Sequence[Any]:
        raise ValueError(
            f"{self!r} is another library's driver: call its method solve; it has no steps of "
            "its own"
        )

    def step(
        self, problem: Problem, x: Tensor, plan: Any, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        self.plan(problem, plan)
        raise NotImplementedError

    def pieces(self, intervals: int) -> list[tuple[int, int]]:
        """Which stretches of the grid, from one index to another, are one call of the library: each
        interval.
        """
        return [(i, i + 1) for i in range(intervals)]

    def check(self, run: Run) -> None:
        """Refuse what the library cannot do, before the first evaluation."""

    def advance(self, run: Run, x: Tensor, first: int, last: int) -> Sequence[Tensor]:
        """From ``x`` at ``run.times[first]`` the states at each time after it, up to number
        ``last``.
        """
        raise NotImplementedError

    def solve(
        self, problem: Problem, x: Tensor, times: Tensor, noise: Noise | None, options: Options
    ) -> Solution:
        require(problem, self)
        if self.stochastic and noise is None:
            raise ValueError(f"{self!r} draws noise: pass a noise object, White(seeds, event) say")
        if times.ndim > 1:
            raise ValueError(
                f"{self!r} has one time for all samples: it takes one grid, not one for each; "
                "take RK45(), say"
            )
        times, legs = legs_of(problem, times.detach())
        run = Run(problem, x, times, noise, options, options.limit(self))
        self.check(run)
        calls = [
            (leg, leg.first + i, leg.first + j)
            for leg in legs
            for i, j in self.pieces(len(leg.times) - 1)
        ]
        frames = [x]
        with torch.set_grad_enabled(options.grad != "none"):
            for leg, first, last in calls:
                run.problem = leg.problem
                try:
                    states = self.advance(run, frames[-1], first, last)
                except Stop as stop:
                    run.fail(
                        ~run.failed,
                        stop.status,
                        run.t,
                        stop.words and f"{self.library}: {stop.words}",
                    )
                except (AssertionError, ValueError, ArithmeticError) as error:
                    if error is run.own:
                        raise
                    words = shorten(str(error), 120)  # torchdiffeq prints states whole
                    status = (
                        Status.STEP_TOO_SMALL if "underflow" in words else Status.DRIVER_STOPPED
                    )
                    run.fail(~run.failed, status, run.t, f"{self.library}: {words}")
                else:
                    frames += run.checked(frames[-1], states, run.times[first:last])
                    run.arrive(run.times[last], frames[-1])
                    continue
                state = run.checked(frames[-1], [run.x], run.t[None])[0]
                frames += [state] * (len(times) - len(frames))
                break
        return run.solution(frames)


def check_method(
    solver: External, method: str, known: Sequence[str], instead: Mapping[str, str]
) -> None:
    """A ValueError unless the library's method is among the known, with the nearest name or what to
    take ``instead``.
    """
    if not isinstance(method, str):
        raise TypeError(
            f"{type(solver).__name__}: method must be a name, one of {', '.join(known)}; got "
            f"{method!r}"
        )
    name = type(solver).__name__
    if method in instead:
        raise ValueError(f"{name}: method {method!r} is not taken: {instead[method]}")
    check_name("method", method, known)
