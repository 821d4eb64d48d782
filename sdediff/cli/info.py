"""``sdediff info``: what a run folder holds, in words."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from sdediff.checkpoint import DETAILS, read_config
from sdediff.run_folder import LOSSES, TRAINING, VALIDATION, WEIGHTS, being_written, locate
from sdediff.states import read_notes

__all__ = ["lines"]

_RECENT: Final = 100
"""Steps over which losses are averaged."""


def lines(folder: Path) -> Iterator[tuple[str, str]]:
    """(what, in words) of a run folder, read from its files alone: no model is built."""
    config = read_config(folder)
    training = config.get("training") or {}
    yield "run", f"{folder} ({config.get('run', 'no name')}, format {config['format']})"
    yield "process", _value(config["sde"])
    yield "model", _model(folder, config)
    yield "data", _data(config["data"])
    yield "steps", _steps(folder, training)
    yield "training", _said(training, "steps", "loss")
    yield "loss", _loss(training.get("loss") or {})
    yield from _details(folder, config)
    yield from _tables(folder)
    if being_written(folder):
        yield "now", "a training is writing this folder"
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    yield "files", ", ".join(f"{path.name} {_size(path.stat().st_size)}" for path in files)


def _value(entry: Mapping[str, Any]) -> str:
    """A described value as Python would write it."""
    parameters = entry.get("parameters")
    if parameters is None:
        return str(entry.get("repr") or f"{entry['class']} (your own)")
    return f"{entry['class']}({_said(parameters)})"


def _said(values: Mapping[str, Any], *without: str) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items() if name not in without)


def _model(folder: Path, config: Mapping[str, Any]) -> str:
    weights, size = locate(folder, WEIGHTS), "no weights yet"
    if weights.is_file():
        size = f"{read_notes(weights)[1] / 1e6:.3g} M weights"
    model = config["model"]
    return f"{_value(config['network'])}, {size}, predicts {model['predicts']}"


def _data(data: Mapping[str, Any]) -> str:
    count = data.get("count")
    text = f"{'samples' if count is None else f'{count} samples'} of shape {data.get('event')}"
    text = f"{data['name']}: {text}" if data.get("name") else text
    beside = list(data.get("condition") or {})
    return f"{text}, with {', '.join(beside)}" if beside else text


def _steps(folder: Path, training: Mapping[str, Any]) -> str:
    path, asked = locate(folder, TRAINING), training.get("steps", "?")
    if not path.is_file():
        return f"none of {asked}: there is no checkpoint yet"
    made = read_notes(path)[0].get("step", "?")
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
    left = "" if made == str(asked) else "; go on with --resume"
    return f"{made} of {asked}, by the checkpoint of {moment}{left}"


def _loss(loss: Mapping[str, Any]) -> str:
    return f"{loss.get('class', '?')}({_said(loss, 'class')})"


def _details(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The size of the details, where it has been measured."""
    weights = locate(folder, WEIGHTS)
    if weights.is_file() and (size := read_notes(weights)[0].get(DETAILS)) is not None:
        words = f"of standard deviation {float(size):.3g}, in the units of the network"
        if data_std := config["model"].get("data_std"):
            words += f", {float(size) / data_std:.2g} of the data's"
        yield "details", words


def _rows(path: Path) -> list[list[str]]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def _tables(folder: Path) -> Iterator[tuple[str, str]]:
    """The losses at the beginning and at the end, and what validation found last."""
    losses = [(int(row[0]), float(row[1])) for row in _rows(folder / LOSSES)]
    if losses:
        last, first = losses[-_RECENT:], losses[:_RECENT]
        yield (
            "losses",
            f"{_mean(last):.4g} over the last {len(last)} steps, to step {last[-1][0]}; "
            f"{_mean(first):.4g} over the first {len(first)}",
        )
    found = _rows(folder / VALIDATION)
    for step, name, value in found:
        if step == found[-1][0]:
            yield name.replace("_", " "), f"{float(value):.4g} at step {step}"


def _mean(losses: list[tuple[int, float]]) -> float:
    return sum(loss for _, loss in losses) / len(losses)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
