"""How the site is built: `make docs` writes it to build/docs, and warnings are errors."""

import logging
import os
import sys
from pathlib import Path

import sdediff

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "sdediff"
author = "the sdediff authors"
copyright = author
version = release = sdediff.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "mathml",
    "docstrings",
    "commands",
    "no_paths",
]
exclude_patterns = ["_extensions", "jupyter_execute"]
smartquotes_action = "q"  # no dash in the place of the -- of an option
html_theme = "furo"
html_title = f"sdediff {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
html_copy_source = False
html_show_search_summary = False  # it would fetch pages, which browsers refuse for files on disk
html_show_copyright = False

# Equations are MathML, which browsers draw themselves: no script and no font from elsewhere.
html_math_renderer = "mathml"
myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3

# A pattern in the navigation may wait for its page. Sphinx gives this warning no type by which
# suppress_warnings could name it.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: getattr(record, "subtype", "") != "empty_glob"
)

# A notebook that shows no progress bar needs no widgets: no warning that they are missing.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_execution_in_temp = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False  # a method that fills in one of its base class is told there
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
