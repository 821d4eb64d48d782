"""The state of a training run: one step of the optimizer, its averaged weights, and how both are
kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from sdediff.averaging import averaged, copied, part_of
from sdediff.checkpoint import DETAILS, SCHEDULE, read_run
from sdediff.details import measure
from sdediff.drawing import Draws, noted_times
from sdediff.model import ScoreModel
from sdediff.objectives import Objective
from sdediff.objectives.objective import seen_by
from sdediff.optimization import Optimization, check_trainable
from sdediff.processes import Processes, dividing
from sdediff.run_folder import TRAINING, Run
from sdediff.solvers.given import Record, integer
from sdediff.sources import Samples, Source, batch, seed_of
from sdediff.states import checksum, module_state, pack, serialise, set_module_state, unpack

__all__ = ["Made", "Settings", "Trainer", "averaged", "batch"]

_MEASURED: Final = 64
"""Samples by which the details of the data are measured."""


@dataclass(frozen=True)
class Settings(Record):
    """The numbers of a run; `sdediff.fit` documents them."""

    steps: int
    batch_size: int
    lr: float
    warmup: int
    ema: float | tuple[float, ...]
    clip: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            _ = integer(name, getattr(self, name), 1, kind="positive, an int")
        for name in ("warmup", "seed"):
            _ = integer(name, getattr(self, name), kind="a non-negative int")
        for name, value in (
            ("lr", self.lr),
            ("clip", self.clip),
            *(("ema", d) for d in self.decays),
        ):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value!r}")
        for decay in self.decays:
            if decay >= 1:
                raise ValueError(f"ema is a decay below 1, 0.999 say; got {decay!r}")
        if not self.decays or len(set(self.decays)) < len(self.decays):
            raise ValueError(f"ema must be a decay, or several different ones; got {self.ema!r}")

    @property
    def decays(self) -> tuple[float, ...]:
        """The decays of the averages; the first is the model's own."""
        return self.ema if isinstance(self.ema, tuple) else (self.ema,)

    def rate(self, step: int, peak: float) -> float:
        """Learning rate of a step: a linear warm-up times a cosine that ends at zero."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return peak * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Made(NamedTuple):
    """A step of the optimizer that was made, and what it saw."""

    step: int
    """1 for the first."""
    loss: Tensor
    """The mean over the batch, as far as this process has it."""
    norm: Tensor | None
    """Of the gradient, before it was clipped."""
    rate: float
    losses: Tensor
    """(B,), of the rows of this process."""
    times: Tensor | None
    """(B,), where the loss evaluates the model at one time a sample."""
    rows: Tensor
    """Their places in the batch."""
    named: Callable[[Tensor], str]
    """What to call some of them."""


class Trainer:
    """A model on its way. What a step does depends on the seed and the step's number alone."""

    def __init__(
        self,
        model: ScoreModel,
        source: Source,
        loss: Objective,
        settings: Settings,
        optimization: Optimization,
    ) -> None:
        self.model = model
        self.source = source
        self.loss = loss
        self.settings = settings
        self.optimization = optimization
        self.module = cast(Any, model.net)
        schedule = getattr(model.sde, "schedule", None)
        # learned with the network
        self.schedule: nn.Module = schedule if isinstance(schedule, nn.Module) else nn.Module()
        learned = [*self.module.parameters(), *self.schedule.parameters()]
        check_trainable(self.module, learned)
        self.averages = {decay: copied(self.module, decay) for decay in settings.decays}
        self.ema = self.averages[settings.decays[0]]
        self.optimizer: Any = optimization.made(learned, settings.lr)
        self._peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.step = 0
        self._prove()

    def prepare(self, accelerator: Any, among: Processes) -> None:
        """Move everything to the accelerator's device and let it wrap what it runs; ``among`` are
        the processes that train.
        """
        self.accelerator, self.among = accelerator, among
        self.model.to(accelerator.device)
        for average in self.averages.values():
            average.to(accelerator.device)
        self.model.net, self.optimizer = accelerator.prepare(self.module, self.optimizer)
        self.model.train()
        self._batches = self.source.batches(self.step)

    def take(self) -> Made:
        """One step of the optimizer."""
        accelerator, step, seed = self.accelerator, self.step, self.settings.seed
        # Under fork_rng of fit: what a Dataset draws in this process, then noise and dropout.
        torch.manual_seed(seed_of(seed, 3, step))
        taken = next(self._batches)
        torch.manual_seed(seed_of(seed, 1, step, accelerator.process_index))
        rates = [self._rate(peak) for peak in self._peaks]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        parts = self._parts(taken.size)
        whole = Draws(taken.size, seed_of(seed, 1, step, 0))
        divided = len(parts[0]) < taken.size
        self.optimizer.zero_grad()
        found, times, norm = [], [], None
        for rows in parts:
            samples = taken.part(rows)
            with accelerator.accumulate(self.model.net), noted_times() as noted:
                if divided:
                    with whole.of(rows):
                        losses = self.losses(samples)
                else:
                    losses = self.losses(samples)
                # the mean of the parts' means, where they are not of one size
                share = len(parts) * accelerator.num_processes * len(rows) / taken.size
                accelerator.backward(losses.mean() * share)
                if accelerator.sync_gradients:
                    norm = self._clipped()
                self.optimizer.step()
            found.append(losses.detach())
            times += [t for t in noted if t.shape == losses.shape][:1]
        whole.learn(lambda noted: self.among.each(lambda: noted))
        for average in self.averages.values():
            average.update_parameters(self.module)
        self.step += 1
        if self.step == 1:
            self.optimization.check_state(self.optimizer)
        losses, rows = torch.cat(found), torch.cat(parts)
        loss = losses.mean() * (accelerator.num_processes * len(rows) / taken.size)
        known = torch.cat(times) if len(times) == len(parts) else None
        return Made(self.step, loss, norm, rates[0], losses, known, rows, taken.named)

    def _rate(self, peak: float) -> float:
        schedule = self.optimization.schedule
        return (
            self.settings.rate(self.step, peak) if schedule is None else peak * schedule(self.step)
        )

    def _parts(self, count: int) -> list[Tensor]:
        """The rows of a batch that this process takes, in as many parts as gradients are added
        up.
        """
        processes, parts = self.accelerator.num_processes, self.optimization.accumulate
        if count < processes * parts:
            raise ValueError(
                f"a batch of {count} samples cannot be divided among {processes} processes times "
                f"accumulate={parts}: take larger batches (of a DataLoader: drop_last=True)"
            )
        own = torch.arange(count)[self.accelerator.process_index :: processes]
        return list(own.tensor_split(parts))

    def _clipped(self) -> Tensor:
        """Clip the gradient; returns its norm before."""
        accelerator = self.accelerator
        for value in self.schedule.parameters():  # which the wrapped network does not know of
            if accelerator.num_processes > 1 and value.grad is not None:
                value.grad = accelerator.reduce(value.grad, "mean")
        norm: Tensor = accelerator.clip_grad_norm_(self.module.parameters(), self.settings.clip)
        return norm.detach()

    def losses(self, samples: Samples) -> Tensor:
        """The losses (B,) of these samples."""
        device = self.accelerator.device
        given = {name: value.to(device) for name, value in samples.condition.items()}
        x_0 = self._seen(samples.x.to(device))
        there: dict[str, Any] = {} if samples.mask is None else {"mask": samples.mask.to(device)}
        with self.accelerator.autocast():
            losses = self.loss(self.model, x_0, given, **there)
        if not isinstance(losses, Tensor) or not losses.is_floating_point():
            raise TypeError(
                "loss must return the losses of the samples, a tensor (B,), got "
                f"{type(losses).__name__}"
            )
        if torch.is_grad_enabled() and not losses.requires_grad:
            raise ValueError(
                "the loss does not depend on a parameter that requires grad; does the network "
                "use its parameters?"
            )
        return losses

    def _seen(self, y: Tensor) -> Tensor:
        """Data in the user's units as the loss sees them."""
        normalizer = self.model.normalizer
        return seen_by(self.loss, y, (lambda x: x) if normalizer is None else normalizer.normalize)

    def agree(self, stop: bool) -> bool:
        """Whether one of the processes was told to stop: all of them then make the same number of
        steps.
        """
        if self.accelerator.num_processes == 1:
            return stop
        told = torch.tensor(float(stop), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, "sum") > 0)

    def finish(self) -> ScoreModel:
        """Give the model its averaged weights."""
        set_module_state(self.module, self._averages(self.ema))
        self.model.net = self.module
        return self.model.eval()

    def _averages(self, average: Any) -> dict[str, Any]:
        """The averaged weights; what is no tensor is the network's own, as buffers are."""
        state = module_state(average.module)
        current = module_state(self.module)
        return {
            name: value if isinstance(value, Tensor) else current[name]
            for name, value in state.items()
        }

    def _states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `save` keeps: of the training, and of the averaged model."""
        schedule = {f"{SCHEDULE}{k}": v for k, v in self.schedule.state_dict().items()}
        averages = self._averages(self.ema)
        state = {f"net.{k}": v for k, v in module_state(self.module).items()} | {
            f"ema.{k}": v for k, v in averages.items()
        }
        for number, other in enumerate(self.averages.values()):
            if number:
                state |= {f"{part_of(number)}.{k}": v for k, v in self._averages(other).items()}
        for i, entry in self.optimizer.state_dict()["state"].items():
            state |= {
                f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in entry.items() if v is not None
            }
        if hasattr(self.loss, "state_dict"):
            state |= {f"loss.{k}": v for k, v in self.loss.state_dict().items()}
        return state | schedule, averages | schedule

    def _prove(self) -> None:
        """Raise ValueError unless what `save` will write can be written and read, before any step
        is made.
        """
        try:
            serialise(self._states()[0], {})
            set_module_state(self.ema.module, unpack(*pack(self._averages(self.ema))))
        except Exception as error:  # of any kind: the network's own methods are called
            raise ValueError(
                f"the state of {type(self.module).__name__} cannot be kept in a run folder: {error}"
            ) from error

    def identity(
        self, config: Mapping[str, Any], data: Tensor, condition: Mapping[str, Tensor]
    ) -> str:
        """A name of the run: by its configuration, its first weights and its data, so that equal
        runs write equal files.
        """
        rows = torch.linspace(0, len(data) - 1, min(len(data), 1024)).long()
        given = {
            "data": data,
            **{f"condition.{name}": value for name, value in condition.items()},
        }
        state = self._states()[0] | {
            name: value[rows.to(value.device)] for name, value in given.items()
        }
        tensors, notes = pack(state)
        return checksum(tensors, {**notes, "config": json.dumps(config, sort_keys=True)})[:16]

    def save(self, run: Run, tables: Mapping[str, bytes | None]) -> None:
        """Bring the folder of the run up to date; ``tables`` are those of a run that replaces
        another.
        """
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        training, averages = (serialise(state, self._facts(run)) for state in self._states())
        run.save(training, averages, tables)

    def measured(self, run: Run, samples: Samples) -> None:
        """Measure the details of the data by the averaged weights, after `finish`, and keep their
        size beside these. No more states are in memory than in a part of a step.
        """
        model = self.model
        if "kernel" not in model.sde.offers:
            return
        x_0, condition, mask = samples.some(_MEASURED)
        parts = self.accelerator.num_processes * self.optimization.accumulate
        size = max(1, self.settings.batch_size // (2 * parts))  # each sample is two states
        seed = self.settings.seed
        with dividing(self.among):
            model.detail_std = measure(
                model, x_0, condition=condition, mask=mask, batch_size=size, seed=seed
            )
        if self.accelerator.is_main_process:
            meta = self._facts(run) | {DETAILS: repr(model.detail_std)}
            run.save_weights(serialise(self._states()[1], meta))

    def _facts(self, run: Run) -> dict[str, str]:
        return {"step": str(self.step), "run": run.config["run"]}

    def restore(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Go back to where the folder's last checkpoint stands; before `prepare`."""
        tensors, meta = read_run(folder, TRAINING, config)
        averages = {part_of(k): average for k, average in enumerate(self.averages.values())}
        names = ("net", *averages, "optimizer", "loss", "schedule")
        parts: dict[str, dict[str, Any]] = {name: {} for name in names}
        try:
            for name, value in tensors.items():
                part, key = name.split(".", 1)
                parts[part][key] = value
            self.step = int(meta["step"])
            set_module_state(self.module, parts["net"])
            self.schedule.load_state_dict(parts["schedule"])
            for name, average in averages.items():
                set_module_state(average.module, parts[name])
                average.n_averaged.fill_(self.step)
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in parts["optimizer"].items():
                i, name = key.split(".", 1)
                state.setdefault(int(i), {})[name] = value
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
            if hasattr(self.loss, "load_state_dict"):
                self.loss.load_state_dict(parts["loss"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{folder / TRAINING} does not fit this training ({error}); train anew"
            ) from error
