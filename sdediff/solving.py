"""What sampling, encoding and the likelihood share: their arguments are checked, and parts of a
batch are solved one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sdediff.arguments import Span, check_condition, check_device, make_times
from sdediff.masks import check_mask
from sdediff.modules import evaluating
from sdediff.operator import Operator
from sdediff.options import SolveOptions, chosen
from sdediff.processes import current, dividing, in_parts
from sdediff.progress import Bar, progress_bar
from sdediff.protocols import Facts, Like, Model, Output, Rows, is_model
from sdediff.reverse import Reverse
from sdediff.solvers import Monitor, Options, Solution, Solver
from sdediff.solvers.given import callback_of, flag, integer
from sdediff.solvers.options import check_grad
from sdediff.solvers.solution import merge
from sdediff.units import Units

__all__ = [
    "Solving",
    "check_count",
    "check_deterministic",
    "check_dtype",
    "check_group",
    "chosen",
]


def check_deterministic(solver: Solver, what: str) -> Solver:
    """Return ``solver``; a ValueError if it draws noise."""
    if solver.stochastic or solver.solves_sde:
        raise ValueError(
            f"{what} goes along the probability flow, where there is no noise, and {solver!r} "
            "draws some: take RK45(), say, "
            "or a deterministic solver with steps=N"
        )
    return solver


@dataclass(frozen=True)
class Solving:
    """A solve of ``count`` samples from the first to the last of ``times``, its arguments
    checked.
    """

    model: Model
    facts: Facts
    count: int
    solver: Solver
    times: Tensor
    condition: Mapping[str, Tensor]
    batch_size: int
    options: Options
    progress: bool
    dtype: torch.dtype
    device: torch.device
    units: Units
    mask: Tensor | None
    event: torch.Size

    @classmethod
    def checked(
        cls,
        model: Model,
        known: Facts,
        shape: Sequence[int],
        span: Span,
        solver: Solver,
        steps: int | None,
        options: SolveOptions,
        last: Literal["mean", "noisy"] = "noisy",
    ) -> Self:
        """The solve that all ``options`` ask for, as `chosen` returns them; ``last`` is what the
        solver itself does in its last step. Raises ValueError or TypeError for what is wrong.
        """
        count = shape[0]
        device, condition, mask = options["device"], options["condition"], options["mask"]
        place = known.device if device is None else check_device(model, known, device)
        spacing = (steps, options["grid"], options["t_start"], options["t_end"])
        times = make_times(span, solver, *spacing, unit=known.data_std, breaks=known.breaks)
        if times.ndim > 1:
            check_count(times, count)
        callback, max_nfe = options["callback"], options["max_nfe"]
        if callback is not None:
            callback_of("callback", callback, "of a Snapshot")
        max_nfe = None if max_nfe is None else _check_limit(solver, max_nfe)
        trajectory = flag("trajectory", options["trajectory"])
        driven = Options(last, trajectory, callback, max_nfe, options["on_fail"], options["grad"])
        if driven.grad != "none":
            check_grad(driven.grad)
        dtype = torch.float32 if options["dtype"] is None else check_dtype(options["dtype"])
        batch_size = options["batch_size"]
        if batch_size is not None or type(solver.group) is not int or solver.group != 1:
            batch_size = check_group(solver, count, batch_size)
        if known.check_event is not None:
            known.check_event(shape[1:])
        if known.normalizer is not None:
            known.normalizer.check(shape[1:])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            model = _with_nets(model, _local)
        if flag("compile", options["compile"]):
            model = _compiled(model, solver)
        if condition is not None:
            condition = check_condition(condition, count, known.net, place, event=shape[1:])
        return cls(
            model=_Evaluated(model) if driven.grad == "checkpoint" else model,
            facts=known,
            count=count,
            solver=solver,
            times=times,
            condition=condition or {},
            batch_size=batch_size or count,
            options=driven,
            progress=flag("progress", options["progress"]),
            dtype=dtype,
            device=place,
            units=Units(known.data_std, known.normalizer),
            mask=None if mask is None else check_mask(mask, shape, place),
            event=torch.Size(shape[1:]),
        )

    def reverse(
        self,
        rows: Tensor,
        stochasticity: float | Callable[[Tensor], Tensor] = 0.0,
        state: torch.dtype | None = None,
    ) -> Reverse:
        """The problem of the samples ``rows``; their states are in the solvers' `units`, of the
        dtype ``state`` (None: `dtype`).
        """
        condition = {name: value[rows.to(value.device)] for name, value in self.condition.items()}
        mask = None if self.mask is None else self.existing(rows)
        batch = Rows(condition, rows, self.count, Monitor(len(rows)), mask)
        like = Like(len(rows), self.event, state or self.dtype, self.device, self.dtype)
        return Reverse(
            self.model, batch, stochasticity, like=like, units=self.units, known=self.facts
        )

    def existing(self, rows: Tensor) -> Tensor | None:
        """The mask of the samples ``rows``."""
        return None if self.mask is None else self.mask[rows.to(self.mask.device)]

    def run(self, title: str, part: Callable[[Tensor, Options], Solution]) -> Solution:
        """``part(rows, options)`` of ``batch_size`` samples at a time, joined; `SolveError` if a
        sample failed and ``on_fail`` is "raise".
        """
        show = self.progress and current().first
        shown = progress_bar(title, total=self.count, show=True) if show else nullcontext()
        with torch.inference_mode(False), evaluating(self.model), shown as bar:

            def own(numbers: range) -> Solution:
                rows = torch.arange(numbers.start, numbers.stop)
                options = replace(self.options, on_fail="return")
                if bar is not None:
                    seen = partial(_show, bar, numbers.start, len(rows))
                    options = replace(options, progress=seen)
                if options.callback is not None:
                    shown_outside = self.units.outside(options.callback, self.existing(rows))
                    options = replace(options, callback=shown_outside)
                return part(rows, options)

            graph = self.options.grad != "none"  # which no other process can be handed
            with dividing(None) if graph else nullcontext():
                parts = in_parts(self.count, self.batch_size, own, group=self.solver.group)
        solution = merge(parts)
        return solution.failed((), self.options.on_fail) if solution.failures else solution


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the state; a ValueError unless it is float32 or float64."""
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the state's dtype must be torch.float32 or torch.float64, got {dtype!r}; the "
            "network keeps its own"
        )
    return dtype


