"""The fenced code blocks of a Markdown page, for tests/project/test_docs.py."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^(?P<indent>\s*)(?P<ticks>`{3,}|~{3,})\s*(?P<info>[^`]*)$")
OF_NOTEBOOKS = {"{code-cell}": "python"}
NOT_RUN = re.compile(r"<!--\s*not run:\s*(?P<reason>\S.*?)\s*-->")


class Block(NamedTuple):
    path: Path
    line: int  # of its first line of code, from 1
    language: str
    code: str
    not_run: str  # the reason given in a comment right above it, "" if there is none


def code_blocks(path: Path) -> list[Block]:
    """All fenced blocks of a page, in order; ValueError if the last one is not closed."""
    blocks: list[Block] = []
    opened, start, body, before = None, 0, [], ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if opened is None:
            if fence:
                opened, start, body = fence, number + 1, []
            elif line.strip():
                before = line
        elif fence and not fence["info"].strip() and fence["ticks"].startswith(opened["ticks"]):
            language = opened["info"].split()[0] if opened["info"].strip() else ""
            language = OF_NOTEBOOKS.get(language, language)
            reason = NOT_RUN.search(before)
            blocks.append(
                Block(
                    path,
                    start,
                    language,
                    "\n".join(body) + "\n",
                    reason["reason"] if reason else "",
                )
            )
            opened, before = None, ""
        else:
            body.append(line.removeprefix(opened["indent"]))
    if opened is not None:
        raise ValueError(f"{path.name}:{start - 1}: code block is never closed")
    return blocks


def commands(block: Block) -> list[list[str]]:
    """The commands of a bash block, each as its words; variables before a command and a leading `$`
    are dropped.
    """
    found = []
    for line in block.code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                found.append(words)
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)
    return [words for words in found if words]
