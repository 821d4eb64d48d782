"""What is looked at while a model trains: the loss on held-out data by time, samples, and their
quality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sdediff.calls import Condition, check_condition
from sdediff.drawing import noted_times
from sdediff.processes import current, dividing
from sdediff.run_log import time_bins
from sdediff.sampling import sample
from sdediff.solvers import Solver
from sdediff.solvers.given import callback_of, integer
from sdediff.sources import Samples, Source, seed_of, source_of
from sdediff.trainer import Trainer

__all__ = ["Watch", "Watcher"]

_SEED: Final = 0


@dataclass(frozen=True, eq=False)
class Watch:
    """What `fit` looks at every so many steps; it takes it as ``watch=``.

        watch = Watch(held_out=data[:200], every=500, samples=64, trackers="tensorboard")

    ``held_out``: data of any kind that `fit` takes, on which it does not train. The file
    ``validation.csv`` of the run folder gets their mean loss under the averaged weights, and the
    mean in each part of time. Times and noise are the same every time, so that two values differ by
    the weights alone.
    ``every``: steps of the optimizer between two looks, at least 1. The last step has a look too.
    ``bins``: in how many equal parts [t_min, t_max] is divided for the loss, at least 1.
    ``samples``: how many samples are drawn at each look, from the same seeds every time; 0 for
    none. They are written to ``samples-step-00001000.png`` where they are images, else to ``.npy``.
    ``steps``, ``solver``, ``condition``: how they are drawn, as in `sample`; by default by 20 steps
    of the default solver, which does not know the size of the details yet: that is measured at the
    end.
    ``quality``: a function of them, (N, *event) in the user's units, that returns a number, or
    numbers by name. They go to ``validation.csv`` too.
    ``trackers``: a name that Accelerate knows, or several, ``"tensorboard"`` or ``"wandb"`` say.
    They get losses, learning rate, norm of the gradient and what is found here.

    Several processes share the held-out data and the samples; the first one calls ``quality`` and
    writes. Raises TypeError or ValueError where a number is out of its range, and where there is a
    ``quality`` but no samples.
    """

    held_out: Any = None
    every: int = 1000
    bins: int = 8
    samples: int = 0
    steps: int | None = 20
    solver: Solver | None = None
    condition: Condition | None = None
    quality: Callable[[Tensor], float | Mapping[str, float]] | None = None
    trackers: str | Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """The trackers."""
        return [self.trackers] if isinstance(self.trackers, str) else list(self.trackers)

    def __post_init__(self) -> None:
        integer("every", self.every, 1)
        integer("bins", self.bins, 1)
        integer("samples", self.samples, 0)
        callback_of("quality", self.quality, "of samples")
        if self.quality is not None and not self.samples:
            raise ValueError("quality is of samples: say how many, samples=256 for one")


class Watcher:
    """A `Watch` on the way of one run.

    ``data`` are some of what the loss is called with, ``clean`` x_0 of these.
    """

    def __init__(
        self,
        watch: Watch,
        trainer: Trainer,
        folder: Path,
        *,
        data: Tensor,
        clean: Tensor,
        images: bool,
    ) -> None:
        self.watch, self.trainer, self.folder = watch, trainer, folder
        self.event, self.images = tuple(clean.shape[1:]), images
        size = trainer.settings.batch_size
        self.source: Source | None = None
        if watch.held_out is not None:
            self.source = source_of(watch.held_out, None, None, size, _SEED)
            x, beside, _ = self.source.probe()
            self.source.keep(check_condition(beside, len(x), None), None)
            if x.shape[1:] != data.shape[1:]:
                raise ValueError(
                    f"held_out must be samples of shape {tuple(data.shape[1:])}, as the data; got "
                    f"{tuple(x.shape[1:])}"
                )

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """With the trackers of the run; TensorBoard drops what a killed run wrote after its last
        checkpoint.
        """
        accelerator = self.trainer.accelerator
        if accelerator.log_with:
            purged = {"tensorboard": {"purge_step": self.trainer.step + 1}}
            names = [getattr(each, "value", each) for each in accelerator.log_with]
            known = {name: given for name, given in purged.items() if name in names}
            accelerator.init_trackers("trackers", init_kwargs=known)
        try:
            yield
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()

    def due(self, step: int) -> bool:
        """Whether there is something to look at after this step."""
        asked = self.source is not None or self.watch.samples > 0
        return asked and (step % self.watch.every == 0 or step == self.trainer.settings.steps)

    def look(self) -> dict[str, float]:
        """What is found at the present step, by name; of several processes, each looks at a share
        and knows of all.
        """
        found: dict[str, float] = {}
        with dividing(self.trainer.among), self._averaged():
            if self.source is not None:
                found |= self._validation(self.source)
            if self.watch.samples:
                found |= self._drawn()
        return found

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with its averaged weights, in evaluation mode; torch's generators stay as they
        are.
        """
        model, place = self.trainer.model, self.trainer.accelerator.device
        network = model.net
        model.net = self.trainer.ema.module
        model.eval()
        try:
            with (
                torch.no_grad(),
                torch.random.fork_rng([place] if place.type == "cuda" else []),
            ):
                yield
        finally:
            model.net = network
            model.train()

    def _validation(self, source: Source) -> dict[str, float]:
        trainer, bins = self.trainer, self.watch.bins
        sums, counts = torch.zeros(bins, dtype=torch.float64), torch.zeros(bins)
        total, number = 0.0, 0
        among = current()

        def own() -> list[tuple[Tensor, Tensor | None]]:
            batches = islice(enumerate(source.once()), among.index, None, among.count)
            return [self._judged(number, samples) for number, samples in batches]

        every = among.each(own)
        for k in range(sum(map(len, every))):  # in the order of the batches
            losses, place = every[k % among.count][k // among.count]
            total, number = total + float(losses.sum()), number + len(losses)
            if place is not None:
                sums.index_add_(0, place, losses)
                counts.index_add_(0, place, torch.ones(len(place)))
        edges = np.linspace(trainer.model.sde.t_min, trainer.model.sde.t_max, bins + 1)
        by_time = {
            f"validation_loss_t_{low:.3f}_{high:.3f}": float(sums[k] / counts[k])
            for k, (low, high) in enumerate(pairwise(edges))
            if counts[k]
        }
        return {"validation_loss": total / number, **by_time}

    def _judged(self, number: int, samples: Samples) -> tuple[Tensor, Tensor | None]:
        """The losses (B,) of a batch of held-out data, and in which bins of time they are, where
        there is one time a sample.
        """
        trainer = self.trainer
        torch.manual_seed(seed_of(_SEED, number))
        with noted_times() as noted:
            losses = trainer.losses(samples).cpu().double()
        times = next((t for t in noted if t.shape == losses.shape), None)
        sde, bins = trainer.model.sde, self.watch.bins
        return losses, None if times is None else time_bins(sde, times, bins)

    def _drawn(self) -> dict[str, float]:
        watch, trainer = self.watch, self.trainer
        x = sample(
            trainer.model,
            (watch.samples, *self.event),
            solver=watch.solver,
            steps=watch.steps,
            seed=_SEED,
            condition=watch.condition,
        ).x.cpu()
        return current().once(lambda: self._shown(x))

    def _shown(self, x: Tensor) -> dict[str, float]:
        """Write samples, and judge them."""
        watch, trainer = self.watch, self.trainer
        path = self.folder / f"samples-step-{trainer.step:08d}"
        if self.images:
            from sdediff.plots import image_grid, save_png

            save_png(image_grid(x), path.with_suffix(".png"))
        else:
            np.save(path.with_suffix(".npy"), x.numpy())
        if watch.quality is None:
            return {}
        found = watch.quality(x)
        return dict(found) if isinstance(found, Mapping) else {"quality": float(found)}
