"""The options of ``sdediff compare`` and ``sdediff tune``."""

from __future__ import annotations

from typing import Annotated

import typer

from sdediff.cli.options import (
    BatchSize,
    Condition,
    Device,
    Goal,
    GridNames,
    Guidance,
    Quiet,
    Seed,
    SolverNames,
)
from sdediff.cli.stopping import interruptible

__all__ = ["compare", "tune"]


def compare(
    run: Annotated[str, typer.Argument(help="run folder made by train")],
    out: Annotated[
        str | None,
        typer.Option(
            help="folder to write: compare.json (all numbers), compare.md (the tables) and "
            "compare.png (error against cost); by default the tables are printed alone"
        ),
    ] = None,
    nfe: Annotated[
        str,
        typer.Option(
            help="numbers of evaluations of the network for a sample, with commas between them"
        ),
    ] = "5,10,20,50",
    solvers: SolverNames = None,
    grids: GridNames = None,
    error: Goal = None,
    count: Annotated[int, typer.Option(help="how many samples each solver draws", min=2)] = 256,
    batch_size: BatchSize = None,
    data: Annotated[
        str | None, typer.Option(help="data to compare the samples with, as of train")
    ] = None,
    budget_seconds: Annotated[
        float | None,
        typer.Option(
            help="seconds that it may take; what does not fit is left out, and the tables say "
            "so; by default there is no limit"
        ),
    ] = None,
    condition: Condition = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Compare solvers on a run's model: error against cost, and which one to take."""
    from sdediff.cli.compare import run as measure
    from sdediff.run_folder import check_out

    with interruptible():
        code = measure(
            folder=check_out(run, "the run folder"),
            out=None if out is None else check_out(out, "--out"),
            solvers=solvers,
            nfe=nfe,
            grids=grids,
            error=error,
            count=count,
            batch_size=batch_size,
            data=data,
            budget_seconds=budget_seconds,
            condition=condition or (),
            guidance=guidance,
            seed=seed,
            device=device,
            quiet=quiet,
        )
    if code:
        raise typer.Exit(code)


def tune(
    run: Annotated[str, typer.Argument(help="run folder made by train")],
    out: Annotated[str, typer.Option(help=".json file to write, for --solver of sample")],
    nfe: Annotated[int, typer.Option(help="evaluations of the network a sample", min=1)],
    method: Annotated[
        str,
        typer.Option(
            help="what is tuned: dp, the times, by dynamic programming; grid, the times, by "
            "gradients too; all, times and weights of the solver"
        ),
    ] = "grid",
    count: Annotated[
        int,
        typer.Option(help="how many starts it is tuned on, and as many again are held out", min=32),
    ] = 256,
    seconds: Annotated[
        float,
        typer.Option(
            help="seconds that it may take, without the accurate solves to which it is "
            "compared, above 0"
        ),
    ] = 100.0,
    solver: Annotated[
        str | None,
        typer.Option(
            help="where it starts: a solver with fixed steps of the table of solvers, "
            "docs/command-line.md; by default the default solver, and others are tried too"
        ),
    ] = None,
    condition: Condition = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Make a solver for a run's model that is better at --nfe evaluations than the default one."""
    from sdediff.cli.tune import run as made
    from sdediff.run_folder import check_out

    with interruptible():
        made(
            folder=check_out(run, "the run folder"),
            out=check_out(out, "--out"),
            nfe=nfe,
            method=method,
            count=count,
            seconds=seconds,
            solver=solver,
            condition=tuple(condition or ()),
            guidance=guidance,
            seed=seed,
            device=device,
            quiet=quiet,
        )
