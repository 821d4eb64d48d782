"""Errors of the library in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import typer

from sdediff.cli.app import app

__all__ = ["spoken"]

_ALWAYS = ("rtol", "atol", "lr")
"""Arguments of one word that mean nothing else in a message."""


def spoken(error: BaseException, arguments: Sequence[str]) -> str:
    """The message in one line, with the options of the command in the place of Python's
    arguments.
    """
    message = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        message = (
            f"not enough memory{f': {message}' if message else ''}; take a smaller --batch-size"
        )
    for name in _parameters(arguments):
        option = f"--{name.replace('_', '-')}"
        message = re.sub(rf"(?<![\w\-.]){name}=(?=[\w\[(])", f"{option} ", message)
        message = re.sub(rf"(?<![\w\-.]){name}=(?=\W|$)", option, message)
        if "_" in name or name in _ALWAYS:
            message = re.sub(rf"(?<![\w\-.(]){name}(?![\w.(])", option, message)
        else:
            message = re.sub(rf"(?<![\w\-.(]){name}(?= must be)", option, message)
            message = re.sub(rf"\b(drop|pass|raise|lower) {name}\b(?!=)", rf"\1 {option}", message)
    return message


def _parameters(arguments: Sequence[str]) -> list[str]:
    """The names of the options of the command that was called."""
    group: Any = typer.main.get_command(app)
    command = next((group.commands[word] for word in arguments if word in group.commands), None)
    options = () if command is None else command.params
    return [option.name for option in options if option.param_type_name == "option"]
