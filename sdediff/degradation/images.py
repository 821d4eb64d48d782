"""Degradations of images (Bansal et al. 2022, arXiv 2208.09392): blur, growing masks, fewer
pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from sdediff.degradation.base import Levelled, own_condition
from sdediff.degradation.start import MixtureStart
from sdediff.drawing import drawn
from sdediff.protocols import Rows
from sdediff.solvers.given import Count, NotNegative, Positive, check_choice

__all__ = ["BLURS", "Blur", "Downsampling", "Masking", "images"]

BLURS: Final[dict[str, Callable[[float, Tensor], Tensor]]] = {
    "constant": lambda std, i: torch.full_like(i, std),
    "incremental": lambda std, i: std * i,
    "exponential": lambda std, i: torch.exp(std * (i - 1)),
    "shifted": lambda std, i: 0.35 + std * (i - 1),
}
"""How the standard deviation of kernel i = 1..N follows from ``std``: those of the published code,
``shifted`` being that of its CIFAR-10.
"""


def images(process: object, x: Tensor, least: int = 3, most: int = 9) -> None:
    """A ValueError unless x is (B, C, *space)."""
    if not least <= x.ndim <= most:
        shape = "(B, C, H, W)" if least == most else "(B, C, *space)"
        raise ValueError(f"{process!r} is for images {shape}, got shape {tuple(x.shape)}")


class Separable(Levelled):
    """A linear map of the places along each axis of an image (B, C, *space): a level is a matrix
    for each axis.
    """

    def matrices(self, n: int) -> Tensor:
        """The maps of an axis of n places at levels 0..N, float64 (N + 1, n, n) on the host."""
        raise NotImplementedError

    def level(self, x_0: Tensor, i: Tensor, rows: Rows) -> Tensor:
        images(self, x_0)
        x = x_0
        same = bool((i == i[:1]).all())
        for axis in range(2, x.ndim):
            maps = self.matrices(x.shape[axis])[i[:1] if same else i].to(x.dtype).to(x.device)
            lines = x.movedim(axis, -1)
            moved = lines.flatten(1, -2) @ maps.mT
            x = moved.reshape(lines.shape).movedim(-1, axis)
        return x.contiguous()


@dataclass(frozen=True)
class Blur(Separable):
    """Gaussian blur: level i has gone through the kernels 1..i, of ``size`` taps an axis and the
    standard deviations of ``schedule``, a name in `BLURS`, in pixels.

    ``padding``: what is beyond the edge, ``"circular"`` or ``"reflect"``. ``complete``: the last
    level is the mean of each channel, as published for generation. ``start``: the law from which
    `sample` starts without ``x_init``, which `fitted` finds.

    Published: MNIST at 32 x 32 ``Blur(20, 7.0, 11)``, CIFAR-10 ``Blur(50, 0.01, 11, "shifted",
    "reflect")``, CelebA ``Blur(200, 0.01, 15, "exponential", "reflect")``, and generation of CelebA
    and AFHQ at 128 x 128 ``Blur(300, 0.01, 27, "exponential", complete=True)``.
    """

    levels: Count = 20
    std: Positive = 7.0
    size: Count = 11
    schedule: str = "constant"
    padding: str = "circular"
    complete: bool = False
    start: MixtureStart | None = None

    def __post_init__(self) -> None:
        check_choice("Blur: schedule", self.schedule, BLURS)
        check_choice("Blur: padding", self.padding, ("circular", "reflect"))
        if self.size % 2 == 0:
            raise ValueError(f"Blur: size must be odd, the taps of a kernel; got {self.size}")
        if self.start is not None and not isinstance(self.start, MixtureStart):
            raise TypeError(
                "Blur: start must be a MixtureStart or None, as blur.fitted(data) has it; got "
                f"{self.start!r}"
            )

    def matrices(self, n: int) -> Tensor:
        stds = BLURS[self.schedule](self.std, torch.arange(1, self.levels + 1).double())
        maps = _blurs(n, tuple(stds.tolist()), self.size, self.padding)
        if self.complete:
            return torch.cat([maps[:-1], torch.full_like(maps[-1:], 1 / n)])
        return maps


@lru_cache(maxsize=16)
def _blurs(n: int, stds: tuple[float, ...], size: int, padding: str) -> Tensor:
    """Products of the kernels' matrices, (N + 1, n, n)."""
    taps = torch.arange(size) - size // 2
    place = torch.arange(n)[:, None] + taps
    if padding == "reflect":
        period = max(1, 2 * (n - 1))
        place = place.remainder(period)
        place = torch.minimum(place, period - place)
    place = place.remainder(n)
    found = [torch.eye(n, dtype=torch.float64)]
    for std in stds:
        kernel = (-0.5 * (taps.double() / std).square()).softmax(dim=0).expand(n, -1)
        one = torch.zeros(n, n, dtype=torch.float64).scatter_add(1, place, kernel)
        found.append(one @ found[-1])
    return torch.stack(found)


