"""What metrics share: the number that one returns, with its noise floor; the samples, checked,
pooled and handed out in blocks of bounded size; and random splits of the pooled sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from sdediff import solvers
from sdediff.modules import evaluating
from sdediff.solvers.given import described, integer, plain, reading

__all__ = [
    "ELEMENTS",
    "FLOOR",
    "Floor",
    "Metric",
    "Pool",
    "Statistic",
    "accumulator",
    "apply",
    "blocks",
    "check_count",
    "check_floor",
    "check_sample",
    "check_samples",
    "generator",
    "measure",
]


@dataclass(frozen=True)
class Floor:
    """What a metric gives between independent samples of one law, with as many rows as it was
    given.
    """

    mean: float
    """The mean of these values."""
    std: float
    """Their standard deviation."""
    quantile: float
    """The 95 % quantile: above it lies one value in 20 where there is no difference."""
    repeats: int
    """From how many splits it was estimated; 0 for a closed form."""


@dataclass(frozen=True)
class Metric:
    """A number; ``float(metric)`` is its value.

    ``floor``: what the metric gives between samples of one law; None where it was not asked for.
    ``p_value``: the probability of a value at least as large as this one where there is no
    difference; None where there is no test.
    """

    value: float
    floor: Floor | None = None
    p_value: float | None = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        notes = []
        if self.floor is not None:
            notes.append(f"floor {self.floor.mean:.4g} ± {self.floor.std:.2g}")
        if self.p_value is not None:
            notes.append(f"p = {self.p_value:.2g}")
        return f"{self.value:.4g}" + (f" ({', '.join(notes)})" if notes else "")


ELEMENTS: Final = 2**20
"""Numbers in the largest temporary tensor, about; events of more coordinates come one by one."""


def accumulator(device: torch.device) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of ``count`` rows of ``width`` numbers, about ELEMENTS numbers each."""
    size = max(1, ELEMENTS // max(1, width))
    return (slice(i, min(i + size, count)) for i in range(0, count, size))


def generator(seed: int, stream: int) -> torch.Generator:
    """The generator on the host of one use of randomness: streams of one seed are independent."""
    return torch.Generator().manual_seed(solvers.seeds(seed, range(stream, stream + 1))[0])


def check_count(name: str, value: int, least: int, *, zero: bool = False) -> int:
    """Return an int of at least ``least``, or 0 where that means none."""
    kept = plain(value)
    if zero and isinstance(kept, int | float) and not isinstance(kept, bool) and kept == 0:
        return 0
    return integer(
        name, value, least, kind=f"0 (none) or an int of at least {least}" if zero else ""
    )


def check_floor(floor: int, seed: int) -> int:
    """Return the number of splits, none or enough for a standard deviation; there is a seed for
    them.
    """
    generator(seed, FLOOR)
    return check_count("floor", floor, 2, zero=True)


def check_sample(name: str, x: Tensor, least: int = 1) -> Tensor:
    """A finite floating-point tensor (n, *event) with enough rows, detached."""
    return _finite(name, _shaped(name, x, least))


def check_samples(x: Tensor, y: Tensor, least: int = 1, of: str = "") -> tuple[Tensor, Tensor]:
    """Two such samples of one shape of event on one device; ``of`` says what of x and y they
    are.
    """
    x, y = _shaped(f"{of}x", x, least), _shaped(f"{of}y", y, least)
    if x.shape[1:] != y.shape[1:]:
        got = f"{of}x {tuple(x.shape)} and y {tuple(y.shape)}"
        raise ValueError(
            f"{got} differ in more than their first dimension: expected (n, *event) and (m, *event)"
        )
    if x.device != y.device:
        raise ValueError(
            f"{of}x on {x.device} and y on {y.device}: expected one device; move one of them, "
            "y.to(x.device) say"
        )
    return _finite(f"{of}x", x), _finite(f"{of}y", y)


def _shaped(name: str, x: Tensor, least: int) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 1:
        raise ValueError(
            f"{name} must be a floating-point tensor of shape (n, *event), got {described(x)}; "
            "convert it first"
        )
    if len(x) < least or x[:1].numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}: expected at least {least} samples of at least "
            "one number"
        )
    return x.detach()


def _finite(name: str, x: Tensor) -> Tensor:
    bad = ~torch.isfinite(x).reshape(len(x), -1).all(dim=1)
    if count := int(bad.sum()):
        first = int(bad.int().argmax())
        raise ValueError(
            f"{name} has NaN or inf in {count} of {len(x)} samples, first in sample {first}: "
            "leave those out, and say so"
        )
    return x


