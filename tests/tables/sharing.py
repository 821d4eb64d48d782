"""A user's own script in several processes, by `sdediff.processes.together`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import accelerate
import torch
from torch import Tensor

import sdediff as sd
from sdediff.processes import Processes, together
from sdediff.tuning import fit

LAW = sd.exact.GaussianMixture(means=[[-1.0, 0.2], [1.0, 0.5]], stds=[0.1, 0.2])
SOLVERS = [sd.DDIM(), sd.EulerMaruyama(), sd.RK45()]


class Failing(torch.nn.Module):
    """A network that fails in the second process, or ends it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if Processes.here().index == 1 and self.how == "raises":
            raise ArithmeticError("the second one cannot")
        if Processes.here().index == 1 and self.how == "ends":
            os._exit(9)
        return x


def found(model: Any, parts: int = 1) -> dict[str, Any]:
    """What is the same by any number of processes, in JSON; by one in so many batches."""
    fit._MOST = 2  # rounds of gradients
    options: Any = {"seed": 1, "batch_size": 12 // parts}
    out = sd.sample(model, (12, 2), steps=3, **options)
    table = sd.compare(model, (12, 2), solvers=SOLVERS, nfe=[3, 6], tolerances=[0.1], **options)
    options = {"method": "all", "seconds": 1000.0, "batch_size": 32 // parts}
    tuned = sd.tune(model, (32, 2), nfe=3, **options)
    made = {name: value for name, value in tuned.made.items() if name != "seconds"}
    rows = [{**row, "seconds": 0, "code": ""} for row in json.loads(table.to_json())["rows"]]
    return {"x": out.x.tolist(), "rows": rows, "weights": tuned.weights, "made": made}


if __name__ == "__main__":
    folder, how = Path(sys.argv[1]), sys.argv[2]
    accelerate.Accelerator(cpu=True)  # connects the processes, as a user's script does
    given = LAW.model(sd.VP()) if how == "works" else sd.ScoreModel(Failing(how), sd.VP())
    with together() as here:
        (folder / f"{here.index}.json").write_text(json.dumps(found(given)))
