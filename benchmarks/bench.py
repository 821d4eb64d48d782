"""The benchmarks side by side, in one process: ours beside the libraries that are installed.

    python benchmarks/bench.py --quick
    python benchmarks/bench.py --only paths steps --out build/bench

A part calls some of the scripts of this folder, one after the other, as its entry below says. The
folder gets ``results.json`` (what was measured, and on what), ``results.md`` (the same as tables)
and a picture for each script. A library that is not installed is named and left out. A part that
fails is reported with its error, and the others go on. What is there is written after every script.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from writing import markdown, short

NETWORKS = "runs/restoration"
"""Where the small network of the digits is kept: it is trained once."""


class Call(NamedTuple):
    """A script and its arguments, in full and for ``--quick`` (None: not then)."""

    script: str
    full: str = ""
    quick: str | None = "--quick"


class Part(NamedTuple):
    """What is measured, and by which scripts."""

    title: str
    calls: tuple[Call, ...]


PARTS = {
    "work-precision": Part(
        "Error of fixed steps against evaluations",
        (Call("work_precision"), Call("default", quick=None)),
    ),
    "sample-quality": Part(
        "Law of stochastic samples", (Call("sample_quality"), Call("stochastic", quick=None))
    ),
    "steps": Part(
        "Time outside the network",
        (Call("step"), Call("step_peers"), Call("noise"), Call("schedule")),
    ),
    "paths": Part("Brownian paths", (Call("brownian"),)),
    "likelihood": Part("Log-densities", (Call("likelihood"),)),
    "solves": Part("Whole solves to an error", (Call("adaptive"), Call("equations"))),
    "posteriors": Part("Methods for inverse problems", (Call("posterior"),)),
    "digits": Part(
        "Digits by a small network",
        (
            Call("few_steps", f"--small {NETWORKS}"),
            Call("restoration", f"--only digits --runs {NETWORKS}", "--quick --only digits"),
        ),
    ),
}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description=(__doc__ or "").splitlines()[0],
        epilog="Parts: " + "; ".join(f"{name}, {part.title}" for name, part in PARTS.items()),
    )
    parser.add_argument(
        "--quick", action="store_true", help="all parts within two minutes: shows that they run"
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(PARTS), metavar="PART", help="some of the parts below"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="folder for the results"
    )
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=args.out):
            pass
    except OSError as error:
        parser.error(
            f"cannot write to the folder {args.out}: {error.strerror}; give another by --out"
        )
    return args


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    from importlib.metadata import version

    import peers
    import timing

    def processor() -> str:
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
        except OSError:
            lines = []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return names[0] if names else "unknown"

    installed = {"sdediff": version("sdediff"), "numpy": version("numpy"), **peers.versions()}
    return {**timing.facts(), "processor": processor(), "cores": os.cpu_count(), **installed}


def run(call: Call, quick: bool) -> dict[str, Any]:
    """What a script measured, or why it did not."""
    import peers
    import timing

    told = (call.quick if quick else call.full) or ""
    command = f"python benchmarks/{call.script}.py {told}".strip()
    start, busy = time.perf_counter(), time.process_time()
    record: dict[str, Any] = {"command": command, "quick": quick, **timing.facts()}
    try:
        record["tables"] = importlib.import_module(call.script).main(shlex.split(told))
    except ModuleNotFoundError as error:
        known = {name.replace("-", "_") for name in peers.LIBRARIES}
        lacks = (error.name or "").partition(".")[0]
        record["missing" if lacks in known else "error"] = str(error)
    except (Exception, SystemExit) as error:  # the other parts go on
        traceback.print_exc()
        record["error"] = "".join(traceback.format_exception_only(error)).strip()
    busy, passed = time.process_time() - busy, time.perf_counter() - start
    return record | {"seconds": round(passed, 1), "CPU seconds": round(busy, 1)}


def page(found: dict[str, Any], pictures: dict[str, str]) -> str:
    """The results as Markdown."""
    lines = ["# Benchmarks", "", "| | |", "|---|---|"]
    lines += [
        f"| {name} | {value if value is not None else 'not installed'} |"
        for name, value in found["environment"].items()
    ]
    if found["quick"]:
        lines += ["", "**`--quick`: too few and too short runs to measure anything.**"]
    for name, part in found["parts"].items():
        lines += ["", f"## {name}: {part['title']}"]
        for script, record in part["scripts"].items():
            took = f"{record['seconds']:.0f} s, {record['CPU seconds']:.0f} s CPU"
            lines += ["", f"`{record['command']}` ({took})"]
            for key, said in (("missing", "Left out"), ("error", "Failed")):
                lines += ["", f"{said}: {record[key]}"] if key in record else []
            for title, rows in record.get("tables", {}).items():
                lines += ["", f"**{title}**", "", *markdown(rows)]
            lines += ["", f"![{script}]({pictures[script]})"] if script in pictures else []
    return "\n".join(lines) + "\n"


def draw(out: Path, script: str, tables: dict[str, Any]) -> str | None:
    """The file name of the picture of a script, None where there is none."""
    try:
        import plots
    except ModuleNotFoundError as error:
        print(f"no pictures: {error}")
        return None
    figure = plots.picture(script, tables)
    if figure is None:
        return None
    figure.savefig(out / f"{script}.png", dpi=130)
    return f"{script}.png"


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    known = environment()
    absent = [name for name, value in known.items() if value is None]
    if absent:
        print(f"not installed, and left out: {', '.join(absent)}; benchmarks/README.md says how\n")
    found: dict[str, Any] = {"environment": known, "absent": absent, "quick": args.quick}
    found["parts"] = {}
    pictures: dict[str, str] = {}
    chosen = [name for name in PARTS if args.only is None or name in args.only]
    failed: list[str] = []
    start = time.perf_counter()
    for count, name in enumerate(chosen, start=1):
        print(f"== {name} ({count} of {len(chosen)}): {PARTS[name].title}\n", flush=True)
        records: dict[str, Any] = {}
        found["parts"][name] = {"title": PARTS[name].title, "scripts": records}
        for call in PARTS[name].calls:
            if args.quick and call.quick is None:
                continue
            record = records[call.script] = run(call, args.quick)
            if "error" in record:
                failed.append(f"{call.script}: {record['error']}")
            if "tables" in record and (path := draw(args.out, call.script, record["tables"])):
                pictures[call.script] = path
            (args.out / "results.json").write_text(json.dumps(short(found), indent=1) + "\n")
            (args.out / "results.md").write_text(page(found, pictures))
            print(
                f"-- {call.script}: {record['seconds']:.0f} s, {record['CPU seconds']:.0f} s CPU\n",
                flush=True,
            )
    print(f"{time.perf_counter() - start:.0f} s; results in {args.out}/results.md")
    for each in failed:
        print(f"failed: {each}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
