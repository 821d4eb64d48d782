"""Conditional networks that return any prediction of laws that are known, one for each label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from reparametrised import reparametrised
from torch import Tensor

import sdediff as sd
from sdediff.exact.law import Law


def labelled(laws: Sequence[Law], sde: sd.LinearSDE, predicts: str = "v") -> sd.ScoreModel:
    """A model of net(x, t, label), whose ``label`` (B,) names the law of each row."""
    models = [reparametrised(law.model(sde), predicts) for law in laws]

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        each = torch.stack([model.net(x, t) for model in models])
        return each[label, torch.arange(len(x), device=x.device)]

    return sd.ScoreModel(net, sde, predicts, sigma_data=0.7, data_std=1.0, time_dtype=torch.float64)
