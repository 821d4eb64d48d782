"""What has come of a solve so far, and what the user's functions see of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdediff.solvers.legs import Leg
from sdediff.solvers.options import Control, Options, Reached, Snapshot
from sdediff.solvers.solution import Failure

__all__ = ["Run", "show"]


@dataclass
class Run:
    """What has come of each sample so far; its failures are those of samples that go no further."""

    x: Tensor
    times: Tensor
    accepted: Tensor
    rejected: Tensor
    frames: list[Tensor] | None
    failures: list[Failure] = field(default_factory=list)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    steps: int = 0

    @property
    def failed(self) -> Tensor:
        """Which samples have failed, bool (B,) on the host."""
        failed = torch.zeros(len(self.x), dtype=torch.bool)
        failed[[failure.sample for failure in self.failures]] = True
        return failed

    def going(self, group: int) -> Tensor:
        """The samples in whose ``group`` one has not failed, int64 (k,) on the host."""
        gone = self.failed.reshape(-1, group).all(dim=1).repeat_interleave(group)
        return torch.nonzero(~gone).flatten()

    def keep(self, reached: Reached, first: int, samples: Tensor | None) -> None:
        """Put states of the samples ``samples`` (None: all) into the frames, which a leg counts
        from ``first`` on.
        """
        if self.frames is None:
            return
        for k, x, some in reached:
            rows = among(samples, some)
            if rows is None:
                self.frames[first + k] = x
            else:
                self.frames[first + k][rows.to(x.device)] = x


def show(control: Control, leg: Leg, samples: Tensor | None, run: Run, options: Options) -> None:
    """Tell the user's functions how far the solve is."""
    done = _done(run.times, leg, control)
    if options.progress is not None:
        options.progress(done)
    if options.callback is not None:
        t, x, some = control.where()
        rows = among(samples, some)
        rows = None if rows is None else rows.clone()
        nfe = leg.problem.monitor.evaluations.total
        options.callback(Snapshot(run.steps, done, t.clone(), x.clone(), rows, nfe))


def among(samples: Tensor | None, rows: Tensor | None) -> Tensor | None:
    """Rows of some samples as samples of the solve."""
    return rows if samples is None else samples if rows is None else samples[rows]


def _done(times: Tensor, leg: Leg, control: Control) -> float:
    """The share of the whole way that is behind."""
    if leg.first == 0 and leg.last:
        return control.done
    before = abs(float(leg.times[0] - times[0]))
    behind = abs(float(leg.times[-1] - leg.times[0]))
    return (before + control.done * behind) / abs(float(times[-1] - times[0]))
