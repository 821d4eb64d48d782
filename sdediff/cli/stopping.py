"""Commands that are stopped by a signal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from sdediff.interruption import signal_of

__all__ = ["interruptible"]


@contextmanager
def interruptible() -> Iterator[None]:
    """Say where a command was stopped, by Ctrl-C or another signal; the exit code is 128 and the
    signal's number.
    """
    from sdediff.training import Interrupted

    try:
        yield
    except Interrupted as stop:
        print(str(stop).replace("with resume", "with --resume"), file=sys.stderr)
        raise typer.Exit(128 + stop.signum) from stop
    except KeyboardInterrupt as stop:
        print("stopped; nothing was written", file=sys.stderr)
        raise typer.Exit(128 + signal_of(stop)) from stop
