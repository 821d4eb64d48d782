"""What sampling, encoding and the likelihood share: their arguments are checked, and parts of a batch are solved one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sdediff.arguments import Grid, Span, check_choice, check_condition, check_device, check_grad, make_times
from sdediff.constraints import Batch
from sdediff.evaluation import evaluating
from sdediff.masks import check_mask
from sdediff.model import ScoreModel
from sdediff.modules import modules_behind
from sdediff.progress import Bar, progress_bar
from sdediff.reverse import Reverse
from sdediff.solvers import Options, Snapshot, Solution, SolveError, Solver
from sdediff.solvers.scalars import callback_of, flag, whole
from sdediff.solvers.solution import merge
from sdediff.units import Units

__all__ = ["Solving", "check_deterministic"]

OnFail = Literal["raise", "return"]
Grad = Literal["none", "full", "checkpoint"]


def check_deterministic(solver: Solver, what: str) -> Solver:
    """Return ``solver``; a ValueError if it draws noise."""
    if solver.stochastic or solver.diffuses:
        raise ValueError(
            f"{what} goes along the probability flow, where there is no noise, and {solver!r} draws some: take RK45(), say, "
            "or a deterministic solver with steps=N"
        )
    return solver


@dataclass(frozen=True)
class Solving:
    """A solve of ``count`` samples from the first to the last of ``times``, its arguments checked."""

    model: ScoreModel
    count: int
    solver: Solver
    times: Tensor
    condition: Mapping[str, Tensor]
    batch_size: int
    options: Options
    raises: bool
    progress: bool
    dtype: torch.dtype
    device: torch.device
    units: Units
    mask: Tensor | None
    event: torch.Size

    @classmethod
    def checked(
        cls,
        model: ScoreModel,
        shape: Sequence[int],
        span: Span,
        solver: Solver,
        *,
        steps: int | None = None,
        grid: Grid | None = None,
        t_start: float | None = None,
        t_end: float | None = None,
        last: Literal["mean", "noisy"] = "noisy",
        condition: Mapping[str, Tensor] | None = None,
        mask: Tensor | None = None,
        batch_size: int | None = None,
        trajectory: bool = False,
        callback: Callable[[Snapshot], None] | None = None,
        progress: bool = False,
        max_nfe: int | None = None,
        on_fail: OnFail = "raise",
        compile: bool = False,
        grad: Grad = "none",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Self:
        """From the arguments that `sample` documents; ValueError or TypeError for those that are wrong."""
        place, count = check_device(model, device), shape[0]
        times = make_times(span, solver, steps, grid, t_start, t_end, model.data_std)
        check_choice("on_fail", on_fail, ("raise", "return"))
        check_grad(grad)
        if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
            raise ValueError(f"the state's dtype must be torch.float32 or torch.float64, got {dtype!r}; the network keeps its own")
        callback = callback_of("callback", callback, "of a Snapshot")
        trajectory, progress = flag("trajectory", trajectory), flag("progress", progress)
        batch_size = None if batch_size is None else whole("batch_size", batch_size, 1)
        max_nfe = None if max_nfe is None else whole("max_nfe", max_nfe, 1)
        least = solver.evaluations + (1 if solver.begins else 2)
        if solver.adaptive and max_nfe is not None and max_nfe < least:
            raise ValueError(f"{solver!r} takes {least} evaluations to make its first step; raise max_nfe = {max_nfe}")
        if model.normalizer is not None:
            model.normalizer.check(shape[1:])
        model = _compiled(_local(model), solver) if flag("compile", compile) else _local(model)
        return cls(
            model=_with_net(model, _Evaluated(model.net)) if grad == "checkpoint" and modules_behind(model.net).modules else model,
            count=count,
            solver=solver,
            times=times,
            condition=check_condition(condition, count, model.net, place),
            batch_size=batch_size or count,
            options=Options(last, trajectory, callback, max_nfe, "return", grad),
            raises=on_fail == "raise",
            progress=progress,
            dtype=dtype,
            device=place,
            units=Units(model.data_std, model.normalizer),
            mask=check_mask(mask, shape, place),
            event=torch.Size(shape[1:]),
        )

    def reverse(
        self, rows: Tensor, stochasticity: float | Callable[[Tensor], Tensor] = 0.0, sees: torch.dtype | None = None
    ) -> Reverse:
        """The problem of the samples ``rows``, whose states are in the solvers' `units`."""
        condition = {name: value[rows.to(value.device)] for name, value in self.condition.items()}
        batch, mask = Batch(rows, self.count), self.existing(rows)
        return Reverse(self.model, len(rows), stochasticity, condition, sees, batch, mask, units=self.units)

    def existing(self, rows: Tensor) -> Tensor | None:
        """The mask of the samples ``rows``."""
        return None if self.mask is None else self.mask[rows.to(self.mask.device)]

    def run(self, title: str, part: Callable[[Tensor, Options], Solution]) -> Solution:
        """``part(rows, options)`` of ``batch_size`` samples at a time, joined; `SolveError` if a sample failed and ``raises``."""
        parts = []
        with evaluating(self.model), progress_bar(title, total=self.count, show=self.progress) as bar:
            for first in range(0, self.count, self.batch_size):
                rows = torch.arange(first, min(first + self.batch_size, self.count))
                show = partial(_show, bar, first, len(rows)) if self.progress else None
                callback = self.units.outside(self.options.callback, self.existing(rows))
                parts.append(part(rows, replace(self.options, progress=show, callback=callback)))
        solution = merge(parts)
        if solution.failures and self.raises:
            raise SolveError(solution)
        return solution


def _local(model: ScoreModel) -> ScoreModel:
    """The model with its network out of DistributedDataParallel, whose forward pass waits for that of the other processes.

    They need not make as many: every sample has its own steps.
    """
    return _with_net(model, model.net.module) if isinstance(model.net, DistributedDataParallel) else model


def _compiled(model: ScoreModel, solver: Solver) -> ScoreModel:
    """The model with its network compiled; a ValueError where the batch changes its shape on the way."""
    if solver.adaptive:
        raise ValueError(
            f"compile=True with {solver!r}: samples leave the batch as they arrive, and each new shape would be compiled anew; "
            "take a solver with fixed steps, or compile the network yourself, torch.compile(net, dynamic=True)"
        )
    return _with_net(model, torch.compile(model.net))


def _with_net(model: ScoreModel, net: Any) -> ScoreModel:
    """The same model around another network, the given one left as it is."""
    other = copy.copy(model)
    vars(other)["_modules"] = dict(vars(model)["_modules"])
    other._modules.pop("net", None)
    vars(other).pop("net", None)
    other.net = net
    return other


@dataclass(frozen=True)
class _Evaluated:
    """A network in evaluation mode in each of its calls: those too that a backward pass makes again after the solve."""

    net: Callable[..., Any]

    def __call__(self, x: Tensor, t: Tensor, **condition: Tensor) -> Any:
        with evaluating(self.net):
            return self.net(x, t, **condition)


def _show(bar: Bar, first: int, count: int, done: float) -> None:
    bar.update(first + done * count)
