"""Numerical solvers for score-based sampling: they see a drift, a score and a noise, and no SDE class and no network."""

from solvers.exponential import DDIM, Ancestral
from solvers.grid import GRIDS, check_grid, quadratic, uniform
from solvers.integrate import Options, Snapshot, integrate
from solvers.langevin import Langevin, PredictorCorrector
from solvers.noise import Noise, StepNoise, White, fresh_seed, seeds
from solvers.problem import Monitor, Problem, Schedule, Semilinear, expand, rowwise
from solvers.runge_kutta import DOP853, RK23, RK45, DormandPrince, Euler, Heun, Midpoint, RungeKutta, RungeKutta4, Tsit5
from solvers.solution import Failure, Solution, SolveError, Status
from solvers.solver import Solver, Step
from solvers.stochastic import EulerMaruyama, ReverseDiffusion
from solvers.tableau import Tableau

__all__ = [
    "DDIM",
    "DOP853",
    "GRIDS",
    "RK23",
    "RK45",
    "Ancestral",
    "DormandPrince",
    "Euler",
    "EulerMaruyama",
    "Failure",
    "Heun",
    "Langevin",
    "Midpoint",
    "Monitor",
    "Noise",
    "Options",
    "PredictorCorrector",
    "Problem",
    "ReverseDiffusion",
    "RungeKutta",
    "RungeKutta4",
    "Schedule",
    "Semilinear",
    "Snapshot",
    "Solution",
    "SolveError",
    "Solver",
    "Status",
    "Step",
    "StepNoise",
    "Tableau",
    "Tsit5",
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
