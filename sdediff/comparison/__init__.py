"""Error against cost: which solver, grid and tolerance to take for one's own model, by
measurement.
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
