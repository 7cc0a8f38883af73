"""Starts and stops programs that serve on loopback: each in a folder of its own,
ready when its port answers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def find_nginx():
    """Return nginx's path, or skip."""
    found = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
    if found is None:
        pytest.skip("nginx is missing: tests/realserver/install.sh installs it, as root on Debian")
    return found


def find_tinyproxy():
    """Return tinyproxy's path, or skip."""
    found = shutil.which("tinyproxy", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
    if found is None:
        pytest.skip(
            "tinyproxy is missing: tests/realserver/install.sh installs it, as root on Debian"
        )
    return found


def find_node_module(script):
    """Return a command that runs a script of the packages in package.json, installed
    if need be; skip without npm.
    """
    if shutil.which("npm") is None:
        pytest.skip("npm is missing, and with it Prism and mountebank")
    program = MODULES / ".bin" / script
    if not program.exists():
        subprocess.run([HERE / "install.sh", "node"], check=True, timeout=300)
    return ["node", program]


def find_nest():
    """Return the command that runs the NestJS server, installed if need be; skip without npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is missing, and with it NestJS")
    program = HERE / "nest-server" / "dist" / "main.js"
    if not program.exists():
        subprocess.run([HERE / "install.sh", "node"], check=True, timeout=300)
    return ["node", program]


@contextlib.contextmanager
def folder():
    """Make a folder that also the workers of a server that root has started can use."""
    with tempfile.TemporaryDirectory(prefix="xai-tasks-") as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


class Program:
    """A running program."""

    def __init__(self, process, port, log):
        self._process = process
        self.port = port
        self._log = log

    def signal(self, number):
        self._process.send_signal(number)

    def log(self):
        return self._log.read_text(errors="replace")


@contextlib.contextmanager
def running(command, cwd, port, patience=30.0, **variables):
    """Run `command` in `cwd` from when it listens on `port` to the end of the context.

    `variables` are added to the environment.
    """
    log = cwd / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(process, port, log, patience)
        yield Program(process, port, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process, port, log, patience):
    until = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            assert process.poll() is None, f"{process.args} ended: {log.read_text()}"
            assert time.monotonic() < until, f"{process.args} does not listen: {log.read_text()}"
            time.sleep(0.02)
