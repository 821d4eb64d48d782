"""Data in the user's units, and the same data in the units of the model: an affine map for each
channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from sdediff.masks import mask_of
from sdediff.solvers import rowwise
from sdediff.solvers.given import Numbers, described
from sdediff.solvers.masked import kept

__all__ = ["Moments", "Normalizer", "coordinate_moments"]

_CHUNK = 2**24
_SHOWN = 8


@dataclass(frozen=True, eq=False, repr=False)
class Normalizer:
    """Standardises data: x = (y - mean) / std, with y (B, *event) in your units and x in the units
    of the network.

    ``mean`` and ``std`` are numbers, tensors (C,) with one number for each channel (dimension 1 of
    y), or tensors of the event's shape. ``std`` must be positive. They are kept as float64 tensors
    on the host. `Normalizer.of` computes them from data.

    A normalizer belongs to a model, ``ScoreModel(net, sde, normalizer=Normalizer.of(data))``. Then
    `sample`, `encode`, `decode`, `log_prob` and `bits_per_dim` take and return states in your
    units, y_t = mean + std x_t at every time, and densities are those of y. Losses, and the methods
    of the model itself, take x.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Numbers = 0.0, std: Numbers = 1.0) -> None:
        center, scale = _numbers("mean", mean), _numbers("std", std)
        if not bool((scale > 0).all()):
            raise ValueError(f"Normalizer: std must be positive, got {float(scale.min()):g}")
        try:
            center, scale = torch.broadcast_tensors(center, scale)
        except RuntimeError as error:
            shapes = f"{tuple(center.shape)} and {tuple(scale.shape)}"
            raise ValueError(
                f"Normalizer: mean and std must have one shape, got {shapes}"
            ) from error
        object.__setattr__(self, "mean", center.clone())
        object.__setattr__(self, "std", scale.clone())

    @classmethod
    def of(cls, data: Tensor, mask: Tensor | None = None) -> Self:
        """The normalizer under which each channel of ``data`` (N, *event) has mean 0 and variance
        1.

        Channels are dimension 1: the coordinates of points (N, d), the colours of images
        (N, C, H, W). A channel that is constant is shifted to 0 and keeps its units, std = 1.
        ``mask`` says which coordinates exist, as for a loss; the others do not count. Raises
        ValueError where all of the data are constant or not finite.
        """
        moments = coordinate_moments(data, mask).of_channels()
        center, std = moments.mean, moments.variance.sqrt()
        # Rounding of the mean leaves a constant channel with a spread of its last digit.
        least = 64 * torch.finfo(torch.float64).eps * center.abs()
        if not bool((std > least).any()):
            raise ValueError(
                "Normalizer.of: every channel of the data is constant, so that there is no "
                "standard "
                "deviation to divide by; give the numbers, Normalizer(mean, std)"
            )
        return cls(center, torch.where(std > least, std, 1.0))

    def normalize(self, y: Tensor) -> Tensor:
        """(y - mean) / std of y (B, *event), in the dtype of y and where y is."""
        mean, std = self._like(y)
        return (y - mean) / std

    def denormalize(self, x: Tensor) -> Tensor:
        """mean + std x of x (B, *event), in the dtype of x and where x is."""
        mean, std = self._like(x)
        return mean + std * x

    def scale(self, x: Tensor) -> Tensor:
        """std, shaped so that it multiplies states x (B, *event), in their dtype and where they
        are.
        """
        return self._like(x)[1]

    def moments(self, found: Moments) -> Moments:
        """The moments of x from those of y."""
        center, std = (_beside(part, found.mean.ndim) for part in (self.mean, self.std))
        return Moments((found.mean - center) / std, found.variance / std.square(), found.samples)

    def log_det(self, event: Sequence[int], mask: Tensor | None = None) -> float | Tensor:
        """The sum of log std over the coordinates of an event: log p(y) = log p(x) - log_det.

        With a bool ``mask`` (B, *event) over those that exist, float64 (B,) on the host.
        """
        self.check(event)
        shape = torch.Size(event)
        logs = _beside(self.std, len(shape)).log().expand(shape)
        if mask is None:
            return float(logs.sum())
        return rowwise(kept(logs, mask.cpu())).sum(dim=1)

    def check(self, event: Sequence[int]) -> None:
        """Raise a ValueError unless an event of this shape can be normalised."""
        shape, own = tuple(event), tuple(self.mean.shape)
        if own and own != shape and own != shape[:1]:
            raise ValueError(
                f"the normalizer has mean and std of shape {own}, and an event has shape {shape}: "
                "they are numbers, one number a channel (C,), or of the event's shape"
            )

    def to_dict(self) -> dict[str, Any]:
        """The arguments as numbers and lists, which JSON can hold: ``Normalizer(**d)`` is equal."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std beside states x, shaped so that they act on them."""
        self.check(x.shape[1:])
        pair = torch.stack([self.mean, self.std]).to(x.dtype).to(x.device)
        return _beside(pair[0], x.ndim - 1), _beside(pair[1], x.ndim - 1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Normalizer):
            return NotImplemented
        return torch.equal(self.mean, other.mean) and torch.equal(self.std, other.std)

    def __hash__(self) -> int:
        return hash(
            (tuple(self.mean.shape), *self.mean.flatten().tolist(), *self.std.flatten().tolist())
        )

    def __repr__(self) -> str:
        """The numbers, or the shape where they are many."""
        if self.mean.numel() > _SHOWN:
            return f"Normalizer(mean and std of shape {tuple(self.mean.shape)})"
        return f"Normalizer(mean={_shown(self.mean)}, std={_shown(self.std)})"


