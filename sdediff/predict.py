"""One evaluation of a model at given states and times: its own prediction, or any other that
follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdediff.calls import Condition, check_condition, check_floating
from sdediff.drawing import note_times
from sdediff.predictions import (
    Pair,
    canonical,
    coefficients_of,
    conversion,
    prediction_of,
    singular,
)
from sdediff.protocols import (
    Like,
    Model,
    Output,
    Piece,
    Rows,
    breaks_of,
    entries_of,
    extras_of,
    facts,
    sigma_data,
    value_of,
)
from sdediff.sde.base import as_time
from sdediff.solvers import expand
from sdediff.solvers.arithmetic import at_least_float32, own, weighted

if TYPE_CHECKING:
    from sdediff.constraints import Constrained, Constraint

__all__ = ["Predictions", "affine", "conversion_of", "outputs", "predict", "target"]


def outputs(
    model: Model,
    x: Tensor,
    t: Tensor,
    condition: Condition | None = None,
    mask: Tensor | None = None,
) -> Output:
    """The model's own outputs at states x (B, *event) and float64 host times t, () or (B,), in
    float32 at least.

    ``mask``, bool of the shape of x, says which coordinates exist; None: all.
    """
    x = at_least_float32(x)
    note_times(t)
    (at,) = entries_of(
        model, t[None], Like.of(x), None, breaks_of(model) if hasattr(model, "breaks") else ()
    )
    found = model.evaluate(x, at, _rows(model, x, condition, mask))
    value = value_of(found, x, model)
    return Output(value, **extras_of(found, model, getattr(model, "extras", ())))


def conversion_of(model: Model, name: str, t: Tensor) -> Pair:
    """(A, B) such that ``name`` is A x + B times the model's own prediction, shaped as float64 host
    times t.

    Not finite where ``name`` does not follow from what the model predicts.
    """
    return conversion(model.sde, prediction_of(model.predicts), name, t, sigma_data(model))


def affine(model: Model, name: str, t: Tensor) -> Pair:
    """`conversion_of`, finite: a ValueError says where ``name`` does not follow from what the model
    predicts.
    """
    pair = conversion_of(model, name, t)
    bad = ~torch.isfinite(torch.stack(pair)).all(dim=0)
    if bool(bad.any()):
        source = prediction_of(model.predicts)
        raise ValueError(
            singular(model.sde, source, name, t[bad].reshape(-1)[0], sigma_data(model))
        )
    return pair


def target(model: Model, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the model should return at alpha x_0 + sigma noise, for float64 host times t, () or
    (B,).
    """
    p, q = coefficients_of(prediction_of(model.predicts), model.sde, t, sigma_data(model))
    return expand(p, x_0) * x_0 + expand(q, x_0) * noise


