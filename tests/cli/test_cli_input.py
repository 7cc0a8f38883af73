from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading

import pytest
from cli_program import eventually
from hypothesis import given
from hypothesis import strategies as st

from xai_tasks._cli import _input
from xai_tasks._cli._input import IdSource, Input, LineSplitter, parse_line
from xai_tasks._cli._records import digest


@pytest.mark.parametrize(
    ("line", "task_id"),
    [
        (b"5f2c1e", "5f2c1e"),
        (b"  5f2c1e\t\r", "5f2c1e"),
        (b"two words", "two words"),
        ("编号-1".encode(), "编号-1"),
        (b"", None),
        (b" \r", None),
        (b"# a comment", None),
        (b"  # another", None),
        (b'{"taskId": "a", "status": "pending"}', "a"),
        (b'{"task_id": "b"}', "b"),
        (b'{"taskId": "a", "task_id": "b"}', "a"),
        (b'"quoted, as jq puts it out"', "quoted, as jq puts it out"),
        (rb'{"taskId": "\u7f16"}', "编"),
    ],
)
def test_line_gives_its_id(line, task_id):
    assert parse_line(line) == task_id


@pytest.mark.parametrize(
    "line",
    [
        b'{"taskId": "cut off',
        b'{"taskId": 7}',
        b'{"taskId": null, "task_id": "hidden by the null"}',
        b'{"taskId": ""}',
        b'""',
        b"{}",
        b'{"a":' * 5000,
        b"\xff\xfe not UTF-8",
        b"id\tand another column",
        b"a\x00b",
    ],
)
def test_line_without_an_id_is_an_error(line):
    with pytest.raises(ValueError):
        parse_line(line)


@given(st.lists(st.binary(max_size=20).map(lambda part: part.replace(b"\n", b""))), st.data())
def test_lines_are_the_same_however_the_chunks_fall(lines, data):
    text = b"\n".join(lines)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5).map(sorted))
    splitter = LineSplitter()

    chunks = [text[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(text)])]
    found = [line for chunk in chunks for line in splitter.feed(chunk)] + list(splitter.last())

    assert found == (text.removesuffix(b"\n").split(b"\n") if text else [])


def test_of_a_line_too_long_nothing_is_kept_and_the_next_is_whole(monkeypatch):
    monkeypatch.setattr(_input, "MAX_LINE", 10)
    splitter = LineSplitter()
    assert list(splitter.feed(b"x" * 8)) == []
    assert list(splitter.feed(b"x" * 8)) == []
    assert splitter._parts == []
    assert list(splitter.feed(b"x\nnext\n")) == [None, b"next"]
    assert list(splitter.feed(b"y" * 11)) == []
    assert list(splitter.last()) == [None]


def test_digest_is_the_same_on_every_machine():
    # Shards of one input run on several machines and versions. The figures are coreutils':
    # printf task-1 | b2sum -l 64
    assert digest("task-1") == 0xEC89A3210DA9C383
    assert digest("编号-1") == 0x80FA63DC6D03B6BF


def test_digest_takes_ids_that_are_no_unicode():
    assert digest("\udcff") != digest("\udcfe")


def input_of(data, name="ids.txt", id_column=None):
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        fd = os.dup(file.fileno())
        os.lseek(fd, 0, os.SEEK_SET)
    return Input(name, fd, id_column)


def source_of(task_ids=(), data=None, wanted=lambda task_id: True, messages=None):
    inputs = [] if data is None else [input_of(data)]
    return IdSource(task_ids, inputs, wanted, ([] if messages is None else messages).append)


async def test_source_gives_arguments_first_and_then_the_file():
    source = source_of(["a"], b"\xef\xbb\xbfb\n\n# no\nc")
    assert [task_id async for task_id in source] == ["a", "b", "c"]
    assert source.taken == source.expected == 3


async def test_source_leaves_out_what_is_not_wanted():
    source = source_of(["a", "x"], b"b\nx\n", wanted=lambda task_id: task_id != "x")
    assert [task_id async for task_id in source] == ["a", "b"]
    assert source.expected == 2


async def test_source_reports_bad_lines_by_number_and_goes_on():
    messages = []
    source = source_of(data=b'a\n{"no": 1}\nb\n\xff\n', messages=messages)
    assert [task_id async for task_id in source] == ["a", "b"]
    assert source.misread == 2
    assert [message.split(":")[0] for message in messages] == [
        "line 2 of the input is skipped",
        "line 4 of the input is skipped",
    ]


async def test_source_does_not_tell_a_million_bad_lines():
    messages = []
    source = source_of(data=b"{\n" * 1000, messages=messages)
    assert [task_id async for task_id in source] == []
    assert source.misread == 1000
    assert len(messages) == 21


async def test_source_reports_a_line_too_long(monkeypatch):
    monkeypatch.setattr(_input, "MAX_LINE", 10)
    messages = []
    source = source_of(data=b"a\n" + b"x" * 11 + b"\nb", messages=messages)
    assert [task_id async for task_id in source] == ["a", "b"]
    assert messages == ["line 2 of the input is skipped: longer than 10 bytes"]


async def test_source_knows_from_the_share_read_how_many_ids_to_expect(monkeypatch):
    monkeypatch.setattr(_input, "_CHUNK", 1000)
    source = source_of(data=b"task-0000\n" * 1000)
    source.prove()
    assert source.expected is None
    ids = aiter(source)
    for _ in range(500):
        await anext(ids)
    assert source.expected == pytest.approx(1000, rel=0.01)
    await ids.aclose()


async def test_source_that_cannot_be_read_on_ends_and_says_so(tmp_path):
    messages = []
    broken = Input("folder", os.open(tmp_path, os.O_RDONLY))
    source = IdSource(["a"], [broken], lambda task_id: True, messages.append)
    assert [task_id async for task_id in source] == ["a"]
    assert source.broken
    assert messages == ["the input can't be read on: Is a directory"]


async def test_stopped_source_gives_no_further_id():
    source = source_of(["a", "b"])
    ids = aiter(source)
    await anext(ids)
    source.stopped = True
    assert [task_id async for task_id in ids] == []
    assert source.expected is None


async def test_reading_a_silent_pipe_holds_neither_the_loop_nor_its_end():
    read_end, write_end = os.pipe()
    reading = asyncio.create_task(_input._Reader(read_end).read())
    await asyncio.sleep(0.01)  # the loop goes on beside a thread that is really blocked
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    os.write(write_end, b"late")  # wakes the thread, whose answer nobody takes any more
    await asyncio.sleep(0.01)
    os.close(write_end)
    os.close(read_end)


def test_answer_that_comes_after_the_loop_is_closed_is_dropped():
    read_end, write_end = os.pipe()

    async def give_up():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await _input._Reader(read_end).read()

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(give_up())
    os.write(write_end, b"late")  # an exception in the thread would be a warning, and so an error
    eventually(lambda: not any(thread.name.endswith("(read)") for thread in threading.enumerate()))
    os.close(write_end)
    os.close(read_end)
