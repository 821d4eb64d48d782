"""The benchmarks run and say what they measured; their figures are nobody's assertion. The tables
of the docs are those of the results that are kept.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
OTHERWISE = ("bench.py", "restoration_networks.py", "tables.py")
"""What has options of its own."""
SCRIPTS = sorted(
    path.name
    for path in FOLDER.glob("*.py")
    if path.name not in OTHERWISE and "__main__" in path.read_text()
)
CHEAP = ("noise.py",)
"""What the default run runs; the others in the slow one."""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.thin(0)
@pytest.mark.parametrize(
    "script",
    [pytest.param(name, marks=[] if name in CHEAP else pytest.mark.slow) for name in SCRIPTS],
)
def test_benchmark_runs(script: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = run(script, "--quick", "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert json.loads(out.read_text())


# -- all of them, by bench.py ----------------------------------------------------------------------


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A file of the folder, under a name that nothing else has."""
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(arguments: list[str], monkeypatch, capsys) -> str:
    """The message of a call that must not get as far as measuring."""
    bench = load("bench", monkeypatch)
    monkeypatch.setattr(bench, "environment", lambda: pytest.fail("it began"))
    with pytest.raises(SystemExit):
        bench.main(arguments)
    return capsys.readouterr().err


def test_a_part_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys):
    said = refused(["--only", "steps", "speed", "--out", str(tmp_path)], monkeypatch, capsys)
    assert "'speed'" in said
    assert "work-precision" in said


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    said = refused(["--out", str(tmp_path / "file" / "bench")], monkeypatch, capsys)
    assert f"cannot write to the folder {tmp_path}" in said
    assert "--out" in said


def scripts(monkeypatch) -> dict[str, ModuleType]:
    """One that fails, one that lacks a library, one that measures."""
    found = {name: ModuleType(name) for name in ("fails", "lacks", "measures")}

    def fails(argv):
        raise ValueError("no such mixture")

    def lacks(argv):
        raise ModuleNotFoundError("No module named 'torchode'", name="torchode")

    def measures(argv):
        return {"speed": [{"solver": "Euler", "ratio": 1.25}]}

    for name, main in (("fails", fails), ("lacks", lacks), ("measures", measures)):
        found[name].main = main
        monkeypatch.setitem(sys.modules, name, found[name])
    return found


