"""Log-densities along the probability flow, and bits per dimension of data with bins."""

from sdediff.likelihood.density import LogProb, log_prob

__all__ = ["LogProb", "log_prob"]
