"""``sdediff check``, as its user meets it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdediff as sd
from sdediff.cli import main
from sdediff.testing import EQUIVALENCES

GOOD = """
import torch
import sdediff as sd
from dataclasses import dataclass
from sdediff import LinearSDE
from sdediff.solvers import Solver, Step
from my_helper import RATE

class Cubic(sd.LinearSDE):
    def f(self, t): return -0.5 * (0.1 + RATE * t**3)
    def g(self, t): return (0.1 + RATE * t**3).sqrt()

class Wrong(sd.VP):
    def g(self, t): return self.beta(t)

class NeedsArguments(sd.VP):
    def __init__(self, beta): super().__init__(beta_max=beta)

@dataclass(frozen=True)
class Lazy(Solver):
    needs = frozenset({"drift"})
    def step(self, problem, x, plan, noise, state):
        t, s = plan
        x = x + (s - t) * problem.drift(x, t)
        return Step(x, x)

hasty = sd.Heun()

ready = sd.RectifiedFlow(t_max=1.0)

def make(): return sd.EDM()
def make_nothing(): return None
number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "my_helper.py").write_text("RATE = 19.9\n")
    (tmp_path / "mine.py").write_text(GOOD)
    return tmp_path / "mine.py"


@pytest.fixture(autouse=True)
def _the_quick_ones() -> Iterator[None]:
    """The others are run by tests/testing/test_equivalences.py."""
    whole = dict(EQUIVALENCES)
    for name in set(whole) - {"DDPM chain", "DDIM", "EDM sampler"}:
        del EQUIVALENCES[name]
    yield
    EQUIVALENCES.clear()
    EQUIVALENCES.update(whole)  # in their order


def command(*words: str) -> int:
    try:
        main(["check", *words])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def refuse(capsys: pytest.CaptureFixture[str], target: str) -> str:
    """The one line on stderr; exit code 2."""
    assert command(target) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.thin(2)
@pytest.mark.parametrize("name", ["Cubic", "ready", "make"])
def test_a_file_with_a_consistent_sde(
    file: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(sys.path)
    assert command(f"{file}:{name}") == 0
    captured = capsys.readouterr()
    assert "variance of the forward SDE" in captured.out
    assert (
        captured.out.index("identity ")
        < captured.out.index("equivalence ")
        < captured.out.index("EDM sampler ")
    )
    assert captured.err == ""
    assert "fail" not in captured.out
    assert sys.path == before


def test_a_file_with_a_broken_one(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"{file}:Wrong") == 1
    captured = capsys.readouterr()
    assert "g^2 = d sigma^2 / dt - 2 f sigma^2" in captured.out
    assert captured.err.startswith("Wrong(beta_min=0.1")
    assert "likely slip: a missing square root" in captured.err
    assert "Traceback" not in captured.err
    assert "equivalence" not in captured.out + captured.err
    assert command(f"{file}:Wrong", "--quiet") == 1
    assert capsys.readouterr().out == ""


def test_an_sde_under_which_an_equivalence_fails(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sd.DDIM, "plan", sd.solvers.Euler().plan)
    assert command(f"{file}:Cubic") == 1
    captured = capsys.readouterr()
    assert "fail" in captured.out
    assert captured.err.startswith("Cubic() breaks an equivalence:\n- DDIM: ")


@pytest.mark.thin(0)
@pytest.mark.parametrize("name", ["Lazy", "hasty"])
def test_a_file_with_a_solver(file: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"{file}:{name}") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == {"Lazy": "Lazy()", "hasty": "Heun()"}[name]
    assert "deterministic order" in captured.out
    assert captured.err == ""


def test_a_file_with_a_solver_that_breaks_a_contract(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(GOOD.replace("(s - t) * problem", "2 * (s - t) * problem"))
    assert command(f"{file}:Lazy", "--quiet") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Lazy() breaks")
    assert "- deterministic order: " in captured.err


def test_a_built_in_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("vp") == 0
    assert capsys.readouterr().out.startswith("VP(")
    assert command("VE", "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_bad_input(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no SDE is called 'subpv' (did you mean 'subvp'?)" in refuse(capsys, "subpv")
    assert f"lacks the name of the SDE or solver in it: write {file}:Name" in refuse(
        capsys, str(file)
    )
    known = "it has Cubic, Wrong, NeedsArguments, Lazy, hasty, ready"
    assert f"has no 'Cubik' (did you mean 'Cubic'?); {known}" in refuse(capsys, f"{file}:Cubik")
    assert "after the colon stands the name" in refuse(capsys, f"{file}:")
    assert "no Python file" in refuse(capsys, f"{tmp_path}/none.py:Cubic")
    assert "no Python file" in refuse(capsys, f"{tmp_path}:Cubic")
    wanting = refuse(capsys, f"{file}:NeedsArguments")
    assert "missing 1 required positional argument: 'beta'" in wanting
    assert "make an instance in the file" in wanting
    assert (
        "must be an SDE or a solver, a class of one or a function that returns one; got 3"
        in refuse(capsys, f"{file}:number")
    )
    assert "must return an SDE or a solver, got None" in refuse(capsys, f"{file}:make_nothing")
    (tmp_path / "typo.py").write_text("x = 1\nclass A(:\n")
    assert "does not load: SyntaxError" in (said := refuse(capsys, f"{tmp_path}/typo.py:A"))
    assert "line 2" in said
    (tmp_path / "lacks.py").write_text("import no_such_module_here\n")
    assert "does not load: ModuleNotFoundError: No module named 'no_such_module_here'" in refuse(
        capsys, f"{tmp_path}/lacks.py:A"
    )
    (tmp_path / "empty.py").write_text("")
    assert "it defines no SDE and no solver" in refuse(capsys, f"{tmp_path}/empty.py:A")


def test_no_target_is_a_usage_error() -> None:
    assert command() == 2
