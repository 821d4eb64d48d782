"""What is trained, on what and by what: checked before any work."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdediff.calls import Condition, check_condition, check_taken, let_check
from sdediff.masks import mask_of
from sdediff.model import ScoreModel
from sdediff.normalizer import coordinate_moments
from sdediff.objectives import ConditionDropout, Objective
from sdediff.objectives.objective import clean_of
from sdediff.operator import Operator
from sdediff.protocols import Model, facts
from sdediff.solvers.given import real
from sdediff.sources import Source
from sdediff.suitability import off_scale, unsuited

__all__ = ["Looked", "check_about", "looked_at"]


class Looked(NamedTuple):
    """What `looked_at` finds."""

    loss: Objective
    few: Tensor
    """Some of the data, or all."""
    condition: dict[str, Tensor]
    """What stands beside them."""
    clean: Tensor
    """x_0 of them, in the user's units."""
    mask: Tensor | None
    """Which of its coordinates exist."""


def looked_at(given: Model, loss: Objective, source: Source, drop: float) -> Looked:
    """Check model, data and loss against one another before any work, and warn where they do not
    suit each other; the loss drops conditions for a share ``drop`` of the samples.
    """
    model: Any = getattr(given, "learner", given)
    few, beside, mask = source.probe()
    found = _check_trained(model, few, beside)
    clean = clean_of(loss, few)
    _check_shape_of(given, clean)
    exist = mask_of(mask, clean)
    _check_objective(loss, exist)
    let_check(model.net, found, clean.shape[1:])
    loss = _with_dropout(model, loss, found, drop)
    source.keep(found, exist)
    _look_at(model, clean, exist)
    _tried(loss, model, clean, found)
    return Looked(loss, few, found, clean, exist)


def _check_trained(
    model: ScoreModel, data: Tensor, condition: Condition | None
) -> dict[str, Tensor]:
    """The conditions, (N, ...); a TypeError or ValueError unless there is a network to train that
    takes them, and finite data (N, *event).
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
    found = check_condition(condition, len(data), model.net)
    own = model.sde.conditions
    check_taken({name: found[name] for name in found.keys() - own}, model.net, own)
    for name, value in found.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"condition {name!r} contains values that are not finite")
    return found


def _with_dropout(
    model: ScoreModel, loss: Objective, condition: Mapping[str, Tensor], drop: float
) -> Objective:
    """The loss, conditions being dropped for a share ``drop`` of the samples; the ``null`` of a
    loss that drops them itself is kept with a model that has none.
    """
    drop = real("drop", drop)
    if not 0 <= drop < 1:
        raise ValueError(
            "drop must be the share of samples that are trained without their condition, in "
            f"[0, 1); got {drop!r}"
        )
    if not drop:
        null = getattr(loss, "null", None)
        if model.null is None and isinstance(null, Mapping):
            model.null = dict(null)
        return loss
    if model.null is None:
        raise ValueError(
            "drop needs to know what the network is handed in place of a condition: "
            "ScoreModel(net, sde, null={'label': 10}), say, or for a model made elsewhere "
            "loss=ConditionDropout(loss, null={'label': 10}) in place of drop"
        )
    if missing := sorted(model.null.keys() - condition.keys()):
        raise ValueError(
            f"drop: the model's null names {missing}, and condition has {sorted(condition)}: pass "
            "condition={...} with them"
        )
    _check_null(model, condition)
    return ConditionDropout(loss, rate=drop)


def _check_null(model: ScoreModel, condition: Mapping[str, Tensor]) -> None:
    """A ValueError unless the model's null has the shapes of the conditions that it replaces, and
    is one that the network takes.
    """
    null = {name: torch.as_tensor(value) for name, value in (model.null or {}).items()}
    for name, value in null.items():
        one = condition[name].shape[1:]
        if value.shape not in ((), one, (1, *one)):
            raise ValueError(
                f"drop: the model's null has {name!r} of shape {tuple(value.shape)}, and the "
                f"condition of a sample {tuple(one)}: give a number, or a tensor of that shape"
            )
    few = {
        name: null[name].to(value.dtype).expand(value[:1].shape) if name in null else value[:1]
        for name, value in condition.items()
    }
    try:
        check_condition(few, 1, model.net)
    except (TypeError, ValueError) as error:
        raise ValueError(f"drop: the model's null does not do: {error}") from error


def _look_at(model: ScoreModel, data: Tensor, mask: Tensor | None) -> None:
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
            stacklevel=4,
        )
    if model.normalizer is not None:
        found = model.normalizer.moments(found)
    if wrong := unsuited(model.sde, *found.existing):
        warnings.warn(wrong, stacklevel=4)
    declared = model.declared_data_std
    if declared is None and bool(found.variance.any()):
        model.declared_data_std = found.data_std
    elif declared is not None and (wrong := off_scale(declared, found.data_std)):
        warnings.warn(f"data: {wrong}", stacklevel=4)


def _check_shape_of(model: Model, clean: Tensor) -> None:
    """A ValueError unless x_0 (N, *event) has a shape that the model's states may have."""
    check = facts(model).check_event
    if check is not None:
        check(clean.shape[1:])


def _check_objective(loss: Objective, mask: Tensor | None) -> None:
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


def _tried(
    loss: Objective, model: ScoreModel, data: Tensor, condition: Mapping[str, Tensor]
) -> None:
    """Let a loss that has a ``check``, called as it is itself, look at two samples as it will see
    them.
    """
    look = getattr(loss, "check", None)
    if look is not None:
        few = data[:2] if model.normalizer is None else model.normalizer.normalize(data[:2])
        look(model, few, {name: value[:2] for name, value in condition.items()})


def check_about(about: Mapping[str, object] | None) -> None:
    """A TypeError unless it is a dict or None."""
    if about is not None and not isinstance(about, Mapping):
        raise TypeError(
            f"about must be a dict of what is kept of the data, {{'name': 'rings'}} say; got "
            f"{about!r}"
        )
