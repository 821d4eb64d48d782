"""Solvers with fixed steps, of every kind."""

from dataclasses import replace

import sdediff as sd

MULTISTEP = (
    sd.solvers.DPMSolverPP(2),
    sd.solvers.DPMSolverPP(3),
    sd.solvers.UniPC(2),
    sd.solvers.UniPC(4),
    sd.solvers.UniPC(3, lower_final=True),
    sd.solvers.DEIS(3),
    sd.solvers.LMS(4),
    sd.solvers.IPNDM(4),
    sd.solvers.PNDM(),
    sd.solvers.PLMS(),
    sd.solvers.RES(3),
    sd.solvers.SDEDPMSolverPP(3),
    sd.solvers.SASolver(3),
    sd.solvers.ERSDE(3),
    sd.ExponentialMultistep(4, form=sd.solvers.Straight(0.1), variable="angle"),
    sd.ExponentialMultistep(3, form=0.5, corrector=None),
)
PAIRS = [
    sd.PredictorCorrector(predictor, corrector, sequence)
    for predictor, corrector in [
        (sd.ReverseDiffusion(), sd.Langevin(n_steps=2)),
        (sd.ReverseDiffusion("song"), sd.Langevin(rule="song")),
        (sd.solvers.EulerTrapezoid(), sd.solvers.MetropolisLangevin(n_steps=2)),
    ]
    for sequence in ("predictor-first", "corrector-first")
]
FIXED = [
    sd.solvers.Euler(),
    sd.solvers.Euler(variable="sigma"),
    sd.solvers.Midpoint(),
    sd.Heun(),
    sd.Heun(variable="sigma"),
    sd.solvers.RungeKutta4(variable="angle"),
    sd.solvers.DormandPrince(variable="log_snr"),
    sd.DDIM(),
    sd.DDIM(eta=0.7),
    sd.solvers.Ancestral(),
    sd.EulerMaruyama(),
    sd.solvers.StochasticHeun(),
    sd.solvers.SRA1(),
    sd.solvers.SRA3(),
    sd.ReverseDiffusion(),
    sd.solvers.EulerTrapezoid(),
    sd.Langevin(),
    sd.solvers.MetropolisLangevin(),
    sd.solvers.DPMSolver(3),
    sd.solvers.DPMSolverPPSinglestep(2),
    sd.solvers.SEEDS(3),
    sd.solvers.RESSinglestep(3),
    sd.solvers.ExponentialSinglestep(4, form=0.5),
    *MULTISTEP,
    *(replace(solver, startup="published") for solver in MULTISTEP),
    *PAIRS,
    sd.PredictorCorrector(None, sd.Langevin()),
    sd.solvers.Switch((sd.EulerMaruyama(), sd.Heun(), sd.solvers.UniPC(2)), log_snr=(-3.0, 0.0)),
    sd.solvers.Churn(sd.Heun(variable="sigma"), churn=4.0),
    sd.solvers.Renoise(sd.solvers.RungeKutta4()),
    sd.solvers.Renoise(sd.solvers.DPMSolver(2)),
    sd.solvers.Renoise(sd.solvers.DPMSolver(2), eta=0.5),
    sd.solvers.Restart(sd.Heun(), (0.3, 0.7), rounds=2),
    sd.solvers.Recurrence(sd.DDIM(), 2),
]
