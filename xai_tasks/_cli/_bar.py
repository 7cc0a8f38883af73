"""The progress bar: the only module of a job that imports rich, which takes its time."""

from __future__ import annotations

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from xai_tasks._cli._output import has_room
from xai_tasks._cli._progress import Pace, PlainReporter, Snapshot, facts, write_stderr

_STYLES = {
    "left": "magenta",
    "completed": "green",
    "failed": "red",
    "polls/s": "cyan",
    "limited": "yellow",
}
_MIN_BAR = 8
_GAP = 2
_BEFORE_BAR = 2
"""Facts that go before the bar where there is not room for all."""
_ERASE = "\r\x1b[2K"
_STDERR = 2


def bar(snapshot: Snapshot, pace: Pace, width: int) -> Table:
    """Draw where the job stands in one line of `width` columns, the most useful first."""
    # Without a total there is nothing to draw, and an empty bar would look like a standstill.
    total, said = snapshot.expected or 0.0, facts(snapshot, pace)
    room, shown, has_bar = width, list[str](), False
    for place, fact in enumerate(said):
        if place == _BEFORE_BAR and total and room >= _MIN_BAR:
            room -= _MIN_BAR + _GAP
            has_bar = True
        if len(fact) > room:
            break
        room -= len(fact) + _GAP
        shown.append(fact)
    row = Table.grid(padding=(0, _GAP, 0, 0), expand=True, pad_edge=False)
    if has_bar:
        row.add_column(ratio=1)
    row.add_column(no_wrap=True, overflow="ellipsis")
    words = Text(" " * _GAP).join(
        Text(fact, _STYLES.get(fact.split()[-1], "")) for fact in shown or said[:1]
    )
    row.add_row(*([ProgressBar(total=total, completed=snapshot.ended)] if has_bar else []), words)
    return row


class BarReporter(PlainReporter):
    """Redraws a bar in the terminal's last line, and clears it away for every other line."""

    interval = 0.25

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._drawn = False

    def show(self, snapshot: Snapshot, pace: Pace) -> None:
        if has_room(_STDERR) is False:
            return  # the terminal is held, as by Ctrl-S: this must not hold the waits
        # One column less than there are: some terminals wrap after the last.
        width = self._console.width - 1
        with self._console.capture() as captured:
            self._console.print(bar(snapshot, pace, width), width=width)
        write_stderr(self._erase() + captured.get().rstrip("\n"))
        self._drawn = True

    def clear(self) -> None:
        if self._drawn:
            write_stderr(self._erase())
            self._drawn = False

    def _erase(self) -> str:
        if self._console.legacy_windows:  # no escape sequences there
            return "\r" + " " * (self._console.width - 1) + "\r"
        return _ERASE
