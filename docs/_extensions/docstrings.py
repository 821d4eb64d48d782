"""The library's docstrings as reStructuredText.

They are plain text with names in backticks. Four things are put into markup before Sphinx reads
them: public names become links, lines such as ``steps``: ... become a list, indented lines become
code, and the signs that reStructuredText reserves, * and |, stay signs.
"""

import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

PACKAGES = (
    "solvers sde objectives discrete degradation likelihood network_time constraints exact "
    "guidance mcmc metrics posterior comparison testing tuning interop networks plots"
).split()
ARGUMENT = re.compile(r"``[^`]+``(, ``[^`]+``)*( and ``[^`]+``)?: ")
PIECES = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
PAGE = re.compile(r"docs/([a-z0-9-]+)\.md")


@cache
def places() -> dict[str, list[str]]:
    """Where each public name is documented: in its package, else in `sdediff` itself."""
    found: dict[str, list[str]] = {}
    for package in PACKAGES:
        for name in import_module(f"sdediff.{package}").__all__:
            found.setdefault(name, []).append(f"sdediff.{package}")
    for name in import_module("sdediff").__all__:
        found.setdefault(name, ["sdediff"])
    return found


def linked(name: str, where: str) -> str:
    """A name in backticks as a link, if it is public; of two, the one in the same package."""
    homes = places().get(name, [])
    near = [home for home in homes if where.startswith(f"{home}.")] or homes
    return f":py:obj:`{name} <{near[0]}.{name}>`" if near else f"``{name}``"


def marked_up(text: str, where: str, docs: Path) -> str:
    """One paragraph, with links, and without markup that was not meant."""
    parts = PIECES.split(text)
    for index, part in enumerate(parts):
        if index % 2:
            single = not part.startswith("``")
            parts[index] = linked(part[1:-1], where) if single else part
        else:
            plain = re.sub(r"([*|\\]|_(?=\W|$))", r"\\\1", part)
            plain = re.sub(r"^(?=[\w(])", r"\\ ", plain) if index else plain
            plain = re.sub(r"(?<=\w)$", r"\\ ", plain) if index < len(parts) - 1 else plain
            parts[index] = PAGE.sub(
                lambda found: (
                    f":doc:`/{found[1]}`" if (docs / f"{found[1]}.md").is_file() else found[0]
                ),
                plain,
            )
    return "".join(parts)


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Lines that belong together: blank lines, arguments and changes of indentation part them."""
    found: list[list[str]] = []
    for line in lines:
        apart = (
            not found
            or not line.strip()
            or not found[-1][-1].strip()
            or ARGUMENT.match(line.lstrip())
            or line.lstrip().startswith("- ")
            or (line[:1] == " ") != (found[-1][-1][:1] == " ")
        )
        if apart:
            found.append([])
        found[-1].append(line)
    return found


def converted(lines: list[str], where: str, docs: Path) -> list[str]:
    """A docstring's lines as reStructuredText."""
    out: list[str] = []
    in_item = False
    for block in paragraphs(lines):
        text = "\n".join(block)
        first = block[0].lstrip()
        if not text.strip():
            out.append("")
            in_item = False
        elif ARGUMENT.match(first) or first.startswith("- "):
            body = " ".join(line.strip() for line in block).removeprefix("- ")
            out += ["", f"* {marked_up(body, where, docs)}"]
            in_item = True
        elif block[0].startswith(" ") and in_item:
            out[-1] += " " + marked_up(" ".join(line.strip() for line in block), where, docs)
        elif block[0].startswith(" "):
            out += ["", "::", "", *("    " + line for line in block), ""]
        else:
            out += ["", *marked_up(text, where, docs).splitlines()]
            in_item = False
    return out


def convert(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Replace the lines of a docstring of ours; those of other libraries stay."""
    if name.startswith("sdediff"):
        lines[:] = converted(list(lines), name, Path(app.srcdir))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the conversion."""
    app.connect("autodoc-process-docstring", convert)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
