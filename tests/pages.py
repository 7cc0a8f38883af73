"""Files that the documentation shows whole: a line with the name in bold, then the block."""

from __future__ import annotations

import re

FILE = re.compile(r"^\*\*`(\S+)`\*\*\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""So the name is visible wherever the page is read, and is not part of what a reader copies."""


def files(page):
    """Return the files that a page shows, by name, in the page's order."""
    return dict(FILE.findall(page))


def starts_in_file(page, position):
    """Return whether the block that starts at `position` is such a file."""
    return re.search(r"^\*\*`\S+`\*\*\n\n\Z", page[:position], re.MULTILINE) is not None