def predict(
    model: Model,
    name: str,
    x: Tensor,
    t: Tensor | float,
    condition: Condition | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """The prediction called ``name`` at (x, t) by one evaluation: ``noise``, ``data``, ``score``,
    ``v`` or ``flow``.

    ``x``: states (B, *event).
    ``t``: their time, a number or (B,), in the SDE's usable range.
    ``condition``: tensors (B, ...) by the names of the network's arguments.
    ``mask``: bool of the shape of x, which says which coordinates exist; None: all.

    Returns (B, *event). It is computed in float32 at least, and rounded once to the dtype of x.
    Raises ValueError where the prediction does not follow from what the model predicts, at t = 0
    say, and ValueError or TypeError where the arguments do not fit.
    """
    name = canonical(name, "a prediction")
    time = _time(model, x, t)
    a, b = affine(model, name, time)
    kind, x = x.dtype, at_least_float32(x)
    out = outputs(model, x, time, condition, mask).value
    return own(weighted((a, x), (b, out)), x, out).to(kind)


def _time(model: Model, x: Tensor, t: Tensor | float) -> Tensor:
    """The time as float64 on the host; a TypeError or ValueError unless x and t fit."""
    check_floating("x", x)
    time: Tensor = model.sde.check_time(as_time(t))
    if time.ndim and time.shape[0] != x.shape[0]:
        raise ValueError(
            f"t must be a number or (B,) with B = {x.shape[0]} as in x, got shape "
            f"{tuple(time.shape)}"
        )
    return time


def _rows(model: Model, x: Tensor, condition: Condition | None, mask: Tensor | None) -> Rows:
    if condition is not None:
        condition = check_condition(
            condition, len(x), facts(model).net, x.device, event=x.shape[1:]
        )
    return Rows.of(len(x), condition, mask)


_DERIVED = ("data", "noise", "score", "v", "flow")


class Predictions(nn.Module):
    """What follows from ``evaluate``, the one method of a model to override: every prediction, at
    states and times.

    The methods take x (B, *event), t as a number or one number a sample, (B,), inside the SDE's
    usable range, and ``**condition`` for the network: a tensor with a row for each sample, or one
    value for all.
    """

    sde: Any  # SDE at least, with all of LinearSDE where it offers "kernel"
    predicts: str

    def __init_subclass__(cls) -> None:
        """Raise a TypeError if the class overrides what is derived: solvers would not see it."""
        super().__init_subclass__()
        wrong = [name for name in _DERIVED if name in vars(cls)]
        if wrong:
            raise TypeError(
                f"{cls.__name__} overrides {', '.join(wrong)}, which samplers, losses and "
                "likelihoods "
                "do not call: override evaluate(self, x, at, rows), from which every prediction "
                "follows"
            )

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[Any]:
        """As `sdediff.Model` has it."""
        raise NotImplementedError(f"{type(self).__name__} has no at(self, times, like, piece)")

    def evaluate(self, x: Tensor, at: Any, rows: Rows) -> Tensor | Output:
        """As `sdediff.Model` has it."""
        raise NotImplementedError(f"{type(self).__name__} has no evaluate(self, x, at, rows)")

    def forward(self, x: Tensor, t: Tensor | float, **condition: Tensor | float) -> Tensor:
        """The model's own prediction, of the kind that ``predicts`` names, in the dtype of x."""
        return outputs(self, x, _time(self, x, t), condition).value.to(x.dtype)

    def score(self, x: Tensor, t: Tensor | float, **condition: Tensor | float) -> Tensor:
        """grad log p_t(x), (B, *event)."""
        return predict(self, "score", x, t, condition)

    def noise(self, x: Tensor, t: Tensor | float, **condition: Tensor | float) -> Tensor:
        """E[noise | x_t = x] = -sigma score."""
        return predict(self, "noise", x, t, condition)

    def data(self, x: Tensor, t: Tensor | float, **condition: Tensor | float) -> Tensor:
        """E[x_0 | x_t = x] = (x + sigma^2 score) / alpha."""
        return predict(self, "data", x, t, condition)

    def v(self, x: Tensor, t: Tensor | float, **condition: Tensor | float) -> Tensor:
        """alpha E[noise | x] - sigma E[x_0 | x]."""
        return predict(self, "v", x, t, condition)

    def flow(self, x: Tensor, t: Tensor | float, **condition: Tensor | float) -> Tensor:
        """The velocity of the probability flow, f x - g^2 score / 2."""
        return predict(self, "flow", x, t, condition)

    def constrained(self, constraint: Constraint) -> Constrained:
        """This model, its network shared, with ``constraint`` applied to E[x_0 | x_t] wherever it
        is predicted or sampled.

        `Clip` and `DynamicThreshold` ship; a function of your own treats every sample by itself.
        Every prediction follows from the constrained data, so that every solver sees it. Losses do
        not.

        ``constraint(x_0, rows)`` is told which samples of the call it sees, int64 indices (k,) on
        the host: others have arrived, or wait in another part of ``batch_size``.
        ``constraint(x_0)`` always sees as many samples as the call has, in their order; what it
        returns for absent ones is dropped. With an attribute ``samplewise = True``, as those that
        ship, it is handed only those that are there. Under a `Normalizer` it sees and returns x_0
        in the user's units.
        """
        from sdediff.constraints import Constrained

        if not callable(constraint):
            raise TypeError(
                "constraint must be a function of the data prediction, Clip(-1, 1) say; got "
                f"{constraint!r}"
            )
        if "kernel" not in self.sde.offers and self.predicts != "data":
            raise ValueError(
                f"{self.sde!r} has no Gaussian kernel, so no data prediction to constrain"
            )
        return Constrained(self, constraint)
