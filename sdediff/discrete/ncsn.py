"""NCSN (Song and Ermon 2019, arXiv 1907.05600; 2020, arXiv 2006.09011) as an exact discretization
of a variance-exploding SDE.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.special import ndtr
from torch import Tensor

from sdediff.arguments import check_states
from sdediff.discrete.chain import Chain, Levels
from sdediff.objectives import DenoisingScoreMatching
from sdediff.objectives.objective import Batch, Loss
from sdediff.sde import InterpolatedVE, LinearSDE
from sdediff.sde.base import check_linear
from sdediff.sde.interpolated import points
from sdediff.solvers import Problem, Solver, Step, StepNoise, rowwise
from sdediff.solvers.given import Count, check_choice, integer, real

__all__ = ["NCSN", "NCSNLoss", "annealed_variance", "level_ratio", "widest_pair"]


class _Plan(NamedTuple):
    levels: tuple[tuple[Tensor, float], ...]  # (t, step) of the levels that this step visits


@dataclass(frozen=True, repr=False)
class NCSN(Chain, Solver):
    """Levels sigma_1 > ... > sigma_N of noise on data, x = x_0 + sigma_j noise, two or more, and
    annealed Langevin dynamics over them.

    As a solver it starts from the noise of sigma_1 and takes ``n_steps`` Langevin steps at each
    level (Algorithm 1),

        x <- x + eps_j score(x, sigma_j) + sqrt(2 eps_j) z,    eps_j = step_size sigma_j^2 /
        sigma_N^2,

    the convention of NCSNv2; NCSN itself writes eps_j / 2 and sqrt(eps_j), so that its epsilon is
    twice ``step_size`` (2e-5 there is 1e-5 here). ``last="denoise"`` of `sample`, its default, ends
    with x + sigma_N^2 score, as NCSNv2 does; ``"noisy"`` without. Evaluations: N n_steps, and one
    to denoise. ``t_start`` of `sample`, one of ``times``, starts it at that level, from the
    ``x_init`` given.

    As a chain, i = 1..N is the level sigma_{N + 1 - i}: noise rises with i and with the times
    ``grid``, 0 to 1 by default. ``step_size`` None: by `step_size_for`, from ``n_steps`` and the
    largest ratio of two levels. More ways to make one: `from_sde`, `geometric`, `linear`,
    `from_data`.
    """

    sigmas: tuple[float, ...]
    grid: tuple[float, ...] = ()
    step_size: float | None = None
    n_steps: Count = 100

    needs = frozenset({"score", "marginal"})
    stochastic = True

    def __post_init__(self) -> None:
        count = np.size(self.sigmas)
        even = [i / (count - 1) for i in range(count)] if count > 1 else [1.0]
        given = self.grid if np.size(self.grid) else even
        sigmas, grid = points("NCSN", "sigmas", self.sigmas, given, above=False)
        if len(sigmas) < 2:
            raise ValueError(
                f"NCSN: sigmas has one level, {sigmas[0]:g}: annealed Langevin dynamics go from a "
                "level to the next; for one level train by SlicedScoreMatching or "
                "DenoisingScoreMatching at one time, and sample by mcmc.ULA (examples/ncsn.py)"
            )
        if min(sigmas) <= 0:
            raise ValueError(f"NCSN: sigmas must be positive numbers, got {sigmas!r}")
        rise = next((j for j, (a, b) in enumerate(itertools.pairwise(sigmas)) if b >= a), None)
        if rise is not None:
            raise ValueError(
                "NCSN: sigmas must fall, from the largest noise to the smallest; "
                f"sigma_{rise + 1} = {sigmas[rise]:g} is followed "
                f"by {sigmas[rise + 1]:g}"
            )
        if self.step_size is not None and not 0 < self.step_size < sigmas[-1] ** 2:
            raise ValueError(
                f"NCSN: step_size must lie in (0, sigma_N^2) = (0, {sigmas[-1] ** 2:.3g}), or a "
                "step overshoots at every level; "
                f"got {self.step_size!r}"
            )
        vars(self).update(sigmas=sigmas, grid=grid)

    @classmethod
    def geometric(
        cls,
        sigma_max: float,
        sigma_min: float,
        N: int,
        *,
        step_size: float | None = None,
        n_steps: int = 100,
    ) -> NCSN:
        """sigma_j in geometric progression from ``sigma_max`` to ``sigma_min`` (section 4.2; N =
        10, 1 to 0.01 there).
        """
        return cls(_spaced(sigma_max, sigma_min, N), step_size=step_size, n_steps=n_steps)

    @classmethod
    def linear(
        cls,
        sigma_max: float,
        sigma_min: float,
        N: int,
        *,
        step_size: float | None = None,
        n_steps: int = 100,
    ) -> NCSN:
        """sigma_j evenly spaced from ``sigma_max`` to ``sigma_min``, the uniform levels of NCSNv2's
        code.
        """
        sigmas = _spaced(sigma_max, sigma_min, N, "linear")
        return cls(sigmas, step_size=step_size, n_steps=n_steps)

    @classmethod
    def from_sde(
        cls,
        sde: LinearSDE,
        N: int,
        *,
        spacing: Literal["geometric", "linear"] = "geometric",
        step_size: float | None = None,
        n_steps: int = 100,
    ) -> NCSN:
        """N levels from sigma(t_max) to sigma(t_min) of an SDE with alpha = 1, in geometric
        progression or (``"linear"``) evenly spaced, at the times where it has them: geometric
        levels of `VE` at t_i = T (i - 1) / (N - 1) (Song et al. 2021, arXiv 2011.13456, Appendix
        C).
        """
        check_choice("spacing", spacing, ("geometric", "linear"))
        check_linear(sde)
        ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
        gap = float((sde.alpha(torch.cat([ends, ends.mean().reshape(1)])) - 1).abs().max())
        if gap > 1e-9:
            raise ValueError(
                f"NCSN needs alpha = 1, {sde!r} is off by {gap:.2g}; use DDPM.from_sde where "
                "alpha^2 + sigma^2 = 1, or "
                "PredictorCorrector with Langevin(), which takes any linear SDE"
            )
        low, high = sde.sigma(ends).tolist()
        sigmas = _spaced(high, low, N, spacing)
        times = sde.time_of(-2 * torch.tensor(sigmas[::-1], dtype=torch.float64).log()).clamp(
            sde.t_min, sde.t_max
        )
        times[0], times[-1] = ends
        return cls(sigmas, tuple(times.tolist()), step_size, n_steps)

    @classmethod
    def from_data(cls, x_0: Tensor, *, sigma_min: float | None = None, n_steps: int = 5) -> NCSN:
        """NCSNv2's choices (Song and Ermon 2020, arXiv 2006.09011) for data x_0 (count, *event) of
        d coordinates.

        sigma_1 is the largest distance between two samples (Technique 1), the ratio of levels is
        `level_ratio` of d (Technique 2; a little less, so that the last is ``sigma_min``), and the
        step size brings the variance at each level nearest to right (Technique 4). The last two say
        how many evaluations sampling takes: N n_steps. ``sigma_min`` is a hundredth of the range of
        the data by default, the published 0.01 for images in [0, 1].
        """
        check_states("x_0", x_0)
        if len(x_0) < 2:
            raise ValueError(
                "NCSN.from_data takes the largest distance between two samples, and there is "
                f"{len(x_0)}"
            )
        sigma_max = widest_pair(x_0)
        sigma_min = (
            0.01 * float(x_0.max() - x_0.min())
            if sigma_min is None
            else real("sigma_min", sigma_min)
        )
        if not sigma_max > sigma_min > 0:
            raise ValueError(
                f"sigma_min must lie in (0, {sigma_max:.4g}), the largest distance of two "
                f"samples; got {sigma_min!r}"
            )
        N = 1 + math.ceil(
            math.log(sigma_max / sigma_min) / math.log(level_ratio(rowwise(x_0).shape[1]))
        )
        return cls(_spaced(sigma_max, sigma_min, N), n_steps=n_steps)

    def to_sde(self) -> InterpolatedVE:
        """The variance-exploding SDE with sigma(t_i) at the times ``grid``, smooth between them."""
        return InterpolatedVE(self.sigmas[::-1], self.grid)

    def __repr__(self) -> str:
        return (
            f"NCSN(N={self.N}, sigma {self.sigmas[0]:g} to {self.sigmas[-1]:g}, "
            f"n_steps={self.n_steps})"
        )

    @property
    def times(self) -> Tensor:
        """t_N, ..., t_1: those of sigma_1, ..., sigma_N."""
        return self.level_times.flip(0)

    @property
    def evaluations(self) -> int:
        """Of the step between two levels; the first visits the first level too."""
        return self.n_steps

    @cached_property
    def levels(self) -> Levels:
        """alpha = 1; the kernel adds noise of variance sigma_i^2 - sigma_{i-1}^2."""
        sigmas = torch.tensor([0.0, *self.sigmas[::-1]], dtype=torch.float64)
        variances = (sigmas[1:] - sigmas[:-1]) * (sigmas[1:] + sigmas[:-1])
        return Levels(torch.ones_like(sigmas), sigmas, torch.ones_like(variances), variances)

    @cached_property
    def step_sizes(self) -> Tensor:
        """eps_j of sigma_1, ..., sigma_N, float64 (N,)."""
        sigmas = torch.tensor(self.sigmas, dtype=torch.float64)
        least = (
            step_size_for(self.sigmas, self.n_steps) if self.step_size is None else self.step_size
        )
        return least * (sigmas / sigmas[-1]).square()

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """The levels that each step visits: its end, and the first one its start too, which is the
        level at times[0].
        """
        if len(times) < 2:
            raise ValueError(
                f"{self!r} needs two levels at least to sample by annealed Langevin dynamics, "
                "from its start on"
            )
        skipped = self.N - len(times)
        sigma = problem.unit * problem.marginal(times)[1]
        if float((sigma / self.levels.sigmas[1:].flip(0)[skipped:] - 1).abs().max()) > 1e-6:
            raise ValueError(
                f"{self!r} has other levels than the model's SDE; take NCSN.from_sde(model.sde, N)"
            )
        steps = self.step_sizes[skipped:] / problem.unit**2
        visits = list(zip(problem.at(times, "score", 1.0, steps), steps.tolist(), strict=True))
        return [_Plan(tuple(visits[:2])), *(_Plan((visit,)) for visit in visits[2:])]

    def cost(self, plan: _Plan) -> int:
        return self.n_steps * len(plan.levels)

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        """Langevin steps at one level, at two to start."""
        mean = x
        for number, (at, size) in enumerate(plan.levels):
            for k in range(self.n_steps):
                mean = problem.evaluate(x, at)
                x = mean + math.sqrt(2 * size) * noise.normal(
                    "corrector", number * self.n_steps + k
                )
        return Step(x, mean)


@dataclass(frozen=True)
class NCSNLoss(Loss):
    """sigma_j^2 / d ||score_model(x, sigma_j) - grad log q(x | x_0)||^2 at one random level j a
    sample.

    Denoising score matching with lambda(sigma) = sigma^2 at the levels of ``chain`` (Song and Ermon
    2019, arXiv 1907.05600, eq. 5 and 6): 2 / d times theirs. ``stratified`` spreads the levels of a
    batch evenly.
    """

    takes: ClassVar[tuple[str, ...]] = ("i", "noise")
    chain: NCSN
    stratified: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.chain, NCSN):
            raise TypeError(
                f"NCSNLoss: chain must be an NCSN, NCSN.from_sde(sde, 1000) say; got {self.chain!r}"
            )

    def losses(self, batch: Batch) -> Tensor:
        chain, count = self.chain, len(batch.x_0)
        chain.check_model(batch.model)
        i = batch.at
        if i is None:
            i = chain.draw(count, batch.generator, stratified=self.stratified)
        t = chain.level_times[chain.index(i, batch.x_0).expand(count) - 1]
        return DenoisingScoreMatching("sigma2").losses(batch._replace(at=t))


def _spaced(high: float, low: float, N: int, spacing: str = "geometric") -> tuple[float, ...]:
    """N levels from high to low, both exact."""
    N = integer("N", N, 1)
    high = real("sigma_max", high)
    low = real("sigma_min", low)
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"levels fall from sigma_max to sigma_min: 0 < sigma_min < sigma_max, got {low!r} "
            f"and {high!r}"
        )
    if N == 1:
        raise ValueError(
            f"one level cannot be both sigma_max = {high:g} and sigma_min = {low:g}: take N >= 2"
        )
    shares = (j / (N - 1) for j in range(1, N - 1))
    if spacing == "linear":
        return (high, *(high + (low - high) * share for share in shares), low)
    return (high, *(high * (low / high) ** share for share in shares), low)


def widest_pair(x: Tensor, chunk: int = 1024) -> float:
    """The largest Euclidean distance between two of x (count, *event), all pairs looked at."""
    flat = rowwise(x).float()
    return max(
        float(torch.cdist(a, b).max())
        for i, a in enumerate(flat.split(chunk))
        for j, b in enumerate(flat.split(chunk))
        if j >= i
    )


def level_ratio(d: int) -> float:
    """sigma_{j-1} / sigma_j for data of d coordinates, so that half of the samples of a level lie
    where the next was trained.

    gamma with Phi(s (gamma - 1) + 3 gamma) - Phi(s (gamma - 1) - 3 gamma) = 0.5 and s = sqrt(2 d)
    (NCSNv2, Technique 2).
    """
    d = integer("d", d, 1)
    s = math.sqrt(2 * d)

    def excess(gap: float) -> float:
        gamma = 1 + gap
        return float(ndtr(s * gap + 3 * gamma) - ndtr(s * gap - 3 * gamma)) - 0.5

    if s <= 3:  # the overlap never falls to a half
        raise ValueError(
            f"the rule for the ratio of levels is for many coordinates, from 5 on; got d = {d}: "
            "choose the levels"
        )
    return 1 + float(brentq(excess, 0.0, 3 / (s - 3) + 1e-9, xtol=1e-14))


def annealed_variance(ratio: float, step: float, n_steps: int) -> float:
    """s^2 / sigma_j^2 after ``n_steps`` Langevin steps of size ``step`` sigma_j^2 at level j, begun
    with the variance of the level before, ratio^2 sigma_j^2, on data at one point (NCSNv2, eq. 5):
    (1 - e)^(2 n) (ratio^2 - w) + w, w = 2 e / (1 - (1 - e)^2).
    """
    rest = 2 / (2 - step)
    return (1 - step) ** (2 * n_steps) * (ratio**2 - rest) + rest


def step_size_for(sigmas: Sequence[float], n_steps: int) -> float:
    """The step size at sigma_N that brings `annealed_variance` nearest to 1 (NCSNv2, Technique 4)
    after the largest ratio of two levels, where it is farthest from 1.
    """
    ratio = (sigmas[0] / sigmas[-1]) ** (1 / max(1, len(sigmas) - 1))
    largest = max((a / b for a, b in itertools.pairwise(sigmas)), default=1.0)
    if largest > (1 + 1e-9) * ratio:  # no geometric progression, where rounding alone differs
        ratio = largest

    def off(log_step: float) -> float:
        return abs(annealed_variance(ratio, math.exp(log_step), n_steps) - 1)

    found: Any = minimize_scalar(
        off, bounds=(math.log(1e-8), math.log(0.999)), method="bounded", options={"xatol": 1e-10}
    )
    return float(math.exp(found.x)) * sigmas[-1] ** 2
