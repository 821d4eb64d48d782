"""First-order steps of the exact posterior: the exponential integrator in its data form, and
DDIM, with its inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Number, along, rowwise, weighted
from sdediff.solvers.exponential.flow import Flow
from sdediff.solvers.exponential.stages import order_one
from sdediff.solvers.given import Count, NotNegative, reading, reals
from sdediff.solvers.noise import StepNoise
from sdediff.solvers.problem import Problem
from sdediff.solvers.solver import Solver, Step

__all__ = ["DDIM", "Ancestral", "InverseDDIM", "posterior_weights"]


class _Plan(NamedTuple):
    at: Any  # keep x + push E[x_0 | x]
    std: Number = 0.0
    ends: Any = ()  # t and s, where noise is drawn


@dataclass(frozen=True, repr=False)
class _OrderOne(Solver):
    """x_s = keep x + push E[x_0 | x] + std z."""

    spacing = "logistic"

    def _planned(
        self, problem: Problem, times: Tensor, keep: Tensor, push: Tensor, std: Tensor
    ) -> list[_Plan]:
        at = problem.at(times[:-1], "data", keep, push)
        (stds,) = problem.coefs(len(at), std)
        return list(map(_Plan, at, stds, pairwise(times.unbind())))

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        mean = problem.evaluate(x, plan.at)
        if not plan.ends:
            return Step(mean)
        return Step(weighted((1.0, mean), (plan.std, noise.over(*plan.ends))), mean)


@dataclass(frozen=True)
class Ancestral(_OrderOne):
    """x_s ~ q(x_s | x_t, x_0) at x_0 = E[x_0 | x_t], the exact Gaussian posterior of the forward
    process.

    DDPM's ancestral step with the posterior variance (Ho et al. 2020, eq. 6 and 7) between any two
    times of any linear SDE; equally, the reverse SDE with the data prediction held over the step
    and everything else integrated exactly (SDE-DPM-Solver++ of order 1). With ``stochasticity``
    lambda it is that step of the family lambda; 0 is `DDIM`. Order 1.
    """

    needs = frozenset({"data", "marginal"})
    solves_sde = True

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        points = Flow(problem, "data", "log_snr").points(times)
        return self._planned(
            problem, times, *order_one(points.part(slice(None, -1)), points.part(slice(1, None)))
        )


def posterior_weights(
    std: Tensor, t: tuple[Tensor, Tensor], s: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(keep, data) of q(x_s | x_t, x_0) = N(keep x_t + data x_0, std^2 I): keep = sqrt(sigma_s^2 -
    std^2) / sigma_t and data = alpha_s - keep alpha_t (Song et al. 2021, arXiv 2010.02502, eq. 7).

    ``t`` and ``s`` are (alpha, sigma) there. Every ``std`` in [0, sigma_s] keeps the marginals
    N(alpha x_0, sigma^2 I); a ValueError for another one.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = t, s
    wrong = ~((std >= 0) & (std <= sigma_s * (1 + 1e-12)))
    if bool(wrong.any()):
        got, most = (each.expand_as(wrong)[wrong][0] for each in (std, sigma_s))
        raise ValueError(
            f"std must lie in [0, sigma_s] = [0, {abs(float(most)):.6g}], or x_s has more noise "
            f"than its marginal; got {float(got):.6g}"
        )
    keep = ((sigma_s - std) * (sigma_s + std)).clamp(min=0).sqrt() / sigma_t
    return keep, alpha_s - keep * alpha_t


@dataclass(frozen=True, repr=False)
class DDIM(_OrderOne):
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - v^2) (x - alpha_t x_0) / sigma_t + v z, with x_0 = E[x_0
    | x_t] and v = eta std(x_s | x_t, x_0).

    DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16) for any linear SDE. ``eta`` = 0 is the
    exponential Euler step of the probability flow, 1 is `Ancestral`, larger values up to where
    sigma_s^2 = v^2 add more noise. ``eta`` may be a function of t, the time at which a step starts:
    it takes a float64 tensor (n,) and returns as many numbers >= 0.

    ``sigmas`` are v itself, the paper's free sigma of each step, in place of ``eta``: a number for
    each of the N steps, from the first to the last, in [0, sigma_s] and in the units of the data.
    Every choice keeps the marginals q(x_t | x_0) (eq. 7; `LinearSDE.posterior`). Order 1, one
    evaluation a step.
    """

    eta: NotNegative | Callable[[Tensor], Tensor] = 0.0
    sigmas: tuple[float, ...] | None = None

    needs = frozenset({"data", "marginal", "kernel"})

    @property
    def stochastic(self) -> bool:
        return callable(self.eta) or self.eta > 0 or any(self.sigmas or ())

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        alpha, sigma = problem.marginal(times)
        std = None if self.sigmas is None else self._given(problem, times, sigma[1:])
        if not self.stochastic:
            keep = sigma[1:] / sigma[:-1]
            push = alpha[1:] - keep * alpha[:-1]
            return list(map(_Plan, problem.at(times[:-1], "data", keep, push)))
        if std is None:
            std = self._by_eta(problem, times, sigma)
        here, there = (alpha[:-1], sigma[:-1]), (alpha[1:], sigma[1:])
        return self._planned(problem, times, *posterior_weights(std, here, there), std)

    def _by_eta(self, problem: Problem, times: Tensor, sigma: Tensor) -> Tensor:
        """eta std(x_s | x_t, x_0); a ValueError where it exceeds sigma_s."""
        t, s = times[:-1], times[1:]
        eta: Any = self.eta
        if callable(eta):
            eta = reals("DDIM: eta(t)", reading("eta", eta, "t", t.reshape(-1)), "cpu")
            if eta.shape not in ((), (t.numel(),)) or not bool((eta >= 0).all()):
                raise ValueError(
                    "DDIM: eta(t) must be numbers >= 0, shaped as t, a float64 tensor (n,); got "
                    f"{eta!r}"
                )
            eta = eta.expand(t.numel()).reshape(t.shape)
        _, std = problem.kernel(torch.maximum(t, s), torch.minimum(t, s))
        # Towards noise (encoding) the conditional spread is the kernel's own: DDIM has no noise to
        # add there.
        share = torch.where(s <= t, std / sigma[:-1], 0.0)
        found: Tensor = eta * share
        over = (found > 1 + 1e-12).reshape(len(found), -1).any(dim=1)
        if bool(over.any()):
            i = int(torch.nonzero(over)[0])
            raise ValueError(
                f"DDIM: eta = {float((found / share)[i].max()):g} asks for more noise than there "
                f"is in x at step {i}; take eta <= {1 / float(share.max()):.4g}"
            )
        return found * sigma[1:]

    def _given(self, problem: Problem, times: Tensor, sigma_s: Tensor) -> Tensor:
        """``sigmas`` in the problem's units, for the steps that the plan is for; a ValueError
        unless there is one for each step, of at most sigma_s.
        """
        if self.eta != 0:
            raise ValueError("DDIM: eta and sigmas are two ways to say the same: pass one of them")
        grid = times if problem.grid is None else problem.grid
        sigmas = torch.tensor(self.sigmas, dtype=torch.float64)
        if len(sigmas) != len(grid) - 1:
            raise ValueError(
                f"DDIM: sigmas are one for each step: {len(sigmas)} for a grid of "
                f"{len(grid) - 1} steps, of which some may end where the model jumps"
            )
        first = int(torch.nonzero((grid == times[0]).reshape(len(grid), -1).all(dim=1))[0])
        found = sigmas[first : first + len(times) - 1] / problem.unit
        found = found.reshape(-1, *[1] * (times.ndim - 1)).expand_as(sigma_s)
        inside = (found >= 0) & (found <= sigma_s * (1 + 1e-12))
        wrong = ~inside.reshape(len(found), -1).all(dim=1)
        if bool(wrong.any()):
            i = int(torch.nonzero(wrong)[0])
            most = problem.unit * float(sigma_s[i].min())
            raise ValueError(
                f"DDIM: sigmas[{first + i}] must lie in [0, sigma_s] = [0, {most:.6g}], the noise "
                f"where the step ends; got {sigmas[first + i]:.6g}"
            )
        return found


class _Inverse(NamedTuple):
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
    init_evaluations = 1

    @property
    def evaluations(self) -> int:
        return self.iterations

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Inverse]:
        alpha, sigma = problem.marginal(times)
        if bool((alpha == 0).any()):
            raise ValueError(
                "InverseDDIM: where alpha = 0 no state leads back to the data: end the grid before"
            )
        keep = alpha[1:] / alpha[:-1]
        push = sigma[1:] - keep * sigma[:-1]
        at = problem.at(times[1:], "noise")
        rows = zip(at, times[1:].unbind(), *problem.coefs(len(at), keep, push), strict=True)
        return [_Inverse(*row) for row in rows]

    def init(self, problem: Problem, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """The noise at the start, from which the first iteration begins."""
        return (problem.noise(x, t),)

    def step(
        self,
        problem: Problem,
        x: Tensor,
        plan: _Inverse,
        noise: StepNoise,
        state: tuple[Tensor, ...],
    ) -> Step:
        (eps,) = state
        y = weighted((plan.keep, x), (plan.push, eps))
        moving = torch.ones(len(x), dtype=torch.bool, device=x.device)
        move = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for _ in range(self.iterations):
            rows = along(moving, x)
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
