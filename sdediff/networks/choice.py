"""Networks by name and by the shape of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import torch
from torch import nn

from sdediff.networks.dit import DiT
from sdediff.networks.mlp import MLP
from sdediff.networks.unet import UNet
from sdediff.networks.unet1d import UNet1D
from sdediff.solvers.given import nearest

__all__ = ["NETWORKS", "initialised", "network_for"]

T = TypeVar("T")

NETWORKS: Final[dict[str, type[nn.Module]]] = {
    "UNet": UNet,
    "MLP": MLP,
    "UNet1D": UNet1D,
    "DiT": DiT,
}
"""Networks that a checkpoint can name."""


def initialised(make: Callable[[], T], seed: int) -> T:
    """What ``make`` builds, its initial weights a function of ``seed`` alone; torch's generator is
    left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def network_for(
    event: Sequence[int], classes: int | None = None, name: str | None = None
) -> nn.Module:
    """A network of moderate size for data of shape ``event``: (d,) a perceptron, (C, L) and (C, H,
    W) a U-Net. With ``classes`` it takes a condition ``label``.

    ``name`` chooses another one: ``"mlp"``, ``"unet1d"``, ``"unet"`` or ``"dit"``.
    """
    if name is not None and name not in _NAMED:
        raise ValueError(
            f"no network is called {name!r}{nearest(name, _NAMED)}; known: {', '.join(_NAMED)}"
        )
    fitting = [each for each, (shape, _) in _NAMED.items() if shape.count(",") == len(event) - 1]
    if not fitting:
        raise ValueError(
            f"there is no network for data of shape {tuple(event)}; bring your own: "
            "ScoreModel(net, sde)"
        )
    name = fitting[0] if name is None else name
    if name not in fitting:
        raise ValueError(
            f"{name} is for data of shape {_NAMED[name][0]}, and these are {tuple(event)}: take "
            f"{' or '.join(fitting)}"
        )
    return _NAMED[name][1](event, classes)


def _mlp(event: Sequence[int], classes: int | None) -> nn.Module:
    return MLP(event[0], classes=classes)


def _unet1d(event: Sequence[int], classes: int | None) -> nn.Module:
    widths = (32, 64) if event[1] < 32 else (32, 64, 128) if event[1] < 256 else (32, 64, 128, 128)
    return UNet1D(event[0], widths, layers=1 if event[1] < 256 else 2, classes=classes)


def _unet(event: Sequence[int], classes: int | None) -> nn.Module:
    side = min(event[1:])
    widths = (32, 64) if side < 16 else (32, 64, 128) if side < 48 else (32, 64, 128, 128)
    attention = (*(False,) * (len(widths) - 1), side >= 16)
    return UNet(event[0], widths, 1 if side < 48 else 2, attention, classes=classes)


def _dit(event: Sequence[int], classes: int | None) -> nn.Module:
    return DiT(event[0], patch=2 if min(event[1:]) < 48 else 4, classes=classes)


_NAMED: Final[dict[str, tuple[str, Callable[[Sequence[int], int | None], nn.Module]]]] = {
    "mlp": ("(d)", _mlp),
    "unet1d": ("(C, L)", _unet1d),
    "unet": ("(C, H, W)", _unet),
    "dit": ("(C, H, W)", _dit),
}
"""For each name the shape of an event, and the function that builds the network."""
