"""Models made of a model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Final

from torch import Tensor

from sdediff.predict import Predictions
from sdediff.protocols import Like, Model, Output, Piece, Rows, ask, check_model, value_of
from sdediff.solvers.grid import COARSE

__all__ = ["Operator"]

_HANDED_ON: Final = frozenset(
    "sde predicts device dtype has_weights data_std declared_data_std detail_std sigma_data "
    "normalizer breaks extras cost guidance_scale net check_event "
    "network time time_dtype learned_variance null".split()
)
"""What an operator has from its model, unless it says it itself."""


class Operator(Predictions):
    """Base of models that are made of another ``model``, such as guidance and constraints.

    A subclass overrides ``evaluate``. Without that, the operator returns what the model inside
    returns. Attributes of the model inside (its SDE, its device, the size of its data) are those of
    the operator too, but not a ``detail_std`` above 0.15 ``data_std``: samples of a posterior or
    under guidance may differ less than the data. A subclass declares where it differs:

    ``predicts``: if it returns another prediction than the model inside.
    ``cost``: how often it evaluates the model inside at most, if that is more than once.
    ``breaks``: the times at which the field jumps, if it does.
    ``extras``: ``()`` if the model inside has extras and the subclass returns the prediction alone.
    ``guidance_scale``: s, if it returns u + s (c - u).

    If the model inside is made of a model too, costs multiply, breaks add up, and the
    largest scale counts.
    """

    _same_law = False
    """Whether samples have the law of the model inside."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        check_model(model)
        self.model = model

    def __getattr__(self, name: str) -> Any:
        """What the model inside says; a TypeError if it is a property of the operator that has
        failed.
        """
        if isinstance(inspect.getattr_static(type(self), name, None), property):
            raise TypeError(f"{type(self).__name__}.{name} asks for an attribute that is not there")
        if name in _HANDED_ON:
            value = getattr(self.model, name)
            return self._unless_coarse(value) if name == "detail_std" else value
        return super().__getattr__(name)

    def _unless_coarse(self, detail_std: float | None) -> float | None:
        """What is known of the details of the operator's own law: they may be finer than those of
        the model inside, as a posterior is narrower than its prior. So coarse ones say nothing.
        """
        coarse = detail_std is not None and detail_std > COARSE * self.data_std
        return None if coarse and not self._same_law else detail_std

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[Any]:
        return self.model.at(times, like, piece)

    def ask(self, x: Tensor, at: Any, rows: Rows) -> Tensor | Output:
        """The answer of the model inside, counted: one that counts nothing itself has made one
        evaluation of each row.
        """
        return ask(self.model, x, at, rows)

    def value(self, x: Tensor, at: Any, rows: Rows) -> Tensor:
        """The prediction alone of the model inside, counted: a tensor, with which to compute."""
        return value_of(self.ask(x, at, rows), x, self.model)

    def evaluate(self, x: Tensor, at: Any, rows: Rows) -> Tensor | Output:
        return self.ask(x, at, rows)
