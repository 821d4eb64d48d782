"""Time of a step's normals from ``White``, where sample i depends on seed i alone, against
``torch.randn``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timing import Run, Tables, arguments, micro, race, ratios, report, shape_name

from sdediff.solvers import White, seeds

# and draws: multiples of White's block
SHAPES = {(16, 2): (64, 640), (64, 3, 32, 32): (8, 40), (512, 1, 8, 8): (64, 128)}
TARGET = 2.0


def white(shape: tuple[int, ...], device: str) -> Run:
    numbers = seeds(0, shape[0])

    def run(draws: int) -> None:
        noise = White(numbers, shape[1:], device=device)
        for i in range(draws):
            noise.at(i).normal("path")

    return run


def randn(shape: tuple[int, ...], device: str) -> Run:
    generator = torch.Generator(device).manual_seed(0)

    def run(draws: int) -> None:
        for _ in range(draws):
            torch.randn(shape, generator=generator, device=device)

    return run


def main(argv: Sequence[str] | None = None) -> Tables:
    device = {"--device": {"help": "cpu or cuda (default cpu)"}}
    args = arguments(__doc__ or "", 40, device, argv)
    rows: list[dict[str, object]] = []
    for shape, (few, many) in SHAPES.items():
        times = race(
            {"White": white(shape, args.device), "randn": randn(shape, args.device)},
            few,
            many,
            args.rounds,
        )
        found = ratios(times["White"], times["randn"])
        met = "yes" if found["ratio"] <= TARGET else "no"
        shown = {
            "shape": shape_name(shape),
            "randn us": micro(times["randn"]),
            "White us": micro(times["White"]),
        }
        rows.append({**shown, **found, "target": TARGET, "met": met})
    report("noise", rows, args)
    return args.tables


if __name__ == "__main__":
    main()
