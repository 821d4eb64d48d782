"""Data laws whose score is known in closed form under any linear SDE: the ground that solvers are
tested on.
"""

from sdediff.exact.gaussian import Gaussian, LowRank
from sdediff.exact.law import Law
from sdediff.exact.mixture import GaussianMixture

__all__ = ["Gaussian", "GaussianMixture", "Law", "LowRank"]
