"""Posteriors as models of models: E[x_0 | x_t, y] in place of E[x_0 | x_t], for any solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor

from sdediff.operator import Operator
from sdediff.posterior.observation import Observation, Observed, observed
from sdediff.predict import affine
from sdediff.protocols import Like, Model, Output, Piece, Rows, facts
from sdediff.solvers.arithmetic import planned, weighted
from sdediff.solvers.coefficients import Coef
from sdediff.solvers.given import integer, real
from sdediff.traced import traced
from sdediff.units import Units

__all__ = ["DPS", "MMPS", "Denoised", "PiGDM", "Posterior"]


class _At(NamedTuple):
    inner: Any
    keep: Coef
    """x_0 = keep x + push output."""
    push: Coef
    lift: Coef
    """sigma^2 / alpha."""
    width: Coef
    """The variance of x_0 given x_t for Gaussian data."""


class Denoised(NamedTuple):
    """E[x_0 | x_t] of the model inside, and what a pull on it needs."""

    data: Tensor
    """(rows, *event), in the graph of x_t."""
    back: Callable[[Tensor], Tensor]
    """J^T v, with J the derivative of the data in x_t; a backward pass."""
    lift: Coef
    """sigma^2 / alpha: lift J is the covariance of x_0 given x_t (Tweedie)."""
    width: Coef
    """d^2 sigma^2 / (sigma^2 + alpha^2 d^2): the same for data N(0, d^2), a number a row."""

    def covariance(self, v: Tensor) -> Tensor:
        """Cov(x_0 | x_t) v; the covariance is symmetric."""
        return weighted((self.lift, self.back(v)))


class Posterior(Operator):
    """``model`` given a measurement: E[x_0 | x_t, y] = E[x_0 | x_t] + sigma^2 / alpha J^T pull.

    With ``pull`` the gradient in E[x_0 | x_t] of an approximation to log p(y | x_t), and J the
    derivative of E[x_0 | x_t] in x_t, this is Bayes' rule for the score: grad log p(x_t | y) = grad
    log p(x_t) + grad log p(y | x_t). A subclass gives `pull`. An evaluation costs one evaluation of
    the model inside, and one backward pass or more, which `Solution` counts.

    ``y`` is (B, *outcome), one for each sample, or (1, *outcome), one for all, in the units of the
    user's data, as the measurement is.
    """

    predicts: Final = "data"  # type: ignore[misc]  # the base's can be set, this one cannot
    extras: tuple[str, ...] = ()
    linear: ClassVar[bool] = True
    """Whether the method needs an adjoint."""
    noisy: ClassVar[bool] = False
    """Whether the method divides by noise_std."""

    def __init__(self, model: Model, measurement: Any, y: Tensor) -> None:
        super().__init__(model)
        known = facts(model)
        if "kernel" not in model.sde.offers:
            raise ValueError(
                f"{model.sde!r} has no Gaussian kernel, so no data prediction that y could pull on"
            )
        name = type(self).__name__
        # not by attribute: a module would be entered among the network's
        vars(self)["observation"] = observed(
            name, measurement, y, linear=self.linear, noisy=self.noisy
        )
        vars(self)["_units"] = Units(1.0, known.normalizer)
        self._variance = known.data_std**2
        self._checked: tuple[Any, ...] = ()

    observation: Observation

    def pull(self, denoised: Denoised, seen: Observed) -> tuple[Tensor, dict[str, Any]]:
        """The gradient in x_0 of log p(y | x_t), (rows, *event), and ``extras`` by name."""
        raise NotImplementedError

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[_At]:
        """The coefficients by which data and covariance follow from the model's prediction."""
        seen = (like.event, like.dtype, like.device)
        if seen != self._checked:
            self.observation.check(like)
            self._checked = seen
        t = times.reshape(-1)
        keep, push = affine(self.model, "data", t)
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        width = self._variance * sigma**2 / (sigma**2 + self._variance * alpha**2)
        columns = (c.reshape(times.shape) for c in (keep, push, sigma**2 / alpha, width))
        inner = self.model.at(times, like, piece)
        return [_At(*row) for row in zip(inner, *planned(len(times), like, *columns), strict=True)]

    def evaluate(self, x: Tensor, at: _At, rows: Rows) -> Tensor | Output:
        """E[x_0 | x_t, y] by the approximation of the class."""
        self.observation.check_count(rows.size)
        seen = traced(self, x, at.inner, rows, at.keep, at.push)
        y = self.observation.take(rows.index, x)
        measurement: Any = self.observation.measurement
        denoised = Denoised(seen.data, seen.back, at.lift, at.width)
        pull, extras = self.pull(denoised, Observed(measurement, y, self._units))
        value = weighted((1.0, seen.data), (at.lift, seen.back(pull)))
        return Output(value, **extras) if extras else value


