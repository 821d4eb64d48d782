"""The library's docstrings as reStructuredText.

They are plain text with names in backticks. Four things are put into markup before Sphinx reads
them: public names become links, lines such as ``steps``: ... become a list, indented lines become
code, and the signs that reStructuredText reserves, * and |, stay signs. Options that several
functions share are explained once, and linked.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

REFERENCE = Path(__file__).parents[1] / "reference"
DIRECTIVE = re.compile(r"^\.\. auto(module|class|function):: (\S+)((?:\n   :.*)*)", re.MULTILINE)
ARGUMENT = re.compile(r"``[^`]+``(, ``[^`]+``)*( and ``[^`]+``)?: ")
PIECES = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
PAGE = re.compile(r"docs/([a-z0-9-]+)\.md")


@cache
def places() -> dict[str, list[str]]:
    """The modules from which the pages of the reference document each public name."""
    found: dict[str, list[str]] = {}
    for page in sorted(REFERENCE.glob("*.md")):
        for kind, target, options in DIRECTIVE.findall(page.read_text()):
            home, _, name = (target, "", "") if kind == "module" else target.rpartition(".")
            left_out = re.findall(r"[\w]+", options.partition(":exclude-members:")[2])
            names = [name] if name else import_module(home).__all__
            for each in names:
                if each not in left_out:
                    found.setdefault(each, []).append(home)
    return found


def linked(shown: str, where: str) -> str:
    """A name in backticks as a link, if it is public; of two, the one in its module, or in the
    same package.
    """
    module, _, name = shown.rpartition(".")
    homes = places().get(name, [])
    if shown in (home for every in places().values() for home in every):
        return f":py:obj:`{shown}`"
    if module:
        value = getattr(sys.modules.get(module), name, None)
        homes = [home for home in homes if getattr(import_module(home), name) is value]
    near = [home for home in homes if where.startswith(f"{home}.")] or homes
    return f":py:obj:`{shown} <{near[0]}.{name}>`" if near else f"``{shown}``"


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


def starts_an_item(line: str) -> bool:
    """Whether a line looks like the first one of an argument or of a bullet."""
    return bool(ARGUMENT.match(line.lstrip())) or line.lstrip().startswith("- ")


def ended(line: str) -> bool:
    """Whether a sentence ends with this line: where it goes on, so does the paragraph, also by a
    line that looks like the first one of an item.
    """
    return line.rstrip().endswith((".", ":", ";", "?", ")"))


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Lines that belong together: blank lines, arguments and changes of indentation part them."""
    found: list[list[str]] = []
    for line in lines:
        apart = (
            not found
            or not line.strip()
            or not found[-1][-1].strip()
            or (starts_an_item(line) and ended(found[-1][-1]))
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
        elif starts_an_item(first):
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


@cache
def options_of(record: str) -> tuple[str, ...]:
    """What the docstring of a record of `sdediff.options` says, an entry for each option."""
    text = inspect.cleandoc(getattr(import_module("sdediff.options"), record).__doc__)
    return tuple(re.split(r"\n+(?=``\w+``(?:, ``\w+``)*: )", text)[1:])


def said_once(text: str) -> str:
    """A function's docstring with a link in place of the options that it shares with others."""
    for record in ("SolveOptions", "LikelihoodOptions"):
        there = [entry for entry in options_of(record) if f"\n{entry}" in text]
        names = [entry.partition(": ")[0] for entry in there]
        link = f"\n{', '.join(names)}: as in `{record}`."
        for number, entry in enumerate(there):
            text = text.replace(f"\n{entry}", "" if number else link, 1)
    return text


def convert(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Replace the lines of a docstring of ours; those of other libraries stay."""
    if not name.startswith("sdediff"):
        return
    if lines and lines[0].startswith("Alias for field number"):
        told = logging.getLogger("sphinx.docstrings")
        told.warning("%s has no docstring: write below the field what it is", name)
    text = "\n".join(lines)
    text = said_once(text) if what in ("function", "method") else text
    lines[:] = converted(text.splitlines(), name, Path(app.srcdir))


def without_arguments(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str, None] | None:
    """No (*args, **kwargs) beside a protocol, of which nobody makes an instance."""
    return ("", None) if getattr(obj, "_is_protocol", False) else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the conversion."""
    app.connect("autodoc-process-docstring", convert)
    app.connect("autodoc-process-signature", without_arguments)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
