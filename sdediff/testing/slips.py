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


def likely_slip(
    given: Any, expected: Any, others: Mapping[str, Any] | None = None, otherwise: str = ""
) -> str:
    """Name the slip that turns ``expected`` into ``given``, or "" if none fits.

    Tried in this order: a common factor; one of ``others``, a name for each array that may stand in
    its place; the square, the square root, 1 / and 1 -, up to a common factor; then ``otherwise``,
    or any constant factor.
    """
    given, expected = np.broadcast_arrays(
        np.asarray(given, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    )
    with np.errstate(all="ignore"):
        constant = _constant(given, expected)
        if constant is not None and (abs(constant - 1) < _CLOSE or _known(constant)):
            return _known(constant) or otherwise
        for name, other in (others or {}).items():
            if _near_one(
                _constant(given, np.broadcast_to(np.asarray(other, dtype=np.float64), given.shape))
            ):
                return name
        for name, other in (
            ("a missing square root", expected**2),
            ("a square root too many, or a missing square", np.sqrt(expected)),
            ("the inverse, 1 / x for x", 1 / expected),
            ("1 - x for x", 1 - expected),
        ):
            factor = _constant(given, other)
            if factor is not None and (_near_one(factor) or _known(factor)):
                return name if _near_one(factor) else f"{name}, and {_known(factor)}"
    return otherwise or ("" if constant is None else f"a constant factor {constant:.4g}")


def _constant(given: Array, other: Array) -> float | None:
    """c where given = c other, but for a tenth of the entries; else None."""
    size = np.abs(other)
    use = (
        np.isfinite(given)
        & np.isfinite(other)
        & (size > 1e-9 * np.max(size, initial=0, where=np.isfinite(size)))
    )
    if not use.any() or not np.isfinite(given).all() or use.sum() < 0.5 * use.size:
        return None
    ratio = given[use] / other[use]
    middle = float(np.median(ratio))
    return (
        middle
        if middle != 0 and float(np.mean(np.abs(ratio - middle) <= _CLOSE * abs(middle))) >= 0.9
        else None
    )


def _near_one(factor: float | None) -> bool:
    return factor is not None and abs(factor - 1) < _CLOSE


def _known(factor: float) -> str:
    """The name of a common factor, or ""; "" for 1."""
    size = max(abs(factor), 1 / abs(factor))
    sign = "a sign" if factor < 0 else ""
    if abs(size - 1) < _CLOSE:
        return sign
    name = next((text for value, text in _FACTORS.items() if abs(size / value - 1) < _CLOSE), "")
    return " and ".join(filter(None, (sign, name))) if name else ""
