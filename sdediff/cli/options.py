"""Options that several commands have, and those with long descriptions."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "Atol",
    "BatchSize",
    "Blur",
    "Condition",
    "Degrade",
    "Device",
    "Downsample",
    "Drop",
    "Grey",
    "Guidance",
    "IgnoreLabels",
    "Labels",
    "Level",
    "Mask",
    "MaxNfe",
    "Method",
    "Network",
    "NoiseStd",
    "Overwrite",
    "Particles",
    "Process",
    "Quiet",
    "Resume",
    "Rtol",
    "Seed",
    "ShardSize",
    "SolverName",
    "SolverNames",
    "Steps",
]

Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...; the fastest there is by default")
]
Seed = Annotated[int, typer.Option(help="makes the result reproducible", min=0)]
Quiet = Annotated[bool, typer.Option("--quiet", help="print nothing but errors and warnings")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="go on from the run folder's last checkpoint; start if there is no run yet",
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="replace a run that is there, when the first checkpoint is complete"
    ),
]

BatchSize = Annotated[
    int | None,
    typer.Option(
        help="samples solved at a time; by default 64, or as many as have 131,072 values", min=1
    ),
]
ShardSize = Annotated[
    int | None,
    typer.Option(help="samples in a shard of a folder; by default those of four batches", min=1),
]
SolverName = Annotated[
    str | None,
    typer.Option(
        help="one of the names in the README's table of solvers, or a .json file of tune; by "
        "default the library's for --steps, else ode"
    ),
]
Steps = Annotated[int | None, typer.Option(help="steps of a fixed-step solver", min=1)]
Rtol = Annotated[
    float | None,
    typer.Option(help="relative tolerance of an adaptive solver; 1e-4, adaptive-sde 0.05"),
]
Atol = Annotated[
    float | None,
    typer.Option(
        help="absolute tolerance of an adaptive solver; as rtol, times the data's standard "
        "deviation"
    ),
]
SolverNames = Annotated[
    str | None,
    typer.Option(
        help="names in the README's table of solvers, and default, with commas between them"
    ),
]
Process = Annotated[
    str,
    typer.Option(
        help="vp, ve, subvp, cosine or rectified-flow; or a degradation, for images: blur, "
        "masking, downsampling or snow"
    ),
]
Labels = Annotated[
    bool,
    typer.Option(
        "--labels",
        help="train with the classes of digits, mnist, the folders of a folder, or labels in "
        "an .npz",
    ),
]
IgnoreLabels = Annotated[
    bool, typer.Option("--ignore-labels", help="train on the data of an .npz alone")
]
Drop = Annotated[
    float | None,
    typer.Option(help="with --labels: the share of samples trained without, for --guidance; 0.1"),
]
Network = Annotated[
    str | None, typer.Option(help="unet, dit, unet1d or mlp; by default by the data's shape")
]
MaxNfe = Annotated[
    int | None,
    typer.Option(
        help="evaluations of the network a sample at most; 50,000 for an adaptive solver", min=1
    ),
]
Condition = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE, label=3 say; several values, label=0,1,2, are taken in turn"),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="scale of classifier-free guidance; 1 is the condition as trained"),
]

Mask = Annotated[
    str | None,
    typer.Option(
        help="fill holes: a picture of the same size, white where --image was seen and black where "
        "it is to be filled"
    ),
]
Blur = Annotated[
    float | None,
    typer.Option(
        help="sharpen: --image was blurred by a Gaussian of that many pixels' standard deviation, "
        "periodic at the edges"
    ),
]
Downsample = Annotated[
    int | None,
    typer.Option(help="enlarge: each pixel of --image is a mean of so many by so many", min=2),
]
Grey = Annotated[bool, typer.Option("--grey", help="colour: --image is grey")]
NoiseStd = Annotated[
    float | None,
    typer.Option(
        help="standard deviation of the noise of --image, from -1 for black to 1 for white; 0.05"
    ),
]
Degrade = Annotated[
    bool,
    typer.Option(
        "--degrade",
        help="run of a degradation: degrade --image first, by conditions drawn from --seed; also "
        "writes the degraded picture",
    ),
]
Level = Annotated[
    int | None,
    typer.Option(
        help="run of a degradation: the level to which --image is degraded; the last by default",
        min=1,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="mmps (the default), pigdm, dps (as published), diffpir, replacement, repaint or "
        "particles; of a degradation tacos (the default), naive or direct"
    ),
]
Particles = Annotated[
    int, typer.Option(help="of --method particles, a multiple of 8, --count of them written")
]
