"""``sdediff evaluate``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor

from sdediff.array_files import read_arrays
from sdediff.checkpoint import read_config
from sdediff.cli.processes import own_device
from sdediff.cli.quality import Judge
from sdediff.cli.sample import Asked, check_writable, complete, event_of
from sdediff.cli.sharded import to_folder
from sdediff.data import Dataset, load_data, split
from sdediff.files import write_atomically
from sdediff.interruption import raising
from sdediff.metrics import Evaluated, Extractor, evaluate, extractor
from sdediff.metrics.measured import Reference
from sdediff.processes import Processes, together
from sdediff.shards import MANIFEST, SET, Shards
from sdediff.solvers.given import check_choice, check_name
from sdediff.solvers.solution import merge

__all__ = ["Judged", "run"]

_HELD_OUT: Final = 5
"""One image in so many is held out, where a classifier is fitted."""
_FEATURES: Final = ("values", "inception", "dinov2", "classifier")


@dataclass(frozen=True)
class Judged:
    """Data that samples are compared with, and by what: the options of that name."""

    against: str
    features: str
    weights: str | None
    sha256: str | None
    samples: str | None
    reference: str

    def data(self, folder: Path) -> Dataset:
        """The data, of the shape of the run's samples."""
        found = load_data(self.against)
        event = event_of(folder, read_config(folder))
        if tuple(found.x.shape[1:]) != event:
            raise ValueError(
                f"--against {self.against} has samples of shape {tuple(found.x.shape[1:])}, and "
                f"the run makes {event}: take data of that shape"
            )
        return found

    def extractor(self, data: Dataset, device: str) -> Extractor:
        """What makes features of samples and data."""
        check_name("features", self.features, _FEATURES)
        network = self.features in ("inception", "dinov2")
        if not network and (self.weights or self.sha256):
            raise ValueError(
                f"--weights and --sha256 are of --features inception or dinov2, not of "
                f"{self.features}: drop them"
            )
        if network:
            kind = cast(Any, self.features)
            return extractor(kind, weights=self.weights, sha256=self.sha256, device=device)
        if self.features == "values":
            return extractor()
        judge = Judge.fit(*split(data, max(2, len(data) // _HELD_OUT)))
        return Extractor("classifier", judge.features, has_logits=True)

    def drawn_to(self) -> Path | None:
        """The folder of shards to which samples are to be drawn first, or drawn further."""
        if self.samples is None:
            return None
        path = Path(self.samples).expanduser()
        begun = (path / SET).is_file() and not (path / MANIFEST).is_file()
        return path if begun or not (path.suffix or path.exists()) else None

    def given(self, samples: str, data: Dataset) -> Tensor:
        """The samples of a file or folder; floats with negative ones among them are as `sample`
        writes them, and may leave [-1, 1].
        """
        path = Path(samples).expanduser()
        if (path / SET).is_file():
            return self._fitting(Shards.open(path).gathered("x"), data)
        stored = False
        if path.suffix.lower() in (".npy", ".npz") and path.is_file():
            array, _ = read_arrays(path)
            stored = array.dtype.kind == "f" and array.ndim > 2 and bool((array < 0).any())
        return self._fitting(load_data(path, raw=stored).x, data)

    def _fitting(self, found: Tensor, data: Dataset) -> Tensor:
        """The samples; a ValueError if they are not of the data's shape."""
        if found.shape[1:] != data.x.shape[1:]:
            raise ValueError(
                f"--samples {self.samples} has samples of shape {tuple(found.shape[1:])}, and "
                f"--against {self.against} of {tuple(data.x.shape[1:])}: take samples of that shape"
            )
        return found


def run(judged: Judged, asked: Asked, out: Path | None) -> int:
    """Draw samples or read them, measure their quality, print and write it; the exit code.

    Of samples in memory of which only a part is drawn when a signal comes, that part is measured; a
    set in shards when it is complete. Of several processes, which share the drawing, the first one
    measures, prints and writes.
    """
    if out is not None:
        if out.suffix != ".json":
            raise ValueError(f"--out {out} must end in .json")
        check_writable(out)
    check_choice("--reference", judged.reference, ("fixed", "sampled"))
    data = judged.data(asked.folder)
    network = judged.extractor(data, own_device(asked.device))
    folder, first, code = judged.drawn_to(), Processes.here().first, 0
    if folder is not None:
        stopped = to_folder(asked, folder, wait=first)
        if Shards.open(folder).missing():  # by a signal, or others are drawing them
            return stopped
    if judged.samples is None:
        x, code = _drawn(asked)
        if first and len(x) < asked.count:
            some = f"{len(x)} of {asked.count} samples are complete"
            print(f"{some}: measuring those", file=sys.stderr)
    elif first:
        x = judged.given(judged.samples, data)
    if not first:
        return code
    if len(x) < 2:
        print("fewer than two samples are complete: nothing was measured", file=sys.stderr)
        return code or 2
    found = evaluate(
        x,
        data.x,
        features=network,
        reference=cast(Reference, judged.reference),
        progress=not asked.quiet,
    )
    print(found)
    if out is not None:
        _write(found, judged, asked, out)
        if not asked.quiet:
            print(f"wrote {out}", file=sys.stderr)
    return code


def _drawn(asked: Asked) -> tuple[Tensor, int]:
    """The samples that are complete, and the exit code."""
    drawing = asked.drawing()
    with raising(), together():
        signum = drawing.run()
    x = torch.zeros(0)
    if drawing.parts:
        solution = merge(drawing.parts)
        good = torch.nonzero(solution.status == 0).flatten()
        x = complete(solution, good).x.cpu()
    return x, 0 if signum is None else 128 + signum


def _write(found: Evaluated, judged: Judged, asked: Asked, out: Path) -> None:
    """The numbers, and what they are of."""
    what: dict[str, Any] = {"run": str(asked.folder), "against": judged.against}
    if judged.samples is not None:
        what["samples"] = judged.samples
    else:
        how = ("solver", "steps", "rtol", "atol", "condition", "guidance", "seed")
        what["drawn"] = {name: getattr(asked, name) for name in how}
    text = json.dumps({**what, **json.loads(found.to_json())}, indent=2) + "\n"
    write_atomically(out, text.encode())
