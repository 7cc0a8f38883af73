"""The fixtures under each async test runner, each in a separate pytest run."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xai_tasks

pytestmark = pytest.mark.slow

pytest_plugins = ["pytester"]

needs_anyio = pytest.mark.skipif(
    not importlib.util.find_spec("anyio"), reason="anyio is not installed"
)

# Plugins of other libraries that we test with.
FOREIGN = [
    "-p",
    "no:looptime_plugin",
    "-p",
    "no:schemathesis",
    "-p",
    "no:hypothesispytest",
    "-p",
    "no:cacheprovider",
]
AUTO = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
STRICT = ["-o", "asyncio_mode=strict", "-o", "asyncio_default_fixture_loop_scope=function"]

HEAD = """
import pytest

clients = []
"""
TEST = """
async def test_a_task_{name}(xai_task_server, xai_task_client):
    xai_task_server.add("a", [("processing", 0.05)], result={{"ok": True}})
    task = await xai_task_client.wait("a")
    assert task.result == {{"ok": True}}
    clients.append(xai_task_client)
"""
TAIL = """
def test_the_clients_were_closed():
    assert clients
    assert all(client.closed for client in clients)
"""


PACKAGE = str(Path(xai_tasks.__file__).parents[1])


@pytest.fixture
def run(pytester, monkeypatch):
    # Works whether the package is installed or not.
    monkeypatch.setenv("PYTHONPATH", PACKAGE)

    def run(test, *options, conftest="", **outcomes):
        pytester.makeconftest(f'{conftest}\npytest_plugins = ["xai_tasks.testing.pytest_plugin"]\n')
        pytester.makepyfile(test)
        result = pytester.runpytest_subprocess("-W", "error", *FOREIGN, *options)
        result.assert_outcomes(**outcomes)

        return result

    return run


def one_test(mark="", name="a"):
    return f"{mark}{TEST.format(name=name)}"


def test_pytest_asyncio_auto_mode(run):
    run(HEAD + one_test() + TAIL, *AUTO, passed=2)


def test_pytest_asyncio_strict_mode_every_loop_scope(run):
    scopes = ("function", "class", "module", "package", "session")
    tests = [one_test(f"@pytest.mark.asyncio(loop_scope='{scope}')", scope) for scope in scopes]

    run(HEAD + "".join(tests) + one_test("@pytest.mark.asyncio", "plain") + TAIL, *STRICT, passed=7)


def test_pytest_asyncio_configured_loop_scope(run):
    run(HEAD + one_test() + TAIL, *AUTO, "-o", "asyncio_default_test_loop_scope=session", passed=2)


@needs_anyio
@pytest.mark.parametrize(
    ("conftest", "options"),
    [("", STRICT), ("import sys; sys.modules['pytest_asyncio'] = None", ["-p", "no:asyncio"])],
    ids=["beside pytest-asyncio", "without pytest-asyncio"],
)
def test_anyio(run, conftest, options):
    backend = "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"

    run(
        HEAD + backend + one_test("@pytest.mark.anyio") + TAIL,
        *options,
        conftest=conftest,
        passed=2,
    )


@pytest.fixture(scope="session")
def install(tmp_path_factory):
    """Return a function that installs a version of pytest-asyncio, and returns its PYTHONPATH."""

    @functools.cache
    def install(*packages):
        target = tmp_path_factory.mktemp("packages")
        uv = Path(sys.executable).with_name("uv")  # in the gate: seconds instead of half a minute
        pip = [sys.executable, "-m", "pip", "install"]
        if uv.exists():
            pip = [uv, "pip", "install", f"--python={sys.executable}"]
        command = [*pip, "-q", f"--target={target}", *packages]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{packages} can't be installed: {done.stderr[-200:]}")
        return str(target)

    def path(version):
        pytest_asyncio = install("--no-deps", f"pytest-asyncio=={version}")
        return os.pathsep.join([pytest_asyncio, install("pytest<9"), PACKAGE])

    return path


def test_oldest_supported_pytest_asyncio(run, install, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", install("0.26.0"))
    scopes = "".join(
        one_test(f"@pytest.mark.asyncio(loop_scope='{scope}')", scope)
        for scope in ("function", "module", "session")
    )

    # That version itself leaves event loops open, and warns of it.
    run(HEAD + scopes + TAIL, *STRICT, "-W", "default", passed=4)
    run(HEAD + one_test() + TAIL, *AUTO, passed=2)


@pytest.mark.parametrize("version", ["0.21.2", "0.25.3"])
def test_unsupported_pytest_asyncio_says_so(run, install, monkeypatch, version):
    monkeypatch.setenv("PYTHONPATH", install(version))
    other = "\ndef test_server(xai_task_server): pass\n"

    result = run(one_test() + other, "-o", "asyncio_mode=auto", errors=1, passed=1)

    lines = [line for line in result.outlines if "pytest-asyncio 0.26 or later" in line]
    assert version in lines[0]


def test_synchronous_tests(run):
    test = """
        import asyncio
        from xai_tasks import TaskClient

        async def app(url):
            async with TaskClient("test", base_url=url) as client:
                return (await client.get("a")).status

        def test_app(xai_task_server):
            xai_task_server.add("a")
            assert asyncio.run(app(xai_task_server.url)) == "completed"
    """
    run(test, *AUTO, passed=1)


def test_each_test_has_its_own_server(run):
    test = """
        seen = []

        def test_one(xai_task_server):
            xai_task_server.add("a")
            seen.append(xai_task_server.url)

        def test_other(xai_task_server):
            assert xai_task_server.count() == 0
            assert xai_task_server not in seen
    """
    run(test, *AUTO, passed=2)


def test_a_synchronous_test_is_told_why_it_gets_no_client(run):
    result = run("def test_sync(xai_task_client): pass", *AUTO, errors=1)

    result.stdout.fnmatch_lines(["*xai_task_client is for asynchronous tests*"])


def test_the_fixtures_are_there_only_where_asked_for(pytester):
    pytester.makepyfile("def test_sync(xai_task_server): pass")

    result = pytester.runpytest_subprocess(*FOREIGN, *AUTO)

    result.stdout.fnmatch_lines(["*fixture 'xai_task_server' not found*"])
