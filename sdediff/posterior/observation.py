"""Outcomes of a measurement beside states in the units of a model or of a solver, and the linear
systems that posteriors solve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.posterior.measurements import LinearMeasurement, Measurement, as_measurement
from sdediff.solvers import rowwise
from sdediff.solvers.arithmetic import Like, along
from sdediff.solvers.given import reals
from sdediff.units import Units

__all__ = ["Observation", "Observed", "conjugate_gradients", "minimal_residual", "observed"]

_DOT: Final = {torch.float32: 1e-3, torch.float64: 1e-8}
"""How far, relative to their sizes, <A x, y> and <x, A^T y> may be apart."""
_MOST: Final = 200
"""Iterations of systems that cost no passes through a network."""


@dataclass(frozen=True, eq=False)
class Observation:
    """A measurement and its outcomes y, (1, *outcome) for all samples or (B, *outcome)."""

    measurement: Measurement
    y: Tensor

    def check_count(self, count: int) -> None:
        """A ValueError unless there is an outcome for each of ``count`` samples, or one for all."""
        if len(self.y) not in (1, count):
            raise ValueError(
                f"y has {len(self.y)} outcomes for {count} samples: pass one for each, or one for "
                "all"
            )

    def check(self, like: Like) -> None:
        """A ValueError unless the measurement takes events of this shape and returns outcomes such
        as y, and has an adjoint that is one and noise of an outcome's shape, or else a gradient.
        """
        linear = is_linear(self.measurement)
        with torch.inference_mode(False), torch.set_grad_enabled(not linear):
            x, y = (
                torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
                .to(like.dtype)
                .to(like.device)
                for seed, shape in enumerate((like.event, self.y.shape[1:]))
            )
            try:
                found = self.measurement.forward(x.requires_grad_(not linear))
            except (RuntimeError, TypeError) as error:
                raise ValueError(
                    f"the measurement failed on an event {tuple(like.event)}, {like.dtype}: "
                    f"{error}; does it take such states? A matrix has to have their dtype, H.to(x)"
                ) from error
        if not isinstance(found, Tensor) or found.shape != y.shape:
            got = tuple(found.shape[1:]) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"y has outcomes of shape {tuple(self.y.shape[1:])}, and the measurement makes "
                f"{got} of an event {tuple(like.event)}: y = measurement.forward(x_0) has the "
                "shape that is wanted"
            )
        if linear:
            _check_noise(self.measurement, y.shape[1:])
            _check_adjoint(self.measurement, x, y, found)
        elif not found.requires_grad:
            raise ValueError(
                f"{type(self.measurement).__name__}: the outcome does not depend on x, so that it "
                "has no gradient: look in the measurement for torch.no_grad, detach() or a "
                "threshold"
            )

    def take(self, rows: Tensor, x: Tensor) -> Tensor:
        """The outcomes of the samples ``rows``, int64 (k,), beside states x (k, *event)."""
        y = self.y.to(x)
        return y.expand(len(rows), *y.shape[1:]) if len(y) == 1 else y[rows.to(y.device)]


def observed(
    who: str, measurement: Any, y: Tensor, *, linear: bool = True, noisy: bool = False
) -> Observation:
    """An `Observation`, its parts checked for the method ``who``: ``linear`` if the method needs an
    adjoint, ``noisy`` if it divides by noise_std.
    """
    found: Any = as_measurement(measurement)
    if linear and not is_linear(found):
        raise TypeError(
            f"{who} is for linear measurements, and {type(found).__name__} has no adjoint and "
            "noise_std; take DPS, say"
        )
    if noisy and is_linear(found) and not bool((reals("noise_std", found.noise_std) > 0).all()):
        raise ValueError(
            f"{who} divides by noise_std, and it is 0: give the noise of the measurement, a "
            "hundredth of the spread of y say where there is none; or take PiGDM, which takes 0"
        )
    if not isinstance(y, Tensor) or not y.is_floating_point() or not y.ndim:
        got = f"{y.dtype}, {y.ndim}-d" if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y must be a floating-point tensor (B, *outcome), got {got}")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("y holds numbers that are not finite; leave them out by a Mask")
    return Observation(found, y)


def is_linear(measurement: Any) -> bool:
    """Whether a measurement has what `LinearMeasurement` asks for."""
    return hasattr(measurement, "adjoint") and hasattr(measurement, "noise_std")


def _check_noise(measurement: Any, outcome: torch.Size) -> None:
    """A ValueError unless noise_std broadcasts to one outcome."""
    shape = reals("noise_std", measurement.noise_std).shape
    # not torch.broadcast_shapes, which takes a dimension of 1 of the outcome for any number
    fits = len(shape) <= len(outcome) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(outcome), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{type(measurement).__name__}: noise_std has shape {tuple(shape)}, and an outcome "
            f"{tuple(outcome)}: give a number, or numbers that broadcast to one outcome; samples "
            "whose noise differs go in calls of their own"
        )


def _check_adjoint(measurement: Any, x: Tensor, y: Tensor, found: Tensor) -> None:
    """A ValueError unless <A x, y> = <x, A^T y> at random x and y."""
    back = measurement.adjoint(y, x.shape[1:])
    name = type(measurement).__name__
    if not isinstance(back, Tensor) or back.shape != x.shape:
        got = tuple(back.shape[1:]) if isinstance(back, Tensor) else type(back).__name__
        raise ValueError(f"{name}: the adjoint must return events {tuple(x.shape[1:])}, got {got}")
    one, other = (rowwise(a * b).sum(dim=1).double() for a, b in ((found, y), (x, back)))
    size = rowwise(found).norm(dim=1) * rowwise(y).norm(dim=1)
    size = size + rowwise(x).norm(dim=1) * rowwise(back).norm(dim=1)
    if bool(((one - other).abs() > _DOT.get(x.dtype, 1e-2) * size).any()):
        raise ValueError(
            f"{name}: <A x, y> = {float(one[0]):.6g} and <x, A^T y> = {float(other[0]):.6g} at "
            "random x and y, so that the adjoint is not that of A: mend At, or leave it out, and "
            "autograd takes its place (then A is not linear: use Nonlinear, and DPS)"
        )


@dataclass(frozen=True, eq=False)
class Observed:
    """Outcomes of the rows of a state x in ``units``: residuals and adjoints for x."""

    measurement: LinearMeasurement
    y: Tensor
    units: Units

    def residual(self, x: Tensor) -> Tensor:
        """y - A x_0, (rows, *outcome), of x_0 in these units."""
        return self.y - self.measurement.forward(self.units.leave(x))

    def log_likelihood(self, what: str, x: Tensor) -> Tensor:
        """log p(y | x_0), (rows,), of x_0 in these units; a ValueError, which calls it ``what``,
        unless it is a finite number of each finite x_0.
        """
        found = self.measurement.log_likelihood(self.units.leave(x), self.y)
        if not isinstance(found, Tensor) or found.shape != self.y.shape[:1]:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{what} must be one number a sample, ({len(self.y)},), got {got}; sum over the "
                "entries of a sample alone"
            )
        wrong = ~torch.isfinite(found) & torch.isfinite(rowwise(x)).all(dim=1)
        if bool(wrong.any()):
            raise ValueError(
                f"{what} is {float(found[wrong][0].detach())} at a state that is finite: mend it, "
                "and where x_0 is not allowed give a large negative number in place of -inf"
            )
        return found

    def adjoint(self, v: Tensor, x: Tensor) -> Tensor:
        """S A^T v, where the user's x_0 is S x plus a constant."""
        found = self.units.unit * self.measurement.adjoint(v, x.shape[1:])
        normalizer = self.units.normalizer
        return found if normalizer is None else normalizer.scale(x) * found

    def forward(self, x: Tensor) -> Tensor:
        """A S x: the linear part alone."""
        moved = self.units.leave(x) - self.units.leave(torch.zeros_like(x[:1]))
        return self.measurement.forward(moved)

    @property
    def variance(self) -> Tensor:
        """The square of noise_std, beside y."""
        return reals("noise_std", self.measurement.noise_std).to(self.y).square()

    def solve(
        self,
        residual: Tensor,
        x: Tensor,
        covariance: Callable[[Tensor], Tensor],
        noise: float | Tensor,
        iterations: int | None = None,
    ) -> Tensor:
        """S A^T w for (A S C S A^T + noise) w = residual: the pull of the outcome on x_0 ~ N(., C).

        ``covariance`` is C as a function of states such as x, ``noise`` a number, or numbers that
        broadcast to outcomes. Without ``iterations`` C is symmetric and positive semidefinite, and
        conjugate gradients run to convergence. With them it may be any matrix, as that of a network
        is, and as many iterations of `minimal_residual` are done.
        """

        def matrix(v: Tensor) -> Tensor:
            return self.forward(covariance(self.adjoint(v, x))) + noise * v

        if iterations is None:
            return self.adjoint(conjugate_gradients(matrix, residual, _MOST), x)
        return self.adjoint(minimal_residual(matrix, residual, iterations), x)

    def nearest(self, residual: Tensor, x: Tensor) -> Tensor:
        """The least v, a state such as x, for which |A S v - residual| is least.

        Singular values of A S below about eps^(1/4) of the largest are taken for 0.
        """

        def matrix(v: Tensor) -> Tensor:
            return self.adjoint(self.forward(v), x)

        rounding = torch.finfo(x.dtype).eps ** 0.5
        return conjugate_gradients(matrix, self.adjoint(residual, x), _MOST, rounding)


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    right: Tensor,
    iterations: int,
    rounding: float | None = None,
) -> Tensor:
    """x with matrix x = right for each row (rows, *outcome), from 0 on (Hestenes and Stiefel 1952).

    ``matrix`` is symmetric and positive semidefinite for each row. A row stops where its residual
    is rounding, or where along a direction the matrix is less than ``rounding`` (by default that of
    the dtype) of what it was along another; the loop ends where all have stopped.
    """
    x = torch.zeros_like(right)
    rest = direction = right
    size = _dot(rest, rest)
    eps = torch.finfo(right.dtype).eps
    least = eps**2 * size.detach()
    largest = torch.zeros_like(least)
    for _ in range(iterations):
        going = size.detach() > least
        if not bool(going.any()):
            break
        image = matrix(direction)
        curvature = _dot(direction, image)
        length = torch.where(going, _dot(direction, direction), 1.0)
        quotient = (curvature / length).detach()
        largest = torch.maximum(largest, quotient)
        going = going & (quotient > (rounding or eps) * largest)
        step = along(torch.where(going, size / torch.where(going, curvature, 1.0), 0.0), right)
        x = x + step * direction
        rest = rest - step * image
        new = _dot(rest, rest)
        ratio = torch.where(going, new / torch.where(going, size, 1.0), 0.0)
        direction = rest + along(ratio, right) * direction
        size = torch.where(going, new, 0.0)
    return x


