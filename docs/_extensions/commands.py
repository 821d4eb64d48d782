"""The options of the command line, from the commands themselves: ``.. command:: sample``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from sdediff.cli.app import app as commands

if TYPE_CHECKING:
    from sphinx.application import Sphinx


KINDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", list[str]: "TEXT", bool: ""}


def kind_of(hint: Any) -> tuple[type, Any]:
    """The type of the values of an option, and what Typer knows of it."""
    kind, info = get_args(hint)
    return next((each for each in KINDS if each in (kind, *get_args(kind))), kind), info


def escaped(text: str) -> str:
    """Text as reStructuredText: options and what is in quotes as code, no other markup."""
    parts = re.split(r"((?<!\w)--[a-z][a-z-]*|'[^' ]+')", text)
    plain = [re.sub(r"([\\*|`_])", r"\\\1", part) for part in parts[::2]]
    code = [f"``{part}``" for part in parts[1::2]]
    return "".join(part for pair in zip(plain, [*code, ""], strict=True) for part in pair)


def described(name: str, function: Callable[..., None]) -> Iterator[str]:
    """The lines that describe one command: its usage, its arguments and its options."""
    usage, entries = [], []
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        kind, info = kind_of(hints[parameter.name])
        default, said = parameter.default, [escaped(info.help)]
        if type(info).__name__ == "ArgumentInfo":
            shown = parameter.name.upper()
        else:
            shown = f"--{parameter.name.replace('_', '-')} {KINDS[kind]}".rstrip()
        if info.min is not None:
            said.append(f"at least {info.min}")
        if kind == list[str]:
            said.append("may be given several times")
        if default is inspect.Parameter.empty:
            usage.append(shown)
            said.append("required")
        elif default is not None and kind is not bool:
            said.append(f"default: {escaped(str(default))}")
        entries += [f".. option:: {shown}", "", f"   {'; '.join(said)}", ""]
    yield from (f".. program:: sdediff {name}", "")
    yield from ("::", "", f"    sdediff {' '.join([name, *usage])} [OPTIONS]", "")
    yield from (escaped(" ".join(inspect.cleandoc(function.__doc__ or "").split())), "")
    yield from entries


class Command(SphinxDirective):
    """A command, its arguments and its options."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """What is described, as nodes."""
        name = self.arguments[0]
        every = {each.callback.__name__: each.callback for each in commands.registered_commands}
        lines = StringList(list(described(name, every[name])), source=name)
        found = nodes.container()
        self.state.nested_parse(lines, self.content_offset, found)
        return found.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("command", Command)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
