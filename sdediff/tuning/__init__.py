"""Solvers made for one model: their times and numbers moved until the errors are small, and the
result a file. What the default solver has to know of a model is measured here too.
"""

from sdediff.details import measure
from sdediff.tuning.search import tune
from sdediff.tuning.transfer import Transfer, moved, transfer

__all__ = ["Transfer", "measure", "moved", "transfer", "tune"]
