"""Markov chain Monte Carlo: Metropolis and Langevin chains on a log-density, a score, or a score
model at one time.

`run` moves a batch of chains by a kernel, a value: `RandomWalk`, `MALA` (exact),
`MetropolisHastings` (exact, with a proposal of yours), `ULA`,
`Underdamped` (biased by their step) or `SGLD` (minibatches of a `Posterior`). Chain i depends on
its seed and its first state alone.
"""

from sdediff.mcmc.chains import ChainError, Chains, State, effective_sample_size, run, split_rhat
from sdediff.mcmc.kernels import (
    MALA,
    ULA,
    Draws,
    Kernel,
    MetropolisHastings,
    RandomWalk,
    Underdamped,
    accept,
)
from sdediff.mcmc.stochastic_gradient import SGLD, Decay, Posterior
from sdediff.mcmc.target import LogDensity, Point, Score, Target, at

__all__ = [
    "MALA",
    "SGLD",
    "ULA",
    "ChainError",
    "Chains",
    "Decay",
    "Draws",
    "Kernel",
    "LogDensity",
    "MetropolisHastings",
    "Point",
    "Posterior",
    "RandomWalk",
    "Score",
    "State",
    "Target",
    "Underdamped",
    "accept",
    "at",
    "effective_sample_size",
    "run",
    "split_rhat",
]
