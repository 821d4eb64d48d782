"""Snow on images, as ImageNet-C has it (Hendrycks and Dietterich 2019, arXiv 1903.12261)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sdediff.degradation.base import Levelled, own_condition
from sdediff.degradation.images import images
from sdediff.drawing import drawn
from sdediff.protocols import Rows
from sdediff.solvers.given import Count, integer

__all__ = ["Snow"]


class _Severity(NamedTuple):
    mean: float
    std: float
    zoom: float
    taps: int
    threshold: tuple[float, float]
    """At the first and the last level."""
    smear: tuple[float, float]
    brightness: tuple[float, float]


_SEVERITIES: Final = (
    _Severity(0.1, 0.3, 3.0, 5, (0.7, 0.3), (0.5, 5.0), (0.95, 0.7)),
    _Severity(0.55, 0.3, 2.5, 11, (1.15, 0.7), (0.05, 12.0), (0.95, 0.55)),
    _Severity(0.55, 0.3, 2.5, 11, (1.15, 0.7), (0.05, 16.0), (0.95, 0.4)),
    _Severity(0.55, 0.3, 2.5, 11, (1.15, 0.55), (0.05, 20.0), (0.95, 0.3)),
)
"""Those of the published code, which let ImageNet-C's constants grow with the level."""


@dataclass(frozen=True)
class Snow(Levelled):
    """Snow that falls thicker from level to level on images (B, C, H, W) in [-1, 1].

    A field of normals is magnified, cut off below a threshold that falls, smeared by a kernel that
    widens, and added with its own picture turned by half a turn; the image grows paler. With v =
    (x + 1) / 2, grey = max(v, 1.5 v' + 0.5), v' the luminance of v: clip(b v + (1 - b) grey + snow
    + turned snow, 0, 1), back in [-1, 1] (Bansal et al. 2022, arXiv 2208.09392, Appendix A).

    ``severity`` 1 to 4. Conditions, which `draw` draws: ``snow``, the field (B, H, W) before it is
    magnified, standard normal; ``upright``, whether it is smeared along the columns, bool (B,).
    """

    levels: Count = 50
    severity: int = 1

    conditions = frozenset({"snow", "upright"})

    def __post_init__(self) -> None:
        integer("Snow: severity", self.severity, 1, len(_SEVERITIES))

    def draw(self, x_0: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        images(self, x_0, 4, 4)
        size, dtype = x_0.shape[2:], x_0.dtype
        field = drawn(
            len(x_0), generator, lambda n, g: torch.randn((n, *size), generator=g, dtype=dtype)
        )
        upright = drawn(len(x_0), generator, lambda n, g: torch.rand(n, generator=g)) < 0.5
        return {"snow": field.to(x_0.device), "upright": upright.to(x_0.device)}

    def level(self, x_0: Tensor, i: Tensor, rows: Rows) -> Tensor:
        images(self, x_0, 4, 4)
        kind = _SEVERITIES[self.severity - 1]
        share = (i - 1).double() / max(1, self.levels - 1)
        threshold, smear, bright = (
            (low + (high - low) * share).to(x_0.dtype).to(x_0.device)[:, None, None, None]
            for low, high in (kind.threshold, kind.smear, kind.brightness)
        )
        field = own_condition(self, rows, "snow").to(x_0)
        if field.shape != (len(x_0), *x_0.shape[2:]):
            raise ValueError(f"snow must be a field (B, H, W), got shape {tuple(field.shape)}")
        fallen = _magnified(kind.mean + kind.std * field, kind.zoom)[:, None]
        fallen = torch.where(fallen < threshold, 0.0, fallen).clamp(0, 1)
        upright = own_condition(self, rows, "upright").bool()[:, None, None, None]
        down, across = _smeared(fallen.mT, smear, kind.taps).mT, _smeared(fallen, smear, kind.taps)
        fallen = torch.where(upright, down, across)
        v = (x_0 + 1) / 2
        pale = torch.maximum(v, 1.5 * _luminance(v) + 0.5)
        snowy = bright * v + (1 - bright) * pale + fallen + fallen.flip(2, 3)
        return 2 * snowy.clamp(0, 1) - 1


def _luminance(v: Tensor) -> Tensor:
    """(B, 1, H, W) of red, green and blue; the mean of other channels."""
    if v.shape[1] != 3:
        return v.mean(dim=1, keepdim=True)
    parts = v.new_tensor([0.299, 0.587, 0.114])
    return (v * parts[:, None, None]).sum(dim=1, keepdim=True)


def _magnified(field: Tensor, zoom: float) -> Tensor:
    """The middle of fields (B, H, W), made ``zoom`` times as large and cut to their size."""
    size = field.shape[1:]
    part = [math.ceil(n / zoom) for n in size]
    first = [(n - k) // 2 for n, k in zip(size, part, strict=True)]
    middle = field[:, first[0] : first[0] + part[0], first[1] : first[1] + part[1]]
    large = [max(n, round(k * zoom)) for n, k in zip(size, part, strict=True)]
    grown = functional.interpolate(
        middle[:, None], size=large, mode="bilinear", align_corners=True
    )[:, 0]
    cut = [(k - n) // 2 for n, k in zip(size, large, strict=True)]
    return grown[:, cut[0] : cut[0] + size[0], cut[1] : cut[1] + size[1]]


def _smeared(x: Tensor, std: Tensor, taps: int) -> Tensor:
    """x (B, 1, H, W) along its rows, by kernels of standard deviations std (B, 1, 1, 1); 0 beyond
    the edge.
    """
    half = taps // 2
    wide = functional.pad(x, (half, half))
    offsets = torch.arange(taps, dtype=x.dtype, device=x.device) - half
    kernel = (-0.5 * (offsets / std).square()).softmax(dim=-1)
    return (wide.unfold(3, taps, 1) * kernel[..., None, :]).sum(dim=-1)
