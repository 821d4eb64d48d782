"""DDPM (Ho, Jain and Abbeel 2020, arXiv 2006.11239) as an exact discretization of a
variance-preserving SDE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from sdediff.discrete.bound import data_error, prior_term, transition
from sdediff.discrete.chain import Chain, Levels, evenly
from sdediff.discrete.schedules import ScheduleOptions, schedule, zero_terminal_snr
from sdediff.normalizer import Normalizer
from sdediff.objectives.objective import Batch
from sdediff.objectives.variational import Bins
from sdediff.protocols import Model, facts
from sdediff.sde import InterpolatedVP, LinearSDE
from sdediff.sde.base import check_linear
from sdediff.sde.interpolated import points
from sdediff.solvers import Problem, Solver, Step, StepNoise, expand
from sdediff.solvers.given import Numbers, check_choice, integer, plain

__all__ = ["DDPM", "Variance"]

Variance = Literal["beta", "beta_tilde", "learned"]
_FAR = 0.1  # Song's rule has other marginals than its SDE, by less than this where it is any good


class _Plan(NamedTuple):
    at: Any  # of the data prediction
    t: Tensor
    s: Tensor
    data: Tensor  # coefficient of x_0 in the posterior mean
    keep: Tensor  # coefficient of x_t
    low: Tensor  # log of beta_tilde
    high: Tensor  # log of beta


@dataclass(frozen=True, repr=False)
class DDPM(Chain, Solver):
    """The chain x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) noise, i = 1..N, at the times t_i of
    an SDE.

    ``betas`` lie in (0, 1); the last may be 1 (zero terminal SNR). ``grid`` are the times t_i, by
    default i / N. Other ways to make one are `from_sde` and `from_schedule`; `to_sde` is the SDE
    that has the chain's marginals, for a model to train or sample.

    As a solver it takes DDPM's ancestral steps from i = N to 1: x_{i-1} is drawn from N(posterior
    mean at E[x_0 | x_i], variance) (eq. 6, 7 and 11) with the variance ``"beta_tilde"`` (the
    posterior's, exact for a point mass), ``"beta"`` (exact for unit Gaussian data), or
    ``"learned"``: exp(u log beta + (1 - u) log beta_tilde), u from the network (Nichol and Dhariwal
    2021, arXiv 2102.09672, eq. 15), of a `ScoreModel` with ``learned_variance``. The last step,
    from i = 1 to data, adds no noise: it is the ``last="denoise"`` of `sample`, so that N
    evaluations are made. With ``last_noise`` it is a step like the others, with the variance of the
    decoder p(x_0 | x_1) in `variational_bound`, and ``last`` is ``"noisy"``, the default, or
    ``"mean"``. x_0 is clipped only if the model is (`ScoreModel.constrained`).

    ``t_start`` of `sample` starts the chain at a level, one of ``times``, from the ``x_init`` given
    (Meng et al. 2022, arXiv 2108.01073, with `perturb`).
    """

    betas: tuple[float, ...]
    grid: tuple[float, ...] = ()
    variance: Literal["beta", "beta_tilde", "learned"] = "beta_tilde"
    last_noise: bool = False

    solves_sde = True

    def __post_init__(self) -> None:
        if isinstance(self.betas, str):
            raise TypeError(
                "DDPM takes the betas themselves; for a schedule by name, "
                f"DDPM.from_schedule({self.betas!r}, 1000)"
            )
        if isinstance(self.betas, int):
            n = self.betas
            raise TypeError(
                f"DDPM: betas must be a sequence of numbers, got {n}; for {n} levels write "
                f"DDPM.from_schedule('linear', {n})"
            )
        even = np.arange(1, np.size(self.betas) + 1) / max(1, np.size(self.betas))
        given = self.grid if np.size(self.grid) else even
        betas, grid = points("DDPM", "betas", self.betas, given, above=True)
        wrong = [
            i
            for i, beta in enumerate(betas)
            if not 0 < beta < 1 and not (beta == 1 and 0 < i == len(betas) - 1)
        ]
        if wrong:
            raise ValueError(
                f"DDPM: betas must lie in (0, 1), and the last may be 1; got beta_{wrong[0] + 1} "
                f"= {betas[wrong[0]]:g}"
            )
        vars(self).update(betas=betas, grid=grid)

    @classmethod
    def from_sde(
        cls,
        sde: LinearSDE,
        N: int,
        *,
        rule: Literal["kernel", "song"] = "kernel",
        variance: Variance = "beta_tilde",
        last_noise: bool = False,
    ) -> DDPM:
        """A chain at the times t_i = T i / N of an SDE with alpha^2 + sigma^2 = 1.

        ``rule="kernel"``: 1 - beta_i = (alpha(t_i) / alpha(t_{i-1}))^2, so that its marginals are
        exactly the SDE's. ``rule="song"``: beta_i = beta(T (i - 1) / (N - 1)) T / N with beta =
        g^2, the table of betas of the code of Song et al. 2021 (arXiv 2011.13456):
        linspace(beta_min / N, beta_max / N, N) for `VP`. The marginals are the SDE's up to O(1 /
        N); it needs N > T max beta. Their sampler evaluates a continuous network at linspace(T,
        eps, N), which are these t_i at eps = T / N (their N = 1000 and eps = 1e-3).
        ``variance="beta"`` is their ancestral sampler.
        T / N must not fall below t_min, where the network is not trained.
        """
        N = integer("N", N, 1)
        check_choice("rule", rule, ("kernel", "song"))
        check_linear(sde)
        end = sde.T if sde.t_max >= sde.T * (1 - 1e-12) else sde.t_max
        times = torch.arange(N + 1, dtype=torch.float64) * (end / N)
        alpha, sigma = sde.alpha(times), sde.sigma(times)
        gap = float((alpha**2 + sigma**2 - 1).abs().max())
        if gap > 1e-9:
            raise ValueError(
                f"DDPM needs alpha^2 + sigma^2 = 1, {sde!r} is off by {gap:.2g}; use "
                "Ancestral(), which takes any linear SDE, "
                "or NCSN.from_sde where alpha = 1"
            )
        if times[1] < sde.t_min * (1 - 1e-6):
            raise ValueError(
                f"N = {N} puts t_1 = {float(times[1]):.3g} below t_min = {sde.t_min:g}; take N "
                f"<= {int(end / sde.t_min + 1e-6)}"
            )
        if rule == "song":
            betas = sde.g(torch.linspace(0, end, N, dtype=torch.float64)).square() * (end / N)
            if float(betas.max()) >= 1:
                raise ValueError(
                    "rule='song' takes beta(t) T / N, which must stay below 1 and is "
                    f"{float(betas.max()):.3g}; "
                    f"take N > {float(betas.max()) * N:.4g}, or rule='kernel'"
                )
            if float(betas.min()) <= 0:
                raise ValueError(
                    f"rule='song' takes beta(t) T / N from t = 0 on, where g of {sde!r} "
                    "vanishes: take rule='kernel'"
                )
        else:
            # 1 - beta_i = (alpha_i / alpha_{i-1})^2, through the SDE's kernel, whose variance does
            # not cancel.
            betas = sde.kernel(times[1:], times[:-1])[1] ** 2
            betas[0] = sde.sigma(times[1]) ** 2  # from clean data, which may carry noise at t = 0
        return cls(tuple(betas.tolist()), tuple(times[1:].tolist()), variance, last_noise)

    @classmethod
    def from_schedule(
        cls,
        name: str | Callable[[Tensor], Numbers] = "linear",
        N: int = 1000,
        *,
        variance: Variance = "beta_tilde",
        last_noise: bool = False,
        **options: Unpack[ScheduleOptions],
    ) -> DDPM:
        """Betas by a name in `SCHEDULES`, or by a function alpha_bar(t) that falls from t = 0 to 1.

        ``"linear"`` (Ho et al. 2020), ``"scaled-linear"`` and ``"sigmoid-betas"`` take the options
        ``beta_start`` and ``beta_end``, ``"cosine"`` takes ``s``, and ``"sigmoid"`` takes
        ``start``, ``end`` and ``tau``.
        """
        betas = tuple(schedule(name, N, **options).tolist())
        return cls(betas, variance=variance, last_noise=last_noise)

    def to_sde(self) -> InterpolatedVP:
        """The variance-preserving SDE with the chain's marginals at t_1..t_N, smooth between them;
        t_min is t_1.
        """
        return InterpolatedVP(self.betas, self.grid)

    def respaced(
        self, steps: int | Sequence[int], *, spacing: Literal["uniform", "quadratic"] = "uniform"
    ) -> DDPM:
        """The chain on a subsequence of its levels: 1 - beta of each step is the product of those
        that it takes at once.

        ``steps``: indices i in 1..N that rise, or how many from 1 to N, evenly or (``"quadratic"``:
        Song et al. 2021, arXiv 2010.02502, Appendix D.2) denser near data. Times stay what they
        are, so that a model of this chain's SDE goes with it. Its ``times`` are a grid for `DDIM`
        too.
        """
        check_choice("spacing", spacing, ("uniform", "quadratic"))
        steps = plain(steps)
        steps = steps.tolist() if isinstance(steps, np.ndarray) else steps
        if isinstance(steps, str) or not isinstance(steps, int | Sequence | Tensor):
            raise TypeError(
                f"steps must be how many, an int, or indices that rise within 1..{self.N}; got "
                f"{steps!r}"
            )
        chosen = (
            evenly(self.N, steps, 2.0 if spacing == "quadratic" else 1.0)
            if isinstance(steps, int)
            else list(steps)
        )
        index = self.index(torch.as_tensor(chosen))
        if index.ndim != 1 or not len(index) or bool((index.diff() <= 0).any()):
            raise ValueError(f"a subsequence of steps must rise within 1..{self.N}, got {chosen!r}")
        logs = self._log_alphas_bar
        betas = -torch.expm1(logs[index] - torch.cat([logs[:1], logs[index[:-1]]]))
        return replace(
            self, betas=tuple(betas.tolist()), grid=tuple(self.grid[i - 1] for i in index.tolist())
        )

    def with_zero_terminal_snr(self) -> DDPM:
        """The chain rescaled so that no signal is left at i = N (Lin et al. 2024, arXiv 2305.08891,
        Algorithm 1).

        At alpha = 0 the noise does not determine the data: the network has to predict v, data or
        flow.
        """
        return replace(
            self,
            betas=tuple(zero_terminal_snr(torch.tensor(self.betas, dtype=torch.float64)).tolist()),
        )

    def __repr__(self) -> str:
        noise = ", last_noise=True" if self.last_noise else ""
        return f"DDPM(N={len(self.betas)}, variance={self.variance!r}{noise})"

    @property
    def needs(self) -> frozenset[str]:
        """The data prediction, and the network's variance if that is learned."""
        return frozenset(
            {"data", "marginal"} | ({"variance"} if self.variance == "learned" else set())
        )

    @property
    def times(self) -> Tensor:
        """t_N, ..., t_1, and with ``last_noise`` 0, the data."""
        times = self.level_times.flip(0)
        return torch.cat([times, times.new_zeros(1)]) if self.last_noise else times

    @property
    def ends_clean(self) -> bool:
        return self.last_noise

    @cached_property
    def levels(self) -> Levels:
        """alpha_i^2 = alpha_bar_i, the product of 1 - beta_j over j <= i, and sigma_i^2 = 1 -
        alpha_bar_i.
        """
        betas = torch.tensor(self.betas, dtype=torch.float64)
        logs = self._log_alphas_bar
        return Levels((0.5 * logs).exp(), (-torch.expm1(logs)).sqrt(), (1 - betas).sqrt(), betas)

    @cached_property
    def _log_alphas_bar(self) -> Tensor:
        betas = torch.tensor(self.betas, dtype=torch.float64)
        return torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0)])

    @property
    def alphas_bar(self) -> Tensor:
        """The products of 1 - beta_j over j <= i, float64 (N,)."""
        return self.levels.alphas[1:].square()

    @cached_property
    def log_variances(self) -> tuple[Tensor, Tensor]:
        """(log beta_tilde, log beta), each (N,): the bounds of the reverse variance.

        At i = 1, where beta_tilde = 0, it is that of i = 2 (beta_1 if N = 1), as in the code of
        both papers: this is the variance of the decoder p(x_0 | x_1). There beta is the same if
        the variance is fixed, and beta_1 if it is learned, whose range the papers do not say for i
        = 1: so it is in guided-diffusion, by which networks were trained.
        """
        tilde, beta = self.posterior_columns[2].clone(), self.levels.variances.clone()
        tilde[0] = tilde[1] if self.N > 1 else beta[0]
        if self.variance != "learned":
            beta[0] = tilde[0]
        return tilde.log(), beta.log()

    def log_variance(self, i: int | Tensor, learned: Tensor | None = None) -> Tensor:
        """log of the variance of p(x_{i-1} | x_i): shaped as i, or as ``learned``, the network's
        second output, where there is one.

        ``learned`` r in [-1, 1] is u = (r + 1) / 2 of the way from log beta_tilde to log beta; it
        is not confined to that range.
        """
        at = self.index(i) - 1
        low, high = (column[at] for column in self.log_variances)
        if self.variance == "learned":
            if learned is None:
                raise ValueError(
                    "DDPM(variance='learned') needs what the network says of the variance"
                )
            return expand(low, learned) + 0.5 * (learned + 1) * expand(high - low, learned)
        return low if self.variance == "beta_tilde" else high

    def check_model(self, model: Model) -> None:
        """A ValueError unless the model's SDE has the chain's marginals, and a variance if that is
        learned.
        """
        super().check_model(model)
        if self.variance == "learned" and "variance" not in facts(model).extras:
            raise ValueError(
                f"{self!r} takes the variance from the network: make the model with "
                "ScoreModel(..., learned_variance=True)"
            )

    def prior_term(self, x_0: Tensor) -> Tensor:
        """L_N = KL(q(x_N | x_0) || N(0, I))."""
        return prior_term(self, x_0)

    def bound_term(
        self,
        batch: Batch,
        i: Tensor,
        noise: Tensor,
        bins: Bins | None = None,
        normalizer: Normalizer | None = None,
    ) -> Tensor:
        """L_{i-1}: `transition` at the error of the model's data prediction."""
        error, learned = data_error(self, batch, i, noise)[1:]
        learned = learned if self.variance == "learned" else None
        return transition(self, batch, i, error, learned, bins, normalizer)

    def plan(self, problem: Problem, times: Tensor) -> Sequence[_Plan]:
        """Posterior coefficients of the steps from i to i - 1, from the level at times[0] on."""
        skipped = len(self.times) - len(times)
        levels = times[:-1] if self.last_noise else times
        alpha, sigma = problem.marginal(levels)
        alphas, sigmas = (each[1:].flip(0)[skipped:] for each in self.levels[:2])
        gap = float(
            torch.maximum((alpha - alphas).abs(), (problem.unit * sigma - sigmas).abs()).max()
        )
        if gap > _FAR:
            raise ValueError(
                f"{self!r} is no chain of the model's SDE: alpha or sigma differs by {gap:.2g}; "
                "take DDPM.from_sde(model.sde, N), or a model of the chain's to_sde()"
            )
        data, keep, _ = self.posterior_columns
        low, high = self.log_variances
        if self.variance != "learned":
            low = high = low if self.variance == "beta_tilde" else high
        shift = 2 * math.log(problem.unit)
        first = 0 if self.last_noise else 1
        columns = (data, keep, low - shift, high - shift)
        rows = zip(*(each[first:].flip(0)[skipped:].unbind() for each in columns), strict=True)
        at = problem.at(times[:-1], "data")
        return [_Plan(at[n], times[n], times[n + 1], *row) for n, row in enumerate(rows)]

    def step(
        self, problem: Problem, x: Tensor, plan: _Plan, noise: StepNoise, state: tuple[Tensor, ...]
    ) -> Step:
        if self.variance == "learned":
            found = problem.outputs(x, plan.at)
            clean, share = found.value, 0.5 * (found.extras["variance"] + 1)
            std = torch.exp(0.5 * (plan.low + share * (plan.high - plan.low)))
        else:
            clean, std = problem.evaluate(x, plan.at), torch.exp(0.5 * plan.low)
        mean = plan.data * clean + plan.keep * x
        return Step(mean + std * noise.over(plan.t, plan.s), mean)
