"""What a check has found: a comparison and its likely slip, a finding for each line of a table, the
report of all, and the error that names what is broken.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdediff.solvers.portable import Portable

__all__ = [
    "ALGEBRAIC",
    "INTEGRATED",
    "CheckError",
    "Comparison",
    "EquivalenceError",
    "Finding",
    "Report",
    "SDEError",
    "Skip",
    "SolverError",
    "compare",
    "likely_slip",
    "require",
    "settle",
]

Array = NDArray[np.float64]
Check = Callable[[Any], Iterator["Comparison"]]
"""One line of a table: a function of what is checked that yields what it compares."""

ALGEBRAIC: Final = 1e-9
"""Bound of the relative deviation of what takes a few operations."""
INTEGRATED: Final = 1e-6
"""Bound of the relative deviation of what is integrated or differentiated numerically."""

_FACTORS: Final = {
    2.0: "a factor 2",
    4.0: "a factor 4, that is 2 squared",
    2**0.5: "a factor sqrt(2), that is a 2 on the wrong side of a square root",
    np.pi: "a factor pi",
    np.log(10.0): "a logarithm to base 10",
}
_CLOSE: Final = 1e-4


class Skip(Exception):
    """Raised by a check that does not apply."""


class Comparison(NamedTuple):
    """The largest deviation of one quantity, and where."""

    deviation: float
    bound: float
    where: str
    detail: str
    hint: str = ""
    warns: bool = False
    note: str = ""

    @property
    def broken(self) -> bool:
        """Whether the deviation exceeds the bound, or is NaN."""
        return not self.deviation <= self.bound


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
    given, expected = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (given, expected)))
    with np.errstate(all="ignore"):
        gap = np.abs(given - expected)
        size = np.abs(expected) if scale is None else np.asarray(scale, np.float64)
        deviation = np.where(gap == 0, 0.0, gap / size)
    deviation = np.where(np.isnan(deviation), math.inf, deviation).reshape(-1)
    worst = int(deviation.argmax())
    largest = float(deviation[worst])
    where = ", ".join(
        f"{name} = {float(np.broadcast_to(times, given.shape).reshape(-1)[worst]):.6g}"
        for name, times in at.items()
    )
    found, due = (f"{x.reshape(-1)[worst]:.6g}" for x in (given, expected))
    detail = f"{what} is {found}, not {due}{f', at {where}' if where else ''}"
    slip = "" if largest <= bound else likely_slip(given, expected, others, hint)
    return Comparison(largest, bound, where, detail, slip)


def require(
    holds: bool, detail: str, *, where: str = "", hint: str = "", note: str = ""
) -> Comparison:
    """What is true or not: a deviation of 0 or infinity."""
    return Comparison(
        0.0 if holds else math.inf, 0.0, where, detail, "" if holds else hint, note=note
    )


class Finding(NamedTuple):
    """What one line of a table came to."""

    name: str
    """What was checked, the first column of the table."""
    verdict: Literal["ok", "fail", "warn", "skipped"]
    """Whether it holds, fails, holds with a warning, or could not be checked."""
    deviation: float = math.nan
    """The largest, relative; infinite where something is not finite, has the wrong shape or has
    raised.
    """
    bound: float = math.nan
    """The largest deviation that is allowed, relative."""
    where: str = ""
    """The time or times of the largest deviation: "t = 0.5" or "t = 0.5, s = 0.1"."""
    detail: str = ""
    """What deviates, with the value found and the value expected; of what is skipped, why."""
    hint: str = ""
    """The likely slip; "" where none is recognised."""
    error: Exception | None = None
    """What a method of the object under test has raised."""

    def __reduce__(self) -> tuple[Any, ...]:
        """The fields; an error that cannot be pickled is replaced by its words."""
        error = self.error
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # of any kind: the user's class decides
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return type(self), (*self[:-1], error)

    def __str__(self) -> str:
        """One line: name, what deviates by how much and where, likely slip."""
        text = f"{self.name}: {self.detail}" if self.detail else self.name
        if math.isfinite(self.deviation) and self.verdict != "skipped":
            text += f" (deviation {self.deviation:.2g}, bound {self.bound:.0e})"
        return f"{text}; likely slip: {self.hint}" if self.hint else text


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
        detail = f"{type(error).__name__}: {message}"
        return Finding(name, "fail", math.inf, detail=detail, error=error)
    if not compared:
        return Finding(name, "skipped", detail="nothing to compare")
    broken = [item for item in compared if item.broken]
    failed = [item for item in broken if not item.warns]
    worst = max(failed or broken or compared, key=_excess)
    if broken:
        return Finding(name, "fail" if failed else "warn", *worst[:5])
    note = "; ".join(dict.fromkeys(item.note for item in compared if item.note))
    return Finding(name, "ok", *worst[:3], note)


def _excess(item: Comparison) -> tuple[float, float]:
    relative = item.deviation / item.bound if item.bound > 0 else item.deviation
    return relative, item.deviation


@dataclass(frozen=True)
class Report:
    """The findings of a check, one for each line of its table; printed as a table."""

    sde: str
    """The repr of what was checked."""
    findings: tuple[Finding, ...]
    kind: str = "identity"
    """What there is a finding for: the head of the table's first column."""

    @property
    def passed(self) -> bool:
        """Whether nothing fails."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What fails, the more basic first."""
        return tuple(finding for finding in self.findings if finding.verdict == "fail")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What is no error and may yet surprise."""
        return tuple(finding for finding in self.findings if finding.verdict == "warn")

    def lines(self) -> list[str]:
        """The failures, a line for each cause: what fails by one and the same error shares a
        line.
        """
        together: dict[object, list[Finding]] = {}
        for finding in self.failures:
            raised = finding.error is not None
            same = re.sub(r"[\d.+-]+", "", finding.detail) if raised else finding.name
            together.setdefault((type(finding.error), same), []).append(finding)
        said = []
        for first, *others in together.values():
            names = ", ".join(finding.name for finding in others)
            said.append(f"- {first}{f'; the same error ends {names}' if others else ''}")
        return said

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def __str__(self) -> str:
        """A table: name, largest deviation, bound, where, verdict."""
        rows = [(self.kind, "deviation", "bound", "where", "verdict")]
        for finding in self.findings:
            numbers = ((finding.deviation, ".1e"), (finding.bound, ".0e"))
            deviation, bound = ("-" if math.isnan(x) else f"{x:{digits}}" for x, digits in numbers)
            note = finding.hint if finding.verdict == "fail" else finding.detail
            verdict = f"{finding.verdict}: {note}" if note else finding.verdict
            rows.append((finding.name, deviation, bound, finding.where, verdict))
        a, b, c, d = (max(len(row[i]) for row in rows) for i in range(4))
        lines = [f"{n:<{a}}  {v:>{b}}  {o:>{c}}  {w:<{d}}  {said}" for n, v, o, w, said in rows]
        return "\n".join([self.sde, *(line.rstrip() for line in lines)])

    def conclude(self, error: type[CheckError], verbose: bool, what: str = "") -> Report:
        """Return the report, printed where ``verbose``; raise ``error`` if anything fails."""
        if verbose:
            print(self)
        if not self.passed:
            raised = (finding.error for finding in self.failures if finding.error is not None)
            raise error(self, what) from next(raised, None)
        return self


class CheckError(Portable, ValueError):
    """A check has failed; ``report`` has all findings."""

    one: ClassVar[str]
    many: ClassVar[str]
    advice: ClassVar[str] = ""

    def __init__(self, report: Report, what: str = "") -> None:
        self.report = report
        count = len(report.failures)
        what = what or f"breaks {self.one if count == 1 else f'{count} {self.many}'}"
        lines = [f"{report.sde} {what}:", *report.lines()]
        super().__init__(
            "\n".join([*lines, self.advice] if len(lines) > 2 and self.advice else lines)
        )


class SDEError(CheckError):
    """An SDE breaks at least one identity; ``report`` has them all."""

    one, many = "an identity", "identities"
    advice = "They are listed from the basic to the derived: mend the first and check again."


class SolverError(CheckError):
    """A solver breaks at least one contract; ``report`` has them all."""

    one, many = "a contract", "contracts"


class EquivalenceError(CheckError):
    """Two things that should be one are not; ``report`` has all findings."""

    one, many = "an equivalence", "equivalences"


def likely_slip(
    given: Any, expected: Any, others: Mapping[str, Any] | None = None, otherwise: str = ""
) -> str:
    """Name the slip that turns ``expected`` into ``given``, or "" if none fits.

    Tried in this order: a common factor; one of ``others``, a name for each array that may stand in
    its place; the square, the square root, 1 / and 1 -, up to a common factor; then ``otherwise``,
    or any constant factor.
    """
    given, expected = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (given, expected)))
    with np.errstate(all="ignore"):
        constant = _constant(given, expected)
        if constant is not None and (abs(constant - 1) < _CLOSE or _known(constant)):
            return _known(constant) or otherwise
        for name, other in (others or {}).items():
            factor = _constant(given, np.broadcast_to(np.asarray(other, np.float64), given.shape))
            if factor is not None and abs(factor - 1) < _CLOSE:
                return name
        for name, other in (
            ("a missing square root", expected**2),
            ("a square root too many, or a missing square", np.sqrt(expected)),
            ("the inverse, 1 / x for x", 1 / expected),
            ("1 - x for x", 1 - expected),
        ):
            factor = _constant(given, other)
            if factor is not None and (abs(factor - 1) < _CLOSE or _known(factor)):
                return ", and ".join(filter(None, (name, _known(factor))))
    return otherwise or ("" if constant is None else f"a constant factor {constant:.4g}")


def _constant(given: Array, other: Array) -> float | None:
    """c where given = c other, but for a tenth of the entries; else None."""
    size = np.abs(other)
    largest = np.max(size, initial=0, where=np.isfinite(size))
    use = np.isfinite(given) & np.isfinite(other) & (size > 1e-9 * largest)
    if not use.any() or not np.isfinite(given).all() or use.sum() < 0.5 * use.size:
        return None
    ratio = given[use] / other[use]
    middle = float(np.median(ratio))
    alike = float(np.mean(np.abs(ratio - middle) <= _CLOSE * abs(middle)))
    return middle if middle != 0 and alike >= 0.9 else None


def _known(factor: float) -> str:
    """The name of a common factor, or ""; "" for 1."""
    size = max(abs(factor), 1 / abs(factor))
    sign = "a sign" if factor < 0 else ""
    if abs(size - 1) < _CLOSE:
        return sign
    name = next((text for value, text in _FACTORS.items() if abs(size / value - 1) < _CLOSE), "")
    return " and ".join(filter(None, (sign, name))) if name else ""
