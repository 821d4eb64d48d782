"""Pictures: tiled images by Pillow, figures by matplotlib's Figure alone; nothing here touches
pyplot's global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdediff._extras import require
from sdediff.files import write_atomically
from sdediff.solvers.given import described, integer
from sdediff.tiles import grey_levels, tiled, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from sdediff.solvers import Snapshot, Solution

__all__ = [
    "StepRecorder",
    "image_grid",
    "image_rows",
    "reverse_process",
    "save_png",
    "scatter_flow",
    "step_sizes",
]

_TILE: Final = 48  # pixels, the size to which small images are enlarged
_INK: Final = "#22313f"
_QUIET: Final = "#6b7785"
_DATA: Final = "#2b6cb0"
_NOISE: Final = "#c05621"


def image_grid(
    x: Tensor,
    columns: int | None = None,
    scale: int | None = None,
    pad: int = 1,
    caption: str | None = None,
) -> Image:
    """Images (N, C, H, W) in [-1, 1], C = 1 or 3, row by row in one picture: 8-bit grey or RGB,
    grey lines between tiles.

    v = round(255 (clip(x, -1, 1) + 1) / 2). Each pixel becomes scale x scale (nearest neighbour; by
    default so that a tile is about 48 pixels high). ``columns`` is by default the least integer not
    below sqrt(N). ``pad``: width of the lines and of the frame, in pixels of the picture: its width
    is columns (scale W + pad) + pad. ``caption``: a text, which is written above the images.
    """
    _check_images(x, "x", "(N, C, H, W)", 4)
    count, _, height, width = x.shape
    across = min(count, _positive(columns, "columns") or math.isqrt(count - 1) + 1)
    factor = _positive(scale, "scale") or max(1, round(_TILE / max(height, width)))
    pad = integer("pad", pad, kind="a number of pixels, 0 or more")
    pixels = tiled(grey_levels(x), across, factor, pad)
    if caption is not None:
        pixels = np.concatenate([written(caption, *pixels.shape[1:]), pixels])
    picture: Image = require("PIL.Image", "plots").fromarray(
        pixels[..., 0] if pixels.shape[2] == 1 else pixels
    )
    return picture


def image_rows(rows: Mapping[str, Tensor]) -> Figure:
    """Images in rows, each with its label to the left, such as the samples of several solvers.

    ``rows``: by label, images (n, C, H, W) in [-1, 1], C = 1 or 3, of one shape for all rows.
    Values outside are clipped. A label may have several lines. Raises TypeError if there is no row,
    and ValueError if the rows have different shapes.
    """
    if not isinstance(rows, Mapping) or not rows:
        raise TypeError(f"rows must be images by label, {{'Heun': x}}; got {described(rows)}")
    for label, x in rows.items():
        _check_images(x, f"rows[{label!r}]", "(n, C, H, W)", 4)
    shapes = {label: tuple(x.shape) for label, x in rows.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"rows must be images of one shape; got {shapes}")
    count, _, height, width = next(iter(rows.values())).shape
    factor, pad = max(1, round(_TILE / max(height, width))), 2
    pixels = tiled(grey_levels(torch.cat(list(rows.values()))), count, factor, pad, line=255)
    longest = max(len(line) for label in rows for line in str(label).split("\n"))
    margin, across = 0.2 + 0.07 * longest, 0.6 * count  # inches, for the labels and the images
    down = across * pixels.shape[0] / pixels.shape[1]
    figure = _figure(margin + across, down)
    figure.set_layout_engine("none")  # which would leave no room for the labels
    axes = figure.add_axes((margin / (margin + across), 0.0, across / (margin + across), 1.0))
    _shown(axes, pixels)
    axes.set_xticks([])
    middles = [pad + factor * height / 2 + i * (factor * height + pad) for i in range(len(rows))]
    axes.set_yticks(middles, list(rows), fontsize=8, color=_INK)
    return figure


def save_png(image_or_figure: Image | Figure, path: str | Path) -> None:
    """Write a picture or a figure as PNG, whole or not at all: to a file beside ``path``, which
    then takes its place.
    """
    save: Any = getattr(image_or_figure, "savefig", None) or getattr(image_or_figure, "save", None)
    if save is None:
        hint = (
            "; make a picture of it first: save_png(image_grid(x), path)"
            if isinstance(image_or_figure, Tensor)
            else ""
        )
        raise TypeError(
            "expected a Pillow image or a matplotlib Figure, got "
            f"{type(image_or_figure).__name__}{hint}"
        )
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"{target} does not end in .png: name a .png file")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {target}: there is no folder {target.parent}; make it first"
        )
    if target.is_dir():
        raise ValueError(f"cannot write {target}: it is a folder; name a file in it")
    buffer = io.BytesIO()
    save(buffer, format="png")
    try:
        write_atomically(target, buffer.getvalue())
    except OSError as error:
        raise ValueError(
            f"cannot write {target} ({error.strerror}): choose a folder that can be written to"
        ) from error


def reverse_process(frames: Tensor, times: Sequence[float], columns: int | None = None) -> Figure:
    """Images on their way from noise to data: one row for each sample, one column for each time,
    labelled by it.

    ``frames``: the states (K, n, C, H, W) at ``times``, in [-1, 1] (others are clipped).
    ``times``: K times. Columns are in the order of falling t: noise on the left, data on the right.
    ``columns``: how many of the K are shown, evenly chosen, both ends among them; by default all.
    """
    _check_images(frames, "frames", "(K, n, C, H, W)", 5)
    t = _check_times(times, frames)
    order = _pick(np.argsort(-t, kind="stable"), _positive(columns, "columns"))
    chosen, (_, rows, _, height, width) = frames[torch.from_numpy(order)], frames.shape
    factor, pad = max(1, round(_TILE / max(height, width))), 2
    by_row = chosen.transpose(0, 1).flatten(0, 1)
    pixels = tiled(grey_levels(by_row), len(order), factor, pad, line=255)
    figure = _figure(max(5.0, 0.72 * len(order)), 0.85 + 0.7 * rows * height / width)
    axes = figure.add_subplot()
    _shown(axes, pixels)
    axes.set_xticks(
        [pad + factor * width / 2 + i * (factor * width + pad) for i in range(len(order))]
    )
    axes.set_xticklabels([_label(t[i]) for i in order], fontsize=8, color=_QUIET)
    axes.set_yticks([])
    axes.set_xlabel(_direction(t), fontsize=9, color=_QUIET)
    axes.set_title("Reverse process: from noise to data", fontsize=12, color=_INK, loc="left")
    return figure


def scatter_flow(frames: Tensor, times: Sequence[float], columns: int | None = 5) -> Figure:
    """Points in the plane on their way from noise to data: the cloud at several times, then the
    paths of about 60 points.

    ``frames``: the states (K, n, 2) at ``times``.
    ``times``: K times. Clouds are in the order of falling t.
    ``columns``: how many of the K clouds are shown, both ends among them; None for all. The paths
    go through all K.

    The axes are equal, and the same in all panels unless the noise is more than five times as wide
    as the data, as under a VE SDE: then each cloud has its own.
    """
    if frames.ndim != 3 or frames.shape[-1] != 2 or 0 in frames.shape:
        raise ValueError(
            f"frames has shape {tuple(frames.shape)}: expected points (K, n, 2), K times of n "
            "points"
        )
    _check_finite(frames, "frames")
    t = _check_times(times, frames)
    order = np.argsort(-t, kind="stable")
    points: NDArray[np.float64] = frames.detach().double().cpu().numpy()[order]
    shown = _pick(np.arange(len(order)), _positive(columns, "columns"))
    middle, all_around = points.mean(axis=1), points.mean(axis=(0, 1))
    own = _reach(points - middle[:, None])
    common = float(_reach(points - all_around).max())
    if common <= 5 * own[-1]:
        middle = np.broadcast_to(all_around, middle.shape)
        own = np.full_like(own, common)
    figure = _figure(2.3 * (len(shown) + 1), 2.75)
    panels = figure.subplots(1, len(shown) + 1, squeeze=False)[0]
    for axes, k in zip(panels, shown, strict=False):
        axes.scatter(
            *points[k].T,
            s=max(1.0, min(9.0, 4000 / points.shape[1])),
            c=_DATA,
            alpha=0.6,
            linewidths=0,
        )
        _square(axes, middle[k], float(own[k]), _label(t[order[k]]))
    some = np.unique(
        np.linspace(0, points.shape[1] - 1, min(60, points.shape[1])).round().astype(int)
    )
    paths = points[:, some]
    panels[-1].plot(paths[..., 0], paths[..., 1], color=_QUIET, linewidth=0.5, alpha=0.6)
    panels[-1].scatter(*paths[0].T, s=7, c=_NOISE, linewidths=0, zorder=3, label="noise")
    panels[-1].scatter(*paths[-1].T, s=7, c=_DATA, linewidths=0, zorder=3, label="data")
    panels[-1].legend(
        fontsize=7, frameon=False, loc="upper right", handletextpad=0.1, borderpad=0.1
    )
    _square(panels[-1], all_around, common, f"{len(some)} paths")
    figure.suptitle(
        "Reverse process: from noise to data", fontsize=12, color=_INK, x=0.01, ha="left"
    )
    return figure


class StepRecorder:
    """A ``callback`` that keeps where every sample stood: ``out = sample(..., callback=steps)``,
    then ``steps.times(out)``.
    """

    def __init__(self) -> None:
        self._paths: dict[int, list[float]] = {}

    def __call__(self, snapshot: Snapshot) -> None:
        rows = range(len(snapshot.nfe)) if snapshot.rows is None else snapshot.rows.tolist()
        for sample, t in zip(rows, snapshot.t.expand(len(rows)).tolist(), strict=True):
            path = self._paths.setdefault(sample, [])
            if not path or path[-1] != t:
                path.append(t)

    def times(self, solution: Solution) -> list[Tensor]:
        """The times that each sample stepped on, float64, from the start to the end or to where it
        failed.
        """
        start, end = float(solution.times[0]), float(solution.times[-1])
        found = []
        for sample, status in enumerate(solution.status.tolist()):
            path = [
                start,
                *(t for t in self._paths.get(sample, ()) if t not in (start, end)),
                *([] if status else [end]),
            ]
            found.append(torch.tensor(path, dtype=torch.float64))
        return found


def step_sizes(times: Sequence[Tensor]) -> Figure:
    """The size of every step over the time that it covers: a line for each sample, those of fewest
    and most steps in colour.

    ``times``: for each sample the times on which it stepped (see `StepRecorder`), drawn with noise
    on the left and data on the right.
    """
    paths = [np.asarray(path.detach().double().cpu()) for path in times]
    if not paths or any(
        path.ndim != 1 or len(path) < 2 or not np.isfinite(path).all() for path in paths
    ):
        raise ValueError(
            "times must hold two finite times or more for each sample, as StepRecorder.times "
            "gives them"
        )
    count = np.array([len(path) - 1 for path in paths])
    figure = _figure(7.0, 3.4)
    axes = figure.add_subplot()
    few, many = int(count.argmin()), int(count.argmax())
    shown = np.unique(np.linspace(0, len(paths) - 1, min(200, len(paths))).round().astype(int))
    for i in [*shown.tolist(), few, many]:
        size = np.abs(np.diff(paths[i]))
        line, colour = (1.6, _DATA if i == few else _NOISE) if i in (few, many) else (0.5, _QUIET)
        axes.plot(
            paths[i],
            [*size, size[-1]],
            drawstyle="steps-post",
            color=colour,
            linewidth=line,
            alpha=1 if line > 1 else 0.25,
        )
    for i, colour, label in ((few, _DATA, "fewest"), (many, _NOISE, "most")):
        axes.plot([], [], color=colour, linewidth=1.6, label=f"{label}: {count[i]} steps")
    axes.plot([], [], color=_QUIET, linewidth=0.5, label=f"{len(shown)} samples")
    axes.set_yscale("log")
    axes.set_xlim(max(path.max() for path in paths), min(path.min() for path in paths))
    axes.legend(fontsize=8, frameon=False)
    axes.set_xlabel("time t, from noise on the left to data on the right", fontsize=9, color=_QUIET)
    axes.set_ylabel("step size", fontsize=9, color=_QUIET)
    axes.tick_params(which="both", labelsize=7, colors=_QUIET)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Every sample has its own steps", fontsize=12, color=_INK, loc="left")
    return figure


def _reach(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,): the largest coordinate of each of the clouds (K, n, 2), with a margin, and never
    zero.
    """
    reach: NDArray[np.float64] = np.maximum(1.05 * np.abs(points).max(axis=(1, 2)), 1e-12)
    return reach


