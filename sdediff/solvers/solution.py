"""The result of a solve: what came out and what happened on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

import torch
from torch import Tensor

from sdediff.solvers.portable import Portable

if TYPE_CHECKING:
    from sdediff.solvers.dense import Dense

__all__ = ["Crossings", "Failure", "Solution", "SolveError", "Status", "failing"]


class Status(IntEnum):
    """How the solve of a sample ended: 0, ``SUCCESS``, or the reason why it stopped."""

    SUCCESS = 0
    NETWORK_NOT_FINITE = 1
    STATE_NOT_FINITE = 2
    MAX_NFE = 3
    STEP_TOO_SMALL = 4
    DRIVER_STOPPED = 5
    EVENT = 6
    """A terminal event ended its way early: this is no failure."""


MOST_NFE: Final = 50_000
"""Evaluations that an adaptive solver makes of one sample at most, unless its user says otherwise:
no useful solve comes near.
"""

_REASON = {
    Status.NETWORK_NOT_FINITE: "{what}'s output is not finite; look at {what} at this time "
    "and at its input",
    Status.STATE_NOT_FINITE: "the state is not finite though {what}'s output was; take more "
    "steps or a more stable solver",
    Status.MAX_NFE: "max_nfe is reached; raise it or loosen the tolerances",
    Status.STEP_TOO_SMALL: "the step size fell to rounding error; loosen the tolerances or look "
    "for a jump in {what}",
    Status.DRIVER_STOPPED: "the other library gave up",
}


@dataclass(frozen=True)
class Failure:
    """Which sample failed, with which `Status`, and at which time t.

    ``words`` has more about the reason, such as the message of another library. ``what`` names the
    function that was solved.
    """

    sample: int
    status: Status
    t: float
    words: str = ""
    what: str = "the network"

    def __str__(self) -> str:
        words = f" ({self.words})" if self.words else ""
        reason = _REASON[self.status].format(what=self.what)
        return f"sample {self.sample} failed at t = {self.t:.6g}: {reason}{words}"


def failing(samples: Tensor, t: Tensor, status: Status, words: str = "") -> list[Failure]:
    """The failures of ``samples`` int64 (k,) at ``t``, () or a time for each of them."""
    ends = t.expand(len(samples)).tolist()
    return [Failure(i, status, end, words) for i, end in zip(samples.tolist(), ends, strict=True)]


class Crossings(NamedTuple):
    """Where one event happened, in the order of the samples and of each sample's way."""

    sample: Tensor
    """Which sample, int64 (n,)."""
    t: Tensor
    """When, float64 (n,) on the host."""
    x: Tensor
    """The state there, (n, *event)."""


