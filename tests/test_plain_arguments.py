"""Numbers as arguments: NumPy's, and tensors of one number, are taken wherever Python's are, and
kept as Python's.
"""

import dataclasses
import inspect
import re
from typing import is_typeddict

import numpy as np
import pytest
import torch

import sdediff as sd
from sdediff import networks, plots, solvers

NUMBER = re.compile(r"\b(int|float)\b")
RING = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.5)
MODEL = RING.model(sd.VP())
X, MANY = RING.sample(6, seed=0), RING.sample(10, seed=1)
BINS = sd.objectives.Bins(4)
CHAIN = sd.DDPM.from_schedule("linear", 4)
IMAGE = sd.exact.Gaussian(torch.zeros(1, 2, 2), torch.eye(4)).model(sd.VP())

# -- dataclasses -----------------------------------------------------------------------------------

NEEDED = {
    "ChainLoss": (sd.DDPM.from_schedule("linear", 10),),
    "Churn": (sd.Heun(),),
    "ConditionDropout": (sd.DenoisingScoreMatching(), {"label": 0}),
    "DDPM": ((0.1, 0.2), (0.5, 1.0)),
    "DDPMLoss": (sd.DDPM.from_schedule("linear", 10),),
    "InterpolatedVE": ((0.1, 0.5), (0.25, 1.0)),
    "InterpolatedVP": ((0.1, 0.5), (0.25, 1.0)),
    "Scaled": (sd.VP(), 2.0),
    "NCSN": ((2.0, 0.5), (0.5, 1.0), 0.125),
    "Restart": (sd.Heun(), (0.25, 0.5)),
    "MALA": (0.5,),
    "RandomWalk": (0.5,),
    "SGLD": (0.5,),
    "ULA": (0.5,),
    "Underdamped": (0.5, 2.0),
    "Decay": (0.5,),
    "Posterior": (sum, sum, torch.zeros(4, 2), 2, 3),
    "Options": (),
    "Matrix": (torch.eye(2),),
    "ExponentialPair": (3,),
    "Switch": ((sd.Heun(), sd.DDIM()), (2,)),
    "Prior": (1.5,),
    "TorchSDE": ("srk", True, 0.125, 0.25, 0.5),
}
RESULTS = {
    "BitsPerDim",
    "LogProb",
    "Solution",
    "Failure",
    "Floor",
    "InceptionScore",
    "KolmogorovSmirnov",
    "Metric",
}
RESULTS |= {"VariationalBound", "Chains", "State", "Tableau", "Problem", "Rows", "Draws"}
RESULTS |= {"Measured", "Moments", "Tuned"}


def public(*modules):
    found = {name: getattr(module, name) for module in modules for name in module.__all__}
    return {
        name: each
        for name, each in sorted(found.items())
        if callable(each) and not is_typeddict(each)
    }


def numeric(record):
    """Its fields that hold numbers now."""
    values = {
        field.name: getattr(record, field.name)
        for field in dataclasses.fields(record)
        if field.init
    }
    return {name: value for name, value in values.items() if type(value) in (int, float)}


PACKAGES = ("solvers", "sde", "objectives", "discrete", "likelihood", "mcmc", "metrics")
PUBLIC = public(sd, *(getattr(sd, name) for name in PACKAGES))
RECORDS = {
    name: each
    for name, each in PUBLIC.items()
    if dataclasses.is_dataclass(each)
    and name not in RESULTS
    and any(NUMBER.search(str(field.type)) for field in dataclasses.fields(each))
}


def others(value):
    """The same number of other libraries: equal to it, so that results must be too."""
    if isinstance(value, int):
        return [np.int64(value), np.int16(value), np.array(value), torch.tensor(value)]
    single = [np.float32(value)] if float(np.float32(value)) == value else []
    return [np.float64(value), np.array(value), torch.tensor(value, dtype=torch.float64), *single]


@pytest.mark.parametrize("name", RECORDS)
def test_record_keeps_plain_numbers(name):
    record = RECORDS[name](*NEEDED.get(name, ()))
    for field, value in numeric(record).items():
        for other in others(value):
            kept = getattr(dataclasses.replace(record, **{field: other}), field)
            assert type(kept) is type(value), (field, other)
            assert kept == value, (field, other)
        for wrong in ([value], "a", np.zeros(2), torch.zeros(2), 1j, True):
            with pytest.raises((TypeError, ValueError), match=field):
                dataclasses.replace(record, **{field: wrong})


# -- functions -------------------------------------------------------------------------------------


def net(x, t):
    return x


def fall(x, t):
    return -x


def net_of_classes(x):
    return x


