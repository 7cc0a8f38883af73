"""`.ci/release` refuses whatever is not in order, and publishes nothing itself."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import xai_tasks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent

GATE = """
mkdir -p dist
touch dist/xai_tasks-1.2.3-py3-none-any.whl dist/xai_tasks-1.2.3.tar.gz
"""

MATERIALS = """#!/bin/sh
while [ "$1" != --output-file ]; do shift; done
printf '{\n  "name": "xai-tasks",\n  "type": "library"\n}\n' >"$2"
"""


def git(repository, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@localhost"]
    subprocess.run(["git", *identity, *arguments], cwd=repository, check=True, capture_output=True)


def commit(repository, **files):
    for path, text in files.items():
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_text(text)
    git(repository, "add", "-A")
    git(repository, "commit", "-m", "a")


@pytest.fixture
def repository(tmp_path):
    """Make a repository in which all is in order, and whose gate only makes empty files."""
    git(tmp_path, "init", "-b", "main")
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "release", tmp_path / ".ci")
    commit(
        tmp_path,
        **{
            ".ci/run": GATE,
            ".gitignore": ".venv/\ndist/\n",
            "docs/changelog.md": "# C\n\n## 1.2.3 - 2026-11-25\n\n- All.\n",
            "tests/public_api.txt": "a = def()\n",
            "tests/public_api_released.txt": "a = def()\n",
            "xai_tasks/_version.py": '__version__ = "1.2.3"\n',
        },
    )
    materials = tmp_path / ".venv" / "bin" / "cyclonedx-py"
    materials.parent.mkdir(parents=True)
    materials.write_text(MATERIALS)
    materials.chmod(materials.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def release(repository):
    return subprocess.run(
        ["bash", repository / ".ci" / "release"], capture_output=True, text=True, check=False
    )


def test_release_prints_commands_to_publish(repository):
    done = release(repository)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        '  git tag -s v1.2.3 -m "xai_tasks 1.2.3" && git push origin v1.2.3',
        "  twine upload dist/*.tar.gz dist/*.whl",
    ]
    tags = subprocess.run(
        ["git", "tag"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert tags.stdout == ""


def test_release_has_checksums_and_bill_of_materials(repository):
    release(repository)

    sums = (repository / "dist" / "SHA256SUMS").read_text()
    assert [line.split()[1] for line in sums.splitlines()] == [
        "xai_tasks-1.2.3-py3-none-any.whl",
        "xai_tasks-1.2.3.cdx.json",
        "xai_tasks-1.2.3.tar.gz",
    ]
    materials = json.loads((repository / "dist" / "xai_tasks-1.2.3.cdx.json").read_text())
    assert materials == {"name": "xai-tasks", "version": "1.2.3", "type": "library"}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"xai_tasks/_version.py": '__version__ = "1.2"\n'}, "not like 1.2.3"),
        ({"docs/changelog.md": "# C\n\n## 1.2.3 (unreleased)\n"}, "must be '## 1.2.3 - "),
        ({"docs/changelog.md": "# C\n\n## 1.2.4 - 2026-11-25\n"}, "must be '## 1.2.3 - "),
        ({"docs/changelog.md": "# C\n"}, "must be '## 1.2.3 - "),
        ({"tests/public_api.txt": "a = def()\nb = def()\n"}, "public_api.py --released"),
        ({".ci/run": "mkdir -p dist\n"}, "does not hold the sdist and the wheel"),
        ({".ci/run": f"{GATE}\ntouch left_behind\n"}, "the gate has changed the working tree"),
    ],
)
def test_release_is_refused_until_in_order(repository, files, reason):
    commit(repository, **files)

    done = release(repository)

    assert done.returncode == 1
    assert reason in done.stderr


def test_release_is_refused_with_uncommitted_changes(repository):
    (repository / "left.txt").touch()

    done = release(repository)

    assert done.returncode == 1
    assert "left.txt" in done.stderr


def test_release_is_refused_twice(repository):
    git(repository, "tag", "v1.2.3")

    done = release(repository)

    assert done.returncode == 1
    assert "the tag v1.2.3 exists" in done.stderr


def test_release_stops_when_gate_fails(repository):
    commit(repository, **{".ci/run": "exit 3\n"})

    done = release(repository)

    assert done.returncode == 3
    assert "To publish" not in done.stdout


def test_versions_agree():
    command = subprocess.run(
        [sys.executable, "-m", "xai_tasks", "--version"], capture_output=True, text=True, check=True
    )
    site = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")

    assert command.stdout.split()[-1] == xai_tasks.__version__
    assert "\nrelease = version = xai_tasks.__version__\n" in site
    assert version("xai-tasks") == xai_tasks.__version__
