from __future__ import annotations

import asyncio
import errno
import json
import os

import click
import pytest

from xai_tasks._cli._output import LineSink, PendingFile, open_output, write_line
from xai_tasks._cli._records import CompletedIds


def line(task_id, status="completed", **fields):
    return (
        json.dumps({"taskId": task_id, "status": status, **fields}, separators=(",", ":")).encode()
        + b"\n"
    )


def resumed(path):
    completed = CompletedIds()
    os.close(open_output(str(path), completed.add))
    return completed


class TestCompletedIds:
    @pytest.mark.parametrize(
        ("record", "claimed"),
        [
            ({"taskId": "a", "status": "completed"}, False),
            ({"taskId": "a", "status": "failed"}, False),
            ({"taskId": "a", "status": "cancelled"}, False),
            ({"taskId": "a", "status": "timeout"}, False),
            ({"taskId": "a", "status": "vanished", "finishedAt": "2026-01-01T00:00:00Z"}, False),
            ({"taskId": "a", "status": "vanished"}, True),
            ({"taskId": "a", "status": "processing", "error": {"type": "WaitTimeoutError"}}, True),
            ({"taskId": "a", "status": None, "error": {"type": "NotFoundError"}}, True),
            ({"taskId": 1, "status": "completed"}, True),
            ({"taskId": "b", "status": "completed"}, True),
        ],
    )
    def test_holds_what_has_ended_and_nothing_else(self, record, claimed):
        completed = CompletedIds()
        completed.add(record)
        assert completed.claim("a") is claimed

    def test_an_id_is_claimed_once(self):
        completed = CompletedIds()
        assert [completed.claim("a"), completed.claim("a"), completed.claim("b")] == [
            True,
            False,
            True,
        ]
        assert completed.skipped == 1

    def test_counts_ids_by_how_they_ended_last(self):
        completed = CompletedIds()
        for task_id, status in (
            ("a", "failed"),
            ("b", "completed"),
            ("c", "failed"),
            ("d", "failed"),
        ):
            completed.add({"taskId": task_id, "status": status})
        completed.add({"taskId": "d", "status": "completed"})
        completed.add({"taskId": "e", "status": None, "error": {"type": "NotFoundError"}})
        assert completed.counts == {"failed": 2, "completed": 2, "NotFoundError": 1}

    def test_ids_that_are_waited_for_again_are_not_counted(self):
        completed = CompletedIds()
        completed.add(
            {"taskId": "a", "status": "processing", "error": {"type": "WaitTimeoutError"}}
        )
        assert completed.claim("a")
        assert not completed.claim("a")
        assert sum(completed.counts.values()) == 0


class TestRepair:
    @pytest.mark.parametrize("cut", range(1, len(line("b", result={"n": 1}))))
    def test_line_cut_off_anywhere_is_taken_away_and_waited_for_again(self, tmp_path, cut):
        path = tmp_path / "out.jsonl"
        whole = line("b", result={"n": 1})
        path.write_bytes(line("a") + whole[:cut])

        completed = resumed(path)

        if cut == len(whole) - 1:  # only the newline was missing
            assert path.read_bytes() == line("a") + whole
            assert not completed.claim("b")
        else:
            assert path.read_bytes() == line("a")
            assert completed.claim("b")
        assert not completed.claim("a")

    @pytest.mark.parametrize("rest", [b"\0" * 4096, line("b")[:15] + b"\0" * 100, b"{", b""])
    def test_what_a_power_cut_leaves_is_taken_away(self, tmp_path, rest):
        path = tmp_path / "out.jsonl"
        path.write_bytes(line("a") + rest)
        resumed(path)
        assert path.read_bytes() == line("a")

    @pytest.mark.parametrize("content", [b"id-1\nid-2", b"7", b'{"mine": 1}\n{"mi', b"\0\0x"])
    def test_file_of_something_else_is_not_cut(self, tmp_path, content):
        path = tmp_path / "ids.txt"
        path.write_bytes(content)
        with pytest.raises(click.UsageError, match="is it the right file"):
            resumed(path)
        assert path.read_bytes() == content

    def test_lines_that_are_none_of_ours_are_left_alone(self, tmp_path):
        path = tmp_path / "out.jsonl"
        content = b"[]\n" + line("a") + line("b")[:9] + b"\n" + b'{"a":' * 5000 + b"\n\n"
        path.write_bytes(content)
        completed = resumed(path)
        assert path.read_bytes() == content
        assert not completed.claim("a")

    @pytest.mark.parametrize(
        ("before", "after"), [(b"", b""), (b"a\n", b"a\n"), (b'{"taskId"', b'{"taskId"\n')]
    )
    def test_without_resume_nothing_is_taken_away(self, tmp_path, before, after):
        path = tmp_path / "out.jsonl"
        path.write_bytes(before)
        os.close(open_output(str(path), None))
        assert path.read_bytes() == after

    def test_second_run_on_a_file_is_refused(self, tmp_path):
        path = str(tmp_path / "out.jsonl")
        fd = open_output(path, None)
        with pytest.raises(click.UsageError, match="another run"):
            open_output(path, None)
        os.close(fd)
        os.close(open_output(path, None))

    def test_resume_needs_a_regular_file(self):
        with pytest.raises(click.UsageError, match="regular file"):
            open_output("/dev/null", CompletedIds().add)
        os.close(open_output("/dev/null", None))


