"""Sphinx's settings."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

import xai_tasks

project = "xai_tasks"
author = "The xai_tasks maintainers"
release = version = xai_tasks.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"xai_tasks {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_search_language = "en"
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"  # docstrings are written in one kind of backticks
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

nitpicky = True
nitpick_ignore_regex = [  # what has no page on this site: others' names, and our private ones
    ("py:.*", r"(?!xai_tasks\.).*"),
    ("py:.*", r"xai_tasks\.(\w+\.)*_.*"),
]


def _plain_summary(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keep napoleon from reading what stands before an attribute's colon as its type."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")


def setup(app: Sphinx) -> None:
    """Come before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _plain_summary, priority=400)
