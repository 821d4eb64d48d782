"""The public names and their arguments are those of the record, `public_api.txt`."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def api():
    spec = importlib.util.spec_from_file_location("public_api", ROOT / "tools/public_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_interface_is_the_recorded_one(api):
    found = api.difference()
    assert not found, (
        f"{found}\n\nIf this is meant, run `make api ARGS=--write`, and put what users "
        "have to change into CHANGELOG.md"
    )


def test_the_record_has_names_arguments_and_members(api):
    text = api.RECORD.read_text()
    for line in (
        r"sdediff\.sample\(model, shape, \*, solver=None, steps=None",
        r"sdediff\.solvers\.DDIM$",
        r"sdediff\.VP\(beta_min=0\.1, beta_max=20\.0",
        r"sdediff\.Solution\.success$",
        r"sdediff\.Status: \w+, \w+",
        r"sdediff\.testing\.check_sde\(sde, \*, verbose=True\)$",
    ):
        assert re.search(f"^{line}", text, re.MULTILINE), line
    assert "0x" not in text


def test_a_change_is_seen(api, monkeypatch):
    """A name that goes, and an argument that is renamed."""
    import sdediff

    def sample(model, shape, *, method=None): ...

    monkeypatch.setattr(sdediff, "__all__", [n for n in sdediff.__all__ if n != "slerp"])
    monkeypatch.setattr(sdediff, "sample", sample)
    found = api.difference()
    assert "-sdediff.slerp" in found
    assert "+sdediff.sample(model, shape, *, method=None)" in found
