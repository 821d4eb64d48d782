"""Golden cases of what models may have, of latents, densities, simulation and Markov chains."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from golden_cases import Case, Found, made, some_prediction, told, written
from golden_models import LENGTHS, LINEAR, PREDICTS, SDES, closed, fixed
from torch import Tensor

import sdediff as sd

F64 = torch.float64


def coefficients(sde: str) -> Found:
    """What an SDE with a kernel is, at a few times."""
    process = LINEAR[sde]
    low, high = process.t_min, process.t_max
    t = low + (high - low) * torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=F64)
    s = low + 0.5 * (t - low)
    names = ("f", "g", "alpha", "sigma", "log_snr")
    found = {name: getattr(process, name)(t[1:-1]) for name in names}
    found["ratio"], found["std"] = process.kernel(t, s)
    found["back"] = process.time_of(process.log_snr(t[1:-1]))
    x, noise = fixed(3, 2), fixed(3, 2, phase=2.0)
    found["perturbed"] = process.perturb(x, t[1:4], noise)
    found["mean"], variance = process.posterior(x, noise, t[1:4], s[1:4])
    found["variance"] = torch.as_tensor(variance)
    found["prior"] = process.prior.log_prob(x)
    facts = (
        process.t_min,
        process.t_max,
        process.data_std,
        process.sigma_data,
        float(process.prior.std),
    )
    found["facts"] = torch.tensor(facts, dtype=F64)
    return {name: part.detach() for name, part in found.items()}


def predictions(sde: str, predicts: str, *, mixture: bool = False) -> Found:
    """Every prediction of a model, from what its network predicts."""
    process, length = LINEAR[sde], LENGTHS.get(sde, 1.0)
    if mixture:
        means = [[-length, 0.0], [length, 0.5 * length]]
        law = sd.exact.GaussianMixture(means, 0.3 * length, [0.3, 0.7])
        model = law.model(process)
    else:
        model = closed(sde, predicts)
    t = process.t_min + (process.t_max - process.t_min) * torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    x = fixed(3, 2, size=length)
    with torch.no_grad():
        names = ("data", "noise", "score", "v", "flow")
        return {name: getattr(model, name)(x, t) for name in names}


def forward(sde: str, solver: str, **options: Any) -> Found:
    """The SDE itself, simulated."""
    x = fixed(3, 2, size=LENGTHS.get(sde, 1.0))
    return told(
        sd.simulate(SDES[sde], x, solver=made(solver), seed=5, trajectory=True, **options),
        "x",
        "trajectory",
    )


def carried(sde: str, predicts: str, solver: str | None, way: str, **options: Any) -> Found:
    """Data encoded, or latents decoded."""
    model = closed(sde, predicts)
    if way == "encode":
        return told(
            sd.encode(
                model,
                fixed(3, 2, size=0.5 * LENGTHS.get(sde, 1.0)),
                solver=made(solver),
                **options,
            ),
            "x",
            "times",
        )
    z = float(model.sde.prior.std) * fixed(3, 2)
    return told(sd.decode(model, z, solver=made(solver), **options), "x", "times")


def constraint_of(name: str) -> Any:
    """A constraint by its name in a key."""

    def bounded(x_0: Tensor) -> Tensor:
        return x_0.clamp(-0.4, 0.5)

    def by_row(x_0: Tensor, rows: Tensor) -> Tensor:
        limit = 0.2 + 0.1 * rows.to(x_0)[:, None]
        return torch.minimum(torch.maximum(x_0, -limit), limit)

    known: dict[str, Any] = {
        "Clip(-0.3,0.3)": sd.Clip(-0.3, 0.3),
        "DynamicThreshold(0.9)": sd.constraints.DynamicThreshold(0.9),
        "function": bounded,
        "function of rows": by_row,
    }
    return known[name]


def constrained(sde: str, predicts: str, solver: str, constraint: str, **options: Any) -> Found:
    """Samples whose data predictions are constrained."""
    model = closed(sde, predicts).constrained(constraint_of(constraint))
    return told(sd.sample(model, (3, 2), solver=made(solver), seed=3, dtype=F64, **options), "x")


NORMALIZERS = {
    "numbers": lambda: sd.Normalizer(3.0, 2.0),
    "channels": lambda: sd.Normalizer([3.0, -1.0], [2.0, 0.5]),
    "micro": lambda: sd.Normalizer(0.0, 1e-6),
}


def normalized(
    sde: str,
    predicts: str,
    solver: str | None,
    normalizer: str,
    way: str,
    **options: Any,
) -> Found:
    """The user's units."""
    units = NORMALIZERS[normalizer]()
    model = closed(sde, predicts, normalizer=units)
    y = units.denormalize(fixed(3, 2, size=0.5, phase=0.5))
    if way == "sample":
        return told(
            sd.sample(model, (3, 2), solver=made(solver), seed=3, dtype=F64, **options),
            "x",
        )
    if way == "clipped":
        clipped = model.constrained(sd.Clip(2.5, 3.5))
        return told(
            sd.sample(clipped, (3, 2), solver=made(solver), seed=3, dtype=F64, **options),
            "x",
        )
    if way == "encode":
        return told(sd.encode(model, y, solver=made(solver), **options), "x")
    return told(sd.log_prob(model, y, solver=made(solver), **options), "value", "z")


