"""How straight the paths of a flow are, by which one knows how many steps it takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdediff.protocols import Model
from sdediff.sampling import sample
from sdediff.solvers import DDIM, Solver, rowwise

__all__ = ["straightness"]


def straightness(
    model: Model,
    shape: Sequence[int],
    *,
    solver: Solver | None = None,
    steps: int = 100,
    seed: int = 0,
) -> Tensor:
    """How far the probability flow of each sample is from a straight line at constant speed:
    float64 (B,), 0 for such a line.

        S = int ||dx_t / dt - (x_T - x_0)||^2 dt / ||x_T - x_0||^2,    t in units of its range

    (Liu et al. 2023, arXiv 2209.03003, eq. 6, over the squared length of the line, so that units do
    not matter). One step of Euler's method is exact where S = 0. ``shape`` is (B, *event); the path
    is taken at ``steps`` equal intervals of time, by a deterministic ``solver``, `DDIM` by default,
    from the noise of ``seed``.
    """
    solver = DDIM() if solver is None else solver
    if solver.stochastic:
        raise ValueError(f"{solver!r} draws noise along the way: take a solver of the flow, DDIM()")
    out = sample(
        model,
        shape,
        solver=solver,
        steps=steps,
        seed=seed,
        grid="uniform",
        last="noisy",
        trajectory=True,
    )
    path = torch.zeros(0) if out.trajectory is None else out.trajectory.cpu().double()
    h = out.times.diff().abs()
    moved = torch.stack([rowwise(step).square().sum(dim=1) for step in path.diff(dim=0)])
    line = rowwise(path[-1] - path[0]).square().sum(dim=1) / h.sum()
    return ((moved / h[:, None]).sum(dim=0) / line - 1).clamp(min=0)
