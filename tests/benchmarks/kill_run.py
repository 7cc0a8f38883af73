"""Kill `xai-tasks run` at random moments, and count how often each request was submitted.

A server takes the submissions. The program is started with `--resume`, killed by SIGKILL at a
random moment, and started again, as often as `--kills` says. Then it may finish: first without,
then with `--retry-uncertain`. At the end it is checked that no request was submitted twice before
the retry, that the output file tells of each, and that after the retry each has a completed task.

    python tests/benchmarks/kill_run.py > tests/benchmarks/results/kill_run.txt   # 6 min
    python tests/benchmarks/kill_run.py --requests 30 --kills 5
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from xai_tasks.testing import TaskServer, uniform

RATE = 2
"""Submissions per second of the program, slow enough for every kill to find some left."""
WINDOW = 0.3
"""Seconds after its first request within which the program is killed."""


class Job:
    """The program, its input and its output."""

    def __init__(self, server: TaskServer, directory: Path, requests: int) -> None:
        self.server = server
        self.output = directory / "out.jsonl"
        prompts = directory / "prompts.txt"
        prompts.write_text("".join(f"prompt {number}\n" for number in range(requests)))
        self.command = [
            *(sys.executable, "-m", "xai_tasks", "run", "--video", "-i", str(prompts)),
            *("-o", str(self.output), "--resume", "--interval", "0.2", "--quiet"),
        ]
        self.environment = {
            **os.environ,
            "MOUNTSEA_BASE_URL": server.url,
            "MOUNTSEA_API_KEY": "test",
        }

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.command, *options], env=self.environment, stderr=subprocess.DEVNULL
        )

    def kill_once(self, moment: float) -> bool:
        """Start the program, and kill it `moment` seconds after its first request.

        Returns whether it still ran; if `moment` is negative, it is killed as it starts.
        """
        before = self.server.count()
        process = self.start("--rate", str(RATE))
        deadline = time.monotonic() + (30 if moment >= 0 else -moment)
        while process.poll() is None and self.server.count() == before:
            if time.monotonic() > deadline:
                break
            time.sleep(0.001)
        time.sleep(max(0.0, moment))
        running = process.poll() is None
        process.kill()
        process.wait()
        return running

    def finish(self, *options: str) -> int:
        return self.start(*options).wait(timeout=600)

    def posts(self) -> Counter[str]:
        """Return how often each prompt was submitted."""
        return Counter(job["prompt"] for job in self.server.submissions)

    def states(self) -> dict[str, str]:
        """Return what the output file says of each prompt."""
        states: dict[str, str] = {}
        for line in self.output.read_bytes().splitlines():
            record = json.loads(line)
            states[record["request"]["prompt"]] = record.get("state") or record["status"]
        return states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as directory, TaskServer.in_thread() as server:
        server.accept(uniform(0.1, 2.0))
        server.latency = uniform(0.0, 0.1)
        job = Job(server, Path(directory), options.requests)
        kills = 0
        while kills < options.kills:
            # One in ten before the first request: while it starts, or reads what earlier runs left.
            early = chance.random() < 0.1
            moment = -chance.uniform(0.0, 1.0) if early else chance.uniform(0.0, WINDOW)
            if not job.kill_once(moment):
                break
            kills += 1
        first = job.finish()
        posts, states = job.posts(), job.states()
        uncertain = [prompt for prompt, state in states.items() if state == "submitting"]
        assert max(posts.values()) == 1, posts.most_common(3)
        assert len(states) == options.requests
        assert set(states.values()) <= {"completed", "submitting"}
        assert first == bool(uncertain), first
        unseen = sum(not posts[prompt] for prompt in uncertain)
        last = job.finish("--retry-uncertain")
        posts, states = job.posts(), job.states()
        assert last == 0, last
        assert list(states.values()) == ["completed"] * options.requests
        assert {prompt for prompt, count in posts.items() if count > 1} <= {*uncertain}
    print(
        json.dumps(
            {
                "requests": options.requests,
                "kills": kills,
                "uncertain": len(uncertain),
                "uncertain, and never seen by the server": unseen,
                "POSTs per request at most, before the retry": 1,
                "requests by POSTs, after the retry": dict(sorted(Counter(posts.values()).items())),
                "not completed after the retry": 0,
            }
        )
    )


if __name__ == "__main__":
    main()
