"""Noise addressed by key: sample i depends on seed i alone, never on the batch, its order or what was drawn before."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from solvers.problem import expand

__all__ = ["STREAMS", "Noise", "StepNoise", "White", "fresh_seed", "paired", "seeds"]

STREAMS: Final = {"prior": 0, "path": 1, "corrector": 2, "churn": 3, "probe": 4, "dequantization": 5}
"""Names of the independent streams that every sample has."""

_BLOCK: Final = 2**13


def seeds(seed: int, samples: range | int) -> tuple[int, ...]:
    """Seeds of the samples ``samples`` (a range, or how many) of a run with seed ``seed``.

    Seed i depends on (seed, i) alone, so that shards of a run agree: ``seeds(7, range(100, 200)) == seeds(7, 200)[100:]``.
    Different samples of one run never share a seed (a bijection of i, the finalizer of splitmix64).
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a non-negative int, got {seed!r}")
    index = np.arange(samples.start, samples.stop, samples.step) if isinstance(samples, range) else np.arange(samples)
    start = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    with np.errstate(over="ignore"):
        z = start + index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return tuple((z ^ (z >> np.uint64(31))).tolist())


def fresh_seed() -> int:
    """A seed from the operating system."""
    return secrets.randbits(48)


def paired(z: Tensor, other: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """(increment, time integral) of a Brownian path over a step h from two standard normals (Kloeden and Platen 1992, 10.4.3)."""
    root = expand(h.abs().sqrt(), z)
    return root * z, 0.5 * root**3 * (z + other / 3**0.5)


class StepNoise(Protocol):
    """The noise of one step."""

    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        """Standard normal (rows, *event); ``k`` numbers the draws that a step takes from one stream."""

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        """Increment of the Brownian path between the times a and b, of variance abs(b - a)."""

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The increment w_b - w_a and the integral of w - w_a over the same interval, its length taken positive.

        Their variances are h and h^3 / 3, their covariance is h^2 / 2, h = abs(b - a).
        """


class Noise(Protocol):
    """All the noise of a solve. The same key gives the same noise, however often and in whatever order it is asked."""

    def at(self, step: int) -> StepNoise:
        """Noise of the step number ``step``."""

    def take(self, rows: Tensor) -> Self:
        """The noise of some of the rows, int64 (k,) on the host."""


class White:
    """Independent normals for steps of a fixed grid, one seed a sample.

    Float32 normals are drawn on the host by PCG64 keyed (seed, stream, k, block) and moved to the device a block of steps at a
    time, so that the values are the same on every device. The block's length depends on the event's shape alone.
    (torch's own CPU generator would not do: it uses 32 bits of a seed, and among 50,000 samples two would agree.)
    """

    def __init__(
        self, seeds: Sequence[int], event: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.seeds = tuple(seeds)
        self.event = torch.Size(event)
        self.dtype, self.device = dtype, device
        self.length = max(1, min(64, _BLOCK // max(1, self.event.numel())))
        self._blocks: dict[tuple[str, int], tuple[int, Tensor]] = {}

    def at(self, step: int) -> _WhiteStep:
        """Noise of the step number ``step``."""
        return _WhiteStep(self, step)

    def take(self, rows: Tensor) -> White:
        """The noise of some of the rows."""
        return White([self.seeds[i] for i in rows.tolist()], self.event, dtype=self.dtype, device=self.device)

    def normal(self, step: int, stream: str, k: int) -> Tensor:
        """Standard normal (rows, *event) of the key (step, stream, k)."""
        number, within = divmod(step, self.length)
        held = self._blocks.get((stream, k))
        if held is None or held[0] != number:
            held = (number, self._draw(stream, k, number))
            self._blocks[stream, k] = held
        return held[1][within]

    def _draw(self, stream: str, k: int, number: int) -> Tensor:
        # The prior is one draw a solve, so its block is one step long.
        length = 1 if stream == "prior" else self.length
        block = np.empty((len(self.seeds), length, self.event.numel()), dtype=np.float32)
        for row, seed in zip(block, self.seeds, strict=True):
            generator = np.random.Generator(np.random.PCG64((seed, STREAMS[stream], k, number)))
            generator.standard_normal(out=row, dtype=np.float32)
        # Step first, so that a step reads one contiguous piece.
        steps = torch.from_numpy(block).transpose(0, 1).contiguous().to(self.dtype).to(self.device)
        return steps.reshape(length, len(self.seeds), *self.event)


class _WhiteStep:
    def __init__(self, white: White, step: int) -> None:
        self.white, self.step = white, step

    def normal(self, stream: str = "path", k: int = 0) -> Tensor:
        return self.white.normal(self.step, stream, k)

    def increment(self, a: Tensor, b: Tensor) -> Tensor:
        z = self.normal("path")
        return z * expand((b - a).abs().sqrt(), z)

    def pair(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return paired(self.normal("path"), self.normal("path", 1), b - a)
