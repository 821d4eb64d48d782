"""Weighted particles of a law: one call, and a record of weights, evidence and quality."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Unpack, cast

import torch
from torch import Tensor

from sdediff.arguments import check_shape
from sdediff.calls import check_condition
from sdediff.options import SolveOptions, takes
from sdediff.posterior.corrected import FeynmanKac
from sdediff.posterior.observation import observed
from sdediff.posterior.particles import Particles
from sdediff.posterior.resampling import Resampling, systematic
from sdediff.posterior.twists import TWISTS, check_size
from sdediff.protocols import Model, facts
from sdediff.sampling import sample
from sdediff.solvers import Solution, White
from sdediff.solving import chosen

__all__ = ["Weighted", "sample_posterior", "sample_weighted"]

_LEAST: Final = 100
"""Below this genealogical effective size a result is not called exact."""
_LEFT: Final = "noise t_start last x_init stochasticity mask trajectory grad on_fail".split()


@dataclass(frozen=True)
class Weighted:
    """Weighted particles of B laws, and what is known of their quality.

    ``x`` (B, n, *event) are the particles, and ``weights`` float64 (B, n) sum to 1: averages are
    sums over weights times values, as `mean` and `variance` are. ``draws`` (B, n, *event) are equal
    in weight, by systematic resampling of x; they are not independent of each other, and many are
    copies. `mean_error` and `variance_error` are standard errors of the averages.

    ``log_evidence`` (B,) estimates the log of the normaliser in nats: log p(y) of a posterior, log
    E[exp(r(x_0))] of a `Reward`, and of a `Product` the integral of its powers of normalised
    densities, at the end of the solve. ``log_evidence_error`` (B,) is its standard error, from the
    spread over the islands (NaN for one island). ``ess`` (B,) is 1 / sum w^2, the
    effective sample size of the weights. Resampling makes weights even and leaves copies, which it
    does not see: ``genealogical_ess`` (B,) is 1 / sum W^2, where W is the weight of all descendants
    of one particle at the start. ``exact``, bool (B,), says whether that is at least 100 and the
    islands agree: their evidences as weights have an effective sample size of half their number.
    It sees the error of too few particles, not that of too few steps: compare with twice as many.
    ``solution`` is the solve itself, of B n rows.
    """

    x: Tensor
    weights: Tensor
    draws: Tensor
    log_evidence: Tensor
    log_evidence_error: Tensor
    ess: Tensor
    genealogical_ess: Tensor
    exact: Tensor
    solution: Solution = field(repr=False)

    @property
    def mean(self) -> Tensor:
        """The mean of the law, (B, *event)."""
        return (self._beside() * self.x).sum(dim=1)

    @property
    def variance(self) -> Tensor:
        """The variance of each entry under the law, (B, *event)."""
        return (self._beside() * (self.x - self.mean[:, None]).square()).sum(dim=1)

    @property
    def mean_error(self) -> Tensor:
        """The standard error of `mean`, (B, *event), from how far the families are apart.

        A family is all that descends from one particle at the start: families are independent but
        for resampling, and the error is the root of the sum over them of the square of sum w (x -
        mean). With few families, where the result is not `exact`, it is too small. (Chan and Lai
        2013, Annals of Statistics 41; Lee and Whiteley 2018, arXiv 1509.00394.)
        """
        return self._error(self.x - self.mean[:, None])

    @property
    def variance_error(self) -> Tensor:
        """The standard error of `variance`, (B, *event), as that of the mean."""
        return self._error((self.x - self.mean[:, None]).square() - self.variance[:, None])

    def _error(self, off: Tensor) -> Tensor:
        """The standard error of the average of values (B, n, *event), less their average."""
        ancestor = self.solution.extras["ancestor"].reshape(len(off), -1)
        place = ancestor.reshape(*ancestor.shape, *(1,) * (off.ndim - 2)).expand_as(off)
        families = torch.zeros_like(off).scatter_add(1, place, self._beside() * off)
        return families.square().sum(dim=1).sqrt()

    def _beside(self) -> Tensor:
        weights = self.weights.to(self.x.dtype)
        return weights.reshape(*weights.shape, *(1,) * (self.x.ndim - 2))

    def __repr__(self) -> str:
        """Shapes and quality, not the numbers."""
        exact = f"{int(self.exact.sum())} of {len(self.exact)}"
        return (
            f"Weighted(x: {tuple(self.x.shape)}, genealogical_ess: "
            f"{float(self.genealogical_ess.min()):.4g} or more, exact: {exact})"
        )


@takes(SolveOptions, without=_LEFT)
def sample_posterior(
    model: Model,
    measurement: Any,
    y: Tensor,
    shape: Sequence[int],
    *,
    particles: Particles | None = None,
    steps: int | None = 100,
    seed: int | Sequence[int] | None = None,
    **options: Unpack[SolveOptions],
) -> Weighted:
    """Sample the posterior of x_0 given y by weighted particles, which are exact as their number
    and the number of steps grow.

        found = sample_posterior(model, measurement, y, (1, 2), steps=50, seed=0)
        found.mean, found.log_evidence, found.exact

    ``measurement``: a linear measurement with noise_std > 0.
    ``y``: its outcomes, (B, *outcome), or (1, *outcome) for all posteriors.
    ``shape``: (B, *event) for B posteriors.
    ``particles``: by default ``Particles(1000)``. With n of them, B n rows are solved.
    ``batch_size`` counts rows, and must be a multiple of n.
    ``seed``: an int, or one int for each posterior, which depends on its seed alone.

    The grid is by default uniform in log-SNR. A UserWarning names the posteriors that may not be
    exact (see `Weighted`). Raises ValueError or TypeError before the first evaluation of the
    network. The options are those of
    `SolveOptions`:
    """
    _ = chosen(sample_posterior, options)
    solver = Particles() if particles is None else particles
    if not isinstance(solver, Particles):
        raise TypeError(f"particles must be Particles(n), got {particles!r}")
    observed("Particles", measurement, y, noisy=True).check_count(check_shape(shape)[0])
    check_size(y)
    each = y if len(y) == 1 else y.repeat_interleave(solver.n, dim=0)
    twisted = TWISTS[solver.twist](model, measurement, each)
    return _sampled(twisted, shape, solver, steps, seed, options)


@takes(SolveOptions, without=_LEFT)
def sample_weighted(
    model: Model,
    shape: Sequence[int],
    *,
    particles: Resampling | None = None,
    steps: int | None = 100,
    seed: int | Sequence[int] | None = None,
    **options: Unpack[SolveOptions],
) -> Weighted:
    """Weighted particles of the law that a ``model`` stands for: a `Product`, `Anneal` or `Reward`.

    Averages over them are exact as particles and steps grow. ``shape`` = (B, *event) asks for B
    laws, which differ by the ``condition`` of the call, a row for each, and by their seeds.
    ``particles`` is by default ``FeynmanKac(1000)`` for a `Product` or `Anneal`, and
    ``Particles(1000)`` for a `Reward`; with n of them, B n rows are solved. ``batch_size`` counts
    rows, and is a multiple of n. ``seed`` is an int or one a law, each of which depends on its
    seed alone. The grid is by default uniform in log-SNR.

    A UserWarning names the samples whose particles are not exact: see `Weighted`. Raises ValueError
    or TypeError before the first evaluation of the network. The options are those of
    `SolveOptions`:
    """
    _ = chosen(sample_weighted, options)
    solver = particles
    if solver is None:
        solver = FeynmanKac() if FeynmanKac.asks <= {*facts(model).extras} else Particles()
    if not isinstance(solver, Resampling):
        raise TypeError(f"particles must be Particles(n) or FeynmanKac(n), got {particles!r}")
    return _sampled(model, shape, solver, steps, seed, options)


def _sampled(
    model: Model,
    shape: Sequence[int],
    solver: Resampling,
    steps: int | None,
    seed: int | Sequence[int] | None,
    options: SolveOptions,
) -> Weighted:
    """The particles of B laws, checked and warned of."""
    count, *event = check_shape(shape)
    n = solver.n
    condition = check_condition(options.get("condition"), count, facts(model).net)
    if condition:
        each = {name: value.repeat_interleave(n, dim=0) for name, value in condition.items()}
        options = cast(SolveOptions, {**options, "condition": each})
    if solver.ends is not None:
        options = cast(SolveOptions, {**options, "last": solver.ends})
    solution = sample(model, (count * n, *event), solver=solver, steps=steps, seed=seed, **options)
    found = _weighted(solution, solver)
    _warn(found)
    return found


def _weighted(solution: Solution, solver: Resampling) -> Weighted:
    """What particles say, from their log weights and those of their islands."""
    n, islands = solver.n, solver.islands
    logs = solution.extras["log_weight"] + solution.extras["log_evidence"]
    logs = logs.reshape(-1, n)
    weights = logs.softmax(dim=1)
    log_evidence = logs.logsumexp(dim=1) - math.log(n)
    shares = weights.reshape(-1, islands, n // islands).sum(dim=2)
    error = islands * shares.std(dim=1) / islands**0.5 if islands > 1 else shares[:, 0] * math.nan
    ancestor = solution.extras["ancestor"].reshape(-1, n)
    families = torch.zeros_like(weights).scatter_add(1, ancestor, weights)
    genealogical = 1 / families.square().sum(dim=1)
    agree = 1 / shares.square().sum(dim=1) >= islands / 2
    x = solution.x.reshape(-1, n, *solution.x.shape[1:])
    z = White(cast(Any, solution.seeds), (1,), dtype=torch.float64, device=x.device)
    u = torch.special.ndtr(z.at(0).normal("resampling"))[:, 0]
    rows = systematic(weights, u)
    draws = torch.stack([each[chosen] for each, chosen in zip(x, rows, strict=True)])
    return Weighted(
        x=x,
        weights=weights,
        draws=draws,
        log_evidence=log_evidence,
        log_evidence_error=error,
        ess=1 / weights.square().sum(dim=1),
        genealogical_ess=genealogical,
        exact=(genealogical >= _LEAST) & agree,
        solution=solution,
    )


def _warn(found: Weighted) -> None:
    """Say of which samples the particles are not exact."""
    wrong = torch.nonzero(~found.exact).flatten().tolist()
    if wrong:
        first = wrong[0]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        warnings.warn(
            f"the particles of sample {first}{more} are not exact: a genealogical effective "
            f"size of {float(found.genealogical_ess[first]):.3g} (100 are needed), log evidence "
            f"{float(found.log_evidence[first]):.4g} +- "
            f"{float(found.log_evidence_error[first]):.2g}; take more particles or more steps",
            stacklevel=4,
        )
