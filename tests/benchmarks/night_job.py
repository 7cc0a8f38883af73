"""A night's job in a few minutes: 30,000 ids through `xai-tasks wait`, and what a night may bring.

The ids come from a CSV table with quoted prompts, in two shards that run side by side against one
rate limit. The results of every tenth point to a file, which is saved. Of the requests, 5 % meet a
fault: a reset, a 500, a 503, a stall, an answer cut off. In between the shards are killed by
SIGKILL three times, interrupted by Ctrl-C on a pseudo-terminal twice, and meet a full disk once;
each time the same command goes on. At the end each id must stand in the outputs, ended once, as it
ended on the server, and each file on the disk, whole.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import json
import os
import pty
import random
import resource
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from xai_tasks.testing import Fault, TaskServer

KEY = "made-up-key"
FAULTS = (
    Fault.reset(at="headers"),
    Fault.status(500),
    Fault.status(503, {"Retry-After": "1"}),
    Fault.stall(1.0),
    Fault.truncate(),
    Fault.garbage(),
)


class Event(NamedTuple):
    """What befalls a run, once it has written some lines."""

    what: str
    """`kill`, `ctrl-c`, `full`, or `none`."""
    lines: int = 0


SHARDS = (
    (
        Event("kill", 1500),
        Event("ctrl-c", 3000),
        Event("full", 2500),
        Event("kill", 1500),
        Event("none"),
    ),
    (Event("ctrl-c", 4000), Event("kill", 4000), Event("none")),
)
"""What befalls the runs of each shard, one after another."""


class Shard:
    """One shard of the job: runs of one command until it is through.

    Args:
        number: counted from 0.
        events: what befalls its runs.
        folder: where its files are.
        environment: of its processes.
        download: whether to save what the results point to.

    """

    def __init__(
        self,
        number: int,
        events: Sequence[Event],
        folder: Path,
        environment: dict[str, str],
        *,
        download: bool,
    ) -> None:
        self.output = folder / f"{number}.jsonl"
        self.summary = folder / f"{number}.summary"
        self.codes: list[int] = []
        self.cpu = 0.0
        self.peak = 0.0
        self._events = events
        self._environment = environment
        self._command = [
            sys.executable, "-m", "xai_tasks", "wait",
            "-i", str(folder / "jobs.csv"), "--id-column", "job",
            "-o", str(self.output), "--resume", "--shard", f"{number + 1}/{len(SHARDS)}",
            "--interval", "2", "--summary", str(self.summary),
        ]  # fmt: skip
        if download:
            self._command += ["--download", str(folder / "files")]

    def run(self) -> None:
        """Run it to its end."""
        for event in self._events:
            self.codes.append(self._run(event))
        while self.codes[-1] in (3, 4):  # as the loop in the docs does
            self.codes.append(self._run(Event("none")))

    def _run(self, event: Event) -> int:
        size = self.output.stat().st_size if self.output.exists() else 0
        limit = size + event.lines * 400 if event.what == "full" else None
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(self.output.with_suffix(".log").open("ab"))
            terminal = stack.enter_context(_terminal()) if event.what == "ctrl-c" else None
            process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL if terminal is None else terminal.slave,
                stdout=log,
                stderr=log if terminal is None else terminal.slave,
                preexec_fn=lambda: _prepare(limit, None if terminal is None else terminal.slave),
            )
            if event.what in ("kill", "ctrl-c"):
                lines = _count_lines(self.output)
                while _count_lines(self.output) < lines + event.lines and process.poll() is None:
                    time.sleep(0.05)
                if terminal is not None:
                    os.write(terminal.master, b"\x03")
                else:
                    process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu += usage.ru_utime + usage.ru_stime
        self.peak = max(self.peak, usage.ru_maxrss / 1024)
        return process.returncode


class _Terminal(NamedTuple):
    master: int
    slave: int


@contextlib.contextmanager
def _terminal():
    """Open a pseudo-terminal, and read what appears on it."""
    terminal = _Terminal(*pty.openpty())

    def drain() -> None:
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            while os.read(terminal.master, 65536):
                pass

    reader = threading.Thread(target=drain)
    reader.start()
    yield terminal
    os.close(terminal.slave)
    reader.join()
    os.close(terminal.master)


def _prepare(limit: int | None, terminal: int | None) -> None:
    """In the child: a limit on files that stands for a full disk, and its terminal."""
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if terminal is not None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b""))


def make_jobs(server: TaskServer, count: int, path: Path) -> dict[str, str]:
    """Add tasks to the server, write their table, and return how each ends."""
    draw = random.Random(1)
    ends: dict[str, str] = {}
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "prompt", "job"])
        for number in range(count):
            task_id = f"{draw.getrandbits(128):032x}"
            steps = [("processing", draw.uniform(1, 60))]
            ends[task_id] = "failed" if draw.random() < 0.02 else "completed"
            failed = ("refused", 40001) if ends[task_id] == "failed" else None
            if failed is not None:
                server.add(task_id, steps, failed=failed)
            elif number % 10:
                server.add(task_id, steps)
            else:
                url = server.file(f"/files/{number}.mp4", _content(task_id))
                server.add(task_id, steps, result={"videoUrl": url})
            table.writerow([f"Job {number}", f'a cat, "no. {number}",\nin two lines', task_id])
    return ends


def _content(task_id: str) -> bytes:
    return task_id.encode() * 500


def check_files(folder: Path) -> int:
    """Check that each file is whole and has the name of its task; return how many there are."""
    paths = list(folder.iterdir())
    for path in paths:
        assert path.read_bytes() == _content(path.stem), path
    return len(paths)


def check(ends: dict[str, str], outputs: Sequence[Path]) -> tuple[int, int]:
    """Compare the outputs with the server, and return the lines of ends and of ids given up."""
    seen: Counter[str] = Counter()
    given_up = 0
    for path in outputs:
        content = path.read_bytes()
        assert content.endswith(b"\n"), "the last line is whole"
        for line in content.splitlines():
            record = json.loads(line)
            if "error" in record:
                given_up += 1
                continue
            seen[record["taskId"]] += 1
            assert record["status"] == ends[record["taskId"]], record
    assert set(seen) == set(ends), "no id is missing, and none is invented"
    assert set(seen.values()) == {1}, "each id has ended once"
    return seen.total(), given_up


def main() -> None:
    """Run the job and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=30_000)
    parser.add_argument("--rate", type=float, default=500.0, help="requests per second let in")
    options = parser.parse_args()
    scale = options.ids / 30_000
    shards = [
        [event._replace(lines=max(1, int(event.lines * scale))) for event in events]
        for events in SHARDS
    ]
    wait_help = subprocess.run(
        [sys.executable, "-m", "xai_tasks", "wait", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    with (
        tempfile.TemporaryDirectory() as name,
        TaskServer.in_thread(api_key=KEY, log_limit=0) as server,
    ):
        folder = Path(name)
        ends = make_jobs(server, options.ids, folder / "jobs.csv")
        server.limit(options.rate, int(options.rate))
        server.disturb(0.05, *FAULTS)
        environment = {
            **os.environ,
            "MOUNTSEA_API_KEY": KEY,
            "MOUNTSEA_BASE_URL": server.url,
            "TERM": "xterm",
        }
        download = "--download" in wait_help.stdout
        jobs = [
            Shard(number, events, folder, environment, download=download)
            for number, events in enumerate(shards)
        ]
        begun = time.monotonic()
        threads = [threading.Thread(target=job.run) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - begun
        try:
            lines, given_up = check(ends, [job.output for job in jobs])
            told = Counter[str]()
            for job in jobs:
                summary = json.loads(job.summary.read_text())
                told.update({end: summary[end] for end in ("completed", "failed", "givenUp")})
            truth = Counter(ends.values())
            assert told == Counter(truth), (told, truth)
        finally:
            for job in jobs:
                print(f"{job.output.name}: exit codes {job.codes}")
                print(job.output.with_suffix(".log").read_text()[-1500:], file=sys.stderr)
        files = check_files(folder / "files") if download else 0
        if download:
            assert files == sum(job.output.read_bytes().count(b'"videoUrl":"') for job in jobs)
        faults, requests = len(server.faults_fired), server.count()
        cpu, peak = sum(job.cpu for job in jobs), max(job.peak for job in jobs)
        print(f"{options.ids:,} ids, {lines:,} ended once each: {dict(truth)}")
        print(f"given up in between: {given_up:,}; requests that met a fault: {faults:,}")
        print(f"{seconds:.0f} s; {requests:,} requests, {requests / options.ids:.2f} an id")
        print(f"CPU {cpu:.0f} s, {cpu / options.ids * 1e6:.0f} us an id; {peak:.0f} MB a process")
        print(f"files saved: {files:,}" if download else "downloads: not part of this version")


if __name__ == "__main__":
    main()
