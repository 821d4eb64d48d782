"""Log-densities along the probability flow, and bits per dimension of data with bins."""

from sdediff.likelihood.density import LogProb, log_prob
from sdediff.likelihood.dequantization import BitsPerDim, bits_per_dim

__all__ = ["BitsPerDim", "LogProb", "bits_per_dim", "log_prob"]
