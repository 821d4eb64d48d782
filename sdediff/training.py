"""Training by Accelerate: one call from data to a run folder, resumable to the bit."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdediff import checkpoint
from sdediff._extras import require
from sdediff.model import ScoreModel
from sdediff.objectives import DenoisingScoreMatching
from sdediff.progress import Bar, progress_bar

__all__ = ["Interrupted", "fit"]


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C after ``step`` steps; a checkpoint of that step is in the run folder."""

    def __init__(self, step: int, out: Path) -> None:
        super().__init__(f"stopped after step {step}; {out} holds a checkpoint of it, go on with resume")
        self.step, self.out = step, out


@dataclass
class _Training:
    """What changes from step to step."""

    net: nn.Module
    ema: Any
    optimizer: torch.optim.Optimizer
    step: int = 0


def fit(
    model: ScoreModel,
    data: Tensor,
    *,
    out: str | Path,
    steps: int = 10_000,
    batch_size: int = 128,
    lr: float = 1e-3,
    warmup: int = 100,
    loss: DenoisingScoreMatching | None = None,
    ema: float = 0.999,
    clip: float = 1.0,
    condition: Mapping[str, Tensor] | None = None,
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
    """Train the network of ``model`` on ``data`` (N, *event), write a run folder and return the model with its averaged weights.

    AdamW with ``warmup`` linear steps and a cosine to zero at ``steps``, the gradient's norm clipped at ``clip``; the weights are
    averaged with decay min(``ema``, (1 + k) / (10 + k)) at step k. ``loss`` is by default `DenoisingScoreMatching` with stratified
    times. ``condition`` holds tensors (N, ...) that go to the network with their samples.

    Batches, times, noise and dropout of a step depend on ``seed`` and its number alone, so that a run that is stopped and resumed
    gives the weights of one that is not. torch's global generator is left as it was. Under ``accelerate launch`` every process
    takes its share of each batch.

    ``checkpoint_every`` steps, at the end and on Ctrl-C the folder ``out`` is brought up to date. ``resume`` goes on from there;
    ``overwrite`` starts anew. ``about`` (name, range of the data) is kept in the configuration. ``callback(step, loss)`` is called
    every 10 steps. Raises ValueError before any work, `Interrupted` on Ctrl-C, FloatingPointError if the loss is not finite.
    """
    loss = loss or DenoisingScoreMatching(stratified=True)
    condition = dict(condition or {})
    _check(model, data, condition, steps=steps, batch_size=batch_size, lr=lr, ema=ema, checkpoint_every=checkpoint_every)
    folder = Path(out)
    settings = {"steps": steps, "batch_size": batch_size, "lr": lr, "warmup": warmup, "ema": ema, "clip": clip, "seed": seed}
    config = {
        "format": 1,
        **checkpoint.describe(model),
        "data": {"event": list(data.shape[1:]), "count": len(data), **(about or {})},
        "training": {**settings, "loss": _name(loss)},
    }
    _prepare_folder(folder, config, resume=resume, overwrite=overwrite)

    accelerate = require("accelerate", "train")
    accelerator = accelerate.Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision)
    module: Any = model.net
    run = _Training(module, _averaged(module, ema), torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.99)))
    if resume:
        _restore(run, folder)
    elif accelerator.is_main_process:
        _save_config(folder, config)
    model.to(accelerator.device)
    run.ema.to(accelerator.device)
    run.net, run.optimizer = accelerator.prepare(run.net, run.optimizer)
    model.net = run.net
    model.train()

    def take(step: int) -> Tensor:
        """One step of the optimizer; returns the loss."""
        index = _batch(len(data), batch_size, seed, step)[accelerator.process_index :: accelerator.num_processes]
        torch.manual_seed(_step_seed(seed, step, accelerator.process_index))
        for group in run.optimizer.param_groups:
            group["lr"] = lr * _schedule(step, steps, warmup)
        given = {name: value[index].to(accelerator.device) for name, value in condition.items()}
        with accelerator.autocast():
            value = loss(model, data[index].to(accelerator.device), given).mean()
        run.optimizer.zero_grad()
        accelerator.backward(value)
        accelerator.clip_grad_norm_(run.net.parameters(), clip)
        run.optimizer.step()
        run.ema.update_parameters(accelerator.unwrap_model(run.net))
        return value

    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    title = f"training {type(model.sde).__name__}"
    with (
        torch.random.fork_rng(devices),
        _stop_flag() as stop,
        progress_bar(title, total=steps, show=progress, start=run.step) as bar,
    ):
        meter = _Meter(bar, callback, run)
        while run.step < steps and not stop.is_set():
            value = take(run.step)
            run.step += 1
            meter.record(value)
            if run.step % checkpoint_every == 0 and run.step < steps:
                meter.flush()
                _save(run, folder, accelerator)
        meter.flush()
    _save(run, folder, accelerator)
    module.load_state_dict(run.ema.module.state_dict())
    model.net = module
    if run.step < steps:
        raise Interrupted(run.step, folder)
    return model.eval()


def _name(loss: DenoisingScoreMatching) -> dict[str, Any]:
    return {key: value if isinstance(value, str | bool) else "custom" for key, value in vars(loss).items()}


