"""Problems for the solvers: the only place that joins an SDE's coefficients and a network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from sdediff.constraints import Batch, applied
from sdediff.lending import drift_of, own, reading
from sdediff.model import ScoreModel
from sdediff.predictions import conversion
from sdediff.sde.quadrature import Integral, accumulated
from sdediff.solvers import Problem
from sdediff.solvers.arithmetic import Number, expand, weighted
from sdediff.solvers.masked import kept
from sdediff.solvers.problem import Columns, Composed
from sdediff.solvers.scalars import reals
from sdediff.units import Units

__all__ = ["Reverse"]


class Reverse(Problem):
    """dx = [drift(x, t) - (1 + lambda^2) / 2 g^2 score(x, t)] dt + lambda g dw, backward in time.

    lambda = 1 is the reverse-time SDE (Song et al. 2021, arXiv 2011.13456, eq. 6), lambda = 0 the probability flow (eq. 13), and
    every lambda(t) >= 0 has the same marginals. Drift, diffusion and score are there for every SDE; the rest where it has a
    Gaussian kernel.

    States and coefficients are in ``units``: with u = ``units.unit`` the state is x / u for the x of the model, and follows
    ``sde.scaled(1 / u)``. With data_std as the unit, data are of the size of 1, whatever the user measures them in.
    """

    def __init__(
        self,
        model: ScoreModel,
        samples: int,
        stochasticity: float | Callable[[Tensor], Tensor] = 0.0,
        condition: Mapping[str, Tensor] | None = None,
        sees: torch.dtype | None = None,
        batch: Batch | None = None,
        mask: Tensor | None = None,
        units: Units | None = None,
    ) -> None:
        super().__init__(samples)
        self.mask = mask
        self.batch = batch or Batch(torch.arange(samples), samples)
        self.constraint = None if model.constraint is None else applied(model.constraint)
        self.model, self.lam, self.units = model, stochasticity, units or Units()
        self.unit = self.units.unit
        self.standard = model.sde.unit / self.unit
        self.linear = "kernel" in model.sde.offers
        self.sde = model.sde.scaled(1 / self.unit) if self.linear else model.sde
        self.offers = frozenset({"drift", "diffusion", "score"})
        if self.linear:
            self.offers |= {"marginal", "kernel", "coefficients", "data", "noise", "v"}
        if model.learned_variance:
            self.offers |= {"variance"}
        self.condition = dict(condition or {})
        # What the network is handed: in its own dtype; if it has none in ``sees``, by default the state's.
        self.dtype, self.scaled = model.dtype or sees, model.predicts == "edm" or self.unit != 1
        if self.dtype is not None:
            self.rounding = torch.finfo(self.dtype).eps / 16  # stages' roundings average: by measurement
        self._still: Reverse | None = None
        self._last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def take(self, rows: Tensor) -> Self:
        """Some of the rows, with their conditions."""
        part = super().take(rows)
        part.condition = {name: value[rows.to(value.device)] for name, value in self.condition.items()}
        part._still = None
        return part

    def without_noise(self) -> Problem:
        """The probability flow of the same law, evaluations counted together."""
        if self.constant_stochasticity == 0:
            return self
        if self._still is None:
            self._still = copy.copy(self)
            self._still.lam = 0.0
        return self._still

    def stochasticity(self, t: Tensor) -> Tensor:
        """lambda(t)."""
        if callable(self.lam):
            return reals("stochasticity(t)", reading("stochasticity", self.lam, "t", t)).expand(t.shape)
        return torch.full_like(t, self.lam)

    def _columns(self, t: Tensor, quantity: str | Composed, x: Tensor) -> Columns:
        """(a, b) or, of a scaled input, (a, b, scale), and the network's time at times t, for states like x.

        ``quantity`` is a x + b network(scale x, time).
        """
        scale, time = self.model.inputs(t, self.dtype or x.dtype, x.device)
        pair = self._pair(t, quantity, self.model.predicts)
        return (*pair, self.unit * scale) if self.scaled else pair, (time,)

    def _pair(self, t: Tensor, quantity: str | Composed, source: str) -> tuple[Tensor, Tensor]:
        """(a, b) such that ``quantity`` is a x + b times the prediction ``source``, at times t."""
        if not isinstance(quantity, str):
            a, b = self._pair(t, quantity.quantity, source)
            found = quantity.weights(t)
            return (a, b) if found is None else (found[0] + found[1] * a, found[1] * b)
        target, sigma_data = "score" if quantity == "drift" else quantity, self.model.sigma_data
        a, b = conversion(self.model.sde, source, target, t, sigma_data, self._levels(t), self.unit)
        if quantity == "drift":
            lam = self.stochasticity(t) if callable(self.lam) else self.lam
            pull = -0.5 * (1 + lam**2) * self._diffusion(t) ** 2
            a, b = (self.sde.f(t) if self.linear else 0) + pull * a, pull * b
        return a, b

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """(alpha, sigma) in the model's units, where there is a kernel.

        Those of the last times are kept: what a step needs of them it asks for one by one.
        """
        if not self.linear:
            return None
        sde = self.model.sde
        if t.ndim != 1 or torch.is_grad_enabled():
            return sde.alpha(t), sde.sigma(t)
        if self._last is None or not torch.equal(self._last[0], t):
            self._last = t.clone(), (sde.alpha(t), sde.sigma(t))
        return self._last[1]

    def _diffusion(self, t: Tensor) -> Tensor:
        """g(t) in units of ``unit``."""
        g: Tensor = self.sde.diffusion(t)
        return g if self.linear or self.unit == 1 else g / self.unit

    def _from_data(self, t: Tensor, quantity: str | Composed) -> Columns:
        return self._pair(t, quantity, "data"), ()

    @property
    def constant_stochasticity(self) -> float | None:
        """lambda, unless it is a function."""
        return None if callable(self.lam) else float(self.lam)

    def blend(self, quantity: str | Composed, x: Tensor, t: Tensor, keep: Number, push: Number) -> Tensor:
        """keep x + push quantity(x, t), by one pass over x and one over the network's output."""
        entry = self.entry(quantity, x, t)
        out = self.respond(entry, x)
        self.monitor.record(x, out, self.rows)
        return self.joined(quantity, entry, x, t, out, keep, push)

    def entry(self, quantity: str | Composed, x: Tensor, t: Tensor) -> tuple[Any, ...]:
        """(a, b[, scale], time) at t for states like x, as `_columns` has them; finite. Of the data, if those are constrained."""
        wanted = quantity if self.constraint is None else "data"
        found = self.schedule((wanted, x.dtype, x.shape[0], self.lam), self._columns, t, wanted, x, x=x)
        if not _finite(found[0], found[1]):
            self._refuse(wanted, t)
        return found

    def respond(self, entry: tuple[Any, ...], x: Tensor) -> Tensor:
        """The network's output: one evaluation, which the caller records."""
        given = weighted((entry[2], x)) if self.scaled else x
        return kept(self.model.output(given, entry[-1], self.condition, self.dtype or x.dtype), self.mask)

    def joined(
        self,
        quantity: str | Composed,
        entry: tuple[Any, ...],
        x: Tensor,
        t: Tensor,
        out: Tensor,
        keep: Number = 0.0,
        push: Number = 1.0,
    ) -> Tensor:
        """keep x + push quantity(x, t) from the network's output."""
        a, b = expand(entry[0], x), expand(entry[1], x)
        if self.constraint is not None:
            out = self._constrained(own(weighted((a, x), (b, out)), x, out))
            out = kept(self.units.normalized(out), self.mask)
            a, b = self.schedule(("from data", quantity, self.lam), self._from_data, t, quantity, x=x)
            if not _finite(a, b):
                self._refuse(quantity, t)
            a, b = expand(a, x), expand(b, x)
        keep, push = expand(keep, x), expand(push, x)
        if not self.linear and quantity != "score":  # the drift, of which a and b have the score's share
            drift = kept(drift_of(self.sde, weighted((self.unit, x)), t), self.mask)
            return own(weighted((keep, x), (push / self.unit, drift), (push * b, out)), drift, out)
        if isinstance(keep, float) and isinstance(push, float) and (keep, push) == (0.0, 1.0):
            return own(weighted((a, x), (b, out)), x, out)
        return own(weighted((keep + push * a, x), (push * b, out)), x, out)

    def _constrained(self, data: Tensor) -> Tensor:
        """E[x_0 | x] in the user's units, held to the constraint if there is one."""
        data = self.units.leave(data, self.mask)
        if self.constraint is None:
            return data
        rows = self.batch.rows if self.rows is None else self.batch.rows[self.rows]
        return kept(self.constraint(data, rows, self.batch.size), self.mask)

    def clean(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x] in the user's units, to the bit as the constraint left it."""
        entry = self.entry("data", x, t)
        out = self.respond(entry, x)
        self.monitor.record(x, out, self.rows)
        return self._constrained(own(weighted((expand(entry[0], x), x), (expand(entry[1], x), out)), x, out))

    def data_and_variance(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t = x], and the second output of a network with a learned variance."""
        entry = self.entry("data", x, t)
        given = weighted((entry[2], x)) if self.scaled else x
        out, variance = self.model.outputs(given, entry[-1], self.condition, self.dtype or x.dtype)
        if variance is None:
            raise NotImplementedError
        out = kept(out, self.mask)
        self.monitor.record(x, out, self.rows)
        return self.joined("data", entry, x, t, out), kept(variance, self.mask)

    def _refuse(self, quantity: str | Composed, t: Tensor) -> NoReturn:
        quantity = quantity if isinstance(quantity, str) else quantity.quantity
        target = "score" if quantity == "drift" else quantity
        if quantity != "drift" or not all(bool(torch.isfinite(c).all()) for c in self.model.conversion(target, t)):
            raise ValueError(self.model.singular(target, t))
        raise ValueError(
            f"f or g of {self.model.sde!r} is not finite at t = {float(t.max()):.6g}: start inside its default range, "
            "or take the first step in data form, by DDIM or Ancestral"
        )

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """drift - (1 + lambda^2) / 2 g^2 score, with one evaluation."""
        return self.blend("drift", x, t, 0.0, 1.0)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x)."""
        return self.blend("score", x, t, 0.0, 1.0)

    def data(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x]."""
        return self.blend("data", x, t, 0.0, 1.0)

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[noise | x_t = x]."""
        return self.blend("noise", x, t, 0.0, 1.0)

    def v(self, x: Tensor, t: Tensor) -> Tensor:
        """E[alpha noise - sigma x_0 | x_t = x]."""
        return self.blend("v", x, t, 0.0, 1.0)

    def _spread(self, t: Tensor) -> Columns:
        return (self.stochasticity(t) * self._diffusion(t),), ()

    def diffuse(self, dw: Tensor, t: Tensor) -> Tensor:
        """lambda g dw."""
        return weighted((self.schedule(("spread", self.lam), self._spread, t, x=dw)[0], kept(dw, self.mask)))

    def shake(self, x: Tensor, z: Tensor, t: Tensor, root: Number) -> Tensor:
        """x + lambda g root z, in one pass."""
        return weighted((1.0, x), (self.schedule(("spread", self.lam), self._spread, t, x=x)[0] * root, z))

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma)."""
        alpha, sigma = self._levels(t) or (self.sde.alpha(t), self.sde.sigma(t))
        return alpha, sigma if self.unit == 1 else sigma / self.unit

    def log_snr(self, t: Tensor) -> Tensor:
        """The SDE's."""
        found: Tensor = self.sde.log_snr(t)
        return found

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(alpha, sigma, log_snr)."""
        alpha, sigma, log_snr = self.sde.levels(t)
        return alpha, sigma, log_snr

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The SDE's inverse of log_snr."""
        time: Tensor = self.sde.time_of(log_snr)
        return time

    def time_beyond(self, log_snr: Tensor, start: Tensor) -> Tensor:
        """The SDE's where it ends at ``start``."""
        if float(start) < self.sde.T * (1 - 1e-12):
            return start.expand_as(log_snr)
        time: Tensor = self.sde.time_beyond(log_snr)
        return time

    def kernel(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """The SDE's forward kernel."""
        ratio, std = self.sde.kernel(t, s)
        return ratio, std

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g)."""
        return self.sde.f(t), self.sde.g(t)

    @cached_property
    def _accumulated(self) -> Integral:
        return accumulated(self.sde, self.stochasticity)

    def mixing(self, t: Tensor) -> Tensor:
        """The integral of lambda^2 du, u = log(alpha / sigma), up to a constant: lambda^2 u where lambda is constant."""
        if callable(self.lam):
            total: Tensor = self._accumulated(t - self.sde.t_min)[0]
            return total
        half: Tensor = 0.5 * self.sde.log_snr(t)
        return self.lam**2 * half if self.lam else torch.zeros_like(t)

    @cached_property
    def unscaled(self) -> bool:
        """Whether alpha is constant: looked up at five times."""
        alpha = self.sde.alpha(torch.linspace(self.sde.t_min, self.sde.t_max, 5, dtype=torch.float64))
        return bool((alpha == alpha[0]).all())


def _finite(a: Number, b: Number) -> bool:
    """Whether both are finite; coefficients that are beside the state already have been looked at."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isfinite(a + b)
    return (isinstance(a, Tensor) and a.ndim > 1) or bool(torch.isfinite(torch.as_tensor(a + b)).all())
