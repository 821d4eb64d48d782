"""Networks that ship: a U-Net for images (diffusers' UNet2DModel) and a multilayer perceptron for
points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdediff._extras import require
from sdediff.solvers.given import integer, real

__all__ = ["MLP", "NETWORKS", "UNet", "initialised", "network_for"]

T = TypeVar("T")


class UNet(nn.Module):
    """diffusers' UNet2DModel for images (B, C, H, W) of any size and times (B,) in [0, 1].

    ``widths`` are the channels of each level, each level half as wide as the one before;
    ``attention`` says which levels attend. ``out_channels``: by default ``channels``; twice as many
    for a learned variance.
    Images whose sides are no multiple of 2^(levels - 1) are padded by repetition and cropped again.
    The embedding sees 1000 t.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (32, 64),
        layers: int = 1,
        attention: Sequence[bool] = (False, False),
        dropout: float = 0.0,
        groups: int = 8,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        channels, layers, groups = (
            integer(f"UNet: {name}", value, 1)
            for name, value in (("channels", channels), ("layers", layers), ("groups", groups))
        )
        for name, value in (("widths", widths), ("attention", attention)):
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise TypeError(
                    f"UNet: {name} must be a sequence with one entry for each resolution, got "
                    f"{value!r}"
                )
        widths = [integer("UNet: widths", width, 1) for width in widths]
        dropout = real("UNet: dropout", dropout)
        if not 0 <= dropout < 1:
            raise ValueError(f"UNet: dropout must lie in [0, 1), got {dropout!r}")
        out_channels = (
            None if out_channels is None else integer("UNet: out_channels", out_channels, 1)
        )
        if len(widths) != len(attention):
            raise ValueError(
                f"UNet: attention needs one entry for each of the {len(widths)} widths, got "
                f"{len(attention)}"
            )
        self.config: dict[str, Any] = {
            "channels": channels,
            "widths": widths,
            "layers": layers,
            "attention": list(attention),
            "dropout": dropout,
            "groups": groups,
            "out_channels": out_channels,
        }
        self.multiple = 2 ** (len(widths) - 1)
        self.unet = require("diffusers", "images").UNet2DModel(
            in_channels=channels,
            out_channels=out_channels or channels,
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple(
                "AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)
            ),
            add_attention=any(attention),
            attention_head_dim=None,
            norm_num_groups=groups,
            dropout=dropout,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Prediction (B, out_channels, H, W)."""
        height, width = x.shape[-2:]
        right, below = -width % self.multiple, -height % self.multiple
        padded = functional.pad(x, (0, right, 0, below), mode="replicate") if right or below else x
        out: Tensor = self.unet(padded, 1000 * t).sample
        return out[..., :height, :width]


class MLP(nn.Module):
    """Residual perceptron for points (B, d) and times (B,) in [0, 1], the time as Fourier
    features.
    """

    def __init__(
        self, dimension: int = 2, width: int = 128, depth: int = 4, frequencies: int = 16
    ) -> None:
        super().__init__()
        dimension = integer("MLP: dimension", dimension, 1)
        width = integer("MLP: width", width, 1)
        depth = integer("MLP: depth", depth)
        frequencies = integer("MLP: frequencies", frequencies, 1)
        self.config: dict[str, Any] = {
            "dimension": dimension,
            "width": width,
            "depth": depth,
            "frequencies": frequencies,
        }
        self.rates: Tensor
        self.register_buffer(
            "rates", math.pi * torch.logspace(-1, 2, frequencies), persistent=False
        )
        self.enter = nn.Linear(dimension + 2 * frequencies, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.SiLU(), nn.Linear(width, dimension))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None].to(x.dtype) * self.rates
        h: Tensor = self.enter(torch.cat([x, phase.sin(), phase.cos()], dim=1))
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.leave(h)
        return out


NETWORKS: Final[dict[str, type[nn.Module]]] = {"UNet": UNet, "MLP": MLP}
"""Networks that a checkpoint can name."""


def initialised(make: Callable[[], T], seed: int) -> T:
    """What ``make`` builds, its initial weights a function of ``seed`` alone; torch's generator is
    left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def network_for(event: Sequence[int]) -> nn.Module:
    """A network of moderate size for data of shape ``event``: (C, H, W) a U-Net, (d,) a
    perceptron.
    """
    if len(event) == 1:
        return MLP(event[0])
    if len(event) == 3:
        side = min(event[1:])
        if side < 16:
            return UNet(event[0])
        if side < 48:
            return UNet(event[0], widths=(32, 64, 128), attention=(False, False, True))
        return UNet(
            event[0], widths=(32, 64, 128, 128), layers=2, attention=(False, False, False, True)
        )
    raise ValueError(
        f"there is no network for data of shape {tuple(event)}; bring your own: ScoreModel(net, "
        "sde)"
    )
