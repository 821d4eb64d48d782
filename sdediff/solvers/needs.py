"""The names of what a problem offers and a solver needs."""

from __future__ import annotations

from collections.abc import Set
from difflib import get_close_matches
from typing import Final

from sdediff.solvers.solver import Solver

__all__ = ["OFFERS", "unknown_needs"]

OFFERS: Final = {
    "drift": ("drift",),
    "diffusion": ("diffusion", "diffuse", "spread"),
    "score": ("score",),
    "marginal": ("marginal", "log_snr", "levels", "time_of"),
    "kernel": ("kernel",),
    "coefficients": ("coefficients",),
    "data": ("data",),
    "noise": ("noise",),
    "v": ("v",),
    "variance": ("outputs",),
    "loading": ("loading",),
    "iterated": ("iterated",),
    "degrade": ("degrade",),
}
"""What a problem may offer and a solver may need, and the methods that each name stands for."""


def unknown_needs(solver: Solver, offered: frozenset[str] = frozenset()) -> str:
    """Which of the ``needs`` of a solver are no names that there are, and which are; "" where all
    are known.
    """
    if not isinstance(solver.needs, Set):
        return (
            f"{type(solver).__name__}.needs must be a set of names, frozenset({{'drift'}}) say; "
            f"got {solver.needs!r}"
        )
    unknown = sorted(solver.needs - OFFERS.keys() - offered)
    if not unknown:
        return ""
    meant = (name for name, methods in OFFERS.items() if unknown[0] in methods)
    close = next(meant, None) or next(iter(get_close_matches(unknown[0], OFFERS, n=1)), None)
    hint = f" (did you mean {close!r}?)" if close else ""
    return (
        f"{type(solver).__name__}.needs names {', '.join(map(repr, unknown))}{hint}; known are "
        f"{', '.join(OFFERS)}"
    )
