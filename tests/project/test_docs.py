"""The README and the docs are true: their code runs, their commands exist. Public methods have a
docstring.
"""

import importlib
import inspect
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest
import torch
import typer
from code_blocks import Block, code_blocks, commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SPELLED_OTHERWISE = {
    "py": "python",
    "python3": "python",
    "pycon": "python",
    "sh": "bash",
    "shell": "bash",
    "console": "bash",
}

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


LONG = {
    "choosing-a-solver",
    "concepts",
    "discrete",
    "inverse-problems",
    "latent-and-control",
    "mcmc",
    "testing",
    "training",
}
"""Pages whose code takes more than five seconds."""


def marks(page: Path) -> list[pytest.MarkDecorator]:
    if page.parent.name == "tutorial":  # they train
        return [pytest.mark.slow]
    return [pytest.mark.slow, pytest.mark.sweep] if page.stem in LONG else []


@pytest.mark.uses_global_rng  # by building networks
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=marks(page), id=page.relative_to(ROOT).as_posix()) for page in PAGES],
)
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    """In order, in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # classes defined on the page belong somewhere
    run_python_blocks(page, module)
    if page == ROOT / "README.md":
        check_ring(page.read_text(), capsys.readouterr().out, module)


RING = re.compile(r"^(\w+) +on the ring ([\d.]+)%, evaluations (\d+)$", re.MULTILINE)


def check_ring(page, printed, module):
    """The README's samples lie on its ring, 90 % of them and more, and it shows what is printed."""
    got, shown = (RING.findall(text) for text in (printed, page))
    assert len(got) == 5
    assert [row[0] for row in got] == [row[0] for row in shown]
    for (_, share, _), (_, said, _) in zip(got, shown, strict=True):
        assert float(share) >= 90
        assert abs(float(share) - float(said)) < 3  # float32 sums differ from machine to machine
    by_default = (module.out.x.norm(dim=1) - 1).abs() < 0.15
    assert float(by_default.double().mean()) >= 0.9
    assert Path("ring.png").is_file()


def run_python_blocks(page, module):
    torch.manual_seed(0)  # networks of the pages start at random weights
    for block in code_blocks(page):
        if block.language == "python" and not block.not_run:
            # Blank lines in front, so that a traceback names the line of the page.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), module.__dict__)


def test_readme_shows_code():
    assert any(
        block.language == "python" and not block.not_run
        for block in code_blocks(ROOT / "README.md")
    )


@each_page
def test_bash_blocks_name_what_exists(page):
    for block in code_blocks(page):
        if block.language == "bash" and not block.not_run:
            for words in commands(block):
                check_command(words, f"{page.name}:{block.line}")


@each_page
def test_blocks_name_a_language_that_is_checked(page):
    for block in code_blocks(page):
        better = SPELLED_OTHERWISE.get(block.language)
        assert better is None, (
            f"{page.name}:{block.line}: write ```{better}, or the block is not checked"
        )


@pytest.mark.parametrize("package", ["sdediff", "solvers"])
def test_public_methods_are_documented(package):
    """Their own docstring or, for one that fills in a method of its base class, the one they
    inherit.
    """
    root = importlib.import_module(package)
    modules = [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(root.__path__, f"{package}.")
    ]
    missing = [name for module in [root, *modules] for name in undocumented_methods(module)]
    assert not missing


def undocumented_methods(module):
    return [
        f"{module.__name__}.{cls.__name__}.{name}"
        for cls in vars(module).values()
        if inspect.isclass(cls)
        and cls.__module__ == module.__name__
        and not cls.__name__.startswith("_")
        for name, member in vars(cls).items()
        if not name.startswith("_") and (inspect.isroutine(member) or isinstance(member, property))
        if not any(getattr(vars(base).get(name), "__doc__", None) for base in cls.__mro__)
    ]


# -- the commands in bash blocks -------------------------------------------------------------------


def check_command(words, where):
    """The program's part of `words` exists: sdediff's subcommands and options, make's targets, a
    script's file.
    """
    match words:
        case ["sdediff", *arguments]:
            from sdediff.cli.app import app

            check_cli(app, arguments, where)
        case ["make", *targets]:
            rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            unknown = [word for word in targets if word not in rules and "=" not in word]
            assert not unknown, f"{where}: the Makefile has no {unknown}"
        case ["python" | "python3", script, *_] if script.endswith(".py"):
            assert (ROOT / script).is_file(), f"{where}: there is no {script}"


