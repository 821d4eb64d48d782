"""Guidance on real digits: whether they are what was asked for, how good and how varied.

    python benchmarks/guidance_digits.py --picture digits.png
    python benchmarks/guidance_digits.py --few

A class-conditional perceptron learns scikit-learn's 1,797 digits of 8 x 8 pixels. It is guided at
several scales by itself (classifier-free, at all noise levels and in an interval), by a classifier
that was trained on noisy digits, and by one that never saw noise (universal guidance, without and
with recurrence); the last three guide the model without a label. *share*: of 1,000 samples, 100 a
class, by 40 steps of DDIM, those which an independent classifier, a support vector machine, takes
for the class asked for. *Frechet*: distance to all digits, of pixels. *ratio*: the mean distance
between two samples of one class over that between two digits of it; below 1 variety is lost.

With --few: the distance of a sample from the end of the exact flow of classifier-free guidance
(RK45 at 1e-4), root mean square over pixels, by solver and by calls of the guided model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from guidance import FEW
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC
from torch import Tensor, nn

import sdediff as sd
from sdediff.guidance import Classifier, ClassifierFree, Loss, NoiseLevels
from sdediff.networks import MLP, initialised
from sdediff.solvers import Recurrence

VP = sd.VP()
NONE = 10
SCALES = {
    "no guidance": [1.0],
    "ClassifierFree": [1.5, 2.0, 3.0, 5.0, 8.0],
    "ClassifierFree, NoiseLevels(0.2, 1.5)": [1.5, 2.0, 3.0, 5.0, 8.0],
    "no label": [0.0],
    "Classifier, of noisy digits": [0.5, 1.0, 2.0, 4.0, 8.0],
    "Loss, of clean digits": [0.5, 1.0, 2.0, 4.0, 8.0],
    "Loss, Recurrence(DDIM(), 4)": [0.5, 1.0, 2.0, 4.0, 8.0],
}


class Digits(NamedTuple):
    x: Tensor
    """(N, 64), from -1 to 1."""
    label: Tensor

    def batch(self, step: int, count: int = 128) -> tuple[Tensor, Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(self.x), (count,), generator=generator)
        return self.x[rows], self.label[rows], generator


class Noisy(nn.Module):
    """Logits of noisy digits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(65, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 10)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t[:, None]], dim=1))


def clean() -> nn.Sequential:
    """Logits of clean digits."""
    return nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 10))


