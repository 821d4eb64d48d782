"""Universal guidance: by any differentiable function of the data prediction, or of the state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sdediff.guidance.base import Guidance, Interval, Scale
from sdediff.guidance.conditions import given_to, left_for, names_of
from sdediff.guidance.gradients import gradient
from sdediff.guidance.pairs import replaced
from sdediff.model import ScoreModel
from sdediff.predict import conversion_of
from sdediff.protocols import Like, Model, Output, Piece, Rows, facts, value_of
from sdediff.solvers.arithmetic import Number, planned, weighted
from sdediff.solvers.given import check_choice, integer, real
from sdediff.traced import plain, traced
from sdediff.units import Units

__all__ = ["Loss"]

_RETURNS = (
    "a number for each sample, a tensor ({},); got {}. Take sums or means over the event alone, "
    "loss.flatten(1).mean(1) say"
)


class _At(NamedTuple):
    inner: Any
    scale: Any
    dtype: torch.dtype
    """What f is handed."""
    keep: Number = 0.0
    """x_0 = keep x + push output."""
    push: Number = 0.0
    pull: Number = 0.0
    """The output for a gradient of 1."""
    shift: Number = 0.0
    """The output for data of 1."""


class Loss(Guidance):
    """Universal guidance: samples are led to where ``f(x_0, **condition)`` is small.

    ``f`` is any differentiable function of the data prediction x^_0 = E[x_0 | x_t], (B, *event), in
    your units. It returns a number for each sample, (B,), which must depend on this sample alone.
    It sees clean data, so networks that never saw noise will do. It gets those of the call's
    conditions that its signature names. Conditions that the model's network does not name are for f
    alone.

    **Forward guidance** adds scale sigma grad f to the noise prediction, which is scale grad f
    added to minus the score. ``gradient`` says which gradient:

    - ``"network"``: of f(x^_0(x_t)) in x_t, through the network, as published;
    - ``"data"``: stopped before the network: alpha d^2 / (sigma^2 + alpha^2 d^2) times the gradient
      of f in x^_0, where the factor is the derivative of x^_0 in x_t for data N(., d^2), with d the
      model's ``data_std`` (for d = 1 under VP: with v held constant). No pass back through the
      network is needed;
    - ``"state"``: f sees x_t in place of x^_0.

    With scale = 0 there is no forward guidance. The published s(t) = s sqrt(1 - alpha_bar) is scale
    = s here.

    **Backward guidance** takes ``backward`` steps of gradient descent on the data prediction, each
    of length ``rate`` times the gradient, from x^_0 to x^_0 + D, and adds -alpha / sigma D to the
    noise prediction, which moves the data prediction by D. (The authors' code starts after forward
    guidance, and descends by Adam.) **Recurrence** acts on steps: it is the solver
    `sdediff.solvers.Recurrence`.

    With f = -log p(y | x_0), gradient="network" and backward=0 this is `posterior.DPS`. An
    evaluation costs one of the model, and one backward pass for forward guidance and for each
    backward step, which `Solution.backward` counts. ``scale`` and ``interval``: as in `Guidance`.

    Raises ValueError before the first evaluation if f returns another shape, or a result that does
    not depend on x_0; and at the first evaluation if the network's output has no gradient.

    Bansal et al. 2023 (arXiv 2302.07121, eq. 6 to 8 and Algorithm 1).
    """

    def __init__(
        self,
        model: Model,
        f: Callable[..., Tensor],
        scale: Scale = 1.0,
        *,
        gradient: Literal["network", "data", "state"] = "network",
        backward: int = 0,
        rate: float | None = None,
        interval: Interval | None = None,
    ) -> None:
        if not callable(f):
            raise TypeError(f"Loss: f must be a function f(x_0, **condition) -> (B,), got {f!r}")
        check_choice("Loss: gradient", gradient, ("network", "data", "state"))
        super().__init__(model, scale, interval)
        if "kernel" not in model.sde.offers:
            raise ValueError(
                f"Loss: {model.sde!r} has no Gaussian kernel, so no data prediction for f"
            )
        self.gradient = gradient
        self.backward = integer("Loss: backward", backward, 0)
        self.rate = _rate(rate, self.backward, gradient)
        self.takes = names_of(f, 1)
        self.f = ScoreModel(f, model.sde, "score")  # for the dtype and the mode of its networks
        known = facts(model)
        self._data_std = known.data_std
        vars(self)["_units"] = Units(1.0, known.normalizer)

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[_At]:
        with torch.inference_mode(False):
            return self._entries(plain(times), like, piece)

    def _entries(self, times: Tensor, like: Like, piece: Piece | None) -> Sequence[_At]:
        scales = self.strengths(times, like, piece)
        inner = self.model.at(times, like, piece)
        dtype = self.f.dtype or like.dtype
        if scales[0] is None:
            return [_At(entry, None, dtype) for entry in inner]
        flat = times.reshape(-1)
        keep, push = conversion_of(self.model, "data", flat)
        pull = -1 / conversion_of(self.model, "score", flat)[1]
        if self.gradient == "data":
            alpha, sigma, data_std = self.sde.alpha(flat), self.sde.sigma(flat), self._data_std
            pull = pull * alpha * data_std**2 / (sigma**2 + alpha**2 * data_std**2)
        columns = keep, push, pull, 1 / push
        bad = ~torch.isfinite(torch.stack(columns)).all(dim=0)
        if bool(bad.any()):
            raise ValueError(
                f"Loss: at t = {float(flat[bad][0]):.6g}, where alpha = 0, either x_0 does not "
                f"follow from what the network predicts ({self.model.predicts!r}), or its shift is "
                "not finite: begin later, interval=(-20, math.inf) in log-SNR"
            )
        entries = planned(len(times), like, *(each.reshape(times.shape) for each in columns))
        rows = zip(inner, scales, [dtype] * len(times), *entries, strict=True)
        return [_At(*row) for row in rows]

    def evaluate(self, x: Tensor, at: _At, rows: Rows) -> Tensor | Output:
        scale = self.strength(at.scale, x, rows)
        left = rows.under(left_for(self.model, rows.condition, self.takes))
        forward = not (isinstance(scale, float) and scale == 0.0)
        if scale is None or not (forward or self.backward):
            return self.ask(x, at.inner, left)
        if rows.monitor.calls == 0:  # its mistakes are told before the network is asked
            self._slope(x, at, rows, graph=False)
        through = forward and self.gradient == "network"
        if through:
            found, data, back, graph = traced(self, x, at.inner, left, at.keep, at.push)
        else:
            found, graph = self.ask(x, at.inner, left), torch.is_grad_enabled()
            data = weighted((at.keep, x), (at.push, value_of(found, x, self.model)))
        value = value_of(found, x, self.model)
        if forward:
            slope = self._slope(x if self.gradient == "state" else data, at, rows, graph=graph)
            if through:
                slope = back(slope)
            else:
                rows.count(0, 1)
            value = weighted((1.0, value), (at.pull, weighted((scale, slope))))
        if self.backward:
            value = weighted((1.0, value), (at.shift, self._descended(data, at, rows, graph)))
        return replaced(found, value)

    def _descended(self, data: Tensor, at: _At, rows: Rows, graph: bool) -> Tensor:
        """By how much the steps of gradient descent move the data."""
        moved = data
        for _ in range(self.backward):
            moved = weighted((1.0, moved), (-self.rate, self._slope(moved, at, rows, graph=graph)))
        rows.count(0, self.backward)
        return moved - data

    def _slope(self, x: Tensor, at: _At, rows: Rows, *, graph: bool) -> Tensor:
        """The gradient of f in x, of data or states as the model sees them."""

        def see(x: Tensor) -> tuple[Tensor]:
            return (self._units.leave(x, rows.mask).to(at.dtype),)

        named = given_to(self.takes, rows.condition)
        return gradient("Loss: f", self.f.net, x, see, named, _RETURNS, graph=graph)


def _rate(rate: float | None, backward: int, gradient: str) -> float:
    """The length of backward steps."""
    if not backward and rate is None:
        return 0.0
    if not backward or rate is None:
        raise ValueError(
            "Loss: backward steps have a length: give both, backward=5, rate=0.1 say, or neither; "
            f"got backward={backward!r}, rate={rate!r}"
        )
    if gradient == "state":
        raise ValueError(
            "Loss: backward steps move the data prediction, and with gradient='state' f sees "
            "states: take gradient='data' or 'network'"
        )
    found = real("Loss: rate", rate)
    if not 0 < found < math.inf:
        raise ValueError(f"Loss: rate must be a positive finite number, got {rate!r}")
    return found
