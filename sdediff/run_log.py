"""What a run says of its steps: a line while it goes on, tables on the disk, trackers, and an error
where a loss is not finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from sdediff.files import write_atomically
from sdediff.progress import Bar
from sdediff.run_folder import LOSSES, VALIDATION, Run
from sdediff.trainer import Made, Trainer

__all__ = ["Log", "Table", "time_bins"]

_EVERY: Final = 10
"""Steps after which losses are read, so that a device is not waited for at each."""
_BINS: Final = 8


class Table:
    """A CSV file with a row for a step, or several; a resumed run goes on with it.

    A row is added to the end of the file. Where the folder still holds another run, rows are kept
    until that is replaced.
    """

    def __init__(self, run: Run, name: str, columns: tuple[str, ...]) -> None:
        self._run = run
        self._path = run.folder / name
        self._columns = columns
        self._rows: list[str] = []

    def go_on(self, step: int) -> None:
        """Drop what was written after ``step``, and a last row that is not whole."""
        if not self._path.is_file():
            return
        text = self._path.read_text(encoding="utf-8")
        if text and not self._header().startswith(text[: len(self._header())]):
            raise ValueError(f"{self._path} is no table of a run; move it away")
        lines = text.splitlines(keepends=True)[1:]
        kept = [
            line
            for line in lines
            if line.endswith("\n")
            and line.count(",") == len(self._columns) - 1
            and line.split(",")[0].isdigit()
            and int(line.split(",")[0]) <= step
        ]
        if len(kept) < len(lines):
            write_atomically(self._path, (self._header() + "".join(kept)).encode())

    def _header(self) -> str:
        return ",".join(self._columns) + "\n"

    def add(self, step: int, *values: object) -> None:
        """Add a row; `write` brings it to the disk."""
        said = (f"{value:.9g}" if isinstance(value, float) else str(value) for value in values)
        self._rows.append(",".join([str(step), *said]) + "\n")

    def write(self) -> None:
        """Bring rows to the disk, if the folder is this run's already."""
        if self._run.another or not self._rows:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(("" if file.tell() else self._header()) + "".join(self._rows))
        self._rows = []

    def begun(self) -> bytes | None:
        """The whole file, for a run that takes the place of another; None without rows."""
        return (self._header() + "".join(self._rows)).encode() if self._rows else None


