"""The one driver of chains, what it returns, how far chains agree, and how many independent draws
they are worth (Vehtari et al. 2021, arXiv 1903.08008).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from sdediff.arguments import check_seed, check_states
from sdediff.mcmc.kernels import Kernel, Noise
from sdediff.mcmc.target import Target, as_target
from sdediff.progress import progress_bar
from sdediff.solvers import White, rowwise
from sdediff.solvers.given import check_choice, described, integer
from sdediff.solvers.portable import Portable

__all__ = [
    "ChainError",
    "Chains",
    "State",
    "effective_sample_size",
    "run",
    "split_rhat",
]

_BLOCK: Final = 2**22  # numbers at a time


@dataclass(frozen=True, eq=False)
class State:
    """Where chains are: pass it as ``x_init``, and they go on as if they had not stopped."""

    x: Tensor
    """(chains, *event)."""
    momentum: Tensor | None
    number: int
    """Of steps taken."""
    seeds: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Chains:
    """Draws of Markov chains, and how good they are.

    ``samples`` (draws, chains, *event). ``acceptance``, float64 (chains,), is the share of
    proposals taken in the steps after the burn-in; None for kernels that take all. ``weights``,
    float64 (draws,) of sum 1, are in proportion to the step sizes of `SGLD` with decaying steps;
    None: all are equal. ``state`` is that after the last step. ``failed``: the numbers of the
    chains that left the finite numbers.
    """

    samples: Tensor
    acceptance: Tensor | None
    weights: Tensor | None
    state: State
    failed: tuple[int, ...] = ()

    @property
    def flat(self) -> Tensor:
        """All draws as (draws x chains, *event)."""
        return self.samples.flatten(0, 1)

    @cached_property
    def rhat(self) -> Tensor:
        """Rank-normalised `split_rhat` of every coordinate, float64 (*event)."""
        return split_rhat(self.samples)

    @cached_property
    def ess(self) -> Tensor:
        """`effective_sample_size` of the mean of every coordinate, float64 (*event)."""
        return effective_sample_size(self.samples)

    @cached_property
    def mean(self) -> Tensor:
        """Of every coordinate over draws (by their weights) and chains, float64 (*event) on the
        host.
        """
        return self._average(self._doubles)

    @cached_property
    def std(self) -> Tensor:
        """Standard deviation of every coordinate, float64 (*event)."""
        return self._average((self._doubles - self.mean).square()).sqrt()

    @property
    def stderr(self) -> Tensor:
        """Standard error of ``mean``, std / sqrt(ess); where draws are weighted, with ess (sum w)^2
        / (draws sum w^2).
        """
        kept = (
            1.0
            if self.weights is None
            else 1 / (len(self.weights) * float(self.weights.square().sum()))
        )
        return self.std / (self.ess * kept).sqrt()

    @property
    def _doubles(self) -> Tensor:
        return self.samples.cpu().double()

    def _average(self, x: Tensor) -> Tensor:
        draws = x.mean(dim=1)
        return (
            draws.mean(dim=0) if self.weights is None else torch.tensordot(self.weights, draws, 1)
        )

    def __repr__(self) -> str:
        draws, chains, *event = self.samples.shape
        parts = [f"{draws} draws of {chains} chains, event {tuple(event)}"]
        if self.acceptance is not None:
            parts.append(
                f"acceptance {float(self.acceptance.min()):.2f} to "
                f"{float(self.acceptance.max()):.2f}"
            )
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        elif draws >= 4:
            parts.append(
                f"R-hat up to {float(self.rhat.max()):.3f}, effective sample size from "
                f"{float(self.ess.min()):.0f}"
            )
        return f"Chains({', '.join(parts)})"


class ChainError(Portable, RuntimeError):
    """Some chains have states that are not finite. ``chains`` holds what there is: the others are
    complete.
    """

    def __init__(self, chains: Chains, words: str) -> None:
        super().__init__(words)
        self.chains = chains


def run(
    kernel: Kernel,
    target: Target | Callable[[Tensor], Tensor],
    x_init: Tensor | State,
    *,
    steps: int,
    burn_in: int = 0,
    thin: int = 1,
    seed: int | Sequence[int] | None = None,
    progress: bool = False,
    on_fail: Literal["raise", "return"] = "raise",
) -> Chains:
    """Run chains from ``x_init`` (chains, *event): ``burn_in`` steps, then ``steps``, of which
    every ``thin``-th state is kept.

    ``target``: a function log_prob(x) -> (chains,), or one of `LogDensity`, `Score`, `at` and
    `Posterior`. Rows must not see each other in it.
    ``x_init``: float32 or float64, on the device where it all is to happen; or the ``state`` of an
    earlier result, which goes on as if there had been no stop, with the seeds that it had.
    ``seed``: an int, from which chain i takes seed i of `seeds`, or one int a chain; None draws one
    from the operating system. Chain i depends on its seed and its first state alone; torch's global
    generator plays no part.
    ``progress``: whether a bar is shown.
    ``on_fail``: ``"raise"`` a `ChainError` where a chain has left the finite numbers, or
    ``"return"`` what there is.

    Raises ValueError or TypeError before the first step.
    """
    target = as_target(target)
    steps, burn_in, thin = (
        integer(name, value, low)
        for name, value, low in (("steps", steps, 1), ("burn_in", burn_in, 0), ("thin", thin, 1))
    )
    _check(kernel, target, steps, thin)
    check_choice("on_fail", on_fail, ("raise", "return"))
    state = _start(x_init, seed)
    x, event = state.x, state.x.shape[1:]
    target.check(len(x))
    white = [White(state.seeds, shape, dtype=x.dtype, device=x.device) for shape in (event, ())]
    noise = Noise(*white)
    samples = x.new_empty(steps // thin, *x.shape)
    taken: Tensor | None = None
    with (
        torch.no_grad(),
        target.evaluating(),
        progress_bar("chains", total=burn_in + steps, show=progress) as bar,
    ):
        point = kernel.start(target, x, state.momentum, noise)
        _check_density(point.log_prob)
        for i in range(burn_in + steps):
            point, go = kernel.move(target, point, noise, state.number + i)
            kept = i + 1 - burn_in
            if kept > 0 and go is not None:
                taken = go.double() if taken is None else taken + go
            if kept > 0 and kept % thin == 0:
                samples[kept // thin - 1] = point.x
            bar.update(i + 1, "burn-in" if kept <= 0 else "")
    number = state.number + burn_in + steps
    weights = _weights(kernel, range(state.number + burn_in + thin, number + 1, thin))
    acceptance = None if taken is None else taken.cpu() / steps
    bad = ~torch.isfinite(rowwise(point.x)).all(dim=1).cpu()
    failed = tuple(torch.nonzero(bad).flatten().tolist())
    chains = Chains(
        samples, acceptance, weights, State(point.x, point.momentum, number, state.seeds), failed
    )
    if failed and on_fail == "raise":
        raise ChainError(chains, _why(chains, kernel, burn_in, thin))
    return chains


def _check(kernel: Kernel, target: Target, steps: int, thin: int) -> None:
    if isinstance(kernel, type) or not isinstance(kernel, Kernel):
        hint = (
            f"write {kernel.__name__}(...)" if isinstance(kernel, type) else "MALA(step=0.1), say"
        )
        raise TypeError(
            "kernel must be a value such as RandomWalk, MetropolisHastings, ULA, MALA, SGLD or "
            "Underdamped, got "
            f"{kernel!r}; {hint}"
        )
    if steps % thin:
        raise ValueError(
            f"every {thin}-th of the steps is kept: steps must be a multiple of thin = {thin}, "
            f"got {steps}"
        )
    if not target.full_batch and not kernel.minibatches:
        raise ValueError(
            f"{kernel!r} needs the whole target, and this one shows minibatches; take SGLD, or "
            "Posterior with batch_size=None"
        )


def _start(x_init: Tensor | State, seed: int | Sequence[int] | None) -> State:
    if isinstance(x_init, State):
        if seed is not None:
            raise ValueError(
                "a state has the seeds of its chains: drop seed, or start from x_init=state.x"
            )
        return x_init
    x = check_states("x_init", x_init)
    if x.dtype not in (torch.float32, torch.float64) or not x.numel():
        raise ValueError(
            f"x_init must be float32 or float64 and not empty, got {x.dtype} {tuple(x.shape)}"
        )
    return State(x.detach(), None, 0, check_seed(seed, None, tuple(x.shape)) or ())


def _check_density(log_prob: Tensor | None) -> None:
    if log_prob is None or bool(torch.isfinite(log_prob).all()):
        return
    i = int(torch.nonzero(~torch.isfinite(log_prob))[0, 0])
    raise ValueError(
        f"log_prob at x_init[{i}] is {float(log_prob[i])}: chains start where the density is "
        "positive and finite"
    )


def _weights(kernel: Kernel, numbers: range) -> Tensor | None:
    """A state counts for the step that starts from it (Teh, Thiery and Vollmer 2016, eq. 4)."""
    sizes = [size for number in numbers if (size := kernel.size(number)) is not None]
    if not sizes:
        return None
    weights = torch.tensor(sizes, dtype=torch.float64)
    return weights / math.fsum(sizes)


def _why(chains: Chains, kernel: Kernel, burn_in: int, thin: int) -> str:
    i, more = chains.failed[0], len(chains.failed) - 1
    draws = torch.isfinite(chains.samples[:, i].reshape(len(chains.samples), -1)).all(dim=1)
    sound = int(draws.long().cumprod(dim=0).sum())
    first = (burn_in + (sound - 1) * thin if sound else 0) + 1
    last = burn_in + (sound + 1) * thin
    where = f"between its steps {first} and {min(last, burn_in + len(draws) * thin)}"
    also = f" ({more} more failed)" if more else ""
    return (
        f"chain {i} left the finite numbers {where}{also}: the target gave NaN or an infinity "
        f"there, or the step of {kernel!r} "
        "is too large and the chain diverged; on_fail='return' hands back the others"
    )


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
        raise ValueError(
            "samples must be a floating-point tensor (draws, chains, *event), got "
            f"{described(samples)}"
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
