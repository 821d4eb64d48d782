"""What a comparison found: frozen records that go to JSON and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sdediff.files import plain
from sdediff.metrics import Floor, Metric

if TYPE_CHECKING:
    from sdediff.comparison.advice import Recommendation

__all__ = ["MEASURES", "Comparison", "Errors", "Law", "Quality", "Reference", "Row"]

MEASURES: Final = {
    "median": "median error",
    "rms": "root mean square error",
    "p90": "90th percentile of the errors",
    "worst": "error of the worst sample",
    "energy": "energy distance",
    "sliced_w2": "sliced Wasserstein distance",
    "frechet": "Frechet distance to the data",
    "data_energy": "energy distance to the data",
}
"""What rows are ranked by, and the words for it; less is better."""
_FORMAT: Final = 1
_NEAR: Final = 3.0


@dataclass(frozen=True)
class Errors:
    """Distances of samples from the reference, root mean square over coordinates, in units of the
    standard deviation of the data. Quantiles are errors of samples: the least that so many reach.
    """

    median: float
    rms: float
    p90: float
    worst: float


@dataclass(frozen=True)
class Law:
    """Distances of the law of the samples from the law asked for, each with its floor
    (`Comparison.floor`), in units of the standard deviation of the data.

    ``energy``: the energy distance, unbiased, and squared in Székely's sense.
    ``sliced_w2``: the sliced Wasserstein distance, which is above 0 for equal laws too: compare it
    with its floor.
    ``spread``: the log of the ratio of the standard deviations of samples and reference set. 0 is
    right, but samples in wrong places may have it too.
    """

    energy: Metric
    sliced_w2: Metric
    spread: Metric


@dataclass(frozen=True)
class Quality:
    """Distances from data: Frechet distance between features, and unbiased energy distance in units
    of the standard deviation of the data, with its floor.
    """

    frechet: float
    energy: Metric


@dataclass(frozen=True)
class Reference:
    """What the errors are relative to: solver, mean evaluations a sample, and ``error``, its
    distance from the solve ``checked_by`` another method. ``note`` says what went wrong.
    """

    solver: str
    nfe: float
    error: Errors | None
    checked_by: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One solver at one cost, or why there is nothing of it.

    ``budget``: the evaluations that it was given, the last one included; None for an adaptive
    solver, which has a ``tolerance``, and for one with a grid of its own. ``nfe``, ``slowest``: the
    mean and the largest number of evaluations of a sample; ``backward``: passes back through the
    network, the mean; ``seconds``: wall time of the solve. ``error`` is of deterministic solvers.
    ``code`` is the call that does the same; in it ``solvers`` are those that `compare` was given,
    where a solver has parts that a line cannot write.
    """

    solver: str
    code: str
    stochastic: bool
    budget: int | None = None
    tolerance: float | None = None
    steps: int | None = None
    nfe: float | None = None
    slowest: int | None = None
    backward: float | None = None
    seconds: float | None = field(default=None, compare=False)
    error: Errors | None = None
    law: Law | None = None
    quality: Quality | None = None
    note: str = ""

    def value(self, measure: str) -> float | None:
        """The number that ``measure``, one of `MEASURES`, names; None where there is none."""
        if measure in ("energy", "sliced_w2"):
            found = None if self.law is None else float(getattr(self.law, measure))
        elif measure == "frechet":
            found = None if self.quality is None else self.quality.frechet
        elif measure == "data_energy":
            found = None if self.quality is None else float(self.quality.energy)
        else:
            found = None if self.error is None else getattr(self.error, measure)
        return None if found is None or math.isnan(found) else found


