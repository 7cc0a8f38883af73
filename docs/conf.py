"""Sphinx's settings."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

import xai_tasks

project = "xai_tasks"
author = "The xai_tasks maintainers"
release = version = xai_tasks.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
language = "en"
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
default_role = "code"  # docstrings use single backticks
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

nitpicky = True
nitpick_ignore_regex = [  # names without a page on this site: other packages' and private ones
    ("py:.*", r"(?!xai_tasks\.).*"),
    ("py:.*", r"xai_tasks\.(\w+\.)*_.*"),
]


class SearchBoth(SearchEnglish):
    """Search in English, and in Chinese by pairs of characters, as Chinese has no spaces."""

    _run = re.compile(r"[\u4e00-\u9fff]+|(?:(?![\u4e00-\u9fff])\w)+")
    js_splitter_code = r"""
var splitQuery = (query) => query
  .split(/[^\p{Letter}\p{Number}_\p{Emoji_Presentation}]+/gu)
  .flatMap((term) => term.match(/[\u4e00-\u9fff]+|[^\u4e00-\u9fff]+/gu) || [])
  .flatMap((run) => /[\u4e00-\u9fff]{2}/.test(run)
    ? [...run].slice(1).map((_, index) => run.slice(index, index + 2))
    : [run]);
"""

    def split(self, input: str) -> list[str]:  # noqa: A002 -- the name is Sphinx's
        """Return the words of a text; of Chinese, each pair of neighbours."""
        words = []
        for run in self._run.findall(input):
            chinese = len(run) > 1 and "\u4e00" <= run[0] <= "\u9fff"
            words += [run[i : i + 2] for i in range(len(run) - 1)] if chinese else [run]
        return words


def _plain_summary(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keep napoleon from reading the text before an attribute's colon as its type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment: napoleon takes only the first line apart


def _page_language(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Set the page's language, for browsers and search engines; Chinese pages list theirs first."""
    context["language"] = "en"
    if pagename.startswith("zh/"):
        context["language"] = "zh-CN"
        groups = re.split(r'(?=<p class="caption")', context.get("furo_navigation_tree", ""))
        context["furo_navigation_tree"] = "".join(
            sorted(groups, key=lambda group: ">中文<" not in group)
        )


def setup(app: Sphinx) -> None:
    """Connect the functions above; the priorities of napoleon and furo are 500."""
    app.add_search_language(SearchBoth)
    app.connect("autodoc-process-docstring", _plain_summary, priority=400)
    app.connect("html-page-context", _page_language, priority=600)
