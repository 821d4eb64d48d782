"""The command line: ``sdediff train``, ``sdediff sample``, ``sdediff check``, ``sdediff demo``."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. What the user can mend is one line on stderr and exit code 2."""
    try:
        from sdediff.cli.app import app
    except ImportError:
        _stop('the command line needs typer and rich: pip install "sdediff[all]"', 2)
    try:
        app(arguments)
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        if os.environ.get("SDEDIFF_TRACEBACK"):
            raise
        _stop(f"error: {' '.join(str(error).split())}", 2)


def _stop(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)
