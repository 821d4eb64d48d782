"""The state of a training run: one step of the optimizer, its averaged weights, and how both are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sdediff import checkpoint
from sdediff.model import ScoreModel
from sdediff.objectives import Objective

__all__ = ["Settings", "Trainer"]


@dataclass(frozen=True)
class Settings:
    """The numbers of a run; `sdediff.fit` documents them."""

    steps: int
    batch_size: int
    lr: float
    warmup: int
    ema: float
    clip: float
    seed: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("steps", "batch_size", "lr", "ema", "clip"):
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
        self, model: ScoreModel, data: Tensor, condition: Mapping[str, Tensor], loss: Objective, settings: Settings
    ) -> None:
        self.model, self.data, self.condition, self.loss, self.settings = model, data, condition, loss, settings
        self.module = cast(Any, model.net)
        self.ema = averaged(self.module, settings.ema)
        schedule = getattr(model.sde, "schedule", None)
        self.schedule: nn.Module = schedule if isinstance(schedule, nn.Module) else nn.Module()  # learned with the network
        learned = [*self.module.parameters(), *self.schedule.parameters()]
        self.optimizer: Any = torch.optim.AdamW(learned, lr=settings.lr, betas=(0.9, 0.99), fused=True)
        self.step = 0

    def prepare(self, accelerator: Any) -> None:
        """Move everything to the accelerator's device and let it wrap what it runs."""
        self.accelerator = accelerator
        self.model.to(accelerator.device)
        self.ema.to(accelerator.device)
        self.model.net, self.optimizer = accelerator.prepare(self.module, self.optimizer)
        self.model.train()

    def take(self) -> Tensor:
        """One step of the optimizer; returns the loss."""
        settings, accelerator, process = self.settings, self.accelerator, self.accelerator.process_index
        index = batch(len(self.data), settings.batch_size, settings.seed, self.step)[process :: accelerator.num_processes]
        # Under fork_rng of fit: times, noise and dropout of the step.
        torch.manual_seed(_step_seed(settings.seed, self.step, process))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        given = {name: value[index].to(accelerator.device) for name, value in self.condition.items()}
        x_0, normalizer = self.data[index].to(accelerator.device), self.model.normalizer
        x_0 = x_0 if normalizer is None else normalizer.normalize(x_0)
        with accelerator.autocast():
            value = self.loss(self.model, x_0, given).mean()
        self.optimizer.zero_grad()
        accelerator.backward(value)
        accelerator.clip_grad_norm_(self.module.parameters(), settings.clip)
        self.optimizer.step()
        self.ema.update_parameters(self.module)
        self.step += 1
        return value.detach()

    def finish(self) -> ScoreModel:
        """Give the model its averaged weights."""
        self.module.load_state_dict(self.ema.module.state_dict())
        self.model.net = self.module
        return self.model.eval()

    def save(self, folder: Path) -> None:
        """Bring the folder up to date: the training state first, so that the weights never run ahead of it."""
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        net, ema, state = self.module.state_dict(), self.ema.module.state_dict(), self.optimizer.state_dict()["state"]
        schedule = {f"{checkpoint.SCHEDULE}{k}": v for k, v in self.schedule.state_dict().items()}
        tensors = {f"net.{k}": v for k, v in net.items()} | {f"ema.{k}": v for k, v in ema.items()} | schedule
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for i, entry in state.items() for k, v in entry.items()}
        if hasattr(self.loss, "state_dict"):
            tensors |= {f"loss.{k}": v for k, v in self.loss.state_dict().items()}
        meta = {"step": str(self.step)}
        checkpoint.write_tensors(folder / checkpoint.TRAINING, tensors, meta)
        checkpoint.write_tensors(folder / checkpoint.WEIGHTS, ema | schedule, meta)

    def restore(self, folder: Path) -> None:
        """Go back to where the folder's last checkpoint stands; before `prepare`."""
        tensors, meta = checkpoint.read_tensors(folder / checkpoint.TRAINING)
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "ema": {}, "optimizer": {}, "loss": {}, "schedule": {}}
        try:
            for name, value in tensors.items():
                part, key = name.split(".", 1)
                parts[part][key] = value
            self.step = int(meta["step"])
            self.module.load_state_dict(parts["net"])
            self.ema.module.load_state_dict(parts["ema"])
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
            raise ValueError(f"{folder / checkpoint.TRAINING} does not fit this training ({error}); train anew") from error


def averaged(net: nn.Module, decay: float) -> Any:
    """A copy of ``net`` that follows it with decay min(decay, (1 + k) / (10 + k)) at update k."""

    @torch.no_grad()
    def average(mean: Any, current: Any, count: Any) -> None:
        k = int(count)
        torch._foreach_lerp_(mean, current, 1 - min(decay, (1 + k) / (10 + k)))

    return torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=average, use_buffers=False)


def batch(count: int, size: int, seed: int, step: int) -> Tensor:
    """Which samples step ``step`` sees: consecutive pieces of a shuffle of the data for each epoch."""
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
