"""Which solver to take, from what a comparison found."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sdediff.comparison.record import MEASURES, Comparison, Row
from sdediff.solvers.given import check_choice, integer, real

__all__ = ["Recommendation", "recommend", "tolerance_for"]


@dataclass(frozen=True)
class Recommendation:
    """A sentence, and the call that it is about; ``code`` is what to paste."""

    sentence: str
    code: str
    row: Row
    """The row that it is from; of an adaptive solver between two tolerances, what lies between
    theirs.
    """

    def __str__(self) -> str:
        return f"{self.sentence}\n{self.code}"


def recommend(
    found: Comparison, *, nfe: int | None, error: float | None, by: str | None
) -> Recommendation:
    """As `Comparison.recommend` says."""
    if (nfe is None) == (error is None):
        raise ValueError(
            "pass one of nfe=, a number of evaluations, and error=, what is to be reached"
        )
    measure = by or _measure(found)
    check_choice("by", measure, tuple(MEASURES))
    rows = [row for row in found.measured if row.value(measure) is not None]
    if not found.measured:
        raise ValueError(f"nothing was measured: {'; '.join(found.notes) or found.rows[0].note}")
    if not rows:
        raise ValueError(
            f"no row has {_article(MEASURES[measure])}: choose another by=, or give compare what "
            "it needs (data=, against=, a deterministic solver)"
        )
    if nfe is not None:
        return _within(found, rows, measure, integer("nfe", nfe, 1))
    goal = real("error", error)
    if not 0 < goal < math.inf:
        raise ValueError(f"error must be a positive number, got {error!r}")
    return _reaching(found, rows, measure, goal)


def _measure(found: Comparison) -> str:
    if any(row.quality is not None for row in found.measured):
        return "frechet" if found.features else "data_energy"
    return "median" if any(row.error is not None for row in found.measured) else "energy"


def _value(row: Row, measure: str) -> float:
    found = row.value(measure)
    return math.inf if found is None else found


def _within(found: Comparison, rows: list[Row], measure: str, nfe: int) -> Recommendation:
    """The least value among those of at most ``nfe`` evaluations; the sentence says which are at
    the floor.
    """
    fits = [row for row in rows if row.slowest is not None and row.slowest <= nfe]
    if not fits:
        least = min(row.slowest or 0 for row in rows)
        raise ValueError(f"no row has at most {nfe} evaluations: the fewest are {least}")
    floor = found.floor(measure)
    ranked = sorted(fits, key=lambda row: (_value(row, measure), row.nfe or 0.0, row.solver))
    best = ranked[0]
    words = f"Within {nfe} evaluations {_named(best)} has the least {MEASURES[measure]}"
    sentence = f"{words}, {_told(best, measure, floor)}"
    others = [row for row in ranked if row.solver != best.solver]
    if others:
        value = _value(others[0], measure)
        same = value <= max(floor, _value(best, measure))
        word = "and no better than" if same else "next is"
        sentence += f"; {word} {_named(others[0])} with {_told(others[0], measure, floor)}"
    asked = [row for row in found.rows if row.budget == nfe]
    if asked and not any(row.nfe is not None for row in asked):
        sentence += f"; nothing was measured at {nfe}"
    return Recommendation(f"{sentence}.", best.code, best)


def _reaching(found: Comparison, rows: list[Row], measure: str, goal: float) -> Recommendation:
    """The fewest evaluations among what reaches ``goal``, tolerances between those of the rows
    too.
    """
    floor = found.floor(measure)
    reached = [row for row in rows if _value(row, measure) <= goal]
    reached += list(_between(rows, measure, goal))
    if not reached:
        best = min(rows, key=lambda row: (_value(row, measure), row.solver))
        sentence = (
            f"Nothing here reaches {MEASURES[measure]} {goal:.3g}; the nearest is {_named(best)} "
            f"with {_told(best, measure, floor)}: give more evaluations (nfe=)"
        )
        return Recommendation(f"{sentence}.", best.code, best)
    best = min(reached, key=lambda row: (row.nfe or 0.0, _value(row, measure), row.solver))
    sentence = (
        f"{MEASURES[measure].capitalize()} {goal:.3g} takes the fewest evaluations, "
        f"{best.nfe:.3g}, by {_named(best)}, which has {_told(best, measure, floor)}"
    )
    if goal < floor:
        sentence += f"; but values below {floor:.2g} are below the floor and say nothing"
    return Recommendation(f"{sentence}.", best.code, best)


def _between(rows: list[Row], measure: str, goal: float) -> Iterator[Row]:
    """Of each adaptive solver the tolerance at which its error is ``goal``."""
    for name in {row.solver for row in rows if row.tolerance is not None}:
        own = [row for row in rows if row.solver == name and row.tolerance is not None]
        made = tolerance_for(own, measure, goal)
        if made is not None:
            yield made


def tolerance_for(rows: list[Row], measure: str, goal: float) -> Row | None:
    """The row between two of one adaptive solver where the measure is ``goal``: log tolerance and
    log evaluations are linear in log error. None where no two neighbours have it between them.
    """
    swept = sorted(rows, key=lambda row: -(row.tolerance or 0.0))
    for loose, tight in itertools.pairwise(swept):
        high, low = _value(loose, measure), _value(tight, measure)
        if not low <= goal < high < math.inf or low <= 0:
            continue
        share = math.log(high / goal) / math.log(high / low)
        # two digits, towards the tighter
        tolerance = _rounded(_mixed(loose.tolerance, tight.tolerance, share))
        code = _retold(tight.code, tight.tolerance or 0.0, tolerance)
        note = f"between the tolerances {loose.tolerance:g} and {tight.tolerance:g}"
        nfe = _mixed(loose.nfe, tight.nfe, share)
        error = None if tight.error is None else replace(tight.error, **{measure: goal})
        if measure not in ("median", "rms", "p90", "worst"):
            return None
        return replace(
            tight, tolerance=tolerance, code=code, nfe=nfe, error=error, law=None, quality=None,
            note=note,
        )  # fmt: skip
    return None


def _mixed(a: float | None, b: float | None, share: float) -> float:
    """From a to b along a line in the logarithm."""
    low, high = math.log(a or 1.0), math.log(b or 1.0)
    return math.exp(low + share * (high - low))


def _rounded(tolerance: float) -> float:
    scale = 10.0 ** (math.floor(math.log10(tolerance)) - 1)
    return float(f"{math.floor(tolerance / scale) * scale:.1e}")


def _retold(code: str, old: float, new: float) -> str:
    """The call with another tolerance; atol is in proportion."""

    def scaled(match: re.Match[str]) -> str:
        return f"{match[1]}={float(match[2]) * new / old:.6g}"

    return re.sub(r"\b(rtol|atol)=([\d.e+-]+)", scaled, code)


def _named(row: Row) -> str:
    if row.steps is not None:
        return f"{row.solver} in {row.steps} step{'s' if row.steps > 1 else ''}"
    if row.tolerance is not None:
        return f"{row.solver} at tolerance {row.tolerance:.2g}"
    return row.solver


def _told(row: Row, measure: str, floor: float) -> str:
    value = _value(row, measure)
    return f"{value:.2g}" if value > floor else f"{value:.2g} (at the floor, {floor:.2g})"


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"
