"""The commands and their options, and errors of the library in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from sdediff.cli.evaluate_command import evaluate
from sdediff.cli.options import (
    Atol,
    BatchSize,
    Blur,
    Condition,
    Degrade,
    Device,
    Downsample,
    Grey,
    Guidance,
    Level,
    Mask,
    MaxNfe,
    Method,
    NoiseStd,
    Particles,
    Quiet,
    Rtol,
    Seed,
    ShardSize,
    SolverName,
    Steps,
)
from sdediff.cli.solver_commands import compare, tune
from sdediff.cli.stopping import interruptible
from sdediff.cli.train_command import info, train

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Diffusion models as stochastic differential equations: train a score model, sample it by "
    "any solver.",
)


app.command()(train)


@app.command()
def sample(
    run: Annotated[str, typer.Argument(help="run folder made by train")],
    out: Annotated[
        str,
        typer.Option(
            help="file to write: .png (a grid of images), .npy or .npz; or a folder, of shards"
        ),
    ],
    solver: SolverName = None,
    steps: Steps = None,
    count: Annotated[int, typer.Option(help="how many samples are drawn", min=1)] = 64,
    batch_size: BatchSize = None,
    shard_size: ShardSize = None,
    rtol: Rtol = None,
    atol: Atol = None,
    max_nfe: MaxNfe = None,
    condition: Condition = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Draw samples from a run folder's model. Ctrl-C, SIGTERM and SIGHUP leave the batches that are
    complete. To a folder any number of processes draw together, and the same command goes on.
    """
    from sdediff.cli.sample import Asked
    from sdediff.cli.sharded import run as draw
    from sdediff.run_folder import check_out

    with interruptible():
        code = draw(
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
            check_out(out, "--out"),
            shard_size,
        )
    if code:
        raise typer.Exit(code)


@app.command()
def restore(
    run: Annotated[str, typer.Argument(help="run folder made by train, of images")],
    image: Annotated[str, typer.Option(help="picture to restore")],
    out: Annotated[str, typer.Option(help="file to write: .png, or .npy or .npz with all values")],
    mask: Mask = None,
    blur: Blur = None,
    downsample: Downsample = None,
    grey: Grey = False,
    noise_std: NoiseStd = None,
    degrade: Degrade = False,
    level: Level = None,
    method: Method = None,
    particles: Particles = 400,
    count: Annotated[
        int,
        typer.Option(help="how many restorations are drawn; a .png shows them side by side", min=1),
    ] = 1,
    steps: Annotated[
        int | None,
        typer.Option(
            help="steps of the solver; by default 100, of a degradation one a level", min=1
        ),
    ] = None,
    condition: Condition = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Restore a picture: samples of what it could have been, by the run's model. Say what happened
    to it by one of --mask, --blur, --downsample and --grey. A run of a degradation knows what
    happened: --level says how far.
    """
    from sdediff.cli.restore import Damage
    from sdediff.cli.restore import run as mend
    from sdediff.run_folder import check_out

    with interruptible():
        code = mend(
            folder=check_out(run, "the run folder"),
            image=check_out(image, "--image"),
            out=check_out(out, "--out"),
            damage=Damage(mask, blur, downsample, grey, noise_std, level, degrade),
            method=method,
            particles=particles,
            count=count,
            steps=steps,
            condition=condition or (),
            seed=seed,
            device=device,
            quiet=quiet,
        )
    if code:
        raise typer.Exit(code)


app.command()(info)
app.command()(compare)
app.command()(tune)
app.command()(evaluate)


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="folder to write")] = "runs/demo",
    steps: Annotated[
        int | None,
        typer.Option(
            help="training steps; by default so many that all takes about four minutes on two "
            "cores",
            min=1,
        ),
    ] = None,
    count: Annotated[int, typer.Option(help="samples of each solver", min=8)] = 128,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Train on digits of 28x28 pixels and sample by every family of solver, in four minutes."""
    from sdediff.cli.demo import run
    from sdediff.run_folder import check_out

    with interruptible():
        run(
            out=check_out(out, "--out"),
            steps=steps,
            count=count,
            seed=seed,
            device=device,
            quiet=quiet,
        )


@app.command()
def check(
    target: Annotated[
        str,
        typer.Argument(
            help="FILE.py:Name of an SDE or a solver, a class of one or a function that makes "
            "one; or "
            "vp, ve, ..."
        ),
    ],
    quiet: Quiet = False,
) -> None:
    """Check an SDE, every identity and then the equivalences of solvers under it, or a solver,
    every contract: the largest deviation and where; exit code 1 if one fails.
    """
    from sdediff.cli.check import run

    if not run(target, quiet=quiet):
        raise typer.Exit(1)


_ALWAYS = ("rtol", "atol", "lr")
"""Arguments of one word that mean nothing else in a message."""


def spoken(error: BaseException, arguments: Sequence[str]) -> str:
    """The message in one line, with the options of the command in the place of Python's
    arguments.
    """
    message = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        message = (
            f"not enough memory{f': {message}' if message else ''}; take a smaller --batch-size"
        )
    for name in _parameters(arguments):
        option = f"--{name.replace('_', '-')}"
        message = re.sub(rf"(?<![\w\-.]){name}=(?=[\w\[('\"])", f"{option} ", message)
        message = re.sub(rf"(?<![\w\-.]){name}=(?=\W|$)", option, message)
        if "_" in name or name in _ALWAYS:
            message = re.sub(rf"(?<![\w\-.(]){name}(?![\w.(])", option, message)
        else:
            message = re.sub(rf"(?<![\w\-.(]){name}(?= must be)", option, message)
            message = re.sub(rf"\b(drop|pass|raise|lower) {name}\b(?!=)", rf"\1 {option}", message)
    return message


def _parameters(arguments: Sequence[str]) -> list[str]:
    """The names of the options of the command that was called."""
    group: Any = typer.main.get_command(app)
    command = next((group.commands[word] for word in arguments if word in group.commands), None)
    options = () if command is None else command.params
    return [option.name for option in options if option.param_type_name == "option"]
