"""The site's pages hang together: links lead somewhere, every page is in the navigation, and every
public name is in the reference. `make docs` builds the site itself, with warnings as errors.
"""

import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from code_blocks import FENCE

import sdediff as sd

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md")])
LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")
OUTSIDE = ("http://", "https://", "mailto:")


def prose(page):
    """The lines of a page outside its code blocks."""
    lines, closing = [], ""
    for line in page.read_text().splitlines():
        fence = FENCE.match(line)
        if fence and not closing:
            closing = fence["ticks"]
        elif fence and closing and fence["ticks"].startswith(closing):
            closing = ""
        elif not closing:
            lines.append(line)
    return lines


def anchors(page):
    """The anchors that a page has on hosting pages and on the site: its headings, in small letters
    with hyphens.
    """
    heads = [line.lstrip("#").strip() for line in prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(page):
    """The links of a page that lead nowhere."""
    found = []
    for target in LINK.findall(re.sub(r"`[^`]*`", "", "\n".join(prose(page)))):
        path, _, anchor = target.partition("#")
        if target.startswith(OUTSIDE):
            continue
        file = (page.parent / path).resolve() if path else page
        known = not anchor or anchor.startswith("sdediff.") or file.suffix != ".md"
        if not file.exists() or not (known or anchor in anchors(file)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    assert not broken(page)


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A head\n[a](#a-head) [b](#no-head) [c](none.md)\n"
        "```\n[d](none.md)\n```\n`[e](none.md)`\n"
    )
    assert broken(page) == ["#no-head", "none.md"]


def navigation():
    """The entries of all tables of contents, as patterns of paths under docs/."""
    entries = []
    for page in (DOCS / "index.md", DOCS / "reference" / "index.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            entries += [(page.parent.relative_to(DOCS) / name).as_posix() for name in names]
    return entries


def test_every_page_is_in_the_navigation():
    entries = [*navigation(), "index"]
    pages = [page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.glob("**/*.md")]
    assert len(pages) > 40
    assert not [page for page in pages if not any(fnmatch(page, entry) for entry in entries)]


def packages():
    """The packages whose public names a page of the reference documents all together."""
    texts = [page.read_text() for page in DOCS.glob("reference/*.md")]
    return {found for text in texts for found in re.findall(r"automodule:: (\S+)", text)}


def test_every_public_name_is_in_the_reference():
    named = {f"sdediff.{home}" for home in sd._HOMES} | {"sdediff.networks", "sdediff.plots"}
    assert named <= packages()
    there = {name for home in packages() for name in importlib.import_module(home).__all__}
    own = set(re.findall(r"auto\w+:: sdediff\.(\w+)", (DOCS / "reference/sdediff.md").read_text()))
    assert not set(sd.__all__) - there - own


def test_the_first_page_of_the_reference_says_where_each_name_is():
    page = (DOCS / "reference" / "sdediff.md").read_text()
    rows = re.findall(r"`sd\.(\w+) <(sdediff\.\w+)\.(\w+)>`", page)
    assert len(rows) > 30
    for name, home, linked in rows:
        assert name == linked
        assert getattr(sd, name) is getattr(importlib.import_module(home), name)


def test_the_site_needs_no_other_host():
    """Its configuration, its styles and its extensions name none."""
    sources = [DOCS / "conf.py", *DOCS.glob("_static/*.css"), *DOCS.glob("_extensions/*.py")]
    assert not [path.name for path in sources if "://" in path.read_text()]
