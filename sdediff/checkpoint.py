"""The model of a run folder, made again from its configuration and its averaged weights: JSON and
safetensors, without pickle.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from sdediff.constraints import Constrained, Constraint
from sdediff.describing import KINDS, Own, build, build_network, describe_sde, rebuild
from sdediff.model import ScoreModel
from sdediff.network_time import NetworkTime
from sdediff.run_folder import CONFIG, FORMAT, SECTIONS, TRAINING, WEIGHTS, locate
from sdediff.sde import SDE
from sdediff.solvers.given import nearest
from sdediff.solvers.noise import device_of
from sdediff.states import read_tensors, set_module_state

__all__ = ["DETAILS", "SCHEDULE", "load", "read_config", "read_run"]

SCHEDULE: Final = "schedule."
DETAILS: Final = "detail_std"
"""What the size of the details is called beside the weights."""


def load(
    run: str | Path,
    *,
    sde: SDE | None = None,
    net: nn.Module | None = None,
    time: NetworkTime | None = None,
    constraint: Constraint | None = None,
    ema: float | None = None,
    device: torch.device | str = "cpu",
) -> ScoreModel | Constrained:
    """The model of a run folder, with its averaged weights, in evaluation mode.

    SDEs, networks, network times and constraints of this library are built again from their saved
    parameters. Pass those of your own as ``sde=``, ``net=``, ``time=`` and ``constraint=``, because
    loading never imports or runs code that a file names. If the run has several averages, ``ema``
    chooses one by its decay; the default is the first. All have the ``detail_std`` that was
    measured by the first, because it is a size of the data.

    Warns if the run is unfinished, or if it was trained with another SDE than ``sde``. Raises
    FileNotFoundError if there is no run, and ValueError if files are damaged, belong to different
    runs or have a newer format.
    """
    if not isinstance(run, str | PathLike):
        raise TypeError(f"run must be the path of a run folder, got {run!r}")
    place = device_of(device)
    config = read_config(run)
    entry = {"sde": config["sde"], "net": config["network"]}
    passed = sde is not None
    if sde is None:
        sde = _made(run, "sde", partial(build, entry["sde"], KINDS["sde"]))
    if net is None and entry["net"]["parameters"] is None:
        raise ValueError(_asks_for(run, "net", entry["net"]["class"]))
    given = {
        name: value
        for name, value in (("time", time), ("constraint", constraint))
        if value is not None
    }
    entries = {name: value for name, value in config["model"].items() if name not in given}
    values = {
        name: _made(run, name, partial(build, value, KINDS.get(name)))
        for name, value in entries.items()
    }
    weights, meta = _averages(run, config, ema)
    learned = {
        name.removeprefix(SCHEDULE): weights.pop(name)
        for name in list(weights)
        if name.startswith(SCHEDULE)
    }
    if passed and not learned:
        _say_if_another(run, config["sde"], sde)
    if net is None:
        net = _built_network(run, entry["net"], weights)
    model: Any = _made(
        run,
        "model",
        partial(rebuild, net, sde, values if time is None else {**values, "time": time}),
    )
    if constraint is not None:
        model = model.constrained(constraint)
    try:
        if learned:
            model.sde.schedule.load_state_dict(learned)
        set_module_state(net, weights)
    except (RuntimeError, AttributeError) as error:
        first = str(error).splitlines()[-1].strip()
        raise ValueError(
            f"{Path(run) / WEIGHTS} does not fit the network {type(net).__name__}: {first}"
        ) from error
    _keep_details(run, getattr(model, "learner", model), meta)
    _say_if_unfinished(run, config, meta)
    loaded: ScoreModel | Constrained = model.to(place).eval()
    return loaded


def _averages(
    run: str | Path, config: Mapping[str, Any], ema: float | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The averaged weights, with what is learned of the schedule, and their metadata."""
    said = (config.get("training") or {}).get("ema")
    decays = said if isinstance(said, list) else [said]
    if ema is not None and ema not in decays:
        known = ", ".join(map(str, decays))
        raise ValueError(f"{run} has no average of decay {ema}; it has {known}")
    number = 0 if ema is None else decays.index(ema)
    if not number:
        return read_run(run, WEIGHTS, config)
    state, meta = read_run(run, TRAINING, config)
    first = f"ema{number}."
    weights = {
        name.removeprefix(first): value
        for name, value in state.items()
        if name.startswith((first, SCHEDULE))
    }
    # those of the data, which the first average was asked for
    size = read_run(run, WEIGHTS, config)[1].get(DETAILS)
    return weights, meta if size is None else {**meta, DETAILS: size}


def _built_network(
    run: str | Path, entry: Mapping[str, Any], weights: Mapping[str, Any]
) -> nn.Module:
    name = entry["class"]
    if name not in KINDS["net"]:
        _made(run, "net", partial(build, entry, KINDS["net"]))
    try:
        return build_network(entry, weights)
    except ImportError:
        raise
    except Exception as error:  # of any kind: what a constructor makes of a damaged number
        reason = _first_line(error)
        raise ValueError(
            f"{Path(run) / WEIGHTS} does not fit the network {name} of {CONFIG}: {reason}"
        ) from error


