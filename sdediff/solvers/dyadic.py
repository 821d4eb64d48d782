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
from sdediff.solvers.controller import Controller, PIController
from sdediff.solvers.moving import Ahead, Moving, Policy, Way
from sdediff.solvers.noise import Noise, Refinable
from sdediff.solvers.norm import ErrorNorm
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver
from sdediff.solvers.variable import Variable, variable_of
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

    def __init__(self, variable: Variable, times: Tensor) -> None:
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


class DyadicSteps(Policy):
    """The policy of solvers that draw noise.

    Steps are dyadic subintervals of the grid's intervals, aligned to their length, so that the ends
    of steps are exact. The noise of a rejected step is kept and split.

    Every row carries (level, spot, source): its next step starts at ``spot`` / 2^30 of the interval
    and is 2^-level of it long. Under `White` noise the path is a tree of its own, halved by
    rotations: the noise of an interval, as a standard normal, and a fresh one give those of its
    halves (the Brownian bridge, in the variance that the solver's `split` tells). A noise that is a
    path is asked for its own.
    """

    # the error is mostly noise's: there is no order to be gained by staying further below 1
    controller: Controller = PIController(goal=0.6)

    def __init__(
        self,
        problem: Problem,
        solver: Solver,
        times: Tensor,
        samples: int,
        noise: Noise | None,
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
        self.solver = solver
        self.noise = noise
        self.tree = noise.tree()
        # intervals of the whole grid before this lattice
        self.before = first
        if len(times) > 1:
            # what it cannot do it says before the first evaluation
            solver.plan(problem, times[:, None])
            self.lattice = Lattice(solver.step_variable(problem), times)
        self.way = Way(solver, variable_of(problem, "t"), times, samples)

    def first(self, moving: Moving, norm: ErrorNorm, goal: float) -> tuple[Any, ...]:
        spot = torch.zeros_like(moving.target)
        source = self.noise if self.tree is None else self.tree
        return spot + self.lattice.coarsest[0], spot, source

    def propose(self, moving: Moving) -> Ahead:
        level, spot, source = moving.own
        end = spot + (_WHOLE >> level)
        s = self.lattice(moving.target - 1, end)
        plan = self.solver.plan(moving.problem, torch.stack([moving.t, s]))[0]
        noise = source.at(0) if self.tree is None else _Interval(self, moving)
        least = torch.where(level < _DEPTH, self.way.least(moving), torch.inf)
        return Ahead(plan, noise, s, s, end == _WHOLE, (s - moving.t).detach().abs(), least)

    def resize(
        self, moving: Moving, ahead: Ahead, accepted: Tensor, factor: Tensor
    ) -> tuple[Any, ...]:
        """A power of two of the factor, one level coarser at most, and only where such a step may
        start.
        """
        level, spot, source = moving.own
        free = level - torch.from_numpy(np.log2(factor.numpy())).floor().long()
        wanted = torch.maximum(free, level - 1)
        spot = torch.where(accepted, spot + (_WHOLE >> level), spot)
        segment, arrived = moving.target - 1, accepted & ahead.landing
        if bool(arrived.any()):
            # In a shorter interval steps of the same length, in a longer one as many: one that is
            # too long is only taken again.
            after = (segment + 1).clamp(max=len(self.lattice.widths) - 1)
            ratio = (self.lattice.widths[after] / self.lattice.widths[segment]).log2().ceil().long()
            wanted = torch.where(arrived, free + ratio.clamp(max=0), wanted)
            spot = torch.where(arrived, 0, spot)
            segment = torch.where(arrived, after, segment)
        low = torch.where(spot == 0, 0, _DEPTH - _twos(spot))
        coarsest = torch.maximum(low, self.lattice.coarsest[segment])
        return torch.maximum(wanted, coarsest).clamp(max=_DEPTH), spot, source


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

    def __init__(self, steps: DyadicSteps, moving: Moving) -> None:
        self.problem = moving.problem
        self.solver = steps.solver
        self.lattice = steps.lattice
        self.first = steps.before
        self.segment = moving.target - 1
        self.level: Tensor
        self.spot: Tensor
        self.tree: Nodes
        self.level, self.spot, self.tree = moving.own

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
