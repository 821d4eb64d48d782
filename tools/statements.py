"""Count the statements of the library, package by package, and list what is over budget.

A statement is an `ast.stmt`: every assignment, call, definition, import and docstring is one.
`a, b = x, y` counts as two, so that nobody packs lines to lower the figure. Lines of code are those
that are neither blank nor part of a docstring.

    python tools/statements.py              the tree that this file lies in
    python tools/statements.py ../other     another checkout
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOTS = ("sdediff", "solvers")
FILE_LINES, FUNCTION_LINES, LINE_LENGTH = 300, 60, 100


def statements(tree: ast.AST) -> int:
    """The number of statements in a syntax tree."""
    return sum(_weight(node) for node in ast.walk(tree) if isinstance(node, ast.stmt))


def _weight(node: ast.stmt) -> int:
    """1, and for an assignment of literal tuples the number of targets."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple | ast.List):
        pairs = [t for t in node.targets if isinstance(t, ast.Tuple | ast.List)]
        return max([len(target.elts) for target in pairs], default=1)
    return 1


def code_lines(source: str, tree: ast.AST) -> list[bool]:
    """For each line, whether it counts: it is not blank and not part of a docstring."""
    counts = [bool(line.strip()) for line in source.splitlines()]
    for node in ast.walk(tree):
        match node:
            case ast.Expr(ast.Constant(str()), lineno=first, end_lineno=last):
                counts[first - 1 : last] = [False] * (last - first + 1)
    return counts


def over_budget(source: str, tree: ast.AST) -> Iterator[str]:
    """What in a file is longer than it may be: the file, its functions, its lines."""
    counts = code_lines(source, tree)
    if (length := sum(counts)) > FILE_LINES:
        yield f": {length} lines of code of {FILE_LINES}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (length := sum(counts[node.lineno - 1 : node.end_lineno])) > FUNCTION_LINES:
            yield f":{node.lineno}: {node.name} has {length} lines of {FUNCTION_LINES}"
    for number, line in enumerate(source.splitlines(), 1):
        if len(line) > LINE_LENGTH:
            yield f":{number}: {len(line)} characters of {LINE_LENGTH}"


def main(root: Path) -> None:
    """Print the table and the list."""
    files: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    over: list[str] = []
    for path in sorted(path for name in ROOTS for path in (root / name).rglob("*.py")):
        place, source = path.relative_to(root), path.read_text(encoding="utf-8")
        tree = ast.parse(source, str(place))
        package = "/".join(place.parts[: min(2, len(place.parts) - 1)])
        files[package] += 1
        lines[package] += sum(code_lines(source, tree))
        counted[package] += statements(tree)
        over += [f"{place}{text}" for text in over_budget(source, tree)]
    print(f"{'package':24}{'files':>8}{'code lines':>12}{'statements':>12}")
    for package in files:
        print(f"{package:24}{files[package]:8}{lines[package]:12,}{counted[package]:12,}")
    total = files.total(), lines.total(), counted.total()
    print("{:24}{:8}{:12,}{:12,}".format("in all", *total))
    print(f"\nover budget: {len(over)}", *over, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)
