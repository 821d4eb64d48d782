"""Conditions and guidance of ``sdediff sample``: ``--condition label=3 --guidance 2``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff.degradation import Degradation
from sdediff.protocols import Model
from sdediff.solvers.given import nearest

__all__ = ["Conditions", "guided", "read_conditions", "read_own"]

_TRAINED = "train one with: sdediff train --labels"
_NONE = "none"


@dataclass(frozen=True)
class Conditions:
    """Values (k,) by the names of conditions, which the samples take in turn: sample i has the
    value i modulo k.

    ``values`` go to the network; ``words`` are the same as the data call them. ``own``, (k, ...)
    each, are those of the process, a degradation.
    """

    values: Mapping[str, Tensor]
    words: Mapping[str, NDArray[Any]]
    own: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """What the network and the process are handed for the samples ``rows``."""
        index = torch.as_tensor(rows)
        given = {name: value[index % len(value)] for name, value in self.values.items()}
        return {**given, **self.own_of(rows)}

    def own_of(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """What the process alone is handed for them."""
        index = torch.as_tensor(rows)
        return {name: value[index % len(value)] for name, value in self.own.items()}

    def called(self, rows: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The same in the words of the data."""
        index = np.asarray(rows)
        own = {name: value.numpy() for name, value in self.own.items()}
        both = {**self.words, **own}
        return {name: value[index % len(value)] for name, value in both.items()}

    def columns(self, count: int) -> int | None:
        """The columns of a picture of ``count`` samples in which each has one value; None: any."""
        turn = math.lcm(*map(len, self.values.values()))
        return None if turn == 1 else turn * max(1, round(math.sqrt(count) / turn))


def read_conditions(
    folder: Path, config: Mapping[str, Any], model: Model, given: Sequence[str]
) -> Conditions:
    """The conditions NAME=VALUE[,VALUE ...] of a run's model; a ValueError unless there is one for
    each condition that the run was trained with.
    """
    data = config["data"]
    known: Mapping[str, Any] = data.get("condition") or {}
    null: Mapping[str, Any] = getattr(model, "null", None) or {}
    if given and not known:
        raise ValueError(
            f"{folder} was trained without conditions: drop --condition, or {_TRAINED}"
        )
    values: dict[str, Tensor] = {}
    words: dict[str, NDArray[Any]] = {}
    for word in given:
        name, equals, rest = word.partition("=")
        name, parts = name.strip(), [part.strip() for part in rest.split(",")]
        if not (name and equals and all(parts)):
            raise ValueError(f"--condition {word!r}: write NAME=VALUE, label=3 or label=0,1,2 say")
        if name not in known:
            raise ValueError(
                f"{folder} has no condition {name!r}{nearest(name, known)}; it was trained with "
                f"{', '.join(known)}"
            )
        if name in values:
            raise ValueError(f"--condition {name} is given twice: write {name}=VALUE,VALUE")
        entry = known[name]
        if entry["shape"]:
            raise ValueError(
                f"condition {name!r} has shape {tuple(entry['shape'])} a sample: the command line "
                "takes numbers alone; draw in Python, sdediff.sample(model, shape, condition=...)"
            )
        classes = data.get("classes") if name == "label" else None
        kind = getattr(torch, entry["dtype"])
        found = [_value(part, name, kind, classes, null) for part in parts]
        values[name], words[name] = torch.tensor(found, dtype=kind), _called(parts)
    if missing := [name for name in known if name not in values]:
        examples = data.get("classes") or ["0.5"]
        raise ValueError(
            f"{folder} was trained with {', '.join(known)}: say which to draw, --condition "
            f"{missing[0]}={examples[0]}, or several in turn, "
            f"{missing[0]}={','.join(map(str, examples[:3]))}"
        )
    return Conditions(values, words)


def _value(
    word: str,
    name: str,
    kind: torch.dtype,
    classes: Sequence[str] | None,
    null: Mapping[str, Any],
) -> float:
    """The number that the network is handed for a word."""
    if classes is not None and word in classes:
        return classes.index(word)
    if word == _NONE:
        if name not in null:
            raise ValueError(
                f"--condition {name}=none is for a run in which conditions were dropped, and this "
                f"was none; {_TRAINED} --drop 0.1"
            )
        return float(null[name]) if kind.is_floating_point else int(null[name])
    if classes is not None:
        shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
        raise ValueError(f"no {name} is called {word!r}{nearest(word, classes)}; known: {shown}")
    try:
        return float(word) if kind.is_floating_point else int(word)
    except ValueError as error:
        what = "a number" if kind.is_floating_point else "an integer"
        raise ValueError(f"--condition {name}={word}: expected {what}") from error


def read_own(
    process: Degradation, event: Sequence[int], given: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The conditions NAME=VALUE of the process itself, (1, ...) each, with as many numbers as its
    `draw` gives a sample of shape ``event``, or an .npy file of them; and the words that are none.
    """
    shapes = process.draw(torch.zeros(1, *event), torch.Generator().manual_seed(0))
    own: dict[str, Tensor] = {}
    others = []
    for word in given:
        name, equals, rest = word.partition("=")
        if not equals or name.strip() not in shapes:
            others.append(word)
            continue
        name = name.strip()
        if name in own:
            raise ValueError(f"--condition {name} is given twice")
        like = shapes[name]
        found = _numbers(name, rest.strip())
        whole = like.is_floating_point() or bool((found == found.round()).all())
        if found.numel() != like.numel() or not whole:
            kind = "numbers" if like.is_floating_point() else "whole numbers"
            raise ValueError(
                f"--condition {name} of a picture are {like.numel()} {kind}, with commas between "
                f"them, or an .npy file of shape {tuple(like.shape[1:])}; got {word!r}"
            )
        own[name] = found.reshape(like.shape).to(like.dtype)
    return own, others


def _numbers(name: str, rest: str) -> Tensor:
    """Float64 numbers between commas, or those of an .npy file."""
    if rest.endswith(".npy"):
        if not Path(rest).is_file():
            raise FileNotFoundError(f"--condition {name}={rest}: there is no such file")
        return torch.from_numpy(np.load(rest, allow_pickle=False).astype(np.float64))
    try:
        return torch.tensor([float(part) for part in rest.split(",")], dtype=torch.float64)
    except ValueError as error:
        raise ValueError(
            f"--condition {name}={rest}: expected numbers with commas between them, or an .npy file"
        ) from error


def _called(words: Sequence[str]) -> NDArray[Any]:
    """Words as an array: of numbers if all are."""
    for kind in (int, float, str):
        try:
            return np.array([kind(word) for word in words])
        except ValueError:
            continue
    raise ValueError(words)


def guided(folder: Path, config: Mapping[str, Any], model: Model, scale: float) -> Model:
    """The model with classifier-free guidance; a ValueError if it never saw its null condition."""
    if not math.isfinite(scale):
        raise ValueError(
            f"--guidance must be a finite number, got {scale:g}; 1 is the condition as trained, "
            "2 draws it more clearly"
        )
    if getattr(model, "null", None) is None:
        why = (
            "never dropped its conditions in training"
            if config["data"].get("condition")
            else "was trained without conditions"
        )
        raise ValueError(
            f"--guidance compares a condition with none, and {folder} {why}; {_TRAINED} --drop 0.1"
        )
    from sdediff.guidance import ClassifierFree

    guiding: Model = ClassifierFree(model, scale)
    return guiding
