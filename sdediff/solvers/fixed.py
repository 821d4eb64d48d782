"""All samples together over a fixed grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import rowwise
from sdediff.solvers.noise import Noise, Silence
from sdediff.solvers.problem import Problem
from sdediff.solvers.solution import Failure, Status
from sdediff.solvers.solver import Solver, Step
from sdediff.solvers.stepping import Control, Reached, Stepped, checked

__all__ = ["FixedSteps"]


class FixedSteps(Control):
    """Every sample takes every step of the grid.

    With ``watch`` each step is checked, and a sample that goes bad stays at its last finite state; without it nothing is looked
    at on the way, so that a step costs no synchronisation with the device.
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
        super().__init__(problem, solver, x, times, noise if solver.stochastic else None)
        self.watch, self.last_mean, self.first = watch, last_mean, first
        problem.monitor.watch = watch
        self.plans = solver.plan(problem, times)
        if not isinstance(self.plans, Sequence | Tensor):
            name, got = type(solver).__name__, type(self.plans).__name__
            raise TypeError(f"{name}.plan must return a list, an entry for each step; got {got}")
        if len(self.plans) != len(times) - 1:
            raise ValueError(
                f"{solver!r} planned {len(self.plans)} steps for a grid of {len(times) - 1}; plan() gives one entry a step"
            )
        self.index, self.final = 0, len(self.plans) - 1
        self.active = bool(self.plans)
        self.silent = Silence(solver)
        self.failed = torch.zeros(self.samples, dtype=torch.bool)
        self.state = solver.init(problem, x, times[0]) if self.plans else ()

    @property
    def done(self) -> float:
        return self.index / max(1, len(self.plans))

    @property
    def t(self) -> Tensor:  # type: ignore[override]
        """Where the samples are."""
        return self.times[self.index]

    def _time(self, row: int) -> float:
        return float(self.t if self.t.ndim == 0 else self.t[row])

    def attempt(self, stepped: Stepped) -> Reached:
        index, x = self.index, self.x
        noise = self.silent if self.all_noise is None else self.all_noise.at(self.first + index)
        step = stepped(self.problem, x, self.plans[index], noise, self.state)
        if index == 0 or type(step) is not Step:
            step = checked(step, self.solver, x)
        last = index == self.final
        x = step.mean if last and self.last_mean else step.x
        self.x = self._hold_failed(x) if self.watch else x
        self.index, self.state, self.active = index + 1, step.state, not last
        return [(self.index, self.x, None)]

    def _hold_failed(self, x: Tensor) -> Tensor:
        finite = torch.isfinite(rowwise(x)).all(dim=1).cpu()
        network = self.problem.monitor.bad if self.problem.rows is None else self.problem.monitor.bad[self.problem.rows]
        for sample in torch.nonzero((~finite | network) & ~self.failed).flatten().tolist():
            status = Status.NETWORK_NOT_FINITE if network[sample] else Status.STATE_NOT_FINITE
            self.failures.append(Failure(sample, status, self._time(sample)))
            self.failed[sample], self.accepted[sample] = True, self.index
        keep = self.failed.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))
        return torch.where(keep, self.x, x)

    def cap(self, max_nfe: int) -> None:
        nfe = self.problem.monitor.nfe if self.problem.rows is None else self.problem.monitor.nfe[self.problem.rows]
        if len(nfe) and int(nfe.max()) + self.solver.cost(self.plans[self.index]) * self.problem.cost > max_nfe:
            self.failures += [Failure(i, Status.MAX_NFE, self._time(i)) for i in range(self.samples)]
            self.active = False

    def hold(self, failed: Tensor) -> None:
        self.failed = failed

    def result(self) -> Tensor:
        self.accepted[~self.failed] = self.index
        return self.x
