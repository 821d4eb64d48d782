"""Problems for the solvers: the only place that joins an SDE's coefficients and a model."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, NoReturn, Self, TypeVar, cast

import torch
from torch import Tensor

from sdediff.predictions import PREDICTIONS, canonical, conversion, singular
from sdediff.protocols import (
    Facts,
    Like,
    Model,
    Output,
    Rows,
    entries_of,
    extras_of,
    facts,
    value_of,
)
from sdediff.sde.base import drift_of
from sdediff.sde.quadrature import Integral, accumulated
from sdediff.solvers import Problem
from sdediff.solvers.arithmetic import Number, planned, weighted
from sdediff.solvers.coefficients import Coef, outer
from sdediff.solvers.given import reading, reals
from sdediff.solvers.masked import kept
from sdediff.solvers.problem import QUANTITIES, check_quantity
from sdediff.units import Units

__all__ = ["Reverse"]

_Found = TypeVar("_Found")


class _At(NamedTuple):
    """keep x + push output, and what is left of a drift that is not linear."""

    keep: Coef
    push: Coef
    call: Any
    """The model's own entry."""
    drift: Coef | None = None
    """What the SDE's own drift at (unit x, t) is multiplied by."""
    t: Tensor | None = None


class Reverse(Problem):
    """dx = [drift(x, t) - (1 + lambda^2) / 2 g g^T score(x, t)] dt + lambda g dw, backward in time.

    lambda = 1 is the reverse-time SDE (Song et al. 2021, arXiv 2011.13456, eq. 6), lambda = 0 the
    probability flow (eq. 13), and every lambda(t) >= 0 has the same marginals. Drift, diffusion and
    score are there for every SDE; the rest where it has a Gaussian kernel.

    States and coefficients are in ``units``: with u = ``units.unit`` the state is x / u for the x
    of the model, and follows ``sde.scaled(1 / u)``: data have a standard deviation near 1.
    """

    def __init__(
        self,
        model: Model,
        rows: Rows | int,
        stochasticity: float | Callable[[Tensor], Tensor] = 0.0,
        *,
        like: Like | None = None,
        units: Units | None = None,
        known: Facts | None = None,
    ) -> None:
        self.batch = Rows.of(rows) if isinstance(rows, int) else rows
        self.monitor = self.batch.monitor
        self.mask = self.batch.mask
        self.like = like
        self.model = model
        self.lam = stochasticity
        self.units = units or Units()
        self.facts = known or facts(model)
        self.cost = self.facts.cost
        self.breaks = self.facts.breaks
        self.predicts = model.predicts
        if isinstance(self.predicts, str) and self.predicts not in PREDICTIONS:
            self.predicts = canonical(self.predicts)
        self.unit = self.units.unit
        self.standard = model.sde.unit / self.unit
        self.linear = "kernel" in model.sde.offers
        scaled = self.linear and self.unit != 1
        self.sde = model.sde.scaled(1 / self.unit) if scaled else model.sde
        self.offers = frozenset({*model.sde.offers, *self.facts.extras})
        if self.linear:
            self.offers |= {"score", "marginal", "coefficients", "data", "noise", "v"}
        elif isinstance(self.predicts, str):
            self.offers |= {self.predicts}
        # What the model is handed: in its own dtype; if it has none as `like` says, by default
        # float64.
        given = like or Like(
            len(self.batch), torch.Size(), torch.float64, torch.device("cpu"), torch.float64
        )
        self._given = given._replace(sees=self.facts.dtype or given.sees, asked=model)
        # stages' roundings average: by measurement
        self.rounding = torch.finfo(self._given.sees).eps / 16
        self._still: Reverse | None = None
        # (times, alpha, sigma) of late, sigma in the model's units: a plan asks again for what it
        # knows.
        self._known: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=4)

    def take(self, rows: Tensor) -> Self:
        part = super().take(rows)
        part.batch = self.batch.take(rows)
        part.like = None if self.like is None else self.like._replace(rows=len(rows))
        part._given = self._given._replace(rows=len(rows))
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
        if callable(self.lam):
            flat = t.reshape(-1) if t.ndim > 1 else t
            found = reals("stochasticity(t)", reading("stochasticity", self.lam, "t", flat))
            return found.expand(flat.shape).reshape(t.shape)
        return torch.full_like(t, self.lam)

    @property
    def constant_stochasticity(self) -> float | None:
        return None if callable(self.lam) else float(self.lam)

    def at(
        self, times: Tensor, quantity: str, keep: Number = 0.0, push: Number = 1.0
    ) -> Sequence[_At]:
        """keep x + push quantity(x, t) as keep' x + push' output, for each of the times."""
        if quantity not in QUANTITIES or quantity not in self.offers:
            check_quantity(quantity, self.offers)
        t = times.reshape(-1)
        target = "score" if quantity == "drift" else quantity
        levels = self._levels(t) if self.linear else None
        sigma_data = self.facts.sigma_data
        a: Number
        b: Any
        a, b = conversion(self.model.sde, self.predicts, target, t, sigma_data, levels, self.unit)
        if quantity == "drift":
            lam = self.stochasticity(t) if callable(self.lam) else self.lam
            pull: Any = outer(self._size(t)) * (-0.5 * (1 + lam**2))
            a, b = (self.sde.f(t) + pull * a, pull * b) if self.linear else (0.0, pull * b)
        if isinstance(b, Tensor) and not bool(torch.isfinite(a + b).all()):
            a, b = self._velocity(quantity, t)
        if times.ndim > 1:
            a = a if isinstance(a, float) else a.reshape(times.shape)
            b = b.reshape(times.shape)
        nonlinear = quantity == "drift" and not self.linear
        columns = (keep + push * a, push * b, *([push * (1.0 / self.unit)] if nonlinear else []))
        entries: list[Sequence[Any]] = [
            *planned(times.shape[0], self.like, *columns),
            *([times.unbind()] if nonlinear else []),
        ]
        entries.insert(2, entries_of(self.model, times, self._given, self.piece, self.breaks))
        return list(map(_At, *entries))

    def outputs(self, x: Tensor, at: _At) -> Output:
        """`evaluate`, what the model says beside its prediction, and that prediction as ``raw``."""
        said: list[Any] = []
        value = self.evaluate(x, at, said)
        out, found = said
        extras = extras_of(found, self.model, self.facts.extras)
        extras = {
            name: kept(each, self.mask) if isinstance(each, Tensor) else each
            for name, each in extras.items()
        }
        return Output(value, raw=out, **extras)

    def peek(self, x: Tensor, at: _At) -> Tensor:
        """The model's own prediction as a side glance, which is not counted."""
        found = self.model.evaluate(weighted((self.unit, x)), at.call, self.batch.uncounted())
        return kept(value_of(found, x, self.model), self.mask)

    def evaluate(self, x: Tensor, at: _At, said: list[Any] | None = None) -> Tensor:
        """keep x + push quantity(x, t), counted and watched.

        A list ``said`` gets the model's prediction, and all that the model returned.
        """
        monitor, mask = self.monitor, self.mask
        calls = monitor.calls
        found = self.model.evaluate(
            x if self.unit == 1.0 else weighted((self.unit, x)), at.call, self.batch
        )
        if type(found) is Tensor and found.shape == x.shape and found.dtype == x.dtype:
            out = found
        else:
            out = value_of(found, x, self.model)
        if mask is not None:
            out = kept(out, mask)
        if monitor.calls == calls:
            self.batch.count()
        if monitor.watch:
            monitor.look(x, out, self.rows)
        value = weighted((at.keep, x), (at.push, out))
        if at.drift is not None:
            drift = kept(drift_of(self.sde, weighted((self.unit, x)), cast(Tensor, at.t)), mask)
            value = weighted((1.0, value), (at.drift, drift))
        if said is not None:
            said += [out, found]
        # Not the model's tensor itself: a network may write all its outputs to one.
        return value.clone() if value is out or value is x else value

    def clean(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x] in the user's units, to the bit as a constraint left it."""
        at = self.at(t[None], "data")[0]
        said: list[Any] = []
        value = self.evaluate(x, at, said)
        out, found = said
        if self.facts.extras or isinstance(found, Output):
            extras = extras_of(found, self.model, self.facts.extras)
            if "clean" in extras:
                return kept(extras["clean"], self.mask)
        if self.predicts == "data":  # not by way of the units, which would round it
            value = self.units.from_model(out.clone())
        plain = self.unit == 1.0 and self.units.normalizer is None and self.mask is None
        return value if plain else self.units.leave(value, self.mask)

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) in the model's units; those of times asked for of late are kept.

        The times may also be the first or the last of those.
        """
        sde = self.model.sde
        if t.ndim != 1 or torch.is_grad_enabled():
            return sde.alpha(t), sde.sigma(t)
        count = t.shape[0]
        for times, alpha, sigma in self._known:
            for part in (slice(count), slice(-count, None)):
                if torch.equal(times[part], t):
                    return alpha[part], sigma[part]
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        self._known.appendleft((t.clone(), alpha, sigma))
        return alpha, sigma

    def _size(self, t: Tensor) -> Coef:
        """g(t) in units of ``unit``."""
        g: Coef = self.sde.diffusion(t)
        return g if self.linear or self.unit == 1 else g * (1 / self.unit)

    def diffusion(self, t: Tensor) -> Coef:
        return self._size(t) * self.stochasticity(t)

    def _velocity(self, quantity: str, t: Tensor) -> tuple[Tensor, Tensor]:
        """The drift of the probability flow as d alpha / dt x_0 + d sigma / dt noise, which is
        finite at the ends of rectified flow, where f or g is not; an error where it is not.
        """
        if quantity == "drift" and self.linear and self.constant_stochasticity == 0:
            known = self.facts.sigma_data
            a, b = conversion(
                self.model.sde, self.predicts, "flow", t, known, self._levels(t), self.unit
            )
            if bool(torch.isfinite(a + b).all()):
                return a, b
        self._refuse(quantity, t)

    def _refuse(self, quantity: str, t: Tensor) -> NoReturn:
        target = "score" if quantity == "drift" else quantity
        sde, sigma_data = self.model.sde, self.facts.sigma_data
        pair = torch.stack(conversion(sde, self.predicts, target, t, sigma_data))
        bad = ~torch.isfinite(pair).all(dim=0)
        if quantity != "drift" or bool(bad.any()):
            first = t[bad][0] if bool(bad.any()) else t[0]
            raise ValueError(singular(sde, self.predicts, target, first, sigma_data))
        raise ValueError(
            f"f or g of {sde!r} is not finite at t = {float(t.max()):.6g}: start inside its "
            "default "
            "range, or take the first step in data form, by DDIM or Ancestral"
        )

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """drift - (1 + lambda^2) / 2 g g^T score, with one evaluation."""
        return self.evaluate(x, self.at(t[None], "drift")[0])

    def degrade(self, x_0: Tensor, t: Tensor, seen: tuple[Tensor, Tensor]) -> Tensor:
        """D(x_0, t) of a process that offers it, in units of ``unit``."""
        sde, (x, at), inside = self.model.sde, seen, self.units.to_model
        x_0 = inside(x_0)
        rows = sde.known(x_0, inside(x), at, self.batch)
        found = sde.degrade(x_0, t, rows)
        if not isinstance(found, Tensor):
            got = type(found).__name__
            raise TypeError(f"{sde!r}: degrade must return a tensor like x_0, got {got}")
        return kept(self.units.from_model(found), self.mask)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        return self.evaluate(x, self.at(t[None], "score")[0])

    def data(self, x: Tensor, t: Tensor) -> Tensor:
        return self.evaluate(x, self.at(t[None], "data")[0])

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        return self.evaluate(x, self.at(t[None], "noise")[0])

    def v(self, x: Tensor, t: Tensor) -> Tensor:
        return self.evaluate(x, self.at(t[None], "v")[0])

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.ndim > 1:
            return _flat(self.marginal, t)
        alpha, sigma = self._levels(t)
        return alpha, sigma if self.unit == 1 else sigma / self.unit

    def log_snr(self, t: Tensor) -> Tensor:
        return _flat(self.log_snr, t) if t.ndim > 1 else self.sde.log_snr(t)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if t.ndim > 1:
            return _flat(self.levels, t)
        alpha, sigma, log_snr = self.sde.levels(t)
        # in other units a product would round
        if t.ndim == 1 and self.unit == 1 and not torch.is_grad_enabled():
            self._known.appendleft((t.clone(), alpha, sigma))
        return alpha, sigma, log_snr

    def time_of(self, log_snr: Tensor) -> Tensor:
        return _flat(self.time_of, log_snr) if log_snr.ndim > 1 else self.sde.time_of(log_snr)

    def time_beyond(self, log_snr: Tensor, start: Tensor) -> Tensor:
        """The SDE's where it ends at ``start``."""
        ends = start >= self.sde.T * (1 - 1e-12)
        if not bool(ends.any()):
            return start.expand_as(log_snr)
        beyond = self.sde.time_beyond
        return torch.where(
            ends, _flat(beyond, log_snr) if log_snr.ndim > 1 else beyond(log_snr), start
        )

    def kernel(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return _flat(self.kernel, t, s) if t.ndim > 1 else self.sde.kernel(t, s)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return _flat(self.coefficients, t) if t.ndim > 1 else (self.sde.f(t), self.sde.g(t))

    @cached_property
    def _accumulated(self) -> Integral:
        return accumulated(self.sde, self.stochasticity)

    def mixing(self, t: Tensor) -> Tensor:
        """The integral of lambda^2 du, u = log(alpha / sigma), up to a constant: lambda^2 u where
        lambda is constant.
        """
        if t.ndim > 1:
            return _flat(self.mixing, t)
        if callable(self.lam):
            own = getattr(self.lam, "mixing", None)
            found: Tensor = (
                self._accumulated(t - self.sde.t_min)[0] if own is None else own(t, self.log_snr)
            )
            return found
        half = 0.5 * self.log_snr(t)
        return self.lam**2 * half if self.lam else torch.zeros_like(t)

    @cached_property
    def unscaled(self) -> bool:
        """Whether alpha is constant: looked up at five times."""
        alpha = self.sde.alpha(
            torch.linspace(self.sde.t_min, self.sde.t_max, 5, dtype=torch.float64)
        )
        return bool((alpha == alpha[0]).all())


def _flat(function: Callable[..., _Found], *times: Tensor) -> _Found:
    """What a function of times (n,) returns, a tensor or several, at times (n, rows)."""
    found: Any = function(*(t.reshape(-1) for t in times))
    shape = times[0].shape
    if isinstance(found, Tensor):
        return cast(_Found, found.reshape(shape))
    return cast(_Found, tuple(each.reshape(shape) for each in found))
