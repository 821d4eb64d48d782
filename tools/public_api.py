"""The public names of the library with their arguments, one a line: what a release promises.

    python tools/public_api.py            # prints what differs from the record
    python tools/public_api.py --write    # rewrites the record, tests/project/public_api.txt

A line is a name that a public package exports, or a method or property of such a class that is
defined there, with its arguments and their defaults, without types. A test compares the record with
the code, so that a change of the interface is seen in the change itself.
"""

from __future__ import annotations

import argparse
import difflib
import enum
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import sdediff
import solvers

RECORD = Path(__file__).resolve().parents[1] / "tests" / "project" / "public_api.txt"
MODULES = (
    "captions constraints data large_data network_time plots predict processes protocols shards "
    "training"
).split()
"""Public modules beside the packages."""
PRIVATE = ("sdediff.cli",)  # its interface is its commands


def packages() -> list[ModuleType]:
    """`sdediff`, its packages with an ``__all__``, the modules beside them, and `solvers`."""
    names = [
        info.name for info in pkgutil.walk_packages(sdediff.__path__, "sdediff.") if info.ispkg
    ]
    names = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    names += [f"sdediff.{name}" for name in MODULES]
    found = [importlib.import_module(name) for name in names if not name.startswith(PRIVATE)]
    return [sdediff, solvers, *(module for module in found if hasattr(module, "__all__"))]


def arguments(value: Any) -> str:
    """``(a, b=1, *, c)``; "" where there is none to be had."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    plain = [
        each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()
    ]
    text = str(inspect.Signature(plain))
    return re.sub(r"<(\S+) (\S+?)( at 0x\w+)?>", r"<\1 \2>", text)


def members(cls: type, name: str) -> Iterator[str]:
    """The public methods and properties that a class defines itself."""
    for each, value in sorted(vars(cls).items()):
        if each.startswith("_"):
            continue
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if inspect.isfunction(value):
            yield f"{name}.{each}{arguments(value)}"
        elif isinstance(value, property) or hasattr(value, "__get__"):
            yield f"{name}.{each}"


def lines() -> Iterator[str]:
    """All of the interface; a class or function that several packages export has its arguments
    where it comes first.
    """
    seen: set[int] = set()
    for package in packages():
        for exported in sorted(package.__all__):
            value, name = getattr(package, exported), f"{package.__name__}.{exported}"
            first = id(value) not in seen
            seen.add(id(value))
            if isinstance(value, ModuleType) or not callable(value) or not first:
                yield name
            elif isinstance(value, type) and issubclass(value, enum.Enum):
                yield f"{name}: {', '.join(member.name for member in value)}"
            else:
                protocol = getattr(value, "_is_protocol", False)
                yield name if protocol else f"{name}{arguments(value)}"
                if isinstance(value, type):
                    yield from members(value, name)


def current() -> str:
    """The record as it should be."""
    return "\n".join(lines()) + "\n"


def difference() -> str:
    """What the code has and the record lacks, and the other way round; "" where they agree."""
    recorded = RECORD.read_text() if RECORD.exists() else ""
    parts = difflib.unified_diff(
        recorded.splitlines(), current().splitlines(), "recorded", "now", lineterm="", n=0
    )
    return "\n".join(parts)


def main() -> None:
    """Print the difference, or write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="rewrite the record")
    if parser.parse_args().write:
        RECORD.write_text(current())
    else:
        print(difference() or "the record is up to date")


if __name__ == "__main__":
    main()
