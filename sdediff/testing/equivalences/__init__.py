"""Equivalences that solvers, discrete models and predictions owe one another under any linear
SDE.
"""

# Importing the topics enters their equivalences into the table, in this order.
from sdediff.testing.equivalences import ancestral, discrete, bound, flow, chains, predictions  # noqa: F401, I001
from sdediff.testing.equivalences.case import Case
from sdediff.testing.equivalences.table import (
    EQUIVALENCES,
    Equivalence,
    equivalence,
    evaluate,
    markdown,
)

__all__ = ["EQUIVALENCES", "Case", "Equivalence", "equivalence", "evaluate", "markdown"]
