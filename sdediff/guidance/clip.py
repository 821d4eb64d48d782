"""Guidance by CLIP: how far images are from a text or another image."""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdediff._extras import require
from sdediff.solvers.given import integer, real

__all__ = ["clip_loss"]

_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_STD: Final = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's images, by channel."""
_PARTS: Final = ("vision_model", "visual_projection", "text_model", "text_projection", "config")


def clip_loss(
    clip: Any,
    *,
    text: str | None = None,
    image: Tensor | None = None,
    tokenizer: Any = None,
    cuts: int = 16,
    least: float = 0.5,
    low: float = -1.0,
    high: float = 1.0,
) -> nn.Module:
    """A function for `Loss`: 1 minus the cosine between CLIP's embeddings of an image and of a
    target, the mean over cut-outs, (B,).

    ``clip`` is a `transformers.CLIPModel`, or the name of one, "openai/clip-vit-base-patch32" say,
    which is then loaded with its tokenizer (extra ``clip``). The target is a ``text``, for which a
    model of your own needs its ``tokenizer``, or an ``image`` (C, H, W). Images have 1 or 3
    channels, and values from ``low`` to ``high``.

    Of each image ``cuts`` squares are cut out, whose sides are from ``least`` to 1 times its
    shorter side, and resized to what CLIP takes. Their sizes and places are drawn once for a
    sample, so that the loss is a function of the image, for any solver. All samples have the same
    ones, unless the call has a condition ``seed``, int64 (B,): those of a sample depend on its seed
    alone. The loss goes where its ``.to`` sends it.

    Radford et al. 2021 (arXiv 2103.00020); guidance by it: Bansal et al. 2023 (arXiv 2302.07121,
    section 4.1). Errors say if there is not one target, or what is missing.
    """
    if (text is None) == (image is None):
        raise ValueError("clip_loss: give one target, text='a red bicycle' say, or image=")
    if isinstance(clip, str):
        transformers = require("transformers", "clip")
        tokenizer = tokenizer or transformers.AutoTokenizer.from_pretrained(clip)
        clip = transformers.CLIPModel.from_pretrained(clip)
    lacking = [name for name in _PARTS if not hasattr(clip, name)]
    if lacking:
        raise TypeError(
            "clip_loss: clip must be a transformers.CLIPModel, or the name of one; got "
            f"{type(clip).__name__} without {', '.join(lacking)}"
        )
    if text is not None and not callable(tokenizer):
        raise TypeError(
            "clip_loss: a text needs the model's tokenizer, "
            "tokenizer=AutoTokenizer.from_pretrained(name); or give the name of the model alone"
        )
    loss = _ClipLoss(clip, (real("low", low), real("high", high)))
    loss.cuts = integer("clip_loss: cuts", cuts, 1)
    loss.least = real("clip_loss: least", least)
    if not 0 < loss.least <= 1:
        raise ValueError(f"clip_loss: least must lie in (0, 1], a share of a side; got {least!r}")
    with torch.no_grad():
        if image is None:
            found = loss.of_text(tokenizer(text, return_tensors="pt", truncation=True))
        else:
            found = loss.of_images(loss.resized(loss.checked(image[None])))
    loss.target = found.detach()
    return loss.eval()


class _ClipLoss(nn.Module):
    cuts: int
    least: float

    def __init__(self, clip: Any, ends: tuple[float, float]) -> None:
        super().__init__()
        if not ends[0] < ends[1]:
            raise ValueError(f"clip_loss: low and high must satisfy low < high, got {ends}")
        self.clip, self.ends = clip, ends
        self.size = int(clip.config.vision_config.image_size)
        like = next(clip.parameters())
        for name, numbers in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, like.new_tensor(numbers)[:, None, None])
        self.register_buffer("target", None)

    def forward(self, x: Tensor, seed: Tensor | None = None) -> Tensor:
        """The loss of images (B, C, H, W), (B,)."""
        x = self.checked(x)
        found = self.of_images(self.cut(x, seed))
        return 1 - (found @ cast(Tensor, self.target)[0]).reshape(len(x), self.cuts).mean(dim=1)

    def checked(self, x: Tensor) -> Tensor:
        """Images in three channels and from 0 to 1."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(
                f"clip_loss takes images (B, C, H, W) of 1 or 3 channels, got {tuple(x.shape)}"
            )
        low, high = self.ends
        images = (x - low) / (high - low)
        return images.to(cast(Tensor, self.mean).dtype).expand(-1, 3, -1, -1)

    def of_images(self, x: Tensor) -> Tensor:
        """Unit embeddings of images from 0 to 1 in CLIP's size, (n, d)."""
        pixels = (x - cast(Tensor, self.mean)) / cast(Tensor, self.std)
        seen = self.clip.vision_model(pixel_values=pixels).pooler_output
        return functional.normalize(self.clip.visual_projection(seen), dim=1)

    def of_text(self, tokens: Any) -> Tensor:
        """The unit embedding of a text, (1, d)."""
        place = cast(Tensor, self.mean).device
        seen = self.clip.text_model(**{name: each.to(place) for name, each in tokens.items()})
        return functional.normalize(self.clip.text_projection(seen.pooler_output), dim=1)

    def resized(self, x: Tensor, longest: float = 0.0) -> Tensor:
        """In CLIP's size; with ``longest``, with a shorter side of at most that."""
        size = [self.size, self.size]
        if longest:
            ratio = min(1.0, longest / min(x.shape[2:]))
            size = [round(side * ratio) for side in x.shape[2:]]
        return functional.interpolate(x, size, mode="bilinear", antialias=True)

    def cut(self, x: Tensor, seed: Tensor | None) -> Tensor:
        """The cut-outs of images, (B cuts, 3, size, size), those of one after those of another."""
        seeds = [0] if seed is None else seed.tolist()
        drawn = torch.stack([_uniform(each, self.cuts) for each in seeds]).to(x)
        side, across, down = drawn.expand(len(x), -1, -1).flatten(0, 1).unbind(dim=1)
        side = self.least + (1 - self.least) * side
        height, width = (side * min(x.shape[2:]) / each for each in x.shape[2:])
        zero = torch.zeros_like(side)
        rows = (
            torch.stack([width, zero, (1 - width) * (2 * across - 1)], dim=1),
            torch.stack([zero, height, (1 - height) * (2 * down - 1)], dim=1),
        )
        # the smallest cut-outs keep all pixels; without this large ones would skip some
        x = self.resized(x, self.size / self.least)
        whole = x.repeat_interleave(self.cuts, dim=0)
        shape = [len(whole), 3, self.size, self.size]
        grid = functional.affine_grid(torch.stack(rows, dim=1), shape, align_corners=False)
        return functional.grid_sample(whole, grid, padding_mode="border", align_corners=False)


def _uniform(seed: int, cuts: int) -> Tensor:
    """Three numbers from 0 to 1 for each cut-out, (cuts, 3)."""
    return torch.rand(cuts, 3, generator=torch.Generator().manual_seed(seed))
