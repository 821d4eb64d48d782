"""Averages of the weights of a network while it is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["averaged", "copied", "part_of"]


def copied(module: nn.Module, decay: float) -> Any:
    """`averaged`; a ValueError where the network cannot be copied."""
    try:
        return averaged(module, decay)
    # what its own attributes make of a deep copy
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{type(module).__name__} cannot be copied, which averaging its weights needs "
            f"({error}); a parametrization, "
            "torch.nn.utils.parametrizations.weight_norm say, can be where an older hook cannot"
        ) from error


def part_of(number: int) -> str:
    """What the part of the file with an average is called."""
    return f"ema{number or ''}"


def averaged(net: nn.Module, decay: float) -> Any:
    """A copy of ``net`` that follows it with decay min(decay, (1 + k) / (10 + k)) at update k."""

    @torch.no_grad()
    def average(mean: Any, current: Any, count: Any) -> None:
        k = int(count)
        torch._foreach_lerp_(mean, current, 1 - min(decay, (1 + k) / (10 + k)))

    return torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=average, use_buffers=False)
