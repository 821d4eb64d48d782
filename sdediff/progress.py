"""Progress: a bar by rich on a terminal, a line now and then where output goes to a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sdediff._extras import require
from sdediff.solvers.given import flag

__all__ = ["Bar", "progress_bar"]

_EVERY = 10.0  # seconds between lines


class Bar:
    """Shows how much is done, or nothing."""

    def __init__(self, show: Callable[[float, str], None] | None = None) -> None:
        self._show = show

    def update(self, completed: float, note: str = "") -> None:
        """Set how much is done, with a note beside it."""
        if self._show is not None:
            self._show(completed, note)


@contextmanager
def progress_bar(title: str, *, total: float, show: bool, start: float = 0.0) -> Iterator[Bar]:
    """A bar on stderr with what is done, a note, the time gone and the time left."""
    if not flag("progress", show):
        yield Bar()
    elif not sys.stderr.isatty():
        yield Bar(_lines(title, total, start))
    else:
        rich = require("rich.progress", "cli")
        from rich.console import Console

        columns = (
            rich.TextColumn("{task.description}"),
            rich.BarColumn(bar_width=24),
            rich.TextColumn("{task.percentage:3.0f}%"),
            rich.TextColumn("{task.fields[note]}"),
            rich.TimeElapsedColumn(),
            rich.TextColumn("left"),
            rich.TimeRemainingColumn(),
        )
        with rich.Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=total, completed=start, note="")
            yield Bar(lambda completed, note: progress.update(task, completed=completed, note=note))


def _lines(title: str, total: float, start: float) -> Callable[[float, str], None]:
    began = last = time.monotonic()

    def show(completed: float, note: str) -> None:
        nonlocal began, last
        now = time.monotonic()
        done = completed > start
        if not done:
            began = now  # preparations say nothing of how long the rest takes
        if now - last < _EVERY and completed < total:
            return
        last = now
        left = ""
        if done:
            seconds = (now - began) * (total - completed) / (completed - start)
            left = f"{max(seconds, 0.0):.0f} s left"
        share = min(completed / total, 1.0)
        print(f"{title}  {100 * share:3.0f}%  {note}  {left}".rstrip(), file=sys.stderr, flush=True)

    return show
