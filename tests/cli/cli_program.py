"""The real program as a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import xai_tasks
from xai_tasks.__main__ import main

KEY = "cli-test-key"


UNTRACED = {"COVERAGE_PROCESS_CONFIG": None, "COVERAGE_PROCESS_START": None}
"""For processes whose end would corrupt what coverage has measured."""


class Program:
    """Starts `python -m xai_tasks`, with a server's address and key in its environment."""

    def __init__(self, url):
        self.running = []
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith("MOUNTSEA_")
        }
        self.env |= {
            "MOUNTSEA_API_KEY": KEY,
            "MOUNTSEA_BASE_URL": url,
            "PYTHONPATH": str(Path(xai_tasks.__file__).parents[1]),
            "COLUMNS": "100",
        }

    def start(self, *args, env=None, **options):
        options = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
        } | options
        environment = {
            name: value for name, value in (self.env | (env or {})).items() if value is not None
        }
        command = [sys.executable, "-m", "xai_tasks", *map(str, args)]
        process = subprocess.Popen(command, env=environment, **options)
        self.running.append(process)
        return process

    def start_with_ids(self, ids):
        process = self.start("wait", "-i", "-", stdin=subprocess.PIPE)
        process.stdin.write("\n".join(ids).encode())
        process.stdin.close()
        process.stdin = None  # or communicate() would flush it
        return process

    def close(self):
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def run(self, *args, stdin_text=None, **options):
        if stdin_text is not None:
            options["stdin"] = subprocess.PIPE
        process = self.start(*args, **options)
        out, err = process.communicate(stdin_text and stdin_text.encode(), timeout=60)
        return Ended(process.returncode, out or b"", (err or b"").decode())


class Ended:
    def __init__(self, code, out, err):
        self.code = code
        self.out = out.decode()
        self.err = err

    @property
    def lines(self):
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def ids(self):
        return sorted(line["taskId"] for line in self.lines)


def eventually(holds, seconds=30.0):
    """Wait until a process outside has done something."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.002)
    return value


def run_here(monkeypatch, capfd, url, args):
    """Run the program in this process, for what it refuses before it begins: much
    quicker than a process for each.
    """
    monkeypatch.setattr("sys.argv", ["xai-tasks", *args])
    monkeypatch.setenv("MOUNTSEA_API_KEY", KEY)
    monkeypatch.setenv("MOUNTSEA_BASE_URL", url)
    code = main()
    return code, *capfd.readouterr()
