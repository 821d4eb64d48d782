"""Training by Accelerate: one call from data to a run folder, resumable to the bit."""

from __future__ import annotations

import json
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sdediff import checkpoint
from sdediff._extras import require
from sdediff.calls import Condition, let_check
from sdediff.describing import describe
from sdediff.interruption import stoppable
from sdediff.masks import mask_of
from sdediff.model import ScoreModel
from sdediff.objectives import DenoisingScoreMatching, Objective
from sdediff.objectives.objective import clean_of
from sdediff.progress import Bar, progress_bar
from sdediff.run_folder import (
    FORMAT,
    TRAINING,
    WEIGHTS,
    Run,
    check_ours,
    check_out,
    locate,
    locked,
    write_config,
)
from sdediff.solvers.given import callback_of, flag, integer
from sdediff.solvers.portable import Portable
from sdediff.trainer import Settings, Trainer
from sdediff.training_data import (
    check_about,
    check_objective,
    check_shape_of,
    check_trained,
    collected,
    look_at,
    tried,
    with_dropout,
)

__all__ = ["Interrupted", "fit"]

_PRECISIONS: Final = (None, "no", "bf16", "fp16", "fp8")


class Interrupted(Portable, KeyboardInterrupt):
    """Training was stopped by the signal ``signum``, Ctrl-C say, after ``step`` steps.

    A checkpoint of that step is in the run folder ``out``.
    """

    def __init__(self, step: int, out: Path, signum: int | None = None) -> None:
        super().__init__(
            f"stopped after step {step}; {out} holds a checkpoint of it, go on with resume"
        )
        self.step = step
        self.out = out
        self.signum = signal.SIGINT if signum is None else signum


def fit(
    model: ScoreModel,
    data: Tensor | Dataset[Any],
    *,
    out: str | Path,
    steps: int = 10_000,
    batch_size: int = 128,
    lr: float = 1e-3,
    warmup: int = 100,
    loss: Objective | None = None,
    ema: float = 0.999,
    clip: float = 1.0,
    condition: Condition | None = None,
    drop: float = 0.0,
    mask: Tensor | None = None,
    seed: int = 0,
    checkpoint_every: int = 1000,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    mixed_precision: str | None = None,
    progress: bool = False,
    callback: Callable[[int, float], None] | None = None,
    about: Mapping[str, Any] | None = None,
) -> ScoreModel:
    """Train the network of ``model`` on ``data`` (N, *event), write a run folder and return the
    model with its averaged weights.

    AdamW with ``warmup`` linear steps and a cosine to zero at ``steps``, the gradient's norm
    clipped at ``clip``; the weights are averaged with decay min(``ema``, (1 + k) / (10 + k)) at
    step k. ``loss`` is any function loss(model, x_0, condition) -> (B,), by default
    `DenoisingScoreMatching` with stratified times. ``condition`` holds tensors (N, ...) that go to
    the network with their samples, or a number for all. With probability ``drop`` a sample is
    trained with the model's ``null`` in place of its conditions (`ConditionDropout`), as
    classifier-free guidance needs it. ``data`` may be a torch Dataset of tensors, of pairs (x,
    label) or of pairs (x, {name: value}), whose second parts are the condition; it is read once,
    into memory. ``mask`` says which coordinates exist, True or 1: (N, *event),
    or its first dimensions, or 1 in place of some.

    Data are in the user's units: the loss sees what the model's `Normalizer` makes of them. A model
    that declares no ``data_std`` takes theirs. A UserWarning says where the data, thus seen, do not
    suit the SDE: where more than 0.02 nats a coordinate are left of them at t_max, or their
    standard deviation is far from that for which the SDE is made.

    Batches, times, noise and dropout of a step depend on ``seed`` and its number alone, so that a
    run that is stopped and resumed gives the weights of one that is not. torch's global generator
    is left as it was. Under ``accelerate launch`` every process takes its share of each batch.

    ``checkpoint_every`` steps, at the end, on Ctrl-C, SIGTERM and SIGHUP the folder ``out`` is
    brought up to date. ``resume`` goes on from there, and starts where there is no run yet.
    ``overwrite`` starts anew, and the run that is there stays until the first checkpoint of the new
    one is complete. One process at a time writes a folder, and files that are not of a run are
    never overwritten. ``about`` (name, range of the data) is kept in the configuration.
    ``callback(step, loss)`` is called every 10 steps. Raises ValueError before any work, also where
    the state of the network could not be kept, `Interrupted` when a signal has stopped it,
    FloatingPointError if the loss is not finite.
    """
    loss = DenoisingScoreMatching(stratified=True) if loss is None else loss
    data, condition = collected(data, condition)
    folder = check_out(out)
    resume = flag("resume", resume)
    overwrite = flag("overwrite", overwrite)
    progress = flag("progress", progress)
    callback = callback_of("callback", callback, "of a step and its loss")
    check_about(about)
    if resume and overwrite:
        raise ValueError(
            f"resume goes on with the run in {folder} and overwrite starts anew: pass one of them"
        )
    given, model = model, getattr(model, "learner", model)
    condition = check_trained(model, data, condition)
    clean = clean_of(loss, data)
    check_shape_of(given, clean)
    exist = mask_of(mask, clean)
    check_objective(loss, exist)
    let_check(model.net, condition, clean.shape[1:])
    loss = with_dropout(model, loss, condition, drop)
    checkpoint_every = integer("checkpoint_every", checkpoint_every, 1)
    check_ours(folder)
    settings = Settings(steps, batch_size, lr, warmup, ema, clip, seed)
    look_at(model, clean, exist)
    tried(loss, model, clean, condition)
    config = _config(given, {**_summary(data, condition), **(about or {})}, settings, loss)
    with _accelerated(device, mixed_precision) as accelerator:
        trainer = Trainer(model, data, condition, loss, settings, exist)
        config["run"] = trainer.identity(config)
        with _writing(folder, config, accelerator, resume=resume, overwrite=overwrite) as run:
            if run.begun is not None:
                trainer.restore(folder, run.begun)
            trainer.prepare(accelerator)
            trained = _train(trainer, run, checkpoint_every, progress, callback)
            return trained if given is model else given.eval()


