"""Build the wheel and check it: what it holds, that it runs when installed, and that an editable
install adds no more.

Everything happens in a copy of the tree under a temporary folder, with fresh environments that
borrow torch and the other dependencies from the one this runs in. Prints one line a check; the
first failure ends it with exit status 1.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"sdediff", "solvers"}
NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
NEVER_IMPORTABLE = {"tests", "docs", "examples", "benchmarks", "tools"}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        tree = work / "tree"
        shutil.copytree(ROOT, tree, ignore=NOT_COPIED)
        # an editable install must not expose them, whether or not they exist already
        for name in NEVER_IMPORTABLE:
            (tree / name).mkdir(exist_ok=True)

        wheel = build_wheel(tree, work / "dist")
        check_contents(wheel)
        print(f"wheel: {wheel.name} holds {' and '.join(sorted(PACKAGES))} only")

        python = fresh_environment(work / "wheel-env", [str(wheel)])
        check_origin(python, work / "wheel-env")
        print("wheel: installed, both packages import from it")

        python = fresh_environment(work / "editable-env", ["--editable", str(tree)])
        check_origin(python, tree)
        check_hidden(python, tree)
        print("editable install: both packages import from the tree, and nothing else in it does")


def build_wheel(tree: Path, out: Path) -> Path:
    run(
        [sys.executable, "-P", "-m", "build", "--wheel", "--outdir", str(out), str(tree)],
        "python -m build",
    )
    wheels = sorted(out.glob("*.whl"))
    if len(wheels) != 1:
        fail(f"expected one wheel, the build made {[wheel.name for wheel in wheels]}")
    return wheels[0]


def check_contents(wheel: Path) -> None:
    """The wheel has every source file of the two packages and, beside them, its own metadata
    alone.
    """
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.split("/")[0] for name in names}
    extra = {name for name in top - PACKAGES if not name.endswith(".dist-info")}
    if extra or not top >= PACKAGES:
        fail(
            f"the wheel's top level should be {sorted(PACKAGES)} and a .dist-info, it is "
            f"{sorted(top)}"
        )
    for package in sorted(PACKAGES):
        sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")} | {
            f"{package}/py.typed"
        }
        if missing := sorted(sources - names):
            fail(
                f"the wheel lacks {missing}: a folder without __init__.py, or package-data in "
                "pyproject.toml?"
            )
    if not any(name.endswith("/LICENSE") for name in names):
        fail("the wheel lacks its LICENSE")


def fresh_environment(folder: Path, install: list[str]) -> Path:
    """A new environment with `install` in it, which then borrows the dependencies of the
    environment we run in.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(
        [str(python), "-P", "-m", "pip", "install", "--quiet", "--no-deps", *install],
        f"pip install {install[-1]}",
    )
    site_packages = Path(ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    # Written after the installation: pip must not see, let alone replace, what lies there. A path
    # in a .pth file is not searched for .pth files itself, so that an editable sdediff over there
    # stays out of sight.
    borrowed = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    (site_packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return python


def check_origin(python: Path, expected: Path) -> None:
    for package in sorted(PACKAGES):
        origin = ask(python, f"import {package}; print({package}.__file__)")
        if not Path(origin).resolve().is_relative_to(expected):
            fail(f"{package} should be imported from {expected}, it came from {origin}")


def check_hidden(python: Path, tree: Path) -> None:
    """No other folder of the tree can be imported, not even as a namespace package."""
    folders = {
        path.name for path in tree.iterdir() if path.is_dir() and path.name.isidentifier()
    } - PACKAGES
    for name in sorted(folders | NEVER_IMPORTABLE):
        if str(tree) in ask(
            python, f"from importlib.util import find_spec; print(find_spec({name!r}))"
        ):
            fail(
                f"`import {name}` works in the editable install: it exposes more than "
                f"{sorted(PACKAGES)}"
            )


def ask(python: Path, code: str) -> str:
    """What `code` prints in an interpreter that sees neither this folder nor this environment's
    variables.
    """
    return run([str(python), "-I", "-c", code], f"python -c {code!r}").strip()


def run(command: list[str], what: str) -> str:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "PYTHONHOME"}
    }
    done = subprocess.run(
        command, cwd=tempfile.gettempdir(), env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        fail(f"{what} failed")
    return done.stdout


def fail(message: str) -> None:
    sys.exit(f"check_wheel: {message}")


if __name__ == "__main__":
    main()
