"""What is solved: dx = drift(x, t) dt + diffusion(t) dw, and what else is known about it.

A solver sees a `Problem` and nothing else: no SDE class and no network. Times are float64 tensors
on the host, of shape () (all rows share one time) or (rows,) (every row has its own). States are
(rows, *event), on any device.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self, cast

import torch
from torch import Tensor

from sdediff.solvers.arithmetic import Like, Number, planned, rowwise, weighted
from sdediff.solvers.coefficients import Coef
from sdediff.solvers.given import check_name

__all__ = ["QUANTITIES", "At", "Monitor", "Output", "Problem", "check_quantity"]

QUANTITIES: Final = ("drift", "score", "data", "noise", "v")


class Output:
    """An answer of a model or a problem: its ``value``, and by name what came out of the same call
    beside it.

    ``Output(value, variance=v)`` has the attribute ``variance``: a tensor, or a function of states.
    """

    def __init__(self, value: Tensor, **extras: Any) -> None:
        self.value = value
        vars(self).update(extras)

    @property
    def extras(self) -> dict[str, Any]:
        """What is beside the value."""
        return {name: each for name, each in vars(self).items() if name != "value"}


def check_quantity(quantity: str, offers: Collection[str] = QUANTITIES) -> None:
    """A ValueError unless `Problem.at` knows the ``quantity`` and a problem ``offers`` it."""
    check_name("quantity", quantity, QUANTITIES)
    if quantity not in offers:
        raise ValueError(
            f"this problem does not offer {quantity}: a solver that evaluates it names it in its "
            "needs, "
            "so that it is refused before"
        )


class At(NamedTuple):
    """An evaluation that a plan holds: keep x + push ``quantity``(x, t)."""

    quantity: str
    """What is evaluated, a name that the problem offers: ``"score"`` or ``"drift"`` say."""
    t: Tensor
    """The time, float64 on the host, () or (rows,)."""
    keep: Coef
    """What the state is multiplied by."""
    push: Coef
    """What the quantity is multiplied by."""


@dataclass(eq=False)
class Tally:
    """Counts something for each sample."""

    samples: int
    everyone: int = 0
    """What all samples have."""
    _some: Tensor | None = None
    _rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    _times: int = 0
    _most: int = 0
    _repeats: int = 0

    def add(self, rows: Tensor | None, count: int) -> None:
        """Count for each entry of ``rows``, int64 (k,), which may repeat; None: once for every
        sample.
        """
        if rows is None:
            self.everyone += count
            return
        if rows is not self._rows:  # the same samples step together for long
            if self._times:
                self._flush()
            self._rows = rows
            self._repeats = int(torch.bincount(rows).max()) if len(rows) else 0
        self._times += count
        self._most += count * self._repeats

    def _flush(self) -> None:
        if self._some is None:
            self._some = torch.zeros(self.samples, dtype=torch.int64)
        self._some.index_add_(0, self._rows, torch.full_like(self._rows, self._times))
        self._times = 0

    @property
    def most(self) -> int:
        """A number that no sample exceeds."""
        return self.everyone + self._most

    @property
    def total(self) -> Tensor:
        """The counts, int64 (samples,)."""
        if self._times:
            self._flush()
        if self._some is None:
            return torch.full((self.samples,), self.everyone)
        return self._some + self.everyone


class Monitor:
    """Counts what is made of the network and, when asked, notes whose output was not finite."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.watch = False
        self.calls = 0  # how often something was counted
        self.evaluations = Tally(samples)
        self.backward_passes = Tally(samples)
        self._seen: list[tuple[Tensor | None, Tensor]] = []
        self._bad = torch.zeros(samples, dtype=torch.bool)
        self._some_bad = False

    def clear(self) -> None:
        """Forget all evaluations, for a solve that is run again."""
        vars(self).update(vars(Monitor(self.samples)))

    @property
    def bad(self) -> Tensor:
        """Whose output was not finite though the state was, bool (samples,): the one place that
        waits for the device.
        """
        for rows, bad in self._seen:
            self._bad[bad.cpu() if rows is None else rows[bad.cpu()]] = True  # rows may repeat
            self._some_bad = True
        self._seen.clear()
        return self._bad

    @property
    def troubled(self) -> bool:
        """Whether there is anything for `bad` to look at."""
        return self._some_bad or bool(self._seen)

    def count(self, rows: Tensor | None, evaluations: int = 1, backward: int = 0) -> None:
        """Count evaluations and backward passes of the samples ``rows``, which may repeat (None:
        all of them, once).
        """
        self.calls += 1
        self.evaluations.add(rows, evaluations)
        if backward:
            self.backward_passes.add(rows, backward)

    def look(self, x: Tensor, out: Tensor, rows: Tensor | None) -> None:
        """Note which outputs ``out`` at states ``x`` of the samples ``rows`` are not finite: for a
        monitor that watches.
        """
        # On the host one sum tells whether there is anything to look for; on a device nothing waits
        # for the answer.
        if out.device.type != "cpu" or not math.isfinite(float(out.detach().sum())):
            self._seen.append(
                (
                    rows,
                    ~torch.isfinite(rowwise(out)).all(dim=1)
                    & torch.isfinite(rowwise(x)).all(dim=1),
                )
            )


