"""The how-to page on testing is a small project: it is written to an empty
folder, and its tests are run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import files

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "test-your-app.md"


def test_the_pages_project_passes_its_own_tests(tmp_path):
    project = files(PAGE.read_text())
    assert {"app.py", "conftest.py", "pytest.ini"} < set(project)
    for name, text in project.items():
        (tmp_path / name).write_text(text)

    # The outer run's options (coverage, say) are not this project's.
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len([name for name in project if name.startswith('test_')])} passed" in done.stdout