CALLS = {
    "sample": (
        sd.sample,
        (MODEL,),
        {"shape": (2, 2), "steps": 3, "seed": 1, "batch_size": 1, "max_nfe": 90},
    ),
    "sample, times": (
        lambda **given: sd.sample(MODEL, (6, 2), x_init=X, solver=sd.EulerMaruyama(), **given),
        (),
        {
            "t_start": 0.5,
            "t_end": 0.25,
            "stochasticity": 0.5,
            "steps": 3,
            "seed": [1, 2, 3, 4, 5, 6],
        },
    ),
    "slerp": (sd.slerp, (X, X), {"weight": 0.5}),
    "simulate": (sd.simulate, (sd.VP(), X), {"steps": 3, "t_start": 0.25, "t_end": 0.5, "seed": 1}),
    "encode": (
        sd.encode,
        (MODEL, X.float()),
        {"steps": 3, "batch_size": 2, "max_nfe": 9, "t_start": 0.25, "t_end": 0.5},
    ),
    "decode": (
        sd.decode,
        (MODEL, X.float()),
        {"steps": 3, "batch_size": 2, "max_nfe": 9, "t_start": 0.5, "t_end": 0.25},
    ),
    "log_prob": (
        lambda **given: (
            sd.log_prob(MODEL, X, divergence="hutchinson", solver=sd.Heun(), **given).value
        ),
        (),
        {"steps": 3, "probes": 2, "seed": 1, "batch_size": 2, "max_nfe": 90, "t_start": 0.25},
    ),
    "interval": (
        sd.log_prob(
            MODEL, X, divergence="hutchinson", probes=2, solver=sd.Heun(), steps=2, seed=0
        ).interval,
        (),
        {"level": 0.5},
    ),
    "bits_per_dim": (
        lambda **given: (
            sd.bits_per_dim(
                IMAGE, torch.ones(2, 1, 2, 2), bins=BINS, solver=sd.Heun(), **given
            ).value
        ),
        (),
        {"draws": 2, "steps": 3, "seed": 1, "batch_size": 1, "max_nfe": 90},
    ),
    "variational_bound": (
        lambda **given: (
            sd.discrete.variational_bound(
                sd.DDPM.from_schedule("linear", 4),
                sd.ScoreModel(net, sd.DDPM.from_schedule("linear", 4).to_sde()),
                X,
                bins=None,
                **given,
            ).total
        ),
        (),
        {"seed": 1, "batch_size": 2},
    ),
    "diagnose": (lambda **given: repr(sd.diagnose(MODEL, X.float(), **given)), (), {"seed": 1}),
    "reflow": (
        lambda **given: sd.objectives.reflow(MODEL, solver=sd.Heun(), **given),
        (),
        {"shape": (2, 2), "steps": 2, "seed": 1, "batch_size": 1},
    ),
    "straightness": (
        lambda **given: sd.objectives.straightness(MODEL, **given),
        (),
        {"shape": (2, 2), "steps": 3, "seed": 1},
    ),
    "solve_ode": (solvers.solve_ode, (fall, X, [0.0, 0.5]), {"max_nfe": 90}),
    "solve_sde": (
        lambda **given: solvers.solve_sde(fall, x=X, times=[0.0, 0.5], **given),
        (),
        {"diffusion": 0.5, "seed": 1, "max_nfe": 90},
    ),
    "seeds": (sd.seeds, (), {"seed": 1, "samples": 3}),
    "White": (
        lambda **given: sd.White(event=(2,), **given).at(0).normal("path"),
        (),
        {"seeds": [1, 2]},
    ),
    "BrownianPath": (
        lambda **given: (
            sd.solvers.BrownianPath(event=(2,), **given)
            .at(0)
            .increment(*torch.tensor([1.0, 0.5]).double())
        ),
        (),
        {"seeds": [1, 2], "start": 1.0, "end": 0.5, "intervals": 4, "depth": 5},
    ),
    "DDPM.from_schedule": (lambda **given: sd.DDPM.from_schedule("linear", **given), (), {"N": 5}),
    "DDPM.from_sde": (sd.DDPM.from_sde, (sd.VP(),), {"N": 5}),
    "DDPM.respaced": (sd.DDPM.from_schedule("linear", 5).respaced, (), {"steps": 3}),
    "NCSN.geometric": (
        sd.NCSN.geometric,
        (),
        {"sigma_max": 2.0, "sigma_min": 0.5, "N": 3, "step_size": 0.125, "n_steps": 2},
    ),
    "NCSN.from_sde": (sd.NCSN.from_sde, (sd.VE(),), {"N": 3, "step_size": 2.0**-15, "n_steps": 2}),
    "NCSN.from_data": (
        lambda **given: sd.NCSN.from_data(X.repeat(1, 4), **given),
        (),
        {"sigma_min": 0.5, "n_steps": 2},
    ),
    "LossAware": (
        lambda **given: sd.discrete.LossAware(**given).state_dict(),
        (),
        {"N": 5, "history": 2, "uniform": 0.5},
    ),
    "MonotoneSchedule": (
        lambda **given: sd.sde.MonotoneSchedule(**given)(torch.tensor([0.25]).double()),
        (),
        {"first": -4.0, "last": 4.0, "width": 3},
    ),
    "LinearSDE": (
        lambda **given: repr(
            sd.LinearSDE(f=lambda t: -1.0 + 0 * t, g=lambda t: 2.0 + 0 * t, **given)
        ),
        (),
        {"T": 2.0, "sigma_0": 0.5, "t_min": 0.25, "t_max": 1.5},
    ),
    "ScoreModel": (
        lambda **given: sd.ScoreModel(net, sd.VP(), **given).sigma_data,
        (),
        {"sigma_data": 0.25},
    ),
    "law": (RING.sample, (), {"count": 3, "seed": 1}),
    "chains": (
        lambda **given: (
            sd.mcmc.run(sd.mcmc.ULA(0.125), lambda x: -x.square().sum(1), X, **given).samples
        ),
        (),
        {"steps": 4, "burn_in": 2, "thin": 2, "seed": 1},
    ),
    "at": (
        lambda **given: (
            sd.mcmc.run(sd.mcmc.ULA(0.125), sd.mcmc.at(MODEL, **given), X, steps=2, seed=0).samples
        ),
        (),
        {"t": 0.5},
    ),
    "classifier_two_sample_test": (
        sd.metrics.classifier_two_sample_test,
        (X.repeat(2, 1), X.repeat(2, 1) + 1),
        {"hidden": 2, "steps": 2, "seed": 1},
    ),
    "energy_distance": (sd.metrics.energy_distance, (X, X + 1), {"floor": 3, "seed": 1}),
    "frechet_distance": (
        sd.metrics.frechet_distance,
        (X, X + 1),
        {"floor": 3, "seed": 1, "batch_size": 4},
    ),
    "inception_score": (
        sd.metrics.inception_score,
        (X, net_of_classes),
        {"outputs": "logits", "splits": 2, "batch_size": 4},
    ),
    "kolmogorov_smirnov": (sd.metrics.kolmogorov_smirnov, (X, X + 1), {"floor": 3, "seed": 1}),
    "mmd": (sd.metrics.mmd, (X, X + 1), {"bandwidth": 0.5, "floor": 3, "seed": 1}),
    "sliced_wasserstein": (
        sd.metrics.sliced_wasserstein,
        (X, X + 1),
        {"projections": 4, "floor": 3, "seed": 1},
    ),
    "MLP": (
        lambda **given: networks.MLP(**given).config,
        (),
        {"dimension": 2, "width": 4, "depth": 1, "frequencies": 2},
    ),
    "image_grid": (
        lambda **given: plots.image_grid(torch.zeros(4, 1, 2, 2), **given).size,
        (),
        {"columns": 2, "scale": 2, "pad": 1},
    ),
    "check_equivalence": (
        lambda **given: str(
            sd.testing.check_equivalence(sd.Heun(), sd.Heun(), sde=sd.VP(), verbose=False, **given)
        ),
        (),
        {"steps": 2, "seed": 1, "rows": 2, "bound": 0.5},
    ),
}


