"""Variance of a batch's mean loss, by strata and by importance, over that of plain uniform times.

    python benchmarks/objectives.py

The exact model of a two-dimensional mixture, batches of 64, 1,000 of them; the objective is the
same in every column.
"""

from __future__ import annotations

import torch
from timing import Row, options, report

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


WAYS = {"stratified": (True, False), "importance": (False, True), "both": (True, True)}


def main() -> None:
    """Print the table of docs/objectives.md."""
    args = options(__doc__ or "", quick="a tenth of the batches")
    batches = 100 if args.quick else 1000
    law = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], 0.2)
    x_0 = law.sample(64, seed=0)
    rows: list[Row] = []
    for sde in (sd.VP(), sd.VE(0.01, 50.0)):
        for weighting in ("sigma2", "likelihood"):

            def measured(
                ways: tuple[bool, bool], sde: sd.SDE = sde, weighting: str = weighting
            ) -> float:
                strata, importance = ways
                return variance(
                    law.model(sde), x_0, weighting, batches, stratified=strata,
                    importance=importance,
                )  # fmt: skip

            plain = measured((False, False))
            row: Row = {"weighting": f"{weighting}, {type(sde).__name__}"}
            rows.append(row | {name: measured(ways) / plain for name, ways in WAYS.items()})
    report("ratio of variances", rows, args)


if __name__ == "__main__":
    main()
