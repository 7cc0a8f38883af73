"""The progress bar, on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import termios
import threading

import pytest
from cli_program import eventually

ERASE = "\r\x1b[2K"


class Terminal:
    """A terminal of 150 columns, and what has appeared on it."""

    def __init__(self):
        self._master, self.fd = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
        self._bytes = b""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            while data := os.read(self._master, 65536):
                self._bytes += data

    @property
    def text(self):
        return self._bytes.decode()

    def close(self):
        os.close(self.fd)
        self._thread.join()
        os.close(self._master)


@pytest.fixture
def terminal():
    # Ask for it before `program`: it can be closed only after the process
    # that writes to it has ended.
    terminal = Terminal()
    yield terminal
    terminal.close()


SHOWN = {"TERM": "xterm-256color", "COLUMNS": None, "NO_COLOR": None}


def test_bar_moves_and_is_gone_at_the_end(terminal, program, server):
    server.add("a")
    server.add("b", "processing")
    process = program.start("wait", "a", "b", "--interval", "0.1", env=SHOWN, stderr=terminal.fd)
    eventually(
        lambda: (
            "1 completed" in terminal.text and "1 waiting" in terminal.text and "━" in terminal.text
        )
    )
    server.advance("b")
    assert process.wait(30) == 0
    summary = eventually(
        lambda: re.search(r"([^\n]*)xai-tasks: 2 tasks in [^\n]*\n", terminal.text)
    )
    assert summary[1].endswith(ERASE)
    assert terminal.text.endswith("requests\r\n")
    drawn = [re.sub(r"\x1b\[[\d;]*[mK]", "", frame) for frame in terminal.text.split(ERASE)]
    assert all(len(frame) < 150 for frame in drawn)


def test_lines_and_bar_share_a_terminal(terminal, program, server):
    server.add("a", "processing")
    process = program.start(
        "wait", "a", "--interval", "0.1", env=SHOWN, stdout=terminal.fd, stderr=terminal.fd
    )
    eventually(lambda: "1 waiting" in terminal.text)
    server.advance("a")
    assert process.wait(30) == 0
    # The line stands alone: the bar was cleared away before it.
    eventually(lambda: re.search(re.escape(ERASE) + r'\{"taskId":"a"[^\r\n]*\}\r\n', terminal.text))


def test_no_color_is_obeyed(terminal, program, server):
    server.add("a", "processing")
    program.start("wait", "a", env={**SHOWN, "NO_COLOR": "1"}, stderr=terminal.fd)
    eventually(lambda: "1 waiting" in terminal.text)
    assert not re.search(r"\x1b\[[\d;]*3\d[\d;]*m", terminal.text)


def test_colours_are_there_otherwise(terminal, program, server):
    server.add("a", "processing")
    program.start("wait", "a", env=SHOWN, stderr=terminal.fd)
    eventually(lambda: "1 waiting" in terminal.text)
    assert re.search(r"\x1b\[[\d;]*3\d[\d;]*m", terminal.text)


@pytest.mark.parametrize(("env", "args"), [({"TERM": "dumb"}, ()), (SHOWN, ("--quiet",))])
def test_dumb_terminal_and_quiet_have_no_bar(terminal, program, server, env, args):
    server.add("a", "processing")
    process = program.start(
        "wait", "a", "--interval", "0.1", *args, env={**SHOWN, **env}, stderr=terminal.fd
    )
    eventually(lambda: server.count("a") >= 10)  # a bar would have been drawn by now
    server.advance("a")
    assert process.wait(30) == 0
    assert "\x1b" not in terminal.text


def test_held_terminal_holds_up_no_wait(program, server, tmp_path):
    # A terminal that nobody reads is full after some kilobytes, as one is that is held by Ctrl-S.
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
    os.set_blocking(slave, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(slave, b"x" * 1000)
    os.set_blocking(slave, True)
    server.add("a", "processing")
    path = tmp_path / "out"
    process = program.start("wait", "a", "--interval", "0.1", "-o", path, env=SHOWN, stderr=slave)
    eventually(lambda: server.count("a") >= 15)  # long enough for the bar to be due several times
    server.advance("a")
    eventually(lambda: path.exists() and path.read_bytes())
    os.set_blocking(master, False)
    while process.poll() is None:  # the summary at the end does wait for room
        with contextlib.suppress(BlockingIOError):
            os.read(master, 65536)
    os.close(slave)
    os.close(master)
