"""What is trained, on what and by what: checked before any work."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sdediff.calls import check_condition
from sdediff.model import ScoreModel
from sdediff.normalizer import coordinate_moments
from sdediff.objectives import Objective
from sdediff.operator import Operator
from sdediff.suitability import unsuited

__all__ = ["check_about", "check_objective", "check_trained", "look_at"]


def check_trained(model: ScoreModel, data: Tensor, condition: Mapping[str, Tensor]) -> None:
    """A TypeError or ValueError unless it is a network to train, on finite data (N, *event) with
    conditions (N, ...).
    """
    if not isinstance(model, ScoreModel) or not isinstance(model.net, nn.Module):
        mend = (
            "train the one inside, fit(operator.model, ...)"
            if isinstance(model, Operator)
            else "wrap it: ScoreModel(net, sde)"
        )
        raise TypeError(
            f"model must be a ScoreModel around a torch module, got {type(model).__name__}; {mend}"
        )
    if not isinstance(data, Tensor):
        raise TypeError(
            f"data must be a floating-point tensor (N, *event), got {type(data).__name__}; "
            f"{_way_out(data)}"
        )
    if data.ndim < 1 or not data.is_floating_point() or len(data) < 1:
        got = f"{data.dtype} of shape {tuple(data.shape)}"
        raise TypeError(
            f"data must be a floating-point tensor (N, *event), got {got}; images as x.float() / "
            "127.5 - 1, say"
        )
    bad = int((~torch.isfinite(data)).sum())
    if bad:
        raise ValueError(
            f"data contains {bad} values that are not finite; drop or mend those samples"
        )
    _ = check_condition(condition, len(data), model.net)


def _way_out(data: object) -> str:
    """How to make a tensor of what was given as data."""
    if isinstance(getattr(data, "x", None), Tensor):
        labels = isinstance(getattr(data, "labels", None), Tensor)
        return "pass data.x" + (
            ", and condition={'labels': data.labels} if the network takes labels" if labels else ""
        )
    if isinstance(data, torch.utils.data.DataLoader):
        return (
            "join its batches: torch.cat([batch[0] for batch in loader]), or [batch for batch in "
            "loader] if they are tensors"
        )
    if isinstance(data, torch.utils.data.Dataset):
        return (
            "stack its samples: torch.stack([sample[0] for sample in data]), or list(data) if "
            "they are tensors"
        )
    if isinstance(data, np.ndarray):
        return "pass torch.from_numpy(data).float()"
    return "make one of it, torch.tensor(data) or torch.stack(list(data)) say"


def look_at(model: ScoreModel, data: Tensor, mask: Tensor | None) -> None:
    """Warn where the data, as the model sees them, do not suit its SDE; keep their standard
    deviation if none is declared.
    """
    if model.normalizer is not None:
        model.normalizer.check(data.shape[1:])
    found = coordinate_moments(data, mask)
    if len(data) > 1 and not bool(found.variance.any()):
        warnings.warn(
            f"the {len(data)} samples are all the same, so that their standard deviation is 0: a "
            "model of them "
            "can draw nothing but this one",
            stacklevel=3,
        )
    if model.normalizer is not None:
        found = model.normalizer.moments(found)
    if wrong := unsuited(model.sde, *found.existing):
        warnings.warn(wrong, stacklevel=3)
    if model.declared_data_std is None and bool(found.variance.any()):
        model.declared_data_std = found.data_std


def check_objective(loss: Objective, mask: Tensor | None) -> None:
    """A TypeError unless ``loss`` is a function, which takes a mask where there is one."""
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(
            "loss must be a function loss(model, x_0, condition) -> (B,), DDPMLoss(chain) say; "
            f"got {loss!r}"
        )
    if mask is not None and "mask" not in inspect.signature(loss).parameters:
        raise TypeError(
            f"{loss!r} takes no mask: a loss for padded data is called as loss(model, x_0, "
            "condition, mask=mask)"
        )


def check_about(about: Mapping[str, object] | None) -> None:
    """A TypeError unless it is a dict or None."""
    if about is not None and not isinstance(about, Mapping):
        raise TypeError(
            f"about must be a dict of what is kept of the data, {{'name': 'rings'}} say; got "
            f"{about!r}"
        )
