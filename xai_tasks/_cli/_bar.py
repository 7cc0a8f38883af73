"""The progress bar: the only module that imports rich, which takes its time."""

from __future__ import annotations

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from xai_tasks._cli._output import has_room
from xai_tasks._cli._progress import Pace, PlainReporter, Snapshot, facts, write_stderr

_STYLES = ("green", "red", "", "cyan", "yellow", "magenta")
_ERASE = "\r\x1b[2K"
_STDERR = 2


def bar(snapshot: Snapshot, pace: Pace) -> Table:
    """Draw where the job stands, in one line."""
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(ratio=1, min_width=8)
    row.add_column(no_wrap=True, overflow="ellipsis")
    said = [Text(fact, style) for fact, style in zip(facts(snapshot, pace), _STYLES, strict=False)]
    # Without a total there is nothing to draw, and an empty bar would look like a standstill.
    total, ended = snapshot.expected or 0.0, snapshot.ended
    row.add_row(ProgressBar(total=total, completed=ended) if total else "", Text("  ").join(said))
    return row


class BarReporter(PlainReporter):
    """Redraws a bar in the terminal's last line, and clears it away for every other line."""

    interval = 0.25

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._drawn = False

    def show(self, snapshot: Snapshot, pace: Pace) -> None:
        if not has_room(_STDERR):
            return  # the terminal is held, as by Ctrl-S: this must not hold the waits
        with self._console.capture() as captured:
            # One column less than there are: some terminals wrap after the last.
            self._console.print(bar(snapshot, pace), width=self._console.width - 1)
        write_stderr(_ERASE + captured.get().rstrip("\n"))
        self._drawn = True

    def clear(self) -> None:
        if self._drawn:
            write_stderr(_ERASE)
            self._drawn = False
