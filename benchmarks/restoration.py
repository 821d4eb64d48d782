"""Restored pictures: against a known posterior, and digits by a small network.

    python benchmarks/restoration.py

Pictures of a law of rank 16, the principal components of MNIST: how far the mean is off in spreads
of the prior, and pixel variances (relative root mean square), for mask, blur and 4x
super-resolution; "ratio" is that of the variances over the same of as many exact draws. Then small
networks for digits of 8x8 and 28x28 (`restoration_networks.py`) restore held-out ones from half of
their pixels, around a hole, from a blur, and from 2x or 4x super-resolution: peak signal-to-noise
ratio, share in which the class is recognised, and how many have a pixel beyond 2, where data end at
1. azula and deepinv, where they are installed, have the same network, outcomes and evaluations
(`restoration_peers.py`): as they recommend it, and at the best of a few sizes of their scale.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from restoration_networks import TASKS, data, trained
from restoration_peers import Count, Found, Problem, peers
from timing import Tables, arguments, report
from torch import Tensor

import sdediff as sd
from sdediff import posterior, solvers
from sdediff.cli.quality import Judge
from sdediff.data import load_data
from sdediff.plots import image_grid, save_png

RANK = 16
Row = dict[str, object]
_SIZES = {"digits": (16, 20), "mnist": (8, 20)}
"""Digits and evaluations of each."""


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
            yield line(f"rank {RANK}, {name}", method, off / spread, wide, wide / floor, made)


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
    names = ("mean off", "variances off", "ratio")
    row: Row = {"problem": problem, "method": method, **dict(zip(names, numbers, strict=True))}
    known: Any = made
    backward = None if known is None or known.backward is None else int(known.backward.max())
    return row | {
        "NFE": "-" if known is None else int(known.nfe.max()),
        "backward": "-" if backward is None else backward,
    }


def methods(problem: Problem) -> dict[str, Callable[[], sd.Solution]]:
    """Ours, at as many evaluations each."""
    model, seen, y = problem.model, problem.seen, problem.y

    def run(given: Any, solver: Any = None, steps: int = problem.steps, **how: Any) -> Any:
        return lambda: sd.sample(given, problem.x.shape, solver=solver, steps=steps, seed=0, **how)

    return {
        "MMPS": run(posterior.MMPS(model, seen, y)),
        "MMPS(iterations=1)": run(posterior.MMPS(model, seen, y, iterations=1)),
        "MMPS, stochasticity=1": run(posterior.MMPS(model, seen, y), stochasticity=1.0),
        "PiGDM": run(posterior.PiGDM(model, seen, y)),
        "PiGDM, ERSDE(2)": run(posterior.PiGDM(model, seen, y), solvers.ERSDE(2)),
        "PublishedDPS": run(model, posterior.PublishedDPS(seen, y)),
        "DiffPIR": run(model, posterior.DiffPIR(seen, y)),
        "Replacement": run(model, posterior.Replacement(seen, y)),
        "RePaint(jumps=5)": run(
            model, posterior.RePaint(seen, y, jumps=5), max(2, problem.steps // 5)
        ),
    }


def pictures(name: str, args: Any, count: int, steps: int, training: int | None) -> Iterator[Row]:
    """Rows of a network for the digits ``name``."""
    train, held_out = data(name)
    judge = Judge.fit(train, held_out)
    model = trained(name, args.runs, training)
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:count]
    labels: Any = held_out.labels
    x, label = held_out.x[order], labels[order]
    side = x.shape[-1]
    seen_by = measurements(side, 2 if side < 16 else 4, 0.1 * side, 0.05)
    half = torch.rand(side, side, generator=torch.Generator().manual_seed(2)) < 0.5
    for task, seen in {"half": posterior.Mask(half, noise_std=0.05), **seen_by}.items():
        if args.task not in (None, task):
            continue
        problem = Problem(model, seen, observe(seen, x), x, steps)

        def row(method: str, found: Tensor, nfe: Any, backward: Any, title: str) -> Row:
            error = float((found.clamp(-1, 1) - x).square().mean())
            right = torch.from_numpy(judge.probabilities(found).argmax(axis=1)) == label
            psnr = 10 * math.log10(4 / error) if error > 0 else math.inf
            share = float(right.double().mean())
            far = int((found.abs().flatten(1).amax(dim=1) > 2).sum())
            return {
                "problem": title, "method": method, "PSNR": psnr, "recognised": share,
                "far out": far, "NFE": nfe, "backward": backward,
            }  # fmt: skip

        title = f"{name}, {task}"
        themselves = row("the digits themselves", x, "-", "-", title)
        yield themselves
        for method, solve in methods(problem).items():
            made = solve()
            backward = 0 if made.backward is None else int(made.backward.max())
            yield row(method, made.x, int(made.nfe.max()), backward, title)
        for library, others in peers(problem):
            if others is None:
                yield dict.fromkeys(themselves, "-") | {
                    "problem": title, "method": f"{library}: not installed"
                }  # fmt: skip
                continue
            yield from best(title, library, others, row)
        if args.pictures is not None:
            show(problem, args.pictures / f"{name}-{task}.png")


def best(title: str, library: str, others: list[Found], row: Any) -> Iterator[Row]:
    """A row for each method as it is recommended, and for the best of its other settings."""
    rows: dict[str, list[Row]] = {}
    for method, setting, solve in others:
        count = Count()
        found = solve(count).detach().nan_to_num(1e6, 1e6, -1e6)
        name = f"{library}: {method}" + (f", {setting}" if setting else "")
        made = row(name, found, count.forward, count.backward, title)
        if setting:
            rows.setdefault(method, []).append(made)
        else:
            yield made
    for each in rows.values():
        yield max(each, key=lambda one: float(str(one["PSNR"])))


def show(problem: Problem, path: Path) -> None:
    """A row for each of six digits: what it is, what was measured, mean and standard deviation of
    24 restorations by MMPS, and four of them.
    """
    seen, x, y = problem.seen, problem.x[:6], problem.y[:6]
    many = posterior.MMPS(problem.model, seen, y.repeat_interleave(24, dim=0))
    drawn = sd.sample(many, (24 * len(x), *x.shape[1:]), steps=problem.steps, seed=0).x
    drawn = drawn.unflatten(0, (-1, 24))
    back = seen.adjoint(y, x.shape[1:])
    scale = seen.adjoint(seen.forward(torch.ones_like(x)), x.shape[1:]).clamp(min=1e-6)
    measured = torch.where(scale > 1e-3, back / scale, 0.0)  # what was not seen is grey
    columns = [x, measured, drawn.mean(dim=1), 2 * drawn.std(dim=1) - 1, *drawn.unbind(dim=1)[:4]]
    tiles = torch.stack(columns, dim=1).flatten(0, 1)
    save_png(image_grid(tiles, columns=len(columns)), path)


def main(argv: Sequence[str] | None = None) -> Tables:
    """Print the tables, and save pictures."""
    more: dict[str, dict[str, Any]] = {
        "--only": {"choices": ["known", *TASKS], "help": "one of the tables"},
        "--task": {"choices": ["half", "mask", "blur", "2x", "4x"], "help": "one measurement"},
        "--runs": {"type": Path, "default": Path("runs/restoration"), "help": "trained networks"},
        "--pictures": {"type": Path, "help": "folder for pictures of restored digits"},
    }
    args = arguments(__doc__ or "", 1, more, argv)
    if args.pictures is not None:
        args.pictures.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if args.only in (None, "known"):
            known_rows = list(known(*((64, 5) if args.quick else (4000, 20))))
            report("restoration, known posteriors", known_rows, args)
        for name in [each for each in TASKS if args.only in (None, each)]:
            rows += restorations(name, args)
    if rows:
        report("restoration, digits", rows, args)
    return args.tables


def restorations(name: str, args: Any) -> list[Row]:
    """The rows of a set of digits; --quick trains a network of a few steps in a folder of its
    own.
    """
    if not args.quick:
        count, steps = _SIZES[name]
        return list(pictures(name, args, count, steps, None))
    with tempfile.TemporaryDirectory() as folder:
        args.runs = Path(folder)
        args.task = args.task or "half"
        return list(pictures(name, args, 2, 4, 2))


if __name__ == "__main__":
    main()