class PiGDM(Posterior):
    """Pseudoinverse-guided diffusion with noise: p(y | x_t) = N(A x^_0, r^2 A A^T + noise_std^2).

    The pull on x^_0 = E[x_0 | x_t] is A^T (r^2 A A^T + noise_std^2)^{-1} (y - A x^_0), and r^2 =
    d^2 sigma^2 / (sigma^2 + alpha^2 d^2), with d the model's ``data_std``, is the variance of x_0
    given x_t for data N(0, d^2 I). For d = 1 it is that of the paper. noise_std may be 0. An
    evaluation takes one backward pass. (Song et al. 2023, Pseudoinverse-Guided Diffusion Models for
    Inverse Problems, ICLR. Their algorithm adds the pull to steps of DDIM with a weight of its own;
    here it is part of the score, as derived, for every solver.)
    """

    def pull(self, denoised: Denoised, seen: Observed) -> tuple[Tensor, dict[str, Any]]:
        def covariance(v: Tensor) -> Tensor:
            return weighted((denoised.width, v))

        x = denoised.data
        return seen.solve(seen.residual(x), x, covariance, seen.variance), {}


class MMPS(Posterior):
    """Moment-matching posterior sampling: p(y | x_t) = N(A x^_0, A C A^T + noise_std^2).

    C = sigma^2 / alpha J is the covariance of x_0 given x_t by Tweedie's formula, with J the
    derivative of x^_0 = E[x_0 | x_t] in x_t. The pull A^T (A C A^T + noise_std^2)^{-1} (y - A x^_0)
    is found by ``iterations`` of GMRES, each of which takes a backward pass for C; one more
    follows. The pull depends on C through this alone: derivatives of C are left out, as in the
    paper. noise_std may be 0. For Gaussian data and as many iterations as y has entries this is the
    posterior's score. J of a network is symmetric and positive only roughly; the paper's conjugate
    gradients then divide by curvatures near 0, and samples diverge. The residual of GMRES never
    grows. (Rozet et al. 2024, Learning Diffusion Priors from Observations by Expectation
    Maximization, arXiv 2405.13712, section 4.2; GMRES as in their later code.)
    """

    def __init__(self, model: Model, measurement: Any, y: Tensor, iterations: int = 5) -> None:
        super().__init__(model, measurement, y)
        self.iterations = integer("MMPS: iterations", iterations, 1)

    def pull(self, denoised: Denoised, seen: Observed) -> tuple[Tensor, dict[str, Any]]:
        x = denoised.data
        residual = seen.residual(x)
        covariance = denoised.covariance
        return seen.solve(residual, x, covariance, seen.variance, self.iterations), {}


class DPS(Posterior):
    """Diffusion posterior sampling as a score: grad log p(y | x_t) = scale grad log p(y | x^_0).

    x^_0 = E[x_0 | x_t] takes the place of x_0 in the likelihood of any measurement, linear or not.
    With scale = 1 this is the approximation that the paper derives, and has no constant to tune.
    Its pull grows as 1 / noise_std^2 while much noise is left, where it is far too strong: take
    many steps or an adaptive solver. `PublishedDPS` is the paper's algorithm, whose steps have a
    length of their own. (Chung et al. 2023, arXiv 2209.14687, eq. 11.)
    """

    linear = False
    noisy = True

    def __init__(self, model: Model, measurement: Any, y: Tensor, scale: float = 1.0) -> None:
        super().__init__(model, measurement, y)
        self.scale = real("DPS: scale", scale)
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"DPS: scale must be a finite number >= 0, got {scale!r}")

    def pull(self, denoised: Denoised, seen: Observed) -> tuple[Tensor, dict[str, Any]]:
        keep = denoised.data.requires_grad
        with torch.enable_grad():
            x = denoised.data if keep else denoised.data.detach().requires_grad_()
            found = seen.log_likelihood("DPS: log_likelihood(x, y)", x)
            (pull,) = torch.autograd.grad(found.sum(), x, create_graph=keep)
        return self.scale * pull, {}