def minimal_residual(matrix: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """The x of the Krylov space of ``iterations`` dimensions for which |right - matrix x| is least,
    for each row (rows, *outcome): GMRES, as generalized conjugate residuals (Eisenstat, Elman and
    Schultz 1983).

    ``matrix`` is any linear function for each row. The residual never grows, where conjugate
    gradients divide by a curvature that is near 0 along some direction unless the matrix is
    positive. A row stops where its residual is rounding, or where the image of its residual is.
    """
    rounding = (16 * torch.finfo(right.dtype).eps) ** 2
    x, rest = torch.zeros_like(right), right
    least = rounding * _dot(right, right).detach()
    largest = torch.zeros_like(least)
    known: list[tuple[Tensor, Tensor]] = []
    for _ in range(iterations):
        size = _dot(rest, rest).detach()
        going = size > least
        if not bool(going.any()):
            break
        direction, image = rest, matrix(rest)
        largest = torch.maximum(largest, _dot(image, image).detach() / size.where(going, 1.0))
        for before, its_image in known:
            share = along(_dot(image, its_image), right)
            direction, image = direction - share * before, image - share * its_image
        length = _dot(image, image)
        # what is left of an image in the span of the others is rounding
        going = going & (length.detach() > rounding * largest * size)
        scale = along(torch.where(going, length.where(going, 1.0).rsqrt(), 0.0), right)
        direction, image = scale * direction, scale * image
        known.append((direction, image))
        step = along(_dot(rest, image), right)
        x, rest = x + step * direction, rest - step * image
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each row."""
    return rowwise(a * b).sum(dim=1)