class TestLineSink:
    async def test_lines_come_out_in_order_through_a_slow_pipe_and_the_loop_goes_on(self):
        read_end, write_end = os.pipe()
        sink = LineSink(write_end, "stdout")
        lines = [b"%d %s\n" % (number, b"x" * (number * 7 % 3000)) for number in range(300)]
        turns = 0

        async def write():
            for each in lines:
                await sink.write(each)
            os.close(write_end)

        writing = asyncio.create_task(write())
        while not writing.done() and turns < 50:
            turns += 1
            await asyncio.sleep(0.001)
        assert not writing.done()  # the pipe has been full for long, and still the loop turned
        assert turns == 50

        read = await asyncio.to_thread(_read_all, read_end)
        await writing
        assert read == b"".join(lines)
        os.close(read_end)

    async def test_line_is_written_whole_before_a_cancellation_goes_on(self):
        read_end, write_end = os.pipe()
        sink = LineSink(write_end, "stdout")
        line = b"x" * 200_000  # more than a pipe holds
        writing = asyncio.create_task(sink.write(line))
        await asyncio.sleep(0.01)

        writing.cancel()
        await asyncio.sleep(0.01)
        assert not writing.done()
        read = await asyncio.to_thread(os.read, read_end, 1)
        while len(read) < len(line):
            read += await asyncio.to_thread(os.read, read_end, 65536)

        with pytest.raises(asyncio.CancelledError):
            await writing
        os.close(read_end)
        os.close(write_end)

    async def test_pipe_that_somebody_made_non_blocking_is_waited_for(self):
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        writing = asyncio.create_task(LineSink(write_end, "stdout").write(b"x" * 200_000))
        await asyncio.sleep(0.01)
        read = b""
        while len(read) < 200_000:
            read += await asyncio.to_thread(os.read, read_end, 65536)
        await writing
        os.close(read_end)
        os.close(write_end)

    async def test_closed_pipe_is_a_broken_pipe(self):
        read_end, write_end = os.pipe()
        os.close(read_end)
        with pytest.raises(BrokenPipeError):
            await LineSink(write_end, "stdout").write(b"x\n")
        os.close(write_end)

    async def test_full_disk_is_an_error_that_names_the_file(self):
        fd = os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(OSError, match="out.jsonl") as caught:
            await LineSink(fd, "out.jsonl").write(b"x\n")
        assert caught.value.errno == errno.ENOSPC
        os.close(fd)


def test_line_that_does_not_fit_is_removed(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.write_bytes(b"before\n")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    write = os.write
    answers = [lambda data: write(fd, data[:3]), lambda data: exec("raise OSError(28, 'full')")]
    monkeypatch.setattr(os, "write", lambda _, data: answers.pop(0)(data))
    with pytest.raises(OSError, match="full"):
        write_line(fd, b"a line\n", "out")
    os.close(fd)
    assert path.read_bytes() == b"before\n"


def _read_all(fd):
    parts = []
    while part := os.read(fd, 65536):
        parts.append(part)
    return b"".join(parts)


def test_pending_file_that_cannot_be_written_is_left_as_it_was(tmp_path):
    (tmp_path / "out.pending").mkdir()
    pending = PendingFile(str(tmp_path / "out"), replace=True)

    with pytest.raises(IsADirectoryError):
        pending.write(["a"])

    assert [path.name for path in tmp_path.iterdir()] == ["out.pending"]
