"""How a run begins: its configuration, and whether its folder may be written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from sdediff import checkpoint
from sdediff.describing import describe
from sdediff.model import ScoreModel
from sdediff.objectives import Objective
from sdediff.run_folder import (
    FORMAT,
    TRAINING,
    WEIGHTS,
    Run,
    check_ours,
    locate,
    locked,
    write_config,
)
from sdediff.sources import Source
from sdediff.trainer import Trainer

__all__ = ["config_of", "summary", "writing"]

_OWN: Final = ("optimizer", "schedule")
"""What a configuration says only where the user passed it."""


def config_of(
    model: ScoreModel,
    data: Mapping[str, Any],
    loss: Objective,
    trainer: Trainer,
) -> dict[str, Any]:
    """The configuration of a run, without its name."""
    own = trainer.optimization.described(trainer.optimizer)
    training = {**asdict(trainer.settings), "loss": _name(loss), **own}
    return {"format": FORMAT, **describe(model), "data": data, "training": training}


def summary(source: Source, data: Tensor, condition: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a configuration says of the data and of what stands beside them, by some of them."""
    beside = {
        name: {"shape": list(value.shape[1:]), "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in condition.items()
    }
    event = list(data.shape[1:])
    scaled = source.low is not None and source.high is not None
    span = {"image": len(event) == 3 and event[0] in (1, 3), "low": source.low, "high": source.high}
    found = {"event": event, "count": source.count, "condition": beside}
    return {**found, **(span if scaled else {})}


def _name(loss: Objective) -> dict[str, Any]:
    """The loss as a configuration says it: its class, its plain fields as they are, other values
    that are dataclasses in words.
    """
    given: dict[str, Any] = (
        {field.name: getattr(loss, field.name) for field in fields(loss)}
        if is_dataclass(loss)
        else {}
    )
    plain: dict[str, Any] = {}
    for key, value in given.items():
        simple = value is None or isinstance(value, str | bool | int | float)
        plain[key] = value if simple else repr(value) if is_dataclass(value) else "own"
    return {"class": getattr(loss, "__name__", type(loss).__name__), **plain}


@contextmanager
def writing(
    folder: Path, config: Mapping[str, Any], accelerator: Any, *, resume: bool, overwrite: bool
) -> Iterator[Run]:
    """The run in ``folder``, which no other process writes meanwhile.

    Raises ValueError, before anything is touched, where it may not be written.
    """
    main = accelerator.is_main_process
    with locked(folder) if main else nullcontext():
        accelerator.wait_for_everyone()
        run = _run_in(folder, config, resume=resume, overwrite=overwrite)
        accelerator.wait_for_everyone()
        if main and run.begun is None and not run.replaces:
            write_config(folder, run.config)
        yield run


def _run_in(folder: Path, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Run:
    # A configuration alone is a run that was stopped before its first checkpoint: nothing would be
    # lost.
    if not check_ours(folder) or not any(
        locate(folder, name).exists() for name in (TRAINING, WEIGHTS)
    ):
        return Run(folder, config)
    if overwrite:
        return Run(folder, config, replaces=True)
    if not resume:
        raise ValueError(
            f"{folder} already holds a run; resume it, overwrite it, or choose another folder"
        )
    old = checkpoint.read_config(folder)
    others = [
        other
        for section in ("sde", "network", "model", "data", "training")
        for key, value in json.loads(json.dumps(config[section])).items()
        for other in _differences(f"{section} {key}", old.get(section, {}).get(key, value), value)
        if key != "steps"
    ]
    before, now = old.get("training", {}), json.loads(json.dumps(config["training"]))
    others += [
        f"training {key} = {before.get(key)}, not {now.get(key)}"
        for key in _OWN
        if key not in before or key not in now
        if before.get(key) != now.get(key)
    ]
    if others:
        raise ValueError(
            f"{folder} was trained with {'; '.join(others)}; resume with the same settings, or "
            "train into another folder"
        )
    new = {**config, "run": old.get("run", config["run"])}
    return Run(folder, new, begun=old, replaces=json.loads(json.dumps(new)) != old)


def _differences(name: str, before: Any, now: Any) -> list[str]:
    """Where two values of a configuration differ, entry by entry if they have the same ones."""
    one, two = _said(before), _said(now)
    if one == two:
        return []
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return [each for key in one for each in _differences(f"{name} {key}", one[key], two[key])]
    return [f"{name} = {before}, not {now}"]


def _said(value: Any) -> Any:
    """What a configuration says: an option that is None is one that an older version had not."""
    if not isinstance(value, dict):
        return value
    return {key: _said(part) for key, part in value.items() if part is not None}
