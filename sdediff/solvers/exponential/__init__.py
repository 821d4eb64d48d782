"""Exponential integrators: the linear part solved exactly, the network's prediction integrated as a
polynomial.
"""

from sdediff.solvers.exponential.euler import DDIM, Ancestral, InverseDDIM
from sdediff.solvers.exponential.forms import Form, Straight
from sdediff.solvers.exponential.multistep import ExponentialMultistep
from sdediff.solvers.exponential.presets import (
    DEIS,
    ERSDE,
    IPNDM,
    LMS,
    PLMS,
    PNDM,
    RES,
    SEEDS,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPPSinglestep,
    RESSinglestep,
    SASolver,
    SDEDPMSolverPP,
    UniPC,
)
from sdediff.solvers.exponential.singlestep import ExponentialPair, ExponentialSinglestep
from sdediff.solvers.exponential.trapezoid import AdaptiveSDE, EulerTrapezoid

__all__ = [
    "DDIM",
    "DEIS",
    "ERSDE",
    "IPNDM",
    "LMS",
    "PLMS",
    "PNDM",
    "RES",
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
    "Form",
    "InverseDDIM",
    "RESSinglestep",
    "SASolver",
    "SDEDPMSolverPP",
    "Straight",
    "UniPC",
]
