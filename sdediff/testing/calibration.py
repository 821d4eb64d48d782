"""Simulation-based calibration: whether what is said to be drawn from a posterior is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import torch
from torch import Tensor

from sdediff.arguments import check_shape
from sdediff.posterior import Measurement, Particles, sample_posterior
from sdediff.posterior.measurements import as_measurement
from sdediff.protocols import Model
from sdediff.sampling import sample
from sdediff.solvers import Solver, rowwise, seeds
from sdediff.solvers.given import integer, real, reals
from sdediff.testing.ranks import DEGREE, Calibration

__all__ = ["Draw", "calibrate", "posterior_draws"]

Draw = Callable[[Tensor, int, int], Tensor]
"""A method: outcomes y (R, *outcome), a number n and a seed to draws (R, n, *event)."""
Quantity = Callable[[Tensor], Tensor]

_LIKELIHOOD: Final = "log-likelihood of y"
_COORDINATES: Final = 8


def calibrate(
    method: Draw,
    model: Model | None,
    measurement: Any,
    *,
    event: Sequence[int] | int | None = None,
    data: Tensor | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    simulate: Callable[[Tensor, int], Tensor] | None = None,
    draws: int = 99,
    replications: int = 500,
    batch_size: int = 50,
    level: float = 0.01,
    seed: int = 0,
    verbose: bool = True,
) -> Calibration:
    """Rank x_0 among draws of the posterior of an outcome of it, over and over; no closed form is
    needed.

    For each of ``replications`` x_0, an outcome y of it is made, and ``method(y, draws, seed)``
    draws from the posterior of y: it takes y (R, *outcome) and returns (R, draws, *event).
    `posterior_draws` makes one of `Particles` or of `MMPS` and the like. If the draws are from the
    posterior, then x_0 is one more of them, so that for any function q the rank of q(x_0) among
    the q of the draws is uniform on 0, ..., draws. Draws that are too wide put it in the middle,
    too narrow ones at the ends, and draws that are too low put it high.

    Without ``data``, x_0 are samples of ``model``, whose shape is ``event``: this tests the method.
    With ``data`` (N, *event), that the network was not trained on, ``replications`` of them are
    x_0, and the network is tested too; ``model`` may then be None.

    ``quantities`` are functions of x (N, *event) that return (N,), by name; by default the
    coordinates of events of up to 8, or else 8 projections on random directions. The
    log-likelihood of y is always one more: ranks of x_0 alone would pass a method that ignores y.
    ``simulate(x, seed)`` makes outcomes of a measurement that is not linear.

    Ranks are compared with the uniform law by Neyman's smooth test of degree 4, whose first two
    components are bias and spread, and p-values are corrected for the number of quantities by
    Holm's method: a method that is right fails with probability ``level``. ``batch_size``
    replications are drawn at a time. The report is printed if ``verbose``. Raises ValueError or
    TypeError where arguments do not meet, before anything is drawn, or where the method returns
    something else. (Talts et al. 2018, Validating Bayesian Inference Algorithms with
    Simulation-Based Calibration, arXiv 1804.06788; for the log-likelihood Modrak et al. 2023, arXiv
    2211.02383.)
    """
    n = integer("draws", draws, 2 * DEGREE + 1)
    count = integer("replications", replications, 2)
    size = integer("batch_size", batch_size, 1)
    if not 0 < real("level", level) < 1:
        raise ValueError(f"level is the probability of a false alarm, in (0, 1), got {level!r}")
    if not callable(method):
        raise TypeError(
            "method must be a function (y, n, seed) that returns draws (R, n, *event); "
            f"posterior_draws(method, model, measurement, event) makes one; got {method!r}"
        )
    known = as_measurement(measurement)
    simulate = _simulator(known) if simulate is None else simulate
    one, two, three, *own = seeds(seed, 3 + -(-count // size))
    if not isinstance(quantities, Mapping | None):
        raise TypeError(
            "quantities must be a dict of functions of x (N, *event) by name, {'sum': lambda x: "
            f"x.sum(dim=1)}} say; got {type(quantities).__name__}"
        )
    x, source = _truths(model, event, data, count, one)
    y = simulate(x, two)
    _check_outcomes(y, count)
    asked = dict(_default(x.shape[1:]) if quantities is None else quantities)
    if _LIKELIHOOD in asked or not all(map(callable, asked.values())):
        raise ValueError(
            "quantities must be functions of x (N, *event) by name, and none is called "
            f"{_LIKELIHOOD!r}, which is always there"
        )
    generator = torch.Generator().manual_seed(three)
    ranks = []
    for rows, each in zip(torch.arange(count).split(size), own, strict=True):
        found = method(y[rows], n, each)
        _check_draws(found, (len(rows), n, *x.shape[1:]))
        ranks.append(_ranks(x[rows].to(found), found, y[rows].to(found), known, asked, generator))
    names = (*asked, _LIKELIHOOD)
    report = Calibration(source, names, n, torch.cat(ranks, dim=1), float(level))
    if verbose:
        print(report)
    return report


def posterior_draws(
    method: Callable[[Model, Any, Tensor], Model] | Particles,
    model: Model,
    measurement: Any,
    event: Sequence[int] | int,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
) -> Draw:
    """A function (y, n, seed) that returns draws (R, n, *event) of the posteriors of R outcomes.

    ``method`` is a function (model, measurement, y) that returns a model, such as the classes
    `MMPS`, `PiGDM` and `DPS`, or ``partial(MMPS, iterations=20)``: n samples of it are drawn for
    each outcome by ``solver`` and ``steps``, as in `sample`. Or it is ``Particles(N)``: of its N
    equally weighted draws n are chosen at random, n <= N. For anything else write such a function.
    """
    event = _shape(1, event)[1:]
    if not callable(method) and not isinstance(method, Particles):
        raise TypeError(
            "method must be a function (model, measurement, y) that returns a model, MMPS say, or "
            f"Particles(N); got {method!r}"
        )

    def sampled(y: Tensor, n: int, seed: int) -> Tensor:
        each = y.repeat_interleave(n, dim=0)
        given: Any = method
        found = sample(
            given(model, measurement, each), (len(each), *event), solver=solver, steps=steps,
            seed=seed,
        )  # fmt: skip
        return found.x.reshape(len(y), n, *event)

    def chosen(y: Tensor, n: int, seed: int) -> Tensor:
        particles: Any = method
        if particles.n < n:
            raise ValueError(f"{n} draws of {particles.n} particles: take Particles({n}) or more")
        found = sample_posterior(
            model, measurement, y, (len(y), *event), particles=particles,
            steps=100 if steps is None else steps, seed=seed,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(found.draws.shape[:2], generator=generator).argsort(dim=1)[:, :n]
        rows = torch.arange(len(order))[:, None]
        return found.draws[rows, order]

    if callable(method):
        return sampled
    if solver is not None:
        raise ValueError(f"{method!r} is the solver: leave out solver={solver!r}")
    return chosen


def _shape(count: int, event: Sequence[int] | int | None) -> tuple[int, ...]:
    """(count, *event); one number n is the event (n,)."""
    one = (event,) if isinstance(event, int) else event
    return check_shape((count, *(one or ())))


def _truths(
    model: Model | None,
    event: Sequence[int] | int | None,
    data: Tensor | None,
    count: int,
    seed: int,
) -> tuple[Tensor, Literal["model", "data"]]:
    """x_0 (count, *event), and where they are from."""
    if (event is None) == (data is None) or (data is None and model is None):
        raise ValueError(
            "x_0 are samples of the model, whose shape event= says, or data=, (N, *event): pass "
            "one of the two"
        )
    if data is None:
        given: Any = model
        return sample(given, _shape(count, event), seed=seed).x, "model"
    if not isinstance(data, Tensor) or not data.is_floating_point() or len(data) < count:
        got = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(
            f"data must be a floating-point tensor (N, *event) with N >= {count}, got {got}; pass "
            "fewer replications=, or more data"
        )
    generator = torch.Generator().manual_seed(seed)
    return data[torch.randperm(len(data), generator=generator)[:count].to(data.device)], "data"


def _simulator(measurement: Any) -> Callable[[Tensor, int], Tensor]:
    """Outcomes of a linear measurement."""
    std = getattr(measurement, "noise_std", None)
    if std is None:
        raise ValueError(
            f"{type(measurement).__name__} does not say how its noise is drawn: pass "
            "simulate=, a function (x, seed) that returns outcomes (R, *outcome)"
        )
    size = reals("noise_std", std)
    if not bool((size > 0).all()):
        raise ValueError(
            "calibrate compares log-likelihoods, which a noise_std of 0 does not have: give the "
            "noise of the measurement"
        )

    def simulate(x: Tensor, seed: int) -> Tensor:
        clean: Tensor = measurement.forward(x)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        return clean + (size * noise).to(clean)

    return simulate


def _default(event: Sequence[int]) -> dict[str, Quantity]:
    """The coordinates of small events, projections of large ones."""
    d = math.prod(event)
    if d <= _COORDINATES:
        return {f"x[{i}]": lambda x, i=i: rowwise(x)[:, i] for i in range(d)}  # type: ignore[misc]
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(d, _COORDINATES, generator=generator, dtype=torch.float64)
    directions, _ = torch.linalg.qr(wide)
    return {
        f"projection {i}": lambda x, v=directions[:, i]: rowwise(x) @ v.to(x)  # type: ignore[misc]
        for i in range(_COORDINATES)
    }


def _check_outcomes(y: object, count: int) -> None:
    if not isinstance(y, Tensor) or not y.ndim or len(y) != count:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"simulate(x, seed) must return an outcome for each x, ({count}, *outcome); got {got}"
        )
    if not bool(torch.isfinite(y).all()):
        raise ValueError(
            "outcomes hold numbers that are not finite: look at the data and at simulate"
        )


def _check_draws(found: object, shape: tuple[int, ...]) -> None:
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"method must return draws (R, n, *event) = {shape}, got {got}")
    if not bool(torch.isfinite(found).all()):
        raise ValueError("method returned draws that are not finite")


def _ranks(
    x: Tensor,
    draws: Tensor,
    y: Tensor,
    measurement: Measurement,
    quantities: Mapping[str, Quantity],
    generator: torch.Generator,
) -> Tensor:
    """int64 (quantities, R): how many draws are below x_0; ties are broken at random."""
    n = draws.shape[1]
    flat, each = draws.flatten(0, 1), y.repeat_interleave(n, dim=0)
    with torch.no_grad():
        values = [(name, f(x), f(flat)) for name, f in quantities.items()]
        likelihoods = (measurement.log_likelihood(x, y), measurement.log_likelihood(flat, each))
    found = []
    for name, own, others in [*values, (_LIKELIHOOD, *likelihoods)]:
        if own.shape != (len(x),) or others.shape != (len(flat),):
            raise ValueError(
                f"quantity {name!r} must return one number for each of x (N, *event), "
                f"({len(x)},), got {tuple(own.shape)}"
            )
        if bool(own.isnan().any() | others.isnan().any()):
            raise ValueError(
                f"quantity {name!r} is NaN at some x_0 or draws, and NaN has no rank: give a "
                "function that is a number everywhere"
            )
        others = others.reshape(-1, n)
        below = (others < own[:, None]).sum(dim=1).cpu()
        equal = (others == own[:, None]).sum(dim=1).cpu()
        place = torch.rand(len(x), generator=generator, dtype=torch.float64)
        found.append(below + (place * (equal + 1)).long())
    return torch.stack(found)
