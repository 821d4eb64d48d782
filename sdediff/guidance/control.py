"""How strongly a network is controlled by an image, and at which noise levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.guidance.base import Guidance, Interval, Scale
from sdediff.protocols import Like, Model, Output, Piece, Rows
from sdediff.solvers.arithmetic import Number
from sdediff.solvers.given import nearest

__all__ = ["Control"]


class _At(NamedTuple):
    scale: Number | None
    inner: Any


class Control(Guidance):
    """A model whose network has a ControlNet, at a scale and in an interval of noise levels.

    The network (`sdediff.interop.Controlled`) adds the residuals of the ControlNet ``name`` to its
    own, each times the condition ``<name>_scale``, (B,), which is 1 where the call has none:

        h_i + scale(t) <name>_scale r_i(x_t, t, image)

    ``scale`` and ``interval`` are as in `Guidance`. At scale 0 and outside the interval the
    ControlNet is not evaluated, and the network is as without it. Each of several ControlNets has
    its own operator: ``Control(Control(model, 1.0, "edges"), 0.5, "depth", (-4, 4))``.

    ``ClassifierFree(Control(model), 3.0, null={"text": ...})`` controls both predictions, as the
    published pipelines do. With ``"<name>_scale": 0.0`` in ``null``, and ``"<name>_scale": 1.0`` in
    the call's condition, only the conditional prediction is controlled. The pipelines call this
    guess mode.

    Raises ValueError before the first evaluation if the call has no condition ``name``. (Zhang et
    al. 2023, arXiv 2302.05543.)
    """

    def __init__(
        self,
        model: Model,
        scale: Scale = 1.0,
        name: str = "control",
        interval: Interval | None = None,
    ) -> None:
        super().__init__(model, scale, interval)
        self.name = name

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[_At]:
        strengths = self.strengths(times, like, piece)
        return list(map(_At, strengths, self.model.at(times, like, piece)))

    def evaluate(self, x: Tensor, at: _At, rows: Rows) -> Tensor | Output:
        condition, scale = dict(rows.condition), self.strength(at.scale, x, rows)
        if self.name not in condition:
            hint = nearest(self.name, condition)
            raise ValueError(
                f"Control: the call has no condition {self.name!r}{hint}: pass "
                f"condition={{{self.name!r}: image}}, (B, C, H, W)"
            )
        number = 0.0 if scale is None else scale
        factor = torch.as_tensor(number, dtype=x.dtype, device=x.device).reshape(-1)
        own = condition.get(f"{self.name}_scale")
        if not isinstance(number, Tensor) and number == 0.0:
            del condition[self.name]
        condition[f"{self.name}_scale"] = factor.expand(len(x)) * (1.0 if own is None else own)
        return self.ask(x, at.inner, rows.under(condition))
