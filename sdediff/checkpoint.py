"""Run folders: what was trained, its weights and where training stands, as JSON and safetensors, without pickle.

``config.json`` names the SDE, the network and the data; ``model.safetensors`` holds the averaged weights, which sampling uses;
``training.safetensors`` holds all that training needs to go on. Each file is replaced as a whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from sdediff import sde as families
from sdediff._extras import require
from sdediff.clocks import Clock, Timesteps
from sdediff.model import ScoreModel
from sdediff.names import nearest
from sdediff.networks import NETWORKS, initialised
from sdediff.normalizer import Normalizer
from sdediff.sde import SDE, LinearSDE

__all__ = [
    "CONFIG",
    "SCHEDULE",
    "TRAINING",
    "WEIGHTS",
    "describe",
    "load",
    "read_config",
    "read_tensors",
    "write_atomically",
    "write_tensors",
]

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
TRAINING: Final = "training.safetensors"
SCHEDULE: Final = "schedule."

_SDES: Final[dict[str, type[LinearSDE]]] = {
    family.__name__: family
    for family in (
        families.VE,
        families.VP,
        families.SubVP,
        families.Cosine,
        families.EDM,
        families.RectifiedFlow,
        families.InterpolatedVP,
        families.InterpolatedVE,
    )
}


def describe(model: ScoreModel) -> dict[str, Any]:
    """What a configuration says of a model: classes that ship with their parameters, others by name only."""
    net: Any = model.net
    known_net = NETWORKS.get(type(net).__name__) is type(net)
    known_sde = _SDES.get(type(model.sde).__name__) is type(model.sde)
    return {
        "sde": {
            "class": type(model.sde).__name__,
            "parameters": dataclasses.asdict(model.sde) if known_sde else None,
        },
        "network": {"class": type(net).__name__, "parameters": net.config if known_net else None},
        "model": {
            "predicts": model.predicts,
            "sigma_data": model.sigma_data,
            "time": _describe_clock(model.time),
            "learned_variance": model.learned_variance,
            "normalizer": None if model.normalizer is None else model.normalizer.to_dict(),
        },
    }


def _describe_clock(clock: Clock) -> str | dict[str, Any] | None:
    if isinstance(clock, str):
        return clock
    return dataclasses.asdict(clock) if isinstance(clock, Timesteps) else None


def load(
    run: str | Path,
    *,
    sde: SDE | None = None,
    net: nn.Module | None = None,
    time: Clock | None = None,
    device: torch.device | str = "cpu",
) -> ScoreModel:
    """The model of a run folder, with its averaged weights, in evaluation mode.

    SDEs and networks that ship are built again from their recorded parameters; your own are passed as ``sde=``, ``net=`` and
    ``time=``: loading never imports or runs code that a file names. Raises FileNotFoundError or ValueError.
    """
    config = read_config(run)
    try:
        sde = sde or _build(config["sde"], _SDES, "sde", run)
        net = net or _build(config["network"], NETWORKS, "net", run)
        entry = config["model"]
        recorded = entry.get("time", "t")
        if time is None and recorded is None:
            raise ValueError(f"{run} was trained with your own function of time; pass it: load({str(run)!r}, time=...)")
        clock = time or (Timesteps(**recorded) if isinstance(recorded, dict) else recorded)
        learned = entry.get("learned_variance", False)
        kept = entry.get("normalizer")
        model = ScoreModel(
            net,
            sde,
            entry["predicts"],
            sigma_data=entry["sigma_data"],
            time=clock,
            learned_variance=learned,
            normalizer=None if kept is None else Normalizer(**kept),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{Path(run) / CONFIG} is damaged: {error}; train again or restore the file") from error
    weights, _ = read_tensors(Path(run) / WEIGHTS)
    learned = {name.removeprefix(SCHEDULE): weights.pop(name) for name in list(weights) if name.startswith(SCHEDULE)}
    try:
        if learned:
            model.sde.schedule.load_state_dict(learned)
        net.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise ValueError(f"{Path(run) / WEIGHTS} does not fit the network {type(net).__name__}: {first}") from error
    return model.to(device).eval()


def _build(entry: Mapping[str, Any], known: Mapping[str, Callable[..., Any]], argument: str, run: str | Path) -> Any:
    name, parameters = entry["class"], entry["parameters"]
    if parameters is None:
        raise ValueError(f"{run} was trained with your own {name}; pass it: load({str(run)!r}, {argument}={name}(...))")
    if name not in known:
        raise ValueError(f"{run} names {name!r}, which this version does not know{nearest(name, known)}; known: {', '.join(known)}")
    return initialised(partial(known[name], **parameters), seed=0)


def read_config(run: str | Path) -> dict[str, Any]:
    """The configuration of a run folder."""
    folder = Path(run)
    if not folder.is_dir():
        siblings = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise FileNotFoundError(
            f"there is no run folder {folder}{nearest(str(folder), siblings)}; make one with: sdediff train --out {folder}"
        )
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it has no {CONFIG}; make one with: sdediff train --out DIR")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); train again or restore the file") from error
    missing = [key for key in ("sde", "network", "model", "data") if not isinstance(config, dict) or key not in config]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}; train again or restore the file")
    return dict(config)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    safetensors = require("safetensors", "train")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the run was stopped before its first checkpoint: train again")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); train again or restore the file") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, as a whole or not at all."""
    save = require("safetensors.torch", "train").save
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomically(path, save(plain, dict(metadata)))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
