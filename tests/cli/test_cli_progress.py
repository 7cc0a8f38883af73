from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
from pathlib import Path

import pytest
from bar_picture import MOMENT, PACE, PICTURE
from rich.console import Console

from xai_tasks._cli import _bar, _progress
from xai_tasks._cli._bar import BarReporter, bar
from xai_tasks._cli._job import Job, Output
from xai_tasks._cli._progress import (
    LogHandler,
    Pace,
    PlainReporter,
    Reporter,
    Snapshot,
    format_duration,
    make_reporter,
    write_stderr,
)


def snapshot(completed=0, failed=0, waiting=0, polls=0, rate_limited=0, expected=None):
    return Snapshot(completed, failed, waiting, polls, rate_limited, expected)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3600 * 5 + 130, "5 h 2 min"),
    ],
)
def test_lengths_of_time_are_said_in_two_units_at_most(seconds, said):
    assert format_duration(seconds) == said


class TestPace:
    def test_is_that_of_the_last_half_minute(self):
        pace = Pace()
        for second in range(100):
            pace.add(second, snapshot(completed=second, polls=10 * second, expected=1000))
        for second in range(100, 140):
            pace.add(second, snapshot(completed=99 + 2 * (second - 99), polls=1000, expected=1000))
        assert pace.polls == 0
        assert pace.left == pytest.approx((1000 - 179) / 2)

    def test_spans_the_last_two_looks_however_far_apart(self):
        pace = Pace()
        for minute in range(3):
            pace.add(60 * minute, snapshot(polls=600 * minute))
        assert pace.polls == 10

    def test_time_left_is_not_told_from_nothing(self):
        pace = Pace()
        pace.add(0, snapshot(expected=10))
        assert (pace.polls, pace.left) == (0, None)
        pace.add(1, snapshot(expected=10, polls=5))
        assert (pace.polls, pace.left) == (5, None)
        pace.add(2, snapshot(completed=5, polls=10))
        assert pace.left is None


@pytest.mark.fake_clock
async def test_plain_reporter_tells_a_line_every_30_s(capsys):
    loop = asyncio.get_running_loop()
    begun = loop.time()

    def look():
        elapsed = round(loop.time() - begun)
        return snapshot(elapsed, 2, 500, elapsed * 20, 3, 3000)

    following = asyncio.create_task(PlainReporter().follow(look))
    await asyncio.sleep(65)
    following.cancel()
    assert capsys.readouterr().err.splitlines() == [
        (
            "xai-tasks: 49 min 28 s left, 30 completed, 2 failed, 500 waiting, "
            "20.0 polls/s, 3 rate limited"
        ),
        (
            "xai-tasks: 48 min 58 s left, 60 completed, 2 failed, 500 waiting, "
            "20.0 polls/s, 3 rate limited"
        ),
    ]


async def test_quiet_reporter_tells_errors_only(capsys):
    reporter = Reporter()
    await reporter.follow(lambda: pytest.fail("nobody asked"))
    reporter.sum_up("all is well")
    reporter.say("the disk is full")
    assert capsys.readouterr().err == "xai-tasks: the disk is full\n"


def test_warnings_of_the_client_are_told_in_one_line(capsys):
    LogHandler(Reporter()).handle(
        logging.LogRecord("xai_tasks", logging.WARNING, "", 0, "gone for %d s", (5,), None)
    )
    assert capsys.readouterr().err == "xai-tasks: gone for 5 s\n"


@pytest.mark.parametrize(
    ("term", "platform", "cls"),
    [
        ("xterm", "posix", BarReporter),
        ("dumb", "posix", PlainReporter),
        (None, "posix", PlainReporter),
        (None, "nt", BarReporter),
    ],
)
def test_bar_is_drawn_on_terminals_only(monkeypatch, term, platform, cls):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(_progress, "_HAS_TERM", platform == "posix")
    assert type(make_reporter(quiet=False)) is cls
    assert type(make_reporter(quiet=True)) is Reporter


