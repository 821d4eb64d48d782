"""The device of one of several processes."""

from __future__ import annotations

from sdediff.cli.names import check_device
from sdediff.processes import Processes

__all__ = ["own_device"]


def own_device(name: str | None) -> str:
    """The device named, or the fastest: of several GPUs, each process on a machine its own."""
    found, here = check_device(name), Processes.here()
    return f"cuda:{here.local}" if found == "cuda" and here.count > 1 else found
