"""Restored pictures: against a known posterior, and digits by a small network.

    python benchmarks/restoration.py

Pictures of a law of rank 16, the principal components of MNIST: how far the mean is off in spreads
of the prior, and pixel variances (relative root mean square), for mask, blur and 4x
super-resolution; "ratio" is that of the variances over the same of as many exact draws. Then a
network trained on 8x8 digits restores held-out ones: peak signal-to-noise ratio, share in which
the class is recognised; "ratio" is the mean squared error over that of MMPS
with one iteration.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timing import arguments, report
from torch import Tensor

import sdediff as sd
from sdediff import posterior
from sdediff.cli.quality import Judge
from sdediff.data import load_data, split
from sdediff.networks import UNet
from sdediff.plots import image_grid, save_png

RANK = 16
Row = dict[str, object]


def measurements(side: int, factor: int, blur: float, noise_std: float) -> dict[str, Any]:
    """A hole in the middle, a Gaussian blur and means over blocks."""
    hole = torch.ones(side, side, dtype=torch.bool)
    hole[side // 4 : -side // 4, side // 4 : -side // 4] = False
    row = torch.exp(-0.5 * (torch.arange(-3, 4) / blur).square())
    kernel = torch.outer(row, row) / row.sum().square()
    return {
        "mask": posterior.Mask(hole, noise_std=noise_std),
        "blur": posterior.Blur(kernel, noise_std=noise_std),
        f"{factor}x": posterior.Downsample(factor, noise_std=noise_std),
    }


def observe(seen: Any, x: Tensor) -> Tensor:
    """An outcome with noise."""
    clean: Tensor = seen.forward(x)
    generator = torch.Generator().manual_seed(1)
    return clean + seen.noise_std * torch.randn(clean.shape, generator=generator)


def known(count: int, steps: int, noise_std: float = 0.5) -> Iterator[Row]:
    """Rows of the law whose posterior is known."""
    data = load_data("mnist").x.flatten(1).double()
    mean = data.mean(dim=0)
    _, sizes, basis = torch.linalg.svd(data - mean, full_matrices=False)
    basis = basis[:RANK].T
    law = sd.exact.LowRank(mean.reshape(1, 28, 28), basis, sizes[:RANK] / len(data) ** 0.5)
    model, spread = law.model(sd.VP()), float(law.data_moments()[1].trace()) ** 0.5
    for name, seen in measurements(28, 4, 1.5, noise_std).items():
        found = list(restored(law, model, seen, count, steps))
        floor = found[0][2]
        for method, off, wide, made in found:
            yield line(
                f"rank {RANK}, {name}", method, off / spread, wide, "-", "-", wide / floor, made
            )


def restored(
    law: Any, model: Any, seen: Any, count: int, steps: int
) -> Iterator[tuple[str, float, float, sd.Solution | None]]:
    """Each method, how far its mean and its pixel variances are off, and the solve."""
    y = observe(seen, law.sample(1, seed=3).float())
    H = seen.forward(torch.eye(784).double().reshape(-1, 1, 28, 28)).flatten(1).T
    truth = law.posterior(H, y.flatten(), seen.noise_std)
    center, cov = truth.data_moments()
    variance = cov.diagonal()
    inside = variance > 1e-6 * variance.max()

    def errors(mean: Tensor, wide: Tensor) -> tuple[float, float]:
        off = (wide.double().flatten() / variance - 1)[inside]
        distance = (mean.double().flatten() - center).norm()
        return float(distance), float(off.square().mean()) ** 0.5

    draws = truth.sample(count, seed=0)
    yield "exact draws", *errors(draws.mean(dim=0), draws.var(dim=0)), None
    matched = posterior.MMPS(model, seen, y, iterations=RANK + 1)
    solution = sd.sample(matched, (count, 1, 28, 28), steps=steps, seed=0)
    yield "MMPS", *errors(solution.x.mean(dim=0), solution.x.var(dim=0)), solution
    # What the outcome says of the 16 coefficients: a twist takes a backward pass for each number.
    U = torch.linalg.svd(H @ law.basis, full_matrices=False).U
    few = posterior.Linear(lambda x: x.flatten(1) @ (U.T @ H).T.to(x), noise_std=seen.noise_std)
    found = posterior.sample_posterior(
        model, few, y.flatten(1) @ U.to(y), (1, 1, 28, 28), steps=5 * steps, seed=0,
        particles=posterior.Particles(count),
    )  # fmt: skip
    yield "Particles", *errors(found.mean, found.variance), found.solution


def line(problem: str, method: str, *values: object) -> Row:
    """A row of the table; the last of the values is a solution or None."""
    *numbers, made = values
    names = ("mean off", "variances off", "PSNR", "recognised", "ratio")
    row: Row = {"problem": problem, "method": method, **dict(zip(names, numbers, strict=True))}
    known: Any = made
    backward = None if known is None or known.backward is None else int(known.backward.max())
    return row | {
        "NFE": "-" if known is None else int(known.nfe.max()),
        "backward": "-" if backward is None else backward,
    }


def methods(model: Any, seen: Any, y: Tensor, steps: int) -> dict[str, Callable[[], sd.Solution]]:
    """Restorations of each outcome by the methods of `sdediff restore`."""
    shape = (len(y), 1, 8, 8)

    def run(given: Any, solver: Any = None) -> Callable[[], sd.Solution]:
        return lambda: sd.sample(given, shape, solver=solver, steps=steps, seed=0)

    return {
        "MMPS(iterations=1)": run(posterior.MMPS(model, seen, y, iterations=1)),
        "MMPS(iterations=5)": run(posterior.MMPS(model, seen, y, iterations=5)),
        "PiGDM": run(posterior.PiGDM(model, seen, y)),
        "PublishedDPS": run(model, posterior.PublishedDPS(seen, y)),
        "DiffPIR": run(model, posterior.DiffPIR(seen, y)),
        "Replacement": run(model, posterior.Replacement(seen, y)),
        "RePaint(jumps=5)": run(model, posterior.RePaint(seen, y, jumps=5)),
    }


def digits(training: int, count: int, steps: int, pictures: Path | None) -> Iterator[Row]:
    """Rows of a network for the digits."""
    train, held_out = split(load_data("digits"), 360)
    judge = Judge.fit(train, held_out)
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = sd.ScoreModel(UNet(1, (24, 48)), sd.VP(), "edm", sigma_data=0.75)
        sd.fit(model, train.x, out=Path(folder) / "run", steps=training, device="cpu")
        model = sd.load(Path(folder) / "run")
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:count]
    labels: Any = held_out.labels
    x, label = held_out.x[order], labels[order]
    for name, seen in measurements(8, 2, 0.8, 0.05).items():
        y = observe(seen, x)
        reference = 0.0
        for method, solve in methods(model, seen, y, steps).items():
            solution = solve()
            error = float((solution.x.clamp(-1, 1) - x).square().mean())
            reference = reference or error
            right = torch.from_numpy(judge.probabilities(solution.x).argmax(axis=1)) == label
            psnr = 10 * torch.tensor(4 / error).log10().item()
            share = float(right.double().mean())
            yield line(
                f"digits, {name}", method, "-", "-", psnr, share, error / reference, solution
            )
        if pictures is not None:
            show(model, seen, x[:8], y[:8], steps, pictures / f"{name}.png")


def show(model: Any, seen: Any, x: Tensor, y: Tensor, steps: int, path: Path) -> None:
    """A row for each digit: what it is, what was measured, mean and standard deviation of 64
    restorations by MMPS, and four of them.
    """
    many = posterior.MMPS(model, seen, y.repeat_interleave(64, dim=0), iterations=1)
    drawn = sd.sample(many, (64 * len(x), 1, 8, 8), steps=steps, seed=0).x.reshape(-1, 64, 1, 8, 8)
    back = seen.adjoint(y, x.shape[1:])
    scale = seen.adjoint(seen.forward(torch.ones_like(x)), x.shape[1:]).clamp(min=1e-6)
    measured = torch.where(scale > 1e-3, back / scale, -1.0)
    columns = [x, measured, drawn.mean(dim=1), 2 * drawn.std(dim=1) - 1, *drawn.unbind(dim=1)[:4]]
    tiles = torch.stack(columns, dim=1).flatten(0, 1)
    save_png(image_grid(tiles, columns=len(columns)), path)


def main() -> None:
    """Print the table, and save pictures."""
    more = {"--pictures": {"type": Path, "help": "folder for pictures of restored digits"}}
    args = arguments(__doc__ or "", 1, more)
    if args.pictures is not None:
        args.pictures.mkdir(parents=True, exist_ok=True)
    count, steps, training, held_out = (64, 5, 10, 8) if args.quick else (4000, 20, 1500, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [*known(count, steps), *digits(training, held_out, 2 * steps, args.pictures)]
    report("restoration", rows, args)


if __name__ == "__main__":
    main()
