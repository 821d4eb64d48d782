"""`import sdediff` is light: no plotting, training, command-line or peer package comes with it.

What the built wheel and an editable install contain is checked by tools/check_wheel.py (`make
wheel`).
"""

import functools
import json
import operator
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import sdediff
import solvers

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "matplotlib PIL accelerate safetensors diffusers transformers typer rich tqdm sklearn "
    "mlxtend pandas "
    "hypothesis pytest torchdiffeq torchsde scipy.integrate"
).split()

PROBE = """
import json, sys, time
import torch, numpy
before, start = set(sys.modules), time.perf_counter()
import {module}
seconds = time.perf_counter() - start
new = set(sys.modules) - before
print(json.dumps({{"seconds": seconds, "new": sorted(new)}}))
"""


@functools.cache
def import_in_fresh_interpreter(module):
    """Seconds and modules that importing `module` adds to `import torch, numpy`."""
    command = [sys.executable, "-c", PROBE.format(module=module)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    report = json.loads(done.stdout.splitlines()[-1])
    return report["seconds"], set(report["new"])


@pytest.mark.thin(0)
@pytest.mark.parametrize("module", ["sdediff", "solvers"])
def test_import_is_light(module):
    seconds, new = import_in_fresh_interpreter(module)
    print(f"import {module}: {seconds:.2f} s on top of torch and numpy")
    assert module in new
    assert not new & set(HEAVY)


def test_the_face_has_the_names_of_the_numerics_and_no_submodules():
    assert solvers.__all__ == sdediff.solvers.__all__
    assert all(getattr(solvers, name) is getattr(sdediff.solvers, name) for name in solvers.__all__)
    assert not {name for name in sys.modules if name.startswith("solvers.")}


@pytest.mark.thin(0)
@pytest.mark.parametrize(
    "users",
    [
        "solvers.py",
        pytest.param("solvers/__init__.py", marks=pytest.mark.slow),
        pytest.param("solvers/nested.txt", marks=pytest.mark.slow),
    ],
)
def test_a_users_own_solvers_does_no_harm(tmp_path, users):
    """A file, a package or a plain folder of that name beside the script: torch is imported before
    it too.
    """
    (tmp_path / users).parent.mkdir(exist_ok=True)
    (tmp_path / users).write_text("mine = True\n")
    (tmp_path / "script.py").write_text(
        "import sdediff as sd\nfrom sdediff.solvers import RK45\n"
        "model = sd.exact.Gaussian(0.0, 1.0).model(sd.VP())\n"
        "print(sd.sample(model, (2, 1), solver=RK45(), seed=0).x.shape)\n"
    )
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=path, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "torch.Size([2, 1])\n", done.stderr


@pytest.mark.thin(0)
def test_the_probe_sees_a_heavy_import():
    _, new = import_in_fresh_interpreter("torchdiffeq")
    assert "torchdiffeq" in new & set(HEAVY)


@pytest.mark.parametrize("package", ["sdediff", "solvers"])
def test_types_are_published(package):
    assert (ROOT / package / "py.typed").is_file()


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match="did you mean 'EulerMaruyama'"):
        _ = sdediff.EulerMaruyma


@pytest.mark.parametrize(
    "home",
    [
        "solvers.UniPC",
        "sde.LearnedVP",
        "objectives.Bins",
        "discrete.DDPMLoss",
        "network_time.Timesteps",
    ],
)
def test_a_name_of_a_package_is_answered_with_its_place(home: str) -> None:
    name = home.rpartition(".")[2]
    with pytest.raises(AttributeError, match=rf"^sdediff\.{name} is now sdediff\.{home}$"):
        getattr(sdediff, name)
    assert operator.attrgetter(home)(sdediff).__name__ == name


def test_the_names_are_the_public_ones_and_no_others() -> None:
    names = [name for name in dir(sdediff) if not name.startswith("_")]
    packages = {name for name in names if isinstance(getattr(sdediff, name), types.ModuleType)}
    assert set(names) - packages == set(sdediff.__all__)
    assert len(sdediff.__all__) <= 50
    assert {"Solver", "Step", "Solution", "sample", "fit", "load"} <= set(names)
    assert {"solvers", "sde", "exact", "testing"} <= packages
