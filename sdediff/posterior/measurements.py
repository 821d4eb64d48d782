"""Measurements y = A x_0 + noise of data x_0, and measurements of any other kind by their
log-likelihood.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

import torch
from torch import Tensor

from sdediff.solvers import rowwise
from sdediff.solvers.given import Count, Record, described, reals

__all__ = [
    "Blur",
    "Downsample",
    "Fourier",
    "Grey",
    "Linear",
    "LinearMeasurement",
    "Mask",
    "Measurement",
    "Nonlinear",
    "NormalNoise",
    "Through",
    "as_measurement",
]

NoiseStd = float | Tensor


class Measurement(Protocol):
    """A measurement of x_0, in your units: the measured function, and the likelihood of an outcome.

    Both treat each sample by itself and can be differentiated by autograd.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The outcome without noise, (B, *outcome), of data x (B, *event)."""

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | x_0 = x) in nats, (B,), of outcomes y (B, *outcome)."""


class LinearMeasurement(Measurement, Protocol):
    """A measurement y = A x_0 + noise_std n with n ~ N(0, I)."""

    @property
    def noise_std(self) -> NoiseStd:
        """A number >= 0, or numbers that broadcast to an outcome."""

    def adjoint(self, y: Tensor, event: Sequence[int]) -> Tensor:
        """A^T y, (B, *event), of y (B, *outcome)."""


