"""Help with names that are not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` if a known name is near, else nothing."""
    names = {k.lower(): k for k in known}
    close = get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""
