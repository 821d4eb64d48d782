"""``sdediff restore`` of a run of a degradation: cold diffusion."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.cli.conditions import Conditions, read_conditions, read_own
from sdediff.cli.sample import Drawing, batch_of, draw, write
from sdediff.degradation import Degradation, NaiveSampling, TACoS
from sdediff.protocols import Model
from sdediff.solvers import Solver
from sdediff.solvers.given import check_name, integer
from sdediff.solvers.solution import merge

__all__ = ["COLD_METHODS", "Cold"]

COLD_METHODS: Final[dict[str, tuple[Solver, int | None]]] = {
    "tacos": (TACoS(), None),
    "naive": (NaiveSampling(), None),
    "direct": (NaiveSampling(), 1),
}
"""Sampler and number of steps of a method, by name; None: a step a level.

One step of Algorithm 1 ends at D(R(x, t), 0) = R(x, t), what the network restores in one shot.
"""
_SHOWN: Final = 4
"""Numbers of a condition that are printed."""


@dataclass(frozen=True)
class Cold:
    """A picture (1, C, H, W) and the model of the degradation, of a run, that it is restored by.

    ``level``, 1 to N: how far the picture is degraded; None: N. ``degrade``: whether that is yet to
    be done.
    """

    folder: Path
    config: Mapping[str, Any]
    model: Model
    picture: Tensor
    level: int | None
    degrade: bool

    def drawing(
        self,
        method: str | None,
        count: int,
        steps: int | None,
        condition: Sequence[str],
        seed: int,
        *,
        quiet: bool,
    ) -> Drawing:
        """What is to be restored, and how."""
        name = "tacos" if method is None else method.lower()
        check_name("method", name, COLD_METHODS)
        process: Degradation = self.model.sde
        level = process.levels
        if self.level is not None:
            level = integer("--level", self.level, 1, level, kind=f"a level of 1 to {level}")
        solver, own_steps = COLD_METHODS[name]
        if steps is not None and own_steps is not None:
            raise ValueError(f"--method {name} takes one step: drop --steps")
        event = tuple(self.picture.shape[1:])
        own, others = read_own(process, event, condition)
        trained = read_conditions(self.folder, self.config, self.model, others)
        x = self.picture.expand(count, *event)
        if self.degrade:
            own = {**process.draw(x, torch.Generator().manual_seed(seed)), **own}
        if missing := sorted(process.conditions - own.keys()):
            raise ValueError(
                f"{process!r} needs the {missing[0]} that the picture was degraded with: pass "
                f"--condition {missing[0]}=..., or --degrade for a picture that is not degraded yet"
            )
        conditions = replace(trained, own=own)
        t = process.T * level / process.levels
        if self.degrade:
            x = process(x, t, **conditions.own_of(range(count)))
        return Drawing(
            self.model, event, count, batch_of(event), solver, own_steps or steps or level, None,
            conditions, seed, quiet, tiled=count > 1, start=(x, t),
        )  # fmt: skip

    def draw(self, drawing: Drawing, out: Path) -> int:
        """Restore and write, beside it what was degraded here; the exit code."""
        code = draw(drawing, out)
        if code or not self.degrade or drawing.start is None:
            return code
        place = out.with_name(f"{out.stem}.degraded{out.suffix}")
        count, conditions = drawing.count, drawing.conditions
        degraded = replace(merge(drawing.parts), x=drawing.start[0])
        write(place, degraded, conditions, range(count), tiled=drawing.tiled)
        if not drawing.quiet:
            print(f"degraded{_said(conditions)}: wrote {place}", file=sys.stderr)
        return code


def _said(conditions: Conditions) -> str:
    """The conditions of the process of the first sample, where they are few numbers, as the command
    line takes them.
    """
    few = {
        name: value[0].flatten().tolist()
        for name, value in conditions.own.items()
        if value[0].numel() <= _SHOWN
    }
    words = [f"{name}={','.join(f'{float(n):g}' for n in each)}" for name, each in few.items()]
    return "".join(f" with --condition {word}" for word in words)
