"""Training by Accelerate: one call from data to a run folder, resumable to the bit."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sdediff._extras import require
from sdediff.calls import Condition
from sdediff.interruption import signal_of, stoppable
from sdediff.model import ScoreModel
from sdediff.objectives import DenoisingScoreMatching, Objective
from sdediff.optimization import Optimization
from sdediff.processes import Processes, joined
from sdediff.progress import progress_bar
from sdediff.run_config import config_of, summary, writing
from sdediff.run_folder import Run, check_ours, check_out
from sdediff.run_log import Log
from sdediff.solvers.given import callback_of, flag, integer
from sdediff.solvers.portable import Portable
from sdediff.sources import Samples, source_of
from sdediff.trainer import Settings, Trainer
from sdediff.training_data import check_about, looked_at
from sdediff.watching import Watch, Watcher

__all__ = ["Interrupted", "Optimization", "Watch", "fit"]

_PRECISIONS: Final = (None, "no", "bf16", "fp16", "fp8")


class Interrupted(Portable, KeyboardInterrupt):
    """What `fit` raises when a signal has stopped it: Ctrl-C, SIGTERM or SIGHUP. It is a
    KeyboardInterrupt.

    ``step``: how many steps of the optimizer were made. A checkpoint of the last one is complete.
    ``out``: the run folder that holds it. `fit` with ``resume=True`` goes on from there.
    ``signum``: the number of the signal.
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
    data: Tensor | np.ndarray[Any, Any] | Dataset[Any] | Iterable[Any],
    *,
    out: str | Path,
    steps: int = 10_000,
    batch_size: int = 128,
    lr: float = 1e-3,
    warmup: int = 100,
    loss: Objective | None = None,
    ema: float | Sequence[float] = 0.999,
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
    optimization: Optimization | None = None,
    watch: Watch | None = None,
) -> ScoreModel:
    """Train the network of ``model`` on ``data``, write a run folder, and return the model with its
    averaged weights.

        model = sd.fit(sd.ScoreModel(net, sd.VP(), "v"), data, out="runs/mine", steps=5000)
        again = sd.load("runs/mine")

    ``data``: samples (N, *event) in your units; the loss sees what the model's `Normalizer` makes
    of them. They are a tensor or a NumPy array of floats, or of bytes (uint8), whose 0..255 become
    [-1, 1]; memory-mapped arrays are read a batch at a time. A torch Dataset has items x, pairs (x,
    label) or pairs (x, {name: value}), whose second parts are the condition. Up to 1 GiB it is read
    once and kept, else a batch at a time. An IterableDataset, such as WebDataset's shards, is read
    in batches of ``batch_size``. A DataLoader, and any other iterable of such batches, gives its
    own batches, and begins anew when it ends.
    ``out``: the run folder. One process at a time writes it, and files that do not belong to a run
    are never overwritten.
    ``steps``, ``batch_size``: the steps of the optimizer, and the samples of each.
    ``lr``, ``warmup``, ``clip``: AdamW has the learning rate ``lr`` after ``warmup`` linear steps,
    and a cosine to zero at ``steps``. The gradient's norm is clipped at ``clip``. To use another
    optimizer or schedule, pass ``optimization`` (`Optimization`).
    ``loss``: a function loss(model, x_0, condition) -> (B,), by default `DenoisingScoreMatching`
    with stratified times.
    ``ema``: the decay of the averaged weights, which is min(``ema``, (1 + k) / (10 + k)) at step k.
    Several decays give an average each. The first is the model's, and ``sd.load(run, ema=decay)``
    loads another one.
    ``condition``: tensors (N, ...) by name, which go to the network with their samples, or a number
    for all samples.
    ``drop``: the probability with which a sample is trained with the model's ``null`` in place of
    its conditions (`ConditionDropout`). Classifier-free guidance needs it.
    ``mask``: which coordinates exist, True or 1: (N, *event), or its first dimensions, or 1 in
    place of some.
    ``seed``: decides batches, times, noise and dropout of each step, so a run that is stopped and
    resumed gives the weights of one that is not. torch's global generator is not changed.
    ``checkpoint_every``: the folder is brought up to date after so many steps, at the end, and on
    Ctrl-C, SIGTERM and SIGHUP. ``losses.csv`` has the loss, the learning rate and the norm of the
    gradient of every step.
    ``resume``: go on from the last checkpoint, or start if there is no run yet. For iterables of
    batches the number of batches is saved, and a resumed run skips as many.
    ``overwrite``: start anew. The old run stays until the first checkpoint of the new one is
    complete.
    ``watch``: measures the loss on held-out data, draws samples and calls trackers (`Watch`).
    ``device``: ``"cpu"`` or ``"cuda"``, by default the one that Accelerate finds.
    ``mixed_precision``: None, ``"no"``, ``"bf16"``, ``"fp16"`` or ``"fp8"``, as in Accelerate.
    ``progress``: whether a line with step, loss and speed is shown.
    ``callback``: a function callback(step, loss), which is called every 10 steps.
    ``about``: the name and the range of the data, which are saved in the configuration.

    Under ``accelerate launch`` every process takes its share of each batch. Data are checked before
    training: tensors as a whole, all other data by 1,024 samples. If the model declares no
    ``data_std``, that of the data is taken. A UserWarning says if the data do not suit the SDE:
    more than 0.02 nats a coordinate are left of them at t_max, or their standard deviation is far
    from the one for which the SDE is made.

    Raises ValueError or TypeError before any work, also if the state of the network cannot be
    saved; `Interrupted` when a signal has stopped it; FloatingPointError if the loss is not finite,
    with the step, the samples and their times; and OSError if a file cannot be written. The last
    checkpoint is whole in each case.
    """
    loss = DenoisingScoreMatching(stratified=True) if loss is None else loss
    folder = check_out(out)
    resume, overwrite = _one_of(folder, resume, overwrite)
    progress = flag("progress", progress)
    callback = callback_of("callback", callback, "of a step and its loss")
    check_about(about)
    optimization = Optimization() if optimization is None else optimization
    watch = Watch() if watch is None else watch
    given, model = model, getattr(model, "learner", model)
    decays = tuple(ema) if isinstance(ema, Sequence) else ema
    settings = Settings(steps, batch_size, lr, warmup, decays, clip, seed)
    checkpoint_every = integer("checkpoint_every", checkpoint_every, 1)
    check_ours(folder)
    source = source_of(data, condition, mask, settings.batch_size, settings.seed)
    loss, few, found, clean, exist = looked_at(given, loss, source, drop)
    said = {**summary(source, few, found), **(about or {})}
    parts, trackers = optimization.accumulate, watch.names
    with _accelerated(device, mixed_precision, parts, trackers, folder) as accelerator:
        trainer = Trainer(model, source, loss, settings, optimization)
        config = config_of(given, said, loss, trainer)
        config["run"] = trainer.identity(config, few, found)
        images = bool(said.get("image", False))
        watcher = Watcher(watch, trainer, folder, data=few, clean=clean, images=images)
        with writing(folder, config, accelerator, resume=resume, overwrite=overwrite) as run:
            if run.begun is not None:
                trainer.restore(folder, run.begun)
            with _all_of(accelerator) as among:
                trainer.prepare(accelerator, among)
                trained = _train(trainer, watcher, run, checkpoint_every, progress, callback)
                _measure(trainer, run, Samples(clean, found, exist))
            return trained if given is model else given.eval()


