"""How far chains agree, and how many independent draws they are worth (Vehtari et al. 2021, arXiv
1903.08008).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor

__all__ = ["effective_sample_size", "split_rhat"]

_BLOCK: Final = 2**22  # numbers at a time


def split_rhat(samples: Tensor, *, rank_normalized: bool = True) -> Tensor:
    """Split R-hat of every coordinate of ``samples`` (draws, chains, *event), float64 (*event) on
    the host.

    Chains are cut in halves: M of N draws, with W the mean of their variances and B / N the
    variance of their means,

        R-hat = sqrt(((N - 1) / N W + B / N) / W),

    which is 1 where all agree; above 1.01 they have not mixed. ``rank_normalized``: the larger of
    two, on normal scores of the draws' ranks and of their distances from the median, for chains
    that differ in scale and laws of infinite variance (section 4.1). NaN where nothing ever moved.
    One chain will do, of 4 draws at least.
    """
    return _by_coordinate(samples, _largest_rhat if rank_normalized else _rhat)


def effective_sample_size(samples: Tensor, *, rank_normalized: bool = False) -> Tensor:
    """How many independent draws have a mean as exact as that of ``samples`` (draws, chains,
    *event), float64 (*event) on the host.

    M N / tau with tau = -1 + 2 sum of P_k, P_k = rho_2k + rho_{2k+1} the autocorrelations of the M
    halves of N draws,

        rho_t = 1 - (W - mean over chains of s^2 rho_{t, chain}) / ((N - 1) / N W + B / N),

    summed while P_k > 0 and as far as they fall (Geyer 1992; eq. 10 to 13). Chains that disagree
    count for little. At most M N log10(M N). ``rank_normalized``: of the normal scores of the ranks
    ("bulk ESS"). NaN where nothing ever moved.
    """
    return _by_coordinate(samples, (lambda x: _ess(_scores(x))) if rank_normalized else _ess)


def _by_coordinate(samples: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function`` of halves of chains, float64 (M, N, d) to (d,), a block of coordinates at a
    time.
    """
    if (
        not isinstance(samples, Tensor)
        or not samples.is_floating_point()
        or samples.ndim < 2
        or not samples.numel()
    ):
        got = (
            f"{samples.dtype} {tuple(samples.shape)}"
            if isinstance(samples, Tensor)
            else type(samples).__name__
        )
        raise ValueError(
            f"samples must be a floating-point tensor (draws, chains, *event), got {got}"
        )
    draws, chains = samples.shape[:2]
    if draws < 4:
        raise ValueError(
            f"chains are cut in halves of at least 2 draws: there must be 4 draws, got {draws}"
        )
    rows = samples.detach().reshape(draws, chains, -1)
    half = draws // 2
    found = []
    for part in rows.split(max(1, _BLOCK // (draws * chains)), dim=2):
        x = part.cpu().double().transpose(0, 1)
        if not bool(torch.isfinite(x).all()):
            raise ValueError("samples contain values that are not finite")
        found.append(function(torch.cat([x[:, :half], x[:, draws - half :]])))
    return torch.cat(found).reshape(samples.shape[2:])


def _variances(x: Tensor) -> tuple[Tensor, Tensor]:
    """W and (N - 1) / N W + B / N, (d,), of chains (M, N, d)."""
    n = x.shape[1]
    within = x.var(dim=1).mean(dim=0)
    # rounding of a mean is no movement
    within = torch.where((x == x[:, :1]).all(dim=1).all(dim=0), 0.0, within)
    return within, (n - 1) / n * within + x.mean(dim=1).var(dim=0)


def _rhat(x: Tensor) -> Tensor:
    within, total = _variances(x)
    still = (x == x[:1, :1]).all(dim=1).all(dim=0)
    return torch.where(still, math.nan, (total / within).sqrt())


def _largest_rhat(x: Tensor) -> Tensor:
    folded = (x - torch.from_numpy(np.median(x.numpy(), axis=(0, 1)))).abs()
    return torch.maximum(_rhat(_scores(x)), _rhat(_scores(folded)))


def _scores(x: Tensor) -> Tensor:
    """Normal scores of the ranks among all draws, ties shared: Phi^{-1}((r - 3/8) / (S + 1/4))."""
    from scipy.stats import rankdata  # heavy, and kept out of `import sdediff`

    ranks = torch.from_numpy(np.asarray(rankdata(x.reshape(-1, x.shape[2]).numpy(), axis=0)))
    scores: Tensor = torch.special.ndtri((ranks - 0.375) / (len(ranks) + 0.25))
    return scores.reshape(x.shape)


def _ess(x: Tensor) -> Tensor:
    m, n, _ = x.shape
    within, total = _variances(x)
    centered = x - x.mean(dim=1, keepdim=True)
    size = 2 ** math.ceil(math.log2(2 * n))
    spectrum = torch.fft.rfft(centered, n=size, dim=1).abs().square()
    covariance = torch.fft.irfft(spectrum, n=size, dim=1)[:, :n].mean(dim=0) / n  # (N, d)
    rho = 1 - (within - covariance) / total
    rho[0] = 1.0
    pairs = rho[: n - n % 2].reshape(n // 2, 2, -1).sum(dim=1)
    ahead = (pairs > 0).double().cumprod(dim=0)
    ahead[max(1, (n - 3) // 2) :] = 0.0  # the last are of too few products
    falling = pairs.cummin(dim=0).values * ahead
    # Of the first pair left out, the even half if it is positive: without it the sum is biased for
    # antithetic chains.
    last = (
        torch.cat([rho[::2], torch.zeros_like(rho[:1])])
        .gather(0, ahead.sum(dim=0).long()[None])[0]
        .clamp(min=0)
    )
    tau = (2 * falling.sum(dim=0) - 1 + last).clamp(min=1 / math.log10(m * n))
    return torch.where((x == x[:1, :1]).all(dim=1).all(dim=0), math.nan, m * n / tau)
