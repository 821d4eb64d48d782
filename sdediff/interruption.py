"""Signals that end a run: noted, so that what is under way comes to an end and what there is can be
kept.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

__all__ = ["Stop", "raising", "signal_of", "stoppable"]

_POLITE: Final = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class Stop:
    """Whether a signal has come, and the first that did."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stoppable() -> Iterator[Stop]:
    """A `Stop` that Ctrl-C, SIGTERM and SIGHUP set.

    A second Ctrl-C interrupts at once; SIGTERM and SIGHUP, which schedulers and terminals may send
    twice, are noted only. A signal that is ignored, as SIGHUP is under nohup, or that the user
    handles is left alone. Outside the main thread none is noted.
    """
    stop = Stop()
    before = _handlers()

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signal = stop.signal or signum
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handlers() -> dict[int, Any]:
    """The handlers of the signals that are taken over; none outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before: dict[int, Any] = {
        number: signal.SIG_DFL for number in _POLITE if signal.getsignal(number) is signal.SIG_DFL
    }
    before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    return before


@contextmanager
def raising() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt; after the first, SIGTERM and SIGHUP are
    ignored.

    `signal_of` says which one came. Which signals are left alone, `stoppable` says.
    """
    seen: list[int] = []

    def interrupt(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)
        if len(seen) == 1:
            raise KeyboardInterrupt(signum)

    before = _handlers()
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_of(error: KeyboardInterrupt) -> int:
    """The signal that has raised it."""
    return int(error.args[0]) if error.args else int(signal.SIGINT)
