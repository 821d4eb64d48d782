"""Whether an SDE is consistent: `check_sde`, and the identities of any SDE, of which the drift and
the diffusion are all that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdediff.sde import SDE

# Importing the topics enters their identities into the table, in this order.
from sdediff.testing import coefficients, kernels  # noqa: F401
from sdediff.testing.coefficients import nowhere
from sdediff.testing.context import (
    IDENTITIES,
    ROWS,
    Context,
    array,
    identity,
    irregular,
    times_tensor,
)
from sdediff.testing.report import (
    ALGEBRAIC,
    Comparison,
    Finding,
    Report,
    SDEError,
    compare,
    require,
    settle,
)

__all__ = ["check_sde", "instance_of"]


def check_sde(sde: SDE | type[SDE], *, verbose: bool = True) -> Report:
    """Check that an SDE dx = f x dt + g dw is consistent, and raise `SDEError` with the names of
    the identities that fail.

        sd.testing.check_sde(MySDE())

    ``sde``: an SDE, or a class, which is then made without arguments. It checks

    - moments: alpha and sigma against m' = f m and V' = 2 f V + g^2, integrated from m = 1 and V =
      sigma_0^2 at t = 0;
    - derivatives: f = d log alpha / dt, g^2 = d sigma^2 / dt - 2 f sigma^2, `rates`; that log_snr
      falls, and its inverse `time_of`;
    - kernels: the moment equations, Chapman-Kolmogorov, the marginal at s = 0, `perturb`, and
      `posterior` against Bayes' theorem;
    - the prior against sigma(t_max), and `prior_gap`, which only warns if it is large;
    - probability flow and reverse SDE keep the marginals of Gaussian data, by their moment
      equations;
    - the ends of the usable range; states of any rank, dtype and device; times as numbers and as
      batches.

    A method that the SDE overrides is compared with what would be derived without it. For an `SDE`
    without a Gaussian kernel only drift, diffusion, prior and shapes are checked. Coefficients may
    jump. Deviations are relative. Their bounds are 1e-9 for results of a few operations and 1e-6
    for results of an integration. The check draws no random numbers and needs no network.

    Prints a table unless ``verbose`` is false, and returns it as a `Report`. Raises TypeError if
    ``sde`` is not an SDE.
    """
    instance = instance_of(sde, "check_sde")
    findings: dict[str, Finding] = {}
    with torch.inference_mode(False), torch.no_grad():
        context = Context(instance)
        for name, entry in IDENTITIES.items():
            if entry.kind not in ("any", "linear" if context.linear else "general"):
                continue
            missing = [repr(needed) for needed in entry.after if findings[needed].verdict == "fail"]
            if missing:
                findings[name] = Finding(name, "skipped", detail=f"needs {' and '.join(missing)}")
            else:
                findings[name] = settle(name, entry.check(context))
    return Report(repr(instance), tuple(findings.values())).conclude(SDEError, verbose)


def instance_of(sde: SDE | type[SDE], by: str) -> SDE:
    """An SDE, or that which its class makes without arguments; a TypeError in the name of the
    function ``by`` for anything else.
    """
    if isinstance(sde, type) and issubclass(sde, SDE):
        try:
            sde = sde()
        except TypeError as error:
            raise TypeError(
                f"{error}; {by} makes a class without arguments: pass an instance if it needs some"
            ) from error
    if not isinstance(sde, SDE):
        raise TypeError(f"{by} takes an SDE or a LinearSDE, or a class of either; got {sde!r}")
    return sde


@identity("finite drift", "general")
def finite_drift(context: Context) -> Iterator[Comparison]:
    """drift(x, t) is finite in the usable range, and shaped as x."""
    for shape in context.shapes:
        x = irregular(shape, 0.0)
        drifts = [context.sde.drift(x, times_tensor(t)) for t in context.times]
        values = np.stack([array(out, shape, "drift(x, t)").reshape(-1) for out in drifts])
        bad = np.asarray(~np.isfinite(values).all(axis=1))
        yield nowhere(bad, context.times, f"drift of {shape} is not finite", "")


@identity("rows are independent", "general", after=("finite drift",))
def rows(context: Context) -> Iterator[Comparison]:
    """The drift of a sample does not depend on the others in its batch."""
    hint = "a mean or sum over the batch: reduce over the dimensions of the event only"
    for shape in context.shapes:
        x = irregular(shape, 3.0)
        for t in context.times[:: max(len(context.times) // 4, 1)]:
            time = times_tensor(t)
            whole = context.sde.drift(x, time)
            each = torch.cat([context.sde.drift(row[None], time) for row in x])
            scale = max(float(each.abs().max()), float(whole.abs().max()), 1e-30)
            what, at = f"drift of {shape}", {"t": t}
            yield compare(what, whole, each, at, ALGEBRAIC, scale=scale, hint=hint)


@identity("diffusion >= 0", "general")
def diffusion(context: Context) -> Iterator[Comparison]:
    """diffusion(t) is finite and not negative in the usable range, and shaped as t."""
    g = context.at_times("diffusion")
    pole = "a root of a negative number or a division by 0: set t_min and t_max past it"
    yield nowhere(~np.isfinite(g), context.times, "diffusion is not finite", pole)
    yield nowhere(g < 0, context.times, "diffusion is negative", "a sign")


def _times(context: Context) -> tuple[Tensor, Tensor]:
    """Late and early times, (ROWS,) each, s < t."""
    late, early = np.array([[0.37, 0.61, 0.93], [0.11, 0.29, 0.52]])
    span = context.high - context.low
    return times_tensor(context.low + span * late), times_tensor(context.low + span * early)


def _devices() -> Iterator[tuple[str, torch.dtype]]:
    for device, there in (
        ("cpu", True),
        ("cuda", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
    ):
        for dtype in (torch.float64, torch.float32):
            if there and (device, dtype) != ("mps", torch.float64):
                yield device, dtype


@identity("any rank and dtype", "any", after=("usable range",))
def any_rank(context: Context) -> Iterator[Comparison]:
    """Shape, dtype and device are those of the state, and each row is what it is alone, in float64,
    at its own time.
    """
    t, s = _times(context)
    sde, hint = context.sde, "solvers.expand(c, x) shapes and casts c(t) for x"
    methods: dict[str, Callable[..., Any]] = {"drift": lambda x, t, s: sde.drift(x, t)}
    if context.linear:
        methods |= {
            "perturb": lambda x, t, s: sde.perturb(x, t, x.flip(-1) if x.ndim > 1 else 0.5 * x),
            "posterior": lambda x, t, s: sde.posterior(x, 0.3 * x, t, s)[0],
        }
    for name, method in methods.items():
        for shape in context.shapes:
            x = irregular(shape, 1.0)
            alone = torch.cat([method(x[i : i + 1], t[i], s[i]) for i in range(ROWS)])
            for device, dtype in _devices():
                given = method(x.to(dtype).to(device), t, s)
                kind = f"{name} of {str(dtype).removeprefix('torch.')} {shape} on {device}"
                got = (tuple(given.shape), given.dtype, given.device.type)
                said = f"{kind} returns {', '.join(map(str, got))}"
                yield require(got == (shape, dtype, device), said, hint=hint)
                if got[0] == shape:
                    bound = ALGEBRAIC if given.dtype == torch.float64 else 1e-5
                    scale = max(float(alone.abs().max()), 1e-30)
                    values, mixed = given.detach().cpu().double(), "rows that see each other"
                    yield compare(kind, values, alone, {}, bound, scale=scale, hint=mixed)
    if not context.linear:
        taken = (
            f"(B{''.join(f', {n}' for n in shape[1:])}{',' * (len(shape) < 2)})"
            for shape in context.shapes
        )
        yield require(True, "", note=f"states (B, ...) it takes: {', '.join(taken)}")


@identity("scalar and batch times", "any")
def any_time(context: Context) -> Iterator[Comparison]:
    """f(t) for a batch of times is what it is for each of them, as a tensor () or as a number."""
    sde = context.sde
    t, _ = _times(context)
    x = torch.ones(ROWS, dtype=torch.float64)
    names: dict[str, Any] = {"diffusion": sde.diffusion}
    if context.linear:
        for name in ("f", "g", "alpha", "sigma", "log_snr"):
            names[name] = getattr(sde, name)
        for i in (0, 1):
            names[f"rates[{i}]"] = lambda u, i=i: sde.rates(u)[i]
            names[f"kernel[{i}]"] = lambda u, i=i: sde.kernel(u, 0.5 * u)[i]
        names["posterior[1]"] = lambda u: sde.posterior(x, x, u, 0.5 * u)[1]
    for shape in () if context.linear else context.shapes:
        x = irregular(shape, 2.0)
        one, many = sde.drift(x, t[0]), sde.drift(x, t[0].expand(ROWS))
        given = array(many, tuple(one.shape), "drift(x, t) with t of shape (B,)")
        scale = max(float(one.abs().max()), 1e-30)
        yield compare("drift", given, one, {"t": float(t[0])}, ALGEBRAIC, scale=scale)
    for name, function in names.items():
        what, at = f"{name} of (B,) times", {"t": t.numpy()}
        many = array(function(t), (ROWS,), what)
        room = np.maximum(np.abs(many), 1e-12)
        for kind, single in (("a number", t.tolist()), ("a 0-d tensor", list(t))):
            each = np.stack([array(function(u), (), f"{name} of {kind}") for u in single])
            yield compare(what, many, each, at, 1e-8, scale=room, hint=f"{kind} gives another")
