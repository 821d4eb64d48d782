"""Figures of the pages that no benchmark or example draws, into docs/images.

    python docs/figures.py

``restored.png`` puts heads over the columns of ``restored-mnist.png``, which
``benchmarks/restoration.py --pictures`` draws. ``schedules.png`` and ``reverse.png`` belong to
docs/mathematics.md.
"""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

import sdediff as sd

IMAGES = Path(__file__).parent / "images"
SDES = {"VP": sd.VP(), "VE": sd.VE(), "cosine": sd.Cosine(), "rectified flow": sd.RectifiedFlow()}
HEADS = [
    "the digit",
    "measured:\n4 x 4 means",
    "mean of the\nrestorations",
    "how unsure\n(std)",
    "four restorations",
]


def restored() -> Figure:
    """The picture of restored digits with a head over each kind of column."""
    picture = imread(IMAGES / "restored-mnist.png")
    height, width = picture.shape[:2]
    column = width / 8
    figure = Figure(figsize=(9, 7.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture, cmap="gray", interpolation="nearest")
    axes.set_axis_off()
    centres = [0.5, 1.5, 2.5, 3.5, 6.0]
    for head, centre in zip(HEADS, centres, strict=True):
        axes.text(centre * column, -6, head, ha="center", va="bottom", fontsize=12)
    axes.set_xlim(0, width)
    axes.set_ylim(height, -30)
    return figure


def schedules() -> Figure:
    """alpha, sigma and log-SNR over time."""
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    panels = dict(zip(("alpha", "sigma", "log-SNR"), figure.subplots(1, 3), strict=True))
    for name, sde in SDES.items():
        t = torch.linspace(sde.t_min, sde.t_max, 200, dtype=torch.float64)
        values = {"alpha": sde.alpha(t), "sigma": sde.sigma(t), "log-SNR": sde.log_snr(t)}
        for panel, value in values.items():
            panels[panel].plot(t / sde.t_max, value, label=name)
    for panel, axes in panels.items():
        axes.set(title=panel, xlabel="t / T")
    panels["sigma"].set_yscale("log")
    panels["log-SNR"].set_ylim(-15, 15)
    panels["alpha"].legend()
    return figure


def reverse() -> Figure:
    """Paths from noise to two modes, by the reverse SDE and by the probability flow."""
    model = sd.exact.GaussianMixture([[-1.0], [1.0]], 0.15, weights=[0.3, 0.7]).model(sd.VP())
    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, title, solver in zip(
        figure.subplots(1, 2, sharey=True),
        ("reverse SDE", "probability flow"),
        (sd.EulerMaruyama(), sd.Heun()),
        strict=True,
    ):
        out = sd.sample(model, (40, 1), solver=solver, steps=400, seed=0, trajectory=True)
        draw_paths(axes, title, out)
    return figure


def draw_paths(axes: Axes, title: str, out: sd.Solution) -> None:
    """Each sample's state over time, with noise on the left."""
    if out.trajectory is None:
        raise RuntimeError("a trajectory was asked for")
    axes.plot(out.times, out.trajectory[:, :, 0], linewidth=0.8, alpha=0.7)
    axes.set(title=title, xlabel="t", xlim=(1, 0))


def main() -> None:
    """Draw all of them."""
    for draw in (restored, schedules, reverse):
        draw().savefig(IMAGES / f"{draw.__name__}.png", dpi=90)


if __name__ == "__main__":
    main()
