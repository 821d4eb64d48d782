"""What is noted of the evaluations of a network during a solve."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import rowwise

__all__ = ["Monitor"]


@dataclass(eq=False)
class Tally:
    """Counts something for each sample."""

    samples: int
    everyone: int = 0
    """What all samples have."""
    _some: Tensor | None = None
    _rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    _times: int = 0
    _most: int = 0
    _repeats: int = 0

    def add(self, rows: Tensor | None, count: int) -> None:
        """Count for each entry of ``rows``, int64 (k,), which may repeat; None: once for every sample."""
        if rows is None:
            self.everyone += count
            return
        if rows is not self._rows:  # the same samples step together for long
            if self._times:
                self._flush()
            self._rows, self._repeats = rows, int(torch.bincount(rows).max()) if len(rows) else 0
        self._times += count
        self._most += count * self._repeats

    def _flush(self) -> None:
        if self._some is None:
            self._some = torch.zeros(self.samples, dtype=torch.int64)
        self._some.index_add_(0, self._rows, torch.full_like(self._rows, self._times))
        self._times = 0

    @property
    def most(self) -> int:
        """A number that no sample exceeds."""
        return self.everyone + self._most

    @property
    def total(self) -> Tensor:
        """The counts, int64 (samples,)."""
        if self._times:
            self._flush()
        if self._some is None:
            return torch.full((self.samples,), self.everyone)
        return self._some + self.everyone


class Monitor:
    """Counts what is made of the network and, when asked, notes whose output was not finite."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.watch = False
        self.clear()

    def clear(self) -> None:
        """Forget all evaluations, for a solve that is run again."""
        self._bad, self._some_bad = torch.zeros(self.samples, dtype=torch.bool), False
        self._seen: list[tuple[Tensor | None, Tensor]] = []
        self.evaluations, self.backward_passes = Tally(self.samples), Tally(self.samples)
        self.calls = 0  # how often something was counted

    @property
    def nfe(self) -> Tensor:
        """Evaluations so far, int64 (samples,)."""
        return self.evaluations.total

    @property
    def bad(self) -> Tensor:
        """Whose output was not finite though the state was, bool (samples,): the one place that waits for the device."""
        for rows, bad in self._seen:
            self._bad[bad.cpu() if rows is None else rows[bad.cpu()]] = True  # rows may repeat
            self._some_bad = True
        self._seen.clear()
        return self._bad

    @property
    def troubled(self) -> bool:
        """Whether there is anything for `bad` to look at."""
        return self._some_bad or bool(self._seen)

    def count(self, rows: Tensor | None, evaluations: int = 1, backward: int = 0) -> None:
        """Count evaluations and backward passes of the samples ``rows``, which may repeat (None: all of them, once)."""
        self.calls += 1
        self.evaluations.add(rows, evaluations)
        if backward:
            self.backward_passes.add(rows, backward)

    def look(self, x: Tensor, out: Tensor, rows: Tensor | None) -> None:
        """Note which outputs ``out`` at states ``x`` of the samples ``rows`` are not finite: for a monitor that watches."""
        # On the host one sum tells whether there is anything to look for; on a device nothing waits for the answer.
        if out.device.type != "cpu" or not math.isfinite(float(out.detach().sum())):
            self._seen.append((rows, ~torch.isfinite(rowwise(out)).all(dim=1) & torch.isfinite(rowwise(x)).all(dim=1)))
