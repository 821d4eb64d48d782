"""Solvers made for one model: their times and numbers moved until the errors are small, and the
result a file.
"""

from sdediff.tuning.search import tune
from sdediff.tuning.transfer import Transfer, moved, transfer

__all__ = ["Transfer", "moved", "transfer", "tune"]
