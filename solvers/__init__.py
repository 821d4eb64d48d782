"""Numerical solvers for score-based sampling: they see a drift, a score and a noise, and no SDE class and no network."""

from solvers.arithmetic import expand, rowwise
from solvers.brownian import BrownianPath
from solvers.churn import Churn, Renoise, Restart
from solvers.exponential import (
    DDIM,
    DEIS,
    ERSDE,
    IPNDM,
    LMS,
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
    InverseDDIM,
    SASolver,
    SDEDPMSolverPP,
    Straight,
    UniPC,
)
from solvers.external import External, SciPy, TorchDiffEq, TorchSDE
from solvers.grid import GRIDS, LogSNR, check_grid, quadratic, uniform
from solvers.integrate import Options, Snapshot, integrate
from solvers.langevin import Langevin, MetropolisLangevin, PredictorCorrector
from solvers.monitor import Monitor
from solvers.noise import Noise, StepNoise, White, fresh_seed, seeds
from solvers.problem import Problem, Schedule
from solvers.runge_kutta import DOP853, RK23, RK45, DormandPrince, Euler, Heun, Midpoint, RungeKutta, RungeKutta4, Tsit5
from solvers.solution import Failure, Solution, SolveError, Status
from solvers.solver import Solver, Step
from solvers.stochastic import SRA1, SRA3, EulerMaruyama, ReverseDiffusion, StochasticHeun
from solvers.tableau import Tableau

__all__ = [
    "DDIM",
    "DEIS",
    "DOP853",
    "ERSDE",
    "GRIDS",
    "IPNDM",
    "LMS",
    "RK23",
    "RK45",
    "SEEDS",
    "SRA1",
    "SRA3",
    "AdaptiveSDE",
    "Ancestral",
    "BrownianPath",
    "Churn",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverPPSinglestep",
    "DormandPrince",
    "Euler",
    "EulerMaruyama",
    "EulerTrapezoid",
    "ExponentialMultistep",
    "ExponentialPair",
    "ExponentialSinglestep",
    "External",
    "Failure",
    "Heun",
    "InverseDDIM",
    "Langevin",
    "LogSNR",
    "MetropolisLangevin",
    "Midpoint",
    "Monitor",
    "Noise",
    "Options",
    "PredictorCorrector",
    "Problem",
    "Renoise",
    "Restart",
    "ReverseDiffusion",
    "RungeKutta",
    "RungeKutta4",
    "SASolver",
    "SDEDPMSolverPP",
    "Schedule",
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
    "Tableau",
    "TorchDiffEq",
    "TorchSDE",
    "Tsit5",
    "UniPC",
    "White",
    "check_grid",
    "expand",
    "fresh_seed",
    "integrate",
    "quadratic",
    "rowwise",
    "seeds",
    "uniform",
]
