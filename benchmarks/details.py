"""The default solver on data all of whose details have one size, with and without a measurement of
it.

    python benchmarks/details.py
    python benchmarks/details.py --sizes 0.05 0.1 0.2 0.35 0.6

The problems are mixtures of Gaussians of variance 1 whose components have standard deviations near
one of the sizes (0.001, 0.003, 0.01 and 0.03), in 2 and 64 dimensions, under five SDEs, each of
several mixtures. A row is a number of evaluations: the error of the default over the *envelope*,
the least that any published solver reaches on any of the grids uniform in t, uniform in log-SNR and
Karras et al.'s, its median and its 90th percentile over samples, as geometric means over problems
(*worst*: the largest median ratio). *before* is without a measurement, *now* with what
`sdediff.tuning.measure` finds for each mixture by 64 samples. Every published solver is run as the
sums that it makes (`sdediff.tuning.unrolled`), which the solvers do not change by more than
rounding.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator

import torch
from default import SDES, Mixtures, Task, by_details, measured, peers
from timing import arguments, report
from torch import Tensor

from sdediff.solvers import GRIDS, LogSNR
from sdediff.tuning.unrolled import Scheme, unrolled

NAMES = ("VP", "VE", "SubVP", "Cosine", "RectifiedFlow")
SHARES = torch.tensor([0.5, 0.9], dtype=torch.float64)


class Detailed(Mixtures):
    """``count`` mixtures for each of ``sizes``: components have 0.7 to 1.3 times that size."""

    sizes = (0.001, 0.003, 0.01, 0.03)

    def __init__(self, d: int, count: int, seed: int) -> None:
        super().__init__(d, len(self.sizes) * count, seed)
        before = (self.weights * self.stds**2).sum(dim=1)
        sizes = torch.tensor(self.sizes, dtype=torch.float64).repeat_interleave(count)
        self.stds = sizes[:, None] * (0.5 + 4 * self.stds)
        within = (self.weights * self.stds**2).sum(dim=1)
        self.means = self.means * ((1 - within) / (1 - before)).sqrt()[:, None, None]


def spaced(task: Task, name: str, steps: int) -> Tensor:
    return GRIDS[name](steps, task.start, task.end, LogSNR(task.sde.log_snr, task.sde.time_of))


def published(name: str, nfe: int) -> Iterator[Scheme]:
    """All published solvers on all grids, as sums."""
    sde, end = SDES[name]
    ends = sde.t_max, sde.t_min if end is None else end
    for (solver, cost), grid in itertools.product(
        peers().values(), ("uniform", "log_snr", "karras")
    ):
        if nfe // cost:
            times = GRIDS[grid](nfe // cost, *ends, LogSNR(sde.log_snr, sde.time_of))
            yield unrolled(solver, sde, times, denoise=False)


def follow(task: Task, scheme: Scheme) -> Tensor:
    """The state at the end, (mixtures, rows)."""
    known = [task.x]
    alpha, sigma = (c(scheme.times).tolist() for c in (task.sde.alpha, task.sde.sigma))
    for k, row in enumerate(scheme.rows):
        numbers = row[: len(known)].tolist()
        y = torch.stack([c * each for c, each in zip(numbers, known, strict=True)]).sum(dim=0)
        if k < len(alpha):
            known.append(task.mixtures.data(y, alpha[k], sigma[k]))
    return y


def errors(task: Task, x: Tensor) -> Tensor:
    """Median and 90th percentile for each size, (sizes, 2)."""
    each = (x - task.exact).square().mean(dim=1).sqrt().nan_to_num(nan=math.inf)
    return each.reshape(len(Detailed.sizes), -1).quantile(SHARES, dim=1).T


def ratios(name: str, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """For each dimension and number of evaluations the ratios of all sizes, and what was
    measured.
    """
    tasks, found = [], []
    for d in (2, 64):
        tasks.append(Task(name, d, count=args.count, rows=args.rows, seed=args.seed, kind=Detailed))
        tasks[-1].reference(args.reference)
        found.append(measured(tasks[-1]))
    for nfe in args.nfes:
        best: list[Tensor] = [torch.full((len(Detailed.sizes), 2), math.inf) for _ in tasks]
        for scheme in published(name, nfe):
            best = [
                torch.minimum(least, errors(task, follow(task, scheme)))
                for least, task in zip(best, tasks, strict=True)
            ]
        for task, sizes, least in zip(tasks, found, best, strict=True):
            count = task.mixtures.count
            before = errors(task, by_details(task, nfe, [None] * count)) / least
            now = errors(task, by_details(task, nfe, sizes)) / least
            yield {"NFE": nfe, "d": task.mixtures.d, "before": before, "now": now}
        print(f"{name} {nfe}", flush=True)


def mean(values: list[Tensor], which: int) -> float:
    return float(torch.cat(values)[:, which].log().mean().exp())


@torch.no_grad()
def main() -> None:
    args = arguments(
        __doc__ or "",
        1,
        {
            "--seed": {"type": int, "default": 200, "help": "of the mixtures"},
            "--nfes": {"type": int, "nargs": "+", "default": list(range(5, 21))},
            "--sizes": {
                "type": float,
                "nargs": "+",
                "default": Detailed.sizes,
                "metavar": "SIZE",
                "help": "of the details, at most 0.7",
            },
            "--sdes": {"help": f"some of {','.join(NAMES)}"},
            "--count": {"type": int, "default": 2, "help": "mixtures of each size and dimension"},
        },
    )
    quick = (1, 8, (5,), 40) if args.quick else (args.count, 32, args.nfes, 300)
    args.count, args.rows, args.nfes, args.reference = quick
    Detailed.sizes = tuple(args.sizes)
    names = args.sdes.split(",") if args.sdes else ["VP"] if args.quick else NAMES
    every = [row for name in names for row in ratios(name, args)]
    rows: list[dict[str, object]] = []
    for nfe in args.nfes:
        some = [row for row in every if row["NFE"] == nfe]
        line: dict[str, object] = {"NFE": nfe}
        for key in ("before", "now"):
            values: list[Tensor] = [row[key] for row in some]  # type: ignore[misc]
            apart = {d: [row[key] for row in some if row["d"] == d] for d in (2, 64)}
            line[f"ratio {key}"] = mean(values, 0)
            line[f"90 % {key}"] = mean(values, 1)
            line |= {f"{d}-D {key}": mean(part, 0) for d, part in apart.items()}  # type: ignore[arg-type]
            line[f"worst {key}"] = float(torch.cat(values)[:, 0].max())
        rows.append(line)
    report("details", rows, args)


if __name__ == "__main__":
    main()
