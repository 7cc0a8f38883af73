"""Inputs as people have them: tables, several files, UTF-16, binary
files, pipes in non-blocking mode.
"""

from __future__ import annotations

import asyncio
import csv
import io
import os
import subprocess
import time

import pytest
from cli_program import eventually, run_here
from hypothesis import given
from hypothesis import strategies as st
from test_cli_input import input_of

from xai_tasks._cli import _input
from xai_tasks._cli._input import IdSource, InputError, id_line, parse_line


def read_all(data, name="jobs.csv", id_column=None, messages=None):
    """Read the ids of an input without a loop of its own."""
    source = input_of(data, name, id_column)
    source.check()
    source._split(data)
    source._split(b"")
    found = messages if messages is not None else []
    return list(source._parse(lambda number, problem: found.append((number, problem))))


@pytest.mark.parametrize(
    ("text", "id_column"),
    [
        ("taskId\na\nb\n", None),
        ('"taskId"\na\nb\n', None),
        ("task_id,name\na,x\nb,y\n", None),
        ("name,taskId\r\nx,a\r\ny,b\r\n", None),
        ("name\ttaskId\nx, y\ta\ny\tb\n", None),
        ("name;taskId\nx, y;a\ny;b\n", None),
        ("\ufeffname,job\nx,a\ny,b\n", "job"),
        ('name,job\n"x, ""y""\nand z","a"\ny,b\n', "job"),
        ('5" pipe,job\n5" pipe,a\ny",b\n', "job"),
        ('name,job\n"x, \n\n, y",a\n\n,,\ny,b', "job"),
        ("# made by us\n\nname,taskId\nx,a\ny, b \n", None),
    ],
)
def test_table_gives_a_column(text, id_column):
    assert read_all(text.encode(), id_column=id_column) == ["a", "b"]


def test_name_of_a_file_tells_a_table_of_one_column():
    with pytest.raises(
        InputError, match=r"ids\.csv is a table without a column 'taskId' or 'task_id'"
    ):
        read_all(b"identifier\na\n", "ids.csv")
    assert read_all(b"identifier\na\n", "ids.txt") == ["identifier", "a"]


@pytest.mark.parametrize(
    ("data", "id_column"),
    [
        (b"name,prompt\nx,y\n", None),
        (b"name\tprompt\nx\ty\n", None),
        (b"taskId,name\na,x\n", "task"),
        (b"a,b\nc,d\n", None),
        (b'"name","prompt, with a comma"\n', None),
    ],
)
def test_table_without_a_known_column_is_refused(data, id_column):
    with pytest.raises(InputError, match="--id-column"):
        read_all(data, "jobs", id_column)


@pytest.mark.parametrize("data", [b'[{"taskId": "a"},\n', b"[\n", b' [ "a" ]\n'])
def test_json_array_is_refused(data):
    with pytest.raises(InputError, match=r"jq -c '\.\[\]'"):
        read_all(data, "ids.json")


def test_column_also_names_the_member_of_json_lines():
    messages = []
    data = b'{"job": "a", "taskId": "x"}\n{"taskId": "y"}\n{"job": "b"}\n'
    assert read_all(data, "jobs.jsonl", "job", messages) == ["a", "b"]
    assert messages == [(2, "JSON without a job that is a string")]


def test_rows_without_an_id_are_reported():
    messages = []
    data = b'name,taskId\nx\ny,"a\nb"\nz,c\n"never closed,d\n'
    assert read_all(data, messages=messages) == ["c"]
    assert messages == [(2, "a row without a taskId"), (4, "an id holds no control characters")]


def test_row_that_is_not_closed_is_reported_at_the_end():
    source = input_of(b'name,taskId\nx,a\n"y,b\nz,c\n')
    messages = []

    async def read():
        return [each async for each in source.ids(lambda *problem: messages.append(problem))]

    assert asyncio.run(read()) == ["a"]
    assert messages == [(4, "the last row has a quotation mark that is not closed")]