class Moments(NamedTuple):
    """Mean and variance of each coordinate of data, and how many samples have it: float64 on the
    host, each (*event).
    """

    mean: Tensor
    variance: Tensor
    samples: Tensor

    def of_channels(self) -> Moments:
        """Mean and variance of each channel (C,), the first dimension of the event, over all of its
        coordinates and samples.

        Points (d,) have a channel for each coordinate.
        """
        if self.mean.ndim < 2:
            return self
        samples, mean, variance = (
            part.flatten(1) for part in (self.samples, self.mean, self.variance)
        )
        weight = samples / samples.sum(dim=1, keepdim=True).clamp(min=1)
        center = (weight * mean).sum(dim=1)
        spread = (weight * (variance + (mean - center[:, None]).square())).sum(dim=1)
        return Moments(center, spread, samples.sum(dim=1))

    @property
    def data_std(self) -> float:
        """The standard deviation of the data about the means of their channels, the root mean
        square over channels.

        For images it is the spread of all pixels, which Karras et al. 2022 (arXiv 2206.00364) call
        sigma_data.
        """
        variance = self.of_channels().existing[1]
        return float(variance.mean().sqrt()) if len(variance) else 0.0

    @property
    def existing(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of the coordinates that any sample has, flat."""
        return self.mean[self.samples > 0], self.variance[self.samples > 0]


def coordinate_moments(data: Tensor, mask: Tensor | None = None) -> Moments:
    """The moments of ``data`` (N, *event), over the samples for which ``mask`` says that a
    coordinate exists.

    The variance is that of the samples themselves, divided by their number; where no sample has a
    coordinate both are 0. Raises ValueError or TypeError unless the data are finite floating-point
    numbers with at least one sample.
    """
    if (
        not isinstance(data, Tensor)
        or data.ndim < 1
        or not data.is_floating_point()
        or not data.numel()
    ):
        raise TypeError(
            "data must be a floating-point tensor (N, *event) that is not empty, got "
            f"{described(data)}"
        )
    exist, zero = mask_of(mask, data), torch.zeros(data.shape[1:], dtype=torch.float64)
    count = torch.full_like(zero, len(data)) if exist is None else exist.sum(dim=0).cpu().double()
    many = count.clamp(min=1)
    mean = sum((kept(part, there).sum(dim=0) for part, there in _parts(data, exist)), zero) / many
    if not bool(torch.isfinite(mean).all()):
        raise ValueError("data contain values that are not finite; drop or mend those samples")
    square = sum(
        (kept((part - mean).square(), there).sum(dim=0) for part, there in _parts(data, exist)),
        zero,
    )
    return Moments(mean, square / many, count)


def _parts(data: Tensor, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The data as float64 on the host, and the mask, so many samples at a time that memory is not
    doubled.
    """
    size = max(1, _CHUNK // max(1, data[0].numel()))
    for first in range(0, len(data), size):
        rows = slice(first, first + size)
        yield data[rows].detach().cpu().double(), None if mask is None else mask[rows].cpu()


def _numbers(name: str, value: Numbers) -> Tensor:
    try:
        found = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"Normalizer: {name} must be a number, a sequence or a tensor of numbers, got {value!r}"
        ) from error
    if not bool(torch.isfinite(found).all()) or not found.numel():
        raise ValueError(f"Normalizer: {name} must be finite numbers, got {value!r}")
    return found


def _beside(numbers: Tensor, rank: int) -> Tensor:
    """Numbers a channel, (C,), shaped for an event of this rank; others as they are."""
    return numbers.reshape(-1, *(1,) * (rank - 1)) if numbers.ndim == 1 and rank > 1 else numbers


def _shown(numbers: Tensor) -> str:
    return (
        f"{float(numbers):.6g}"
        if not numbers.ndim
        else f"[{', '.join(f'{n:.6g}' for n in numbers.flatten().tolist())}]"
    )
