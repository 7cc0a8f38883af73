"""What whole processes cost, from their start to their end: for the
benchmarks of the command line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from typing import IO, NamedTuple

import harness


class Cost(NamedTuple):
    """What a process took."""

    cpu: float
    """Seconds, user and system."""
    peak: float
    """MB of RSS."""
    lines: int
    """Lines that it put out."""


def run(
    arguments: Iterable[str],
    stdin: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Cost:
    """Run Python with `arguments` on the clients' core, with `stdin` through a
    pipe, and read what it puts out.
    """
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            ["taskset", "-c", str(harness.CLIENT_CORE), sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        feeder = threading.Thread(target=_feed, args=(process.stdin, stdin))
        feeder.start()
        lines = sum(1 for _ in process.stdout)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        feeder.join()
        process.stdout.close()
        if process.returncode:
            complaints.seek(0)
            raise SystemExit(
                f"{process.args} exited with {process.returncode}:\n{complaints.read()}"
            )
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, lines)


def _feed(pipe: IO[str], lines: Iterable[str]) -> None:
    with pipe:
        pipe.writelines(lines)
