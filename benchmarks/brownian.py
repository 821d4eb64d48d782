"""Time of a query of `BrownianPath`, every sample with a seed of its own, against torchsde's paths
and ``randn``.

``--memory`` also measures what 200 queries leave behind, each path in a process of its own.
"""

from __future__ import annotations

import itertools
import random
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import torch
import torchsde
from timing import Tables, arguments, micro, ratios, report, shape_name

from sdediff.solvers import BrownianPath, seeds

SHAPES = ((16, 2), (4, 4, 64, 64))
STEPS = 100
Query = Callable[[float, float], object]


class _Tensors(dict[float, torch.Tensor]):
    def __missing__(self, t: float) -> torch.Tensor:
        return torch.tensor(t, dtype=torch.float64)


def ours(shape: tuple[int, ...], *, area: bool = True) -> Query:
    path = BrownianPath(
        seeds(0, shape[0]),
        shape[1:],
        0.0,
        1.0,
        intervals=torch.tensor(GRID, dtype=torch.float64),
        area=area,
    )
    at = _Tensors(
        {
            t: torch.tensor(t, dtype=torch.float64)
            for asked in QUERIES.values()
            for pair in asked
            for t in pair
        }
    )
    return lambda a, b: path.increment(at[a], at[b])


def interval(shape: tuple[int, ...], **options: object) -> Query:
    return torchsde.BrownianInterval(t0=0.0, t1=1.0, size=shape, entropy=1, **options)


def tree_per_item(shape: tuple[int, ...]) -> Query:
    """BatchedBrownianTree of k-diffusion with a seed for each item: a tree each, stacked."""
    trees = [
        torchsde.BrownianTree(t0=0.0, w0=torch.zeros(shape[1:]), t1=1.0, entropy=seed)
        for seed in range(shape[0])
    ]
    return lambda a, b: torch.stack([tree(a, b) for tree in trees])


def randn(shape: tuple[int, ...]) -> Query:
    generator = torch.Generator().manual_seed(0)
    return lambda a, b: torch.randn(shape, generator=generator) * (b - a) ** 0.5


PATHS: dict[str, Callable[[tuple[int, ...]], Query]] = {
    "BrownianPath": ours,
    "area=False": lambda shape: ours(shape, area=False),
    "randn": randn,
    "interval, dt": lambda shape: interval(shape, dt=1 / STEPS),
    "interval, cache": lambda shape: interval(shape, cache_size=1000),
    "tree per item": tree_per_item,
}
GRID = [i / STEPS for i in range(STEPS + 1)]
_RANDOM = random.Random(0)
_POINTS = sorted(_RANDOM.random() for _ in range(STEPS + 1))
QUERIES = {
    "grid": list(itertools.pairwise(GRID)),
    "grid, any order": _RANDOM.sample(list(itertools.pairwise(GRID)), STEPS),
    "any times": list(itertools.pairwise(_POINTS)),
    "any, any order": [
        (min(p), max(p)) for p in ([_RANDOM.random(), _RANDOM.random()] for _ in range(STEPS))
    ],
}


def rounds(shape: tuple[int, ...], kind: str, count: int, few: int) -> dict[str, list[float]]:
    """Seconds a query of a new path, a list with one entry a round; paths alternate."""
    times: dict[str, list[float]] = {name: [] for name in PATHS}
    for _ in range(count):
        for name, make in PATHS.items():
            asked = QUERIES[kind][: max(2, few // 10) if name == "tree per item" else few]
            path = make(shape)
            start = time.thread_time()
            for a, b in asked:
                path(a, b)
            times[name].append((time.thread_time() - start) / len(asked))
    return times


def grown(name: str, shape: tuple[int, ...], kind: str) -> float:
    """Megabytes by which the process grows in 200 queries."""
    out = subprocess.run(
        [sys.executable, __file__, "--grow", name, repr(shape), kind],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(out.stdout)


def _grow(name: str, shape: tuple[int, ...], kind: str) -> None:
    warnings.simplefilter("ignore")
    path, asked = PATHS[name](shape), QUERIES[kind]
    path(*asked[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(200):
        path(
            *(asked[i % STEPS] if kind == "grid" else sorted((_RANDOM.random(), _RANDOM.random())))
        )
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main(argv: Sequence[str] | None = None) -> Tables:
    memory = {"action": "store_true", "help": "what 200 queries leave behind, too"}
    args = arguments(__doc__ or "", 3, {"--memory": memory}, argv)
    warnings.simplefilter("ignore")  # torchsde's, about times that it rounds
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        for kind in QUERIES:
            times = rounds(
                shape,
                kind,
                args.rounds,
                4 if args.quick else STEPS if kind.startswith("grid") else STEPS // 4,
            )
            row: dict[str, object] = {"shape": shape_name(shape), "queries": kind}
            row |= {f"{name} us": micro(each) for name, each in times.items()}
            for name in list(PATHS)[1:]:
                row[f"ratio to {name}"] = ratios(times["BrownianPath"], times[name])["ratio"]
            rows.append(row)
    report("brownian", rows, args)
    if args.memory:
        names = ("BrownianPath", "interval, dt", "interval, cache")
        left = [
            {"queries": kind} | {f"{name} MB": grown(name, SHAPES[-1], kind) for name in names}
            for kind in ("grid", "any times")
        ]
        report(f"brownian, {shape_name(SHAPES[-1])}: left behind", left, args)
    return args.tables


if __name__ == "__main__":
    if "--grow" in sys.argv:
        name, shape, kind = sys.argv[2:]
        _grow(name, tuple(int(n) for n in shape.strip("()").split(",")), kind)
    else:
        main()
