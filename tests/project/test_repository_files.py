"""Files that other programs read: the citation, the workflow and the issue forms."""

import itertools
import re
import tomllib
from pathlib import Path

import pytest
from pairwise import spread

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]


def test_citation_has_the_version_and_the_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]


def test_workflow_calls_targets_that_the_makefile_has():
    text = (ROOT / ".github/workflows/tests.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    called = {target for run in runs for target in re.findall(r"\bmake ([a-z-]+)", run)}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert called == {"test", "test-sweep", "lint", "types", "wheel", "docs"}
    assert called <= targets


@pytest.mark.parametrize("form", ["fault", "wish"])
def test_issue_forms_ask_for_something(form):
    content = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text())
    assert {"name", "description", "body"} <= content.keys()
    assert all({"type", "id"} <= entry.keys() for entry in content["body"])


@pytest.mark.parametrize(("count", "period"), [(91, 2), (182, 3), (300, 7)])
def test_the_rows_of_a_thin_test_lie_evenly_and_meet_every_variant(count: int, period: int) -> None:
    order = spread(count)
    assert sorted(order) == list(range(count))
    for n in (2 * period, 3 * period):
        few = sorted(order[:n])
        assert {i % period for i in few} == set(range(period))
        assert max(b - a for a, b in itertools.pairwise([*few, count])) <= 3 * count / n
