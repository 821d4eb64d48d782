"""One step of a straightened flow (rectified flow and InstaFlow): two moons and digits.

    python benchmarks/one_step.py --png one_step.png

A rectified flow is trained, straightened by reflow, and distilled into 1, 2 or 4 evaluations, each
network from the weights of the one before and in half its training steps, on pairs that the flow
makes of the noise of a seed.
*straightness* is the median of `objectives.straightness` of the flow (0: a line). On the moons
*energy* is the energy distance squared to fresh data and *ratio* that over the distance of the
Gaussian of the same mean and covariance; *floor* is the 95 % quantile between two samples of the
data, over the same. On the digits *recognised* and *Frechet* are the judge's of ``make demo``, and
*ratio* is the Frechet distance over that of the first flow in 20 steps.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.stats import energy_distance
from timing import arguments, report
from torch import Tensor

import sdediff as sd
from sdediff.cli.quality import Judge
from sdediff.data import load_data, split
from sdediff.networks import MLP, UNet
from sdediff.networks.choice import initialised
from sdediff.objectives import Coupled, FlowMatching, StepTimes, reflow, straightness
from sdediff.plots import image_grid, save_png

Measure = Callable[[Tensor], dict[str, object]]


def two_moons(count: int, seed: int) -> Tensor:
    """Points (count, 2) on two half circles with noise of standard deviation 0.06."""
    generator = torch.Generator().manual_seed(seed)
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    side = torch.where(torch.rand(count, 1, generator=generator) < 0.5, 1.0, -1.0)
    return side * upper + 0.06 * torch.randn(count, 2, generator=generator)


def energy(x: Tensor, y: Tensor, directions: int = 32) -> float:
    """The energy distance squared of points (n, 2) and (m, 2), without its bias, from sorted
    projections on evenly spaced directions: n log n operations.

    The length of a vector in the plane is pi / 2 times the mean length of its projections.
    """
    total = 0.0
    for k in range(directions):
        angle = math.pi * k / directions
        a, b = (
            each.double()[:, 0] * math.cos(angle) + each.double()[:, 1] * math.sin(angle)
            for each in (x, y)
        )
        total += float(energy_distance(a, b)) ** 2 - spread(a) / len(a) - spread(b) / len(b)
    return math.pi / 2 * total / directions


def spread(a: Tensor) -> float:
    """The mean of |a_i - a_j| over all pairs of different i and j."""
    n = len(a)
    ranks = 2 * torch.arange(n, dtype=torch.float64) - (n - 1)
    return float(2 * (ranks * a.sort().values).sum() / (n * (n - 1)))


class Work:
    """What the two tasks share: one size of a run, and how flows are trained and sampled."""

    def __init__(self, shape: tuple[int, ...], steps: int, pairs: int, batch_size: int) -> None:
        self.shape, self.steps, self.pairs, self.batch_size = shape, steps, pairs, batch_size

    def trained(self, model: sd.ScoreModel, data: Tensor, loss: sd.objectives.Objective, seed: int):
        """A copy of the model, trained further on the data or the pairs."""
        model = copy.deepcopy(model)
        with tempfile.TemporaryDirectory() as out:
            steps = self.steps if seed == 0 else max(1, self.steps // 2)
            options = {"steps": steps, "batch_size": self.batch_size, "lr": 2e-3}
            return sd.fit(model, data, out=out, loss=loss, ema=0.99, seed=seed, **options)

    def drawn(self, model: sd.ScoreModel, steps: int) -> Tensor:
        """Samples by Euler's method on the flow: so many evaluations."""
        out = sd.sample(
            model, self.shape, solver=sd.DDIM(), steps=steps, grid="uniform", last="noisy", seed=7
        )
        assert int(out.nfe.max()) == steps
        return out.x

    def paired(self, model: sd.ScoreModel, seed: int) -> Tensor:
        """Pairs to a tolerance of 1e-3 a unit of the data."""
        solver = sd.RK45(1e-3, 1e-3)
        return reflow(model, (self.pairs, *self.shape[1:]), solver=solver, seed=seed)

    def run(self, first: sd.ScoreModel, data: Tensor, measure: Measure) -> list[dict[str, object]]:
        """Rows: the flow and the flow after reflow in 20, 4, 2 and 1 steps, and both distilled."""
        rows: list[dict[str, object]] = []
        flow = self.trained(first, data, FlowMatching(stratified=True), 0)
        for number in (1, 2):
            bent = float(straightness(flow, (min(512, self.shape[0]), *self.shape[1:])).median())
            pairs = self.paired(flow, 10 * number)
            made = [(f"flow {number}", flow, steps) for steps in (20, 4, 2, 1)]
            for steps in (4, 2, 1):
                loss = Coupled(FlowMatching(times=StepTimes(steps), stratified=True))
                student = self.trained(flow, pairs, loss, number)
                made.append((f"flow {number}, distilled", student, steps))
            for name, model, steps in made:
                facts = {"model": name, "straightness": bent, "steps": steps}
                rows.append(facts | measure(self.drawn(model, steps)))
            if number == 1:
                flow = self.trained(flow, pairs, Coupled(FlowMatching(stratified=True)), 5)
        return rows