class NormalNoise(Record):
    """Base of linear measurements: a dataclass with a field ``noise_std``, and ``forward``.

    The adjoint is that of `forward` by autograd, unless a subclass has it.
    """

    noise_std: NoiseStd

    def __post_init__(self) -> None:
        size = reals(f"{type(self).__name__}: noise_std", self.noise_std)
        if not bool(torch.isfinite(size).all()) or bool((size < 0).any()):
            raise ValueError(
                f"{type(self).__name__}: noise_std must be finite and >= 0, got {self.noise_std!r}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """A x."""
        raise NotImplementedError

    def adjoint(self, y: Tensor, event: Sequence[int]) -> Tensor:
        """A^T y."""
        with torch.enable_grad():
            x = torch.zeros(len(y), *event, dtype=y.dtype, device=y.device, requires_grad=True)
            # the derivative of A is constant, so that x may be a leaf of its own
            keep = y.requires_grad
            (found,) = torch.autograd.grad(self.forward(x), x, y, create_graph=keep)
        return found

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """-|(y - A x) / noise_std|^2 / 2 - sum log(noise_std sqrt(2 pi))."""
        std = reals("noise_std", self.noise_std).to(y)
        off = rowwise((y - self.forward(x)) / std)
        sizes = std.expand(y.shape[1:]).log() + 0.5 * math.log(2 * math.pi)
        return -0.5 * off.square().sum(dim=1) - sizes.sum()


@dataclass(frozen=True, eq=False)
class Linear(NormalNoise):
    """y = A x_0 + noise_std n for any linear function ``A`` of x (B, *event), of any rank.

    ``A`` returns (B, *outcome), and treats every sample by itself. ``At`` is its adjoint, from
    (B, *outcome) to (B, *event); without it autograd takes its place. Before a solve begins, the
    two are compared on random x and y: <A x, y> = <x, At y>. ``noise_std`` is a number or has a
    shape that broadcasts to an outcome. ``Linear(lambda x: x @ H.T, noise_std=0.1)`` is the matrix
    ``H`` (m, d) for points (B, d).
    """

    A: Callable[[Tensor], Tensor]
    At: Callable[[Tensor], Tensor] | None = None
    noise_std: NoiseStd = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, given in (("A", self.A), ("At", self.At or self.A)):
            if not callable(given):
                raise TypeError(
                    f"Linear: {name} must be a function of (B, *event), lambda x: x @ H.T for a "
                    f"matrix H; got {type(given).__name__}"
                )

    def forward(self, x: Tensor) -> Tensor:
        return self.A(x)

    def adjoint(self, y: Tensor, event: Sequence[int]) -> Tensor:
        return super().adjoint(y, event) if self.At is None else self.At(y)


@dataclass(frozen=True, eq=False)
class Mask(NormalNoise):
    """Inpainting: the entries of x_0 where ``mask`` is True, as a vector.

    ``mask`` is a bool tensor that broadcasts to the event: (H, W) for images (B, C, H, W). With
    m entries that are True an outcome is (m,); ``mask.forward(picture)`` makes one of a picture.
    """

    mask: Tensor
    noise_std: NoiseStd = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mask("Mask", self.mask)

    def forward(self, x: Tensor) -> Tensor:
        return rowwise(x)[:, self._places(x.shape[1:], x.device)]

    def adjoint(self, y: Tensor, event: Sequence[int]) -> Tensor:
        shape = torch.Size(event)
        flat = y.new_zeros(len(y), shape.numel())
        return flat.index_copy(1, self._places(shape, y.device), y).reshape(len(y), *shape)

    def _places(self, event: torch.Size, device: torch.device) -> Tensor:
        """Which entries of a flat event are seen."""
        return torch.nonzero(spread_mask("Mask", self.mask, event).flatten())[:, 0].to(device)


@dataclass(frozen=True, eq=False)
class Blur(NormalNoise):
    """Convolution with ``kernel`` over the last dimensions of the event, as many as it has.

    y_i = sum_j kernel_j x_(i + c - j) with the centre c of the kernel and indices modulo the size:
    boundaries are periodic. The kernel is (k,), (k, k), ..., no longer than the event.
    """

    kernel: Tensor
    noise_std: NoiseStd = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.kernel, Tensor) and self.kernel.is_floating_point()):
            raise TypeError(
                f"Blur: kernel must be a floating-point tensor (k, k), got {described(self.kernel)}"
            )
        if not self.kernel.ndim or not self.kernel.numel():
            raise ValueError(
                f"Blur: kernel must be (k,), (k, k), ..., got shape {tuple(self.kernel.shape)}"
            )
        if not bool(torch.isfinite(self.kernel).all()):
            raise ValueError("Blur: kernel holds numbers that are not finite")

    def forward(self, x: Tensor) -> Tensor:
        return self._filtered(x, conjugate=False)

    def adjoint(self, y: Tensor, event: Sequence[int]) -> Tensor:
        return self._filtered(y, conjugate=True)

    def _filtered(self, x: Tensor, *, conjugate: bool) -> Tensor:
        axes, sizes = _last("Blur", self.kernel.ndim, x)
        if any(k > n for k, n in zip(self.kernel.shape, sizes, strict=True)):
            raise ValueError(
                f"Blur: the kernel {tuple(self.kernel.shape)} is longer than the event's {sizes}"
            )
        padded = x.new_zeros(sizes)
        padded[tuple(slice(k) for k in self.kernel.shape)] = self.kernel.to(x)
        centre = [-(k // 2) for k in self.kernel.shape]
        response = torch.fft.rfftn(padded.roll(centre, axes))
        response = response.conj() if conjugate else response
        spectrum: Tensor = torch.fft.rfftn(x, dim=axes) * response
        found: Tensor = torch.fft.irfftn(spectrum, s=sizes, dim=axes)
        return found


@dataclass(frozen=True, eq=False)
class Downsample(NormalNoise):
    """Super-resolution: means over blocks of ``factor`` entries along each of the last ``dims``
    dimensions, whose sizes are multiples of it.
    """

    factor: Count
    dims: Count = 2
    noise_std: NoiseStd = field(kw_only=True)

    def forward(self, x: Tensor) -> Tensor:
        axes, sizes = _last("Downsample", self.dims, x)
        if any(n % self.factor for n in sizes):
            raise ValueError(
                f"Downsample: the last dimensions {sizes} must be multiples of the factor "
                f"{self.factor}"
            )
        for axis in axes:
            x = x.unflatten(axis, (-1, self.factor)).mean(dim=axis)
        return x

    def adjoint(self, y: Tensor, event: Sequence[int]) -> Tensor:
        for axis in range(-self.dims, 0):
            y = y.repeat_interleave(self.factor, dim=axis)
        return y / float(self.factor**self.dims)


@dataclass(frozen=True, eq=False)
class Grey(NormalNoise):
    """Colourisation: the weighted sum of the channels, the first dimension of the event, (B, 1,
    ...).

    The ``weights``, one a channel, are by default those of ITU-R BT.601 for red, green and blue.
    """

    weights: tuple[float, ...] = (0.299, 0.587, 0.114)
    noise_std: NoiseStd = field(kw_only=True)

    def forward(self, x: Tensor) -> Tensor:
        return (self._beside(x.shape[1:], x) * x).sum(dim=1, keepdim=True)

    def adjoint(self, y: Tensor, event: Sequence[int]) -> Tensor:
        return self._beside(torch.Size(event), y) * y

    def _beside(self, event: torch.Size, x: Tensor) -> Tensor:
        if not event or event[0] != len(self.weights):
            raise ValueError(
                f"Grey: there are {len(self.weights)} weights, and an event {tuple(event)} has its "
                "channels first: give one weight for each of them"
            )
        return torch.tensor(self.weights, dtype=x.dtype, device=x.device).reshape(
            -1, *(1,) * (len(event) - 1)
        )


@dataclass(frozen=True, eq=False)
class Fourier(NormalNoise):
    """The Fourier coefficients where ``mask`` is True, as (..., m, 2) real and imaginary parts.

    The transform is over the last dimensions of the event, as many as the bool tensor ``mask``
    has, and is orthonormal: |F x| = |x|. Frequency 0 is the first entry of each dimension, as
    in `torch.fft.fftn`. Of two coefficients that are conjugates of each other, keep one.
    """

    mask: Tensor
    noise_std: NoiseStd = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mask("Fourier", self.mask)

    def forward(self, x: Tensor) -> Tensor:
        axes, _ = _last("Fourier", self.mask.ndim, x)
        spectrum = torch.fft.fftn(x, dim=axes, norm="ortho").flatten(axes[0])
        return torch.view_as_real(spectrum[..., self._places(x.shape[1:], x.device)])

    def adjoint(self, y: Tensor, event: Sequence[int]) -> Tensor:
        whole = torch.zeros(len(y), *event, dtype=y.dtype, device=y.device)
        axes, _ = _last("Fourier", self.mask.ndim, whole)
        places = self._places(whole.shape[1:], y.device)
        seen = torch.view_as_complex(y.contiguous())
        flat = torch.complex(whole, whole).flatten(axes[0]).index_copy(-1, places, seen)
        found: Tensor = torch.fft.ifftn(flat.reshape(whole.shape), dim=axes, norm="ortho")
        return found.real

    def _places(self, event: torch.Size, device: torch.device) -> Tensor:
        """Which coefficients are seen, of the flat transform."""
        shape = event[len(event) - self.mask.ndim :]
        return torch.nonzero(spread_mask("Fourier", self.mask, shape).flatten())[:, 0].to(device)


@dataclass(frozen=True, eq=False)
class Nonlinear(Record):
    """Any measurement: ``f`` of x_0 (B, *event), and log p(y | f(x_0)).

    ``f`` returns (B, *outcome), and ``log_likelihood(y, outcome)`` returns (B,), in nats if an
    evidence is asked for. Both treat every sample by itself and can be differentiated by autograd.
    """

    f: Callable[[Tensor], Tensor]
    log_density: Callable[[Tensor, Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """f(x)."""
        return self.f(x)

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | f(x))."""
        found = self.log_density(y, self.f(x))
        if not isinstance(found, Tensor) or found.shape != y.shape[:1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"Nonlinear: log_density(y, f(x)) must return one number a sample, ({len(y)},), "
                f"got {got}; sum over the entries of an outcome"
            )
        return found


@dataclass(frozen=True, eq=False)
class Through(Record):
    """A measurement of g(x_0): ``function`` is g, and ``measurement`` measures its result.

    ``Through(latent.decode, Mask(seen, noise_std=0.1))`` is a measurement of pictures for a model
    of latents. g treats every sample by itself and can be differentiated by autograd. What is
    measured is not linear in x_0, whatever the measurement is.
    """

    function: Callable[[Tensor], Tensor]
    measurement: Any

    def __post_init__(self) -> None:
        if not callable(self.function) or isinstance(self.function, type):
            raise TypeError(
                "Through: function must be one of x_0 (B, *event), latent.decode say; got "
                f"{self.function!r}: the order is Through(function, measurement)"
            )
        vars(self)["measurement"] = as_measurement(self.measurement)

    def forward(self, x: Tensor) -> Tensor:
        """The outcome of g(x) without noise."""
        found: Tensor = self.measurement.forward(self.function(x))
        return found

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y | g(x))."""
        found: Tensor = self.measurement.log_likelihood(self.function(x), y)
        return found


_PHYSICS: Final = ("A", "A_adjoint")


def as_measurement(given: Any) -> Measurement:
    """A measurement, or what is one by its methods: physics of deepinv have ``A``, ``A_adjoint``
    and ``noise_model``, whose ``sigma`` is the noise's standard deviation (no noise where there is
    none). Raises TypeError for anything else, among them noise that depends on the data.
    """
    if hasattr(given, "forward") and hasattr(given, "log_likelihood"):
        return cast(Measurement, given)
    if all(callable(getattr(given, name, None)) for name in _PHYSICS):
        return Linear(given.A, given.A_adjoint, noise_std=_noise_std(given))
    raise TypeError(
        f"measurement must have forward and log_likelihood, as Linear(A, noise_std=0.1) and Mask "
        f"have, or A and A_adjoint as deepinv's physics; got {type(given).__name__}"
    )


def _noise_std(physics: Any) -> NoiseStd:
    """The sigma of a noise model x -> x + sigma n, 0 where there is none; an error for others."""
    noise = getattr(physics, "noise_model", None)
    if noise is None:
        return 0.0
    name = f"{type(physics).__name__}.noise_model"
    sigma = getattr(noise, "sigma", None)
    count = sigma.numel() if isinstance(sigma, Tensor) else 1
    if count != 1:
        raise ValueError(
            f"{name} has {count} sigmas, one for each sample: give it one noise level, or write "
            "Linear(physics.A, physics.A_adjoint, noise_std=...)"
        )
    place = sigma.device if isinstance(sigma, Tensor) else torch.device("cpu")
    drawn = []
    # one that cannot be called has a sigma and no more to tell
    for level in (1.0, 2.0) if callable(noise) else ():  # the same draw at two levels of the data
        with torch.random.fork_rng(devices=[]):
            x = torch.full((1, 1, 8, 8), level, device=place)
            drawn.append(copy.deepcopy(noise)(x) - level)
    moves = bool(drawn) and bool((drawn[0] - drawn[1]).abs().max() > 1e-5)
    if moves or (sigma is None and (not drawn or bool(drawn[0].any()))):
        raise TypeError(
            f"{name} is {type(noise).__name__}, and measurements have normal noise of one size: "
            "take posterior.Nonlinear with its log-density, and DPS"
        )
    return 0.0 if sigma is None else sigma


def check_mask(name: str, mask: object) -> None:
    """An error unless a mask is a bool tensor with an entry that is True."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not mask.ndim:
        got = f"{mask.dtype}, {mask.ndim}-d" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"{name}: mask must be a bool tensor, True where x_0 was seen; got {got}: write "
            "mask.bool(), or mask > 0.5"
        )
    if not bool(mask.any()):
        raise ValueError(f"{name}: mask is False everywhere: nothing was measured")


def spread_mask(name: str, mask: Tensor, event: torch.Size) -> Tensor:
    """The mask in the shape of an event; a ValueError where it does not broadcast to it."""
    try:
        return mask.expand(event)
    except RuntimeError as error:
        raise ValueError(
            f"{name}: a mask of shape {tuple(mask.shape)} does not fit an event {tuple(event)}: "
            "give the event's shape, or its last dimensions"
        ) from error


def _last(name: str, dims: int, x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The last ``dims`` axes of x, and their sizes."""
    if x.ndim - 1 < dims:
        raise ValueError(
            f"{name} acts on {dims} dimensions, and an event has shape {tuple(x.shape[1:])}"
        )
    return tuple(range(-dims, 0)), tuple(x.shape[-dims:])
