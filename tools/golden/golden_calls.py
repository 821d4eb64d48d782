"""Golden cases of ways to call `sample`: ends, grids, conditions, masks, failures, units."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from golden_cases import Case, Found, made, some_prediction, told, written
from golden_models import ENDS, LINEAR, SDES, Closed, closed, fixed
from torch import Tensor

import sdediff as sd

F64 = torch.float64


def options_of(sde: str, predicts: str) -> dict[str, Any]:
    """Arguments of `sample` by the name that they have in a key."""
    process = SDES[sde]
    low, high = process.t_min, process.t_max
    middle = low + 0.6 * (high - low)
    rows = torch.arange(3, dtype=F64)
    size = float(process.prior.std)
    grid = low + (high - low) * torch.tensor([1.0, 0.8, 0.45, 0.2, 0.0], dtype=F64)
    return {
        "last=denoise": {"last": "denoise"},
        "last=mean": {"last": "mean"},
        "last=noisy": {"last": "noisy"},
        "condition": {"condition": {"shift": 0.3 * rows - 0.2}},
        "condition+batch_size=2": {"condition": {"shift": 0.3 * rows - 0.2}, "batch_size": 2},
        "batch_size=1": {"batch_size": 1},
        "mask": {"mask": torch.tensor([[True, True], [True, False], [False, True]])},
        "mask+last=noisy": {
            "mask": torch.tensor([[True, True], [True, False], [False, True]]),
            "last": "noisy",
        },
        "x_init": {"x_init": size * fixed(3, 2)},
        "x_init+t_start": {"x_init": 0.5 * size * fixed(3, 2), "t_start": middle},
        "t_end": {"t_end": low + 0.2 * (high - low)},
        "t_end+last=denoise": {"t_end": low + 0.2 * (high - low), "last": "denoise"},
        "grid=array": {"grid": grid},
        "trajectory": {"trajectory": True},
        "seeds": {"seed": [5, 0, 2**40]},
        "max_nfe": {"max_nfe": 4, "on_fail": "return"},
        "bad": {
            "condition": {"bad": torch.tensor([0.0, 1.0, 0.0], dtype=F64)},
            "on_fail": "return",
        },
        "float32": {"dtype": torch.float32},
    }


def called(sde: str, predicts: str, solver: str | None, name: str, steps: int | None) -> Found:
    """`sample` with the arguments of that name."""
    model, options = closed(sde, predicts), options_of(sde, predicts)[name]
    kwargs: dict[str, Any] = {"seed": 3, "dtype": F64} | options
    if name == "max_nfe" and steps is None:
        kwargs["max_nfe"] = 15
    if name != "grid=array" and steps is not None:
        kwargs["steps"] = steps
    if name == "float32":
        model = model.float()
    out = sd.sample(model, (3, 2), solver=made(solver), **kwargs)
    if name == "max_nfe" and steps is None:  # where it stopped follows from the steps' sizes
        return told(out)
    extra = {} if out.trajectory is None else {"trajectory": out.trajectory}
    failed = torch.tensor([failure.t for failure in out.failures], dtype=F64)
    return {**told(out, "x", "times"), **extra, **({"failed": failed} if len(failed) else {})}


def stochastic(sde: str, predicts: str, solver: str, kind: str) -> Found:
    """Other amounts of noise."""
    T = SDES[sde].T
    amount = {"0": 0.0, "0.5": 0.5, "1.2": 1.2, "function": lambda t: 0.5 + 0.5 * t / T}[kind]
    out = sd.sample(
        closed(sde, predicts),
        (3, 2),
        solver=made(solver),
        steps=10,
        stochasticity=amount,
        seed=3,
        dtype=F64,
    )
    return told(out, "x")


def gridded(sde: str, predicts: str, solver: str, grid: str) -> Found:
    """Grids by name, and a function."""
    process = LINEAR[sde]

    def cubes(n: int) -> Tensor:
        share = torch.linspace(1, 0, n + 1, dtype=F64) ** 3
        return process.t_min + (process.t_max - process.t_min) * share

    of: Any = cubes if grid == "function" else grid
    out = sd.sample(
        closed(sde, predicts),
        (3, 2),
        solver=made(solver),
        steps=6,
        grid=of,
        seed=3,
        dtype=F64,
    )
    return told(out, "x", "times")


def pathed(sde: str, predicts: str, solver: str, steps: int | None) -> Found:
    """A Brownian path as the noise."""
    process = SDES[sde]
    path = sd.solvers.BrownianPath(
        [1, 2, 3],
        (2,),
        process.t_max,
        process.t_min,
        intervals=8,
        depth=10,
        dtype=F64,
    )
    options = {} if steps is None else {"steps": steps}
    out = sd.sample(
        closed(sde, predicts),
        (3, 2),
        solver=made(solver),
        noise=path,
        x_init=fixed(3, 2),
        dtype=F64,
        **options,
    )
    return told(out, "x")


def pictures(
    sde: str,
    predicts: str,
    solver: str | None,
    steps: int | None,
    **options: Any,
) -> Found:
    """Events of three dimensions, in double and single precision."""
    model = closed(sde, predicts, 4)
    single = options.get("dtype") == torch.float32
    model = model.float() if single else model
    kwargs = {"dtype": F64, **({} if steps is None else {"steps": steps}), **options}
    return told(sd.sample(model, (3, 1, 2, 2), solver=made(solver), seed=9, **kwargs), "x")


def overflow(solver: str, steps: int | None) -> Found:
    """A state that goes bad though the network's output is finite."""
    model = sd.ScoreModel(lambda x, t: x.sign() * 1e308, sd.VP(), "score", network=None)
    options = {} if steps is None else {"steps": steps}
    out = sd.sample(
        model,
        (3, 2),
        solver=made(solver),
        seed=9,
        dtype=F64,
        on_fail="return",
        **options,
    )
    return told(out, "x")


