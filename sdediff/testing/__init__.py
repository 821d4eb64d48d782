"""Checks for what users bring: `check_sde` tells whether an SDE is consistent. They need no test library."""

from sdediff.testing.check import check_sde
from sdediff.testing.report import Finding, Report, SDEError

__all__ = ["Finding", "Report", "SDEError", "check_sde"]