def trained(net: Any, digits: Digits, steps: int, *, noisy: bool) -> Any:
    """A classifier, by cross-entropy."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
    for step in range(steps):
        x, label, generator = digits.batch(step)
        t = torch.rand(len(x), generator=generator).double() * (VP.t_max - VP.t_min) + VP.t_min
        noise = torch.randn(x.shape, generator=generator)
        logits = net(VP.perturb(x, t, noise), t.float()) if noisy else net(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, label).backward()
        optimizer.step()
    return net.eval()


class Guided(NamedTuple):
    model: Callable[[float], Any]
    solver: Any = sd.DDIM()


def conditional(digits: Digits, steps: int) -> sd.ScoreModel:
    """A network that has learned the digits with and without their labels."""
    net = initialised(lambda: MLP(64, width=256, depth=3, classes=10), 0)
    model = sd.ScoreModel(net, VP, "v", null={"label": NONE})
    with tempfile.TemporaryDirectory() as folder:
        given: Any = {"out": Path(folder) / "run", "steps": steps, "drop": 0.15}
        return sd.fit(model, digits.x, condition={"label": digits.label}, **given)


def few(digits: Digits, steps: int, calls: list[int], count: int) -> list[dict[str, Any]]:
    """Print the errors of solvers under classifier-free guidance, and return them."""
    model = conditional(digits, steps)
    label = torch.arange(10).repeat(count // 10)
    given: Any = {"condition": {"label": label}, "seed": 0, "shape": (len(label), 64)}
    print(f"| scale | solver | {' | '.join(map(str, calls))} |\n|---:|---|{'---:|' * len(calls)}")
    rows: list[dict[str, Any]] = []
    for scale in (1.0, 2.0, 3.0, 5.0, 8.0):
        guided = ClassifierFree(model, scale, {"label": NONE})
        end = sd.sample(guided, solver=sd.RK45(rtol=1e-4, atol=1e-4), **given).x
        for name, solver in FEW.items():
            if solver == sd.Heun():  # two calls a step
                continue
            row: dict[str, Any] = {"scale": scale, "solver": name}
            for each in calls:
                x = sd.sample(guided, solver=solver, steps=each - 1, **given).x
                row[str(each)] = float((x - end).square().mean(dim=1).sqrt().median())
            shown = " | ".join(f"{row[str(each)]:.3f}" for each in calls)
            print(f"| {scale:g} | {name} | {shown} |", flush=True)
            rows.append(row)
    return rows


def methods(digits: Digits, steps: int) -> dict[str, Guided]:
    """What is measured, by name: a model for each scale."""
    model = conditional(digits, steps)
    noisy = trained(initialised(Noisy, 1), digits, steps, noisy=True)
    never = trained(initialised(clean, 2), digits, steps // 4, noisy=False)

    def alone(x: Tensor, t: Tensor) -> Tensor:
        return model.net(x, t, torch.full((len(x),), NONE))

    def log_prob(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return noisy(x, t).log_softmax(dim=1).gather(1, label[:, None])[:, 0]

    def loss(x: Tensor, label: Tensor) -> Tensor:
        return -never(x).log_softmax(dim=1).gather(1, label[:, None])[:, 0]

    free = sd.ScoreModel(alone, VP, "v", network=model.net, data_std=model.data_std)
    null = {"label": NONE}
    inside = NoiseLevels(0.2, 1.5)
    every = [
        Guided(lambda s: model),
        Guided(lambda s: ClassifierFree(model, s, null)),
        Guided(lambda s: ClassifierFree(model, s, null, interval=inside)),
        Guided(lambda s: ClassifierFree(model, s, null)),
        Guided(lambda s: Classifier(free, log_prob, s)),
        Guided(lambda s: Loss(free, loss, s)),
        Guided(lambda s: Loss(free, loss, s), Recurrence(sd.DDIM(), 4)),
    ]
    return dict(zip(SCALES, every, strict=True))


def spread(x: Tensor, label: Tensor) -> float:
    """The mean distance between two of one class."""
    each = [torch.pdist(x[label == digit]).mean() for digit in range(10)]
    return float(torch.stack(each).mean())


def measured(
    digits: Digits, judge: Any, each: dict[str, Guided], count: int
) -> tuple[list[dict[str, Any]], dict[tuple[str, float], Tensor]]:
    """A row for each method and scale, and samples, one of each class."""
    label = torch.arange(10).repeat(count // 10)
    rows: list[dict[str, Any]] = []
    shown = {}
    apart = spread(digits.x, digits.label)
    print("| guidance | scale | share | Frechet | ratio |\n|---|---|---|---|---|")
    for name, (guided, solver) in each.items():
        for scale in SCALES[name]:
            given: Any = {"solver": solver, "steps": 40, "condition": {"label": label}}
            x = sd.sample(guided(scale), (len(label), 64), seed=0, **given).x
            share = float((judge.predict(x.numpy()) == label.numpy()).mean())
            frechet = float(sd.metrics.frechet_distance(x, digits.x))
            ratio = spread(x, label) / apart
            print(f"| {name} | {scale:g} | {share:.3f} | {frechet:.2f} | {ratio:.2f} |", flush=True)
            rows.append(
                {"guidance": name, "scale": scale, "share": share, "frechet": frechet}
                | {"ratio": ratio}
            )
            shown[name, scale] = x[:20].clamp(-1, 1)
    return rows, shown


def picture(path: Path, rows: list[dict[str, Any]], shown: dict[tuple[str, float], Tensor]) -> None:
    """Curves over the scale, and below them samples of each method at a small and a large one."""
    from matplotlib import pyplot

    picked = [(name, s) for name, all_of_them in SCALES.items() for s in all_of_them[1::2]]
    picked = [("no guidance", 1.0), ("no label", 0.0), *picked]
    figure = pyplot.figure(figsize=(11, 4 + 0.95 * len(picked)), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[4, 0.95 * len(picked)])
    for axes, what in zip(upper.subplots(1, 3), ("share", "frechet", "ratio"), strict=True):
        for name in SCALES:
            own = [row for row in rows if row["guidance"] == name]
            x, y = [row["scale"] for row in own], [row[what] for row in own]
            axes.plot(x, y, "o" if len(own) == 1 else "o-", label=name, markersize=4)
        axes.set_xscale("symlog", linthresh=0.5)
        axes.set(title=what, xlabel="scale")
        if what == "frechet":
            axes.set_yscale("log")
    upper.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    for axes, (name, scale) in zip(lower.subplots(len(picked), 1), picked, strict=True):
        images = shown[name, scale].reshape(-1, 8, 8)
        strip = nn.functional.pad(images, (0, 1, 0, 1), value=-1.0)
        axes.imshow(strip.permute(1, 0, 2).reshape(9, -1), cmap="gray", vmin=-1, vmax=1)
        axes.set_title(f"{name}, scale {scale:g}", fontsize=8, loc="left")
        axes.set_axis_off()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Print the tables of docs/evidence/guidance.md; with --picture draw the first too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="little training and few samples")
    parser.add_argument("--json", type=Path, help="file for the rows")
    parser.add_argument("--picture", type=Path, help="file for curves and samples, .png")
    parser.add_argument("--few", action="store_true", help="errors with few evaluations")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    raw = load_digits()
    digits = Digits(torch.tensor(raw.data).float() / 8 - 1, torch.tensor(raw.target))
    steps = 40 if arguments.quick else 12_000
    if arguments.few:
        calls, count = ([4], 20) if arguments.quick else ([4, 6, 8, 10, 15, 20, 30, 60], 500)
        errors = few(digits, steps, calls, count)
        if arguments.json:
            arguments.json.write_text(json.dumps(errors, indent=2) + "\n")
        return
    support = partial(SVC, gamma="scale", C=10.0)
    right = cross_val_score(support(), digits.x.numpy(), raw.target, cv=5).mean()
    judge = support().fit(digits.x.numpy(), raw.target)
    half = torch.randperm(len(digits.x), generator=torch.Generator().manual_seed(0))[:1000]
    floor = float(sd.metrics.frechet_distance(digits.x[half], digits.x))
    print(
        f"of digits it never saw the judge knows {right:.3f}; Frechet of 1,000 digits {floor:.2f}"
    )
    each = methods(digits, steps)
    rows, shown = measured(digits, judge, each, 20 if arguments.quick else 1000)
    if arguments.json:
        found = {"judge": right, "floor": floor, "rows": rows}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.picture:
        picture(arguments.picture, rows, shown)


if __name__ == "__main__":
    main()