def clocked(sde: str, solver: str, clock: str, **options: Any) -> Found:
    """Networks that are handed another time."""
    process = LINEAR[sde]
    of: dict[str, tuple[Any, Any]] = {
        "log_snr": ("log_snr", lambda time: 0.1 * time),
        "sigma": ("sigma", lambda time: time),
        "Timesteps(1000)": (sd.network_time.Timesteps(1000), lambda time: time.to(F64) / 1000),
        "function": (lambda t: 1 - t / process.T, lambda time: time),
    }
    time, read = of[clock]

    def net(x: Tensor, t: Tensor) -> Tensor:
        return 0.7 * torch.tanh(0.8 * x + 0.3 * torch.cos(read(t).to(x))[:, None])

    model = sd.ScoreModel(net, process, "data", time=time)
    return told(sd.sample(model, (3, 2), solver=made(solver), seed=3, dtype=F64, **options), "x")


def of_mixture(sde: str, solver: str | None, way: str, **options: Any) -> Found:
    """The exact model of a mixture."""
    length = LENGTHS.get(sde, 1.0)
    means = [[-length, 0.0], [length, 0.5 * length]]
    law = sd.exact.GaussianMixture(means, 0.3 * length, [0.3, 0.7])
    model = law.model(LINEAR[sde])
    if way == "sample":
        return told(
            sd.sample(model, (3, 2), solver=made(solver), seed=3, dtype=F64, **options),
            "x",
            "times",
        )
    out = sd.log_prob(model, fixed(3, 2, size=0.7 * length), solver=made(solver), **options)
    return {**told(out, "value", "z"), "prior_gap": out.prior_gap}  # type: ignore[dict-item]


def bits(sde: str, predicts: str, **options: Any) -> Found:
    """Bits per dimension of data with bins."""
    x = torch.round(fixed(3, 2, size=0.4).clamp(-1, 1) * 7.5 + 7.5) / 7.5 - 1
    out = sd.bits_per_dim(
        closed(sde, predicts), x, bins=sd.objectives.Bins(16, -1, 1), seed=3, **options
    )
    return told(out, "value", "log_weights", "stderr")


def chained(kernel: str, way: str) -> Found:
    """Markov chains on a log-density, or on a model at one time."""
    target: Any = sd.mcmc.at(closed("VP", "noise"), 0.4)
    if way == "density":
        target = lambda x: (x**2 - x**4 / 2).sum(dim=1)  # noqa: E731
    out = sd.mcmc.run(eval(kernel, dict(vars(sd.mcmc))), target, fixed(3, 2), steps=6, seed=4)
    return {
        "samples": out.samples,
        **({} if out.acceptance is None else {"acceptance": out.acceptance}),
    }


