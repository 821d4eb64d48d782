"""Step sizes for each sample of an SDE: dyadic parts of the way, and a Brownian path that can be
halved.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sdediff.solvers.arithmetic import expand, place, weighted
from sdediff.solvers.clock import Clock, clock
from sdediff.solvers.control import PerSample
from sdediff.solvers.noise import Noise, Refinable, StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver, Step
from sdediff.solvers.stepping import Reached
from sdediff.solvers.white import Nodes

__all__ = ["DyadicSteps"]

_DEPTH: Final = 30
_WHOLE: Final = 1 << _DEPTH
_LONGEST: Final = 8  # steps that the whole way takes at least
_FARTHEST: Final = 10.0  # where an end of infinite log(sigma / alpha) is placed


class Lattice:
    """Times at dyadic places of each interval of a grid, uniform in the solver's variable between
    its ends.
    """

    def __init__(self, variable: Clock, times: Tensor) -> None:
        self.variable, self.times = variable, times
        self.ends = variable.value(times).nan_to_num(posinf=_FARTHEST, neginf=-_FARTHEST)
        self.widths = self.ends.diff()
        share = (self.widths / self.widths.sum()) * _LONGEST
        self.coarsest = share.log2().ceil().clamp(min=0).long()

    def __call__(self, segment: Tensor, spot: Tensor) -> Tensor:
        """Times at ``spot`` / 2^30 of the way through the intervals ``segment``, int64 of one
        shape.
        """
        keys, back = _unique(segment * (2 * _WHOLE) + spot)
        which, at = keys // (2 * _WHOLE), keys % (2 * _WHOLE)
        inside = self.variable.time(
            self.ends[which]
            + self.widths[which] * (at.clamp(1, _WHOLE - 1).to(torch.float64) / _WHOLE)
        )
        found = torch.where(
            at == 0, self.times[which], torch.where(at == _WHOLE, self.times[which + 1], inside)
        )
        return found[back]


class DyadicSteps(PerSample):
    """As `PerSample`, for solvers that draw noise: a step is a dyadic part of an interval of the
    grid, and never longer than where it starts allows, so that rounding cannot make two steps of
    one; what noise a rejected step had is kept, and split.

    Under `White` noise the path is a tree of its own, halved by rotations: the noise of an
    interval, as a standard normal, and a fresh one give those of its halves (the Brownian bridge,
    in the variance that the solver's `split` tells). A noise that is a path is asked for its own.
    """

    # the error is mostly noise's: there is no order to be gained by staying further below 1
    goal = 0.6
    columns = (*PerSample.columns, "level", "spot")

    def __init__(
        self,
        problem: Problem,
        solver: Solver,
        x: Tensor,
        times: Tensor,
        noise: Noise | None,
        *,
        last_mean: bool = False,
        first: int = 0,
    ) -> None:
        if not isinstance(noise, Refinable):
            raise ValueError(
                f"{solver!r} splits the noise of its steps: pass White(seeds, event) or a "
                f"BrownianPath, got {noise!r}"
            )
        if times.ndim > 1:
            raise ValueError(
                f"{solver!r} steps on one lattice for all samples: call it once for each start"
            )
        self.path = noise
        self.tree = noise.tree()
        self.last_mean = last_mean
        self.first = first
        self.spot = torch.zeros(len(x), dtype=torch.int64)
        self.level = torch.zeros(len(x), dtype=torch.int64)
        if len(times) > 1:
            # what it cannot do it says before the first evaluation
            solver.plan(problem, times[:, None])
            self.lattice = Lattice(solver.clock(problem), times)
            self.level += self.lattice.coarsest[0]
        super().__init__(problem, solver, x, times, noise)

    def _clock(self) -> Clock:
        return clock(self.problem, "t")

    @property
    def segment(self) -> Tensor:
        """Which interval of the grid each row is in."""
        return self.target - 1

    @property
    def noise(self) -> StepNoise:
        return self.path.at(0) if self.tree is None else _Interval(self, self.tree)

    def _first_step(self) -> Tensor:
        return (self._end() - self.t).abs()

    def _end(self) -> Tensor:
        return self.lattice(self.segment, self.spot + (_WHOLE >> self.level))

    def _floor(self) -> Tensor:
        return torch.where(self.level < _DEPTH, super()._floor(), torch.inf)

    def propose(self) -> Any:
        self._begin()
        self.landing = self.spot + (_WHOLE >> self.level) == _WHOLE
        self.s, self.floor = self._end(), self._floor()
        self.v = self.s
        return self.solver.plan(self.problem, torch.stack([self.t, self.s]))[0]

    def accept(self, step: Step) -> Reached:
        if self.last_mean:
            final = (self.landing & (self.target == len(self.times) - 1)).to(step.x.device)
            step = step._replace(
                x=torch.where(final.reshape(-1, *(1,) * (step.x.ndim - 1)), step.mean, step.x)
            )
        return super().accept(step)

    def _resize(self, norm: Tensor, good: Tensor, used: Tensor) -> Tensor:
        """The next steps: a power of two of the factor, one level coarser at most, and only where
        such a step may start.
        """
        free = self.level - torch.from_numpy(np.log2(self._factor(norm, good))).floor().long()
        wanted = torch.maximum(free, self.level - 1)
        spot = torch.where(good, self.spot + (_WHOLE >> self.level), self.spot)
        segment, arrived = self.segment, good & self.landing
        if bool(arrived.any()):
            # In a shorter interval steps of the same length, in a longer one as many: one that is
            # too long is only taken again.
            after = (segment + 1).clamp(max=len(self.lattice.widths) - 1)
            ratio = (self.lattice.widths[after] / self.lattice.widths[segment]).log2().ceil().long()
            wanted = torch.where(arrived, free + ratio.clamp(max=0), wanted)
            spot = torch.where(arrived, 0, spot)
            segment = torch.where(arrived, after, segment)
        low = torch.where(spot == 0, 0, _DEPTH - _twos(spot))
        self.level = torch.maximum(
            torch.maximum(wanted, low), self.lattice.coarsest[segment]
        ).clamp(max=_DEPTH)
        self.spot = spot
        return used

    def _drop(self, mask: Tensor) -> None:
        super()._drop(mask)
        if bool(mask.any()):
            stay = torch.nonzero(~mask).flatten()
            if self.tree is None:
                self.path = self.path.take(stay)
            else:
                self.tree = self.tree.take(stay)


def _unique(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The different ones and where each of ``keys`` is among them. There are 16 n of them, the last
    one being repeated: functions of so many numbers round alike on each, whereas those left over by
    the machine's vectors may differ in the last digit.
    """
    few, back = torch.unique(keys, return_inverse=True)
    return torch.cat([few, few[-1:].expand(-len(few) % 16)]), back


def _twos(n: Tensor) -> Tensor:
    """How often 2 divides n > 0."""
    return (n & -n).to(torch.float64).log2().long()


class _Interval:
    """The noise of the steps that a `DyadicSteps` proposes."""

    def __init__(self, control: DyadicSteps, tree: Nodes) -> None:
        self.problem = control.problem
        self.solver = control.solver
        self.lattice = control.lattice
        self.tree = tree
        self.segment = control.segment
        self.spot = control.spot
        self.level = control.level
        self.first = control.first  # intervals of the whole grid before this lattice

    @cached_property
    def _normal(self) -> Tensor:
        """Standard normals (rows, *event): down the tree from the longest steps that there are."""
        first = self.lattice.coarsest[self.segment]
        # of the nodes that are halved
        levels = torch.arange(int(first.min()), int(self.level.max()))[:, None]
        live = (levels >= first) & (levels < self.level)
        nodes = self._node(torch.where(live, levels, self.level))
        share = self._shares(nodes)
        right = ((self.spot >> (_DEPTH - 1 - levels)) & 1).bool()
        keep = torch.where(live, torch.where(right, 1 - share, share).sqrt(), 1.0)
        turn = torch.where(live, torch.where(right, -share.sqrt(), (1 - share).sqrt()), 0.0)
        z = self.tree.normal(self._node(first))
        turns = place(tuple(zip(keep.unbind(), turn.unbind(), strict=True)), z)
        for fresh, (kept, turned) in zip(self.tree.normal(nodes, 1), turns, strict=True):
            z = weighted((kept, z), (turned, fresh))
        return z

    def _node(self, level: Tensor) -> Tensor:
        """Numbers of the tree's nodes above the rows at ``level``, which broadcasts."""
        return (
            (self.first + self.segment) * (2 * _WHOLE)
            + (1 << level)
            + (self.spot >> (_DEPTH - level))
        )

    def _shares(self, nodes: Tensor) -> Tensor:
        """The solver's `split` of nodes, shaped as they are: computed once for each."""
        few, back = _unique(nodes)
        segment, number = few // (2 * _WHOLE) - self.first, few % (2 * _WHOLE)
        level = number.to(torch.float64).log2().floor().long()
        width = _WHOLE >> level
        begin = (number - (1 << level)) * width
        ends = self.lattice(
            segment.expand(3, -1), torch.stack([begin, begin + width // 2, begin + width])
        )
        return self.solver.split(self.problem, *ends)[back]

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        """Standard normals of the intervals, whose ends are a and b."""
        return self._normal

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        """The same, of the variance of time."""
        return self._normal * expand((b - a).abs().sqrt(), self._normal)

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """There is none."""
        raise ValueError(
            "a step size for each sample goes with increments of the path, and not with its time "
            "integrals"
        )

    def normal(self, stream: str, k: int = 0) -> Tensor:
        """There is none."""
        raise ValueError(
            "a step size for each sample goes with the path of the noise alone, and not with "
            f"the stream {stream!r}"
        )
