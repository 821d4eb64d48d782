"""What solvers ask of noise: sample i depends on seed i alone, never on the batch, its order or
what was drawn before.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import expand

if TYPE_CHECKING:
    from sdediff.solvers.white import Nodes

__all__ = [
    "STREAMS",
    "Noise",
    "Refinable",
    "Silence",
    "StepNoise",
    "device_of",
    "elapsed",
    "fresh_seed",
    "paired",
    "root_of",
]

_NAMES: Final = (
    "prior path corrector churn probe dequantization tree bridge proposal acceptance minibatch "
    "resampling"
)
STREAMS: Final = {name: number for number, name in enumerate(_NAMES.split())}
"""Names of the independent streams that every sample has."""


def fresh_seed() -> int:
    """A seed from the operating system."""
    return secrets.randbits(48)


def paired(z: Tensor, other: Tensor, h: Tensor | float) -> tuple[Tensor, Tensor]:
    """(increment, time integral) of a Brownian path over a step h from two standard normals
    (Kloeden and Platen 1992, 10.4.3).
    """
    root = root_of(h, z)
    return root * z, 0.5 * root**3 * (z + other / 3**0.5)


def elapsed(a: Tensor, b: Tensor) -> Tensor | float:
    """b - a."""
    # A number where nothing is lost by it: arithmetic on 0-d tensors costs as much as on a small
    # state.
    if a.ndim or b.ndim or a.requires_grad or b.requires_grad:
        return b - a
    return float(b) - float(a)


def root_of(h: Tensor | float, z: Tensor) -> Tensor | float:
    """sqrt(abs(h)), shaped so that it multiplies z."""
    return expand(h.abs().sqrt(), z) if isinstance(h, Tensor) else math.sqrt(abs(h))


class StepNoise(Protocol):
    """The noise of one step."""

    def normal(self, stream: str, k: int = 0) -> Tensor:
        """Standard normal (rows, *event) that is no part of the path; ``k`` numbers the draws of a
        step from one stream.
        """

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        """The Brownian path's increment from a to b over the root of abs(b - a): a standard normal.

        A step that takes the path in pieces, disjoint ones, numbers them by ``k``.
        """

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        """Increment of the Brownian path between the times a and b, of variance abs(b - a)."""

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The increment w_b - w_a and the integral of w - w_a over the same interval, its length
        taken positive.

        Their variances are h and h^3 / 3, their covariance is h^2 / 2, h = abs(b - a).
        """


class Noise(Protocol):
    """All the noise of a solve. The same key gives the same noise, however often and in whatever
    order it is asked.
    """

    def at(self, step: int) -> StepNoise:
        """Noise of the step number ``step``."""

    def take(self, rows: Tensor) -> Self:
        """The noise of some of the rows, int64 (k,) on the host."""


@runtime_checkable
class Refinable(Noise, Protocol):
    """Noise for steps that are not known beforehand."""

    def tree(self) -> Nodes | None:
        """Normals for a path that an adaptive solver makes for itself; None: this is a path, to be
        asked at any times.
        """


@dataclass(eq=False)
class Silence(StepNoise):
    """The noise of a solver that draws none."""

    solver: object

    def normal(self, stream: str, k: int = 0) -> Tensor:
        raise ValueError(
            f"{self.solver!r} draws noise but declares stochastic = False; declare it stochastic"
        )

    def over(self, a: Tensor, b: Tensor, k: int = 0) -> Tensor:
        return self.normal("path", k)

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        return self.normal("path")

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.normal("path"), self.normal("path")


def device_of(value: object, name: str = "device") -> torch.device:
    """Return ``value`` as a torch device; a ValueError unless it is one, or its name, and it is
    there.
    """
    try:
        if not isinstance(value, str | torch.device):
            raise TypeError
        place = torch.device(value)
        _ = torch.empty(0, device=place)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        there = (
            "cpu, cuda or cuda:1 say"
            if torch.cuda.is_available()
            else "cpu: there is no CUDA device here"
        )
        raise ValueError(
            f"{name} must be a torch device that is there, {there}; got {value!r}"
        ) from error
    return place
