"""The command line: ``sdediff train``, ``sample``, ``restore``, ``compare``, ``evaluate``,
``check`` and ``demo``.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. What the user can mend is one line on stderr and exit code 2."""
    try:
        from sdediff.cli.app import app, spoken
    except ImportError:
        _stop('the command line needs typer and rich: pip install "sdediff[all]"', 2)
    try:
        with _short_warnings():
            app(arguments)
    except (
        ValueError,
        TypeError,
        OSError,
        ImportError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
    ) as error:
        if os.environ.get("SDEDIFF_TRACEBACK"):
            raise
        given = sys.argv[1:] if arguments is None else arguments
        _stop(f"error: {spoken(error, given)}", 2)


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Warnings as one line, without the place in the library that gave them."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: (
        f"warning: {' '.join(str(message).split())}\n"
    )
    try:
        yield
    finally:
        warnings.formatwarning = before


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
