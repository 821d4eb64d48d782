"""A transformer for images: DiT (Peebles and Xie 2023, arXiv 2212.09748)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdediff._extras import require
from sdediff.networks.parts import (
    Labelled,
    check_count,
    check_dropout,
    check_label,
    class_embedding,
    padded,
    zeroed,
)
from sdediff.solvers.given import integer

__all__ = ["DiT"]

_SINES = 256
_POSITIONS = 16  # the positions of an image's patches run from 0 to this, whatever its size


class DiT(Labelled, nn.Module):
    """A transformer over the patches of images (B, C, H, W) of any size, and times (B,) in [0, 1]
    (Peebles and Xie 2023, arXiv 2212.09748, with adaLN-Zero).

    A patch has ``patch`` x ``patch`` pixels. Time and class, embedded and added, give each block
    its scales, shifts and gates; the gates are 0 at first, so that every block begins as the
    identity, and so is the output. With ``classes`` the condition ``label`` (B,) is the class of
    each sample, 0 to classes - 1, or ``classes`` for none. With ``tokens`` the condition ``tokens``
    (B, n, tokens) is a set of n vectors a sample, such as an embedded text: they join the patches
    as further elements of the sequence (section 3.2, in-context conditioning), their order being
    left to what made them. ``out_channels``: by default ``channels``; twice as many for a learned
    variance. Images whose sides are no multiple of ``patch`` are padded by repetition and cropped
    again. The embedding sees 1000 t.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        patch: int = 2,
        dropout: float = 0.0,
        out_channels: int | None = None,
        classes: int | None = None,
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        channels, width, depth, heads, patch = (
            integer(f"DiT: {name}", value, 1)
            for name, value in (
                ("channels", channels),
                ("width", width),
                ("depth", depth),
                ("heads", heads),
                ("patch", patch),
            )
        )
        if width % heads or width % 4:
            raise ValueError(
                f"DiT: width must be a multiple of 4 and of heads = {heads}, got {width}"
            )
        dropout = check_dropout("DiT: dropout", dropout)
        out_channels = check_count("DiT: out_channels", out_channels)
        self.classes = check_count("DiT: classes", classes)
        self.tokens = check_count("DiT: tokens", tokens)
        self.config: dict[str, Any] = {
            "channels": channels,
            "width": width,
            "depth": depth,
            "heads": heads,
            "patch": patch,
            "dropout": dropout,
            "out_channels": out_channels,
            "classes": self.classes,
            "tokens": self.tokens,
        }
        self.patch = patch
        parts = require("diffusers.models.embeddings", "images")
        side = _POSITIONS * patch
        self.patches = parts.PatchEmbed(side, side, patch, channels, width)
        self.sines = parts.Timesteps(_SINES, flip_sin_to_cos=True, downscale_freq_shift=0.0)
        self.time = parts.TimestepEmbedding(_SINES, width)
        if self.classes is not None:
            self.embed = class_embedding(self.classes, width)
        if self.tokens is not None:
            self.join = nn.Linear(self.tokens, width)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulate = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 2 * width)))
        self.leave = zeroed(nn.Linear(width, patch * patch * (out_channels or channels)))

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, tokens: Tensor | None = None
    ) -> Tensor:
        """Prediction (B, out_channels, H, W)."""
        seen = check_label("DiT", self.classes, label)
        c: Tensor = self.time(self.sines(1000 * t).to(x.dtype))
        c = c if seen is None else c + self.embed(seen)
        wide = padded(x, self.patch)
        h: Tensor = self.patches(wide)
        count = h.shape[1]
        beside = self._joined(tokens)
        h = h if beside is None else torch.cat([h, beside], dim=1)
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.modulate(c)[:, None].chunk(2, dim=-1)
        out: Tensor = self.leave((1 + scale) * self.norm(h[:, :count]) + shift)
        rows, columns = (side // self.patch for side in wide.shape[-2:])
        out = out.unflatten(1, (rows, columns)).unflatten(3, (self.patch, self.patch, -1))
        # (B, rows, columns, patch, patch, C) to (B, C, rows patch, columns patch)
        out = out.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return out[..., : x.shape[-2], : x.shape[-1]]

    def _joined(self, tokens: Tensor | None) -> Tensor | None:
        """The tokens in the width of the patches; a ValueError unless they are as declared."""
        if self.tokens is None:
            if tokens is not None:
                raise ValueError("this DiT takes no tokens: drop them, or build DiT(tokens=size)")
            return None
        if tokens is None or tokens.ndim != 3 or tokens.shape[-1] != self.tokens:
            got = "none" if tokens is None else f"shape {tuple(tokens.shape)}"
            raise ValueError(f"this DiT takes tokens (B, n, {self.tokens}), got {got}")
        joined: Tensor = self.join(tokens)
        return joined


class _Block(nn.Module):
    """Attention and a perceptron, each scaled, shifted and gated by time and class."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        attention = require("diffusers.models.attention_processor", "images").Attention
        feed = require("diffusers.models.attention", "images").FeedForward
        self.attend = attention(width, heads=heads, dim_head=width // heads, bias=True)
        self.feed = feed(width, activation_fn="gelu-approximate", dropout=dropout)
        self.modulate = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 6 * width)))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        first, second = self.modulate(c)[:, None].unflatten(-1, (2, 3, -1)).unbind(-3)
        for part, (shift, scale, gate) in (
            (self.attend, first.unbind(-2)),
            (self.feed, second.unbind(-2)),
        ):
            h = h + gate * part((1 + scale) * self.norm(h) + shift)
        return h