def test_quotation_mark_that_is_missing_does_not_swallow_the_file(monkeypatch):
    monkeypatch.setattr(_input._Table, "_MAX_ROW", 50)
    messages = []
    data = b'name,taskId\n"x,a\n' + b"some name,b\n" * 5 + b"y,c\n"
    assert read_all(data, messages=messages)[-1] == "c"
    assert messages == [(6, "a row longer than 50 bytes: is a quotation mark missing?")]


def test_field_too_long_for_a_table_is_reported():
    messages = []
    data = b"name,taskId\n" + b"x" * 200_000 + b",a\ny,b\n"
    assert read_all(data, messages=messages) == ["b"]
    assert len(messages) == 1
    assert read_all(b"x" * 200_000 + b"\n", "ids.txt", messages=messages) == ["x" * 200_000]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_byte_order_mark_tells_the_encoding(encoding):
    mark = "" if encoding in ("utf-16", "utf-8-sig") else "\ufeff"
    assert read_all((mark + "编号-1\r\nb\n").encode(encoding), "ids.txt") == ["编号-1", "b"]


@pytest.mark.parametrize("rest", [b"\x00\xdcb\0\n\0", b"\0"])
async def test_what_is_not_utf_16_after_its_mark_is_an_error(rest):
    messages = []
    broken = input_of(b"\xff\xfea\0\n\0" + rest)
    source = IdSource([], [broken], lambda task_id: True, messages.append)
    assert [each async for each in source] == ["a"]
    assert source.broken
    assert messages == ["the input can't be read on: it is not UTF-16, as its byte order mark says"]


def test_byte_order_mark_may_come_in_pieces():
    decoder = _input._Decoder("ids")
    pieces = [b"\xff", b"\xfea", b"\0\n", b"\0"]
    assert b"".join(decoder.decode(piece) for piece in pieces) == b"a\n"
    assert decoder.decode(b"", final=True) == b""


async def test_what_was_read_before_a_fault_is_given_out(monkeypatch):
    source = input_of(b"")
    chunks = [b"a\nb"]

    async def read():
        if chunks:
            return chunks.pop()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(source._reader, "read", read)
    ids = IdSource([], [source], lambda task_id: True, lambda message: None)
    assert [each async for each in ids] == ["a", "b"]
    assert ids.broken


async def test_input_without_lines_is_no_error():
    assert [each async for each in IdSource([], [input_of(b"")], lambda _: True, print)] == []


def test_reader_that_is_stuck_holds_up_no_stop():
    class Taken:
        def acquire(self, timeout):
            return False

    reader = _input._Reader(0)
    reader._lock = Taken()
    assert reader.stop() == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n\0\0\0\r",
        bytes(range(1, 256)),
        "a\nb\n".encode("utf-16-le"),
        os.urandom(4096),
    ],
)
def test_binary_file_is_refused(data):
    with pytest.raises(InputError, match=r"ids\.bin is a binary file"):
        read_all(data, "ids.bin")


@given(st.text(min_size=1).filter(lambda text: text.isprintable() and text.strip() == text))
def test_line_of_an_id_is_read_as_that_id(task_id):
    assert parse_line(id_line(task_id).encode()) == task_id
    assert read_all(id_line(task_id).encode() + b"\n", "ids.txt") == [task_id]


@given(
    st.lists(st.tuples(st.text(max_size=8), st.text("abc-1", min_size=1, max_size=5)), max_size=6),
    st.sampled_from(",\t;"),
)
def test_table_is_read_as_it_was_written(rows, delimiter):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(["prompt", "job"])
    rows = [(prompt.replace("\0", "").replace("\r", ""), task_id) for prompt, task_id in rows]
    writer.writerows(rows)
    data = text.getvalue().encode(errors="replace")
    assert read_all(data, "jobs", "job") == [task_id for _, task_id in rows]