def _train(
    trainer: Trainer,
    run: Run,
    checkpoint_every: int,
    progress: bool,
    callback: Callable[[int, float], None] | None,
) -> ScoreModel:
    """Make the steps that are left, and bring the folder up to date."""
    steps, place = trainer.settings.steps, trainer.accelerator.device
    if trainer.step > steps:
        more = (
            f"{run.folder} has made {trainer.step} steps already, and steps={steps} asks for "
            "fewer: nothing is left to do"
        )
        warnings.warn(more, stacklevel=3)
    title = f"training {type(trainer.model.sde).__name__}"
    with (
        torch.random.fork_rng([place] if place.type == "cuda" else []),
        stoppable() as stop,
        progress_bar(title, total=steps, show=progress, start=trainer.step) as bar,
    ):
        meter = _Meter(bar, callback, trainer)
        while trainer.step < steps and not trainer.agree(bool(stop)):
            meter.record(trainer.take())
            if trainer.step % checkpoint_every == 0 and trainer.step < steps:
                meter.flush()
                trainer.save(run)
        meter.flush()
        trainer.save(run)
    trained = trainer.finish()
    if trainer.step < steps:
        raise Interrupted(trainer.step, run.folder, stop.signal)
    return trained


@contextmanager
def _accelerated(device: str | None, mixed_precision: str | None) -> Iterator[Any]:
    """An Accelerator of this device and precision: accelerate's own state keeps those that its
    process asked for first.
    """
    accelerate = require("accelerate", "train")
    shared = [
        state._shared_state
        for state in (accelerate.state.AcceleratorState, accelerate.state.PartialState)
    ]
    before = [dict(state) for state in shared]
    # among several processes the state stays: it holds their connection
    alone = before[1].get("num_processes", 1) == 1
    for state in shared if alone else ():
        state.clear()
    try:
        if mixed_precision not in _PRECISIONS:
            raise ValueError(
                "mixed_precision must be one of 'no', 'bf16', 'fp16' and 'fp8', or None; got "
                f"{mixed_precision!r}"
            )
        accelerator = accelerate.Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision)
        alone = accelerator.num_processes == 1
        if device is not None and accelerator.device.type != device:
            raise ValueError(
                f"device must be a kind of device that is there, cpu or cuda say, got {device!r} "
                f"and found {accelerator.device}; "
                "CUDA_VISIBLE_DEVICES chooses among several"
            )
        yield accelerator
    finally:
        for state, kept in zip(shared, before, strict=True) if alone else ():
            state.clear()
            state.update(kept)


def _config(
    model: ScoreModel, data: Mapping[str, Any], settings: Settings, loss: Objective
) -> dict[str, Any]:
    """The configuration of a run, without its name."""
    training = {**asdict(settings), "loss": _name(loss)}
    return {"format": FORMAT, **describe(model), "data": data, "training": training}


