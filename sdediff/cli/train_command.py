"""The options of ``sdediff train`` and ``sdediff info``."""

from __future__ import annotations

from typing import Annotated

import typer

from sdediff.cli.options import (
    Device,
    Drop,
    IgnoreLabels,
    Labels,
    Network,
    Overwrite,
    Process,
    Quiet,
    Resume,
    Seed,
)
from sdediff.cli.stopping import interruptible

__all__ = ["info", "train"]


def train(
    out: Annotated[str, typer.Option(help="run folder to write")],
    sde: Process = "vp",
    data: Annotated[
        str,
        typer.Option(
            help="digits, mnist, a folder of images, an .npy or .npz array, or shards: "
            "'data/part-*.tar'"
        ),
    ] = "digits",
    steps: Annotated[int, typer.Option(help="training steps", min=1)] = 10_000,
    checkpoint_every: Annotated[int, typer.Option(help="steps between checkpoints", min=1)] = 1000,
    resume: Resume = False,
    overwrite: Overwrite = False,
    batch_size: Annotated[int, typer.Option(help="samples a step", min=1)] = 128,
    accumulate: Annotated[
        int, typer.Option(help="parts in which a batch is taken, to save memory", min=1)
    ] = 1,
    lr: Annotated[float, typer.Option(help="learning rate at its peak")] = 1e-3,
    ema: Annotated[
        str, typer.Option(help="decay of the averaged weights; several as 0.999,0.9999")
    ] = "0.999",
    clip: Annotated[float, typer.Option(help="the most that the gradient's norm may be")] = 1.0,
    weighting: Annotated[str, typer.Option(help="of the loss: edm, sigma2 or likelihood")] = "edm",
    times: Annotated[
        str, typer.Option(help="density of the times trained on: logit-normal or uniform")
    ] = "logit-normal",
    held_out: Annotated[
        int, typer.Option(help="samples to leave out of training and to validate with", min=0)
    ] = 0,
    watch_every: Annotated[int, typer.Option(help="steps between looks", min=1)] = 1000,
    watch_samples: Annotated[
        int, typer.Option(help="samples to draw at each look, into a picture", min=0)
    ] = 0,
    track: Annotated[str | None, typer.Option(help="tensorboard, or another tracker")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="side to which images of a folder are resized", min=1)
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="take an array of floats of any range and standardise it")
    ] = False,
    labels: Labels = False,
    ignore_labels: IgnoreLabels = False,
    drop: Drop = None,
    network: Network = None,
    mixed_precision: Annotated[str | None, typer.Option(help="bf16 or fp16")] = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Train a score model on data and write a run folder. Ctrl-C, SIGTERM and SIGHUP leave a
    checkpoint.
    """
    asked = dict(locals())  # every option by its name
    from sdediff.cli.train import Asked, run
    from sdediff.run_folder import check_out

    with interruptible():
        run(Asked(**{**asked, "out": check_out(out, "--out")}))


def info(run: Annotated[str, typer.Argument(help="run folder made by train")]) -> None:
    """Say what a run is: its process, network, data and settings, how far it is, and its losses."""
    from sdediff.cli.info import lines
    from sdediff.run_folder import check_out

    for name, text in lines(check_out(run, "the run folder")):
        print(f"{name:12} {text}")
