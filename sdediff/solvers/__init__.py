"""Numerical solvers for score-based sampling: they see a drift, a score and a noise, and no SDE
class and no network.
"""

from sdediff.solvers.arithmetic import expand, rowwise, weighted
from sdediff.solvers.brownian import BrownianPath
from sdediff.solvers.churn import Churn, Renoise, Restart
from sdediff.solvers.coefficients import Coordinates, Matrix
from sdediff.solvers.controller import Controller, PIController, Verdict
from sdediff.solvers.dense import Dense
from sdediff.solvers.equations import solve_ode, solve_sde
from sdediff.solvers.events import Event
from sdediff.solvers.exponential import (
    DDIM,
    DEIS,
    ERSDE,
    IPNDM,
    LMS,
    PLMS,
    PNDM,
    RES,
    SEEDS,
    AdaptiveSDE,
    Ancestral,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPPSinglestep,
    EulerTrapezoid,
    ExponentialMultistep,
    ExponentialPair,
    ExponentialSinglestep,
    Form,
    InverseDDIM,
    RESSinglestep,
    SASolver,
    SDEDPMSolverPP,
    Straight,
    UniPC,
)
from sdediff.solvers.external import External, SciPy, TorchDiffEq, TorchSDE
from sdediff.solvers.grid import GRIDS, LogSNR, check_grid, quadratic, uniform
from sdediff.solvers.integrate import integrate
from sdediff.solvers.langevin import Langevin, MetropolisLangevin, PredictorCorrector
from sdediff.solvers.multiplicative import AdaptiveMilstein, Milstein, StratonovichHeun
from sdediff.solvers.noise import Noise, StepNoise, fresh_seed
from sdediff.solvers.options import Options, Snapshot
from sdediff.solvers.problem import At, Monitor, Output, Problem
from sdediff.solvers.recurrence import Recurrence
from sdediff.solvers.runge_kutta import (
    DOP853,
    RK23,
    RK45,
    DormandPrince,
    Euler,
    Heun,
    Midpoint,
    RungeKutta,
    RungeKutta4,
    Tsit5,
)
from sdediff.solvers.solution import Crossings, Failure, Solution, SolveError, Status
from sdediff.solvers.solver import Solver, Step
from sdediff.solvers.stochastic import SRA1, SRA3, EulerMaruyama, ReverseDiffusion, StochasticHeun
from sdediff.solvers.switch import Switch
from sdediff.solvers.tableau import Tableau
from sdediff.solvers.tuned import Tuned
from sdediff.solvers.white import White, seeds

__all__ = [
    "DDIM",
    "DEIS",
    "DOP853",
    "ERSDE",
    "GRIDS",
    "IPNDM",
    "LMS",
    "PLMS",
    "PNDM",
    "RES",
    "RK23",
    "RK45",
    "SEEDS",
    "SRA1",
    "SRA3",
    "AdaptiveMilstein",
    "AdaptiveSDE",
    "Ancestral",
    "At",
    "BrownianPath",
    "Churn",
    "Controller",
    "Coordinates",
    "Crossings",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverPPSinglestep",
    "Dense",
    "DormandPrince",
    "Euler",
    "EulerMaruyama",
    "EulerTrapezoid",
    "Event",
    "ExponentialMultistep",
    "ExponentialPair",
    "ExponentialSinglestep",
    "External",
    "Failure",
    "Form",
    "Heun",
    "InverseDDIM",
    "Langevin",
    "LogSNR",
    "Matrix",
    "MetropolisLangevin",
    "Midpoint",
    "Milstein",
    "Monitor",
    "Noise",
    "Options",
    "Output",
    "PIController",
    "PredictorCorrector",
    "Problem",
    "RESSinglestep",
    "Recurrence",
    "Renoise",
    "Restart",
    "ReverseDiffusion",
    "RungeKutta",
    "RungeKutta4",
    "SASolver",
    "SDEDPMSolverPP",
    "SciPy",
    "Snapshot",
    "Solution",
    "SolveError",
    "Solver",
    "Status",
    "Step",
    "StepNoise",
    "StochasticHeun",
    "Straight",
    "StratonovichHeun",
    "Switch",
    "Tableau",
    "TorchDiffEq",
    "TorchSDE",
    "Tsit5",
    "Tuned",
    "UniPC",
    "Verdict",
    "White",
    "check_grid",
    "expand",
    "fresh_seed",
    "integrate",
    "quadratic",
    "rowwise",
    "seeds",
    "solve_ode",
    "solve_sde",
    "uniform",
    "weighted",
]
