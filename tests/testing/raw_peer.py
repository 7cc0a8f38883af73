"""A raw socket client."""

from __future__ import annotations

import asyncio
import json

from multidict import CIMultiDict


class Peer:
    """A raw client on one connection."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def ask(self, task_id="a"):
        """Send a request for a task."""
        self.send(f"/xai/tasks?taskId={task_id}")

    def send(self, target, *, method="GET", authorization="Bearer test", more=""):
        """Send any request; its headers end with `more`."""
        key = f"Authorization: {authorization}\r\n" if authorization else ""
        self.writer.write(f"{method} {target} HTTP/1.1\r\nHost: x\r\n{key}{more}\r\n".encode())

    def post(self, job, path="/xai/videos"):
        """Send a submission: a dict, or the bytes of a body."""
        body = job if isinstance(job, bytes) else json.dumps(job).encode()
        more = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.send(path, method="POST", more=more)
        self.writer.write(body)

    async def answer(self):
        """Read one well-formed answer with a Content-Length; return its head and its body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = CIMultiDict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
        return head, await self.reader.readexactly(int(headers.get("Content-Length", "0")))

    async def json(self):
        """Read one answer; return its status and its JSON."""
        head, body = await self.answer()
        return int(head.split()[1]), json.loads(body)

    async def rest(self):
        """Read to the end of the connection; return the data, and how it ended."""
        data = b""
        try:
            while block := await self.reader.read(2**16):
                data += block
        except ConnectionResetError:
            return data, "reset"
        return data, "closed"


class connected:
    """Open a connection to a `TaskServer`, and drop it at the end."""

    def __init__(self, server, **options):
        self.port, self.options = int(server.url.rpartition(":")[2]), options

    async def __aenter__(self):
        self.peer = Peer(*await asyncio.open_connection("127.0.0.1", self.port, **self.options))
        return self.peer

    async def __aexit__(self, *exc_info):
        self.peer.writer.transport.abort()
        # The transport's socket is closed in the loop's next turn.
        await asyncio.sleep(0)
