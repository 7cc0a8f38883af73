from __future__ import annotations

import inspect
import subprocess
import sys

import xai_tasks
import xai_tasks.testing

SIDE_EFFECTS = """
import os, sys
environment = []
get = os.environ.get
os.environ.get = lambda name, default=None: environment.append(name) or get(name, default)
import aiohttp, asyncio, attrs, logging, tenacity
environment.clear()
before = set(sys.modules)
import xai_tasks
assert not logging.getLogger("xai_tasks").handlers
assert not [name for name in environment if "MOUNTSEA" in name], environment
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_all_is_sorted_and_there():
    for module in (xai_tasks, xai_tasks.testing):
        assert list(module.__all__) == sorted(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


def test_all_is_all():
    public = {name for name, value in vars(xai_tasks).items() if not name.startswith("_")}

    assert {name for name in public if not inspect.ismodule(getattr(xai_tasks, name))} - {
        "annotations"
    } == set(xai_tasks.__all__) - {"__version__"}


def test_everything_public_has_a_docstring():
    bare = []
    for name in xai_tasks.__all__:
        value = getattr(xai_tasks, name)
        if not inspect.isclass(value):
            continue
        members = [f"{name}.{member}" for member in vars(value) if not member.startswith("_")]
        bare += [
            path
            for path in (name, *members)
            if (member := eval(f"xai_tasks.{path}", {"xai_tasks": xai_tasks}))
            and (inspect.isfunction(member) or inspect.isclass(member) or isinstance(member, property))
            and not inspect.getdoc(member)
        ]

    assert bare == []


def test_import_has_no_side_effect_and_needs_the_three_dependencies_alone():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SIDE_EFFECTS], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    beyond = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert beyond == {"xai_tasks"}


def test_pytest_does_not_load_the_kit_unasked():
    code = "import importlib.metadata as m; print([e.value for e in m.entry_points(group='pytest11')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "xai_tasks" not in done.stdout
