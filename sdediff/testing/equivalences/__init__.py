"""Equivalences that solvers, discrete models and predictions owe one another under any linear
SDE.
"""

# Importing the topics enters their equivalences into the table, in this order.
from sdediff.testing.equivalences import discrete, bound, sampling  # noqa: F401, I001
from sdediff.testing.equivalences.case import (
    EQUIVALENCES,
    Case,
    Equivalence,
    agree,
    equivalence,
    evaluate,
    markdown,
)

__all__ = ["EQUIVALENCES", "Case", "Equivalence", "agree", "equivalence", "evaluate", "markdown"]
