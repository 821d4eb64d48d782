"""What a wrong number looks like: a factor 2, a sign, a missing square root."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["likely_slip"]

Array = NDArray[np.float64]

_FACTORS: Final = {
    2.0: "a factor 2",
    4.0: "a factor 4, that is 2 squared",
    2**0.5: "a factor sqrt(2), that is a 2 on the wrong side of a square root",
    np.pi: "a factor pi",
    np.log(10.0): "a logarithm to base 10",
}
_CLOSE: Final = 1e-4


def likely_slip(given: Any, expected: Any, others: Mapping[str, Any] | None = None) -> str:
    """Name the slip that turns ``expected`` into ``given``, or "" if none fits everywhere.

    Tried in this order: a constant factor, one of ``others`` (a name for each array that may stand in its place), the square,
    the square root, 1 - and 1 /; each up to a constant factor where that factor is a common one.
    """
    given, expected = np.broadcast_arrays(np.asarray(given, dtype=np.float64), np.asarray(expected, dtype=np.float64))
    with np.errstate(all="ignore"):
        factor = _constant(given, expected)
        if factor is not None:
            return "" if abs(factor - 1) < _CLOSE else _factor(factor)
        for name, other in (others or {}).items():
            if _near_one(_constant(given, np.broadcast_to(np.asarray(other, dtype=np.float64), given.shape))):
                return name
        for name, other in (
            ("a missing square root", expected**2),
            ("a square root too many, or a missing square", np.sqrt(expected)),
            ("the inverse, 1 / x for x", 1 / expected),
            ("1 - x for x", 1 - expected),
        ):
            factor = _constant(given, other)
            if factor is not None and (known := "" if abs(factor - 1) < _CLOSE else _known(factor)) is not None:
                return f"{name}, and {known}" if known else name
    return ""


def _constant(given: Array, other: Array) -> float | None:
    """c where given = c other everywhere, else None."""
    use = (
        np.isfinite(given)
        & np.isfinite(other)
        & (np.abs(other) > 1e-9 * np.max(np.abs(other), initial=0, where=np.isfinite(other)))
    )
    if not use.any() or not np.isfinite(given).all() or use.sum() < 0.5 * use.size:
        return None
    ratio = given[use] / other[use]
    middle = float(np.median(ratio))
    return middle if middle != 0 and bool((np.abs(ratio - middle) <= _CLOSE * abs(middle)).all()) else None


def _near_one(factor: float | None) -> bool:
    return factor is not None and abs(factor - 1) < _CLOSE


def _known(factor: float) -> str | None:
    size = max(abs(factor), 1 / abs(factor))
    sign = "a sign" if factor < 0 else ""
    if abs(size - 1) < _CLOSE:
        return sign or None
    name = next((text for value, text in _FACTORS.items() if abs(size / value - 1) < _CLOSE), None)
    return None if name is None else " and ".join(filter(None, (sign, name)))


def _factor(factor: float) -> str:
    return _known(factor) or f"a constant factor {factor:.4g}"
