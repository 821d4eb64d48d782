"""The examples run, write their picture and are short; the package of the template passes its own
tests.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
SHORT = {
    "mnist_ddpm.py": "--only hybrid --steps 1 --levels 4 --count 1".split(),
    "heated_rod.py": ["--steps", "3"],
    "mnist_guided.py": ["--steps", "2"],
    "ncsn.py": ["--steps", "3"],
    "restoration.py": ["--steps", "1"],
}
FULL = {  # the first takes an hour as it is, the others some ten minutes
    "mnist_ddpm.py": ["--steps", "60", "--levels", "100", "--count", "16"],
    "latent_text.py": ["--steps", "20"],
    "controlnet.py": ["--steps", "40"],
}
SLOW = {
    "controlnet.py",
    "heated_rod.py",
    "latent_text.py",
    "ncsn.py",
    "own_sde.py",
    "mnist_ddpm.py",
    "restoration.py",
    "sunspots.py",
    "two_moons.py",
}
"""Examples that the default run leaves out."""
NEEDS = {"sunspots.py": "statsmodels"}
UNSEEN = {"accelerate_loop.py"}
"""Examples that draw nothing."""
WARNS = {"heated_rod.py", "mnist_ddpm.py"}
"""Examples whose small setting is so small that they warn: of few steps, or of one digit."""
LONG = {"mnist_ddpm.py", "latent_text.py", "controlnet.py"}
"""Examples of more than one idea, which may have 150 lines."""

each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)


def run(example, options, folder, monkeypatch):
    """In this process, which has imported torch already: what the script has defined."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(example), *options, "--out", str(folder / "out")])
    monkeypatch.syspath_prepend(str(example.parent))
    return runpy.run_path(str(example), run_name="__main__")


@pytest.mark.uses_global_rng  # by building networks
@pytest.mark.parametrize(
    "example",
    [
        pytest.param(
            example,
            marks=[
                *([pytest.mark.slow] if example.name in SLOW else []),
                *([pytest.mark.filterwarnings("default")] if example.name in WARNS else []),
            ],
            id=example.name,
        )
        for example in EXAMPLES
    ],
)
def test_examples_run_in_a_small_setting(example, tmp_path, monkeypatch):
    pytest.importorskip(NEEDS.get(example.name, "torch"))
    names = run(example, SHORT.get(example.name, ["--steps", "20"]), tmp_path, monkeypatch)
    assert example.name in UNSEEN or list((tmp_path / "out").glob("**/*.png"))
    for name, function in names.items():
        if name.startswith("test_"):
            function()


@pytest.mark.slow
@each_example
def test_examples_run_as_they_are(example, tmp_path):
    pytest.importorskip(NEEDS.get(example.name, "torch"))
    options = FULL.get(example.name, [])
    command = [sys.executable, str(example), *options, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr


@each_example
def test_examples_are_short(example):
    lines = len(example.read_text().splitlines())
    assert lines < (150 if example.name in LONG else 100)


@pytest.mark.slow
def test_the_package_of_the_template_passes_its_own_tests(tmp_path):
    """Outside of this repository's settings, with `sdediff` from here."""
    folder = ROOT / "examples" / "my_solver"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=path, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
