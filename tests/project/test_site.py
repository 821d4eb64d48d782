"""The site's pages hang together: links lead somewhere, every page is in the navigation, and every
public name is in the reference. `make docs` builds the site itself, with warnings as errors.
"""

import ast
import importlib.util
import inspect
import pkgutil
import re
import types
from fnmatch import fnmatch
from pathlib import Path

import pytest
from code_blocks import FENCE, code_blocks

import sdediff as sd

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md")])
LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")
ITEM = re.compile(r" {0,3}(?:\d+[.)]|[-+*]) ")
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
        # a page of the site has no link to a text outside of docs/: include it as a page
        left = DOCS in page.parents and file.suffix == ".md" and DOCS not in file.parents
        if left or not file.exists() or not (known or anchor in anchors(file)):
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


def test_a_link_out_of_the_site_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "DOCS", tmp_path / "docs")
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    (tmp_path / "CHANGELOG.md").touch()
    page.write_text("[a](../CHANGELOG.md)\n")
    assert broken(page) == ["../CHANGELOG.md"]


def cut_by_a_list(page):
    """The lines in the middle of a paragraph that begin as an item of a list: "+ b", "1. So"."""
    found, before, in_list = [], "", False
    for line in prose(page):
        item = bool(ITEM.match(line))
        if item and not in_list and before.strip() and not before.startswith("#"):
            found.append(line)
        in_list = item or (in_list and bool(line.strip()))
        before = line
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_paragraph_is_cut_by_a_list(page):
    assert not cut_by_a_list(page)


def test_a_paragraph_that_is_cut_by_a_list_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A head\n- one\n  more\n- two\n\nThe sum is a\n+ b, about\n\nabout\n1. So.\n\n1. First.\n"
    )
    assert cut_by_a_list(page) == ["+ b, about", "1. So."]


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


@pytest.fixture(scope="module")
def docstrings():
    return loaded(DOCS / "_extensions" / "docstrings.py")


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documented(docstrings):
    """All that the pages of the reference document."""
    pairs = [(home, name) for name, homes in docstrings.places().items() for home in homes]
    return {id(getattr(importlib.import_module(home), name)) for home, name in pairs}


def explained(value):
    """Whether it is something that a reference explains: a class, a function or a solver."""
    return callable(value) and not isinstance(value, types.ModuleType)


def test_every_public_name_is_in_the_reference(docstrings):
    there = documented(docstrings)
    modules = loaded(ROOT / "tools" / "public_api.py").packages()
    assert len(modules) > 30
    missing = [
        f"{module.__name__}.{name}"
        for module in modules
        for name in module.__all__
        if explained(getattr(module, name)) and id(getattr(module, name)) not in there
    ]
    assert not missing, f"a page of docs/reference needs an automodule or autofunction: {missing}"


def imported(page):
    """What the Python blocks of a page import from the library, (module, name)."""
    blocks = [block for block in code_blocks(page) if block.language == "python"]
    trees = [ast.parse(block.code) for block in blocks if not block.not_run]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and re.match(r"(sdediff|solvers)\b", node.module or ""):
            yield from ((node.module, alias.name) for alias in node.names)


def test_the_reference_has_what_pages_import(docstrings):
    there = documented(docstrings)
    missing = []
    for page in PAGES:
        for module, name in imported(page):
            value = getattr(importlib.import_module(module), name, None)
            if explained(value) and id(value) not in there:
                missing.append(f"{page.name}: {module}.{name}")
    assert not missing


def test_every_command_is_on_its_page():
    from sdediff.cli.app import app

    page = (DOCS / "command-line.md").read_text()
    names = [each.name or each.callback.__name__ for each in app.registered_commands]
    assert re.findall(r"\.\. command:: (\w+)", page) == sorted(
        names, key=lambda name: page.find(f"### sdediff {name}\n")
    )


def test_a_line_in_the_middle_of_a_sentence_begins_no_item(docstrings):
    """As the option ``grid`` had it; the line before has to end a sentence."""
    text = [
        "``grid``: how times are spaced. The default is",
        "``solver.spacing``: a name",
        "- 1 say.",
        "``steps``: how many.",
    ]
    found = [line for line in docstrings.converted(text, "", DOCS) if line]
    assert found == [
        "* ``grid``: how times are spaced. The default is ``solver.spacing``: a name - 1 say.",
        "* ``steps``: how many.",
    ]


def test_shared_options_are_linked_and_not_repeated(docstrings):
    text = docstrings.said_once(sd.encode.__doc__)
    assert "how times are spaced" in sd.encode.__doc__
    assert "how times are spaced" not in text
    assert "``grid``, " in text
    assert "as in `SolveOptions`." in text


def docstrings_of(package):
    """The docstrings of all modules of the library, their classes, functions and methods."""
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if info.name.startswith(("sdediff.cli", "sdediff.__main__")):
            continue  # no page shows them
        module = importlib.import_module(info.name)
        yield info.name, module.__doc__ or ""
        own = [v for v in vars(module).values() if getattr(v, "__module__", "") == info.name]
        for value in own:
            inside = vars(value).values() if isinstance(value, type) else ()
            for each in (value, *inside):
                text = getattr(each, "__doc__", None)
                if isinstance(text, str):
                    yield f"{info.name}: {getattr(each, '__qualname__', each)}", text


def test_docstrings_have_no_markup_that_the_site_would_show():
    """Code is shown as it is, with its backticks, and a word between asterisks keeps them."""
    found = list(docstrings_of(sd))
    assert len(found) > 2000
    wrong = [
        f"{name}: {line.strip()}"
        for name, text in found
        for line in inspect.cleandoc(text).splitlines()
        if ("``" in line and line.startswith("    ") and "``" not in line.strip()[:2])
        or re.search(r"(?<![\w*])\*[a-z]+\*(?![\w*])", line)
    ]
    assert not wrong


def rows_cut_short(page):
    """Rows of tables that have more cells than the head has, as a | in a cell makes them."""
    head, found = None, []
    for line in prose(page):
        cells = len(re.findall(r"(?<!\\)\|", re.sub(r"^\||\|$", "", line.strip())))
        if not line.startswith("|"):
            head = None
        elif head is None:
            head = cells
        elif cells != head:
            found.append(line)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_rows_of_tables_have_the_cells_of_the_head(page):
    assert not rows_cut_short(page)


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