def _made(run: str | Path, argument: str, make: Callable[[], Any]) -> Any:
    """What ``make`` builds from the configuration; ValueError, in one line, where that does not
    do.
    """
    try:
        return make()
    except Own as own:
        raise ValueError(_asks_for(run, argument, own.args[0])) from own
    except ValueError as error:
        if str(error).startswith("names "):
            raise ValueError(f"{run} {error}") from error
        raise ValueError(_damaged(run, f"{argument}: {_first_line(error)}")) from error
    except (TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise ValueError(_damaged(run, f"{argument}: {_first_line(error)}")) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _asks_for(run: str | Path, argument: str, name: str) -> str:
    what = {"time": "function of time", "constraint": f"constraint {name}"}.get(argument, name)
    value = "..." if argument in ("time", "constraint") else f"{name}(...)"
    return (
        f"{run} was trained with your own {what}; pass it: load({str(run)!r}, {argument}={value})"
    )


def _damaged(run: str | Path, what: str) -> str:
    return f"{Path(run) / CONFIG} is damaged: {what}; train again or restore the file"


def _say_if_another(run: str | Path, entry: Mapping[str, Any], sde: SDE) -> None:
    """Warn where the SDE that the caller passed is not, as far as the configuration tells, the one
    of the training.
    """
    given = json.loads(json.dumps(describe_sde(sde)))
    if any(given.get(key) != value for key, value in entry.items()):
        trained = entry.get("repr") or f"{entry['class']} with {entry['parameters']}"
        warnings.warn(
            f"{run} was trained with {trained}, and the SDE passed to load is {sde!r}", stacklevel=3
        )


def _say_if_unfinished(run: str | Path, config: Mapping[str, Any], meta: Mapping[str, str]) -> None:
    asked = (config.get("training") or {}).get("steps")
    made = int(meta["step"]) if meta.get("step", "").isdigit() else None
    if isinstance(asked, int) and made is not None and made < asked:
        warnings.warn(
            f"{run} is unfinished: it has made {made} of {asked} steps; go on with resume",
            stacklevel=3,
        )


def _keep_details(run: str | Path, model: ScoreModel, meta: Mapping[str, str]) -> None:
    """Give the model the size of the details that was measured at the end of its training."""
    if DETAILS not in meta:
        return
    try:
        model.detail_std = float(meta[DETAILS])
    except ValueError as error:
        raise ValueError(
            f"{Path(run) / WEIGHTS} is damaged: {DETAILS} must be a positive number, got "
            f"{meta[DETAILS]!r}; train again or restore the file"
        ) from error


def read_config(run: str | Path) -> dict[str, Any]:
    """The configuration of a run folder, in the present format."""
    folder = Path(run)
    if not folder.is_dir():
        siblings = (
            [str(p) for p in folder.parent.iterdir() if p.is_dir()]
            if folder.parent.is_dir()
            else []
        )
        raise FileNotFoundError(
            f"there is no run folder {folder}{nearest(str(folder), siblings)}; make one with: "
            f"sdediff train --out {folder}"
        )
    path = locate(folder, CONFIG)
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no run folder: it has no {CONFIG}; make one with: sdediff train --out DIR"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); train again or restore the file") from error
    if not isinstance(config, dict):
        raise ValueError(_damaged(run, f"it lacks {', '.join(SECTIONS)}"))
    _check(run, config)
    return config if config["format"] > 1 else _from_first(config)


def _check(run: str | Path, config: Mapping[str, Any]) -> None:
    """The sections are there and of the right kind, and the format is one that this version
    reads.
    """
    missing = [key for key in SECTIONS if key not in config]
    if missing:
        raise ValueError(_damaged(run, f"it lacks {', '.join(missing)}"))
    version = config.get("format")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        got = "no format" if version is None else f"the format {version!r}"
        raise ValueError(
            _damaged(run, f"it says {got}, where a number from 1 to {FORMAT} is expected")
        )
    if version > FORMAT:
        raise ValueError(
            f"{Path(run) / CONFIG} has format {version}, and this version of sdediff reads "
            f"formats up to {FORMAT}: "
            "load it with a newer sdediff"
        )
    for key, value in {
        "training": config.get("training") or {},
        **{key: config[key] for key in SECTIONS},
    }.items():
        if not isinstance(value, dict):
            raise ValueError(
                _damaged(run, f"{key} is {json.dumps(value)}, where an object is expected")
            )
    for key in ("sde", "network"):
        name, parameters = config[key].get("class"), config[key].get("parameters", 0)
        if not isinstance(name, str) or not (parameters is None or isinstance(parameters, dict)):
            raise ValueError(
                _damaged(run, f"{key} needs a class, a name, and its parameters, an object or null")
            )
    missing = [key for key in ("predicts", "sigma_data") if key not in config["model"]]
    if missing:
        raise ValueError(_damaged(run, f"model lacks {', '.join(missing)}"))


def _from_first(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of format 1, where a network time was its name, its parameters, or null for
    the user's own, and a normalizer its parameters.
    """
    model = dict(config["model"])
    time = model.get("time", "t")
    if not isinstance(time, str):
        model["time"] = (
            {"class": "Timesteps", "parameters": time}
            if time
            else {"class": "function", "parameters": None}
        )
    if model.get("normalizer"):
        model["normalizer"] = {"class": "Normalizer", "parameters": model["normalizer"]}
    return {**config, "model": model}


def read_run(
    run: str | Path, name: str, config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """State and metadata of a file of tensors; ValueError if it is damaged, or of another run than
    the configuration.
    """
    path = locate(Path(run), name)
    state, meta = read_tensors(path, sealed=config["format"] > 1)
    if meta.get("run") != config.get("run"):
        raise ValueError(
            f"{path} is of run {meta.get('run', 'unknown')}, and {CONFIG} beside it of run "
            f"{config.get('run', 'unknown')}: "
            "two trainings have written this folder, or one of the files was copied there; "
            "restore the file that belongs, "
            "or train again"
        )
    return state, meta
