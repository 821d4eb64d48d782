"""The table of identities: each a function of the context that yields what it compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdediff.testing.report import Finding
from sdediff.testing.slips import likely_slip

if TYPE_CHECKING:
    from sdediff.testing.context import Context

__all__ = [
    "ALGEBRAIC",
    "IDENTITIES",
    "INTEGRATED",
    "Comparison",
    "Identity",
    "Skip",
    "compare",
    "evaluate",
    "identity",
    "require",
    "settle",
]

Array = NDArray[np.float64]

ALGEBRAIC: Final = 1e-9
"""Bound of the relative deviation of what takes a few operations."""
INTEGRATED: Final = 1e-6
"""Bound of the relative deviation of what is integrated or differentiated numerically."""


class Skip(Exception):
    """Raised by an identity that does not apply."""


class Comparison(NamedTuple):
    """The largest deviation of one quantity, and where."""

    deviation: float
    bound: float
    where: str
    detail: str
    hint: str = ""
    warns: bool = False
    note: str = ""


class Identity(NamedTuple):
    """One line of the table."""

    check: Callable[[Context], Iterator[Comparison]]
    kind: Literal["linear", "general", "any"]
    """For SDEs with a Gaussian kernel, for those without, or for both."""
    after: tuple[str, ...]
    """Identities without which this one says nothing: it is skipped where one of them fails."""


IDENTITIES: Final[dict[str, Identity]] = {}


def identity(
    name: str, kind: Literal["linear", "general", "any"] = "linear", after: tuple[str, ...] = ()
) -> Callable[
    [Callable[[Context], Iterator[Comparison]]], Callable[[Context], Iterator[Comparison]]
]:
    """Enter a function into the table under that name."""

    def enter(
        check: Callable[[Context], Iterator[Comparison]],
    ) -> Callable[[Context], Iterator[Comparison]]:
        IDENTITIES[name] = Identity(check, kind, after)
        return check

    return enter


def place(at: Mapping[str, Any], index: int, shape: tuple[int, ...]) -> str:
    """ "t = 0.5, s = 0.1" at a flat index into arrays of that shape."""
    return ", ".join(
        f"{name} = {float(np.broadcast_to(times, shape).reshape(-1)[index]):.6g}"
        for name, times in at.items()
    )


def compare(
    what: str,
    given: Any,
    expected: Any,
    at: Mapping[str, Any],
    bound: float,
    *,
    scale: Any = None,
    others: Mapping[str, Any] | None = None,
    hint: str = "",
) -> Comparison:
    """The largest of |given - expected| / scale, with the likely slip if it exceeds ``bound``.

    ``scale`` is |expected| if not given; ``at`` has the times; ``others`` names arrays that
    ``given`` may have been taken for.
    """
    given, expected = np.broadcast_arrays(
        np.asarray(given, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    )
    with np.errstate(all="ignore"):
        gap = np.abs(given - expected)
        deviation = np.where(
            gap == 0,
            0.0,
            gap / (np.abs(expected) if scale is None else np.asarray(scale, dtype=np.float64)),
        )
    deviation = np.where(np.isnan(deviation), math.inf, deviation).reshape(-1)
    worst = int(deviation.argmax())
    largest, where = float(deviation[worst]), place(at, worst, given.shape)
    detail = (
        f"{what} is {given.reshape(-1)[worst]:.6g}, not "
        f"{expected.reshape(-1)[worst]:.6g}{f', at {where}' if where else ''}"
    )
    slip = "" if largest <= bound else likely_slip(given, expected, others, hint)
    return Comparison(largest, bound, where, detail, slip)


def require(
    holds: bool, detail: str, *, where: str = "", hint: str = "", note: str = ""
) -> Comparison:
    """What is true or not: a deviation of 0 or infinity."""
    return Comparison(
        0.0 if holds else math.inf, 0.0, where, detail, "" if holds else hint, note=note
    )


def evaluate(name: str, context: Context) -> Finding:
    """Check one identity."""
    return settle(name, IDENTITIES[name].check(context))


def settle(name: str, comparisons: Iterable[Comparison]) -> Finding:
    """What the comparisons come to. Whatever raises on the way makes a failure, and NaN deviates by
    infinity.
    """
    compared: list[Comparison] = []
    try:
        with np.errstate(all="ignore"):
            compared.extend(comparisons)
    except Skip as reason:
        return Finding(name, "skipped", detail=str(reason))
    except Exception as error:
        message = " ".join("; ".join([str(error), *getattr(error, "__notes__", ())]).split())
        return Finding(
            name, "fail", math.inf, detail=f"{type(error).__name__}: {message}", error=error
        )
    if not compared:
        return Finding(name, "skipped", detail="nothing to compare")
    broken = [item for item in compared if not item.deviation <= item.bound]
    failed = [item for item in broken if not item.warns]
    worst = max(failed or broken or compared, key=lambda item: (_excess(item), item.deviation))
    if broken:
        return Finding(
            name,
            "fail" if failed else "warn",
            worst.deviation,
            worst.bound,
            worst.where,
            worst.detail,
            worst.hint,
        )
    note = "; ".join(dict.fromkeys(item.note for item in compared if item.note))
    return Finding(name, "ok", worst.deviation, worst.bound, worst.where, note)


def _excess(item: Comparison) -> float:
    return item.deviation / item.bound if item.bound > 0 else item.deviation