def _summary(data: Tensor, condition: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a configuration says of the data and of what stands beside them."""
    beside = {
        name: {"shape": list(value.shape[1:]), "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in condition.items()
    }
    return {"event": list(data.shape[1:]), "count": len(data), "condition": beside}


def _name(loss: Objective) -> dict[str, Any]:
    """The loss as a configuration says it: its class, its plain fields as they are, other values
    that are dataclasses in words.
    """
    given: dict[str, Any] = (
        {field.name: getattr(loss, field.name) for field in fields(loss)}
        if is_dataclass(loss)
        else {}
    )
    plain: dict[str, Any] = {}
    for key, value in given.items():
        simple = value is None or isinstance(value, str | bool | int | float)
        plain[key] = value if simple else repr(value) if is_dataclass(value) else "own"
    return {"class": getattr(loss, "__name__", type(loss).__name__), **plain}


@contextmanager
def _writing(
    folder: Path, config: Mapping[str, Any], accelerator: Any, *, resume: bool, overwrite: bool
) -> Iterator[Run]:
    """The run in ``folder``, which no other process writes meanwhile.

    Raises ValueError, before anything is touched, where it may not be written.
    """
    main = accelerator.is_main_process
    with locked(folder) if main else nullcontext():
        accelerator.wait_for_everyone()
        run = _run_in(folder, config, resume=resume, overwrite=overwrite)
        accelerator.wait_for_everyone()
        if main and run.begun is None and not run.replaces:
            write_config(folder, run.config)
        yield run


def _run_in(folder: Path, config: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Run:
    # A configuration alone is a run that was stopped before its first checkpoint: nothing would be
    # lost.
    if not check_ours(folder) or not any(
        locate(folder, name).exists() for name in (TRAINING, WEIGHTS)
    ):
        return Run(folder, config)
    if overwrite:
        return Run(folder, config, replaces=True)
    if not resume:
        raise ValueError(
            f"{folder} already holds a run; resume it, overwrite it, or choose another folder"
        )
    old = checkpoint.read_config(folder)
    others = [
        other
        for section in ("sde", "network", "model", "data", "training")
        for key, value in json.loads(json.dumps(config[section])).items()
        for other in _differences(f"{section} {key}", old.get(section, {}).get(key, value), value)
        if key != "steps"
    ]
    if others:
        raise ValueError(
            f"{folder} was trained with {'; '.join(others)}; resume with the same settings, or "
            "train into another folder"
        )
    new = {**config, "run": old.get("run", config["run"])}
    return Run(folder, new, begun=old, replaces=json.loads(json.dumps(new)) != old)


def _differences(name: str, before: Any, now: Any) -> list[str]:
    """Where two values of a configuration differ, entry by entry if they have the same ones."""
    one, two = _said(before), _said(now)
    if one == two:
        return []
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return [each for key in one for each in _differences(f"{name} {key}", one[key], two[key])]
    return [f"{name} = {before}, not {now}"]


def _said(value: Any) -> Any:
    """What a configuration says: an option that is None is one that an older version had not."""
    if not isinstance(value, dict):
        return value
    return {key: _said(part) for key, part in value.items() if part is not None}


class _Meter:
    """Loss and rate on the bar. Losses are read every 10 steps, so that a device is not waited for
    at each.
    """

    def __init__(
        self, bar: Bar, callback: Callable[[int, float], None] | None, trainer: Trainer
    ) -> None:
        self.bar = bar
        self.callback = callback
        self.trainer = trainer
        self.pending: list[Tensor] = []
        self.smooth = float("nan")
        self.began, self.first = time.perf_counter(), trainer.step

    def record(self, value: Tensor) -> None:
        self.pending.append(value)
        if self.trainer.step % 10 == 0:
            self.flush()

    def flush(self) -> None:
        if not self.pending:
            return
        mean = float(torch.stack(self.pending).mean())
        self.pending = []
        step = self.trainer.step
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss is {mean} near step {step}; lower lr or look at the network (the last "
                "checkpoint stands)"
            )
        self.smooth = mean if math.isnan(self.smooth) else 0.9 * self.smooth + 0.1 * mean
        rate = (step - self.first) / max(1e-9, time.perf_counter() - self.began)
        self.bar.update(step, f"step {step}  loss {self.smooth:.4f}  {rate:.1f} steps/s")
        if self.callback is not None:
            self.callback(step, mean)
