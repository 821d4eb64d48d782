"""A U-Net for images: diffusers' UNet2DModel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from sdediff._extras import require
from sdediff.networks.parts import Labelled, Sizes, check_label, padded
from sdediff.solvers.given import integer

__all__ = ["UNet"]


class UNet(Labelled, nn.Module):
    """diffusers' UNet2DModel for images (B, C, H, W) of any size and times (B,) in [0, 1].

    ``widths`` are the channels of each level, each level half as wide as the one before;
    ``attention`` says which levels attend. ``out_channels``: by default ``channels``; twice as many
    for a learned variance. With ``classes`` the condition ``label`` (B,) is the class of each
    sample, 0 to classes - 1, or ``classes`` for none. ``patch``: squares of patch x patch pixels
    become channels of one pixel before the first layer, and pixels again after the last, so that
    the layers work on patch^2 times fewer places: cheaper for larger images. Images whose sides are
    no multiple of patch 2^(levels - 1) are padded by repetition and cropped again. The embedding
    sees 1000 t.
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
        classes: int | None = None,
        patch: int = 1,
    ) -> None:
        super().__init__()
        given = Sizes(channels, widths, layers, dropout, groups, out_channels, classes)
        sizes = given.checked("UNet")
        channels, widths, layers, dropout, groups, out_channels, classes = sizes
        if not isinstance(attention, Sequence) or isinstance(attention, str):
            raise TypeError(
                "UNet: attention must be a sequence with one entry for each width, got "
                f"{attention!r}"
            )
        if len(widths) != len(attention):
            raise ValueError(
                f"UNet: attention needs one entry for each of the {len(widths)} widths, got "
                f"{len(attention)}"
            )
        self.patch = integer("UNet: patch", patch, 1)
        self.config: dict[str, Any] = {**sizes._asdict(), "attention": list(attention)}
        if self.patch > 1:  # a run that was trained before there were patches can go on
            self.config["patch"] = self.patch
        self.classes = classes
        self.multiple = self.patch * 2 ** (len(widths) - 1)
        self.unet = require("diffusers", "images").UNet2DModel(
            in_channels=self.patch**2 * channels,
            out_channels=self.patch**2 * (out_channels or channels),
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
            num_class_embeds=None if classes is None else classes + 1,
        )

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Prediction (B, out_channels, H, W)."""
        height, width = x.shape[-2:]
        seen = check_label("UNet", self.classes, label)
        places = functional.pixel_unshuffle(padded(x, self.multiple), self.patch)
        out = functional.pixel_shuffle(
            self.unet(places, 1000 * t, class_labels=seen).sample, self.patch
        )
        return out[..., :height, :width]
