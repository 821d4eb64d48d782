"""Exponential integrators: the linear part solved exactly, the network's prediction held or extrapolated over the step."""

from solvers.exponential.euler import DDIM, Ancestral

__all__ = ["DDIM", "Ancestral"]