@dataclass(frozen=True)
class Solution:
    """The samples of a solve, and the cost and the status of each.

    ``x``: the samples, (B, *event), after the last denoising step if there was one. For a sample
    that failed it is the last finite state.
    ``times``: the grid, float64 (N + 1,), or (N + 1, B) if each sample has its own.
    ``nfe``: the evaluations of the network for each sample, int64 (B,).
    ``accepted``, ``rejected``: the numbers of steps, int64 (B,).
    ``status``: a `Status` for each sample, int64 (B,); 0 is success.
    ``trajectory``: the states at all times of the grid, (K, B, *event), if asked for. The last one
    is ``x``.
    ``seeds``: the seed of each sample. ``sample(..., seed=[out.seeds[i]])`` draws sample i again.
    ``failures``: a `Failure` for each sample that failed.
    ``backward``: the backward passes through the network for each sample, int64 (B,).
    ``events``: the `Crossings` of each event that was asked for (see `solve_ode`).
    ``dense``: the states at any times, if asked for (see `solve_ode`).
    ``extras``: other results of the solver for each sample, (B, ...) by name, such as the weights
    of particles.
    """

    x: Tensor
    times: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    trajectory: Tensor | None = None
    seeds: tuple[int, ...] | None = None
    failures: tuple[Failure, ...] = field(default=())
    backward: Tensor | None = None
    events: tuple[Crossings, ...] = ()
    dense: Dense | None = field(default=None, repr=False)
    extras: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def failed(
        self, failures: Iterable[Failure], on_fail: Literal["raise", "return"] = "return"
    ) -> Self:
        """The same with further failures, in the order of the samples; `SolveError` says so where
        ``on_fail`` is ``"raise"``.
        """
        status = self.status.clone()
        every = sorted([*self.failures, *failures], key=lambda failure: failure.sample)
        for failure in every:
            status[failure.sample] = failure.status
        marked = replace(self, status=status, failures=tuple(every))
        if every and on_fail == "raise":
            raise SolveError(marked)
        return marked

    @property
    def success(self) -> bool:
        """Whether every sample came to the end."""
        return not self.failures

    def __repr__(self) -> str:
        span = " to ".join(map(_told, self.times[[0, -1]])) if len(self.times) else "nothing"
        nfe = "none" if not len(self.nfe) else f"{int(self.nfe.min())} to {int(self.nfe.max())}"
        text = (
            f"Solution(x: {tuple(self.x.shape)} {str(self.x.dtype).removeprefix('torch.')}, t: "
            f"{span}, nfe a sample: {nfe}"
        )
        return f"{text}, failed: {len(self.failures)} of {len(self.x)})"


def _told(t: Tensor) -> str:
    """A time, or the least and the largest of the samples' own."""
    low, high = (f"{float(each):.4g}" for each in (t.min(), t.max()))
    return low if low == high else f"({low} .. {high})"


class SolveError(Portable, RuntimeError):
    """Raised if samples fail. In ``solution``, the partial result, the others are complete."""

    def __init__(self, solution: Solution) -> None:
        first, more = solution.failures[0], len(solution.failures) - 1
        also = f" ({more} more failed)" if more else ""
        super().__init__(f"{first}{also}; the error's .solution has the others")
        self.solution = solution

    def __reduce__(self) -> tuple[Any, ...]:
        """As `Portable` has it; states that belong to a graph are kept without the graph, which no
        other process can use.
        """
        make, arguments, state = super().__reduce__()
        return make, arguments, state | {"solution": _detached(self.solution)}


def _detached(solution: Solution) -> Solution:
    frames = solution.trajectory
    return replace(
        solution,
        x=solution.x.detach(),
        trajectory=None if frames is None else frames.detach(),
        dense=None,
        extras={name: each.detach() for name, each in solution.extras.items()},
        events=tuple(Crossings(*(part.detach() for part in each)) for each in solution.events),
    )


def merge(parts: list[Solution]) -> Solution:
    """Solutions of consecutive parts of a batch as one."""
    if len(parts) == 1:
        return parts[0]
    offsets = [0]
    for part in parts:
        offsets.append(offsets[-1] + len(part.x))
    frames = [part.trajectory for part in parts if part.trajectory is not None]
    seeds = [part.seeds for part in parts if part.seeds is not None]
    backward = [part.backward for part in parts if part.backward is not None]
    return Solution(
        x=torch.cat([part.x for part in parts]),
        times=parts[0].times
        if parts[0].times.ndim == 1
        else torch.cat([part.times for part in parts], dim=1),
        nfe=torch.cat([part.nfe for part in parts]),
        accepted=torch.cat([part.accepted for part in parts]),
        rejected=torch.cat([part.rejected for part in parts]),
        status=torch.cat([part.status for part in parts]),
        trajectory=torch.cat(frames, dim=1) if frames else None,
        seeds=tuple(seed for group in seeds for seed in group) if seeds else None,
        backward=torch.cat(backward) if backward else None,
        extras={name: torch.cat([part.extras[name] for part in parts]) for name in parts[0].extras},
        failures=tuple(
            replace(f, sample=f.sample + offset)
            for part, offset in zip(parts, offsets, strict=False)
            for f in part.failures
        ),
    )
