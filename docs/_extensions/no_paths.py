"""No page shows a path of the machine that has built it, as warnings in a notebook's output do."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def check(app: Sphinx, error: Exception | None) -> None:
    """Raise ValueError if a page holds the path of this Python or of these docs."""
    if error is not None or app.builder.format != "html":
        return
    own = (sys.prefix, str(Path(app.srcdir).parent))
    # as the beginning of a longer path: a checkout in /repo is not the end of an address
    inside = re.compile("|".join(rf"(?<![\w./-]){re.escape(path)}/" for path in own))
    pages = sorted(Path(app.outdir).rglob("*.html"))
    wrong = [page.name for page in pages if inside.search(page.read_text())]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} show a path of this machine: {' or '.join(own)}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the check."""
    app.connect("build-finished", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