class Problem:
    """dx = drift(x, t) dt + diffusion(t) dw, solved from the first to the last time of a grid, in
    either direction.

    A subclass overrides what it has and names that in ``offers``; a solver names what it wants in
    ``needs``, and the driver compares the two before the first evaluation. The names are those of
    `needs.OFFERS`: mostly a method's, while ``marginal`` has log-SNR and its inverse with it, and
    ``variance`` is beside the value of `outputs`.
    """

    offers: frozenset[str] = frozenset({"drift"})
    parts: tuple[tuple[int, float], ...] = ()
    """(size, weight) of parts of a flat event: the norm of an error is the largest weight times
    root mean square over a part.

    (): the event is one part of weight 1.
    """
    unit: float = 1.0
    """The length, as the user measures it, that is 1 here: what a solver's user gives as a length
    is divided by it.
    """
    rounding: float = 0.0
    """The relative error of evaluations by rounding in a step's error estimate, where it exceeds
    that of the state's dtype.
    """
    standard: float = 1.0
    """The length here that is 1 in the units of the SDE's declaration, for which publications give
    their constants.
    """
    structure: str = "additive"
    """How noise depends on the state: "additive" is not at all (see `solve_sde`)."""
    sense: str = "ito"
    """The sense of noise that depends on the state: "ito" or "stratonovich"."""
    cost: int = 1
    """Evaluations of the network that one evaluation of the problem makes of a sample, at most."""
    breaks: tuple[float, ...] = ()
    """Times at which the problem jumps: a solve goes from each to the next, and at either end sees
    the value inside.
    """
    piece: tuple[float, float] | None = None
    """The times (low, high) between which the problem is solved now, if it has ``breaks``."""
    grid: Tensor | None = None
    """The whole grid of the solve of which a plan may be for a piece; None: the plan is for all of
    it.
    """
    like: Like | None = None
    """What states look like, so that the coefficients of a plan stand beside them; None: they stay
    on the host.
    """
    rows: Tensor | None = None
    """Which of the samples that ``monitor`` counts are the rows of the state, int64 (rows,); None:
    all of them.
    """
    mask: Tensor | None = None
    """Which coordinates exist, bool (rows, *event) beside the states; the others stay at 0. None:
    all.
    """
    monitor: Monitor

    def __init__(self, samples: int) -> None:
        self.monitor = Monitor(samples)

    def at(
        self, times: Tensor, quantity: str, keep: Number = 0.0, push: Number = 1.0
    ) -> Sequence[Any]:
        """What `evaluate` takes, one entry for each of ``times``, float64 host tensors (n,) or (n,
        rows).

        An entry stands for keep x + push q(x, t), with q the ``quantity``: ``"drift"``,
        ``"score"``, ``"data"``, ``"noise"`` or ``"v"``. ``keep`` and ``push`` are numbers or have
        the shape of ``times``. A plan makes all its entries here, so that no step computes a
        coefficient; a ValueError says where the quantity is not known at one of the times. Entries
        belong to the rows of the problem that made them.
        """
        check_quantity(quantity)
        keeps, pushes = planned(len(times), self.like, keep, push)
        rows = zip(times.unbind(), keeps, pushes, strict=True)
        return [At(quantity, *row) for row in rows]

    def evaluate(self, x: Tensor, at: Any) -> Tensor:
        """keep x + push q(x, t), (rows, *event), by one evaluation, for an entry of `at`."""
        found: Tensor = getattr(self, at.quantity)(x, at.t)
        return weighted((at.keep, x), (at.push, found))

    def outputs(self, x: Tensor, at: Any) -> Output:
        """`evaluate`, and with it what the model says beside its prediction, by one evaluation."""
        return Output(self.evaluate(x, at))

    def coefs(self, count: int, *columns: Number) -> list[Sequence[Number]]:
        """Columns of numbers as sequences of ``count``, one for each time of a plan, as states are
        multiplied by them.

        A column is a number for all times or a float64 tensor, (count,) or (count, rows).
        """
        return cast(list[Sequence[Number]], planned(count, self.like, *columns))

    def spread(self, times: Tensor, root: Number = 1.0) -> Sequence[Coef]:
        """lambda g root at each of ``times`` (n,) or (n, rows): what standard normals are
        multiplied by.

        ``root`` is that of the length of the step, a number or of the shape of ``times``.
        """
        flat = times.reshape(-1)
        size = self.diffusion(flat)
        if times.ndim > 1 and not isinstance(size, float):
            size = size.reshape(times.shape)
        return planned(len(times), self.like, size * root)[0]

    def seen(self, x: Tensor, out: Tensor) -> Tensor:
        """Pass an evaluation of the network, ``out`` at ``x``, through the monitor: call it once
        for each.
        """
        self.monitor.count(self.rows)
        if self.monitor.watch:
            self.monitor.look(x, out, self.rows)
        return out

    def within(self, piece: tuple[float, float] | None, grid: Tensor) -> Self:
        """The same problem between two neighbours of its ``breaks`` and the ends of the whole
        ``grid``.
        """
        part = copy.copy(self)
        part.piece, part.grid = piece, grid
        return part

    def take(self, rows: Tensor) -> Self:
        """The same problem for some of its rows, int64 (k,) on the host; what it planned for all of
        them is of no use to it.
        """
        part = copy.copy(self)
        part.rows = rows if self.rows is None else self.rows[rows]
        part.mask = None if self.mask is None else self.mask[rows.to(self.mask.device)]
        return part

    def first(self, z: Tensor) -> Tensor:
        """The first coordinate of z (rows, *event) that exists, (rows,)."""
        flat = rowwise(z)
        return (
            flat[:, 0]
            if self.mask is None
            else flat.gather(1, rowwise(self.mask).int().argmax(dim=1)[:, None])[:, 0]
        )

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """Drift at (x, t), (rows, *event)."""
        raise NotImplementedError

    def diffusion(self, t: Tensor) -> Coef:
        """The diffusion coefficient lambda g at times (n,): (n,), or a linear map at each."""
        raise NotImplementedError

    def diffuse(self, dw: Tensor, t: Tensor) -> Tensor:
        """The diffusion coefficient at t applied to a Brownian increment, (rows, *event)."""
        return weighted((self.spread(t[None])[0], dw))

    def spread_at(self, x: Tensor, spread: Any) -> Coef:
        """A planned `spread` at states x: itself where noise does not depend on the state."""
        size: Coef = spread
        return size

    def loading(self, x: Tensor, t: Tensor) -> Coef:
        """b(x, t), by which noise that depends on the state multiplies a Brownian increment."""
        raise NotImplementedError

    def iterated(self, x: Tensor, t: Tensor, dw: Tensor, h: Number) -> Tensor:
        """The sum over j and k of (D b_k)[b_j] I_jk, (rows, *event): b_k is column k of b, D its
        derivative in x, and I_jk the iterated integral of Brownian motions j and k over a step h,
        of either sign, with the increments ``dw``.
        """
        raise NotImplementedError

    def degrade(self, x_0: Tensor, t: Tensor, seen: tuple[Tensor, Tensor]) -> Tensor:
        """D(x_0, t), (rows, *event): what the data become at t, with what the state and its time
        that were ``seen`` tell of the way there.
        """
        raise NotImplementedError

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x), (rows, *event)."""
        raise NotImplementedError

    def data(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t = x], (rows, *event)."""
        raise NotImplementedError

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        """E[noise | x_t = x]."""
        raise NotImplementedError

    def v(self, x: Tensor, t: Tensor) -> Tensor:
        """E[alpha noise - sigma x_0 | x_t = x]."""
        raise NotImplementedError

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of x_t = alpha x_0 + sigma noise."""
        raise NotImplementedError

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), without the cancellation that computing it from the two would
        bring.
        """
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
        """The integral of lambda^2 du, u = log(alpha / sigma), up to a constant: lambda^2 u where
        lambda is constant.
        """
        return torch.zeros_like(t)
