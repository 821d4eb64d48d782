"""``sdediff tune``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from sdediff.checkpoint import load, read_config
from sdediff.cli.conditions import guided, read_conditions
from sdediff.cli.names import make_solver
from sdediff.cli.processes import own_device
from sdediff.cli.sample import event_of
from sdediff.interruption import raising
from sdediff.processes import together
from sdediff.protocols import Model
from sdediff.tuning import tune
from sdediff.tuning.search import Method

__all__ = ["run"]


def run(
    *,
    folder: Path,
    out: Path,
    nfe: int,
    method: str,
    count: int,
    seconds: float,
    solver: str | None,
    condition: tuple[str, ...],
    guidance: float | None,
    seed: int,
    device: str | None,
    quiet: bool,
) -> None:
    """Tune a solver for a run's model, write it, and say how good it is. Of several processes,
    which share the starts, the first writes and says it.
    """
    if out.suffix != ".json":
        raise ValueError(f"--out must be a .json file, got {out}")
    config = read_config(folder)
    model: Model = load(folder, device=own_device(device))
    conditions = read_conditions(folder, config, model, condition)
    model = model if guidance is None else guided(folder, config, model, guidance)
    sde: Any = model.sde
    if solver is not None and solver.endswith(".json"):
        raise ValueError(
            f"--solver {solver} has a grid of its own: tuning starts from a name of the table of "
            "solvers, docs/command-line.md"
        )
    start = None if solver is None else make_solver(solver, sde, None, None, None)[0]
    with raising(), together() as here:
        tuned = tune(
            model,
            (count, *event_of(folder, config)),
            nfe=nfe,
            solver=start,
            method=cast(Method, method),
            seconds=seconds,
            seed=seed,
            condition=conditions.of(range(count)),
            progress=not quiet,
        )
    if not here.first:
        return
    made = dict(tuned.made)
    made["model"] = {**made["model"], "run": config.get("run"), "guidance": guidance}
    tuned = replace(tuned, made=made)
    tuned.save(out)
    if quiet:
        return
    held_out, errors = tuned.made["starts"]["deciding"], tuned.made["errors"]
    for note in tuned.made["notes"]:
        print(note)
    if not tuned.made["improved"]:
        print(f"nothing was surely better on {held_out} starts held out: {out} is the start itself")
        return
    ratios = [errors["tuned"][name] / errors["start"][name] for name in ("median", "p90")]
    print(
        f"{out}: on {held_out} starts held out the median error is {ratios[0]:.2f} of the start's, "
        f"the 90th percentile {ratios[1]:.2f} ({tuned.made['how']}); "
        f"sdediff sample {folder} --solver {out}"
    )
