"""Forward SDEs: the protocol and the families that ship."""

from sdediff.sde.base import SDE, LinearSDE, Prior
from sdediff.sde.families import VE, VP, SubVP

__all__ = ["SDE", "VE", "VP", "LinearSDE", "Prior", "SubVP"]
