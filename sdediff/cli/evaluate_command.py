"""The options of ``sdediff evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from sdediff.cli.options import (
    Atol,
    BatchSize,
    Condition,
    Device,
    Guidance,
    MaxNfe,
    Quiet,
    Rtol,
    Seed,
    SolverName,
    Steps,
)
from sdediff.cli.stopping import interruptible

__all__ = ["evaluate"]


Features = Annotated[
    str,
    typer.Option(
        help="what samples are compared by: values, the coordinates themselves; inception "
        "or dinov2, networks whose file is --weights; or classifier, which is fitted "
        "to the labelled images of --against"
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="file of the weights of inception or dinov2, which nothing downloads: see "
        "docs/command-line.md"
    ),
]
Sha256 = Annotated[
    str | None,
    typer.Option(
        help="SHA-256 of that file, 64 hexadecimal digits; by default that of "
        "torch-fidelity's file of inception, and needed for dinov2"
    ),
]


Samples = Annotated[
    str | None,
    typer.Option(
        help=".npy, .npz or folder of samples that are there; or a folder of shards, which is "
        "drawn first where it is not complete, by any number of processes"
    ),
]
Reference = Annotated[
    str,
    typer.Option(
        help="whether standard errors count the choice of the data too: fixed (no) or sampled (yes)"
    ),
]
Written = Annotated[
    str | None,
    typer.Option(
        help="file to write, .json: all numbers, and what they are of; by default they are "
        "printed alone"
    ),
]
Count = Annotated[
    int,
    typer.Option(help="how many samples are drawn; not used where --samples are complete", min=4),
]


def evaluate(
    run: Annotated[str, typer.Argument(help="run folder made by train")],
    against: Annotated[str, typer.Option(help="data that samples are compared with, as of train")],
    features: Features = "values",
    weights: Weights = None,
    sha256: Sha256 = None,
    samples: Samples = None,
    reference: Reference = "fixed",
    out: Written = None,
    count: Count = 2000,
    solver: SolverName = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    rtol: Rtol = None,
    atol: Atol = None,
    max_nfe: MaxNfe = None,
    condition: Condition = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Measure the quality of a run's samples against data: Frechet and kernel distance, precision
    and recall, with standard errors and biases.
    """
    from sdediff.cli.evaluate import Judged
    from sdediff.cli.evaluate import run as measure
    from sdediff.cli.sample import Asked
    from sdediff.run_folder import check_out

    with interruptible():
        code = measure(
            Judged(against, features, weights, sha256, samples, reference),
            Asked(
                folder=check_out(run, "the run folder"),
                solver=solver,
                steps=steps,
                count=count,
                batch_size=batch_size,
                rtol=rtol,
                atol=atol,
                max_nfe=max_nfe,
                condition=condition or (),
                guidance=guidance,
                seed=seed,
                device=device,
                quiet=quiet,
            ),
            None if out is None else check_out(out, "--out"),
        )
    if code:
        raise typer.Exit(code)
