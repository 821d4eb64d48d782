"""Files that are written as a whole or not at all, and what JSON can hold."""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

__all__ = ["plain", "sweep", "write_atomically"]

_ABANDONED: Final = 3600.0
"""Seconds after which a temporary file beside a file of ours belongs to a writer that was
killed.
"""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there."""
    sweep(path, age=_ABANDONED)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sweep(path: Path, age: float = 0.0) -> None:
    """Remove the temporary files of `write_atomically` for this path that are at least ``age``
    seconds old.
    """
    ours = re.compile(re.escape(f".{path.name}.") + "[a-z0-9_]{8}")
    now = time.time()
    for found in path.parent.iterdir():
        if ours.fullmatch(found.name):
            with suppress(OSError):
                if now - found.stat().st_mtime >= age:
                    found.unlink()


def plain(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite are written as strings."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
