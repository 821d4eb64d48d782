"""Digits by captions: whether a sample is what its text says, against the guidance scale.

    python benchmarks/text.py --picture text.png
    python benchmarks/text.py --data mnist --widths 32 64 64 --device cuda   # with a GPU

diffusers' UNet2DConditionModel attends to "a thin slanted seven", read by a small encoder that is
trained with it, by the noise loss; a tenth of the samples without their text. Captions are made
from the label and from what `sdediff.captions` measures. Samples are drawn for the captions of
digits that were held out, by 20 noisy steps of the default solver. *label*: the share that a
support vector machine takes for the digit asked for; *width*, *slant*: the share whose measured
stroke width and slant have the word asked for; *all*: all three; *ratio*: that over the share of
the held-out digits themselves, which have their own captions, so that the judge alone is wrong
there.
*Frechet*: distance to the digits of the training, of pixels. The last row has the held-out digits
under the captions of others, which is chance.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from sklearn.svm import SVC
from torch import Tensor

import sdediff as sd
from sdediff.captions import Captions
from sdediff.data import Dataset, load_data, split
from sdediff.guidance import ClassifierFree
from sdediff.network_time import Timesteps
from sdediff.networks import Captioned, TextEncoder, Tokenizer, initialised
from sdediff.plots import image_grid, save_png

SCALES = [0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0]
HOW: dict[str, Any] = {"steps": 20, "stochasticity": 1.0}
"""Noisy steps forgive errors of a small network."""


class Task(NamedTuple):
    train: Dataset
    held_out: Dataset
    captions: Captions
    tokenizer: Tokenizer

    @classmethod
    def of(cls, name: str) -> Task:
        train, held_out = split(load_data(name), 360)
        captions = Captions.of(train.x)
        words = [captions.text(k % 3, k % 3, k) for k in range(10)]
        return cls(train, held_out, captions, Tokenizer.of(words))

    def texts(self, data: Dataset) -> list[str]:
        return self.captions(data.x, data.labels)


def network(tokenizer: Tokenizer, widths: list[int], side: int, seed: int = 0) -> Captioned:
    """The U-Net and its encoder; the text enters wherever the images are halved."""
    deep = len(widths) - 1

    def made() -> Captioned:
        unet = diffusers.UNet2DConditionModel(
            sample_size=side,
            in_channels=1,
            out_channels=1,
            block_out_channels=tuple(widths),
            layers_per_block=1,
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * deep),
            up_block_types=(*("CrossAttnUpBlock2D",) * deep, "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        return Captioned(unet, TextEncoder(tokenizer.vocabulary, tokenizer.length, 32, 1))

    return initialised(made, seed)


def trained(task: Task, out: Path, arguments: argparse.Namespace) -> sd.ScoreModel:
    """The model of the captions, from its run folder where it is there already."""
    net = network(task.tokenizer, arguments.widths, task.train.x.shape[-1])
    null = {"text": task.tokenizer.null}
    model = sd.ScoreModel(net, sd.VP(), "noise", time=Timesteps(1000), null=null)
    sd.fit(
        model,
        task.train.x,
        condition={"text": task.tokenizer(task.texts(task.train))},
        out=out,
        steps=2 if arguments.quick else arguments.steps,
        batch_size=arguments.batch,
        lr=2e-3,
        ema=0.995,
        drop=0.1,
        resume=True,
        device=arguments.device,
        callback=lambda step, loss: (
            step % 200 or print(f"step {step}  loss {loss:.4f}", flush=True)
        ),
    )
    return model


def judged(task: Task, judge: SVC, x: Tensor, texts: list[str]) -> dict[str, float]:
    """The shares of images that are what the texts say."""
    width, lean, digit = task.captions.read(texts)
    own = task.captions.kinds(x)
    found = torch.from_numpy(judge.predict(x.flatten(1).numpy()))
    right = {"label": found == digit, "width": own[0] == width, "slant": own[1] == lean}
    right["all"] = right["label"] & right["width"] & right["slant"]
    return {name: float(each.double().mean()) for name, each in right.items()}


def measured(
    task: Task, model: sd.ScoreModel, count: int, device: str
) -> tuple[list[dict[str, Any]], dict[float, Tensor]]:
    """A row for each scale, two of held-out digits, and samples of each scale."""
    judge = SVC(gamma="scale", C=10.0).fit(task.train.x.flatten(1).numpy(), task.train.labels)
    real, texts = task.held_out.x[:count], task.texts(task.held_out)[:count]
    floor = judged(task, judge, real, texts)
    rows: list[dict[str, Any]] = []
    shown = {}
    print(
        "| scale | label | width | slant | all | ratio | Frechet |\n|---|---|---|---|---|---|---|"
    )

    def add(name: str, x: Tensor, asked: list[str]) -> None:
        row = judged(task, judge, x, asked)
        row["ratio"] = row["all"] / floor["all"]
        row["frechet"] = float(sd.metrics.frechet_distance(x, task.train.x))
        rows.append({"scale": name, **row})
        cells = (f"{value:.2f}" for value in row.values())
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    given: Any = {"seed": 0, "batch_size": 180, "device": device, **HOW}
    condition = {"text": task.tokenizer(texts)}
    for scale in SCALES:
        guided = ClassifierFree(model, scale)
        x = sd.sample(guided, tuple(real.shape), condition=condition, **given).x.cpu().clamp(-1, 1)
        add(f"{scale:g}", x, texts)
        shown[scale] = x
    add("held-out digits", real, texts)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    add("held-out digits, captions of others", real, [texts[i] for i in order])
    return rows, shown


def picture(path: Path, task: Task, model: sd.ScoreModel, device: str) -> None:
    """For each digit the nine captions, at scale 2: widths down, slants across in each column."""
    each = [(w, s, k) for w in range(3) for k in range(10) for s in range(3)]
    texts = [task.captions.text(*kinds) for kinds in each]
    condition = {"text": task.tokenizer(texts)}
    shape = (len(texts), *task.train.x.shape[1:])
    guided = ClassifierFree(model, 2.0)
    x = sd.sample(guided, shape, seed=0, condition=condition, device=device, **HOW).x
    save_png(image_grid(x.cpu(), columns=30), path)


def main() -> None:
    """Print the table of docs/evidence/text-and-control.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="little training and few samples")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--picture", type=Path, help="file for samples, .png")
    parser.add_argument("--out", type=Path, help="run folder, kept")
    parser.add_argument("--data", default="digits", help="digits or mnist")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32], help="of the U-Net")
    parser.add_argument("--steps", type=int, default=1100, help="training steps")
    parser.add_argument("--batch", type=int, default=32, help="samples a step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = Task.of(arguments.data)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model = trained(task, arguments.out or Path(folder) / "run", arguments)
    print(f"training took {time.process_time() - began:.0f} seconds of one core")
    rows, _ = measured(task, model, 20 if arguments.quick else 180, arguments.device)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    if arguments.picture:
        picture(arguments.picture, task, model, arguments.device)


if __name__ == "__main__":
    main()
