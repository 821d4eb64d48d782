"""The command line with arguments of every kind: what fails is told in words, at once, and leaves
nothing behind.

A case is one call. It does what was asked, or it says why not: a message, exit code 1 or 2, within
a second of this process's time, without a traceback, and no file is new, changed or half-written.
"""

from __future__ import annotations

import io
import os
import shutil
import time
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from command_line import POINTS, command
from fuzz import COMMANDS, LIMIT, few
from hypothesis import given
from hypothesis import strategies as st

from sdediff.cli import main
from sdediff.cli.app import app
from sdediff.cli.names import SDES, SOLVERS
from sdediff.plots import image_grid, save_png

VALID = {
    "train": "--out new --data points.npy --steps 1 --batch-size 4 --device cpu",
    "sample": "run --out new.npy --steps 2 --count 2 --device cpu",
    "evaluate": "run --against points.npy --steps 2 --count 4 --device cpu",
    "compare": "run --nfe 2 --count 2 --budget-seconds 0.1 --solvers euler --device cpu",
    "tune": "run --out new.json --nfe 2 --method dp --count 31 --device cpu",
    "restore": "pictures --image picture.png --blur 1 --out new.npy --steps 2 --device cpu",
    "check": "points.npy",
}
NUMBERS = "0 1 2 3 -1 1e-3 0.5 nan inf -inf 1e400 two 0x10 1_000 １ 1,2 2.5 None True -0".split()
NUMBERS += ["", " ", "\x00", "9" * 400]
WORDS = ["", " ", "label=3", "=", "a=b=c", "label=", "ü", "\x00", "--out", "-", "x" * 5000]
PATHS = ["", ".", "..", "run", "pictures", "points.npy", "picture.png", "empty.npy", "text.npz"]
PATHS += ["new.npy", "new.npz", "new.png", "new", "new.json", "no/where.npy", "run/config.json"]
PATHS += ["/dev/null/x.npy", "x" * 300 + ".npy", "\x00.npy"]
NAMES = [*SOLVERS, *SDES, *"default blur snow unet mlp dit cpu cuda mps cuda:99 values".split()]
NAMES += "inception fixed sampled dp all bf16 fp16 edm uniform likelihood label=0,1 none".split()
TEXT = st.text(st.characters(exclude_characters="/"), max_size=6)
COSTLY = {"--steps", "--count", "--nfe", "--checkpoint-every", "--particles", "--seconds"}
"""Options whose large values are right and take their time: here they are small, or wrong."""
GROUP: Any = typer.main.get_command(app)


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    """A valid call of a command, with up to three options, or its argument, of any kind."""
    name = draw(st.sampled_from(sorted(VALID)))
    words = VALID[name].split()
    options = [p for p in GROUP.commands[name].params if p.param_type_name == "option"]
    for option in draw(st.lists(st.sampled_from(options), min_size=1, max_size=3)):
        flag = option.opts[0]
        words.append(flag)
        if flag in COSTLY:
            words.append(draw(st.sampled_from([*(set(NUMBERS) - {"9" * 400}), "4"])))
        elif not option.is_flag:
            likely = [*PATHS, *NAMES, *WORDS] if "str" in str(option.type_descriptor) else NUMBERS
            rare = st.sampled_from([*NUMBERS, *WORDS, *PATHS, *NAMES]) | TEXT
            words.append(draw(rare if draw(st.integers(0, 9)) == 0 else st.sampled_from(likely)))
    if draw(st.integers(0, 9)) == 0:
        words[0] = draw(st.sampled_from(PATHS))
    if draw(st.integers(0, 19)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(st.sampled_from([*WORDS, "--no-such"])))
    return [name, *words]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of points and of pictures, data, and files that are none."""
    folder = tmp_path_factory.mktemp("fuzz") / "place"
    folder.mkdir()
    np.save(folder / "points.npy", POINTS)
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.save(folder / "pictures.npy", pixels)
    picture = torch.from_numpy(pixels[:1, None] / 127.5 - 1).float()
    save_png(image_grid(picture, None, scale=1, pad=0), folder / "picture.png")
    (folder / "empty.npy").write_bytes(b"")
    (folder / "text.npz").write_text("no archive")
    for data, run in (("points.npy", "run"), ("pictures.npy", "pictures")):
        words = ["--data", folder / data, "--out", folder / run, "--steps", 2, "--batch-size", 4]
        command("train", *words, "--device", "cpu", "--quiet")
    return folder


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """What is there: sizes and times of files, by name."""
    at = {path: path.stat() for path in folder.rglob("*")}
    return {
        path.relative_to(folder).as_posix(): (each.st_size, each.st_mtime_ns)
        if path.is_file()
        else (0, 0)
        for path, each in at.items()
    }


def called(words: list[str]) -> tuple[Any, str, float]:
    """Exit code, what went to stderr, and the seconds of this process."""
    err = io.StringIO()
    began = time.process_time()
    with redirect_stdout(io.StringIO()), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            main(words)
            code: Any = 0
        except SystemExit as stop:
            code = stop.code or 0
    return code, err.getvalue(), time.process_time() - began


def fuzz(place: Path, cases: int) -> Counter[str]:
    """Try so many calls, and count what came of them."""
    tally: Counter[str] = Counter()
    inside = place.parent / "now" / "here"  # in a folder of its own, for --out ..

    @few(cases)
    @given(arguments())
    def attempt(words: list[str]) -> None:
        if not inside.is_dir():
            shutil.copytree(place, inside)
        os.chdir(inside)
        before = listing(inside.parent)
        code, err, seconds = called(words)
        after = listing(inside.parent)
        tally["calls"] += 1
        tally[f"exit code {code}"] += 1
        assert "Traceback" not in err, (words, err)
        if code == 0:
            left = [name for name in after if Path(name).name.startswith(".")]
            assert not left, (words, left)
        else:
            assert code in (1, 2), (words, code, err)
            assert err.strip(), words
            assert seconds < LIMIT, (words, err, seconds)
            assert after == before, (words, err, set(after.items()) ^ set(before.items()))
        if after != before:
            os.chdir(place)
            shutil.rmtree(inside.parent)

    home = Path.cwd()
    try:
        with torch.random.fork_rng():
            attempt()
    finally:
        os.chdir(home)
    return tally


@pytest.mark.thin(0)
def test_some_commands_end_in_words(place: Path) -> None:
    assert fuzz(place, 20)["calls"] >= 20


@pytest.mark.slow
def test_commands_end_in_words(place: Path) -> None:
    print(dict(fuzz(place, COMMANDS)))