def _check(model: ScoreModel, data: Tensor, condition: Mapping[str, Tensor], **numbers: float) -> None:
    if not isinstance(model, ScoreModel) or not isinstance(model.net, nn.Module):
        raise TypeError(f"fit needs a ScoreModel around a torch module, got {type(model).__name__}; wrap it: ScoreModel(net, sde)")
    if not isinstance(data, Tensor) or data.ndim < 1 or not data.is_floating_point() or len(data) < 1:
        got = f"{data.dtype} of shape {tuple(data.shape)}" if isinstance(data, Tensor) else type(data).__name__
        raise TypeError(f"data must be a floating-point tensor (N, *event), got {got}; images as x.float() / 127.5 - 1, say")
    bad = int((~torch.isfinite(data)).sum())
    if bad:
        raise ValueError(f"data contains {bad} values that are not finite; drop or mend those samples")
    for name, value in condition.items():
        if not isinstance(value, Tensor) or value.ndim < 1 or len(value) != len(data):
            raise ValueError(f"condition {name!r} must be a tensor with one row for each of the {len(data)} samples")
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be positive, got {number!r}")
    if numbers["ema"] >= 1:
        raise ValueError(f"ema is a decay below 1, 0.999 say; got {numbers['ema']!r}")


def _prepare_folder(folder: Path, config: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    exists = (folder / checkpoint.CONFIG).exists()
    if resume:
        old = checkpoint.read_config(folder)
        for section in ("sde", "network", "model", "data", "training"):
            for key in config[section]:
                before = old.get(section, {}).get(key)
                if key != "steps" and before != json.loads(json.dumps(config[section][key])):
                    raise ValueError(
                        f"{folder} was trained with {section} {key} = {before}, not {config[section][key]}; "
                        "resume with the same settings, or train into another folder"
                    )
    elif exists and not overwrite:
        raise ValueError(f"{folder} already holds a run; resume it, overwrite it, or choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(folder / ".writable", b"")
        (folder / ".writable").unlink()
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
    if exists and overwrite:
        for name in (checkpoint.CONFIG, checkpoint.WEIGHTS, checkpoint.TRAINING):
            (folder / name).unlink(missing_ok=True)


def _save_config(folder: Path, config: dict[str, Any]) -> None:
    checkpoint.write_atomically(folder / checkpoint.CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def _averaged(net: nn.Module, decay: float) -> Any:
    @torch.no_grad()
    def average(averaged: Any, current: Any, count: Any) -> None:
        k = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + k) / (10 + k)))

    return torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=average, use_buffers=False)


def _save(run: _Training, folder: Path, accelerator: Any) -> None:
    """Bring the folder up to date: the training state first, so that the weights never run ahead of it."""
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    net = accelerator.unwrap_model(run.net).state_dict()
    ema = run.ema.module.state_dict()
    state = run.optimizer.state_dict()["state"]
    tensors = {f"net.{k}": v for k, v in net.items()} | {f"ema.{k}": v for k, v in ema.items()}
    tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for i, entry in state.items() for k, v in entry.items()}
    meta = {"step": str(run.step)}
    checkpoint.write_tensors(folder / checkpoint.TRAINING, tensors, meta)
    checkpoint.write_tensors(folder / checkpoint.WEIGHTS, ema, meta)


def _restore(run: _Training, folder: Path) -> None:
    tensors, meta = checkpoint.read_tensors(folder / checkpoint.TRAINING)
    parts: dict[str, dict[str, Tensor]] = {"net": {}, "ema": {}, "optimizer": {}}
    try:
        for name, value in tensors.items():
            part, key = name.split(".", 1)
            parts[part][key] = value
        run.step = int(meta["step"])
        run.net.load_state_dict(parts["net"])
        run.ema.module.load_state_dict(parts["ema"])
        run.ema.n_averaged.fill_(run.step)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            i, name = key.split(".", 1)
            state.setdefault(int(i), {})[name] = value
        run.optimizer.load_state_dict({"state": state, "param_groups": run.optimizer.state_dict()["param_groups"]})
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder / checkpoint.TRAINING} does not fit this training ({error}); train anew") from error


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up times a cosine that ends at zero."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def _step_seed(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence((seed, 1, step, process)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _batch(count: int, size: int, seed: int, step: int) -> Tensor:
    """Which samples step ``step`` sees: consecutive pieces of a shuffle of the data for each epoch."""
    position = np.arange(step * size, (step + 1) * size)
    epochs, within = position // count, position % count
    index = np.empty(size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.Generator(np.random.PCG64((seed, 0, int(epoch)))).permutation(count)
        chosen = epochs == epoch
        index[chosen] = order[within[chosen]]
    return torch.from_numpy(index)


@contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that a step is never cut in two; a second Ctrl-C interrupts at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def stop(signum: int, frame: Any) -> None:
        flag.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)


class _Meter:
    """Loss and rate on the bar. Losses are read every 10 steps, so that a device is not waited for at each."""

    def __init__(self, bar: Bar, callback: Callable[[int, float], None] | None, run: _Training) -> None:
        self.bar, self.callback, self.run = bar, callback, run
        self.pending: list[Tensor] = []
        self.smooth = float("nan")
        self.began, self.first = time.perf_counter(), run.step

    def record(self, value: Tensor) -> None:
        self.pending.append(value.detach())
        if self.run.step % 10 == 0:
            self.flush()

    def flush(self) -> None:
        if not self.pending:
            return
        mean = float(torch.stack(self.pending).mean())
        self.pending = []
        step = self.run.step
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss is {mean} near step {step}; lower lr or look at the network (the last checkpoint stands)"
            )
        self.smooth = mean if math.isnan(self.smooth) else 0.9 * self.smooth + 0.1 * mean
        rate = (step - self.first) / max(1e-9, time.perf_counter() - self.began)
        self.bar.update(step, f"step {step}  loss {self.smooth:.4f}  {rate:.1f} steps/s")
        if self.callback is not None:
            self.callback(step, mean)
