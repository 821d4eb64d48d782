"""What solves share is one record: its names in every signature, its words in every docstring, and
an option that a function does not take refused.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sdediff as sd
from sdediff.objectives import reflow
from sdediff.options import SHARED as OPTIONS
from sdediff.options import LikelihoodOptions, SolveOptions
from sdediff.solvers import equations
from sdediff.solvers.options import Shared

MODEL = sd.exact.Gaussian(torch.zeros(2), torch.eye(2)).model(sd.VP())
X = torch.zeros(3, 2)
FLOW = {"last", "noise", "x_init", "stochasticity"}
DENSITY = FLOW | {"t_end", "trajectory", "callback", "compile"}
SHARED = set(SolveOptions.__annotations__)
ALL = set(LikelihoodOptions.__annotations__)
TAKEN: dict[Any, set[str]] = {
    sd.sample: SHARED,
    sd.encode: SHARED - FLOW,
    sd.decode: SHARED - FLOW,
    sd.log_prob: ALL - DENSITY,
    sd.bits_per_dim: ALL - DENSITY - {"grid", "t_start", "mask", "grad"},
    reflow: SHARED - FLOW - {"t_start", "mask", "trajectory", "on_fail"} | {"last"},
}
EQUATION = set(equations.EquationOptions.__annotations__)
SOLVED: dict[Any, set[str]] = {equations.solve_ode: EQUATION, equations.solve_sde: EQUATION}


@pytest.mark.parametrize(
    ("shared", "every"), [(OPTIONS, ALL), (equations.SHARED, EQUATION)], ids=["models", "equations"]
)
def test_every_option_has_a_default_and_words_of_its_own(shared: Shared, every: set[str]) -> None:
    assert set(shared.defaults) == every
    for name in every:
        words = shared.documented([name])
        assert re.match(rf"(``\w+``, )?``{name}``(, ``\w+``)*: [\w`]", words), name
    whole = shared.documented(every)
    assert [word for word in every if whole.count(f"\n``{word}``") > 1] == []


@pytest.mark.parametrize("function", TAKEN | SOLVED, ids=lambda function: function.__name__)
def test_signature_and_docstring_show_the_options(function: Any) -> None:
    shared = equations.SHARED if function in SOLVED else OPTIONS
    taken = (TAKEN | SOLVED)[function]
    shown = inspect.signature(function).parameters
    assert {name for name in shown if name in shared.defaults} == taken
    named = [name for name in shown if name not in shared.defaults]
    assert len(named) <= (10 if function in SOLVED else 8)
    assert all(kind.kind is not kind.VAR_KEYWORD for kind in shown.values())
    for name in taken:
        assert shown[name].default == shared.defaults[name], name
        assert shared.documented([name]) in function.__doc__, name


@pytest.mark.parametrize("function", TAKEN, ids=lambda function: function.__name__)
def test_what_a_function_does_not_take_is_refused(function: Any) -> None:
    given = (3, 2) if function in (sd.sample, reflow) else X
    name = function.__name__
    with pytest.raises(TypeError, match=rf"{name} takes no option 'pogress' .*'progress'"):
        function(MODEL, given, pogress=True)
    for other in ALL - TAKEN[function]:
        with pytest.raises(TypeError, match=f"{name} takes no option '{other}'.*progress, max_nfe"):
            function(MODEL, given, **{other: OPTIONS.defaults[other]})


CALLS = """\
from typing import Unpack

import torch

import sdediff as sd
from sdediff.options import SolveOptions


def shown(model: sd.Model, **options: Unpack[SolveOptions]) -> sd.Solution:
    return sd.sample(model, (4, 2), steps=5, **options)


def calls(model: sd.Model, x: torch.Tensor) -> None:
    shown(model, grid="cosine", dtype=torch.float64, progress=True)
    sd.encode(model, x, steps=5, t_end=0.5, device="cpu")
    sd.log_prob(model, x, divergence="hutchinson", probes=4, max_nfe=None)
    sd.sample(model, (4, 2), last="clean")  # wrong
    sd.decode(model, x, trajectory="yes")  # wrong
    sd.log_prob(model, x, probes=2.5)  # wrong
    sd.sample(model, (4, 2), gird="cosine")  # wrong
    sd.sample(model, (4, 2), divergence="exact")  # wrong
    shown(model, batch_size="all")  # wrong
    sd.solvers.solve_ode(lambda x, t: -x, x, [0.0, 1.0], dense=True, max_nfe=9)
    sd.solvers.solve_ode(lambda x, t: -x, x, [0.0, 1.0], dens=True)  # wrong
"""


@pytest.mark.slow
def test_mypy_finds_options_of_the_wrong_name_or_type(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    pytest.importorskip("mypy")
    (tmp_path / "calls.py").write_text(CALLS)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "calls.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = {int(n) for n in re.findall(r"^calls\.py:(\d+): error", run.stdout, re.MULTILINE)}
    wrong = {n for n, line in enumerate(CALLS.splitlines(), 1) if line.endswith("# wrong")}
    assert found == wrong, run.stdout + run.stderr