def check_cli(app, arguments, where):
    command, said = typer.main.get_command(app), "sdediff"
    for word in arguments:
        if re.match(r"--?[a-zA-Z]", word):
            options = {"--help"}.union(
                *(set(p.opts) | set(p.secondary_opts) for p in command.params)
            )
            assert word.partition("=")[0] in options, f"{where}: `{said}` has no option {word}"
        elif hasattr(command, "commands"):
            assert word in command.commands, f"{where}: `{said}` has no subcommand {word}"
            command, said = command.commands[word], f"{said} {word}"


# -- that these checks catch something -------------------------------------------------------------

PAGE = """\
Text.

```python
x = 1
```

1. In a list:

   ```python
   if x:
       y = 2
   ```

<!-- not run: needs a GPU -->

```python
boom
```

```bash
$ A=1 sdediff demo --out "my runs" \\
    --steps 3 && make test  # comment
```
"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_code_blocks_are_found(page):
    assert code_blocks(page) == [
        Block(page, 4, "python", "x = 1\n", ""),
        Block(page, 10, "python", "if x:\n    y = 2\n", ""),
        Block(page, 17, "python", "boom\n", "needs a GPU"),
        Block(
            page,
            21,
            "bash",
            '$ A=1 sdediff demo --out "my runs" \\\n    --steps 3 && make test  # comment\n',
            "",
        ),
    ]


def test_an_open_block_is_an_error(page):
    page.write_text(PAGE + "```python\nx = 1\n")
    with pytest.raises(ValueError, match=r"page.md:24: code block is never closed"):
        code_blocks(page)


@pytest.mark.uses_global_rng  # which is seeded for each page
def test_a_failing_block_is_reported_with_its_line(page):
    page.write_text(PAGE.replace("needs a GPU", ""))  # no reason, so not excused
    with pytest.raises(NameError) as caught:
        run_python_blocks(page, types.ModuleType("page"))
    assert caught.traceback[-1].lineno + 1 == 17


def test_commands_are_split(page):
    words = commands(code_blocks(page)[-1])
    assert words == [["sdediff", "demo", "--out", "my runs", "--steps", "3"], ["make", "test"]]


@pytest.fixture
def app():
    app = typer.Typer()

    @app.command()
    def draw(run: str, steps: int = 10, fast: bool = False): ...

    @app.command()
    def train(out: str): ...

    return app


@pytest.mark.parametrize(
    "command",
    ["", "--help", "draw runs/x --steps=3 --no-fast", "train --help", "draw runs/x --steps -1"],
)
def test_right_commands_pass(app, command):
    check_cli(app, command.split(), "here")


@pytest.mark.parametrize(
    "command", ["nosuch", "--nosuch", "draw runs/x --nosuch 3", "train --nosuch=3"]
)
def test_wrong_commands_are_caught(app, command):
    with pytest.raises(AssertionError, match=r"^here: .*nosuch"):
        check_cli(app, command.split(), "here")


@pytest.mark.parametrize("command", ["make test nosuch", "python examples/nosuch.py --steps 3"])
def test_wrong_targets_and_scripts_are_caught(command):
    with pytest.raises(AssertionError, match=r"^here: .*nosuch"):
        check_command(command.split(), "here")


def test_a_missing_docstring_is_caught():
    class Base:
        def told(self):
            """Said once."""

        def untold(self): ...

    class Child(Base):
        def told(self): ...

    module = types.ModuleType(__name__)
    module.Base, module.Child = Base, Child
    assert undocumented_methods(module) == [f"{__name__}.Base.untold"]


def test_the_orders_in_the_table_are_the_declared_ones():
    """docs/solvers.md says of each exponential integrator what the contracts measure."""
    text = (
        (ROOT / "docs" / "solvers.md")
        .read_text()
        .split("| solver | form, variable | order without noise |")[1]
    )
    rows = re.findall(r"^\| `(\w.*?)` \|(.*?)\|(.*?)\|(.*?)\|(.*?)\|", text, flags=re.MULTILINE)
    assert len(rows) > 15
    for call, _, deterministic, _, weak in rows:
        solver = eval(call, vars(importlib.import_module("sdediff.solvers")))
        assert solver.deterministic_order == float(deterministic), call
        assert not weak.strip() or solver.weak_order == float(weak), call
        assert bool(weak.strip()) == solver.stochastic, call
