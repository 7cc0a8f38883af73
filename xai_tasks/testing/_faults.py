"""What goes wrong on purpose, and the account of it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from random import Random
from typing import Literal, Self, TypeAlias

from aiohttp import web
from attrs import field, frozen

from xai_tasks.testing._http import JSON, Reply, transport_of

_AS_DUE = 0
"""Stands for the status of the answer that was due."""

_BLOCK = 2**16


@frozen
class Wire:
    """One exchange under way: the request, the answer due to it and the connection."""

    request: web.BaseRequest
    due: Reply

    async def send(self, data: bytes) -> None:
        """Put bytes on the wire, and wait until the kernel has them: a reset would drop what is still in our buffer."""
        transport = transport_of(self.request)
        transport.set_write_buffer_limits(0)
        transport.write(data)
        await self.request.writer.drain()

    def reset(self) -> None:
        """Abort the connection with a TCP reset."""
        transport = transport_of(self.request)
        # A close that may not linger throws away what is unsent and sends RST in place of FIN.
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()


_Play: TypeAlias = Callable[[Wire], Awaitable[bool]]
"""Acts a fault out; returns whether the connection may stay open."""


@frozen(repr=False)
class Fault:
    """One thing that goes wrong with one request; queue it with `TaskServer.fault`.

    Made by its class methods alone. A fault is a value: one may be queued many times, on many servers. "The answer
    due" is what the request would have got without the fault; where it is sent, it is the one that was due when the
    request came.
    """

    _name: str
    _arguments: tuple[tuple[str, object], ...]
    _sends: int | None
    _play: _Play = field(eq=False)

    def __repr__(self) -> str:
        return (
            f"Fault.{self._name}({', '.join(f'{name}={_brief(value)}' for name, value in self._arguments)})"
        )

    def _status_sent(self, due: int) -> int | None:
        """Give the HTTP status that gets out, where `due` was the one due; None if none does."""
        return due if self._sends == _AS_DUE else self._sends

    @classmethod
    def status(
        cls,
        code: int,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Self:
        """Answer with an HTTP status, and keep the connection open.

        Args:
            code: the status; 1xx, 204 and 304 go without a body.
            headers: more headers, such as `{"Retry-After": "1"}`; a multidict may repeat a name. Without a `Content-Type`,
                JSON is said.
            body: the bytes of the body, as they are.

        """
        given = tuple((headers or {}).items())
        said = any(name.lower() == "content-type" for name, _ in given)
        reply = Reply(code, body, given if said else (("Content-Type", JSON), *given))
        return cls._canned("status", reply, code=code, headers=given, body=body)

    @classmethod
    def reset(cls, at: Literal["accept", "headers", "body"] = "accept") -> Self:
        """Reset the connection (a TCP RST).

        Args:
            at: `"accept"`: as the request comes, before any byte of an answer; `"headers"`: half-way through the
                headers of the answer due; `"body"`: half-way through its body.

        """

        async def play(wire: Wire) -> bool:
            head = wire.due.head()
            if at == "headers":
                await wire.send(head[: len(head) // 2])
            elif at == "body":
                await wire.send(head + wire.due.body[: len(wire.due.body) // 2])
            wire.reset()
            return False

        if at not in {"accept", "headers", "body"}:
            raise ValueError(f"at must be 'accept', 'headers' or 'body', not {at!r}")
        return cls("reset", (("at", at),), _AS_DUE if at == "body" else None, play)

    @classmethod
    def truncate(cls) -> Self:
        """Promise the whole body of the answer due by `Content-Length`, send half of it and close."""

        async def play(wire: Wire) -> bool:
            await wire.send(wire.due.head() + wire.due.body[: len(wire.due.body) // 2])
            return False

        return cls("truncate", (), _AS_DUE, play)

    @classmethod
    def bad_chunking(cls) -> Self:
        """Send the answer due in chunks whose second size is no hexadecimal number, and close."""

        async def play(wire: Wire) -> bool:
            half = wire.due.body[: len(wire.due.body) // 2]
            head = wire.due.head(framing="Transfer-Encoding: chunked")
            await wire.send(head + _chunk(half) + b"this is no size\r\n" + wire.due.body + b"\r\n")
            return False

        return cls("bad_chunking", (), _AS_DUE, play)

    @classmethod
    def stall(cls, seconds: float | None = None) -> Self:
        """Send nothing, then the answer due.

        Args:
            seconds: how long; None: until the client goes, or the server is closed.

        """

        async def play(wire: Wire) -> bool:
            if seconds is None:
                # aiohttp cancels us when the connection is lost.
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(seconds or 0)
            await wire.send(wire.due.encode())
            return True

        return cls("stall", (("seconds", seconds),), None if seconds is None else _AS_DUE, play)

    @classmethod
    def drip(cls, interval: float) -> Self:
        """Send the answer due a byte at a time, `interval` seconds apart."""

        async def play(wire: Wire) -> bool:
            for byte in wire.due.encode():
                await wire.send(bytes((byte,)))
                await asyncio.sleep(interval)
            return True

        return cls("drip", (("interval", interval),), _AS_DUE, play)

    @classmethod
    def garbage(cls) -> Self:
        """Send bytes that are no HTTP at all, and close."""

        async def play(wire: Wire) -> bool:
            await wire.send(b"\x16\x03\x01 7h15 15 n0 5t4tu5 l1n3 \xff\xfe\r\n\r\n")
            return False

        return cls("garbage", (), None, play)

    @classmethod
    def body(cls, data: bytes, content_type: str | None = "application/json") -> Self:
        """Answer 200 with a body of your own; `odd_answers` has a set of them.

        Args:
            data: the bytes of the body, as they are.
            content_type: the `Content-Type`; None: no such header.

        """
        headers = () if content_type is None else (("Content-Type", content_type),)
        return cls._canned("body", Reply(200, data, headers), data=data, content_type=content_type)

    @classmethod
    def gzip_bomb(cls, size: int) -> Self:
        """Answer 200 with a completed task whose result is `size` bytes of JSON string, gzipped: about a thousandth of it.

        Args:
            size: the length of the result after decompression, in bytes.

        """

        async def play(wire: Wire) -> bool:
            gzip = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
            headers = (("Content-Type", JSON), ("Content-Encoding", "gzip"))
            await wire.send(Reply(200, headers=headers).head(framing="Transfer-Encoding: chunked"))
            for block in _huge_answer(wire, size):
                await wire.send(_chunk(gzip.compress(block)))
                await asyncio.sleep(
                    0
                )  # others get their turn between blocks: a drained transport never waits
            await wire.send(_chunk(gzip.flush()) + b"0\r\n\r\n")
            return True

        return cls("gzip_bomb", (("size", size),), 200, play)

    @classmethod
    def endless(cls) -> Self:
        """Answer 200 with a body that goes on until the client goes."""

        async def play(wire: Wire) -> bool:
            await wire.send(Reply(200).head(framing="Transfer-Encoding: chunked") + _chunk(b'{"result": "'))
            while True:
                await wire.send(_chunk(b"x" * _BLOCK))
                await asyncio.sleep(0)

        return cls("endless", (), 200, play)

    @classmethod
    def redirect(cls, location: str, code: int = 302) -> Self:
        """Answer with a redirect.

        Args:
            location: what the `Location` header says: a path or a URL of any origin and scheme.
            code: the status, 301, 302, 303, 307 or 308.

        """
        reply = Reply(code, headers=(("Location", location),))
        return cls._canned("redirect", reply, location=location, code=code)

    @classmethod
    def oversized_headers(cls) -> Self:
        """Answer 200 with a header of 64 KiB: eight times what common HTTP parsers take."""

        async def play(wire: Wire) -> bool:
            headers = (*wire.due.headers, ("X-Oversized", "x" * 2**16))
            await wire.send(Reply(200, wire.due.body, headers).encode())
            return True

        return cls("oversized_headers", (), 200, play)

    @classmethod
    def close_after(cls) -> Self:
        """Send the answer due as if the connection stayed open, then close it without having said so."""

        async def play(wire: Wire) -> bool:
            await wire.send(wire.due.encode())
            return False

        return cls("close_after", (), _AS_DUE, play)

    @classmethod
    def _canned(cls, name: str, reply: Reply, **arguments: object) -> Self:
        async def play(wire: Wire) -> bool:
            await wire.send(reply.encode())
            return True

        return cls(name, tuple(arguments.items()), reply.status, play)


def odd_answers(task_id: str) -> dict[str, Fault]:
    """Give bodies of a 200 that a client has to get through unhurt, each a `Fault.body`, by the name of what is odd.

    Some are beyond reading, some merely unusual answers of a completed task, which a client is free to take. A status
    that goes backwards is no fault but a lifecycle: `server.add("a", [("processing", 1), ("pending", 1)])`.
    """
    head = f'{{"taskId": {json.dumps(task_id)}, "status": "completed", "result": '
    good = f"{head}{{}}}}".encode()
    return {
        "html": Fault.body(b"<!doctype html><title>Just a moment...</title>", content_type="text/html"),
        "empty": Fault.body(b""),
        "null": Fault.body(b"null"),
        "cut short": Fault.body(good[:-2]),
        "not UTF-8": Fault.body(f'{head}"'.encode() + b'\xff\xfe"}'),
        "BOM": Fault.body(b"\xef\xbb\xbf" + good),
        "UTF-16": Fault.body(good.decode().encode("utf-16")),
        "deep nesting": Fault.body(head.encode() + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "huge integer": Fault.body(f"{head}{'9' * 5_000}}}".encode()),
        "NaN": Fault.body(f"{head}NaN}}".encode()),
        "wrong content type": Fault.body(good, content_type="text/plain"),
        "no content type": Fault.body(good, content_type=None),
        "wrong id": Fault.body(good.replace(json.dumps(task_id).encode(), b'"another"', 1)),
        "no status": Fault.body(json.dumps({"taskId": task_id}).encode()),
    }


class FaultBook:
    """The faults queued, those drawn at random, and the account of which have fired. Fit for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str | None, deque[Fault]] = {}
        self._fired: list[Fault] = []
        self._share = 0.0
        self._drawn: tuple[Fault, ...] = ()
        self._random = Random()

    def queue(self, task_id: str | None, faults: Iterable[Fault]) -> None:
        """Queue faults for the next requests for `task_id`; None: for the next requests, whatever the id."""
        with self._lock:
            self._queues.setdefault(task_id, deque()).extend(faults)

    def draw_from(self, share: float, faults: tuple[Fault, ...], random: Random) -> None:
        """Let each request that has no queued fault get, with probability `share`, one of `faults`."""
        with self._lock:
            self._share, self._drawn, self._random = share, faults, random

    def take(self, task_id: str | None) -> Fault | None:
        """Give the fault that the next request for `task_id` gets, if any, and count it as fired."""
        if not self._queues and not self._share:
            return None
        with self._lock:
            for key in (task_id, None):
                if queue := self._queues.get(key):
                    fault = queue.popleft()
                    break
            else:
                if not self._share or self._random.random() >= self._share:
                    return None
                fault = self._random.choice(self._drawn)
            self._fired.append(fault)
            return fault

    def left(self) -> list[Fault]:
        """List the queued faults that no request has met yet."""
        with self._lock:
            return [fault for queue in self._queues.values() for fault in queue]

    def fired(self) -> list[Fault]:
        """List the faults that requests have met, in order."""
        with self._lock:
            return list(self._fired)

    def clear(self) -> None:
        """Forget all faults, queued, drawn and fired."""
        with self._lock:
            self._queues.clear()
            self._fired.clear()
            self._share = 0.0


def _huge_answer(wire: Wire, size: int) -> Iterable[bytes]:
    task_id = wire.request.query.get("taskId", "")
    yield f'{{"taskId": {json.dumps(task_id)}, "status": "completed", "result": "'.encode()
    for start in range(0, size, _BLOCK):
        yield b"x" * min(_BLOCK, size - start)
    yield b'"}'


def _chunk(data: bytes) -> bytes:
    # An empty chunk would be the last one.
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def _brief(value: object) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) and len(value) > 40 else repr(value)