class Log:
    """Losses as they come: to the bar, to the callback, to ``losses.csv`` and to trackers; and what
    validation finds, to ``validation.csv``.
    """

    def __init__(
        self,
        run: Run,
        trainer: Trainer,
        bar: Bar,
        callback: Callable[[int, float], None] | None,
    ) -> None:
        self.run, self.trainer, self.bar, self.callback = run, trainer, bar, callback
        self.losses = Table(run, LOSSES, ("step", "loss", "learning_rate", "gradient_norm"))
        self.found = Table(run, VALIDATION, ("step", "quantity", "value"))
        self.main = bool(trainer.accelerator.is_main_process)
        self.saved = trainer.step
        self.pending: list[Made] = []
        self.smooth = float("nan")
        self.note = ""
        self.began, self.first = time.perf_counter(), trainer.step

    def go_on(self) -> None:
        """Drop what was written after the step at which the run begins."""
        for table in (self.losses, self.found) if self.main and not self.run.another else ():
            table.go_on(self.trainer.step)

    def record(self, made: Made) -> None:
        """Take note of a step."""
        self.pending.append(made)
        if made.step % _EVERY == 0:
            self.flush()

    def flush(self) -> None:
        """Read the losses of the steps since the last time.

        Raises FloatingPointError where one, or the norm of a gradient, is not finite.
        """
        if not self.pending:
            return
        made, self.pending = self.pending, []
        accelerator = self.trainer.accelerator
        losses = accelerator.reduce(torch.stack([each.loss for each in made]), "mean").tolist()
        norms = [math.nan if each.norm is None else float(each.norm) for each in made]
        if self.main:
            for each, loss, norm in zip(made, losses, norms, strict=True):
                self.losses.add(each.step, loss, each.rate, norm)
            self.losses.write()
        self._check(made, losses, norms)
        mean = float(torch.tensor(losses).mean())
        self.smooth = mean if math.isnan(self.smooth) else 0.9 * self.smooth + 0.1 * mean
        step = self.trainer.step
        rate = (step - self.first) / max(1e-9, time.perf_counter() - self.began)
        self.bar.update(step, f"step {step}  loss {self.smooth:.4f}  {rate:.1f} steps/s{self.note}")
        self._track({"loss": mean, "learning_rate": made[-1].rate, "gradient_norm": norms[-1]})
        if self.callback is not None:
            self.callback(step, mean)

    def found_at(self, step: int, values: Mapping[str, float]) -> None:
        """Take note of what validation found."""
        if self.main:
            for name, value in values.items():
                self.found.add(step, name, float(value))
            self.found.write()
        self._track(values)
        first = next(iter(values), None)
        self.note = "" if first is None else f"  {first} {values[first]:.4f}"

    def save(self) -> None:
        """Bring the folder up to date."""
        self.flush()
        tables = {LOSSES: self.losses.begun(), VALIDATION: self.found.begun()}
        replaced = self.run.another
        self.trainer.save(self.run, tables)
        self.saved = self.trainer.step
        if replaced:
            self.losses, self.found = (
                Table(self.run, name, table._columns)
                for name, table in ((LOSSES, self.losses), (VALIDATION, self.found))
            )

    def _track(self, values: Mapping[str, float]) -> None:
        """Hand values to the trackers of Accelerate, if there are any."""
        if self.trainer.accelerator.trackers:
            self.trainer.accelerator.log(dict(values), step=self.trainer.step)

    def _check(self, made: list[Made], losses: list[float], norms: list[float]) -> None:
        scaled = self.trainer.accelerator.mixed_precision == "fp16"  # which skips such steps
        for each, loss, norm in zip(made, losses, norms, strict=True):
            bad = not math.isfinite(loss)
            if bad or not (scaled or each.norm is None or math.isfinite(norm)):
                what = f"the loss is {loss}" if bad else f"the gradient's norm is {norm}"
                mend = (
                    "look at these samples, lower lr, or look at the network"
                    if bad
                    else "lower lr, or look at the network"
                )
                raise FloatingPointError(
                    f"{what} at step {each.step}{self._where(each)}; {mend} (the last checkpoint, "
                    f"of step {self.saved}, stands)"
                )

    def _where(self, made: Made) -> str:
        """Which samples of a step have losses that are not finite, and at what times."""
        bad = ~torch.isfinite(made.losses).cpu()
        count = int(bad.sum())
        if not count:
            return f" ({made.named(made.rows)})"
        share = "all" if count == len(bad) else f"{count} of the"
        text = f", of {share} {len(bad)} samples of its batch: {made.named(made.rows[bad])}"
        if made.times is None or count == len(bad):
            return text
        sde: Any = self.trainer.model.sde
        times = made.times[bad]
        bins = sorted({int(i) + 1 for i in time_bins(sde, times, _BINS)})
        between = f"t = {float(times.min()):.3g}"
        if count > 1:
            between += f" to {float(times.max()):.3g}"
        some = ", ".join(map(str, bins))
        return f"{text}, at {between} (bin {some} of {_BINS} from t_min to t_max)"


def time_bins(sde: Any, t: Tensor, bins: int) -> Tensor:
    """Which of ``bins`` equal parts of [t_min, t_max] times t (B,) lie in, 0 for the first."""
    share = (t.cpu().double() - sde.t_min) / (sde.t_max - sde.t_min)
    found: Tensor = (share * bins).floor().clamp(0, bins - 1).long()
    return found
