"""`--download`: files beside the lines, and those that an earlier run left."""

from __future__ import annotations

import json
import re

import pytest
from cli_program import eventually, run_here

from xai_tasks._cli._files import format_size
from xai_tasks._cli._progress import Pace, Snapshot, facts
from xai_tasks.testing import Fault, constant

DATA = bytes(range(256)) * 40


@pytest.fixture
def run(monkeypatch, capfd, server, tmp_path):
    """Run the program in this process."""

    def run(*args):
        ended = run_here(monkeypatch, capfd, server.url, [str(arg) for arg in args])
        # A copy, since this process goes on and keeps the lock on the file.
        if (output := tmp_path / "out").exists():
            data = output.read_bytes()
            output.unlink()
            output.write_bytes(data)
        return ended

    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def paths_requested(server):
    return [record.path for record in server.requests]


def test_lines_name_the_files(run, server, tmp_path):
    server.add("a", result={"videoUrl": server.file("x.mp4", DATA)})
    server.add("b", result=[server.file("1.png", DATA), server.file("2.png", DATA)])
    server.add("c", result={"text": "no URL"})
    server.add("d", failed="no GPU")

    code, out, err = run("wait", "a", "b", "c", "d", "--download", tmp_path / "new" / "dir")

    files = {line["taskId"]: line["files"] for line in map(json.loads, out.splitlines())}
    directory = tmp_path / "new" / "dir"
    assert files == {
        "a": [f"{directory}/a.mp4"],
        "b": [f"{directory}/b~1.png", f"{directory}/b~2.png"],
        "c": [],
        "d": [],
    }
    assert (directory / "a.mp4").read_bytes() == DATA
    assert code == 1
    assert "; 3 files, 31 kB; " in err


def test_without_download_lines_say_nothing_of_files(run, server):
    server.add("a", result={"videoUrl": server.file("x.mp4", DATA)})

    _, out, err = run("wait", "a")

    assert "files" not in json.loads(out)
    assert " file" not in err


def test_failed_download_counts_as_not_completed(run, server, tmp_path):
    server.add("a", result=[server.file("x.mp4", DATA), f"{server.url}/files/gone.mp4"])
    server.fault("GET /files/gone.mp4", Fault.status(400))
    server.add("b", result={"videoUrl": server.file("x.mp4", DATA)})

    code, out, err = run("wait", "a", "b", "--download", tmp_path)

    line = next(line for line in map(json.loads, out.splitlines()) if line["taskId"] == "a")
    assert (code, line["status"], line["error"]["type"]) == (1, "completed", "DownloadError")
    assert line["files"] == [f"{tmp_path}/a~1.mp4"]
    assert "1 not downloaded" in err


def test_resume_saves_what_failed_without_a_poll(run, server, tmp_path):
    output, directory = tmp_path / "out", tmp_path / "dir"
    server.add("a", result={"videoUrl": server.file("x.mp4", DATA)})
    server.fault("GET /files/x.mp4", Fault.status(400))
    args = ("wait", "a", "-o", output, "--download", directory, "--resume")
    assert run(*args)[0] == 1

    code, _, err = run(*args)

    assert code == 0
    assert server.count("a") == 1
    assert "1 completed; 1 file, 10 kB; 0 requests" in err
    assert "error" not in lines(output)[1]
    assert lines(output)[1]["files"] == [f"{directory}/a.mp4"]
    count = server.count()
    assert run(*args)[0] == 0
    assert server.count() == count


def test_resume_saves_files_of_a_run_without_download(run, server, tmp_path):
    output, directory = tmp_path / "out", tmp_path / "dir"
    ids = list(server.add_many(20, duration=constant(0.0)))
    assert run("wait", *ids, "-o", output)[0] == 0

    code, _, err = run("wait", *ids, "-o", output, "--download", directory, "--resume")

    assert code == 0
    assert len(list(directory.iterdir())) == 20
    assert [server.count(task_id) for task_id in ids] == [1] * 20
    assert "20 completed; 20 files," in err
    assert len(lines(output)) == 40


