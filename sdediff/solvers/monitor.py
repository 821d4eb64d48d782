"""What is noted of the evaluations of a network during a solve."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import rowwise

__all__ = ["Monitor"]


class Monitor:
    """Counts the evaluations of the network for each sample and, when asked, notes whose output was not finite
    though the state was."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.watch = False
        self.clear()

    def clear(self) -> None:
        """Forget all evaluations, for a solve that is run again."""
        self._bad, self._some_bad = torch.zeros(self.samples, dtype=torch.bool), False
        self._seen: list[tuple[Tensor | None, Tensor]] = []
        self._all = 0
        self._some = torch.zeros(self.samples, dtype=torch.int64)
        self.calls = 0  # of the network: no sample has seen more
        self._rows, self._times = torch.zeros(0, dtype=torch.int64), 0

    @property
    def nfe(self) -> Tensor:
        """Evaluations so far, int64 (samples,)."""
        if self._times:
            self._some[self._rows] += self._times
            self._times = 0
        return self._some + self._all

    @property
    def bad(self) -> Tensor:
        """Whose output was not finite though the state was, bool (samples,): the one place that waits for the device."""
        for rows, bad in self._seen:
            self._bad[slice(None) if rows is None else rows] |= bad.cpu()
            self._some_bad = True
        self._seen.clear()
        return self._bad

    @property
    def troubled(self) -> bool:
        """Whether there is anything for `bad` to look at."""
        return self._some_bad or bool(self._seen)

    def record(self, x: Tensor, out: Tensor, rows: Tensor | None) -> None:
        """Count one evaluation at states ``x`` of the samples ``rows`` (None: all of them)."""
        self.calls += 1
        if rows is None:
            self._all += 1
        elif rows is self._rows:
            self._times += 1
        else:
            self._some[self._rows] += self._times
            self._rows, self._times = rows, 1
        # On the host one sum tells whether there is anything to look for; on a device nothing waits for the answer.
        if self.watch and (out.device.type != "cpu" or not math.isfinite(float(out.detach().sum()))):
            self._seen.append((rows, ~torch.isfinite(rowwise(out)).all(dim=1) & torch.isfinite(rowwise(x)).all(dim=1)))
