"""The one driver of chains, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from sdediff.arguments import check_seed, check_states
from sdediff.mcmc.diagnostics import effective_sample_size, split_rhat
from sdediff.mcmc.kernels import Kernel, Noise
from sdediff.mcmc.target import Target, as_target
from sdediff.progress import progress_bar
from sdediff.solvers import White, rowwise
from sdediff.solvers.given import check_choice, whole
from sdediff.solvers.portable import Portable

__all__ = ["ChainError", "Chains", "State", "run"]


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
        """Shape and diagnostics, not the numbers."""
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
    `Posterior`. Rows must not see each other in it. ``x_init``: float32 or float64, on the device
    where it all is to happen; or the ``state`` of an earlier result, which goes on as if there had
    been no stop, with the seeds that it had.
    ``seed``: an int, from which chain i takes seed i of `seeds`, or one int a chain; None draws one
    from the operating system. Chain i depends on its seed and its first state alone; torch's global
    generator plays no part. ``progress``: show a bar. ``on_fail``: ``"raise"`` a `ChainError` where
    a chain has left the finite numbers, or ``"return"`` what there is.

    Raises ValueError or TypeError before the first step.
    """
    target = as_target(target)
    steps, burn_in, thin = (
        whole(name, value, low)
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
            "kernel must be a value such as RandomWalk, ULA, MALA, SGLD or Underdamped, got "
            f"{kernel!r}; {hint}"
        )
    if steps % thin:
        raise ValueError(
            f"every {thin}-th of the steps is kept: steps must be a multiple of thin = {thin}, "
            f"got {steps}"
        )
    if not target.whole and not kernel.minibatches:
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