def model_calls() -> Iterator[Case]:
    """What a model may have: constraints, normalizers, clocks; and the exact one."""
    fixed_or_not: tuple[tuple[str, dict[str, Any]], ...] = (
        ("DDIM()", {"steps": 5}),
        ("EulerMaruyama()", {"steps": 5}),
        ("UniPC(3)", {"steps": 5, "batch_size": 2}),
        ("RK45(rtol=1e-2,atol=1e-2)", {}),
        ("AdaptiveSDE(rtol=0.2,atol=0.2)", {}),
    )
    for sde in ("VP", "VE", "SubVP", "VP.scaled(3)"):
        for solver, options in fixed_or_not:
            for constraint in (
                "Clip(-0.3,0.3)",
                "DynamicThreshold(0.9)",
                "function",
                "function of rows",
            ):
                predicts = some_prediction(sde, f"{solver}{constraint}")
                key = f"constrained/{sde}/{predicts}/{constraint}/{solver}{written(options)}"
                yield Case(key, partial(constrained, sde, predicts, solver, constraint, **options))
            for normalizer in NORMALIZERS:
                for way in ("sample", "clipped", "encode", "log_prob"):
                    if way in ("encode", "log_prob") and not solver.startswith("RK45"):
                        continue
                    predicts = some_prediction(sde, f"{solver}{normalizer}{way}")
                    call = f"{way}/{solver}{written(options)}"
                    key = f"normalizer/{sde}/{predicts}/{normalizer}/{call}"
                    yield Case(
                        key,
                        partial(normalized, sde, predicts, solver, normalizer, way, **options),
                    )
            if sde != "VP.scaled(3)":
                for clock in ("log_snr", "sigma", "Timesteps(1000)", "function"):
                    key = f"clock/{sde}/data/{clock}/{solver}{written(options)}"
                    yield Case(key, partial(clocked, sde, solver, clock, **options))
    for sde in LINEAR:
        for mixture_solver, mixture_options in (
            (None, {"steps": 10}),
            ("RK45(rtol=1e-3,atol=1e-3)", {}),
            ("SRA1()", {"steps": 6}),
        ):
            key = f"mixture/{sde}/{mixture_solver or 'default'}{written(mixture_options)}"
            yield Case(key, partial(of_mixture, sde, mixture_solver, "sample", **mixture_options))
        run = partial(of_mixture, sde, "RK45(rtol=1e-3,atol=1e-3)", "log_prob")
        yield Case(f"mixture/{sde}/log_prob/RK45(rtol=1e-3,atol=1e-3)", run)


def flow_calls() -> Iterator[Case]:
    """Encoding and decoding, bits per dimension, simulation."""
    ways: tuple[tuple[str | None, dict[str, Any]], ...] = (
        ("DDIM()", {"steps": 6}),
        ("InverseDDIM(tol=1e-10,iterations=200)", {"steps": 12}),
        ("UniPC(3)", {"steps": 6}),
        ("RungeKutta4()", {"steps": 6}),
        ("LMS(3)", {"steps": 12}),
        ("EulerTrapezoid()", {"steps": 6}),
        (None, {"steps": 8}),
        ("RK45(rtol=1e-3,atol=1e-3)", {}),
        ("DOP853(rtol=1e-4,atol=1e-4)", {}),
        ("ExponentialPair(3,rtol=1e-2,atol=1e-2)", {}),
    )
    for sde in SDES:
        for solver, options in ways:
            for way in ("encode",) if solver and "Inverse" in solver else ("encode", "decode"):
                predicts = some_prediction(sde, f"{solver}{way}")
                key = f"{way}/{sde}/{predicts}/{solver or 'default'}{written(options)}"
                yield Case(key, partial(carried, sde, predicts, solver, way, **options))
        for solver_text in ("EulerMaruyama()", "StochasticHeun()", "SRA1()", "SRA3()"):
            yield Case(
                f"simulate/{sde}/{solver_text}/steps=6",
                partial(forward, sde, solver_text, steps=6),
            )
    for sde in ("VP", "VE", "Cubic", "VP.scaled(3)"):
        for number, options in enumerate(
            (
                {"draws": 2},
                {"dequantization": "truncated-normal"},
                {"divergence": "hutchinson", "probes": 2},
            )
        ):
            predicts = some_prediction(sde, f"bits {number}")
            yield Case(
                f"bits_per_dim/{sde}/{predicts}{written(options)}",
                partial(bits, sde, predicts, steps=6, **options),
            )


