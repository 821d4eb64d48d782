"""The restoration loss of cold diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdediff.calls import Condition, check_condition
from sdediff.degradation.base import Degradation
from sdediff.degradation.sampling import check_degraded
from sdediff.masks import kept, mean_over
from sdediff.objectives.objective import Batch, Loss
from sdediff.objectives.times import uniform
from sdediff.predict import outputs
from sdediff.protocols import Model, Rows
from sdediff.sde.base import as_time
from sdediff.solvers.given import described

__all__ = ["RestorationLoss"]


@dataclass(frozen=True)
class RestorationLoss(Loss):
    """1 / d ||R(D(x_0, t), t) - x_0||_1, at one random level t = i T / N a sample (Bansal et al.
    2022, arXiv 2208.09392, eq. 1), d being the number of coordinates of an event.

    R is the model's prediction of the data, D its process, which offers ``degrade``. The process's
    own conditions are drawn where they are not given. ``stratified`` spreads the levels of a batch
    evenly.
    """

    takes: ClassVar[tuple[str, ...]] = ("t",)
    stratified: bool = False

    def check(self, model: Model, x_0: Tensor, condition: Condition | None = None) -> None:
        """Raise a ValueError unless the model predicts data x_0 (B, *event) under a degradation,
        which is deterministic and keeps their shape; `fit` asks before it begins.
        """
        process = model.sde
        if "degrade" not in process.offers or model.predicts != "data":
            raise ValueError(
                "RestorationLoss needs a model that predicts 'data' under a degradation, "
                f"ScoreModel(net, Blur(), 'data') say; got {model.predicts!r} under {process!r}"
            )
        generator = torch.Generator().manual_seed(0)
        rows = Rows.of(len(x_0), self._condition(process, x_0, condition, generator))
        time = torch.full((len(x_0),), process.t_max, dtype=torch.float64)
        check_degraded(x_0, lambda: process.degrade(x_0, time, rows))
        vars(self)["_checked"] = process

    @staticmethod
    def _condition(
        process: Degradation,
        x_0: Tensor,
        given: Condition | None,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """The conditions, the process's own drawn where they are not given."""
        condition = check_condition(given, len(x_0), None, x_0.device)
        if process.conditions <= condition.keys():
            return condition
        return {**process.draw(x_0, generator), **condition}

    def losses(self, batch: Batch) -> Tensor:
        model, process = batch.model, batch.model.sde
        batch = batch.prepared()
        x_0, count = batch.x_0, len(batch.x_0)
        if vars(self).get("_checked") is not process:
            self.check(model, x_0, batch.condition)
        time = batch.at
        if time is None:
            u = uniform(count, batch.generator, stratified=self.stratified)
            level = (u * process.levels).floor().clamp(max=process.levels - 1) + 1
            time = level * (process.T / process.levels)
        time = process.check_time(as_time(time))
        if time.shape != (count,):
            raise ValueError(f"t must have shape ({count},), one a sample, got {described(time)}")
        condition = self._condition(process, x_0, batch.condition, batch.generator)
        rows = Rows.of(count, condition, batch.mask)
        x_t = kept(process.degrade(x_0, time, rows), batch.mask)
        restored = outputs(model, x_t, time, condition, batch.mask).value
        return mean_over((restored - x_0).abs(), batch.mask)
