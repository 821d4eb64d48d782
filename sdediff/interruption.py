"""Signals that end a run: noted, so that what is under way comes to an end and what there is can be kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

__all__ = ["Stop", "stoppable"]

_POLITE: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stop:
    """Whether a signal has come, and the first that did."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stoppable() -> Iterator[Stop]:
    """A `Stop` that Ctrl-C, SIGTERM and SIGHUP set.

    A second Ctrl-C interrupts at once; SIGTERM and SIGHUP, which schedulers and terminals may send twice, are noted only. A signal
    that is ignored, as SIGHUP is under nohup, or that the user handles is left alone. Outside the main thread none is noted.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signal = stop.signal or signum
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    before: dict[int, Any] = {number: signal.SIG_DFL for number in _POLITE if signal.getsignal(number) is signal.SIG_DFL}
    before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
