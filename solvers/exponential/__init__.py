"""Exponential integrators: the linear part solved exactly, the network's prediction integrated as a polynomial."""

from solvers.exponential.euler import DDIM, Ancestral
from solvers.exponential.flow import Straight
from solvers.exponential.inversion import InverseDDIM
from solvers.exponential.multistep import ExponentialMultistep
from solvers.exponential.presets import (
    DEIS,
    ERSDE,
    IPNDM,
    LMS,
    SEEDS,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPPSinglestep,
    SASolver,
    SDEDPMSolverPP,
    UniPC,
)
from solvers.exponential.singlestep import ExponentialPair, ExponentialSinglestep
from solvers.exponential.trapezoid import AdaptiveSDE, EulerTrapezoid

__all__ = [
    "DDIM",
    "DEIS",
    "ERSDE",
    "IPNDM",
    "LMS",
    "SEEDS",
    "AdaptiveSDE",
    "Ancestral",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverPPSinglestep",
    "EulerTrapezoid",
    "ExponentialMultistep",
    "ExponentialPair",
    "ExponentialSinglestep",
    "InverseDDIM",
    "SASolver",
    "SDEDPMSolverPP",
    "Straight",
    "UniPC",
]
