"""The inverse of a DDIM step, solved for exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, rowwise, weighted
from sdediff.solvers.given import Count, NotNegative
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver, Step

__all__ = ["InverseDDIM"]


class _Plan(NamedTuple):
    at: Any  # the noise at s
    s: Tensor
    keep: Number
    push: Number


@dataclass(frozen=True)
class InverseDDIM(Solver):
    """The state x_s from which the `DDIM` step from s to t leads to x: x_s = (alpha_s / alpha_t) x
    + (sigma_s - alpha_s / alpha_t sigma_t) noise(x_s, s), by fixed-point iteration.

    On a rising grid it encodes data so that DDIM on the same grid backwards gives them again, to
    ``tol``; DDIM's own step in that direction (Song et al. 2021, arXiv 2010.02502, section 4.3)
    takes the noise at (x, t) and closes at order 1 alone (Pan et al. 2023, arXiv 2307.10829,
    iterate likewise). The iteration contracts by about 1 - (sigma_t / alpha_t) / (sigma_s /
    alpha_s) where noise dominates. It stops for each sample when no coordinate moves by more than
    tol (1 + its largest); a RuntimeError says where that does not come about in ``iterations``:
    then take more steps. One evaluation an iteration, and one to start.
    """

    tol: NotNegative = 1e-6
    iterations: Count = 50

    needs = frozenset({"noise", "marginal"})
    spacing = "logistic"
    has_memory = True

    @property
    def evaluations(self) -> int:
        return self.iterations

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The coefficients of each interval."""
        alpha, sigma = problem.marginal(times)
        if bool((alpha == 0).any()):
            raise ValueError(
                "InverseDDIM: where alpha = 0 no state leads back to the data: end the grid before"
            )
        keep = alpha[1:] / alpha[:-1]
        push = sigma[1:] - keep * sigma[:-1]
        at = problem.at(times[1:], "noise")
        rows = zip(at, times[1:].unbind(), *problem.coefs(len(at), keep, push), strict=True)
        return [_Plan(*row) for row in rows]

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """The noise at the start, from which the first iteration begins."""
        return (problem.noise(x, t),)

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        """Iterate to the fixed point."""
        (eps,) = state
        y = weighted((plan.keep, x), (plan.push, eps))
        moving = torch.ones(len(x), dtype=torch.bool, device=x.device)
        move = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for _ in range(self.iterations):
            rows = moving.reshape(-1, *(1,) * (x.ndim - 1))
            eps = torch.where(rows, problem.evaluate(y, plan.at), eps)
            new = torch.where(rows, weighted((plan.keep, x), (plan.push, eps)), y)
            flat = rowwise(new.detach())
            move = (flat - rowwise(y.detach())).abs().amax(dim=1)
            moving = moving & (move > self.tol * (1 + flat.abs().amax(dim=1)))
            y = new
            if self.tol > 0 and not bool(moving.any()):
                break
        if self.tol > 0 and bool(moving.any()):
            worst = int(torch.where(moving, move, -1).argmax())
            raise RuntimeError(
                f"InverseDDIM: after {self.iterations} iterations sample {worst} still moves by "
                f"{float(move[worst]):.2g} at "
                f"t = {float(plan.s.max()):.6g}; take more steps, more iterations or a larger "
                f"tol = {self.tol:g}"
            )
        return Step(y, y, (eps,))
