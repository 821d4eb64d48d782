"""Corrections of strong guidance, which act on both of its predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdediff.guidance.pairs import Pair, Pairing, replaced
from sdediff.operator import Operator
from sdediff.predict import affine
from sdediff.predictions import canonical
from sdediff.protocols import Like, Output, Piece, Rows, value_of
from sdediff.solvers import rowwise
from sdediff.solvers.arithmetic import Number, along, own, planned, weighted
from sdediff.solvers.given import real
from sdediff.solvers.masked import kept

__all__ = ["APG", "Corrected", "Rescale"]


class _At(NamedTuple):
    inner: Any
    keep: Number
    """The space's prediction is keep x + push output."""
    push: Number


class Corrected(Operator):
    """Guidance by two predictions, combined in the space that `predicts` names.

    ``model`` is a `Pairing`: `ClassifierFree`, `Auto` or one of your own. A subclass gives
    `combine`.
    """

    model: Pairing

    def __init__(self, model: Pairing, space: str) -> None:
        if not hasattr(model, "pair"):
            raise TypeError(
                f"{type(self).__name__} goes around guidance by two predictions, "
                f"{type(self).__name__}(ClassifierFree(model, ...)) or Auto; got "
                f"{type(model).__name__}"
            )
        super().__init__(model)
        if "kernel" not in model.sde.offers:
            raise ValueError(
                f"{type(self).__name__} combines predictions of {space}, and {model.sde!r} has no "
                "Gaussian kernel, so none: leave it out"
            )
        self.predicts = canonical(space, f"{type(self).__name__}: space")

    def combine(self, own: Tensor, other: Tensor, scale: Number, mask: Tensor | None) -> Tensor:
        """The guided prediction from both, all in the space."""
        raise NotImplementedError(f"{type(self).__name__} has no combine(self, ...)")

    def at(self, times: Tensor, like: Like, piece: Piece | None = None) -> Sequence[_At]:
        pair = affine(self.model, self.predicts, times.reshape(-1))
        columns = planned(len(times), like, *(each.reshape(times.shape) for each in pair))
        inner = self.model.at(times, like, piece)
        return [_At(*row) for row in zip(inner, *columns, strict=True)]

    def evaluate(self, x: Tensor, at: _At, rows: Rows) -> Tensor | Output:
        def inside(out: Tensor) -> Tensor:
            return kept(own(weighted((at.keep, x), (at.push, out)), x, out), rows.mask)

        found = self.model.pair(x, at.inner, rows)
        if not isinstance(found, Pair):
            return replaced(found, inside(value_of(found, x, self.model)))
        mine = inside(value_of(found.own, x, self.model))
        value = self.combine(mine, inside(found.other), found.scale, rows.mask)
        return replaced(found.own, value)


class Rescale(Corrected):
    """Weakens the saturated colours of strong guidance: brings the standard deviation of the guided
    prediction nearer to that of the conditional prediction.

    With c the prediction under the condition, g the guided one, and std over the coordinates of one
    sample, the result is

        phi std(c) / std(g) g + (1 - phi) g

    ``model``: a `ClassifierFree`, `Auto` or other `Pairing`.
    ``phi``: a number in [0, 1]; the paper takes 0.7.
    ``space``: which prediction is rescaled, because the result depends on it. ``"v"`` by default,
    as in the paper, whatever the network predicts.

    An event must have at least two coordinates. A sample with one coordinate under its mask, or
    with a constant guided prediction, is not rescaled.

    Lin et al. 2024 (arXiv 2305.08891, eq. 15 and 16).
    """

    def __init__(self, model: Pairing, phi: float = 0.7, *, space: str = "v") -> None:
        super().__init__(model, space)
        self.phi = real("Rescale: phi", phi)
        if not 0 <= self.phi <= 1:
            raise ValueError(f"Rescale: phi must lie in [0, 1], got {phi!r}")

    def evaluate(self, x: Tensor, at: _At, rows: Rows) -> Tensor | Output:
        if x[0].numel() < 2:
            raise ValueError(
                "Rescale takes standard deviations over the coordinates of a sample: it needs two "
                f"at least, got states of shape {tuple(x.shape)}"
            )
        return super().evaluate(x, at, rows)

    def combine(self, own: Tensor, other: Tensor, scale: Number, mask: Tensor | None) -> Tensor:
        guided = weighted((scale, own), (1.0 - scale, other))
        spread = _std(guided, mask)
        ratio = torch.where(spread > 0, _std(own, mask) / spread, 1.0)
        return guided * along(self.phi * ratio + 1 - self.phi, own)


def _std(x: Tensor, mask: Tensor | None) -> Tensor:
    """The standard deviation of the coordinates of each sample that exist, (rows,)."""
    if mask is None:
        return rowwise(x).std(dim=1, correction=0)
    there = rowwise(mask)
    count = there.sum(dim=1)
    mean = rowwise(x).sum(dim=1) / count
    return (torch.where(there, rowwise(x) - mean[:, None], 0).square().sum(dim=1) / count).sqrt()


class APG(Corrected):
    """Weakens the saturated colours of strong guidance: adaptive projected guidance, without
    momentum.

    The part of the guidance that is parallel to the conditional prediction makes colours too
    strong, and is reduced. In data predictions, with c under the condition, u the other one and s
    the scale,

        d = (c - u) min(1, norm / |c - u|),    d_par = <d, c> / |c|^2 c
        c + (s - 1) (d - d_par + eta d_par)

    ``model``: a `ClassifierFree`, `Auto` or other `Pairing`.
    ``eta``: the share of the parallel part that stays, 0 by default, as in the paper. With 1, and
    without ``norm``, the result is the guidance inside.
    ``norm``: the largest length of the difference over a sample, in the units in which the model
    sees data. None, the default, is no limit.

    This is computed on data predictions, whatever the network predicts. The paper's momentum
    depends on the steps before. It is no function of (x, t), so it is left out.

    Sadat et al. 2024 (arXiv 2410.02416, Algorithm 1).
    """

    def __init__(self, model: Pairing, eta: float = 0.0, norm: float | None = None) -> None:
        super().__init__(model, "data")
        self.eta = real("APG: eta", eta)
        if not math.isfinite(self.eta):
            raise ValueError(f"APG: eta must be finite, a share in [0, 1] as a rule; got {eta!r}")
        self.norm = None if norm is None else real("APG: norm", norm)
        if self.norm is not None and not self.norm > 0:
            raise ValueError(f"APG: norm must be positive, or None; got {norm!r}")

    def combine(self, own: Tensor, other: Tensor, scale: Number, mask: Tensor | None) -> Tensor:
        apart = own - other
        if self.norm is not None:
            length = rowwise(apart).norm(dim=1)
            apart = apart * along((self.norm / length).clamp(max=1.0), own)
        square = rowwise(own).square().sum(dim=1).clamp(min=torch.finfo(own.dtype).tiny)
        share = rowwise(apart * own).sum(dim=1) / square
        moved = apart - (1 - self.eta) * along(share, own) * own
        return weighted((1.0, own), (scale - 1.0, moved))
