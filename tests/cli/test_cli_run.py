"""`xai-tasks run`: each request is paid for once, whatever happens to the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_program import KEY, eventually, run_here

from xai_tasks._cli import _journal, _output, _submit
from xai_tasks.testing import Fault

QUICK = ("--interval", "0.1")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


@pytest.fixture
def here(monkeypatch, capfd, server):
    """Run the program in this process, which is quicker than one for each."""

    opened = []
    open_file = _output._open
    monkeypatch.setattr(_output, "_open", lambda name: opened.append(open_file(name)) or opened[-1])

    def run(*args):
        arguments = [str(arg) for arg in ("run", *args)]
        try:
            return run_here(monkeypatch, capfd, server.url, arguments)
        finally:
            while opened:
                os.close(opened.pop())  # its lock ends with the process

    return run


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def states(path):
    return [record.get("state") or record["status"] for record in records(path)]


def prompts(server):
    return [job["prompt"] for job in server.submissions]


def test_lines_before_and_after_the_post_and_at_the_end(here, server, out):
    server.accept(result={"videoUrl": "u"})

    code, _, _ = here("--video", "a cat", "-o", out, *QUICK)

    assert code == 0
    begun, accepted, ended = records(out)
    request = {"prompt": "a cat", "model": "grok-imagine-video"}
    assert begun == {"request": request, "kind": "video", "state": "submitting"}
    assert accepted == {**begun, "taskId": "submitted-1", "state": "submitted"}
    assert (ended["taskId"], ended["status"]) == ("submitted-1", "completed")
    assert (ended["result"], ended["request"]) == ({"videoUrl": "u"}, request)


def test_line_is_on_the_disk_before_the_post(program, server, out):
    server.fault("POST", Fault.stall())

    process = program.start("run", "--video", "a cat", "-o", out)
    eventually(lambda: server.count())

    assert states(out) == ["submitting"]
    process.kill()


def test_without_output_lines_are_put_out_and_it_says_so(here, server):
    server.accept()

    code, output, messages = here("--image", "a cat", *QUICK)

    assert code == 0
    assert [json.loads(line)["status"] for line in output.splitlines()] == ["completed"]
    assert "can't be resumed" in messages
    assert server.requests[0].path == "/xai/images"


def test_options_make_the_request(here, server, out):
    server.accept()
    here(
        *("--video", "a cat", "-o", out, "--model", "m", "--duration", "10"),
        *("--aspect-ratio", "9:16", "--resolution", "720P"),
        *("--reference", "https://a/1.png", "--reference", "https://a/2.png"),
    )

    assert server.submissions == [
        {
            "prompt": "a cat",
            "model": "m",
            "duration": 10,
            "aspectRatio": "9:16",
            "resolution": "720P",
            "images": ["https://a/1.png", "https://a/2.png"],
        }
    ]


def test_input_of_prompts_and_json(here, server, tmp_path, out):
    server.accept()
    source = tmp_path / "prompts"
    source.write_text(
        "a cat\n"
        "\n"
        '"Hello", says a dog\n'
        "# a hash is part of a prompt\n"
        '{"prompt": "a bird", "duration": 6, "id": "bird-1", "seed": 7, "images": null}\n'
    )

    code, _, _ = here("--video", "-i", source, "-o", out, "--duration", "10", *QUICK)

    assert code == 0
    by_prompt = {job["prompt"]: job for job in server.submissions}
    assert list(by_prompt) == [
        "a cat",
        '"Hello", says a dog',
        "# a hash is part of a prompt",
        "a bird",
    ]
    assert by_prompt["a cat"]["duration"] == 10
    assert (by_prompt["a bird"]["duration"], by_prompt["a bird"]["seed"]) == (6, 7)
    ids = {record["request"]["prompt"]: record.get("id") for record in records(out)}
    assert ids == {**dict.fromkeys(by_prompt), "a bird": "bird-1"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "broken JSON"),
        ('{"model": "m"}', "a request without a prompt"),
        ('{"prompt": ""}', "prompt is empty"),
        ('{"prompt": 7}', "prompt must be a string"),
        ('{"prompt": "a", "images": "u"}', "images must be a list"),
        ('{"prompt": "a", "aspect_ratio": 7, "duration": "x"}', "duration must be a number"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("\udcff\n".encode("utf-8", "surrogateescape").decode("latin-1"), None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_malformed_line_is_an_error_of_its_line(here, server, tmp_path, out, line, message):
    server.accept()
    source = tmp_path / "prompts"
    source.write_text(f"a cat\n{line}\n")

    code, _, messages = here("--video", "-i", source, "-o", out, *QUICK)

    if message is None:  # it is a prompt
        assert (code, len(prompts(server))) == (0, 2)
        return
    assert code == 1
    assert "line 2 of the input is skipped" in messages
    assert message in messages
    assert prompts(server) == ["a cat"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a cat"], "--image or --video"),
        (["--image", "--video", "a cat"], "--image or --video, one of the two"),
        (["--video"], "give prompts"),
        (["--video", "a cat", "--resume"], "--resume needs --output"),
        (["--video", "a cat", "--retry-uncertain"], "--retry-uncertain needs --resume"),
        (["--image", "a cat", "--duration", "10"], "--duration is for videos"),
        (["--video", ""], "prompt is empty"),
        (["--video", "a cat", "--duration", "x"], "'x' is not a number above 0"),
        (["--video", "a cat", "--submit-retry-status", "200"], "from 400 to 599"),
    ],
)
def test_bad_options_are_refused_before_any_request(here, server, args, message):
    code, _, messages = here(*args)

    assert code == 2
    assert message in messages
    assert server.count() == 0


def test_refusal_is_a_line_and_not_repeated(here, server, out):
    server.accept()
    server.fault("POST", Fault.status(400, body=b'{"message": "no cats"}'))

    assert here("--video", "a cat", "a dog", "-o", out, *QUICK)[0] == 1
    refused = next(record for record in records(out) if record.get("state") == "refused")
    assert refused["error"]["type"] == "BadRequestError"
    assert "no cats" in refused["error"]["message"]

    code, _, messages = here("--video", "a cat", "a dog", "-o", out, "--resume", *QUICK)
    assert code == 1
    assert "1 refused" in messages
    assert len(server.submissions) == 2


def test_uncertain_request_is_neither_repeated_nor_forgotten(here, server, out):
    server.accept()
    server.fault("POST", Fault.reset(at="headers"))

    code, _, messages = here("--video", "a cat", "-o", out, *QUICK)
    assert code == 1
    assert "may have been accepted" in messages
    assert states(out) == ["submitting", "uncertain"]

    code, _, messages = here("--video", "a cat", "-o", out, "--resume", *QUICK)
    assert code == 1
    assert '"prompt": "a cat"' in messages
    assert "--retry-uncertain" in messages
    assert len(server.submissions) == 1

    code, _, _ = here("--video", "a cat", "-o", out, "--resume", "--retry-uncertain", *QUICK)
    assert code == 0
    assert len(server.submissions) == 2
    assert states(out)[-1] == "completed"


def test_report_understands_the_file(here, program, server, out):
    server.accept("processing")
    refusal = Fault.status(400, body=b'{"message": "no dogs"}')
    server.fault("POST", Fault.reset(at="headers"), refusal)
    source = out.with_name("prompts")
    source.write_text('{"prompt": "a cat", "duration": 6, "id": 7}\na dog\na bird\n')
    here("--video", "-i", source, "-o", out, "--timeout", "0.2", *QUICK)

    uncertain = program.run("report", "--uncertain", out)
    report = json.loads(program.run("report", "--json", out).out)

    assert uncertain.lines == [
        {"prompt": "a cat", "model": "grok-imagine-video", "duration": 6, "id": 7}
    ]
    assert report["errors"] == {"WaitTimeoutError": 1, "refused": 1, "uncertain": 1}
    assert {"type": "refused", "errorCode": None, "message": "HTTP N: no dogs", "count": 1} in (
        report["failures"]
    )
    assert report["otherLines"] == report["notEnded"] == 0
    text = program.run("report", out).out
    assert "1 submitted or not (uncertain), 1 refused" in text


def test_report_counts_tasks_that_have_not_ended(program, server, out):
    server.accept("processing")
    process = program.start("run", "--video", "a cat", "-o", out)
    eventually(lambda: out.exists() and "submitted" in states(out))
    process.kill()

    assert "1 not ended" in program.run("report", out).out


def test_uncertain_requests_go_through_run_again(here, program, server, out, tmp_path):
    server.accept()
    server.fault("POST", Fault.reset(at="headers"))
    here("--video", "a cat", "-o", out, *QUICK)
    again = tmp_path / "again"
    again.write_text(program.run("report", "--uncertain", out).out)

    assert here("--video", "-i", again, "-o", tmp_path / "out2", *QUICK)[0] == 0
    assert prompts(server) == ["a cat"] * 2


def test_resume_needs_no_input(here, server, out):
    server.accept("processing")
    code, _, _ = here("--video", "a cat", "-o", out, "--timeout", "0.1", *QUICK)
    assert code == 4
    server.advance("submitted-1")

    code, _, messages = here("--video", "-o", out, "--resume", *QUICK)

    assert code == 0
    assert "1 completed" in messages
    assert prompts(server) == ["a cat"]


def test_resume_counts_equal_requests(here, server, out):
    server.accept()
    here("--video", "a cat", "a cat", "-o", out, *QUICK)
    here("--video", "a cat", "a cat", "a dog", "a cat", "-o", out, "--resume", *QUICK)

    assert sorted(prompts(server)) == ["a cat"] * 3 + ["a dog"]
    assert sum(state == "completed" for state in states(out)) == 4


def test_file_with_requests_is_refused_without_resume(here, server, out):
    server.accept()
    here("--video", "a cat", "-o", out, *QUICK)
    before = out.read_bytes()

    code, _, messages = here("--video", "a dog", "-o", out)

    assert code == 2
    assert "--resume" in messages
    assert out.read_bytes() == before
    assert prompts(server) == ["a cat"]


def test_second_run_on_a_file_is_refused(program, server, out):
    server.accept("processing")
    first = program.start("run", "--video", "a cat", "-o", out)
    eventually(lambda: out.exists() and states(out)[-1:] == ["submitted"])

    second = program.run("run", "--video", "a cat", "-o", out, "--resume")

    assert second.code == 2
    assert "another run" in second.err
    first.kill()
    assert len(server.submissions) == 1


def test_line_that_was_cut_off_is_a_request_not_begun(here, server, out):
    server.accept()
    out.write_text('{"request":{"prompt":"a cat","model":"grok-imagine-video"},"kind":"vi')

    assert here("--video", "a cat", "-o", out, "--resume", *QUICK)[0] == 0
    assert prompts(server) == ["a cat"]


def test_foreign_lines_are_left_alone(here, server, out):
    server.accept()
    lines = [
        '{"request": {"prompt": ""}, "kind": "video", "state": "submitting"}',
        '{"request": {"prompt": "a"}, "kind": "audio", "state": "submitting"}',
        '{"taskId": "a", "status": "completed"}',
        '{"request": 7}',
    ]
    out.write_text("\n".join(lines) + "\n")

    assert here("--video", "a cat", "-o", out, "--resume", *QUICK)[0] == 0
    assert out.read_text().startswith("\n".join(lines))


def test_refused_key_ends_the_job_after_one_request(here, server, out):
    server.api_key = "another"

    code, _, messages = here("--video", *(f"cat {n}" for n in range(30)), "-o", out)

    assert code == 3
    assert server.count() == 1
    assert states(out) == ["submitting", "refused"]
    assert "go on with" in messages


def test_resume_after_a_refused_key_submits_the_rest(here, server, out):
    cats = [f"cat {n}" for n in range(3)]
    server.accept()
    server.api_key = "another"
    here("--video", *cats, "-o", out)
    server.api_key = KEY

    code, _, _ = here("--video", *cats, "-o", out, "--resume", *QUICK)

    assert code == 1  # the first was refused
    assert prompts(server) == cats[1:]


def test_rate_limit_is_waited_out(here, server, out):
    server.accept()
    server.fault("POST", *[Fault.status(429, {"Retry-After": "0"})] * 2)

    code, _, _ = here("--video", "a cat", "-o", out, *QUICK)

    assert code == 0
    assert states(out).count("not sent") == 2


def test_submit_retry_status_is_made_again(here, server, out):
    server.accept()
    server.fault("POST", Fault.status(503))

    assert here("--video", "a cat", "-o", out, "--submit-retry-status", "503", *QUICK)[0] == 0
    assert len(server.submissions) == 2


def test_max_pending_bounds_tasks_alive(here, server, out):
    server.accept([("processing", 0.3)])
    cats = [f"cat {n}" for n in range(6)]

    code, _, _ = here("--video", *cats, "-o", out, "--max-pending", "2", *QUICK)

    assert code == 0
    alive, most = 0, 0
    for state in states(out):
        alive += (state == "submitted") - (state == "completed")
        most = max(most, alive)
    assert most == 2


def test_interrupt_waits_for_the_answer_to_what_was_sent(program, server, out):
    server.accept("processing")
    server.fault("POST", Fault.stall(1.0))
    process = program.start("run", "--video", "a cat", "a dog", "-o", out)
    eventually(lambda: out.exists() and states(out) == ["submitting"])

    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=30)

    assert process.returncode == 130
    assert states(out) == ["submitting", "submitted"]
    assert "--resume" in messages.decode()
    assert len(server.submissions) == 1


def test_interrupt_keeps_what_came_through_a_pipe(program, server, out):
    server.accept("processing")
    server.fault("POST", *[Fault.status(429, {"Retry-After": "600"})] * 9)
    process = program.start("run", "--video", "-i", "-", "-o", out, stdin=subprocess.PIPE)
    process.stdin.write(b"a cat\na dog\na cat\n")
    process.stdin.flush()
    eventually(lambda: server.count())

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    server.reset()
    server.api_key = KEY
    server.accept()

    ended = program.run("run", "--video", "-o", out, "--resume", *QUICK)

    assert ended.code == 0
    assert sorted(prompts(server)) == ["a cat", "a cat", "a dog"]


def test_task_is_told_of_if_its_line_cannot_be_written(monkeypatch, here, server, out):
    write = _journal.write_line

    def full(fd, line, name):
        if b'"submitted"' in line:
            raise OSError(28, "No space left on device", name)
        write(fd, line, name)

    monkeypatch.setattr(_journal, "write_line", full)

    code, _, messages = here("--video", "a cat", "-o", out)

    assert code == 2
    assert "the line of task submitted-1 can't be written" in messages


def test_nothing_is_submitted_if_the_line_cannot_be_written(monkeypatch, here, server, out):
    def full(fd, line, name):
        raise OSError(28, "No space left on device", name)

    monkeypatch.setattr(_journal, "write_line", full)

    code, _, messages = here("--video", "a cat", "-o", out)

    assert code == 2
    assert "No space left" in messages
    assert server.submissions == []


def test_server_that_is_gone_leaves_the_rest_to_a_later_run(monkeypatch, here, server, out):
    monkeypatch.setattr(_submit, "_MAX_OUTAGE", 0.05)
    monkeypatch.setattr(_submit.random, "uniform", lambda low, high: 0.01)
    monkeypatch.setenv("MOUNTSEA_BASE_URL", "http://127.0.0.1:1")
    cats = [f"cat {n}" for n in range(30)]
    code, _, _ = here("--video", *cats, "-o", out, "--base-url", "http://127.0.0.1:1")

    assert code == 3
    assert 10 <= len(records(out)) < 30
    assert set(states(out)) == {"not sent"}
    server.accept()
    assert here("--video", *cats, "-o", out, "--resume", *QUICK)[0] == 0
    assert sorted(prompts(server)) == sorted(cats)


def test_shards_share_the_requests(here, server, tmp_path):
    server.accept()
    cats = [f"cat {n}" for n in range(12)]
    for part in (1, 2):
        here("--video", *cats, "-o", tmp_path / f"{part}", "--shard", f"{part}/2", *QUICK)

    assert sorted(prompts(server)) == sorted(cats)
    assert (tmp_path / "1").stat().st_size > 0
    assert (tmp_path / "2").stat().st_size > 0


def test_kills_at_random_moments_repeat_and_lose_nothing():
    script = BENCHMARKS / "kill_run.py"
    run = subprocess.run(
        [sys.executable, script, "--requests", "20", "--kills", "4"],
        capture_output=True,
        timeout=300,
        check=True,
    )

    assert json.loads(run.stdout)["kills"] == 4
