"""How Sphinx builds these pages: ``sphinx-build -nW --keep-going docs build/docs``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent / "src")]

from geomhooks import __version__  # noqa: E402 - found by the path above

project = "geomhooks"
author = "The geomhooks authors"
project_copyright = "the geomhooks authors; MIT license"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docstrings",
    "command_line",
    "included",
    "mathml",
    "pictures",
    "public",
    "results",
]
exclude_patterns = ["_build"]
nitpicky = True
# What other libraries document: their pages are on the network, where the build does not go.
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|contextlib|os|pathlib|torch|typing)\..*"),
    (r"py:.*", r"(go|nn|pd)\..*|Tensor|ProcessGroup"),
    (r"py:class", r"'.*'|Of|Length|Measure|dict\[str"),  # literals, and what Sphinx cuts in two
    # What nobody but the library itself makes or reads.
    (r"py:exc", r"TextError"),
    (r"py:class", r"geomhooks\.(plan|state|forwards\.schedule)\.\w+"),
    (r"py:class", r"geomhooks\.forwards\.tokens\.Token(Arrays|Grids)"),
]

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["lightning", "pytorch_lightning"]
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
python_display_short_literal_types = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
pygments_dark_style = "monokai"
html_title = f"geomhooks {release}"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
