"""`tools/statements.py` counts what it says, and cannot be fooled by packed lines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools import statements

SOURCE = '''"""A docstring counts."""
a, b = 1, 2
c, d = e = f()
if a:
    for _ in b:
        x = y = (1, 2)
(p, q), r = (1, 2), 3
'''


def test_packed_assignments_count_one_by_one() -> None:
    """The docstring 1, a and b 2, c to e 1, if 1, for 1, x and y 1, (p, q) and r 2."""
    assert statements.statements(ast.parse(SOURCE)) == 9
    assert statements.statements(ast.parse(SOURCE.replace("a, b = 1, 2", "a = 1\nb = 2"))) == 9


def test_docstrings_and_blank_lines_are_no_code() -> None:
    source = 'def f():\n    """Two\n    lines."""\n\n    text = """kept"""\n    return text\n'
    counted = statements.code_lines(source, ast.parse(source))
    assert counted == [True, False, False, False, True, True]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\n" * 301, ": 301 lines of code of 300"),
        ("def f():\n" + "    x = 1\n" * 60, ":1: f has 61 lines of 60"),
        ("x = 1  #" + 100 * "-", ":1: 108 characters of 100"),
        ("def f():\n" + "    x = 1\n" * 59 + "x = 1\n" * 240, None),
    ],
)
def test_what_is_over_budget_is_listed(source: str, said: str | None) -> None:
    found = list(statements.over_budget(source, ast.parse(source)))
    assert found == ([said] if said else [])


def test_the_table_is_that_of_the_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("sdediff/a.py", "sdediff/b/c.py", "solvers/d.py", "tests/e.py"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("x, y = 1, 2\n")
    statements.main(tmp_path)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1:5] == [
        ["sdediff", "1", "1", "2"],
        ["sdediff/b", "1", "1", "2"],
        ["solvers", "1", "1", "2"],
        ["in", "all", "3", "3", "6"],
    ]