def test_resume_saves_files_that_were_removed(run, server, tmp_path):
    output, directory = tmp_path / "out", tmp_path / "dir"
    for task_id in "ab":
        server.add(task_id, result={"videoUrl": server.file(f"{task_id}.mp4", DATA)})
    args = ("wait", "a", "b", "-o", output, "--download", directory, "--resume")
    run(*args)
    (directory / "b.mp4").unlink()

    assert run(*args)[0] == 0

    assert (directory / "b.mp4").read_bytes() == DATA
    assert [line["taskId"] for line in lines(output)[2:]] == ["b"]
    assert server.count("b") == 1


def test_resume_polls_once_for_a_fresh_url(run, server, tmp_path):
    output, directory = tmp_path / "out", tmp_path / "dir"
    server.add("a", result={"videoUrl": f"{server.url}/files/expired.mp4"})
    args = ("wait", "a", "-o", output, "--download", directory, "--resume")
    assert run(*args)[0] == 1
    server.add("a", result={"videoUrl": server.file("fresh.mp4", DATA)})

    assert run(*args)[0] == 0

    assert server.count("a") == 2
    assert (directory / "a.mp4").read_bytes() == DATA
    assert "fresh.mp4" in lines(output)[1]["result"]["videoUrl"]


def test_resume_tells_of_what_has_expired_for_good(run, server, tmp_path):
    output, directory = tmp_path / "out", tmp_path / "dir"
    server.add("a", result={"videoUrl": f"{server.url}/files/expired.mp4"})
    args = ("wait", "a", "-o", output, "--download", directory, "--resume")
    run(*args)

    code, _, err = run(*args)

    assert code == 1
    assert "1 expired before the download" in err
    assert lines(output)[1]["error"]["type"] == "DownloadExpiredError"


def test_resume_stops_where_the_key_is_refused(run, server, tmp_path):
    output, directory = tmp_path / "out", tmp_path / "dir"
    server.add("a", result={"videoUrl": f"{server.url}/files/expired.mp4"})
    args = ("wait", "a", "-o", output, "--download", directory, "--resume")
    run(*args)
    server.api_key = "another"

    code, _, err = run(*args)

    assert code == 3
    assert "HTTP 401" in err
    assert len(lines(output)) == 1


def test_later_line_of_a_task_counts(run, server, tmp_path):
    output, directory = tmp_path / "out", tmp_path / "dir"
    url = server.file("x.mp4", DATA)
    directory.mkdir()
    (directory / "a.mp4").write_bytes(DATA)
    line = {"taskId": "a", "status": "completed", "result": url}
    error = {"type": "DownloadError", "message": "reset"}
    written = [{**line, "error": error, "files": []}, {**line, "files": [f"{directory}/a.mp4"]}]
    output.write_text("".join(f"{json.dumps(each)}\n" for each in written))

    assert run("wait", "a", "-o", output, "--download", directory, "--resume")[0] == 0

    assert len(lines(output)) == 2
    assert server.count() == 0


@pytest.mark.parametrize("error", [{"type": "DownloadError"}, None])
def test_strange_lines_hurt_nobody(run, server, tmp_path, error):
    output = tmp_path / "out"
    server.add("b")
    written = [{"taskId": "a", "status": 7, "error": error}, {"taskId": 7}, {"files": []}]
    output.write_text("".join(f"{json.dumps(each)}\n" for each in written))

    args = ("wait", "b", "-o", output, "--download", tmp_path / "dir", "--resume")

    assert run(*args)[0] in (0, 1)
    assert lines(output)[-1]["taskId"] == "b"


def test_what_a_line_held_beside_the_task_is_kept(run, server, tmp_path):
    output = tmp_path / "out"
    line = {
        "taskId": "a",
        "status": "completed",
        "result": server.file("x.mp4", DATA),
        "id": "mine",
        "error": {"type": "DownloadError", "message": "reset"},
    }
    output.write_text(json.dumps(line) + "\n")

    run("wait", "a", "-o", output, "--download", tmp_path / "dir", "--resume")

    assert lines(output)[1]["id"] == "mine"
    assert "error" not in lines(output)[1]


