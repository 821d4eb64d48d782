"""An SDE of your own: five lines, checked, sampled by any solver, and property-tested.

    python examples/own_sde.py --out runs/own_sde      # half a minute

Nothing is trained: the data are a mixture of Gaussians whose score is known exactly under any
linear SDE, so that every deviation is the solver's. Prints how far solvers end from the exact end
of the probability flow, by their steps or tolerances, and draws it in ``errors.png``. Run by
pytest, ``pytest examples/own_sde.py``, the last function is a test of the SDE.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from hypothesis import given, settings
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullFormatter

import sdediff as sd
from sdediff.plots import save_png
from sdediff.testing import check_sde, strategies


class Cubic(sd.LinearSDE):
    """dx = -beta(t) / 2 x dt + sqrt(beta(t)) dw, beta(t) = 0.1 + 19.9 t^3."""

    def f(self, t):  # the drift is f(t) x; all else is derived from f and g
        return -0.5 * (0.1 + 19.9 * t**3)

    def g(self, t):
        return (0.1 + 19.9 * t**3).sqrt()


LAW = sd.exact.GaussianMixture([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], 0.2)
FIXED = {
    "default solver": None,
    "DDIM": sd.DDIM(),
    "Heun": sd.Heun(),
    "DPM-Solver++(2M)": sd.solvers.DPMSolverPP(),
}
ADAPTIVE = {"RK45": sd.RK45, "DOP853": sd.solvers.DOP853, "Tsit5": sd.solvers.Tsit5}


def main() -> None:
    """Check the SDE, solve in many ways, print and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=80, help="most steps of a fixed-step solver")
    parser.add_argument("--out", type=Path, default=Path("runs/own_sde"), help="folder to write")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    sde = Cubic()
    check_sde(sde)  # prints a table; raises SDEError, naming what fails, if f and g do not fit
    model = LAW.model(sde)
    common = {"seed": 0, "dtype": torch.float64, "last": "noisy"}
    exact = sd.sample(model, (500, 2), solver=sd.solvers.DOP853(1e-10, 1e-10), **common).x

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()

    def measured(name, solver, **options):
        out = sd.sample(model, (500, 2), solver=solver, **options, **common)
        error = float((out.x - exact).square().mean().sqrt())
        print(f"{name:28} {float(out.nfe.double().mean()):6.0f} evaluations, error {error:.1e}")
        return float(out.nfe.double().mean()), error

    halved = [arguments.steps // 2**k for k in range(4) if arguments.steps // 2**k >= 2]
    for name, solver in FIXED.items():
        line = [measured(f"{name}, {n} steps", solver, steps=n) for n in halved]
        axes.loglog(*zip(*line, strict=True), marker="o", label=name)
    for name, make in ADAPTIVE.items():
        tolerances = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
        line = [measured(f"{name}, tolerance {tol:g}", make(tol, tol)) for tol in tolerances]
        axes.loglog(*zip(*line, strict=True), marker="s", linestyle="--", label=name)
    for axis in (axes.xaxis, axes.yaxis):
        # Plain numbers: powers of ten would load mathematical fonts, which not every machine finds.
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="evaluations of the model a sample", ylabel="distance from the exact end (rms)")
    axes.set_title("Solid: a number of steps. Dashed: tolerances from 1e-2 to 1e-6", fontsize=10)
    axes.legend(fontsize=8)
    save_png(figure, arguments.out / "errors.png")


@settings(max_examples=20, deadline=None)
@given(strategies.cases(sde=Cubic()))
def test_ddim_is_the_exponential_euler_step(case):
    """On random mixtures, grids and predictions: DDIM is DPM-Solver of order 1 under this SDE."""
    ddim, dpm = case.solve(sd.DDIM()), case.solve(sd.solvers.DPMSolver(1))
    torch.testing.assert_close(ddim, dpm, rtol=1e-9, atol=1e-9)


if __name__ == "__main__":
    main()
