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


Data = Annotated[
    str,
    typer.Option(
        help="digits, mnist, a folder of images, an .npy or .npz array, or shards: "
        "'data/part-*.tar'"
    ),
]
CheckpointEvery = Annotated[int, typer.Option(help="steps from one checkpoint to the next", min=1)]
Accumulate = Annotated[
    int,
    typer.Option(
        help="in how many parts a batch is taken one after another, to save memory", min=1
    ),
]
Ema = Annotated[
    str,
    typer.Option(
        help="decay of the averaged weights, above 0 and below 1; several with commas, 0.999,0.9999"
    ),
]
Clip = Annotated[
    float,
    typer.Option(
        help="the most that the norm of the gradient may be, above 0; larger gradients are "
        "scaled down"
    ),
]
Weighting = Annotated[
    str, typer.Option(help="weighting of the loss over times: edm, sigma2 or likelihood")
]
Times = Annotated[
    str, typer.Option(help="density of the times trained on: logit-normal or uniform")
]
HeldOut = Annotated[
    int, typer.Option(help="how many samples are left out of training, to validate with", min=0)
]
WatchEvery = Annotated[
    int,
    typer.Option(help="steps from one look at held-out data and samples to the next", min=1),
]
WatchSamples = Annotated[
    int, typer.Option(help="how many samples are drawn at each look, into a picture", min=0)
]
Track = Annotated[
    str | None,
    typer.Option(
        help="tracker that gets losses and looks: tensorboard, or another one that "
        "Accelerate knows; by default none"
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="side, in pixels, to which the central square of each image is resized; by "
        "default images stay as they are",
        min=1,
    ),
]
Raw = Annotated[
    bool, typer.Option("--raw", help="take an array of floats of any range and standardise it")
]
MixedPrecision = Annotated[
    str | None,
    typer.Option(
        help="precision of the network in training: no, bf16, fp16 or fp8, as Accelerate "
        "has them; by default no"
    ),
]


def train(
    out: Annotated[str, typer.Option(help="run folder to write")],
    sde: Process = "vp",
    data: Data = "digits",
    steps: Annotated[int, typer.Option(help="steps of the optimizer", min=1)] = 10_000,
    checkpoint_every: CheckpointEvery = 1000,
    resume: Resume = False,
    overwrite: Overwrite = False,
    batch_size: Annotated[int, typer.Option(help="samples of a step", min=1)] = 128,
    accumulate: Accumulate = 1,
    lr: Annotated[float, typer.Option(help="learning rate of AdamW at its peak, above 0")] = 1e-3,
    ema: Ema = "0.999",
    clip: Clip = 1.0,
    weighting: Weighting = "edm",
    times: Times = "logit-normal",
    held_out: HeldOut = 0,
    watch_every: WatchEvery = 1000,
    watch_samples: WatchSamples = 0,
    track: Track = None,
    image_size: ImageSize = None,
    raw: Raw = False,
    labels: Labels = False,
    ignore_labels: IgnoreLabels = False,
    drop: Drop = None,
    network: Network = None,
    mixed_precision: MixedPrecision = None,
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
