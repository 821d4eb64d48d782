"""The seconds that a comparison may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sdediff.solvers import Snapshot

__all__ = ["Allowance", "OutOfTimeError"]


class OutOfTimeError(Exception):
    """The seconds are spent, in the middle of a solve."""


class Allowance:
    """Seconds from now on, or no limit, and what an evaluation of the whole batch has taken."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.began = time.perf_counter()
        self._end = float("inf") if seconds is None else seconds
        self._paces: dict[str, float] = {}
        self._around = 0.0

    @property
    def gone(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.began

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return float("inf") if self.seconds is None else self.seconds - self.gone

    def learn(self, name: str, evaluations: float, seconds: float) -> None:
        """Note what so many evaluations of the whole batch took by the solver of that name."""
        self._paces[name] = seconds / max(1.0, evaluations)

    def around(self, seconds: float) -> None:
        """Note what was done beside the evaluations of one solve; the longest counts."""
        self._around = max(self._around, seconds)

    def fits(self, name: str, evaluations: float) -> bool:
        """Whether so many evaluations of that solver are expected to end in time; of one that is
        new, at the pace that is in the middle of the others.
        """
        known = sorted(self._paces.values())
        middle = known[len(known) // 2] if known else 0.0
        return self._paces.get(name, middle) * evaluations + self._around <= self.left

    @contextmanager
    def share(self, part: float) -> Iterator[None]:
        """End solves when this part of the seconds left is over."""
        end, self._end = self._end, min(self._end, self.gone + part * max(0.0, self.left))
        try:
            yield
        finally:
            self._end = end

    def watch(self) -> Callable[[Snapshot], None] | None:
        """A callback that ends a solve by `OutOfTimeError`; None where there is no limit."""
        return None if self.seconds is None else self._check

    def _check(self, snapshot: Snapshot) -> None:
        if self.gone > self._end:
            raise OutOfTimeError
