"""Error against cost: which solver, grid and tolerance to take for one's own model, by
measurement.

The floor of a distance is what two samples of the same law have by chance. A value below the floor
says nothing.
"""

from sdediff.comparison.advice import Recommendation
from sdediff.comparison.compare import CompareOptions, compare
from sdediff.comparison.record import Comparison, Errors, Law, Quality, Reference, Row

__all__ = [
    "CompareOptions",
    "Comparison",
    "Errors",
    "Law",
    "Quality",
    "Recommendation",
    "Reference",
    "Row",
    "compare",
]