@dataclass(frozen=True)
class Downsampling(Separable):
    """Fewer pixels: at level i the mean over squares of 2^i x 2^i pixels, at the size it had.

    The published 2x steps, bilinear down and nearest up. At an edge squares may be smaller.
    """

    levels: Count = 3
    start: MixtureStart | None = None

    def matrices(self, n: int) -> Tensor:
        return _squares(n, self.levels)


@lru_cache(maxsize=16)
def _squares(n: int, levels: int) -> Tensor:
    place = torch.arange(n)
    shares = [place // 2 ** min(i, 62) for i in range(levels + 1)]
    together = torch.stack([(each[:, None] == each).double() for each in shares])
    return together / together.sum(dim=2, keepdim=True)


@dataclass(frozen=True)
class Masking(Levelled):
    """Masks that grow: at level i the image times the product over j = 1..i of 1 - exp(-r^2 / (2
    s_j^2)), r the distance from the centre and s_j = std + (j - 1) growth, in pixels.

    What is masked is 0, grey for images in [-1, 1]. The ``centre`` of each sample, pixels (row,
    column), is a condition (B, 2), which `draw` draws; with ``centred`` it is the middle.
    """

    levels: Count = 50
    std: Positive = 1.0
    growth: NotNegative = 0.1
    centred: bool = False

    @property
    def conditions(self) -> frozenset[str]:
        return frozenset() if self.centred else frozenset({"centre"})

    def draw(self, x_0: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        images(self, x_0, 4, 4)
        if self.centred:
            return {}
        size = torch.tensor(x_0.shape[2:])
        u = drawn(
            len(x_0), generator, lambda n, g: torch.rand(n, 2, generator=g, dtype=torch.float64)
        )
        return {"centre": (u * size).long().minimum(size - 1).to(x_0.device)}

    def level(self, x_0: Tensor, i: Tensor, rows: Rows) -> Tensor:
        images(self, x_0, 4, 4)
        size = torch.tensor(x_0.shape[2:])
        centre = (size // 2).expand(len(x_0), 2)
        if not self.centred:
            centre = own_condition(self, rows, "centre").cpu()
        if centre.shape != (len(x_0), 2) or not bool(((centre >= 0) & (centre < size)).all()):
            raise ValueError(
                f"centre must be pixels (B, 2) of images of {tuple(size.tolist())}, (row, column); "
                f"got shape {tuple(centre.shape)}, {centre.min()} to {centre.max()}"
            )
        down, across = (
            torch.arange(int(n)) - centre[:, k, None].long() + n - 1 for k, n in enumerate(size)
        )
        table = _masks(int(size[0]), int(size[1]), self.levels, self.std, self.growth)
        mask = table[i[:, None, None], down[:, :, None], across[:, None, :]]
        return x_0 * mask[:, None].to(x_0.dtype).to(x_0.device)


@lru_cache(maxsize=16)
def _masks(height: int, width: int, levels: int, std: float, growth: float) -> Tensor:
    """Masks by the distance from the centre, (N + 1, 2 height - 1, 2 width - 1)."""
    down, across = (torch.arange(1 - n, n).double() for n in (height, width))
    square = down[:, None].square() + across.square()
    sizes = std + growth * torch.arange(levels).double()
    holes = -torch.expm1(-square / (2 * sizes.square()[:, None, None]))
    return torch.cat([torch.ones_like(holes[:1]), holes.cumprod(dim=0)])