def sampling_calls() -> Iterator[Case]:
    """Arguments of `sample`."""
    for sde in ("VP", "VE", "Cubic", "VP.scaled(3)", "Pull"):
        ways: dict[str | None, int | None] = {
            "EulerMaruyama()": 5,
            "RK45(rtol=1e-2,atol=1e-2)": None,
            "AdaptiveSDE(rtol=0.2,atol=0.2)": None,
            "Churn(Heun())": 5,
            "UniPC(2)": 5,
            "DDIM(eta=0.5)": 5,
            "PredictorCorrector(ReverseDiffusion(),Langevin())": 5,
            None: 6,
        }
        for solver, steps in ways.items() if sde in ("VP", "VP.scaled(3)", "Pull") else ():
            for name in options_of(sde, "noise"):
                predicts = some_prediction(sde, f"{solver}{name}")
                key = f"call/{sde}/{predicts}/{solver or 'default'}/{name}"
                yield Case(key, partial(called, sde, predicts, solver, name, steps))
        stochastics = [
            "EulerMaruyama()",
            "ReverseDiffusion()",
            "StochasticHeun()",
            "SRA1()",
            "SASolver(3)",
            "SEEDS(2)",
        ]
        for solver in [
            *stochastics,
            "SDEDPMSolverPP(2)",
            "Renoise(RungeKutta4())",
            "EulerTrapezoid()",
            "DDIM()",
        ]:
            for kind in ("0", "0.5", "1.2", "function"):
                predicts = some_prediction(sde, f"{solver}{kind}")
                key = f"stochasticity/{sde}/{predicts}/{solver}/{kind}"
                yield Case(key, partial(stochastic, sde, predicts, solver, kind))
        for path_solver, steps in (
            ("EulerMaruyama()", 7),
            ("SRA1()", 8),
            ("SEEDS(2)", 5),
            ("AdaptiveSDE(rtol=0.2,atol=0.2)", None),
        ):
            predicts = some_prediction(sde, f"path {path_solver}")
            yield Case(
                f"path/{sde}/{predicts}/{path_solver}/{steps}",
                partial(pathed, sde, predicts, path_solver, steps),
            )
        for picture, steps in (
            (None, 8),
            ("EulerMaruyama()", 5),
            ("RK45(rtol=1e-2,atol=1e-2)", None),
            ("LMS(3)", 6),
        ):
            for dtype in (torch.float64, torch.float32):
                predicts = some_prediction(sde, f"{picture} images")
                kind = str(dtype).removeprefix("torch.")
                key = f"images/{sde}/{predicts}/{picture or 'default'}/{kind}"
                yield Case(key, partial(pictures, sde, predicts, picture, steps, dtype=dtype))
    for sde in LINEAR:
        for grid in (
            "uniform",
            "quadratic",
            "log_snr",
            "karras",
            "logistic",
            "central",
            "function",
        ):
            for solver in ("DDIM()", "EulerMaruyama()"):
                predicts = some_prediction(sde, f"{solver}{grid}")
                yield Case(
                    f"grid/{sde}/{predicts}/{solver}/{grid}",
                    partial(gridded, sde, predicts, solver, grid),
                )
    for bad_solver, steps in (
        ("EulerMaruyama()", 5),
        ("DDIM()", 5),
        ("RK45(rtol=1e-2,atol=1e-2)", None),
    ):
        yield Case(f"overflow/{bad_solver}", partial(overflow, bad_solver, steps))


def moved(snapshot: Any) -> Tensor:
    """What a callback sees, as numbers."""
    t = snapshot.t.reshape(-1).to(F64)
    return torch.cat(
        [t, torch.tensor([snapshot.step, snapshot.done], dtype=F64), snapshot.x.flatten()],
    )


