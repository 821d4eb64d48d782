"""Digits along given edges by a ControlNet: whether the samples have the edges of their control.

    python benchmarks/controlnet.py --picture controlnet.png

On the locked model of `text.py` (with --base its run folder) a ControlNet learns edges: 1 where
scikit-image's Sobel filter of a digit, at twice its size, exceeds half of its largest value.
Samples are drawn along
the edges of digits that were held out, by 20 steps of the default solver. *overlap*: the edges that
a sample and its control have in common over those that one of them has, the mean; *others*: the
same with the controls of other digits, which is chance; *ratio*: one over the other; *match*: the
share of samples whose own control is the nearest of all, by overlap; *label*, *all*: what they say
of the text in `text.py`. Below are the model without the ControlNet, and held-out digits in the
place of samples: those of the controls, and others of the same class.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import torch
from skimage.filters import sobel
from sklearn.svm import SVC
from text import HOW, Task, judged, network, trained
from torch import Tensor

import sdediff as sd
from sdediff.guidance import ClassifierFree, Control
from sdediff.interop import Controlled
from sdediff.network_time import Timesteps
from sdediff.networks import Captioned, initialised
from sdediff.plots import image_grid, save_png


def edges(x: Tensor) -> Tensor:
    """1 on the edges of images (B, 1, H, W), else 0, (B, 1, 2 H, 2 W)."""
    wide = torch.nn.functional.interpolate(x.double(), scale_factor=2, mode="bilinear")
    size = torch.stack([torch.from_numpy(sobel(each.numpy())) for each in wide[:, 0]])
    return (size > size.amax(dim=(1, 2), keepdim=True) / 2).float()[:, None]


def controlled(
    base: sd.ScoreModel, task: Task, out: Path, arguments: argparse.Namespace
) -> sd.ScoreModel:
    """The base, locked, with a ControlNet that has learned the edges of the training digits."""
    inner: Any = base.net

    def made() -> Captioned:
        control = diffusers.ControlNetModel.from_unet(
            inner.net, conditioning_channels=1, conditioning_embedding_out_channels=(16, 32)
        )
        encoder = inner.encoder.requires_grad_(False)
        return Captioned(Controlled(inner.net, {"edges": control}), encoder)

    model = sd.ScoreModel(
        initialised(made, 1), sd.VP(), "noise", time=Timesteps(1000), null=base.null
    )
    text = task.tokenizer(task.texts(task.train))
    return sd.fit(
        model,
        task.train.x,
        condition={"text": text, "edges": edges(task.train.x)},
        out=out,
        steps=2 if arguments.quick else arguments.control_steps,
        batch_size=arguments.batch,
        lr=2e-3,
        ema=0.99,
        drop=0.3,
        device=arguments.device,
        callback=lambda step, loss: (
            step % 100 or print(f"step {step}  loss {loss:.4f}", flush=True)
        ),
    )


def doubled(x: Tensor) -> Tensor:
    """Images at twice their size."""
    return torch.nn.functional.interpolate(x, scale_factor=2)


def overlap(one: Tensor, two: Tensor) -> Tensor:
    """The edges that images have in common over those that one of them has, (N, M)."""
    a, b = (each.flatten(1) for each in (one, two))
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1) - both).clamp(min=1)


def measured(
    task: Task, base: sd.ScoreModel, model: sd.ScoreModel, count: int
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """A row for each way to sample, and samples."""
    judge = SVC(gamma="scale", C=10.0).fit(task.train.x.flatten(1).numpy(), task.train.labels)
    real, texts = task.held_out.x[:count], task.texts(task.held_out)[:count]
    lines, text = edges(real), task.tokenizer(texts)
    rows: list[dict[str, Any]] = []
    print("| | overlap | others | ratio | match | label | all |\n|---|---|---|---|---|---|---|")

    def add(name: str, x: Tensor) -> None:
        found = overlap(edges(x), lines)
        own, other = found.diag(), found[~torch.eye(count, dtype=torch.bool)]
        right = judged(task, judge, x, texts)
        row = {"overlap": float(own.mean()), "others": float(other.mean())}
        row["ratio"] = row["overlap"] / row["others"]
        row["match"] = float((own >= found.amax(dim=1)).double().mean())
        row |= {"label": right["label"], "all": right["all"]}
        rows.append({"name": name, **row})
        cells = (f"{value:.2f}" for value in row.values())
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    condition = {"text": text, "edges": lines}
    alone = {"text": task.tokenizer([""] * count), "edges": lines}
    late = Control(model, 1.0, "edges", interval=(0.0, float("inf")))
    early = Control(model, 1.0, "edges", interval=(-float("inf"), 0.0))
    shown = [doubled(real), 2 * lines - 1]
    for name, asked, given in (
        ("edges", model, alone),
        ("edges, text at scale 2", ClassifierFree(model, 2.0), condition),
        ("edges at scale 0.5", ClassifierFree(Control(model, 0.5, "edges"), 2.0), condition),
        ("edges where log-SNR > 0", ClassifierFree(late, 2.0), condition),
        ("edges where log-SNR < 0", ClassifierFree(early, 2.0), condition),
        ("text alone", ClassifierFree(base, 2.0), {"text": text}),
    ):
        x = sd.sample(asked, tuple(real.shape), seed=0, condition=given, **HOW).x
        x = x.cpu().clamp(-1, 1)
        shown.append(doubled(x))
        add(name, x)
    add("held-out digits", real)
    labels = task.held_out.labels[:count]
    next_of = [
        next((j for j in range(count) if j > i and labels[j] == labels[i]), 0) for i in range(count)
    ]
    add("others of the same class", real[next_of])
    return rows, shown


def main() -> None:
    """Print the table of docs/evidence/text-and-control.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="little training and few samples")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--picture", type=Path, help="file for digits, edges and samples, .png")
    parser.add_argument("--base", type=Path, help="run folder of text.py --out; trained if absent")
    parser.add_argument("--data", default="digits", help="digits or mnist")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32], help="of the U-Net")
    parser.add_argument("--steps", type=int, default=1100, help="training steps of the base")
    parser.add_argument("--control-steps", type=int, default=3000, help="and of the ControlNet")
    parser.add_argument("--batch", type=int, default=32, help="samples a step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = Task.of(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        there = arguments.base is not None and arguments.base.exists()
        base = (
            sd.load(
                arguments.base,
                net=network(task.tokenizer, arguments.widths, task.train.x.shape[-1]),
            )
            if there
            else trained(task, Path(folder) / "base", arguments)
        )
        model = controlled(base, task, Path(folder) / "control", arguments)
    rows, shown = measured(task, base, model, 20 if arguments.quick else 180)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    if arguments.picture:
        save_png(
            image_grid(torch.cat([each[:20] for each in shown]), columns=20), arguments.picture
        )


if __name__ == "__main__":
    main()
