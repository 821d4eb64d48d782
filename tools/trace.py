"""Show which functions and files of the library one small call of `sample` enters.

The call is four samples in two dimensions by four steps of DDIM, and making the solver is part of
it. The same call is made once before, so that imports, caches and whatever is set up at first use
do not count. The `sdediff` that is measured is the one that Python finds, and the first line says
where it lies: `PYTHONPATH=/other/checkout python tools/trace.py` measures another one.

What counts is what lies in the folder `sdediff` and in a folder `solvers` beside it:

- A function is a `def` whose body was entered in this thread; closures of one `def` are one
  function. Comprehensions, lambdas and generator expressions are not functions of their own, nor
  are the bodies of classes and modules. Methods that `dataclass` and `NamedTuple` write have no
  file, and are left out.
- A file counts if one of its functions was entered.
- Lines are those that the interpreter reports, also those in lambdas and comprehensions: an
  expression over three lines counts up to three.

Commit 9defa73 gave, under Python 3.11:

    180 functions in 38 files, 829 lines; before the first step 137 functions in 34 files

and the commit that gave models and solvers their protocols

    90 functions in 19 files, 737 lines; before the first step 79 functions in 19 files
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple


class Function(NamedTuple):
    """Where a function stands: its file (from the folder that holds the package), line and name."""

    file: str
    line: int
    name: str


class Trace(NamedTuple):
    """What a call entered: functions and files by their first entry, and how many distinct lines.

    `entries` holds every entry in order; a generator enters again whenever it is resumed. `before`
    is the part of it that precedes the first entry of the marked function, and None if that was
    never entered or no function was marked.
    """

    functions: tuple[Function, ...]
    files: tuple[str, ...]
    lines: int
    entries: tuple[Function, ...]
    before: tuple[Function, ...] | None


def traced(
    call: Callable[[], object],
    packages: Sequence[Path],
    mark: Callable[..., Any] | None = None,
) -> Trace:
    """Make the call and say what it entered of the folders `packages`, and what before `mark`."""
    prefixes = tuple(f"{folder}/" for folder in packages)
    marked = inspect.unwrap(mark).__code__ if mark is not None else None
    entries: list[Function] = []
    lines: set[tuple[str, int]] = set()
    first: int | None = None

    def enter(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        nonlocal first
        code = frame.f_code
        if not code.co_filename.startswith(prefixes):
            return None
        if code is marked and first is None:
            first = len(entries)
        if is_function(code):
            path = Path(code.co_filename)
            folder = next(folder for folder in packages if folder in path.parents)
            file = path.relative_to(folder.parent).as_posix()
            entries.append(Function(file, code.co_firstlineno, code.co_qualname))
        return within

    def within(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return within

    outer = sys.gettrace()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(outer)
    before = None if first is None else tuple(entries[:first])
    return Trace(distinct(entries), files_of(entries), len(lines), tuple(entries), before)


def is_function(code: CodeType) -> bool:
    """A `def`: not the body of a class or module, a `<lambda>`, a `<listcomp>` or the like."""
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.startswith("<")


def distinct(entries: Sequence[Function]) -> tuple[Function, ...]:
    return tuple(dict.fromkeys(entries))


def files_of(entries: Sequence[Function]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(function.file for function in entries))


def count(entries: Sequence[Function]) -> str:
    return f"{len(distinct(entries))} functions in {len(files_of(entries))} files"


def main() -> None:
    parser = argparse.ArgumentParser(description="What one small call of sdediff.sample enters.")
    parser.add_argument("--list", action="store_true", help="list it, in the order of first entry")
    listed = parser.parse_args().list

    import sdediff as sd

    package = Path(sd.__file__).parent
    packages = [folder for folder in (package, package.parent / "solvers") if folder.is_dir()]
    model = sd.ScoreModel(lambda x, t: 0.1 * x, sd.VP(), predicts="noise")

    def call() -> object:
        return sd.sample(model, (4, 2), solver=sd.DDIM(), steps=4, seed=0)

    call()
    trace = traced(call, packages, sd.DDIM.step)
    if trace.before is None:
        sys.exit("the call never entered DDIM.step: there is no first step to count up to")
    print(f"measured: {', '.join(map(str, packages))}")
    steps = f"before the first step {count(trace.before)}"
    print(f"{count(trace.entries)}, {trace.lines} lines; {steps}")
    for file in trace.files if listed else ():
        print(f"\n{file}")
        for function in trace.functions:
            if function.file == file:
                print(f"  {function.line:4}  {function.name}")


if __name__ == "__main__":
    main()
