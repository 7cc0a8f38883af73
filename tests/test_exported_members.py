from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xai_tasks

CONTRACT = """
    APIConnectionError APIError APIResponseValidationError APIStatusError APITimeoutError
    AuthenticationError
    BadRequestError ClientClosedError ClientStats ConfigurationError DownloadError
    DownloadExpiredError ImageRequest InvalidTaskIdError NotFoundError Outcome
    OutcomeStream PaymentRequiredError PermissionDeniedError PollPolicy RateLimitError RetryPolicy
    ServerError
    SubmissionUncertainError TaskCancelledError TaskClient TaskError TaskFailedError TaskResult
    TaskStatus TaskTimedOutError
    Update VideoRequest WaitTimeoutError Watch WatchAll
    XaiTasksError __version__ wait_adaptive
""".split()

PUBLIC = [(name, getattr(xai_tasks, name)) for name in xai_tasks.__all__ if name != "__version__"]


def test_all_is_sorted_and_is_the_documented_interface():
    assert xai_tasks.__all__ == sorted(CONTRACT)


def test_nothing_else_is_public():
    strays = {
        name
        for name, value in vars(xai_tasks).items()
        if not name.startswith("_")
        and name not in xai_tasks.__all__
        and not inspect.ismodule(value)
    }

    assert strays == {"annotations"}


def test_name_that_no_module_defines_is_an_attribute_error(monkeypatch):
    monkeypatch.setattr(xai_tasks, "__all__", [*xai_tasks.__all__, "Missing"])

    with pytest.raises(AttributeError, match="module 'xai_tasks' has no attribute 'Missing'"):
        _ = xai_tasks.Missing


def test_a_star_import_gives_all_of_it():
    namespace = {}
    exec("from xai_tasks import *", namespace)

    assert set(xai_tasks.__all__) <= set(namespace)


@pytest.mark.slow
def test_names_are_imported_when_they_are_used():
    loaded = in_a_fresh_interpreter(
        "import sys, json, xai_tasks; assert 'TaskClient' in dir(xai_tasks)\n"
        "print(json.dumps([name for name in sys.modules "
        "if name.startswith(('xai_tasks', 'aiohttp'))]))"
    )
    assert sorted(loaded) == ["xai_tasks", "xai_tasks._version"]


def test_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'xai_tasks' has no attribute 'TaskClinet'"):
        xai_tasks.TaskClinet  # noqa: B018
    with pytest.raises(ImportError):
        exec("from xai_tasks import TaskClinet")


def members(cls):
    """Return what a class adds to the interface: its own public methods and properties."""
    for name, value in vars(cls).items():
        if not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
            yield f"{cls.__name__}.{name}", value


@pytest.mark.parametrize(("name", "value"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_everything_public_has_a_docstring(name, value):
    assert value.__doc__ is not None
    assert value.__doc__.strip()
    assert value.__doc__ != value.__base__.__doc__
    undocumented = [
        where
        for cls in value.__mro__
        if cls.__module__.startswith("xai_tasks")
        for where, member in members(cls)
        if not inspect.getdoc(member)
    ]
    assert undocumented == []


@pytest.mark.parametrize(
    "module", sorted(Path(xai_tasks.__file__).parent.rglob("*.py")), ids=lambda path: path.stem
)
def test_every_module_has_a_docstring(module):
    assert module.read_text(encoding="utf-8").startswith('"""')


def in_a_fresh_interpreter(code, **environment):
    """Run code that prints JSON, and give what it printed."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert run.stderr == ""
    return json.loads(run.stdout)


def distributions_imported_by(statement):
    """Return the top-level modules outside the standard library that a statement brings in."""
    return set(
        in_a_fresh_interpreter(
            "import sys, json; before = set(sys.modules)\n"
            f"{statement}\n"
            "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
            "print(json.dumps(sorted(names - sys.stdlib_module_names)))"
        )
    )


@pytest.mark.slow
def test_importing_brings_in_nothing_but_the_three_dependencies_and_theirs():
    theirs = distributions_imported_by("import aiohttp, attrs, tenacity")

    ours = distributions_imported_by("from xai_tasks import *") - theirs
    assert ours - {"orjson"} == {"xai_tasks"}  # orjson where the extra `speed` is installed


@pytest.mark.slow
def test_importing_brings_in_neither_a_server_nor_a_test_kit_nor_the_command_line():
    loaded = in_a_fresh_interpreter(
        "import sys, json; from xai_tasks import *; print(json.dumps(sorted(sys.modules)))"
    )

    assert "xai_tasks._client" in loaded
    unwanted = ("aiohttp.web", "xai_tasks._cli", "xai_tasks.testing", "xai_tasks.dask", "click",
                "rich", "pytest",
                "hypothesis", "uvloop", "distributed")  # fmt: skip
    assert [name for name in loaded if name in unwanted] == []


@pytest.mark.slow
def test_importing_has_no_side_effects():
    before, after = in_a_fresh_interpreter(
        """
import aiohttp, tenacity, attrs, asyncio, gc, json, logging, os, signal, sys, threading, warnings

class Watched(dict):
    def __getitem__(self, name):
        raise AssertionError(f"the environment was asked for {name}")
    get = __contains__ = __getitem__

def state():
    loggers = {name: logging.getLogger(name) for name in ("", "xai_tasks", "asyncio", "aiohttp")}
    return [
        {name: [repr(each.handlers), each.level, each.propagate] for name, each in loggers.items()},
        sum(isinstance(each, asyncio.AbstractEventLoop) for each in gc.get_objects()),
        threading.active_count(),
        repr(signal.getsignal(signal.SIGINT)),
        repr(warnings.filters),
        repr(sys.excepthook),
        sys.getrecursionlimit(),
        len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
    ]

before = state()
os.environ, kept = Watched(os.environ), os.environ
os.getenv = os.environ.get
from xai_tasks import *
os.environ = kept
print(json.dumps([before, state()]))
""",
        MOUNTSEA_API_KEY="sk-\n",
        MOUNTSEA_BASE_URL="no url",
    )

    assert after == before


@pytest.mark.slow
def test_a_client_can_be_built_without_a_loop_and_leaves_nothing_behind():
    threads = in_a_fresh_interpreter(
        "import threading, json, xai_tasks; xai_tasks.TaskClient('sk'); "
        "print(json.dumps(threading.active_count()))"
    )

    assert threads == 1
