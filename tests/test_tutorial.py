"""Pages whose commands run: their files are written to an empty folder, and their shell blocks run
in order in one shell. A comment before a block says why it is not run.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pages import files

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parent.parent / "docs"
TUTORIAL = DOCS / "tutorial.md"
PAGES = [
    TUTORIAL,
    DOCS / "how-to" / "fastapi.md",
    DOCS / "how-to" / "overnight-jobs.md",
    DOCS / "how-to" / "prompts-to-videos.md",
    DOCS / "how-to" / "save-the-results.md",
]
STEP = re.compile(
    r"(?P<skip><!-- not run: .*? -->\n)?```sh\n(?P<code>.*?)```(?:\n\n```text\n(?P<out>.*?)```)?",
    re.DOTALL,
)
MARK = "-- end of a block --"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def run(script, folder):
    """Return what a shell writes to stdout and stderr, and kill whatever it started."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MOUNTSEA_", "PYTEST_"))
    }
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    shell = subprocess.Popen(
        ["bash"],
        cwd=folder,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return shell.communicate(script, timeout=180)[0]
    finally:
        for line in subprocess.run(
            ["ps", "-o", "pid=", "-s", str(shell.pid)], capture_output=True, text=True, check=False
        ).stdout.split():
            os.kill(int(line), signal.SIGKILL)
        shell.wait()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_page_do_what_it_says(page, tmp_path):
    page = page.read_text(encoding="utf-8")
    for port in set(re.findall(r"--port (\d+)", page)):
        page = page.replace(port, str(free_port()))
    for name, text in files(page).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    steps = [step for step in STEP.finditer(page) if not step["skip"]]
    script = "".join(f"{step['code']}echo; echo '{MARK}'\n" for step in steps)

    assert steps

    outputs = run(script + "kill $(jobs -p)\n", tmp_path).split(f"\n{MARK}\n")

    assert len(outputs) == len(steps) + 1, outputs  # and what ends the shell's jobs says
    for step, output in zip(steps, outputs):
        assert "Traceback" not in output, step["code"] + output
        if step["out"] is not None:
            pattern = ".*".join(map(re.escape, step["out"].strip().split("…")))
            assert re.fullmatch(pattern, output.strip(), re.DOTALL), f"{step['code']}\n{output}"


def test_all_of_tutorial_but_the_set_up_is_run():
    page = TUTORIAL.read_text(encoding="utf-8")
    skipped = [step["code"] for step in STEP.finditer(page) if step["skip"]]

    assert len(skipped) == 1
    assert "pip install" in skipped[0]


def test_each_file_of_tutorial_is_run():
    page = TUTORIAL.read_text(encoding="utf-8")
    names = [*files(page)]

    assert len(names) == 5
    assert [name for name in names if f"\npython {name}\n" not in page] == []
