"""The log-density of data under a score model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Unpack

import torch
from torch import Tensor

from sdediff.arguments import Span, check_seed, check_solver
from sdediff.encoding import state_dtype
from sdediff.likelihood.augmented import Augmented
from sdediff.likelihood.estimate import Estimate
from sdediff.options import LikelihoodOptions, takes
from sdediff.protocols import Model, facts
from sdediff.reverse import Reverse
from sdediff.sde import Prior
from sdediff.solvers import RK45, Failure, Options, RungeKutta4, Solution, Solver, rowwise
from sdediff.solvers.given import real
from sdediff.solvers.legs import snapped
from sdediff.solvers.variable import variable_of
from sdediff.solving import Solving, check_deterministic, chosen
from sdediff.units import Units

__all__ = ["FIXED", "LogProb", "log_prob"]

FIXED: Final = (
    "t_end",
    "last",
    "noise",
    "x_init",
    "stochasticity",
    "trajectory",
    "callback",
    "compile",
)
"""What is fixed: the flow from given states to the prior, of which the ends alone are kept."""


@dataclass(frozen=True)
class LogProb:
    """Log-densities, and for each sample what it took.

    ``value`` (B,) in nats, float64; NaN for a sample that failed. ``stderr`` (B,) is the standard
    error of the value by the spread of the probes' estimates (solver and prior have no part in it):
    0 for the exact divergence, NaN for one probe. ``dof`` are its degrees of freedom, the number of
    estimates less 1. ``z`` (B, *event) is the latent, the state at t_max. ``prior_gap`` (B,) is log
    p(z) at t_max less the prior's log-density of z, in nats, where the law of the data is known
    (models of `sdediff.exact`, without a mask), else None: ``value + prior_gap`` is free of the
    prior's error. ``nfe``, ``accepted``, ``rejected``, ``status`` and ``failures`` are those of
    `Solution`. ``seeds`` are the probes'; None where none were drawn.
    """

    value: Tensor
    stderr: Tensor
    dof: int
    z: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor
    prior_gap: Tensor | None = None
    seeds: tuple[int, ...] | None = None
    failures: tuple[Failure, ...] = field(default=())

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """(low, high), (B,) each: covers the value of the exact divergence with probability
        ``level``, by Student's t.
        """
        level = real("level", level)
        if not 0 < level < 1:
            raise ValueError(f"level must lie in (0, 1), got {level!r}")
        from scipy.special import stdtrit

        width = self.stderr * (float(stdtrit(self.dof, 0.5 + 0.5 * level)) if self.dof else 1.0)
        return self.value - width, self.value + width

    def __repr__(self) -> str:
        nfe = f"{int(self.nfe.min())} to {int(self.nfe.max())}"
        return (
            f"LogProb(value: ({len(self.value)},) nats, nfe a sample: {nfe}, failed: "
            f"{len(self.failures)} of {len(self.value)})"
        )


@takes(LikelihoodOptions, without=FIXED)
def log_prob(
    model: Model,
    x: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    seed: int | Sequence[int] | None = None,
    **options: Unpack[LikelihoodOptions],
) -> LogProb:
    """The log-density of data x (B, *event) under the model, in nats: ``log_prob(model, x).value``.

    The density is the one of the samples that the probability flow makes from the prior,

        log p(x) = log prior(z) + int div drift dt,    dx = drift dt,
        drift = f x - g^2 / 2 score,

    where the flow carries x at t_start up to z at t_max (Song et al. 2021, arXiv 2011.13456, eq.
    39). The data are taken as states at ``t_start``, by default t_min, as they are; under `VP` the
    model's states at t_min have a little noise. The log-density is accumulated in float64, and so
    is the state (float32 on a device without float64).

    ``solver``: an adaptive Runge-Kutta method (`RK45` by default, `DOP853` for tight tolerances),
    one with fixed steps (`RungeKutta4` by default with ``steps=N``), `TorchDiffEq` or `SciPy`. All
    of them step in the angle arctan(sigma / (0.4 alpha)). A step is accepted if the error of the
    state is at most the tolerance, and that of the log-density, divided by the number d of
    coordinates, at most a tenth of it.
    ``grid``: rising times to t_max. ``steps=N`` alone are uniform in the angle.
    ``seed``: the seeds of the probes, as in `sample`. Each sample has the same result in any batch.

    If the backward pass of the network does not go through torch.func's vmap, as for a compiled
    network, vector-Jacobian products are computed one by one: k or d backward passes an evaluation.

    If the model has a `Normalizer`, x, the latents and the density are in your units: log p(y) =
    log p((y - mean) / std) - sum of log std.

    Raises ValueError or TypeError before the first evaluation of the network, and `SolveError`
    after it if a sample fails. The options are those of `LikelihoodOptions`:
    """
    taken = chosen(log_prob, options)
    known = facts(model)
    prior = _prior(model)
    if taken["t_start"] is not None:
        hint = "; all samples of a call share it: call once for each"
        taken["t_start"] = real("t_start", taken["t_start"], hint)
    solver = _solver(solver, fixed=steps is not None)
    taken["dtype"] = state_dtype("x", x, taken["dtype"])
    method = (taken["divergence"], taken["probes"], taken["probe"])
    estimate = Estimate.checked(*method, x)
    span = Span(model.sde, model.sde.t_min, model.sde.t_max)
    solving = Solving.checked(model, known, x.shape, span, solver, steps, taken)
    _check_end(solving)
    if steps is not None and taken["grid"] is None and "kernel" in model.sde.offers:
        solving = replace(
            solving, times=snapped(_angular(model, solving.times), solving.facts.breaks)
        )
    seeds = check_seed(seed, None, tuple(x.shape)) if estimate.draws else None
    place = torch.float32 if solving.device.type == "mps" else torch.float64

    with torch.inference_mode(False):
        start = (x.clone() if x.is_inference() else x).to(place).to(solving.device)

        def part(rows: Tensor, options: Options) -> Solution:
            exists = solving.existing(rows)
            own = solving.units.enter(start[rows.to(start.device)], exists)
            trace = estimate.of(rows, seeds or (), own, exists)
            problem = Augmented(
                solving.reverse(rows, state=place), trace, own.shape[1:], solving.times
            )
            found = solver.solve(problem, problem.start(own), problem.u, None, options)
            failures = [
                replace(f, t=float(problem.time(torch.tensor(f.t, dtype=torch.float64))))
                for f in found.failures
            ]
            with torch.set_grad_enabled(options.grad != "none"):
                return replace(
                    found, x=problem.end(found.x), times=solving.times, failures=tuple(failures)
                )

        solution = solving.run("log-density", part)
        return _result(solution, prior, solving, x.shape, estimate, seeds)


def _solver(solver: Solver | None, *, fixed: bool) -> Solver:
    """The solver, by default one of fixed steps or one that chooses them; a ValueError if it needs
    more than a drift.
    """
    if solver is None:
        solver = RungeKutta4() if fixed else RK45()
    solver = check_deterministic(check_solver(solver), "the likelihood")
    if solver.group > 1:
        raise ValueError(
            f"{solver!r} moves {solver.group} rows together, and a log-density is that of each: "
            "take RK45(), say"
        )
    if not solver.needs <= Augmented.offers:
        lacking = ", ".join(sorted(solver.needs - Augmented.offers))
        raise ValueError(
            f"{solver!r} needs {lacking}, and the log-density has a drift alone: take RK45(), or "
            "RungeKutta4() with steps=N"
        )
    return solver


def _prior(model: Model) -> Prior:
    try:
        prior: Prior = model.sde.prior
    except NotImplementedError as error:
        raise ValueError(
            f"the log-density ends in that of the prior, and {type(model.sde).__name__} has no "
            "prior: give the class one, "
            "`prior = Prior(std)` say"
        ) from error
    return prior


def _check_end(solving: Solving) -> None:
    end, t_max = float(solving.times[-1]), solving.model.sde.t_max
    if abs(end - t_max) > 1e-6 * t_max:
        raise ValueError(
            f"the prior is the law at t_max = {t_max:g}: the grid must end there, it ends at t = "
            f"{end:g}"
        )


def _angular(model: Model, times: Tensor) -> Tensor:
    """As many times between the same ends, uniform in the angle."""
    variable = variable_of(Reverse(model, 1, units=Units(facts(model).data_std)), "angle")
    first, last = variable.value(times[[0, -1]]).tolist()
    inside = torch.linspace(first, last, len(times), dtype=torch.float64)[1:-1]
    return torch.cat([times[:1], variable.time(inside), times[-1:]])


def _result(
    solution: Solution,
    prior: Prior,
    solving: Solving,
    shape: torch.Size,
    estimate: Estimate,
    seeds: tuple[int, ...] | None,
) -> LogProb:
    d = shape[1:].numel()
    model = solving.model
    units = solving.units
    inside, integrals = solution.x[:, :d].reshape(shape), solution.x[:, d:]
    z = units.to_model(inside)
    law = getattr(solving.facts.net, "law", None)
    sde = model.sde
    lost = (solution.status != 0).to(z.device)
    with torch.set_grad_enabled(solving.options.grad != "none"):
        at_end = prior.log_prob(z)
        # a coordinate that does not exist stands at 0, and has its density there
        if solving.mask is not None:
            at_end = at_end - (d - rowwise(solving.mask).sum(dim=1)) * prior.log_prob(
                z.new_zeros(1, 1)
            )
        value = torch.where(lost, torch.nan, at_end + integrals.mean(dim=1))
        exact = law if solving.mask is None and hasattr(law, "log_prob") else None
        gap = None if exact is None else exact.log_prob(sde, z, sde.t_max) - at_end
        normalizer = solving.facts.normalizer
        if normalizer is not None:
            value = value - torch.as_tensor(
                normalizer.log_det(shape[1:], solving.mask), dtype=torch.float64
            ).to(value)
    return LogProb(
        value=value,
        stderr=torch.where(lost, torch.nan, estimate.stderr(integrals.detach())),
        dof=integrals.shape[1] - 1,
        z=units.leave(inside, solving.mask).to(solving.dtype),
        nfe=solution.nfe,
        accepted=solution.accepted,
        rejected=solution.rejected,
        status=solution.status,
        prior_gap=gap,
        seeds=seeds,
        failures=solution.failures,
    )