@dataclass(frozen=True, eq=False)
class Pool:
    """The rows of x and then those of y, (n + m, d), as they came."""

    rows: Tensor
    n: int
    center: Tensor
    """Mean of the rows, (d,): distances are between centred rows, where fewer digits cancel."""
    event: tuple[int, ...]
    floor: int
    """How many random splits there are, none or enough for a standard deviation."""
    seed: int

    @classmethod
    def of(cls, x: Tensor, y: Tensor, least: int = 1, *, floor: int = 0, seed: int = 0) -> Pool:
        """The checked arguments of a metric."""
        floor = check_floor(floor, seed)
        x, y = check_samples(x, y, least)
        rows = torch.cat([x.reshape(len(x), -1), y.reshape(len(y), -1)])
        total = torch.zeros(rows.shape[1], dtype=accumulator(rows.device), device=rows.device)
        for part in blocks(*rows.shape):
            total += rows[part].to(total.dtype).sum(dim=0)
        return cls(rows, len(x), total / len(rows), tuple(x.shape[1:]), floor, seed)

    @property
    def m(self) -> int:
        """Rows of y."""
        return len(self.rows) - self.n

    def centred(self, which: slice | Tensor) -> Tensor:
        """Some rows less their mean, in float64."""
        return self.rows[which].to(self.center.dtype) - self.center

    def tiles(self) -> Iterator[slice]:
        """Slices of the rows so that a matrix of two of them, and each of them, stays small."""
        return blocks(len(self.rows), max(math.isqrt(ELEMENTS), self.rows.shape[1] // 8))


def apply(name: str, function: Callable[[Tensor], Tensor], x: Tensor, batch_size: int) -> Tensor:
    """(n, k): function of the rows of x in batches, without gradients; modules that it uses are in
    evaluation mode.
    """
    outputs: list[Tensor] = []
    with torch.no_grad(), evaluating(function):
        for i in range(0, len(x), batch_size):
            batch = x[i : i + batch_size]
            value = reading(name, function, "x", batch)
            width = value.shape[1:] if isinstance(value, Tensor) and value.ndim == 2 else None
            if (
                width is None
                or len(value) != len(batch)
                or (outputs and width != outputs[0].shape[1:])
            ):
                raise ValueError(
                    f"{name} returned {described(value)} for a batch {tuple(batch.shape)}: "
                    f"expected ({len(batch)}, k); flatten it"
                )
            outputs.append(value)
    return torch.cat(outputs)


FLOOR: Final = 1
"""Stream of the random splits."""
_LABELS: Final = 2**27  # bytes
_AT_ONCE: Final = 4096
_SAME: Final = 1e-9  # relative; the same split, summed in another order, is as large

Statistic = Callable[[Tensor], Tensor]
"""From labels (r, n + m), True where a row of the pooled sample counts as one of x, to r values."""


def measure(statistic: Statistic, pool: Pool) -> Metric:
    """The statistic of x and y; its floor and p-value from ``pool.floor`` splits of the pooled
    sample into n and m rows.

    p = (1 + #{T_i >= T}) / (1 + floor) for the values T_i of the splits: P(p <= a) <= a where x and
    y have one law, for any sizes and any statistic. It cannot fall below 1 / (1 + floor).
    """
    values = torch.cat(
        [statistic(labels.to(pool.rows.device)).cpu().double() for labels in _labels(pool)]
    )
    value, split, floor = values[0], values[1:], pool.floor
    if floor == 0:
        return Metric(float(value))
    reached = int((split >= value - _SAME * value.abs()).sum())
    law = Floor(float(split.mean()), float(split.std()), float(split.quantile(0.95)), floor)
    return Metric(float(value), law, (1 + reached) / (1 + floor))


def _labels(pool: Pool) -> Iterator[Tensor]:
    """Row 0 is x and y themselves, the others are splits; in groups of bounded size."""
    size, floor = len(pool.rows), pool.floor
    at_once = min(_AT_ONCE, max(1, _LABELS // size))
    random = generator(pool.seed, FLOOR)
    for start in range(0, 1 + floor, at_once):
        labels = torch.zeros(min(at_once, 1 + floor - start), size, dtype=torch.bool)
        for i, row in enumerate(labels, start):
            row[torch.randperm(size, generator=random)[: pool.n] if i else slice(pool.n)] = True
        yield labels