def test_directory_that_can_not_be_made_exits_2_before_any_request(run, server, tmp_path):
    (tmp_path / "file").touch()

    code, _, err = run("wait", "a", "--download", tmp_path / "file" / "dir")

    assert code == 2
    assert "Traceback" not in err
    assert server.count() == 0


def test_full_disk_ends_the_job_with_what_to_do(run, server, tmp_path, monkeypatch):
    output = tmp_path / "out"
    server.add("a", result={"videoUrl": server.file("x.mp4", DATA)})
    monkeypatch.setattr("xai_tasks._downloads.os", FullDisk())

    code, _, err = run("wait", "a", "-o", output, "--download", tmp_path / "dir")

    assert code == 2
    assert "No space left on device; the files of task 'a' were not saved: free space" in err
    assert "--resume" in err
    assert list((tmp_path / "dir").iterdir()) == []


class FullDisk:
    """The module `os`, on a full disk."""

    def __getattr__(self, name):
        import os  # noqa: PLC0415

        return getattr(os, name)

    def writev(self, fd, data):
        raise OSError(28, "No space left on device")


def test_summary_file_has_files_and_bytes(run, server, tmp_path):
    server.add("a", result={"videoUrl": server.file("x.mp4", DATA)})

    run("wait", "a", "--download", tmp_path / "dir", "--summary", tmp_path / "summary")

    summary = json.loads((tmp_path / "summary").read_text())
    assert (summary["thisRun"]["files"], summary["thisRun"]["bytes"]) == (1, len(DATA))


def test_progress_has_files_and_bytes():
    snapshot = Snapshot(1, 2, 3, 4, 5, None, "3 files, 31 kB")
    pace = Pace()
    pace.add(0.0, snapshot)

    assert facts(snapshot, pace)[:4] == ["1 completed", "2 failed", "3 files, 31 kB", "3 waiting"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_949, "9.9 kB"),
        (9_951, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (1_234_567_890, "1.2 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes_are_put_into_the_unit_that_fits(size, text):
    assert format_size(size) == text


@pytest.mark.slow
def test_kill_in_the_middle_of_a_file_costs_only_the_rest_of_it(program, server, tmp_path):
    output, directory = tmp_path / "out", tmp_path / "dir"
    server.add("a", result={"videoUrl": server.file("x.mp4", DATA)})
    server.fault("GET /files/x.mp4", Fault.drip(0.0005))
    args = ("wait", "a", "-o", output, "--download", directory, "--resume")
    process = program.start(*args)
    part = directory / "a.mp4.part"
    eventually(lambda: part.exists() and part.stat().st_size > 0)
    process.kill()
    process.communicate()
    assert not (directory / "a.mp4").exists()

    ended = program.run(*args)

    assert ended.code == 0
    assert (directory / "a.mp4").read_bytes() == DATA
    assert re.fullmatch(r"bytes=\d+-", server.requests[-1].headers["Range"])
    assert [path.name for path in directory.iterdir()] == ["a.mp4"]


def test_run_saves_files_too(run, server, tmp_path):
    server.accept()
    output, directory = tmp_path / "out", tmp_path / "dir"

    code, _, err = run(
        "run", "--video", "a cat", "-o", output, "--download", directory, "--interval", "0.1"
    )

    assert code == 0
    (file,) = directory.iterdir()
    assert lines(output)[-1]["files"] == [str(file)]
    assert b"ftyp" in file.read_bytes()[:12]


def test_resumed_run_saves_what_is_missing_without_submitting_again(run, server, tmp_path):
    server.accept()
    output, directory = tmp_path / "out", tmp_path / "dir"
    args = ("run", "--video", "a cat", "-o", output, "--interval", "0.1")
    assert run(*args)[0] == 0
    polls = server.count("submitted-1")

    code, _, _ = run(*args, "--download", directory, "--resume")

    assert code == 0
    assert len(server.submissions) == 1
    assert server.count("submitted-1") == polls
    assert len(list(directory.iterdir())) == 1
    assert lines(output)[-1]["request"]["prompt"] == "a cat"
