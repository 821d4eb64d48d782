"""A U-Net for signals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdediff.networks.parts import (
    Labelled,
    Sizes,
    TimeFeatures,
    check_label,
    class_embedding,
    padded,
    zeroed,
)

__all__ = ["UNet1D"]

_FREQUENCIES = 32


class UNet1D(Labelled, nn.Module):
    """A U-Net for signals (B, C, L) of any length and times (B,) in [0, 1].

    ``widths`` are the channels of each level, each level half as long as the one before;
    ``layers`` is the number of residual blocks of a level, in each of which time and class scale
    and shift the channels. A block sees 4 neighbours on either side, so that more levels see
    further. ``out_channels``: by default ``channels``; twice as many for a learned variance. With
    ``classes`` the condition ``label`` (B,) is the class of each sample, 0 to classes - 1, or
    ``classes`` for none. Lengths that are no multiple of 2^(levels - 1) are padded by repetition
    and cropped again. Before any training the output is 0.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (32, 64),
        layers: int = 1,
        dropout: float = 0.0,
        groups: int = 8,
        out_channels: int | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        given = Sizes(channels, widths, layers, dropout, groups, out_channels, classes)
        sizes = given.checked("UNet1D")
        channels, widths, layers, dropout, groups, out_channels, self.classes = sizes
        self.config: dict[str, Any] = sizes._asdict()
        first, last, embedded = widths[0], widths[-1], 4 * widths[0]
        self.multiple = 2 ** (len(widths) - 1)
        self.time = nn.Sequential(
            TimeFeatures(_FREQUENCIES),
            nn.Linear(2 * _FREQUENCIES, embedded),
            nn.SiLU(),
            nn.Linear(embedded, embedded),
        )
        if self.classes is not None:
            self.embed = class_embedding(self.classes, embedded)
        level = partial(_level, embedded, groups, dropout)
        before = [first, *widths[:-1]]  # what comes down to each level, and up to it
        below = [*widths[1:], last]
        again = layers - 1
        self.enter = nn.Conv1d(channels, first, 3, padding=1)
        self.down: Any = nn.ModuleList(
            level([enter, *[width] * again], width)
            for enter, width in zip(before, widths, strict=True)
        )
        self.shrink = nn.ModuleList(
            nn.Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1]
        )
        self.middle = _Residual(last, last, embedded, groups, dropout)
        self.up: Any = nn.ModuleList(
            level([enter + width, *[2 * width] * again], width)
            for enter, width in zip(below, widths, strict=True)
        )
        self.leave = nn.Sequential(
            nn.GroupNorm(groups, first),
            nn.SiLU(),
            zeroed(nn.Conv1d(first, out_channels or channels, 3, padding=1)),
        )

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Prediction (B, out_channels, L)."""
        seen = check_label("UNet1D", self.classes, label)
        c: Tensor = self.time(t.to(x.dtype))
        c = functional.silu(c if seen is None else c + self.embed(seen))
        h: Tensor = self.enter(padded(x, self.multiple))
        kept: list[Tensor] = []
        for i, blocks in enumerate(self.down):
            h = self.shrink[i - 1](h) if i else h
            for block in blocks:
                h = block(h, c)
                kept.append(h)
        h = self.middle(h, c)
        for i in reversed(range(len(self.up))):
            for block in self.up[i]:
                h = block(torch.cat([h, kept.pop()], dim=1), c)
            h = functional.interpolate(h, scale_factor=2.0) if i else h
        out: Tensor = self.leave(h)
        return out[..., : x.shape[-1]]


def _level(
    embedded: int, groups: int, dropout: float, inputs: Sequence[int], width: int
) -> nn.ModuleList:
    return nn.ModuleList(_Residual(enter, width, embedded, groups, dropout) for enter in inputs)


class _Residual(nn.Module):
    """h + convolutions of h, between which the embedded time and class scale and shift."""

    def __init__(self, enter: int, leave: int, embedded: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(groups, enter), nn.SiLU(), nn.Conv1d(enter, leave, 5, padding=2)
        )
        self.modulate = nn.Linear(embedded, 2 * leave)
        self.norm = nn.GroupNorm(groups, leave, affine=False)
        self.second = nn.Sequential(
            nn.SiLU(), nn.Dropout(dropout), zeroed(nn.Conv1d(leave, leave, 5, padding=2))
        )
        self.skip = nn.Identity() if enter == leave else nn.Conv1d(enter, leave, 1)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.modulate(c)[..., None].chunk(2, dim=1)
        out: Tensor = self.skip(h) + self.second((1 + scale) * self.norm(self.first(h)) + shift)
        return out
