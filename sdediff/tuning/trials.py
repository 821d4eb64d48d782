"""Starts of a model, and where its probability flow takes them: what solvers are measured
against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from sdediff.modules import evaluating
from sdediff.solvers import DOP853, Options, Solver, White, rowwise, seeds
from sdediff.solving import Solving
from sdediff.tuning.unrolled import Scheme, follow

__all__ = ["Trials"]

_TIGHT: Final = 1e-7
"""The tolerance of the reference, where the network's rounding lets it be so small."""
_ROUNDINGS: Final = 1000.0


@dataclass(frozen=True, eq=False)
class Trials:
    """States at the first time of a solve, and the results of a tight one, in the solvers' units.

    Row i has the condition of row i modulo the number of conditions.
    """

    solving: Solving
    denoise: bool
    x: Tensor
    ends: Tensor
    states: Tensor | None = None
    """The states along ``times``, (len(times), rows, *event)."""
    times: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def drawn(
        cls, solving: Solving, seed: int, *, denoise: bool, times: Tensor | None = None
    ) -> Trials:
        """A start for each sample of ``solving``, from the prior by ``seed``, solved to the end;
        with ``times`` the states there are kept.
        """
        sde = solving.model.sde
        noise = White(
            seeds(seed, solving.count), solving.event, dtype=solving.dtype, device=solving.device
        )
        x = solving.units.from_model(sde.prior.from_noise(noise.at(0).normal("prior")))
        grid = solving.times[[0, -1]] if times is None else times
        parts: list[tuple[Tensor, Tensor]] = []
        with torch.no_grad(), evaluating(solving.model):
            for first in range(0, len(x), solving.batch_size):
                rows = torch.arange(first, min(first + solving.batch_size, len(x)))
                parts.append(_tight(solving, rows, x[rows.to(x.device)], grid, denoise=denoise))
        states = torch.cat([frames for frames, _ in parts], dim=1)
        ends = torch.cat([end for _, end in parts])
        return cls(solving, denoise, x, ends, None if times is None else states, times)

    def part(self, rows: slice) -> Trials:
        """Some of the rows."""
        index = torch.arange(len(self))[rows]
        condition = {
            name: value[index.to(value.device)] for name, value in self.solving.condition.items()
        }
        solving = replace(self.solving, count=len(index), condition=condition)
        states = None if self.states is None else self.states[:, rows]
        return Trials(solving, self.denoise, self.x[rows], self.ends[rows], states, self.times)

    def squares(self, scheme: Scheme, rows: Tensor | None = None) -> Tensor:
        """The mean square over the event of a scheme's error at the end, (rows,); of all rows by
        default.
        """
        rows = torch.arange(len(self)) if rows is None else rows
        here = rows.to(self.x.device)
        problem = self.solving.reverse(rows)
        _, states = follow(problem, scheme, self.x[here])
        return rowwise(states[-1] - self.ends[here]).square().mean(dim=1)

    def batches(self) -> list[Tensor]:
        """The rows in parts of at most the batch size."""
        return list(torch.arange(len(self)).split(self.solving.batch_size))

    def errors(self, scheme: Scheme) -> Tensor:
        """The root mean square over the event of a scheme's error, (rows,) on the host; infinite
        where it is not a number.
        """
        with torch.no_grad(), evaluating(self.solving.model):
            parts = [self.squares(scheme, rows) for rows in self.batches()]
        return torch.cat(parts).sqrt().nan_to_num(nan=torch.inf).double().cpu()

    def errors_of(self, solver: Solver, times: Tensor) -> Tensor:
        """`errors` of a solver along ``times``, by the driver."""
        parts = []
        with torch.no_grad(), evaluating(self.solving.model):
            for rows in self.batches():
                here = rows.to(self.x.device)
                problem = self.solving.reverse(rows)
                x = solver.solve(problem, self.x[here], times, None, Options("noisy")).x
                if self.denoise and not solver.ends_clean:
                    x = problem.evaluate(x, problem.at(times[-1:], "data")[0])
                parts.append(rowwise(x - self.ends[here]).square().mean(dim=1))
        return torch.cat(parts).sqrt().nan_to_num(nan=torch.inf).double().cpu()


def _tight(
    solving: Solving, rows: Tensor, x: Tensor, grid: Tensor, *, denoise: bool
) -> tuple[Tensor, Tensor]:
    """(states along the grid, results) of a tight solve."""
    problem = solving.reverse(rows)
    tolerance = max(_TIGHT, _ROUNDINGS * problem.rounding)
    solver = DOP853(tolerance, tolerance * problem.unit)
    found = solver.solve(problem, x, grid, None, Options("noisy", trajectory=True))
    frames = found.trajectory
    end = found.x
    if denoise:
        end = problem.evaluate(end, problem.at(grid[-1:], "data")[0])
    return (end[None] if frames is None else frames), end