def check_count(times: Tensor, count: int) -> None:
    """A ValueError unless there is one grid, or one for each of ``count`` samples."""
    given = times.shape[1] if times.ndim > 1 else count
    if given != count:
        raise ValueError(
            f"there are {given} starts or grids for {count} samples: pass one, or {count}"
        )


def _check_limit(solver: Solver, max_nfe: int) -> int:
    """Return ``max_nfe``; a ValueError unless it is a positive int, and enough for a step of an
    adaptive ``solver``.
    """
    max_nfe = integer("max_nfe", max_nfe, 1)
    least = solver.evaluations + (1 if solver.init_each_step else 2)
    if solver.adaptive and max_nfe < least:
        raise ValueError(
            f"{solver!r} takes {least} evaluations to make its first step; raise max_nfe = "
            f"{max_nfe}"
        )
    return max_nfe


def check_group(solver: Solver, count: int, batch_size: int | None) -> int | None:
    """A batch size that splits no group of rows; a ValueError where there is none."""
    batch_size = None if batch_size is None else integer("batch_size", batch_size, 1)
    group = integer(f"{type(solver).__name__}: group", solver.group, 1)
    if group == 1:
        return batch_size
    if solver.adaptive:
        raise ValueError(
            f"{solver!r} is adaptive, so that its rows leave the batch one by one: it cannot "
            f"have groups of {group}"
        )
    if count % group:
        raise ValueError(
            f"{solver!r} takes rows in groups of {group}: ask for a multiple of that, got {count}"
        )
    if batch_size is not None and batch_size < group:
        raise ValueError(
            f"{solver!r} takes rows in groups of {group}, which no batch splits: raise "
            f"batch_size = {batch_size}"
        )
    return None if batch_size is None else batch_size // group * group


def _local(net: nn.Module) -> nn.Module:
    """A network out of DistributedDataParallel, whose forward pass waits for that of the other
    processes.

    They need not make as many: every sample has its own steps.
    """
    return net.module if isinstance(net, DistributedDataParallel) else net


def _compiled(model: Model, solver: Solver) -> Model:
    """The model with its networks compiled; a ValueError where the batch changes its shape on the
    way, or there is no network.
    """
    if solver.adaptive:
        raise ValueError(
            f"compile=True with {solver!r}: samples leave the batch as they arrive, and each new "
            "shape would be compiled anew; "
            "take a solver with fixed steps, or compile the network yourself, torch.compile(net, "
            "dynamic=True)"
        )
    compiled = _with_nets(model, torch.compile)
    if compiled is model:
        raise ValueError(
            f"compile=True compiles the `net` of a model, and {type(model).__name__} has none: "
            "compile what it calls yourself"
        )
    return compiled


def _with_nets(model: Model, change: Callable[[Any], Any]) -> Model:
    """The same model with each network in it, and in the models that it is made of, changed; the
    given one is left as it is.
    """
    parts = {
        **{name: change(part) for name, part in _parts(model) if name == "net"},
        **{name: _with_nets(part, change) for name, part in _parts(model) if is_model(part)},
    }
    if all(parts[name] is part for name, part in _parts(model) if name in parts):
        return model
    other = copy.copy(model)
    if isinstance(other, nn.Module):
        vars(other)["_modules"] = dict(other._modules)
    for name, part in parts.items():
        if isinstance(other, nn.Module):
            other._modules.pop(name, None)
        vars(other).pop(name, None)
        setattr(other, name, part)
    return other


def _parts(model: object) -> list[tuple[str, Any]]:
    """The attributes of a model, modules among them."""
    own = getattr(model, "__dict__", {})
    return [*own.items(), *own.get("_modules", {}).items()]


class _Evaluated(Operator):
    """A model in evaluation mode in each of its calls: those too that a backward pass makes again
    after the solve.
    """

    def evaluate(self, x: Tensor, at: Any, rows: Rows) -> Tensor | Output:
        with evaluating(self.model):
            return self.model.evaluate(x, at, rows)


def _show(bar: Bar, first: int, count: int, done: float) -> None:
    bar.update(first + done * count)