def _one_of(folder: Path, resume: bool, overwrite: bool) -> tuple[bool, bool]:
    """Both flags; a ValueError if both are set."""
    resume, overwrite = flag("resume", resume), flag("overwrite", overwrite)
    if resume and overwrite:
        raise ValueError(
            f"resume goes on with the run in {folder} and overwrite starts anew: pass one of them"
        )
    return resume, overwrite


def _train(
    trainer: Trainer,
    watcher: Watcher,
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
    progress = progress and trainer.accelerator.is_main_process
    with (
        torch.random.fork_rng([place] if place.type == "cuda" else []),
        stoppable() as stop,
        progress_bar(title, total=steps, show=progress, start=trainer.step) as bar,
    ):
        log = Log(run, trainer, bar, callback)
        with _explained(log), watcher.tracking():
            log.go_on()
            while trainer.step < steps and not trainer.agree(bool(stop)):
                log.record(trainer.take())
                if watcher.due(trainer.step):
                    log.flush()
                    log.found_at(trainer.step, watcher.look())
                if trainer.step % checkpoint_every == 0 and trainer.step < steps:
                    log.save()
            log.save()
    trained = trainer.finish()
    if trainer.step < steps:
        raise Interrupted(trainer.step, run.folder, stop.signal)
    return trained


def _all_of(accelerator: Any) -> AbstractContextManager[Processes]:
    """The processes that train."""
    return joined() if accelerator.num_processes > 1 else nullcontext(Processes())


def _measure(trainer: Trainer, run: Run, samples: Samples) -> None:
    """Measure the details of the data. The run is complete before that, and stays so."""
    try:
        trainer.measured(run, samples)
    except KeyboardInterrupt as stop:
        raise Interrupted(trainer.step, run.folder, signal_of(stop)) from stop
    except Exception as error:  # of any kind: no memory is left, say
        if trainer.accelerator.is_main_process:
            first = (str(error) or "no more is known").splitlines()[0]
            warnings.warn(
                f"the details of the data were not measured ({type(error).__name__}: {first}); the "
                f"run in {run.folder} is complete, and the default solver takes them for a tenth "
                "of the size of the data: model.detail_std = sdediff.tuning.measure(model, data) "
                "measures them",
                stacklevel=3,
            )


@contextmanager
def _explained(log: Log) -> Iterator[None]:
    """Say of a file that cannot be written at which step that was, and what is left."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        folder, saved = log.run.folder, log.saved
        left = f"the checkpoint of step {saved} is whole" if saved else "no checkpoint was written"
        raise OSError(
            error.errno,
            f"{error.strerror} at step {log.trainer.step} of the run in {folder}; {left}: make "
            "room or mend the folder, and go on with resume",
            error.filename,
        ) from error


@contextmanager
def _accelerated(
    device: str | None,
    mixed_precision: str | None,
    accumulate: int,
    trackers: Sequence[str],
    folder: Path,
) -> Iterator[Any]:
    """An Accelerator of this device and precision: accelerate's own state keeps those that its
    process asked for first.
    """
    accelerate = require("accelerate", "train")
    shared = [
        state._shared_state
        for state in (
            accelerate.state.AcceleratorState,
            accelerate.state.PartialState,
            accelerate.state.GradientState,
        )
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
        accelerator = accelerate.Accelerator(
            cpu=device == "cpu",
            mixed_precision=mixed_precision,
            gradient_accumulation_steps=accumulate,
            log_with=list(trackers) or None,
            project_dir=folder,
        )
        alone = accelerator.num_processes == 1
        kind = accelerator.distributed_type.value
        if not kind.startswith(("NO", "MULTI_")):
            raise ValueError(
                f"fit keeps whole weights in each process, and {kind} divides them: write the loop "
                "yourself, as examples/accelerate_loop.py does, or launch without it"
            )
        if len(accelerator.log_with) < len(set(trackers)):
            raise ImportError(
                f"of the trackers {', '.join(trackers)} not all are installed: install the library "
                "of each, pip install tensorboard say"
            )
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