def test_a_part_that_fails_does_not_lose_the_others(tmp_path, monkeypatch, capsys):
    bench = load("bench", monkeypatch)
    calls = tuple(bench.Call(name) for name in scripts(monkeypatch))
    monkeypatch.setattr(bench, "PARTS", {"one": bench.Part("One", calls)})
    peers = importlib.import_module("peers")
    monkeypatch.setattr(peers, "LIBRARIES", ("torch", "torchode", "no-such-library"))
    assert bench.main(["--quick", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "no-such-library" in printed.out
    assert "fails: ValueError: no such mixture" in printed.err
    found = json.loads((tmp_path / "results.json").read_text())
    assert "no-such-library" in found["absent"]
    assert found["environment"]["torch"] == torch.__version__
    records = found["parts"]["one"]["scripts"]
    assert records["fails"]["error"] == "ValueError: no such mixture"
    assert "torchode" in records["lacks"]["missing"]
    assert records["measures"]["tables"] == {"speed": [{"solver": "Euler", "ratio": 1.25}]}
    page = (tmp_path / "results.md").read_text()
    assert "| Euler | 1.25 |" in page
    assert "Failed: ValueError: no such mixture" in page


@pytest.mark.slow
def test_bench_runs_parts_in_one_process(tmp_path):
    done = run("bench.py", "--quick", "--only", "paths", "likelihood", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["parts"]) == ["paths", "likelihood"]
    for script in ("brownian", "likelihood"):
        assert (tmp_path / f"{script}.png").read_bytes().startswith(b"\x89PNG")
        assert f"![{script}]({script}.png)" in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_samplers_of_other_libraries_compute_what_ours_do(monkeypatch):
    """Where the method is the same: a check of how they are put on the mixture."""
    pytest.importorskip("diffusers")
    monkeypatch.syspath_prepend(FOLDER)
    work, peers = (importlib.import_module(name) for name in ("work_precision", "peers"))
    ours = importlib.import_module("sdediff.solvers")
    same = {
        "diffusers UniPC 3": ours.UniPC(3, startup="published", lower_final=False),
        "diffusers DEIS 3": ours.ExponentialMultistep(3, form="noise", startup="published"),
        "k-diffusion euler": ours.DDIM(),
        "k-diffusion heun": ours.Heun(variable="sigma"),
        "k-diffusion dpmpp_2m": ours.DPMSolverPP(2, startup="published", lower_final=False),
        "azula Euler": ours.DDIM(),
        "azula Heun": ours.Heun(variable="sigma"),
        "azula zEAB3": ours.ExponentialMultistep(3, form="noise", startup="published"),
    }
    for name in ("VP", "RectifiedFlow"):
        task = work.Task(name, 2, count=1, rows=8, seed=1)
        for sampler in peers.samplers(stochastic=False):
            solver = same.get(f"{sampler.library} {sampler.name}")
            if solver is not None:
                expected = work.by_us(task, solver)("log_snr", 12)
                found = work.by_peer(task, sampler)("log_snr", 12)
                torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_tests_and_checks_do_not_install_what_is_only_measured():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert extras["bench"]
    for name in ("all", "test", "dev", "docs"):
        assert not any("bench" in each or "azula" in each for each in extras[name])


# -- the tables of the docs ------------------------------------------------------------------------


def test_the_tables_of_the_docs_are_those_of_the_results(monkeypatch):
    assert not load("tables", monkeypatch).stale(ROOT), "python benchmarks/tables.py --write"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A page with a table, its result, and the module that makes it."""
    tables = load("tables", monkeypatch)
    table = tables.Table("speed", tables.columns("solver", "us=µs"))
    monkeypatch.setattr(tables, "TABLES", {"speed": table})
    folder = tmp_path / tables.RESULTS
    folder.mkdir(parents=True)
    record = {
        "command": "python benchmarks/speed.py", "quick": False, "date": "2026-11-30",
        "device": "cpu", "torch": "2.13.0+cpu",
        "tables": {"speed": [{"solver": "Euler", "us": 10.14, "rounds": 20}]},
    }  # fmt: skip
    (folder / "speed.json").write_text(json.dumps(record))
    (tmp_path / "README.md").write_text("a\n<!-- table: speed -->\n<!-- end of table -->\nb\n")
    return tables, tmp_path


def test_a_stale_table_is_found_and_written(kept):
    tables, root = kept
    assert tables.stale(root) == ["README.md: its tables are not those of benchmarks/results"]
    page = root / "README.md"
    page.write_text(tables.written(root, page.read_text()))
    assert not tables.stale(root)
    assert "`python benchmarks/speed.py` (cpu, torch 2.13.0):" in page.read_text()
    assert "| solver | µs |\n|---|---:|\n| Euler | 10.1 |\n" in page.read_text()
    assert page.read_text().startswith("a\n")
    assert page.read_text().endswith("\nb\n")
    page.write_text(page.read_text().replace("10.1", "9.1"))
    assert tables.stale(root)


def test_a_table_that_no_page_shows_is_named(kept):
    tables, root = kept
    (root / "README.md").write_text("nothing\n")
    assert tables.stale(root) == ["no page shows the table speed"]


def test_results_of_a_quick_run_and_unknown_tables_are_refused(kept):
    tables, root = kept
    path = root / tables.RESULTS / "speed.json"
    path.write_text(path.read_text().replace('"quick": false', '"quick": true'))
    with pytest.raises(ValueError, match="--quick run"):
        tables.stale(root)
    path.unlink()
    with pytest.raises(ValueError, match=r"missing: python benchmarks/speed\.py --json"):
        tables.stale(root)
    with pytest.raises(ValueError, match="no table is called 'pace'"):
        tables.made(root, "pace")


def test_results_are_taken_from_a_run_of_all(kept):
    tables, root = kept
    path = root / tables.RESULTS / "speed.json"
    record = json.loads(path.read_text())
    path.unlink()
    every = {"parts": {"one": {"scripts": {"speed": record, "other": {"error": "ValueError"}}}}}
    (root / "results.json").write_text(json.dumps(every))
    assert tables.take(root, root / "results.json") == ["speed"]
    assert json.loads(path.read_text()) == record
    every["parts"]["one"]["scripts"]["speed"]["quick"] = True
    (root / "results.json").write_text(json.dumps(every))
    with pytest.raises(ValueError, match="--quick run"):
        tables.take(root, root / "results.json")
