"""States of any rank, dtype and device; times as numbers, () or (B,); rows that do not see each
other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdediff.testing.context import Context, array, times_tensor
from sdediff.testing.identity import ALGEBRAIC, Comparison, compare, identity, require
from sdediff.testing.states import ROWS, event_shapes, irregular

__all__: list[str] = []


Method = Callable[[Tensor, Tensor, Tensor], Any]


def _times(context: Context) -> tuple[Tensor, Tensor]:
    """Late and early times, (rows,) each, s < t."""
    low, span = context.low, context.high - context.low
    return times_tensor(low + span * np.array([0.37, 0.61, 0.93])), times_tensor(
        low + span * np.array([0.11, 0.29, 0.52])
    )


def _methods(context: Context) -> dict[str, Method]:
    """Methods that take states, as functions of a state and of late and early times."""
    sde = context.sde
    if not context.linear:
        return {"drift": lambda x, t, s: sde.drift(x, t)}
    return {
        "drift": lambda x, t, s: sde.drift(x, t),
        "perturb": lambda x, t, s: sde.perturb(x, t, x.flip(-1) if x.ndim > 1 else 0.5 * x),
        "posterior": lambda x, t, s: sde.posterior(x, 0.3 * x, t, s)[0],
    }


def _devices() -> list[tuple[torch.device, tuple[torch.dtype, ...]]]:
    found: list[tuple[torch.device, tuple[torch.dtype, ...]]] = [
        (torch.device("cpu"), (torch.float64, torch.float32))
    ]
    if torch.cuda.is_available():
        found.append((torch.device("cuda"), (torch.float64, torch.float32)))
    if torch.backends.mps.is_available():
        found.append((torch.device("mps"), (torch.float32,)))
    return found


@identity("any rank and dtype", "any", after=("usable range",))
def any_rank(context: Context) -> Iterator[Comparison]:
    """Shape, dtype and device are those of the state, and each row is what it is alone, in float64,
    at its own time.
    """
    t, s = _times(context)
    shapes = event_shapes(context)
    for name, method in _methods(context).items():
        for shape in shapes:
            x = irregular(shape, 1.0)
            rows = torch.cat([method(x[i : i + 1], t[i], s[i]) for i in range(ROWS)])
            for device, dtypes in _devices():
                for dtype in dtypes:
                    kind = f"{name} of {str(dtype).removeprefix('torch.')} {shape} on {device.type}"
                    given = method(x.to(dtype).to(device), t, s)
                    same = (
                        given.shape == shape
                        and given.dtype == dtype
                        and given.device.type == device.type
                    )
                    got = f"{tuple(given.shape)}, {given.dtype}, {given.device.type}"
                    yield require(
                        same,
                        f"{kind} returns {got}",
                        hint="solvers.expand(c, x) shapes and casts c(t) for x",
                    )
                    if given.shape == shape:
                        bound = ALGEBRAIC if given.dtype == torch.float64 else 1e-5
                        values = given.detach().to("cpu", torch.float64).numpy()
                        scale = max(float(rows.abs().max()), 1e-30)
                        yield compare(
                            kind,
                            values,
                            rows.numpy(),
                            {},
                            bound,
                            scale=scale,
                            hint="rows that see each other",
                        )
    if not context.linear:
        yield require(
            True,
            "",
            note="states (B, ...) it takes: "
            + ", ".join(str(("B", *shape[1:])).replace("'", "") for shape in shapes),
        )


@identity("scalar and batch times", "any")
def any_time(context: Context) -> Iterator[Comparison]:
    """f(t) for a batch of times is what it is for each of them, as a tensor () or as a number."""
    sde = context.sde
    t, _ = _times(context)
    if not context.linear:
        for shape in event_shapes(context):
            x = irregular(shape, 2.0)
            one, many = sde.drift(x, t[0]), sde.drift(x, t[0].expand(ROWS))
            if many.shape != one.shape:
                raise ValueError(
                    f"drift(x, t) with t of shape (B,) returns shape {tuple(many.shape)} for x "
                    f"of shape {shape}"
                )
            yield compare(
                "drift",
                many.numpy(),
                one.numpy(),
                {"t": float(t[0])},
                ALGEBRAIC,
                scale=max(float(one.abs().max()), 1e-30),
            )
        names = {"diffusion": sde.diffusion}
    else:
        names = {
            **{
                name: getattr(sde, name)
                for name in ("f", "g", "alpha", "sigma", "log_snr", "diffusion")
            },
            "rates[0]": lambda u: sde.rates(u)[0],
            "rates[1]": lambda u: sde.rates(u)[1],
            "kernel[0]": lambda u: sde.kernel(u, 0.5 * u),
            "kernel[1]": lambda u: tuple(reversed(sde.kernel(u, 0.5 * u))),
            "posterior[1]": lambda u: tuple(reversed(_posterior(sde, u))),
        }
    for name, function in names.items():
        many = array(_first(function(t)), (ROWS,), f"{name} of (B,) times")
        for kind, single in (("a number", [float(u) for u in t]), ("a 0-d tensor", list(t))):
            each = [array(_first(function(u)), (), f"{name} of {kind}") for u in single]
            scale = np.maximum(np.abs(many), 1e-12)
            yield compare(
                f"{name} of (B,) times",
                many,
                np.stack(each),
                {"t": t.numpy()},
                1e-8,
                scale=scale,
                hint=f"{kind} gives another",
            )


def _posterior(sde: Any, u: Tensor | float) -> Any:
    x = torch.ones(ROWS, dtype=torch.float64)
    return sde.posterior(x, x, u, 0.5 * u)


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out
