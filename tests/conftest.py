"""What every test has: the event loop it runs on, and a watch over what asyncio complains of."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
from pathlib import Path

import hypothesis
import pytest
from fakes import FakeClockLoop

from xai_tasks._http import lean

HERE = Path(__file__).parent
SLOW_FOLDERS = {"cli", "examples", "realserver"}
"""Their tests start programs, servers and browsers."""
GATE_MAY_SKIP = {
    "needs Airflow": "it has 150 dependencies, which pip can't install on each machine",
}
"""Skips, by how their reasons begin, that the gate accepts, and why."""

# An example may take long on a machine that is shared.
hypothesis.settings.register_profile(
    "suite", max_examples=int(os.environ.get("XAI_TASKS_EXAMPLES", "100")), deadline=None
)
hypothesis.settings.load_profile("suite")


def pytest_configure(config):
    # A suite that runs in the background of a script has SIGINT ignored, one under `nohup` SIGHUP,
    # and so would every command line that a test starts and interrupts.
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    config.addinivalue_line(
        "markers", "fake_clock: runs by a clock that jumps over what would be waiting"
    )


def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW_FOLDERS & set(item.path.relative_to(HERE).parts):
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return _without_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return _without_skip((yield))


def _without_skip(report):
    """Make a failure of a skip in the gate: there, everything that tests need is installed."""
    if report.skipped and "XAI_TASKS_GATE" in os.environ:
        _, _, reason = report.longrepr
        if not reason.removeprefix("Skipped: ").startswith(tuple(GATE_MAY_SKIP)):
            report.outcome = "failed"
            report.longrepr = f"The gate skips no test. {reason}"
    return report


def pytest_collection_finish():
    # Hundreds of tests collect garbage to see what is left. What stands before the first test
    # (modules, and the tests themselves) they need not go through each time.
    gc.collect()
    gc.freeze()


def pytest_asyncio_loop_factories(config, item):
    """Choose the loop: `XAI_TASKS_LOOP=uvloop` for uvloop, asyncio's own
    otherwise; a fake clock has its own.
    """
    if item.get_closest_marker("fake_clock"):
        return {"fake": FakeClockLoop}
    name = os.environ.get("XAI_TASKS_LOOP", "asyncio")
    if name == "uvloop":
        import uvloop  # noqa: PLC0415 -- only where it is asked for

        return {name: uvloop.new_event_loop}
    if name != "asyncio":
        raise pytest.UsageError(f"XAI_TASKS_LOOP must be asyncio or uvloop, not {name!r}")
    return {name: asyncio.new_event_loop}


@pytest.fixture(params=["lean", "ordinary"])
def request_class(request, monkeypatch):
    """Send each test's requests lean, and by aiohttp's session."""
    monkeypatch.setattr(lean, "_verdict", request.param == "lean")
    return request.param


@pytest.fixture(autouse=True)
def asyncio_complaints():
    """Fail a test at whose end asyncio has logged an error: a task destroyed,
    an exception nobody fetched.
    """
    complaints = _Complaints(logging.ERROR)
    logger = logging.getLogger("asyncio")
    logger.addHandler(complaints)
    yield complaints
    logger.removeHandler(complaints)
    assert complaints.messages == []


_processes = []
_popen = subprocess.Popen.__init__


def _counting_popen(self, args, *rest, **options):
    _processes.append(args)
    _popen(self, args, *rest, **options)


subprocess.Popen.__init__ = _counting_popen  # asyncio's processes come by here too


@pytest.fixture(autouse=True)
def no_processes_in_quick_tests(request):
    """Fail a test that starts a process and is not marked `slow`."""
    before = len(_processes)
    yield
    if request.node.get_closest_marker("slow") is None:
        assert _processes[before:] == [], "mark it pytest.mark.slow"


class _Complaints(logging.Handler):
    def __init__(self, level):
        super().__init__(level)
        self.messages = []

    def emit(self, record):
        self.messages.append(self.format(record))
