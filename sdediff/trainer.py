"""The state of a training run: one step of the optimizer, its averaged weights, and how both are
kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sdediff.checkpoint import SCHEDULE, read_run
from sdediff.model import ScoreModel
from sdediff.objectives import Objective
from sdediff.objectives.objective import seen_by
from sdediff.run_folder import TRAINING, Run
from sdediff.solvers.given import Record, integer
from sdediff.states import checksum, module_state, pack, serialise, set_module_state, unpack

__all__ = ["Settings", "Trainer"]


@dataclass(frozen=True)
class Settings(Record):
    """The numbers of a run; `sdediff.fit` documents them."""

    steps: int
    batch_size: int
    lr: float
    warmup: int
    ema: float
    clip: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            _ = integer(name, getattr(self, name), 1, kind="positive, an int")
        for name in ("warmup", "seed"):
            _ = integer(name, getattr(self, name), kind="a non-negative int")
        for name in ("lr", "ema", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if self.ema >= 1:
            raise ValueError(f"ema is a decay below 1, 0.999 say; got {self.ema!r}")

    def rate(self, step: int) -> float:
        """Learning rate of a step: a linear warm-up times a cosine that ends at zero."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Trainer:
    """A model on its way. What a step does depends on the seed and the step's number alone."""

    def __init__(
        self,
        model: ScoreModel,
        data: Tensor,
        condition: Mapping[str, Tensor],
        loss: Objective,
        settings: Settings,
        mask: Tensor | None = None,
    ) -> None:
        self.mask = mask
        self.model = model
        self.data = data
        self.condition = condition
        self.loss = loss
        self.settings = settings
        self.module = cast(Any, model.net)
        schedule = getattr(model.sde, "schedule", None)
        # learned with the network
        self.schedule: nn.Module = schedule if isinstance(schedule, nn.Module) else nn.Module()
        learned = [*self.module.parameters(), *self.schedule.parameters()]
        _check_trainable(self.module, learned)
        self.ema = _copied(self.module, settings.ema)
        fused = not any(p.is_complex() for p in learned)
        self.optimizer: Any = torch.optim.AdamW(
            learned, lr=settings.lr, betas=(0.9, 0.99), fused=fused
        )
        self.step = 0
        self._prove()

    def prepare(self, accelerator: Any) -> None:
        """Move everything to the accelerator's device and let it wrap what it runs."""
        self.accelerator = accelerator
        self.model.to(accelerator.device)
        self.ema.to(accelerator.device)
        self.model.net, self.optimizer = accelerator.prepare(self.module, self.optimizer)
        self.model.train()

    def take(self) -> Tensor:
        """One step of the optimizer; returns the loss."""
        settings = self.settings
        accelerator = self.accelerator
        process = self.accelerator.process_index
        index = batch(len(self.data), settings.batch_size, settings.seed, self.step)[
            process :: accelerator.num_processes
        ]
        # Under fork_rng of fit: times, noise and dropout of the step.
        torch.manual_seed(_step_seed(settings.seed, self.step, process))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        given = {
            name: value[index].to(accelerator.device) for name, value in self.condition.items()
        }
        x_0 = self._seen(self.data[index].to(accelerator.device))
        there: dict[str, Any] = (
            {} if self.mask is None else {"mask": self.mask[index].to(accelerator.device)}
        )
        with accelerator.autocast():
            losses = self.loss(self.model, x_0, given, **there)
            if not isinstance(losses, Tensor) or not losses.is_floating_point():
                raise TypeError(
                    "loss must return the losses of the samples, a tensor (B,), got "
                    f"{type(losses).__name__}"
                )
            value = losses.mean()
        if not value.requires_grad:
            raise ValueError(
                "the loss does not depend on a parameter that requires grad; does the network "
                "use its parameters?"
            )
        self.optimizer.zero_grad()
        accelerator.backward(value)
        accelerator.clip_grad_norm_(self.module.parameters(), settings.clip)
        self.optimizer.step()
        self.ema.update_parameters(self.module)
        self.step += 1
        return value.detach()

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
        set_module_state(self.module, self._averages())
        self.model.net = self.module
        return self.model.eval()

    def _averages(self) -> dict[str, Any]:
        """The averaged weights; what is no tensor is the network's own, as buffers are."""
        state = module_state(self.ema.module)
        current = module_state(self.module)
        return {
            name: value if isinstance(value, Tensor) else current[name]
            for name, value in state.items()
        }

    def _states(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `save` keeps: of the training, and of the averaged model."""
        schedule = {f"{SCHEDULE}{k}": v for k, v in self.schedule.state_dict().items()}
        averages = self._averages()
        state = {f"net.{k}": v for k, v in module_state(self.module).items()} | {
            f"ema.{k}": v for k, v in averages.items()
        }
        for i, entry in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in entry.items()}
        if hasattr(self.loss, "state_dict"):
            state |= {f"loss.{k}": v for k, v in self.loss.state_dict().items()}
        return state | schedule, averages | schedule

    def _prove(self) -> None:
        """Raise ValueError unless what `save` will write can be written and read, before any step
        is made.
        """
        try:
            serialise(self._states()[0], {})
            set_module_state(self.ema.module, unpack(*pack(self._averages())))
        except Exception as error:  # of any kind: the network's own methods are called
            raise ValueError(
                f"the state of {type(self.module).__name__} cannot be kept in a run folder: {error}"
            ) from error

    def identity(self, config: Mapping[str, Any]) -> str:
        """A name of the run: by its configuration, its first weights and its data, so that equal
        runs write equal files.
        """
        rows = torch.linspace(0, len(self.data) - 1, min(len(self.data), 1024)).long()
        given = {
            "data": self.data,
            **{f"condition.{name}": value for name, value in self.condition.items()},
        }
        state = self._states()[0] | {
            name: value[rows.to(value.device)] for name, value in given.items()
        }
        tensors, notes = pack(state)
        return checksum(tensors, {**notes, "config": json.dumps(config, sort_keys=True)})[:16]

    def save(self, run: Run) -> None:
        """Bring the folder of the run up to date."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        meta = {"step": str(self.step), "run": run.config["run"]}
        training, averages = (serialise(state, meta) for state in self._states())
        run.save(training, averages)

    def restore(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Go back to where the folder's last checkpoint stands; before `prepare`."""
        tensors, meta = read_run(folder, TRAINING, config)
        parts: dict[str, dict[str, Any]] = {
            "net": {},
            "ema": {},
            "optimizer": {},
            "loss": {},
            "schedule": {},
        }
        try:
            for name, value in tensors.items():
                part, key = name.split(".", 1)
                parts[part][key] = value
            self.step = int(meta["step"])
            set_module_state(self.module, parts["net"])
            set_module_state(self.ema.module, parts["ema"])
            self.schedule.load_state_dict(parts["schedule"])
            self.ema.n_averaged.fill_(self.step)
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


def _check_trainable(module: nn.Module, learned: Sequence[Tensor]) -> None:
    """Raise ValueError unless there are parameters, all have values, and one of them is to be
    trained.
    """
    name = type(module).__name__
    for part, value in (*module.named_parameters(), *module.named_buffers()):
        if torch.nn.parameter.is_lazy(value):
            raise ValueError(
                f"{part} of {name} has no shape before the network is first called; call it "
                "once: net(data[:1], torch.ones(1))"
            )
        if value.is_meta:
            raise ValueError(
                f"{part} of {name} is on the meta device, without values; build the network on a "
                "real one"
            )
    if not learned:
        raise ValueError(f"{name} has no parameters, so there is nothing to train")
    if not any(value.requires_grad for value in learned):
        raise ValueError(
            f"every parameter of {name} is frozen, so there is nothing to train; "
            "net.requires_grad_() unfreezes all of them"
        )


def _copied(module: nn.Module, decay: float) -> Any:
    try:
        return averaged(module, decay)
    # what its own attributes make of a deep copy
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{type(module).__name__} cannot be copied, which averaging its weights needs "
            f"({error}); a parametrization, "
            "torch.nn.utils.parametrizations.weight_norm say, can be where an older hook cannot"
        ) from error


def averaged(net: nn.Module, decay: float) -> Any:
    """A copy of ``net`` that follows it with decay min(decay, (1 + k) / (10 + k)) at update k."""

    @torch.no_grad()
    def average(mean: Any, current: Any, count: Any) -> None:
        k = int(count)
        torch._foreach_lerp_(mean, current, 1 - min(decay, (1 + k) / (10 + k)))

    return torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=average, use_buffers=False)


def batch(count: int, size: int, seed: int, step: int) -> Tensor:
    """Which samples step ``step`` sees: consecutive pieces of a shuffle of the data for each
    epoch.
    """
    position = np.arange(step * size, (step + 1) * size)
    epochs, within = position // count, position % count
    index = np.empty(size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.Generator(np.random.PCG64((seed, 0, int(epoch)))).permutation(count)
        chosen = epochs == epoch
        index[chosen] = order[within[chosen]]
    return torch.from_numpy(index)


def _step_seed(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence((seed, 1, step, process)).generate_state(1, np.uint32)[0])