def _square(axes: Any, centre: NDArray[np.float64], limit: float, label: str) -> None:
    x, y = centre
    axes.set(xlim=(x - limit, x + limit), ylim=(y - limit, y + limit), aspect="equal")
    axes.set_xlabel(label, fontsize=9, color=_QUIET)
    axes.tick_params(labelsize=6, length=2, colors=_QUIET)
    axes.spines[:].set_color("#c9d1d9")


def _figure(width: float, height: float) -> Figure:
    make = require("matplotlib.figure", "plots").Figure
    figure: Figure = make(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    return figure


def _shown(axes: Any, pixels: NDArray[np.uint8]) -> None:
    """Draw a picture without a frame, one unit of the axes for each of its pixels."""
    axes.imshow(
        pixels,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
        extent=(0, pixels.shape[1], pixels.shape[0], 0),
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _pick(order: NDArray[np.intp], count: int | None) -> NDArray[np.intp]:
    """``count`` of the entries, evenly chosen, the last among them and, for two or more, the
    first.
    """
    if count is None or count >= len(order):
        return order
    places = np.linspace(len(order) - 1, 0, count).round().astype(np.intp)[::-1]
    return np.asarray(order[places], np.intp)


def _label(t: float) -> str:
    return f"t = {t:.2f}" if t >= 0.005 or t == 0 else f"t = {t:.0e}"


def _direction(t: NDArray[np.float64]) -> str:
    return f"time t, from {t.max():g} (noise) on the left to {t.min():.3g} (data) on the right"


def _check_images(x: Tensor, name: str, shape: str, rank: int) -> None:
    if x.ndim != rank or 0 in x.shape or x.shape[rank - 3] not in (1, 3):
        wanted = f"images {shape} with C = 1 or 3 channels"
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}: expected {wanted}; reshape it, or choose channels"
        )
    _check_finite(x, name)


def _check_finite(x: Tensor, name: str) -> None:
    bad = (~torch.isfinite(x)).nonzero()
    if len(bad):
        where = tuple(bad[0].tolist())
        raise ValueError(
            f"{name} has NaN or inf in {len(bad)} of {x.numel()} values, first at {where}: leave "
            "those samples out"
        )


def _check_times(times: Sequence[float], frames: Tensor) -> NDArray[np.float64]:
    t = np.asarray([float(time) for time in times])
    if len(t) != len(frames) or not np.isfinite(t).all():
        raise ValueError(
            f"got {len(t)} times for {len(frames)} frames: expected one finite time for each frame"
        )
    return t


def _positive(value: int | None, name: str) -> int | None:
    return (
        None
        if value is None
        else integer(name, value, 1, kind="at least 1", hint=": leave it out for the default")
    )
