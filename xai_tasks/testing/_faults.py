"""Faults: what goes wrong on purpose, and the record of which faults were played."""

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
"""In place of a status: that of the answer due."""

_BLOCK = 2**16


@frozen
class Wire:
    """A request in progress: the request itself, the answer due to it and the connection."""

    request: web.BaseRequest
    due: Reply

    async def send(self, data: bytes) -> None:
        """Write bytes, and wait until the kernel has them.

        A reset would drop what is still in our own buffer.
        """
        transport = transport_of(self.request)
        transport.set_write_buffer_limits(0)
        transport.write(data)
        await self.request.writer.drain()

    def reset(self) -> None:
        """Abort the connection with a TCP reset."""
        transport = transport_of(self.request)
        # Closing with a linger time of 0 drops unsent data and sends RST instead of FIN.
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()


Play: TypeAlias = Callable[[Wire], Awaitable[bool]]
"""Play a fault. Return whether the connection may stay open."""


@frozen(repr=False)
class Fault:
    """One thing that goes wrong with one request; queue it with `TaskServer.fault`.

    Create faults with the class methods below. A fault is a value: it may be queued many times, on
    many servers. "The answer due" is the answer that the request would have got without the fault,
    decided when the request came.
    """

    _name: str
    _arguments: tuple[tuple[str, object], ...]
    _sends: int | None
    _play: Play = field(eq=False)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={_brief(value)}" for name, value in self._arguments)
        return f"Fault.{self._name}({arguments})"

    def _status_sent(self, due: int) -> int | None:
        """Return the HTTP status that the client gets, None if it gets none.

        `due` is the status of the answer due.
        """
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
            headers: more headers, such as `{"Retry-After": "1"}`; a multidict may repeat a name.
                Without a `Content-Type` here it is JSON's.
            body: the bytes of the body, as they are.

        """
        given = tuple((headers or {}).items())
        has_type = any(name.lower() == "content-type" for name, _ in given)
        reply = Reply(code, body, given if has_type else (("Content-Type", JSON), *given))
        return cls._canned("status", reply, code=code, headers=given, body=body)

    @classmethod
    def reset(cls, at: Literal["accept", "headers", "body"] = "accept") -> Self:
        """Reset the connection (a TCP RST).

        Args:
            at: `"accept"`: once the request has come, before any byte of an answer;
                `"headers"`: half-way through the headers of the answer due;
                `"body"`: half-way through its body.

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
        """Send the answer due with its full `Content-Length` but half of its body, and close."""

        async def play(wire: Wire) -> bool:
            await wire.send(wire.due.head() + wire.due.body[: len(wire.due.body) // 2])
            return False

        return cls("truncate", (), _AS_DUE, play)

    @classmethod
    def bad_chunking(cls) -> Self:
        """Send the answer due in chunks, the second of them with an invalid size, and close."""

        async def play(wire: Wire) -> bool:
            half = wire.due.body[: len(wire.due.body) // 2]
            head = wire.due.head(framing="Transfer-Encoding: chunked")
            await wire.send(head + _chunk(half) + b"not a size\r\n" + wire.due.body + b"\r\n")
            return False

        return cls("bad_chunking", (), _AS_DUE, play)

    @classmethod
    def stall(cls, seconds: float | None = None) -> Self:
        """Wait, then send the answer due.

        Args:
            seconds: how long; None: until the client disconnects or the server is closed.

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
        """Send the answer due byte by byte, `interval` seconds apart."""

        async def play(wire: Wire) -> bool:
            for byte in wire.due.encode():
                await wire.send(bytes((byte,)))
                await asyncio.sleep(interval)
            return True

        return cls("drip", (("interval", interval),), _AS_DUE, play)

    @classmethod
    def garbage(cls) -> Self:
        """Send bytes that are not HTTP, and close."""

        async def play(wire: Wire) -> bool:
            await wire.send(b"\x16\x03\x01 7h15 15 n0 5t4tu5 l1n3 \xff\xfe\r\n\r\n")
            return False

        return cls("garbage", (), None, play)

    @classmethod
    def body(cls, data: bytes, content_type: str | None = "application/json") -> Self:
        """Answer 200 with a given body; `odd_answers` returns a collection of them.

        Args:
            data: the bytes of the body, as they are.
            content_type: the `Content-Type`; None: no such header.

        """
        headers = () if content_type is None else (("Content-Type", content_type),)
        return cls._canned("body", Reply(200, data, headers), data=data, content_type=content_type)

    @classmethod
    def gzip_bomb(cls, size: int) -> Self:
        """Answer 200 with a completed task whose result is a string of `size` bytes, gzipped.

        On the wire it is about a thousandth of that.

        Args:
            size: the length of the result after decompression, in bytes.

        """

        async def play(wire: Wire) -> bool:
            gzip = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
            headers = (("Content-Type", JSON), ("Content-Encoding", "gzip"))
            await wire.send(Reply(200, headers=headers).head(framing="Transfer-Encoding: chunked"))
            for block in _huge_answer(wire, size):
                await wire.send(_chunk(gzip.compress(block)))
                # drain() doesn't wait while there is room, so let the loop's other tasks run here.
                await asyncio.sleep(0)
            await wire.send(_chunk(gzip.flush()) + b"0\r\n\r\n")
            return True

        return cls("gzip_bomb", (("size", size),), 200, play)

    @classmethod
    def endless(cls) -> Self:
        """Answer 200 with a body that does not end until the client disconnects."""

        async def play(wire: Wire) -> bool:
            head = Reply(200).head(framing="Transfer-Encoding: chunked")
            await wire.send(head + _chunk(b'{"result": "'))
            while True:
                await wire.send(_chunk(b"x" * _BLOCK))
                await asyncio.sleep(0)

        return cls("endless", (), 200, play)

    @classmethod
    def redirect(cls, location: str, code: int = 302) -> Self:
        """Answer with a redirect.

        Args:
            location: the `Location` header: a path, or a URL of any origin and scheme.
            code: the status, 301, 302, 303, 307 or 308.

        """
        reply = Reply(code, headers=(("Location", location),))
        return cls._canned("redirect", reply, location=location, code=code)

    @classmethod
    def oversized_headers(cls) -> Self:
        """Answer 200 with a header of 64 KiB, eight times the limit of common HTTP parsers."""

        async def play(wire: Wire) -> bool:
            headers = (*wire.due.headers, ("X-Oversized", "x" * 2**16))
            await wire.send(Reply(200, wire.due.body, headers).encode())
            return True

        return cls("oversized_headers", (), 200, play)

    @classmethod
    def close_after(cls) -> Self:
        """Send the answer due without `Connection: close`, then close the connection."""

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
    """Return unusual bodies of a 200 that a client must survive: a `Fault.body` by name.

    Some can't be read at all. Others are unusual answers about a completed task, which a client may
    accept. A status that goes backwards is a lifecycle, not a fault:
    `server.add("a", [("processing", 1), ("pending", 1)])`.
    """
    head = f'{{"taskId": {json.dumps(task_id)}, "status": "completed", "result": '
    good = f"{head}{{}}}}".encode()
    return {
        "html": Fault.body(b"<!doctype html><title>Just a moment...</title>", "text/html"),
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
    """The faults queued, those drawn at random, and those that were played. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str | None, deque[Fault]] = {}
        self._fired: list[Fault] = []
        self._share = 0.0
        self._drawn: tuple[Fault, ...] = ()
        self._random = Random()

    def queue(self, target: str | None, faults: Iterable[Fault]) -> None:
        """Queue faults for the next requests to `target`, as `TaskServer.fault` describes it."""
        with self._lock:
            self._queues.setdefault(target, deque()).extend(faults)

    def draw_from(self, share: float, faults: tuple[Fault, ...], random: Random) -> None:
        """Draw one of `faults` with probability `share` for each request without a queued one."""
        with self._lock:
            self._share, self._drawn, self._random = share, faults, random

    def take(self, route: str, task_id: str | None, *, is_poll: bool) -> Fault | None:
        """Return the fault for a request, if any, and record it as played.

        Args:
            route: the request's method and path.
            task_id: the id requested.
            is_poll: whether it requests a task, as opposed to a file or a submission.

        """
        if not self._queues and not self._share:
            return None
        with self._lock:
            for target in self._targets(route, task_id, is_poll=is_poll):
                if queue := self._queues.get(target):
                    fault = queue.popleft()
                    break
            else:
                if not self._share or self._random.random() >= self._share:
                    return None
                fault = self._random.choice(self._drawn)
            self._fired.append(fault)
            return fault

    def _targets(self, route: str, task_id: str | None, *, is_poll: bool) -> Iterable[str | None]:
        """Return the targets that mean a request, the closest first."""
        if task_id is not None:
            yield task_id
        yield route
        open_ended = [target for target in self._queues if target and target.endswith("...")]
        matching = [target for target in open_ended if route.startswith(target[:-3])]
        yield from sorted(matching, key=len, reverse=True)
        yield route.partition(" ")[0]
        if is_poll:
            yield None

    def left(self) -> list[Fault]:
        """Return the queued faults that no request has met yet."""
        with self._lock:
            return [fault for queue in self._queues.values() for fault in queue]

    def fired(self) -> list[Fault]:
        """Return the faults that requests have met, in order."""
        with self._lock:
            return list(self._fired)

    def clear(self) -> None:
        """Remove all faults: queued, drawn and played."""
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
