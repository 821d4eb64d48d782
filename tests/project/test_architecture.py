"""docs/architecture.md walks one call: the functions that it names are entered, in that order."""

from __future__ import annotations

import re
from pathlib import Path

import sdediff as sd
from tools.trace import traced

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WALK = PAGE.split("## One call")[1].split("## Where to change what")[0]
NAMED = re.findall(r"`([\w/]+\.py): ([\w.]+)`", WALK)


def entered() -> list[tuple[str, str]]:
    model = sd.ScoreModel(lambda x, t: 0.1 * x, sd.VP(), predicts="noise")

    def call() -> None:
        sd.sample(model, (4, 2), solver=sd.DDIM(), steps=4, seed=0)

    call()
    functions = traced(call, [Path(sd.__file__).parent]).functions
    return [(each.file.removeprefix("sdediff/"), each.name) for each in functions]


def test_the_walk_names_what_the_call_enters_in_its_order() -> None:
    found = entered()
    assert len(NAMED) >= 16
    missing = [each for each in NAMED if each not in found]
    assert not missing
    places = [found.index(each) for each in NAMED]
    assert places == sorted(places)


def test_the_picture_and_the_table_name_files_that_there_are() -> None:
    page = PAGE.replace("tests/project/test_layers.py", "")
    names = set(re.findall(r"\b((?:\w+/)*\w+\.py|\w+/(?= ))", page))
    assert len(names) > 15
    assert [name for name in sorted(names) if not (ROOT / "sdediff" / name).exists()] == []
