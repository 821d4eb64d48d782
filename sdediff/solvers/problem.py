"""What is solved: dx = drift(x, t) dt + diffuse(dw, t), and what else is known about it.

A solver sees a `Problem` and nothing else: no SDE class and no network. Times are float64 tensors on the host,
of shape () (all rows share one time) or (rows,) (every row has its own). States are (rows, *event), on any device.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from sdediff.solvers.arithmetic import Number, numbers, rowwise, weighted
from sdediff.solvers.monitor import Monitor

__all__ = ["Composed", "Problem", "Schedule"]


Columns = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def _as_it_is(saved: Tensor) -> Tensor:
    return saved


class Schedule:
    """Functions of time, evaluated once for all times that are known beforehand."""

    def __init__(self) -> None:
        self._times: list[Tensor] = []
        self._known: dict[float, None] = {}  # the times as floats, in the same order
        self._tables: dict[Hashable, dict[float, tuple[Any, ...]]] = {}
        self._rows = torch.zeros(0, 0, dtype=torch.float64)
        self._each: tuple[Tensor, ...] = ()
        self._own: dict[int, int] = {}
        self._own_rows: dict[Hashable, list[tuple[Any, ...]]] = {}

    def prepare(self, times: Tensor) -> tuple[Tensor, ...]:
        """Make known that functions will be asked for at each of ``times``, (n,), or (n, rows) until others of that shape come.

        Returns the times one by one, to ask with: those of (n, rows) are known by these tensors, not by their numbers.
        """
        if times.ndim == 2:
            self._rows, self._each = times, times.unbind()
            self._own, self._own_rows = {id(each): i for i, each in enumerate(self._each)}, {}
            return self._each
        new = []
        for i, time in enumerate(times.tolist()):
            if time not in self._known:
                self._known[time] = None
                new.append(i)
        if new:
            self._times.append(times[new])
            self._tables.clear()
        return times.unbind()

    def __call__(
        self, key: Hashable, function: Callable[..., Columns], t: Tensor, *rest: Any, x: Tensor | None = None
    ) -> tuple[Any, ...]:
        """The entry at t of the columns function(times, *rest), of which there is one for each ``key``.

        ``function`` returns (coefficients, others), tuples of tensors shaped as the times. An entry has the
        coefficients first, as floats where that loses nothing (see `numbers`) or, for known times of every row, beside the
        state ``x`` and shaped for it; the others repeated for its rows.
        """
        if t.ndim == 0:
            table = self._tables.get(key)
            if table is None:
                table = self._tables[key] = self._table(function, rest, 1 if x is None else len(x))
            found = table.get(t.item())
            if found is not None:
                return found
        elif x is not None and not torch.is_grad_enabled():
            own = self._own.get(id(t))
            if own is not None:
                if key not in self._own_rows:
                    self._own_rows[key] = self._by_row(function, rest, x)
                return self._own_rows[key][own]
        coefficients, others = function(t, *rest)
        free = t.ndim == 0 and not any(c.requires_grad for c in coefficients)
        return (*(map(Tensor.item, coefficients) if free else coefficients), *others)

    def _table(self, function: Callable[..., Columns], rest: tuple[Any, ...], rows: int) -> dict[float, tuple[Any, ...]]:
        if not self._times:
            return {}
        # Filled once: a checkpointed step that is computed again must not miss what the first time saved here.
        with saved_tensors_hooks(_as_it_is, _as_it_is):
            coefficients, others = function(torch.cat(self._times), *rest)
            columns = [*map(numbers, coefficients), *(other[:, None].expand(-1, rows).unbind() for other in others)]
        return dict(zip(self._known, zip(*columns, strict=True), strict=True))

    def _by_row(self, function: Callable[..., Columns], rest: tuple[Any, ...], x: Tensor) -> list[tuple[Any, ...]]:
        """The entries at the known times of every row, coefficients beside the state by one transfer unless some are not finite."""
        times = self._rows
        coefficients, others = function(times.reshape(-1), *rest)
        table = torch.stack(coefficients)
        shape = (len(table), *times.shape)
        if math.isfinite(float(table.sum())):  # where one is not, nor is the sum
            table, shape = table.to(x.dtype).to(x.device), (*shape, *(1,) * (x.ndim - 1))
        columns = [*table.reshape(shape), *(other.reshape(times.shape) for other in others)]
        return list(zip(*(column.unbind() for column in columns), strict=True))


class Composed(Protocol):
    """a(t) x + b(t) ``quantity``."""

    @property
    def quantity(self) -> str:
        """What is evaluated."""

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """(a, b), shaped as t; None: (0, 1)."""


class Problem:
    """dx = drift(x, t) dt + diffuse(dw, t), solved from the first to the last time of a grid, in either direction.

    A subclass overrides what it has and names that in ``offers``; a solver names what it wants in ``needs``, and
    the driver compares the two before the first evaluation. The names are those of `needs.OFFERS`: mostly a method's, while
    ``diffusion`` is `diffuse` and `shake`, ``marginal`` has log-SNR and its inverse with it, ``variance`` is `data_and_variance`.
    """

    offers: frozenset[str] = frozenset({"drift"})
    parts: tuple[tuple[int, float], ...] = ()
    """(size, weight) of parts of a flat event: the norm of an error is the largest weight times root mean square over a part.

    (): the event is one part of weight 1.
    """
    unit: float = 1.0
    """The length, as the user measures it, that is 1 here: what a solver's user gives as a length is divided by it."""
    rounding: float = 0.0
    """The relative error of evaluations by rounding in a step's error estimate, where it exceeds that of the state's dtype."""
    standard: float = 1.0
    """The length here that is 1 in the units of the SDE's declaration, for which publications give their constants."""

    def __init__(self, samples: int) -> None:
        self.monitor = Monitor(samples)
        self.schedule = Schedule()
        self.rows: Tensor | None = None
        self.mask: Tensor | None = None
        """Which coordinates exist, bool (rows, *event) beside the states; the others stay at 0. None: all."""

    def prepare(self, times: Tensor) -> tuple[Tensor, ...]:
        """Say at which times the problem will be evaluated: solvers call it from `plan`, so that no step computes a coefficient.

        Returns the times one by one. Where every row has its own, (N, rows), evaluate at these very tensors: what is computed for
        them together is found by them, until the next such call.
        """
        return self.schedule.prepare(times)

    def seen(self, x: Tensor, out: Tensor) -> Tensor:
        """Pass an evaluation of the network, ``out`` at ``x``, through the monitor: call it once for each."""
        self.monitor.record(x, out, self.rows)
        return out

    def blend(self, quantity: str | Composed, x: Tensor, t: Tensor, keep: Number, push: Number) -> Tensor:
        """keep x + push q(x, t) with one evaluation, q the ``quantity``: ``"drift"``, ``"score"``, ``"data"``, ``"noise"`` or
        ``"v"``, or one composed of x and one of these, dy / du of a `Clock` say.

        Most steps are of this form. A problem whose quantities are linear in x and an output overrides it, to save passes.
        """
        if not isinstance(quantity, str):
            a, b = quantity.weights(t) or (0.0, 1.0)
            quantity, keep, push = quantity.quantity, keep + push * a, push * b
        return weighted((keep, x), (push, getattr(self, quantity)(x, t)))

    def take(self, rows: Tensor) -> Self:
        """The same problem for some of its rows, int64 (k,) on the host."""
        part = copy.copy(self)
        part.rows = rows if self.rows is None else self.rows[rows]
        part.mask = None if self.mask is None else self.mask[rows.to(self.mask.device)]
        return part

    def first(self, z: Tensor) -> Tensor:
        """The first coordinate of z (rows, *event) that exists, (rows,)."""
        flat = rowwise(z)
        return flat[:, 0] if self.mask is None else flat.gather(1, rowwise(self.mask).int().argmax(dim=1)[:, None])[:, 0]

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """Drift at (x, t), (rows, *event)."""
        raise NotImplementedError

    def diffuse(self, dw: Tensor, t: Tensor) -> Tensor:
        """The diffusion coefficient at t applied to a Brownian increment, (rows, *event)."""
        raise NotImplementedError

    def shake(self, x: Tensor, z: Tensor, t: Tensor, root: Number) -> Tensor:
        """x + diffuse(root z, t)."""
        return weighted((1.0, x), (root, self.diffuse(z, t)))

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x), (rows, *event)."""
        raise NotImplementedError

    def data(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x], (rows, *event)."""
        raise NotImplementedError

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[noise | x_t = x]."""
        raise NotImplementedError

    def data_and_variance(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t = x] and what the network says of the reverse step's variance, both (rows, *event), by one evaluation."""
        raise NotImplementedError

    def v(self, x: Tensor, t: Tensor) -> Tensor:
        """E[alpha noise - sigma x_0 | x_t = x]."""
        raise NotImplementedError

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of x_t = alpha x_0 + sigma noise."""
        raise NotImplementedError

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), without the cancellation that computing it from the two would bring."""
        raise NotImplementedError

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(alpha, sigma, log(alpha^2 / sigma^2)): overridden where they cost less together."""
        return *self.marginal(t), self.log_snr(t)

    @property
    def unscaled(self) -> bool:
        """Whether alpha is constant."""
        return False

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which log(alpha^2 / sigma^2) = log_snr."""
        raise NotImplementedError

    def time_beyond(self, log_snr: Tensor, start: Tensor) -> Tensor:
        """`time_of` for levels with more noise than there is at ``start``, the start of a grid.

        It is a time after ``start`` where that is the last time of an SDE which goes on after it,
        else ``start``.
        """
        return start.expand_as(log_snr)

    def kernel(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """(ratio, std) of the forward transition x_t = ratio x_s + std noise, s < t."""
        raise NotImplementedError

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g) of the forward SDE dx = f x dt + g dw."""
        raise NotImplementedError

    def stochasticity(self, t: Tensor) -> Tensor:
        """lambda(t) >= 0 of the reverse family; 0 is the probability flow, 1 the reverse SDE."""
        return torch.zeros_like(t)

    @property
    def constant_stochasticity(self) -> float | None:
        """lambda where it is a constant, else None."""
        return 0.0 if type(self).stochasticity is Problem.stochasticity else None

    def without_noise(self) -> Problem:
        """The same problem at lambda = 0."""
        if self.constant_stochasticity != 0:
            raise NotImplementedError
        return self

    def mixing(self, t: Tensor) -> Tensor:
        """The integral of lambda^2 du, u = log(alpha / sigma), up to a constant: lambda^2 u where lambda is constant."""
        return torch.zeros_like(t)