class TestProgram:
    def test_several_inputs_are_read_one_after_another(self, program, server, tmp_path):
        for task_id in "abcde":
            server.add(task_id)
        (tmp_path / "1.csv").write_text("job,taskId\nx,b\n")
        (tmp_path / "2.txt").write_text("c\n")
        args = ["-i", tmp_path / "1.csv", "-i", "-", "-i", tmp_path / "2.txt"]
        ended = program.run("wait", "a", *args, stdin_text="d\ne")
        assert (ended.code, ended.ids) == (0, ["a", "b", "c", "d", "e"])

    def test_misread_line_of_several_inputs_names_its_file(self, program, server, tmp_path):
        server.add("a")
        (tmp_path / "1.txt").write_text("a\n")
        (tmp_path / "2.txt").write_text("{\n")
        ended = program.run("wait", "-i", tmp_path / "1.txt", "-i", tmp_path / "2.txt")
        assert "line 1 of 2.txt is skipped" in ended.err

    def test_table_without_a_known_column_is_refused_before_any_request(
        self, server, monkeypatch, capfd, tmp_path
    ):
        path = tmp_path / "jobs.csv"
        path.write_text("name,prompt\nAnn,a cat\n")
        code, out, err = run_here(monkeypatch, capfd, server.url, ["wait", "a", "-i", str(path)])
        assert (code, out, server.count()) == (2, "", 0)
        assert err.count("\n") == 1
        assert "Ann" not in err

    @pytest.mark.parametrize("data", [b"name,prompt\nx,y\n", b"\0\1\2"])
    def test_pipe_that_holds_no_ids_is_refused_in_one_line(self, program, server, data):
        process = program.start("wait", "-i", "-", stdin=subprocess.PIPE)
        out, err = process.communicate(data, timeout=30)
        assert (process.returncode, out, server.count()) == (2, b"", 0)
        assert err.count(b"\n") == 1

    def test_input_refused_late_loses_no_wait_that_goes_on(self, program, server):
        server.add("a")
        ended = program.run("wait", "a", "-i", "-", stdin_text="name,prompt\n")
        assert (ended.code, ended.ids) == (2, ["a"])
        assert "--id-column" in ended.err

    def test_input_in_non_blocking_mode_is_read_on(self, program, server):
        server.add("a")
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        process = program.start("wait", "-i", "-", stdin=read_end)
        time.sleep(0.5)  # it has found nothing to read by now
        os.write(write_end, b"a\n")
        os.close(write_end)
        out, err = process.communicate(timeout=30)
        os.close(read_end)
        assert (process.returncode, out[:13]) == (0, b'{"taskId":"a"')
        assert b"unavailable" not in err

    def test_job_of_ids_that_nobody_knows_stops(self, program, server, tmp_path):
        path, summary = tmp_path / "ids", tmp_path / "summary"
        path.write_text("".join(f"row {number}\n" for number in range(5000)))
        ended = program.run("wait", "-i", path, "--summary", summary, "--concurrency", "200")
        assert ended.code == 2
        assert len(ended.lines) == 100
        assert "is this a file of ids" in ended.err
        assert len({request.task_id for request in server.requests}) <= 200

    def test_one_known_id_is_enough_to_go_on(self, program, server, tmp_path):
        server.add("a")
        path = tmp_path / "ids"
        path.write_text("".join(f"row {number}\n" for number in range(250)) + "a\n")
        ended = program.run("wait", "a", "-i", path, "--concurrency", "200")
        assert (ended.code, len(ended.lines)) == (1, 252)

    def test_pending_task_shows_that_the_ids_are_known(self, program, server):
        ids = [server.add(f"task-{number}", "processing") for number in range(300)]
        process = program.start_with_ids(ids)
        eventually(lambda: len({request.task_id for request in server.requests}) == 300)
        process.kill()