FLOW_OPTIONS: dict[str, dict[str, Any]] = {
    "condition": {"condition": {"shift": torch.tensor([-0.2, 0.1, 0.4], dtype=F64)}},
    "mask": {"mask": torch.tensor([[True, True], [True, False], [False, True]])},
    "batch_size=2": {"batch_size": 2},
    "t_start": {"t_start": 0.3},
    "max_nfe": {"max_nfe": 15, "on_fail": "return"},
    "bad": {
        "condition": {"bad": torch.tensor([0.0, 1.0, 0.0], dtype=F64)},
        "on_fail": "return",
    },
    "float32": {},
}


def flowed(sde: str, predicts: str, solver: str, name: str, way: str, steps: int | None) -> Found:
    """Encoding, decoding and log-densities with the arguments of that name."""
    model = closed(sde, predicts, normalizer=NORMALIZERS["channels"]() if name == "mask" else None)
    options = FLOW_OPTIONS[name] | ({} if steps is None else {"steps": steps})
    x = fixed(3, 2, size=0.7 * LENGTHS.get(sde, 1.0))
    if name == "float32":
        model, x = model.float(), x.float()
    if way == "decode" and name == "t_start":
        options = {key: value for key, value in options.items() if key != "t_start"} | {
            "t_end": 0.3,
        }
    out = getattr(sd, way)(model, x, solver=made(solver), **options)
    if name == "max_nfe" and steps is None:  # where it stopped follows from the steps' sizes
        return told(out)
    return told(out, "value", "z") if way == "log_prob" else told(out, "x", "times")


def pictured(sde: str, predicts: str, **options: Any) -> Found:
    """Log-densities of events of three dimensions."""
    x = fixed(3, 1, 2, 2, size=0.7 * LENGTHS.get(sde, 1.0))
    return told(sd.log_prob(closed(sde, predicts, 4), x, **options), "value", "stderr", "z")


def wider_flows() -> Iterator[Case]:
    """Encoding, decoding and log-densities with other arguments."""
    for sde in ("VP", "VE", "VP.scaled(3)", "Pull"):
        for solver, steps in (("RK45(rtol=1e-2,atol=1e-2)", None), ("RungeKutta4()", 5)):
            for name in FLOW_OPTIONS:
                for way in ("encode", "decode", "log_prob"):
                    if name == "bad" and way != "decode" and steps is None:
                        continue  # fails at the start: an error that ought to be a status
                    predicts = some_prediction(sde, f"{solver}{name}{way}")
                    key = f"flow_call/{sde}/{predicts}/{way}/{solver}/{name}"
                    yield Case(key, partial(flowed, sde, predicts, solver, name, way, steps))
        for options in (
            {"steps": 5},
            {"steps": 4, "divergence": "hutchinson", "probes": 2, "seed": 3},
            {"steps": 4, "divergence": "hutchinson", "probes": 4, "seed": 3},
            {"steps": 4, "divergence": "hutch++", "probes": 3, "seed": 3},
        ):
            predicts = some_prediction(sde, f"{options} images")
            key = f"log_prob_images/{sde}/{predicts}{written(options)}"
            yield Case(key, partial(pictured, sde, predicts, **options))


def flows() -> Iterator[Case]:
    """All of them, and the methods of SDEs and models."""
    for sde in LINEAR:
        yield Case(f"sde/{sde}", partial(coefficients, sde))
        yield Case(f"model/{sde}/mixture", partial(predictions, sde, "", mixture=True))
        for predicts in PREDICTS:
            yield Case(f"model/{sde}/{predicts}", partial(predictions, sde, predicts))
    yield from model_calls()
    yield from flow_calls()
    yield from wider_flows()
    for kernel in ("MALA(step=0.2)", "ULA(0.05)", "RandomWalk(0.4)", "Underdamped(0.3,1.0)"):
        for target in ("density", "model"):
            yield Case(f"mcmc/{kernel}/{target}", partial(chained, kernel, target))
