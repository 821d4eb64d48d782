"""``sdediff compare``."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from sdediff.checkpoint import load, read_config
from sdediff.cli.conditions import guided, read_conditions
from sdediff.cli.names import SOLVERS, Request, tuned_solver
from sdediff.cli.processes import own_device
from sdediff.cli.sample import batch_of, check_memory, event_of
from sdediff.comparison import Comparison, Recommendation
from sdediff.comparison.candidates import Make
from sdediff.comparison.compare import prepared
from sdediff.data import load_data
from sdediff.files import write_atomically
from sdediff.interruption import raising, signal_of
from sdediff.processes import Processes, together
from sdediff.protocols import Model, facts
from sdediff.solvers import GRIDS, Solver
from sdediff.solvers.given import check_name

__all__ = ["run"]

_DEFAULT: Final = "default"
_JSON: Final = "compare.json"


def run(
    *,
    folder: Path,
    out: Path | None,
    solvers: str | None,
    nfe: str,
    grids: str | None,
    error: float | None,
    count: int,
    batch_size: int | None,
    data: str | None,
    budget_seconds: float | None,
    condition: Sequence[str],
    guidance: float | None,
    seed: int,
    device: str | None,
    quiet: bool,
) -> int:
    """Compare solvers on a run's model, print the tables and write them; the exit code.

    What was measured when a signal comes is printed and written all the same. Of several processes,
    which share the samples, the first prints and writes.
    """
    spaced = _spaced(grids)
    _check_positive("--error", error)
    _check_positive("--budget-seconds", budget_seconds)
    config = read_config(folder)
    event = event_of(folder, config)
    check_memory(count, event)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: name a folder, for {_JSON} and others")
    model: Model = load(folder, device=own_device(device))
    conditions = read_conditions(folder, config, model, condition)
    model = model if guidance is None else guided(folder, config, model, guidance)
    options: Any = {
        "budget_s": budget_seconds,
        "batch_size": batch_size or batch_of(event),
        "progress": not quiet,
        "condition": conditions.of(range(count)) or None,
        "data": None if data is None else _data(data, event),
        "grids": spaced,
    }
    chosen = None if solvers is None else _solvers(solvers, model, config, guidance)
    work = prepared(model, (count, *event), chosen, _budgets(nfe), seed, options)
    code = 0
    with raising():
        try:
            with together():
                work.run()
        except KeyboardInterrupt as stop:
            code = 128 + signal_of(stop)
            work.notes.append("it was stopped: the table has what was measured until then")
    if not Processes.here().first:
        return code
    found = work.result
    found.show()
    said = f"--count {count} --seed {seed}{_beside(condition, guidance)}"
    goals: list[dict[str, Any]] = [{"nfe": max(_budgets(nfe))}]
    for goal in goals if error is None else [*goals, {"error": error}]:
        _advise(found, goal, folder, said)
    if out is not None:
        written = _write(found, out)
        if not quiet:
            print(f"wrote {' and '.join(map(str, written))}", file=sys.stderr)
    return code


def _budgets(nfe: str) -> list[int]:
    """Numbers with commas between them."""
    try:
        found = [int(word) for word in nfe.split(",")]
    except ValueError as error:
        raise ValueError(f"--nfe {nfe!r}: write numbers, 5,10,20 say") from error
    if min(found) < 1:
        raise ValueError(f"--nfe {nfe!r}: a number of evaluations is at least 1")
    return found


def _solvers(
    words: str, model: Model, config: Mapping[str, Any], guidance: float | None
) -> dict[str, Solver | Make | None]:
    """The solvers of these names, ``default`` being the library's own choice, or in these .json
    files.
    """
    found: dict[str, Solver | Make | None] = {}
    for word in words.split(","):
        if word.strip().endswith(".json"):
            found[word.strip()] = tuned_solver(word.strip(), "--solvers", config, guidance)
            continue
        name = word.strip().lower().replace("_", "-")
        check_name("solver", name, [_DEFAULT, *SOLVERS])
        found[name] = None if name == _DEFAULT else _made(name, model)
    return found


def _made(name: str, model: Model) -> Solver | Make:
    """The solver, or what makes it for a number of steps where it has a grid of its own."""
    unit = facts(model).data_std

    def at(steps: int) -> Solver:
        return SOLVERS[name](Request(model.sde, steps, None, None, unit))

    solver = at(100)
    return at if solver.times is not None else solver


def _data(spec: str, event: tuple[int, ...]) -> Tensor:
    found = load_data(spec)
    if tuple(found.x.shape[1:]) != event:
        raise ValueError(
            f"--data {spec} has samples of shape {tuple(found.x.shape[1:])}, and the run makes "
            f"{event}: take the data that it was trained on"
        )
    return found.x


def _check_positive(option: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{option} must be a positive number, got {value:g}")


def _spaced(grids: str | None) -> list[str] | None:
    """Names of grids with commas between them."""
    if grids is None:
        return None
    found = [word.strip() for word in grids.split(",")]
    for word in found:
        check_name("grid", word, list(GRIDS))
    return found


def _beside(condition: Sequence[str], guidance: float | None) -> str:
    """The options of conditions, as they were given."""
    words = [f" --condition {shlex.quote(each)}" for each in condition]
    return "".join(words) + ("" if guidance is None else f" --guidance {guidance:g}")


def _advise(found: Comparison, goal: dict[str, Any], folder: Path, said: str) -> None:
    """Print what to take, and how it draws."""
    try:
        advice = found.recommend(**goal)
    except ValueError:  # nothing was measured: the table says why
        return
    print(f"\n{advice.sentence}\n{_command(advice, folder, said)}")


def _command(advice: Recommendation, folder: Path, said: str) -> str:
    """The command that draws so, ``said`` being its other options; the Python code where the
    command line has no name for the solver, or no grid.
    """
    row = advice.row
    known = row.solver in (_DEFAULT, *SOLVERS) or row.solver.endswith(".json")
    if not known:
        lines = "import sdediff as sd", f"model = sd.load({str(folder)!r})  # and {said}"
        return "\n".join([*lines, advice.code])
    words = [] if row.solver == _DEFAULT else [f"--solver {shlex.quote(row.solver)}"]
    words += [] if row.steps is None else [f"--steps {row.steps}"]
    if row.tolerance is not None:
        pairs = re.findall(r"\b(rtol|atol)=([\d.e+-]+)", advice.code)
        words += [f"--{name} {value}" for name, value in pairs]
    place = shlex.quote(str(folder))
    return f"sdediff sample {place} {' '.join(words)} {said} --out samples.npy"


def _write(found: Comparison, out: Path) -> list[Path]:
    """JSON, Markdown and, where there is something to draw, a picture; what was written."""
    out.mkdir(parents=True, exist_ok=True)
    written = [out / _JSON, out / "compare.md"]
    write_atomically(written[0], found.to_json().encode())
    write_atomically(written[1], found.markdown().encode())
    if any(row.error or row.law or row.quality for row in found.measured):
        written.append(out / "compare.png")
        found.plot(written[-1])
    return written
