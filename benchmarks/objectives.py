"""Variance of a batch's mean loss, by strata and by importance, over that of plain uniform times.

    python benchmarks/objectives.py

The exact model of a two-dimensional mixture, batches of 64, 1,000 of them; the objective is the
same in every column.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import sdediff as sd


def variance(
    model: sd.ScoreModel,
    x_0: torch.Tensor,
    weighting: str,
    batches: int,
    *,
    stratified: bool,
    importance: bool,
) -> float:
    """Of the mean over the batch."""
    loss = sd.DenoisingScoreMatching(weighting, stratified=stratified, importance=importance)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return float(
            torch.stack(
                [loss(model, x_0, generator=generator).mean() for _ in range(batches)]
            ).var()
        )


def main() -> None:
    """Print the table of docs/objectives.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the batches")
    parser.add_argument("--json", type=Path, help="file for the ratios")
    arguments = parser.parse_args()
    batches = 100 if arguments.quick else 1000
    law = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.2)
    x_0 = law.sample(64, seed=0)
    results: dict[str, list[float]] = {}
    print("ratio of variances\n\n| weighting | stratified | importance | both |\n|---|---|---|---|")
    for sde in (sd.VP(), sd.VE(0.01, 50.0)):
        for weighting in ("sigma2", "likelihood"):
            plain, *others = (
                variance(
                    law.model(sde),
                    x_0,
                    weighting,
                    batches,
                    stratified=strata,
                    importance=importance,
                )
                for strata, importance in (
                    (False, False),
                    (True, False),
                    (False, True),
                    (True, True),
                )
            )
            ratios = results[f"{weighting}, {type(sde).__name__}"] = [
                value / plain for value in others
            ]
            print(
                f"| {weighting}, {type(sde).__name__} | "
                f"{' | '.join(f'{ratio:.2f}' for ratio in ratios)} |"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
