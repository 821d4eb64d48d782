"""Progress bars on the terminal, by rich."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sdediff._extras import require

__all__ = ["Bar", "progress_bar"]


class Bar:
    """A bar, or nothing where none is shown."""

    def __init__(self, rich_progress: Any = None, task: Any = None) -> None:
        self._progress, self._task = rich_progress, task

    def update(self, completed: float, note: str = "") -> None:
        """Set how much is done, with a note beside the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=completed, note=note)


@contextmanager
def progress_bar(title: str, *, total: float, show: bool, start: float = 0.0) -> Iterator[Bar]:
    """A bar with rate, time gone and time left."""
    if not show:
        yield Bar()
        return
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
        yield Bar(progress, task)