class TestRateWarning:
    def warned(self, capsys, *, rate=None, timeout=600.0, limited=5, waiting=10_000, seconds=30):
        job = Job(
            None, Output(None, resume=False), Reporter(), summary=None, hint="", max_pending=1,
            rate=rate, timeout=timeout,
        )  # fmt: skip
        pace, moment = Pace(), snapshot(waiting=waiting, polls=10 * seconds, rate_limited=limited)
        pace.add(0, snapshot())
        pace.add(seconds, moment)
        job._check_pace(moment, pace)
        job._check_pace(moment, pace)
        return capsys.readouterr().err

    def test_tells_once_how_many_will_time_out(self, capsys):
        assert self.warned(capsys) == (
            "xai-tasks: at 10 requests/s about 4,000 of the 10,000 ids that are waited for "
            "will time out "
            "after 10 min 0 s; give more with --timeout\n"
        )
        assert self.warned(capsys, rate=10.0, limited=0)

    @pytest.mark.parametrize(
        "case", [{"limited": 0}, {"timeout": None}, {"waiting": 6000}, {"seconds": 5}]
    )
    def test_is_not_given_without_need(self, capsys, case):
        assert self.warned(capsys, **case) == ""


def test_stderr_that_nobody_reads_is_given_up(monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    write_stderr("x")
    assert sys.stderr is None
    write_stderr("y")


class TestBar:
    def test_is_not_drawn_while_the_terminal_is_held(self, monkeypatch, capsys):
        monkeypatch.setattr(_bar, "has_room", lambda fd: False)
        BarReporter().show(MOMENT, PACE)
        assert capsys.readouterr().err == ""

    def drawn(self, width, moment=MOMENT):
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        console.print(bar(moment, PACE, width))
        return console.file.getvalue()

    @pytest.mark.parametrize(
        ("width", "shown"),
        [
            (40, ("left", "completed")),
            (60, ("left", "completed", "━", "failed")),
            (80, ("left", "completed", "━", "failed", "waiting")),
            (120, ("left", "completed", "━", "failed", "waiting", "polls/s", "limited")),
        ],
    )
    def test_shows_what_is_of_most_use_first(self, width, shown):
        # A large job in its fifth hour, with counts of five digits.
        moment = snapshot(16_120, 10_031, 10_000, 41_900, 12_345, 60_000.0)
        pace = Pace()
        pace.add(0, snapshot(16_000, 10_000, 10_000, 35_860, 12_345, 60_000.0))
        pace.add(75, moment)
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)

        console.print(bar(moment, pace, width - 1), width=width - 1)

        line = console.file.getvalue()
        assert line.count("\n") == 1
        assert len(line.rstrip("\n")) < width
        words = ("left", "completed", "━", "failed", "waiting", "polls/s", "limited")
        assert tuple(word for word in words if word in line) == shown
        assert "…" not in line

    def test_one_fact_is_shown_however_narrow_it_is(self):
        assert "…" in self.drawn(5)

    def test_is_drawn_where_the_console_cannot_be_asked_for_room(self, monkeypatch, capsys):
        def select(*args):
            raise OSError(10038, "an operation was attempted on something that is not a socket")

        monkeypatch.setattr("select.select", select)
        BarReporter().show(MOMENT, PACE)
        assert "completed" in capsys.readouterr().err

    def test_console_without_escape_sequences_is_cleared_by_blanks(self, monkeypatch, capsys):
        reporter = BarReporter()
        reporter._console = Console(stderr=True, legacy_windows=True, width=20)
        monkeypatch.setattr(_bar, "has_room", lambda fd: None)
        reporter.show(MOMENT, PACE)
        reporter.clear()
        err = capsys.readouterr().err
        assert "\x1b[2K" not in err
        assert re.search(r"\r {15,19}\r$", err)  # as many as the bar was wide

    def test_grows_with_the_share_that_has_ended(self):
        assert 0 < self.drawn(150).count("━") < self.drawn(200).count("━")

    def test_stays_in_one_line_of_a_narrow_terminal(self):
        assert self.drawn(40).count("\n") == 1

    def test_has_no_bar_where_the_end_is_not_known(self):
        assert "━" not in self.drawn(150, snapshot(completed=5))

    def test_is_as_in_the_picture_of_the_docs(self):
        picture = Path(PICTURE).read_text()
        said = re.sub(r"&#160;", " ", " ".join(re.findall(r">([^<>]+)</text>", picture)))
        for word in self.drawn(150).replace("━", " ").split():
            assert word.strip("╺╸") in said
