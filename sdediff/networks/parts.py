"""What the networks share: features of the time, embedded classes, and padding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdediff.solvers.given import integer, real

__all__ = [
    "Labelled",
    "Sizes",
    "TimeFeatures",
    "check_count",
    "check_dropout",
    "check_label",
    "class_embedding",
    "padded",
    "zeroed",
]


class TimeFeatures(nn.Module):
    """sin and cos of times t (B,) in [0, 1], (B, 2 frequencies), at rates from 0.1 pi to 100 pi."""

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.rates: Tensor
        self.register_buffer(
            "rates", math.pi * torch.logspace(-1, 2, frequencies), persistent=False
        )

    def forward(self, t: Tensor) -> Tensor:
        phase = t[:, None] * self.rates
        return torch.cat([phase.sin(), phase.cos()], dim=1)


def class_embedding(classes: int, width: int) -> nn.Embedding:
    """A learned vector for each class, and one more, of number ``classes``, for no class."""
    return nn.Embedding(classes + 1, width)


class Sizes(NamedTuple):
    """The sizes of a U-Net, as a checkpoint records them."""

    channels: int
    widths: Sequence[int]
    layers: int
    dropout: float
    groups: int
    out_channels: int | None
    classes: int | None

    def checked(self, who: str) -> Sizes:
        """The same, plain numbers; a ValueError or TypeError unless they fit a network ``who``."""
        widths = self.widths
        if not isinstance(widths, Sequence) or isinstance(widths, str) or not widths:
            raise TypeError(f"{who}: widths must be a sequence, one a level; got {widths!r}")
        widths = [integer(f"{who}: widths", width, 1) for width in widths]
        groups = integer(f"{who}: groups", self.groups, 1)
        if any(width % groups for width in widths):
            raise ValueError(f"{who}: widths must be multiples of groups = {groups}, got {widths}")
        return Sizes(
            integer(f"{who}: channels", self.channels, 1),
            widths,
            integer(f"{who}: layers", self.layers, 1),
            check_dropout(f"{who}: dropout", self.dropout),
            groups,
            check_count(f"{who}: out_channels", self.out_channels),
            check_count(f"{who}: classes", self.classes),
        )


def check_count(name: str, value: int | None) -> int | None:
    """A positive int or None."""
    return None if value is None else integer(name, value, 1)


def check_dropout(name: str, value: float) -> float:
    """A share in [0, 1)."""
    share = real(name, value)
    if not 0 <= share < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {share!r}")
    return share


def check_label(
    who: str, classes: int | None, label: Tensor | None, *, everywhere: bool = False
) -> Tensor | None:
    """The classes (B,) of the samples, None in a network that has none; a ValueError or TypeError
    unless they are numbers from 0 to ``classes``, the last for no class. Their values are looked at
    on the host, or ``everywhere``.
    """
    if classes is None:
        if label is not None:
            raise ValueError(f"this {who} has no classes: drop label, or build {who}(classes=10)")
        return None
    which = f"label is the class of each sample, 0 to {classes - 1}, or {classes} for none"
    if label is None:
        raise ValueError(
            f"this {who} has {classes} classes: pass condition={{'label': 0}}; {which}"
        )
    if label.is_floating_point() or label.dtype == torch.bool or label.ndim != 1:
        raise TypeError(f"{which}: (B,) integers; got {label.dtype} of shape {tuple(label.shape)}")
    # Elsewhere a look would make the host wait for the device at every evaluation; it would break
    # the graph of a compiled network.
    near = label.device.type == "cpu" and not torch.compiler.is_compiling()
    if (everywhere or near) and len(label):
        least, most = (int(end) for end in label.aminmax())
        if least < 0 or most > classes:
            raise ValueError(f"{which}; got {least if least < 0 else most}")
    return label


class Labelled:
    """A network with ``classes`` that looks at all labels of a call before it is evaluated."""

    classes: int | None

    def check_condition(self, condition: Mapping[str, Tensor]) -> None:
        """A ValueError or TypeError unless the labels, where there are some, are classes."""
        label = condition.get("label")
        if self.classes is not None and label is not None:
            check_label(type(self).__name__, self.classes, label, everywhere=True)


def padded(x: Tensor, multiple: int) -> Tensor:
    """States (B, C, ...) whose sides are multiples of that: the last value of each is repeated."""
    sides = [-side % multiple for side in reversed(x.shape[2:])]
    more = [each for side in sides for each in (0, side)]
    return functional.pad(x, more, mode="replicate") if any(sides) else x


def zeroed(layer: nn.Linear | nn.Conv1d) -> nn.Linear | nn.Conv1d:
    """The layer, all its weights 0, so that what it adds is 0 before any training."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer
