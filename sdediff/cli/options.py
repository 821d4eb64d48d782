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
    "Goal",
    "Grey",
    "GridNames",
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
    str | None,
    typer.Option(
        help="where the network is computed: cpu, cuda, cuda:1 or mps; by default cuda if "
        "it is there, else cpu"
    ),
]
Seed = Annotated[
    int, typer.Option(help="decides all random draws: the same seed gives the same result", min=0)
]
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
        help="how many samples are solved at a time; by default 64, or as many as have "
        "131,072 values where that is more",
        min=1,
    ),
]
ShardSize = Annotated[
    int | None,
    typer.Option(
        help="with a folder as --out: how many samples a shard has; by default those of "
        "four batches",
        min=1,
    ),
]
SolverName = Annotated[
    str | None,
    typer.Option(
        help="a name of the table of solvers, docs/command-line.md, or a .json file of "
        "tune; by default, with --steps the default solver, without them ode"
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        help="steps of a solver with fixed steps; by default 100 where --solver names one", min=1
    ),
]
Rtol = Annotated[
    float | None,
    typer.Option(
        help="relative tolerance of an adaptive solver, above 0; by default 1e-4, of "
        "adaptive-sde 0.05"
    ),
]
Atol = Annotated[
    float | None,
    typer.Option(
        help="absolute tolerance of an adaptive solver, in the units of the data, above 0; "
        "by default 1e-4, of adaptive-sde 0.05, times the data's standard deviation"
    ),
]
GridNames = Annotated[
    str | None,
    typer.Option(
        help="each solver with fixed steps on each of these grids, karras,log_snr say; by "
        "default on its own"
    ),
]
Goal = Annotated[
    float | None,
    typer.Option(
        help="say what reaches this with the fewest evaluations too: a median error in units of "
        "the data's standard deviation, or with --data a distance from the data, above 0"
    ),
]
SolverNames = Annotated[
    str | None,
    typer.Option(
        help="names of the table of solvers, docs/command-line.md, .json files of tune, and "
        "default, with commas between them; by default those of sdediff.compare"
    ),
]
Process = Annotated[
    str,
    typer.Option(
        help="the process: an SDE, vp, ve, subvp, cosine or rectified-flow; or a "
        "degradation of images, blur, masking, downsampling or snow"
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
    bool, typer.Option("--ignore-labels", help="train without the labels that an .npz holds")
]
Drop = Annotated[
    float | None,
    typer.Option(
        help="with --labels: the share of samples that are trained without their label, 0 "
        "to 1, which --guidance of sample needs; by default 0.1"
    ),
]
Network = Annotated[
    str | None,
    typer.Option(help="unet, dit, unet1d or mlp; by default the one for the shape of the data"),
]
MaxNfe = Annotated[
    int | None,
    typer.Option(
        help="the most evaluations of the network for any sample; by default 50,000 for an "
        "adaptive solver, no limit for others",
        min=1,
    ),
]
Condition = Annotated[
    list[str] | None,
    typer.Option(
        help="a condition of the network as NAME=VALUE, label=3 say; several values, "
        "label=0,1,2, are taken in turn, and label=none is no label"
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="scale of classifier-free guidance, any number: 1 is the condition as trained, "
        "larger ones draw it more clearly; by default there is no guidance"
    ),
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
        help="sharpen: the standard deviation, in pixels, of the Gaussian by which --image "
        "was blurred, above 0; edges are taken as periodic"
    ),
]
Downsample = Annotated[
    int | None,
    typer.Option(
        help="enlarge: each pixel of --image is the mean of a square with this side, in "
        "pixels of the result",
        min=2,
    ),
]
Grey = Annotated[bool, typer.Option("--grey", help="colour: --image is grey")]
NoiseStd = Annotated[
    float | None,
    typer.Option(
        help="standard deviation of the noise of --image in units in which black is -1 and "
        "white is 1, 0 or more; by default 0.05, which is 6.4 of the 255 levels of a "
        "pixel"
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
    int,
    typer.Option(
        help="with --method particles: how many there are, a multiple of 8; --count of them "
        "are written; 400, a first look, nearly always warns that they are too few: take 4000 or "
        "more"
    ),
]