def told(result):
    """What a call came to, comparable."""
    if isinstance(result, dict):
        return {name: told(value) for name, value in result.items()}
    if isinstance(result, tuple) and any(isinstance(each, torch.Tensor) for each in result):
        return [told(each) for each in result]
    if isinstance(result, solvers.Solution):
        return told(result.x)
    return result.tolist() if isinstance(result, torch.Tensor) else repr(result)


def variants(value):
    """Others for a number, or for one of the numbers of a sequence."""
    if isinstance(value, tuple | list):
        return [type(value)([other, *value[1:]]) for other in others(value[0])]
    return others(value) if isinstance(value, int | float) else []


@pytest.mark.thin(3)
@pytest.mark.uses_global_rng  # by building networks
@pytest.mark.parametrize("name", CALLS)
def test_call_takes_numbers_of_other_libraries(name):
    call, fixed, given = CALLS[name]

    def outcome(**changed):
        torch.manual_seed(0)
        return told(call(*fixed, **given | changed))

    plain = outcome()
    for argument, value in given.items():
        for other in variants(value):
            assert outcome(**{argument: other}) == plain, (argument, other)
        wrongs = ["a", 1j, *([2.5, True] if isinstance(value, int) else [])]
        for wrong in wrongs if isinstance(value, int | float) else ():
            with pytest.raises((TypeError, ValueError), match=argument):
                outcome(**{argument: wrong})


NOT_HERE = {  # what takes tensors of times too, what needs more than a call, and results
    "fit",
    "load",
    "SDE",
    "Monitor",
    "Problem",
    "External",
    "Noise",
    "StepNoise",
    "Snapshot",
    "Kernel",
    "Target",
    "quadratic",
    "uniform",
    "Latent",
    "LogSNR",
    "compare",
    "evaluate",
    "kernel_distance",
    "precision_recall",
    "tune",
}


def test_every_public_callable_with_numbers_is_walked():
    def takes_numbers(each):
        return any(
            NUMBER.search(str(p.annotation)) for p in inspect.signature(each).parameters.values()
        )

    walked = (
        {name.split(",")[0].split(".")[0] for name in CALLS}
        | {"run", "at"}
        | set(RECORDS)
        | RESULTS
        | NOT_HERE
    )
    assert not [name for name, each in PUBLIC.items() if takes_numbers(each) and name not in walked]
