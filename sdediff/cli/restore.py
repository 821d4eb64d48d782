"""``sdediff restore``."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sdediff import posterior
from sdediff.checkpoint import load, read_config
from sdediff.cli.conditions import Conditions, read_conditions
from sdediff.cli.degraded import Cold
from sdediff.cli.names import check_device
from sdediff.cli.sample import (
    Drawing,
    batch_of,
    check_memory,
    check_place,
    draw,
    event_of,
    write,
)
from sdediff.data import read_image
from sdediff.progress import progress_bar
from sdediff.protocols import Model
from sdediff.run_folder import check_out
from sdediff.solvers import Solution, Solver
from sdediff.solvers.given import check_name

__all__ = ["METHODS", "Damage", "run"]

_Made = tuple[Model, Solver | None]

METHODS: Final[dict[str, Callable[[Model, Any, Tensor], _Made]]] = {
    "mmps": lambda model, seen, y: (posterior.MMPS(model, seen, y), None),
    "pigdm": lambda model, seen, y: (posterior.PiGDM(model, seen, y), None),
    "dps": lambda model, seen, y: (model, posterior.PublishedDPS(seen, y)),
    "diffpir": lambda model, seen, y: (model, posterior.DiffPIR(seen, y)),
    "replacement": lambda model, seen, y: (model, posterior.Replacement(seen, y)),
    "repaint": lambda model, seen, y: (model, posterior.RePaint(seen, y)),
}
"""Model and solver of a measurement, by name; None is the default solver."""
_PARTICLES: Final = "particles"
_NOISE_STD: Final = 0.05


@dataclass(frozen=True)
class Damage:
    """What happened to a picture, as the command line says it: one of four, and noise; or, of a run
    of a degradation, the level, and whether the picture is yet to be degraded.
    """

    mask: str | None
    blur: float | None
    downsample: int | None
    grey: bool
    noise_std: float | None
    level: int | None = None
    degrade: bool = False

    @property
    def measured(self) -> dict[str, bool]:
        """The options of measurements, and whether they are given."""
        return {
            "--mask": self.mask is not None,
            "--blur": self.blur is not None,
            "--downsample": self.downsample is not None,
            "--grey": self.grey,
        }

    def measurement(self, event: tuple[int, ...]) -> posterior.LinearMeasurement:
        """The measurement of pictures of shape (C, H, W)."""
        if self.level is not None or self.degrade:
            raise ValueError(
                f"{'--degrade' if self.degrade else '--level'} is for the run of a degradation, "
                "train --sde blur, masking, downsampling or snow, and this is none: drop it"
            )
        given = self.measured
        named = [name for name, there in given.items() if there]
        if len(named) != 1:
            raise ValueError(
                f"got {' and '.join(named) or 'none of them'}: say what happened to the picture by "
                f"one of {', '.join(given)}"
            )
        size = _NOISE_STD if self.noise_std is None else self.noise_std
        if self.mask is not None:
            return posterior.Mask(_mask(check_out(self.mask, "--mask"), event), noise_std=size)
        if self.blur is not None:
            return posterior.Blur(_kernel(self.blur, event), noise_std=size)
        if self.downsample is not None:
            return posterior.Downsample(self.downsample, noise_std=size)
        if event[0] != 3:
            raise ValueError(
                f"--grey colours a picture, and the run's have {event[0]} channel, not 3: take a "
                "run that was trained in colour"
            )
        return posterior.Grey(noise_std=size)

    def outcome(
        self, seen: posterior.LinearMeasurement, image: Path, event: Sequence[int]
    ) -> Tensor:
        """y, (1, *outcome), of a picture in a file."""
        if self.mask is not None:
            # the hole may hold anything
            return seen.forward(_picture(image, event, "as the run's are"))
        shape = seen.forward(torch.zeros(1, *event)).shape[1:]
        why = f"{event[1]} / {self.downsample}" if self.downsample else "as the run's are"
        return _picture(image, shape, why)


def run(
    *,
    folder: Path,
    image: Path,
    out: Path,
    damage: Damage,
    method: str | None,
    particles: int,
    count: int,
    steps: int | None,
    condition: Sequence[str],
    seed: int,
    device: str | None,
    quiet: bool,
) -> int:
    """Draw restorations and write them; the exit code."""
    config = read_config(folder)
    event = event_of(folder, config)
    if not config["data"].get("image", False):
        raise ValueError(
            f"{folder} was trained on data of shape {event} that are no images, and restore is for "
            "pictures: call sdediff.sample(posterior.MMPS(model, measurement, y), ...) in Python"
        )
    check_place(out, image=True)
    check_memory(count, event)
    model: Model = load(folder, device=check_device(device))
    if "degrade" in model.sde.offers:
        told = {**damage.measured, "--noise-std": damage.noise_std is not None}
        if wrong := [name for name, there in told.items() if there]:
            raise ValueError(
                f"{folder} was trained on {model.sde!r}, and that is what happened to the picture: "
                f"drop {wrong[0]}"
            )
        picture = _picture(image, event, "as the run's are")
        cold = Cold(folder, config, model, picture, damage.level, damage.degrade)
        drawing = cold.drawing(method, count, steps, condition, seed, quiet=quiet)
        return cold.draw(drawing, out)
    method = "mmps" if method is None else method.lower().replace("_", "-")
    check_name("method", method, [*METHODS, _PARTICLES])
    steps = 100 if steps is None else steps
    seen = damage.measurement(event)
    y = damage.outcome(seen, image, event)
    conditions = read_conditions(folder, config, model, condition)
    if method == _PARTICLES:
        given = _Cloud(model, seen, y, event, count, particles, steps, conditions, seed, quiet)
        return given.draw(out)
    made, solver = METHODS[method](model, seen, y)
    drawing = Drawing(
        made, event, count, batch_of(event), solver, steps, None, conditions, seed, quiet,
        tiled=count > 1,
    )  # fmt: skip
    return draw(drawing, out)


@dataclass(frozen=True)
class _Cloud:
    """Particles of one posterior, of which ``count`` are drawn."""

    model: Model
    seen: posterior.LinearMeasurement
    y: Tensor
    event: tuple[int, ...]
    count: int
    n: int
    steps: int
    conditions: Conditions
    seed: int
    quiet: bool

    def draw(self, out: Path) -> int:
        """Draw and write; the exit code."""
        if self.count > self.n:
            raise ValueError(
                f"--count {self.count} of --particles {self.n}: raise --particles, or lower --count"
            )
        if any(len(value) > 1 for value in self.conditions.values.values()):
            raise ValueError("--method particles takes one value of a condition, label=3 say")
        began = time.perf_counter()
        with (
            warnings.catch_warnings(),
            progress_bar("sampling", total=1.0, show=not self.quiet) as bar,
        ):
            # said below, in words of the command line
            warnings.filterwarnings("ignore", "the particles of sample")
            found = posterior.sample_posterior(
                self.model,
                self.seen,
                self.y,
                (1, *self.event),
                particles=posterior.Particles(self.n, "pigdm"),
                steps=self.steps,
                seed=self.seed,
                condition=self.conditions.of(range(1)),
                callback=lambda snapshot: bar.update(snapshot.done),
            )
        if not bool(found.exact[0]):
            warnings.warn(
                f"the {self.n} particles are not yet the posterior: they count as "
                f"{float(found.genealogical_ess[0]):.3g} independent ones (100 are needed), and "
                f"their spread is too small. Raise --particles (now {self.n}) or --steps (now "
                f"{self.steps}), or --noise-std (now {self.seen.noise_std:g}) if the picture may "
                "be off by more; or take --method mmps, whose pictures look right at less cost",
                stacklevel=2,
            )
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.seed))
        rows = order[: self.count].to(found.x.device)
        drawn: Solution = replace(
            found.solution,
            x=found.draws[0][rows],
            nfe=found.solution.nfe[: self.count],
            seeds=None,
        )
        write(out, drawn, self.conditions, range(self.count), tiled=self.count > 1)
        if not self.quiet:
            print(
                f"{self.count} of {self.n} particles in {time.perf_counter() - began:.1f} s, log "
                f"evidence {float(found.log_evidence):.4g} +- "
                f"{float(found.log_evidence_error):.2g}; wrote {out}",
                file=sys.stderr,
            )
        return 0


def _mask(path: Path, event: Sequence[int]) -> Tensor:
    """Where the picture was seen, (H, W)."""
    pixels = _read("--mask", path, (1, *event[1:]), "as the run's are")[0]
    between = (pixels > 0) & (pixels < 255)
    if bool(between.any()):
        raise ValueError(
            f"--mask {path} holds greys, {int(pixels[between][0])} say: a mask is white (255) "
            "where the picture was seen and black (0) where it is to be filled; save it without "
            "smoothing"
        )
    if not bool((pixels > 0).any()) or bool((pixels > 0).all()):
        colour = "white" if bool((pixels > 0).any()) else "black"
        raise ValueError(
            f"--mask {path} is {colour} everywhere: it is white where the picture was seen and "
            "black where it is to be filled"
        )
    return pixels > 0


def _kernel(std: float, event: Sequence[int]) -> Tensor:
    """A Gaussian of this many pixels, (2 r + 1, 2 r + 1) with r = 3 std."""
    if not 0 < std < math.inf:
        raise ValueError(f"--blur is a positive number of pixels, got {std:g}")
    radius = math.ceil(3 * std)
    if 2 * radius + 1 > min(event[1:]):
        most = (min(event[1:]) - 1) // 2 // 3
        raise ValueError(
            f"--blur {std:g} has a kernel of {2 * radius + 1} pixels, more than the picture's "
            f"{min(event[1:])}: take {most} or less"
        )
    row = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / std).square())
    return torch.outer(row, row) / row.sum().square()


def _picture(path: Path, shape: Sequence[int], why: str) -> Tensor:
    """A picture (1, C, H, W) in [-1, 1]."""
    return _read("--image", path, shape, why)[None] / 127.5 - 1


def _read(option: str, path: Path, shape: Sequence[int], why: str) -> Tensor:
    """Pixels (C, H, W) from 0 to 255; a ValueError unless they have this shape."""
    if not path.is_file():
        raise FileNotFoundError(f"{option} {path}: there is no such file")
    pixels = torch.from_numpy(np.array(read_image(path), np.float32)).permute(2, 0, 1)
    channels, height, width = shape
    got = f"{option} {path} is {pixels.shape[2]} x {pixels.shape[1]}"
    if tuple(pixels.shape[1:]) != (height, width):
        raise ValueError(
            f"{got} pixels (width x height): expected {width} x {height}, {why}; resize or crop it"
        )
    if len(pixels) == 3 and channels == 1 and bool((pixels == pixels[:1]).all()):
        pixels = pixels[:1]
    if len(pixels) != channels:
        kinds = {1: "grey", 3: "in colour"}
        hint = "; --grey colours it" if channels == 3 and option == "--image" else ""
        raise ValueError(
            f"{option} {path} is {kinds[len(pixels)]}: expected a picture that is "
            f"{kinds.get(channels, f'of {channels} channels')}{hint}"
        )
    return pixels