def moons(args) -> list[dict[str, object]]:
    work = Work((65_536, 2), args.moons, 20_000, 256)
    if args.quick:
        work = Work((64, 2), 3, 64, 64)
    data, fresh = two_moons(20_000, 1), two_moons(work.shape[0], 2)
    root = torch.linalg.cholesky(fresh.T.cov())
    normal = torch.randn(fresh.shape, generator=torch.Generator().manual_seed(3))
    gaussian = fresh.mean(dim=0) + normal @ root.T
    whole = energy(gaussian, fresh)
    count = 2 if args.quick else 20
    between = [energy(two_moons(work.shape[0], 100 + k), fresh) for k in range(count)]
    floor = float(torch.tensor(between).quantile(0.95)) / whole

    def measure(x: Tensor) -> dict[str, object]:
        found = energy(x, fresh)
        return {"energy": found, "ratio": found / whole, "floor": floor}

    net = initialised(lambda: MLP(2, 128, 3), 0)
    rows = work.run(sd.ScoreModel(net, sd.RectifiedFlow(), "flow"), data, measure)
    return [{"task": "moons"} | row for row in rows]


def digits(args) -> tuple[list[dict[str, object]], Tensor]:
    train, held_out = split(load_data("digits"), 360)
    judge = Judge.fit(train, held_out)
    work = Work((1024, *judge.event), args.digits, 4096, 128)
    widths = (16, 32)
    if args.quick:
        work, widths = Work((32, *judge.event), 2, 32, 32), (8, 16)
    drawn: list[Tensor] = []
    teacher: list[float] = []

    def measure(x: Tensor) -> dict[str, object]:
        drawn.append(x[:16])
        found = judge.score(x)
        teacher.append(found.frechet)
        ratio = found.frechet / teacher[0]
        return {"recognised": found.recognised, "Frechet": found.frechet, "ratio": ratio}

    net = initialised(lambda: UNet(widths=widths), 0)
    rows = work.run(sd.ScoreModel(net, sd.RectifiedFlow(), "flow"), train.x, measure)
    floor = judge.floor(min(work.shape[0], len(train.x)))
    real = {"recognised": judge.reference.recognised, "Frechet": floor}
    rows.append(
        {"model": "real", "straightness": 0.0, "steps": 0, **real, "ratio": floor / teacher[0]}
    )
    shown = torch.cat([drawn[k] for k in (0, 3, 6, 7, 10, 13)])
    return [{"task": "digits"} | row for row in rows], shown


def main() -> None:
    more = {
        "--tasks": {"nargs": "+", "default": ["moons", "digits"], "help": "moons, digits"},
        "--moons": {"type": int, "default": 6000, "help": "training steps, half for later flows"},
        "--digits": {"type": int, "default": 3000, "help": "training steps, half for later flows"},
        "--png": {
            "type": Path,
            "help": "picture of digits: the flow in 20 and 1 steps, distilled in 1, and the same "
            "after reflow",
        },
    }
    args = arguments(__doc__ or "", 1, more)
    tables = []
    if "moons" in args.tasks:
        tables.append(moons(args))
    if "digits" in args.tasks:
        rows, shown = digits(args)
        tables.append(rows)
        if args.png is not None:
            save_png(image_grid(shown, columns=16), args.png)
    path = args.json
    for rows in tables:
        args.json = path if len(tables) == 1 else None
        report("one_step", rows, args)
    if len(tables) > 1:
        args.json = path
        report(
            "one_step, both",
            [
                {k: row[k] for k in ("task", "model", "steps", "ratio")}
                for rows in tables
                for row in rows
            ],
            args,
        )


if __name__ == "__main__":
    main()
