"""Captions of images of digits, from what is measured on them: "a thin slanted seven".

Ink v = (x + 1) / 2 of an image x (B, C, H, W) in [-1, 1], summed over its channels:

    width = 2 sum v / TV(v)                TV(v) = sum |grad v|, the length of the outline
    slant = -sum v (i - i') (j - j') / sum v (i - i')^2

(i, j) are row and column, (i', j') their mean. A stroke of length l and width w has the area l w
and an outline of 2 l and its ends, so that its width is measured as w / (1 + w / l); a ring has no
ends. Strokes thinner than about two pixels are blurred by the grid, and measured as up to twice as
wide. Slant is the tangent of the angle between
the vertical and the line by which the ink leans, positive to the right, as in italics: the shear
that deskewing takes away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sdediff.calls import check_states

__all__ = ["Captions", "slant", "stroke_width"]

_DIGITS: Final = "zero one two three four five six seven eight nine".split()
_WIDTHS: Final = ("thin", "medium", "thick")
_SLANTS: Final = ("backward", "upright", "slanted")


def stroke_width(x: Tensor) -> Tensor:
    """The mean width of the strokes of images (B, C, H, W) in [-1, 1], in pixels, (B,); NaN without
    ink.
    """
    v = torch.nn.functional.pad(_ink(x), (1, 1, 1, 1))
    down = v.diff(dim=1).unfold(2, 2, 1).mean(dim=-1)  # at the corners of the pixels
    across = v.diff(dim=2).unfold(1, 2, 1).mean(dim=-1)
    outline = (down**2 + across**2).sqrt().sum(dim=(1, 2))
    return 2 * v.sum(dim=(1, 2)) / outline


def slant(x: Tensor) -> Tensor:
    """The tangent of the angle by which the ink of images (B, C, H, W) in [-1, 1] leans to the
    right, (B,); NaN without ink, and of ink in one row alone.
    """
    v = _ink(x)
    v = v / v.sum(dim=(1, 2), keepdim=True)
    i, j = torch.meshgrid(*(torch.arange(n, dtype=v.dtype) for n in v.shape[1:]), indexing="ij")
    i, j = i.to(v.device), j.to(v.device)
    rows = i - (v * i).sum(dim=(1, 2), keepdim=True)
    columns = j - (v * j).sum(dim=(1, 2), keepdim=True)
    return -(v * rows * columns).sum(dim=(1, 2)) / (v * rows**2).sum(dim=(1, 2))


def _ink(x: Tensor) -> Tensor:
    """The ink (B, H, W) in float64, none below the background."""
    if check_states("x", x).ndim != 4:
        raise ValueError(f"x must be images (B, C, H, W), got shape {tuple(x.shape)}")
    return ((x.double() + 1) / 2).clamp(min=0).sum(dim=1)


@dataclass(frozen=True)
class Captions:
    """Captions of digits: "a thin slanted seven".

        captions = Captions.of(data.x)
        texts = captions(data.x, data.labels)

    The width is thin, medium or thick, and the slant backward, upright or slanted.

    ``widths``: the two widths of a stroke, in pixels, between the three words (`stroke_width`).
    ``slants``: the two tangents between the three words (`slant`).
    """

    widths: tuple[float, float]
    slants: tuple[float, float]

    @classmethod
    def of(cls, x: Tensor) -> Captions:
        """Those by which each word has a third of the images (N, C, H, W)."""
        thirds = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
        found = (torch.quantile(measure(x), thirds).tolist() for measure in (stroke_width, slant))
        (a, b), (c, d) = found
        return cls((a, b), (c, d))

    def kinds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers of the words for width and slant, 0 to 2, (B,) each."""
        ends = (torch.tensor(each, dtype=torch.float64) for each in (self.widths, self.slants))
        found = (stroke_width(x).cpu(), slant(x).cpu())
        width, lean = (torch.bucketize(v, end) for v, end in zip(found, ends, strict=True))
        return width, lean

    def __call__(self, x: Tensor, labels: Tensor) -> list[str]:
        """The captions of images (B, C, H, W) in [-1, 1] of the digits ``labels`` (B,), 0 to 9."""
        kinds = (*self.kinds(x), labels)
        return [self.text(*map(int, each)) for each in zip(*kinds, strict=True)]

    @staticmethod
    def text(width: int, lean: int, digit: int) -> str:
        """The caption of the words with these numbers."""
        return f"a {_WIDTHS[width]} {_SLANTS[lean]} {_DIGITS[digit]}"

    @staticmethod
    def read(texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """The numbers of the words of captions: width, slant and digit, (B,) each."""
        parts = [text.split()[1:] for text in texts]
        known = (_WIDTHS, _SLANTS, _DIGITS)
        columns = [
            torch.tensor([words.index(part[k]) for part in parts]) for k, words in enumerate(known)
        ]
        return columns[0], columns[1], columns[2]
