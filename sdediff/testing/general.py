"""SDEs without a Gaussian kernel: what can be said of any drift and diffusion."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from sdediff.testing.context import Context, times_tensor
from sdediff.testing.identity import ALGEBRAIC, Comparison, compare, identity, place, require
from sdediff.testing.states import event_shapes, irregular

__all__: list[str] = []


@identity("finite drift", "general")
def finite_drift(context: Context) -> Iterator[Comparison]:
    """drift(x, t) is finite in the usable range, and shaped as x."""
    for shape in event_shapes(context):
        x = irregular(shape, 0.0)
        for t in context.times:
            out = context.sde.drift(x, times_tensor(t))
            if out.shape != x.shape:
                raise ValueError(
                    f"drift(x, t) returns shape {tuple(out.shape)} for x of shape {shape}"
                )
            where = f"t = {t:.6g}"
            yield require(
                bool(torch.isfinite(out).all()),
                f"drift of {shape} is not finite at {where}",
                where=where,
            )


@identity("rows are independent", "general", after=("finite drift",))
def rows(context: Context) -> Iterator[Comparison]:
    """The drift of a sample does not depend on the others in its batch."""
    for shape in event_shapes(context):
        x = irregular(shape, 3.0)
        for t in context.times[:: max(len(context.times) // 4, 1)]:
            time = times_tensor(t)
            whole = context.sde.drift(x, time)
            each = torch.cat([context.sde.drift(row[None], time) for row in x])
            scale = max(float(each.abs().max()), float(whole.abs().max()), 1e-30)
            yield compare(
                f"drift of {shape}",
                whole.numpy(),
                each.numpy(),
                {"t": float(t)},
                ALGEBRAIC,
                scale=scale,
                hint="a mean or sum over the batch: reduce over the dimensions of the event only",
            )


@identity("diffusion >= 0", "general")
def diffusion(context: Context) -> Iterator[Comparison]:
    """diffusion(t) is finite and not negative in the usable range, and shaped as t."""
    times = context.times
    g = context.value("diffusion", times)
    for bad, text, hint in (
        (
            ~np.isfinite(g),
            "not finite",
            "a root of a negative number or a division by 0: set t_min and t_max past it",
        ),
        (g < 0, "negative", "a sign"),
    ):
        which = np.flatnonzero(bad)
        where = place({"t": times}, int(which[0]), times.shape) if len(which) else ""
        yield require(not len(which), f"diffusion is {text} at {where}", where=where, hint=hint)
