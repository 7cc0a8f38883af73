"""Draws the progress bar for the docs: `python tests/cli/bar_picture.py`."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from xai_tasks._cli._bar import bar
from xai_tasks._cli._progress import Pace, Snapshot

PICTURE = Path(__file__).parents[2] / "docs" / "how-to" / "progress-bar.svg"
MOMENT = Snapshot(
    completed=6_120, failed=31, waiting=10_000, polls=41_900, rate_limited=4, expected=25_000.0
)
PACE = Pace()
PACE.add(
    0.0,
    Snapshot(
        completed=4_790, failed=26, waiting=10_000, polls=35_860, rate_limited=4, expected=25_000.0
    ),
)
PACE.add(30.0, MOMENT)


def main() -> None:
    """Write the picture."""
    console = Console(
        record=True, width=126, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print("$ xai-tasks wait --input ids.txt --output out.jsonl --resume")
    console.print(bar(MOMENT, PACE, 126))
    picture = console.export_svg(title="xai-tasks", unique_id="progress-bar")
    # The fonts that rich names would be fetched from a third party by whoever looks at the docs.
    PICTURE.write_text(re.sub(r"\s*@font-face \{.*?\}", "", picture, flags=re.DOTALL))


if __name__ == "__main__":
    main()
