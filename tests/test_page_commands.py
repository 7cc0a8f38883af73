"""The shell blocks of README and docs run: a page's files are written to an empty folder, and its
blocks run in order in one shell. A comment before a block says so if it is another one's turn:

A block that makes the virtual environment is the gate's, `.ci/run`.

- `needs a key`: it runs in a shell where a test server stands in for the API
- `run by FILE`: another test, or the gate, runs it
- `not run: REASON`
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pages import files

from xai_tasks.testing import TaskServer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
MARKED = r"(?:<!-- (?P<mark>needs a key|run by [^>]+|not run: [^>]+) -->\n\n?)?"
SHELL = re.compile(
    MARKED + r"(?:\*\*`\S+`\*\*\n\n)?```sh\n(?P<code>(?P<set_up>python3 -m venv )?.*?)```"
    r"(?:\n\n```text\n(?P<out>.*?)```)?",
    re.DOTALL,
)
MARK = "-- end of a block --"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def run(script, folder, environment):
    """Return what a shell writes to stdout and stderr, and kill whatever it started."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MOUNTSEA_", "PYTEST_"))
    }
    env |= environment
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


def blocks(page):
    """Return the shell blocks of a page."""
    return list(SHELL.finditer(page.read_text(encoding="utf-8")))


# The Chinese pages have the same blocks, which test_zh_in_step.py checks.
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if not {"_build", "zh"} & set(page.relative_to(ROOT).parts) and blocks(page)
]


def alone(block):
    """Return whether a block needs nothing but those above it."""
    return not block["mark"] and not block["set_up"]


def needs_key(block):
    return block["mark"] == "needs a key"


ALONE = [page for page in PAGES if any(map(alone, blocks(page)))]
WITH_KEY = [page for page in PAGES if any(map(needs_key, blocks(page)))]


def run_in_order(blocks, folder, **environment):
    """Run blocks in one shell, and check what each puts out against what the page says."""
    script = "".join(f"{block['code']}echo; echo '{MARK}'\n" for block in blocks)
    outputs = run(script + "kill $(jobs -p)\n", folder, environment).split(f"\n{MARK}\n")

    assert len(outputs) == len(blocks) + 1, outputs  # and what ends the shell's jobs says
    for block, output in zip(blocks, outputs):
        assert not re.search(r"Traceback|Error: |: command not found", output), block[0] + output
        if block["out"] is not None:
            pattern = ".*".join(map(re.escape, block["out"].strip().split("…")))
            assert re.fullmatch(pattern, output.strip(), re.DOTALL), f"{block['code']}\n{output}"


@pytest.mark.parametrize("page", ALONE, ids=lambda page: page.stem)
def test_commands_of_page_do_what_it_says(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    for port in set(re.findall(r"--port (\d+)", text)):
        text = text.replace(port, str(free_port()))
    for name, file in files(text).items():
        (tmp_path / name).write_text(file, encoding="utf-8")
    (tmp_path / ".venv").symlink_to(sys.prefix)  # README's commands begin with .venv/bin/

    run_in_order([*filter(alone, SHELL.finditer(text))], tmp_path)


@pytest.mark.parametrize("page", WITH_KEY, ids=lambda page: page.stem)
def test_commands_that_need_a_key_run_against_the_test_server(page, tmp_path):
    (tmp_path / "ids.txt").write_text("a\nb\n")
    (tmp_path / "prompts.txt").write_text("a cat eats a fish\na dog reads a book\n")
    with TaskServer.in_thread(api_key="made-up-key") as server:
        server.accept()  # what is submitted has ended at the first poll
        for task_id in "ab":
            server.add(task_id, result={"videoUrl": f"{server.url}/files/{task_id}.mp4"})

        run_in_order(
            [*filter(needs_key, blocks(page))],
            tmp_path,
            MOUNTSEA_API_KEY="made-up-key",
            MOUNTSEA_BASE_URL=server.url,
        )

    lines = [
        json.loads(line)
        for output in tmp_path.glob("*.jsonl")
        for line in output.read_text(encoding="utf-8").splitlines()
    ]
    assert {line.get("status") for line in lines} - {None} == {"completed"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_run_elsewhere_is_there(page):
    marks = [block["mark"] for block in blocks(page) if (block["mark"] or "").startswith("run by")]

    assert [mark for mark in marks if not (ROOT / mark.removeprefix("run by ")).is_file()] == []
    assert page.read_text(encoding="utf-8").count("```sh\n") == len(blocks(page))


def test_all_of_tutorial_but_the_set_up_is_run():
    skipped = [block["code"] for block in blocks(TUTORIAL) if not alone(block)]

    assert len(skipped) == 1
    assert "pip install" in skipped[0]


def test_each_file_of_tutorial_is_run():
    page = TUTORIAL.read_text(encoding="utf-8")
    names = [*files(page)]

    assert len(names) == 5
    assert [name for name in names if f"\npython {name}\n" not in page] == []
