"""Digits drawn along given edges: a model that attends to words, and a ControlNet on top of it.

    python examples/controlnet.py --out runs/controlnet          # some ten minutes on two cores
    python examples/controlnet.py --steps 20 --out runs/look     # a look

diffusers' UNet2DConditionModel learns scikit-learn's digits of 8 x 8 pixels given texts such as "a
seven". It is locked, and a copy of its encoder, diffusers' ControlNetModel, learns to lead it along
edges (Zhang et al. 2023, arXiv 2302.05543). Writes ``samples.png``. Its rows are: digits that were
held out; their edges; samples along these, by their text; the same without a text; at half the
scale; with edges at low noise alone, beyond log-SNR 0; and without edges, from the same noise.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import diffusers
import torch
from torch import Tensor
from torch.nn import functional

import sdediff as sd
from sdediff.data import load_data, split
from sdediff.guidance import ClassifierFree, Control
from sdediff.interop import Controlled
from sdediff.network_time import Timesteps
from sdediff.networks import Captioned, TextEncoder, Tokenizer, initialised
from sdediff.plots import image_grid, save_png

NAMES = "zero one two three four five six seven eight nine".split()
WORDS = Tokenizer.of(f"a {name}" for name in NAMES)
HOW = {"steps": 20, "stochasticity": 1.0, "seed": 0}  # noise forgives a small network


def edges(x: Tensor) -> Tensor:
    """1 where a Sobel filter of images, at twice their size, exceeds half of its largest value."""
    wide = functional.interpolate(x, scale_factor=2, mode="bilinear")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([across, across.T])[:, None]
    size = functional.conv2d(functional.pad(wide, (1, 1, 1, 1), value=-1.0), kernels)
    size = size.norm(dim=1, keepdim=True)
    return (size > size.amax(dim=(2, 3), keepdim=True) / 2).float()


def base() -> Captioned:
    """A network for digits, and an encoder of the text to which it attends."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return Captioned(unet, TextEncoder(WORDS.vocabulary, WORDS.length, width=32, depth=1))


def controlled(trained: Captioned) -> Captioned:
    """The same, locked, with a ControlNet whose image has twice the digit's size."""
    unet = trained.net
    control = diffusers.ControlNetModel.from_unet(
        unet, conditioning_channels=1, conditioning_embedding_out_channels=(16, 32)
    )
    encoder = trained.encoder.requires_grad_(False)
    return Captioned(Controlled(unet, {"edges": control}), encoder)


def model_of(net: Captioned) -> sd.ScoreModel:
    null = {"text": WORDS.null}  # what `drop` and guidance put in place of a text
    return sd.ScoreModel(net, sd.VP(), "noise", time=Timesteps(1000), null=null)


def main() -> None:
    """Train both, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000, help="training steps of the base")
    parser.add_argument("--out", type=Path, default=Path("runs/controlnet"), help="folder to write")
    arguments = parser.parse_args()
    steps, out, began = arguments.steps, arguments.out, time.process_time()
    digits, held_out = split(load_data("digits"), 60)

    text = WORDS(f"a {NAMES[k]}" for k in digits.labels)
    given = {"batch_size": 32, "lr": 2e-3, "ema": 0.995, "resume": True, "progress": True}
    model = model_of(initialised(base, 0))
    own = {"condition": {"text": text}, "drop": 0.1, "steps": steps, "out": out / "base"}
    sd.fit(model, digits.x, **own, **given)

    model = model_of(initialised(lambda: controlled(model.net), 1))
    condition = {"text": text, "edges": edges(digits.x)}
    more = {"steps": 2 * steps, "drop": 0.3}  # without a text the edges have to do
    sd.fit(model, digits.x, condition=condition, out=out / "control", **more, **given)

    real = torch.stack([held_out.x[held_out.labels == k][0] for k in range(10)])
    both = {"text": WORDS(f"a {name}" for name in NAMES), "edges": edges(real)}
    none = {**both, "text": WORDS([""] * 10)}
    rows = [functional.interpolate(real, scale_factor=2), 2 * both["edges"] - 1]
    for asked, condition in (
        (ClassifierFree(model, 2.0), both),
        (model, none),
        (ClassifierFree(Control(model, 0.5, "edges"), 2.0), both),
        (ClassifierFree(Control(model, 1.0, "edges", interval=(0.0, float("inf"))), 2.0), both),
        (ClassifierFree(Control(model, 0.0, "edges"), 2.0), both),
    ):
        x = sd.sample(asked, (10, 1, 8, 8), condition=condition, **HOW).x
        rows.append(functional.interpolate(x, scale_factor=2))
    save_png(image_grid(torch.cat(rows).clamp(-1, 1), columns=10), out / "samples.png")
    print(f"{time.process_time() - began:.0f} seconds of one core; {out}/samples.png")


if __name__ == "__main__":
    main()
