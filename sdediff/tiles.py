"""Images as one picture: 8-bit pixels, tiles with lines between them, and text."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff._extras import require

__all__ = ["grey_levels", "tiled", "written"]

_SEPARATOR: Final = 127  # mid grey, neither background nor ink
_TEXT: Final = ("Image", "ImageDraw", "ImageFont")


def grey_levels(x: Tensor) -> NDArray[np.uint8]:
    """(N, C, H, W) in [-1, 1] as (N, H, W, C) in 0..255."""
    values = (
        x.detach().to("cpu", torch.float32).clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    )
    pixels: NDArray[np.uint8] = values.permute(0, 2, 3, 1).numpy()
    return pixels


def tiled(
    tiles: NDArray[np.uint8], columns: int, scale: int, pad: int, line: int = _SEPARATOR
) -> NDArray[np.uint8]:
    """(N, H, W, C) as one (rows (scale H + pad) + pad, columns (scale W + pad) + pad, C)
    picture.
    """
    large = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, channels = large.shape
    rows = -(-count // columns)
    shape = (rows * (height + pad) + pad, columns * (width + pad) + pad, channels)
    picture = np.full(shape, line, np.uint8)
    for i, tile in enumerate(large):
        top = pad + i // columns * (height + pad)
        left = pad + i % columns * (width + pad)
        picture[top : top + height, left : left + width] = tile
    return picture


def written(caption: str, width: int, channels: int) -> NDArray[np.uint8]:
    """Text in white on black, (height, width, channels), in as many lines as the width asks for."""
    image, draw, fonts = (require(f"PIL.{name}", "plots") for name in _TEXT)
    font, lines = fonts.load_default(12), [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 8:
            lines.append(word)
        else:
            lines[-1] = longer
    strip = image.new("L", (width, 6 + 16 * len(lines)))
    for i, line in enumerate(lines):
        draw.Draw(strip).text((4, 11 + 16 * i), line, fill=255, font=font, anchor="lm")
    return np.repeat(np.asarray(strip)[..., None], channels, axis=2)
