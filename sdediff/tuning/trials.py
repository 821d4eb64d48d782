"""Starts of a model, and where its probability flow takes them: what solvers are measured
against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
from torch import Tensor

from sdediff.modules import evaluating
from sdediff.processes import in_parts
from sdediff.reverse import Reverse
from sdediff.solvers import DOP853, RK45, Options, Solver, White, rowwise, seeds
from sdediff.solving import Solving
from sdediff.tuning.unrolled import Scheme, follow

__all__ = ["Trials", "tolerance_for"]

T = TypeVar("T")

_ROUGH: Final = 1e-3
"""The tolerance of the solves by which the error of a solver is known in the rough."""
_FEW: Final = 16
"""Rows of these."""
_SHARE: Final = 3e-4
"""The tolerance of the reference over the error of the solver that is to be improved."""
_TIGHTEST, _LOOSEST = 1e-7, 1e-4
_ROUNDINGS: Final = 1000.0
"""The tolerance at least, in units of the rounding of the network; of one in half precision the
loosest, or one unit.
"""


@dataclass(frozen=True, eq=False)
class Trials:
    """States at the first time of a solve, and the results of a tight one, in the solvers' units.

    ``rows``: which samples of ``solving`` they are, whose conditions and outcomes they have.
    """

    solving: Solving
    denoise: bool
    rows: Tensor
    x: Tensor
    ends: Tensor
    states: Tensor | None = None
    """The states along ``times``, (len(times), rows, *event)."""
    times: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def drawn(
        cls,
        solving: Solving,
        seed: int,
        tolerance: float,
        *,
        denoise: bool,
        times: Tensor | None = None,
        count: int | None = None,
    ) -> Trials:
        """A start for each sample of ``solving``, or for the first ``count``, from the prior by
        ``seed``, solved to the end; with ``times`` the states there are kept.
        """
        sde = solving.model.sde
        drawn = seeds(seed, solving.count if count is None else min(count, solving.count))
        noise = White(drawn, solving.event, dtype=solving.dtype, device=solving.device)
        x = solving.units.from_model(sde.prior.from_noise(noise.at(0).normal("prior")))
        grid = solving.times[[0, -1]] if times is None else times

        def part(numbers: range) -> tuple[Tensor, Tensor]:
            rows = torch.arange(numbers.start, numbers.stop)
            own = x[rows.to(x.device)]
            return _tight(solving, rows, own, grid, tolerance, denoise=denoise)

        with torch.no_grad(), evaluating(solving.model):
            parts = in_parts(len(x), solving.batch_size, part)
        states = torch.cat([frames for frames, _ in parts], dim=1)
        ends = torch.cat([end for _, end in parts])
        kept = None if times is None else states
        return cls(solving, denoise, torch.arange(len(x)), x, ends, kept, times)

    def part(self, rows: slice) -> Trials:
        """Some of them."""
        return replace(
            self,
            rows=self.rows[rows],
            x=self.x[rows],
            ends=self.ends[rows],
            states=None if self.states is None else self.states[:, rows],
        )

    def problem(self, places: Tensor) -> Reverse:
        """What solvers see of those at ``places``, 0 to len - 1."""
        return self.solving.reverse(self.rows[places])

    def squares(self, scheme: Scheme, places: Tensor | None = None) -> Tensor:
        """The mean square over the event of a scheme's error at the end, (places,); of all by
        default.
        """
        places = torch.arange(len(self)) if places is None else places
        here = places.to(self.x.device)
        _, states = follow(self.problem(places), scheme, self.x[here])
        return rowwise(states[-1] - self.ends[here]).square().mean(dim=1)

    def in_batches(self, work: Callable[[Tensor], T]) -> list[T]:
        """What ``work(places)`` returns for all places, at most the batch size at a time."""

        def part(numbers: range) -> T:
            return work(torch.arange(numbers.start, numbers.stop))

        return in_parts(len(self), self.solving.batch_size, part)

    def errors(self, scheme: Scheme) -> Tensor:
        """The root mean square over the event of a scheme's error, (rows,) on the host; infinite
        where it is not a number.
        """
        return self._roots(lambda places: self.squares(scheme, places))

    def errors_of(self, solver: Solver, times: Tensor) -> Tensor:
        """`errors` of a solver along ``times``, by the driver."""

        def squares(places: Tensor) -> Tensor:
            here = places.to(self.x.device)
            problem = self.problem(places)
            x = solver.solve(problem, self.x[here], times, None, Options("noisy")).x
            if self.denoise and not solver.ends_clean:
                x = problem.evaluate(x, problem.at(times[-1:], "data")[0])
            return rowwise(x - self.ends[here]).square().mean(dim=1)

        return self._roots(squares)

    def _roots(self, squares: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.no_grad(), evaluating(self.solving.model):
            parts = self.in_batches(squares)
        return torch.cat(parts).sqrt().nan_to_num(nan=torch.inf).cpu().double()


def tolerance_for(solving: Solving, solver: Solver, *, denoise: bool) -> float:
    """The tolerance of references by which ``solver`` can be told from better ones, from its own
    error in the rough.
    """
    rough = Trials.drawn(solving, 0, _ROUGH, denoise=denoise, count=_FEW)
    error = float(rough.errors_of(solver, solving.times).median())
    return min(max(_SHARE * error, _TIGHTEST), _LOOSEST)


def _tight(
    solving: Solving, rows: Tensor, x: Tensor, grid: Tensor, tolerance: float, *, denoise: bool
) -> tuple[Tensor, Tensor]:
    """(states along the grid, results) of a tight solve.

    By the method of order 8 for a model in double precision, else by that of order 5: networks are
    seldom smooth enough for order 8, which takes six times as many evaluations of one at 1e-4.
    """
    problem = solving.reverse(rows)
    rounding = problem.rounding
    least = max(tolerance, min(_ROUNDINGS * rounding, _LOOSEST), rounding)
    kind = DOP853 if rounding < torch.finfo(torch.float64).eps else RK45
    solver = kind(least, least * problem.unit)
    found = solver.solve(problem, x, grid, None, Options("noisy", trajectory=True))
    frames = found.trajectory
    end = found.x
    if denoise:
        end = problem.evaluate(end, problem.at(grid[-1:], "data")[0])
    return (end[None] if frames is None else frames), end