def watched(sde: str, predicts: str, solver: str, steps: int | None) -> Found:
    """What a callback sees after every step."""
    seen: list[Any] = []
    options = {} if steps is None else {"steps": steps}
    out = sd.sample(
        closed(sde, predicts),
        (3, 2),
        solver=made(solver),
        seed=3,
        dtype=F64,
        callback=seen.append,
        **options,
    )
    rows = [torch.arange(3) if each.rows is None else each.rows for each in seen]
    return {
        **told(out, "x"),
        "moved": torch.cat([moved(each) for each in seen]),
        "rows": torch.cat(rows),
        "counted": torch.stack([each.nfe for each in seen]),
    }


def at_ends(sde: str, predicts: str, solver: str, **options: Any) -> Found:
    """From alpha = 0, or to sigma = 0, which some solvers cannot do."""
    process = ENDS[sde]
    model = sd.ScoreModel(Closed(process, predicts), process, predicts, sigma_data=0.5)
    out = sd.sample(
        model,
        (3, 2),
        solver=made(solver),
        seed=3,
        dtype=F64,
        on_fail="return",
        **options,
    )
    return told(out, "x", "times")


def in_units(
    sde: str,
    predicts: str,
    solver: str | None,
    size: float,
    way: str,
    **options: Any,
) -> Found:
    """Data whose standard deviation is declared."""
    model = closed(sde, predicts, data_std=size)
    if way == "sample":
        out = sd.sample(model, (3, 2), solver=made(solver), seed=3, dtype=F64, **options)
        return told(out, "x", "times")
    found = sd.log_prob(model, fixed(3, 2, size=0.7), solver=made(solver), **options)
    return told(found, "value", "z")


def wider_calls() -> Iterator[Case]:
    """Callbacks, ends at which coefficients vanish, declared units."""
    for sde in ("VP", "VE", "Pull"):
        for solver, steps in (
            ("EulerMaruyama()", 4),
            ("Heun()", 4),
            ("UniPC(3)", 5),
            ("RK45(rtol=1e-2,atol=1e-2)", None),
            ("AdaptiveSDE(rtol=0.2,atol=0.2)", None),
        ):
            predicts = some_prediction(sde, f"{solver} callback")
            run = partial(watched, sde, predicts, solver, steps)
            yield Case(f"callback/{sde}/{predicts}/{solver}/{steps}", run)
    solvers = (
        "DDIM()",
        "DDIM(eta=1.0)",
        "Ancestral()",
        "UniPC(2)",
        "LMS(3)",
        "LMS(4,startup='published')",
        "DPMSolver(2)",
        "Heun(variable='sigma')",
        "EulerTrapezoid()",
        "ExponentialMultistep(3,form=Straight(0.1),variable='angle',corrector=3)",
        "Renoise(DDIM())",
        "SEEDS(2)",
    )
    for sde in ENDS:
        for solver in (*solvers, None):
            for predicts in ("data", "v"):
                name = solver or "default"
                run = partial(at_ends, sde, predicts, solver, steps=6, last="noisy")
                yield Case(f"ends/{sde}/{predicts}/{name}/steps=6/last=noisy", run)
    units: tuple[tuple[str | None, dict[str, Any]], ...] = (
        (None, {"steps": 8}),
        ("EulerMaruyama()", {"steps": 6}),
        ("Churn(Heun(variable='sigma'))", {"steps": 6}),
        ("ERSDE(2)", {"steps": 6}),
        ("Langevin()", {"steps": 6}),
        ("RK45(rtol=1e-2)", {}),
        ("AdaptiveSDE(rtol=0.2)", {}),
        ("ExponentialPair(2,rtol=1e-2)", {}),
    )
    for sde in ("VP", "VE", "SubVP", "VP.scaled(3)"):
        for size in (0.3, 2.5):
            for solver, options in units:
                predicts = some_prediction(sde, f"{solver}{size}")
                key = f"units/{sde}/{predicts}/data_std={size}/{solver or 'default'}"
                run = partial(in_units, sde, predicts, solver, size, "sample", **options)
                yield Case(f"{key}{written(options)}", run)
            for solver, options in (("RK45(rtol=1e-2,atol=1e-2)", {}), (None, {"steps": 5})):
                predicts = some_prediction(sde, f"{solver}{size} density")
                key = f"units/{sde}/{predicts}/data_std={size}/log_prob/{solver or 'default'}"
                run = partial(in_units, sde, predicts, solver, size, "log_prob", **options)
                yield Case(f"{key}{written(options)}", run)


def calls() -> Iterator[Case]:
    """All of them."""
    yield from sampling_calls()
    yield from wider_calls()
