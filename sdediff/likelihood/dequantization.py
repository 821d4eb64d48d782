"""Bits per dimension of data with bins, by dequantization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Unpack

import torch
from torch import Tensor

from sdediff.arguments import check_condition, check_model, check_seed, check_shape, check_states
from sdediff.calls import check_floating
from sdediff.likelihood.density import FIXED, log_prob
from sdediff.objectives.variational import Bins
from sdediff.options import LikelihoodOptions, takes
from sdediff.protocols import Model, facts
from sdediff.solvers import Failure, Solver, White
from sdediff.solvers.given import check_choice, integer
from sdediff.solving import chosen

__all__ = ["BitsPerDim", "bits_per_dim"]

Dequantization = Literal["uniform", "truncated-normal"]


_PIXELS: Final = Bins()


@dataclass(frozen=True)
class BitsPerDim:
    """Bits per dimension, and for each sample what it took.

    ``value`` (B,) is -log_2 of the bound on the probability of the sample's bins, over the number
    of coordinates, float64; NaN where a draw failed. ``log_weights`` (draws, B) are log p(x + u) -
    log q(u), in nats, of each draw: the bound is the log of the mean of their exponentials.
    ``stderr`` (B,) is the standard error by the probes in bits per dimension, as in `LogProb`: 0
    for the exact divergence; that of the draws is not in it. ``nfe`` (B,) is the sum over draws,
    ``status`` (B,) the first that is not 0. ``seeds`` reproduce all of it.
    """

    value: Tensor
    log_weights: Tensor
    stderr: Tensor
    nfe: Tensor
    status: Tensor
    seeds: tuple[int, ...]
    failures: tuple[Failure, ...] = field(default=())

    def __repr__(self) -> str:
        draws, count = self.log_weights.shape
        return (
            f"BitsPerDim(value: ({count},), draws: {draws}, nfe a sample: {int(self.nfe.min())} "
            f"to {int(self.nfe.max())})"
        )


@takes(LikelihoodOptions, without=(*FIXED, "grid", "t_start", "mask", "grad"))
def bits_per_dim(
    model: Model,
    x: Tensor,
    *,
    bins: Bins = _PIXELS,
    dequantization: Dequantization = "uniform",
    draws: int = 1,
    solver: Solver | None = None,
    steps: int | None = None,
    seed: int | Sequence[int] | None = None,
    **options: Unpack[LikelihoodOptions],
) -> BitsPerDim:
    """Bits per dimension of discrete data x (B, *event), such as 8-bit images: an upper bound on
    -log_2 P(x) / d, where every coordinate of x has one of the values of ``bins``.

    P(x) = int p(x + u) du over the bin, u in [-width / 2, width / 2]^d, is bounded from below with
    draws u_i ~ q by

        log P(x) >= E log (1 / draws) sum_i p(x + u_i) / q(u_i)

    (Theis et al. 2016, arXiv 1511.01844, for one; Burda et al. 2016, arXiv 1509.00519, for several:
    the more, the tighter.) ``bins``: by default ``Bins(256, -1, 1)``, for ``x = 2 * u8 / 255 - 1``;
    for x = (u8 + 0.5) / 128 - 1 it is ``Bins(256, -255 / 256, 255 / 256)``. x has to lie on them;
    they are ``width`` = (high - low) / (count - 1) apart. p is the density of x_t / alpha(t) at
    t_min: alpha^d p_{t_min}(alpha (x + u)), in the units of x; under a `Normalizer` these are the
    user's, and alpha acts about its mean.
    ``dequantization``: ``"uniform"`` over the bin, log q = -d log width; ``"truncated-normal"`` of
    standard deviation sigma / alpha at t_min, cut to the bin (Zheng et al. 2023, arXiv 2305.03935,
    Section 4.1), which makes of x what the model saw of it at t_min. ``draws`` > 1 needs the exact
    divergence: the noise of probes in log p does not average to the bound. One draw with probes is
    unbiased for the bound's expectation. Sample i draws from its own ``seed`` alone.
    ``solver`` and ``steps`` are those of `log_prob`; ``batch_size`` counts draws.

    Raises ValueError or TypeError before the first evaluation of the network, `SolveError` after
    it. The options are those of `LikelihoodOptions`:
    """
    taken = chosen(bits_per_dim, options)
    check_model(model)
    if not isinstance(x, Tensor):
        check_floating("x", x)
    Bins.checked(bins).check(x)
    check_shape(check_states("x", x).shape)
    width = bins.spacing
    check_choice("dequantization", dequantization, ("uniform", "truncated-normal"))
    draws = integer("draws", draws, 1)
    divergence = taken["divergence"]
    if draws > 1 and divergence != "exact":
        raise ValueError(
            f"a bound by {draws} draws needs divergence='exact': by Jensen's inequality the "
            f"noise of divergence={divergence!r} "
            "makes it too good; take draws=1, where it averages out"
        )
    seeds = check_seed(seed, None, tuple(x.shape)) or ()
    alpha, u, log_q = _noise(model, x, width, dequantization, draws, seeds)
    d = x[0].numel()
    states = (x.detach().cpu().double() + u).flatten(0, 1)
    known = facts(model)
    normalizer = known.normalizer
    states = (
        alpha * states
        if normalizer is None
        else normalizer.denormalize(alpha * normalizer.normalize(states))
    )
    given = check_condition(taken["condition"], len(x), known.net)
    options["condition"] = {
        name: value.repeat(draws, *(1,) * (value.ndim - 1)) for name, value in given.items()
    }
    options["dtype"] = taken["dtype"] or torch.promote_types(x.dtype, torch.float32)
    found = log_prob(model, states, solver=solver, steps=steps, seed=seeds * draws, **options)
    log_weights = found.value.reshape(draws, -1) + d * math.log(alpha) - log_q.to(found.value)
    status = found.status.reshape(draws, -1)
    return BitsPerDim(
        value=-(torch.logsumexp(log_weights, dim=0) - math.log(draws)) / (d * math.log(2)),
        log_weights=log_weights,
        stderr=found.stderr[: len(x)] / (d * math.log(2)),
        nfe=found.nfe.reshape(draws, -1).sum(dim=0),
        status=status.gather(0, (status != 0).int().argmax(dim=0, keepdim=True))[0],
        seeds=seeds,
        failures=tuple(replace(f, sample=f.sample % len(x)) for f in found.failures),
    )


def _noise(
    model: Model, x: Tensor, width: float, dequantization: str, draws: int, seeds: Sequence[int]
) -> tuple[float, Tensor, Tensor]:
    """alpha at t_min, u (draws, B, *event) and log q(u) (draws, B), float64."""
    sde, white = model.sde, White(seeds, x.shape[1:], dtype=torch.float64)
    linear = "kernel" in sde.offers
    alpha = float(sde.alpha(sde.t_min)) if linear else 1.0
    normals = torch.stack(
        [white.at(i).normal("dequantization") for i in torch.arange(draws).tolist()]
    )
    share = torch.special.ndtr(normals)
    if dequantization == "uniform":
        log_q = torch.full(normals.shape[:2], -x[0].numel() * math.log(width), dtype=torch.float64)
        return alpha, (share - 0.5) * width, log_q
    if not linear:
        raise ValueError(
            f"{sde!r} has no Gaussian kernel, so that there is no noise at t_min to copy: take "
            "dequantization='uniform'"
        )
    # Everything is in units of the noise at t_min, which is one number, or one a channel under a
    # normalizer.
    std = torch.full((1,) * x.ndim, float(sde.sigma(sde.t_min)) / alpha, dtype=torch.float64)
    normalizer = facts(model).normalizer
    if normalizer is not None:
        std = std * normalizer.scale(normals[0])
    edge = 0.5 * width / std
    inside = (edge / math.sqrt(2)).apply_(math.erf)  # the normal's probability of the bin
    z = torch.special.ndtri(0.5 + inside * (share - 0.5))
    z = torch.maximum(torch.minimum(z, edge), -edge)
    log_q = (
        (-0.5 * z**2 - (std * inside).apply_(math.log) - 0.5 * math.log(2 * math.pi))
        .flatten(2)
        .sum(dim=2)
    )
    return alpha, std * z, log_q