@dataclass(frozen=True)
class Comparison:
    """Solvers on one model, error against cost. ``print`` shows a table.

    ``data_std``: the unit of errors and of distances.
    ``against``: the law from which distances are measured. ``flow``: whether that is the law of the
    probability flow.
    ``real``: the distances that held-out data have in place of samples. No sampler can be asked for
    less.
    ``notes``: what a reader has to know.

    Two comparisons are equal if all but their seconds are.
    """

    model: str
    shape: tuple[int, ...]
    seed: int
    data_std: float
    reference: Reference
    rows: tuple[Row, ...]
    against: str = ""
    flow: bool = False
    features: str = ""
    real: Quality | None = None
    notes: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def measured(self) -> tuple[Row, ...]:
        """The rows that have a result."""
        return tuple(row for row in self.rows if row.nfe is not None)

    def near(self, row: Row) -> tuple[str, ...]:
        """Which errors of a row are below three times the reference's own, and so mean little."""
        known = self.reference.error
        if known is None or row.error is None:
            return ()
        own, limit = asdict(row.error), asdict(known)
        return tuple(name for name in own if own[name] <= _NEAR * limit[name])

    def floor(self, measure: str) -> float:
        """The floor of ``measure``, one of `MEASURES`: values below it are not told apart.

        For a distance of laws it is what two samples of the same law have by chance: the 95 %
        quantile, of which the median over the rows is taken. For an error, which has no chance in
        it, it is three times the error of the reference itself. For the Frechet distance to the
        data it is what held-out data have.
        """
        if measure == "frechet":
            return 0.0 if self.real is None else self.real.frechet
        if measure in ("energy", "sliced_w2", "data_energy"):
            floors = sorted(_limits(self.measured, measure))
            return floors[len(floors) // 2] if floors else 0.0
        known = self.reference.error
        return 0.0 if known is None else _NEAR * float(getattr(known, measure))

    def recommend(
        self,
        *,
        nfe: int | None = None,
        error: float | None = None,
        by: str | None = None,
    ) -> Recommendation:
        """The best solver for a budget ``nfe`` of evaluations, or the cheapest that reaches
        ``error``, one of the two: a sentence, and the line of code to paste.

        ``by``: the measure, one of `MEASURES`. By default it is the Frechet distance to the data
        or, without features, the energy distance to the data, where data were given; else the
        median error, or, without one, the energy distance.

        The row with the least value is recommended. Values below the floor (`floor`) cannot be
        told apart, and the sentence says so where the least value is one of them. An adaptive
        solver was measured at a few tolerances. Between two of them error and evaluations are
        interpolated by a line on logarithmic axes. Raises ValueError where both or neither of
        ``nfe`` and ``error`` is given, and where no row has the measure.
        """
        from sdediff.comparison.advice import recommend

        return recommend(self, nfe=nfe, error=error, by=by)

    def to_json(self) -> str:
        """All of it, for `from_json`. What is not finite is written as a string."""
        return json.dumps({"format": _FORMAT, **plain(asdict(self))}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """What `to_json` wrote; a ValueError if that is something else."""
        try:
            found = json.loads(text)
            if found.pop("format") != _FORMAT:
                raise ValueError("of another format")
            return _comparison(found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"this is no comparison written by to_json ({error}): make it again"
            ) from error

    def markdown(self) -> str:
        """The tables in Markdown."""
        from sdediff.comparison.tables import markdown

        return markdown(self)

    def show(self) -> None:
        """Print the tables, by rich where that is installed."""
        from sdediff.comparison.tables import show

        show(self)

    def plot(self, path: str | Path) -> None:
        """Draw error against evaluations on logarithmic axes, as PNG; the floors are grey."""
        from sdediff.comparison.picture import picture
        from sdediff.plots import save_png

        save_png(picture(self), path)

    def __str__(self) -> str:
        from sdediff.comparison.tables import plain

        return plain(self)


def _limits(rows: tuple[Row, ...], measure: str) -> Iterator[float]:
    """The 95 % quantiles of the noise floors of a distance."""
    for row in rows:
        of: Any = row.quality if measure == "data_energy" else row.law
        metric = None if of is None else getattr(of, measure.removeprefix("data_"))
        if metric is not None and metric.floor is not None:
            yield metric.floor.quantile


def _number(value: Any) -> Any:
    """A number that may have been written as a string."""
    return float(value) if value in ("inf", "-inf", "nan") else value


def _numbers(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _number(part) for name, part in value.items()}


def _metric(found: Mapping[str, Any]) -> Metric:
    floor = None if found["floor"] is None else Floor(**_numbers(found["floor"]))
    return Metric(_number(found["value"]), floor, found["p_value"])


def _errors(found: Mapping[str, Any] | None) -> Errors | None:
    return None if found is None else Errors(**_numbers(found))


def _quality(found: Mapping[str, Any] | None) -> Quality | None:
    if found is None:
        return None
    return Quality(_number(found["frechet"]), _metric(found["energy"]))


def _row(found: dict[str, Any]) -> Row:
    law = found["law"]
    made = {
        "error": _errors(found["error"]),
        "law": None if law is None else Law(**{name: _metric(law[name]) for name in law}),
        "quality": _quality(found["quality"]),
    }
    return Row(**{**found, **made})


def _comparison(found: dict[str, Any]) -> Comparison:
    reference = found["reference"]
    reference["error"] = _errors(reference["error"])
    made = {
        "shape": tuple(found["shape"]),
        "reference": Reference(**reference),
        "rows": tuple(_row(row) for row in found["rows"]),
        "real": _quality(found["real"]),
        "notes": tuple(found["notes"]),
    }
    return Comparison(**{**found, **made})
