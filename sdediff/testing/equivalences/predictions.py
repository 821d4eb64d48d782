"""One function seen in several ways."""

from __future__ import annotations

from collections.abc import Iterator

from sdediff.solvers import DDIM, DPMSolverPP, EulerMaruyama
from sdediff.testing.equivalences.case import Case, able
from sdediff.testing.equivalences.table import agree, equivalence
from sdediff.testing.identity import Comparison

__all__: list[str] = []


@equivalence(
    "predictions",
    statement="networks that predict noise, score, data, v, flow and edm of one function give the "
    "same "
    "samples",
)
def predictions(case: Case) -> Iterator[Comparison]:
    """Against the prediction of the case, by a step in data form, one in noise form and the reverse
    SDE.
    """
    ways = able(case.sde, case.times)
    for solver in (DDIM(), DPMSolverPP(), EulerMaruyama()):
        expected = case.solve(solver)
        for way in ways:
            if way != case.predicts:
                out = case.solve(solver, model=case.model(way))
                yield agree(
                    f"the sample by {way}, against {case.predicts},", out, expected, case.times
                )
