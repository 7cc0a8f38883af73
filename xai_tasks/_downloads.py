"""The files that results point to, on the disk: whole under their names, or not at all."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast
from urllib.parse import quote, unquote, unquote_to_bytes
from weakref import WeakValueDictionary

import tenacity
from attrs import evolve

from xai_tasks._errors import (
    ClientClosedError,
    DownloadError,
    DownloadExpiredError,
    XaiTasksError,
    printable,
)
from xai_tasks._http.file_transport import FileResponse, FileTransport, TransferError, shown
from xai_tasks._limits.retrying import RetryBudget
from xai_tasks._models import Outcome, TaskResult
from xai_tasks._policies import RetryPolicy

try:
    import fcntl
except ImportError:  # pragma: no cover -- Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("xai_tasks")

T = TypeVar("T")

_AT_ONCE = 8
"""Files that a client fetches at once."""
_BATCH = 2**20
"""Bytes that a thread writes at once: fewer would cost more in handing over than in writing."""
_MAX_UNWRITTEN = 0.5
"""Seconds after which data is written though it is less: what a killed process can lose."""
_MAX_VECTOR = 1024
"""Chunks that one call writes at most: Linux's and macOS's own limit."""
_EXPIRED = frozenset({403, 404, 410})
"""What storage services answer to a URL whose time is over, and for a moment to one too new."""

_MAX_STEM = 220
"""Characters of a file's name, endings apart; with them a name has at most the usual 255."""

_EXTENSIONS = {
    "application/gzip": "gz",
    "application/json": "json",
    "application/pdf": "pdf",
    "application/vnd.apple.mpegurl": "m3u8",
    "application/xml": "xml",
    "application/zip": "zip",
    "audio/mp4": "m4a",
    "audio/mpeg": "mp3",
    "audio/vnd.wave": "wav",
    "audio/wave": "wav",
    "image/jpeg": "jpg",
    "image/svg+xml": "svg",
    "image/vnd.microsoft.icon": "ico",
    "model/gltf+json": "gltf",
    "model/gltf-binary": "glb",
    "text/csv": "csv",
    "text/html": "html",
    "text/plain": "txt",
    "text/vtt": "vtt",
    "video/3gpp": "3gp",
    "video/mp2t": "ts",
    "video/quicktime": "mov",
    "video/x-matroska": "mkv",
    "video/x-msvideo": "avi",
}
"""A table of our own: the one of `mimetypes` differs from machine to machine."""
_MEDIA = re.compile(r"(?:audio|image|video)/(?:x-)?([a-z0-9]{1,8})", re.ASCII)
"""Other media types are extensions themselves: `video/webm`."""
_EXTENSION = re.compile(r"[a-z0-9]{1,8}", re.ASCII)
_STRONG = re.compile(r'"[\x21\x23-\x7E]*"', re.ASCII)
"""A validator that promises the same bytes, not only the same meaning."""
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_USUAL = ("mp4", "png", "jpg", "webp", "webm", "mov", "gif", "avif", "mp3", "wav")
"""Tried for a file whose URL has no extension."""


def file_stem(task_id: str, number: int | None) -> str:
    """Return the name of a task's file up to its extension; `number` counts if it has several.

    Different ids have different stems. One that would be too long for a file system is cut, and
    ends in a hash of the whole.
    """
    stem = quote(task_id, safe="", errors="surrogatepass").replace("~", "%7E")
    if stem[:1] in {".", "-"}:
        stem = f"%{ord(stem[0]):X}{stem[1:]}"
    if len(stem) > _MAX_STEM:
        stem = f"{stem[:180]}~{sha256(stem.encode()).hexdigest()[:32]}"
    return stem if number is None else f"{stem}~{number}"


def extension_of_type(content_type: str) -> str | None:
    """Return the extension that a `Content-Type` stands for, without its dot."""
    essence = content_type.partition(";")[0].strip().lower()
    match = _MEDIA.fullmatch(essence)
    return _EXTENSIONS.get(essence) or (match and _valid(match[1])) or None


def extension_of_url(url: str) -> str | None:
    """Return the extension of a URL's path, without its dot."""
    path = re.split(r"[?#]", url, maxsplit=1)[0].partition("://")[2].partition("/")[2]
    return _valid(PurePosixPath(unquote(path)).suffix[1:].lower())


def _valid(extension: str) -> str | None:
    """Return the extension if a file may have it: `part` is for what is not a whole file."""
    return extension if _EXTENSION.fullmatch(extension) and extension != "part" else None


class _Part:
    """One file on its way to the disk: its methods block, and run in threads, one at a time.

    The data is in `<name>.part`. Beside it, `<stem>~resume` holds what another process needs to
    continue: where it comes from, and the validator that the server gave.
    """

    def __init__(self, directory: Path, stem: str, source: str, max_bytes: int) -> None:
        self._directory = directory
        self._stem = stem
        self._source = source
        self._max_bytes = max_bytes
        self._resume = directory / f"{stem}~resume"
        self._name: str | None = None
        self._fd: int | None = None
        self._inflate: _Inflate | None = None
        self.size: int = 0
        """Bytes on the disk."""
        self.etag: str | None = None
        """The validator by which the server continues a file, if it does."""
        self.total: int | None = None
        """The size of the whole file, where it is known."""

    def find(self, extensions: Iterable[str]) -> Path | None:
        """Return the file if it is there whole already, under one of these extensions."""
        for extension in extensions:
            path = self._directory / f"{self._stem}.{extension}"
            if path.is_dir():
                raise TransferError(f"{path} is a directory; move it away")
            if path.is_file():
                return path
        return None

    def load(self) -> None:
        """Load what an earlier attempt left, also that of another process."""
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            left = json.loads(self._resume.read_bytes())
            name, etag, total = left["name"], left["etag"], left["total"]
            extension = name.removeprefix(f"{self._stem}.")
            if not (_EXTENSION.fullmatch(extension) and _STRONG.fullmatch(etag)):
                return
            if left["source"] != self._source or not isinstance(total, int | None):
                return
            if not (self._directory / f"{name}.part").is_file():
                return
        except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
            return
        self._open(name)
        self.size, self.etag, self.total = os.fstat(self._descriptor).st_size, etag, total

    def begin(self, extension: str, etag: str | None, total: int | None, coding: str) -> None:
        """Begin the file again, from its first byte.

        Args:
            extension: its extension.
            etag: the validator by which it can be continued; None if it can't.
            total: its size, if known.
            coding: how it is encoded on the way; empty: not at all.

        """
        name = f"{self._stem}.{extension}"
        self.restart()
        if name != self._name or self._fd is None:
            self.close()
            self._open(name)
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._inflate = _Inflate() if coding else None
        if etag is not None and not coding:
            self.etag, self.total = etag, total
            state = {"source": self._source, "name": name, "etag": etag, "total": total}
            self._resume.write_text(json.dumps(state))

    def restart(self) -> None:
        """Drop what is there: the server does not continue it, or it is too large."""
        self._resume.unlink(missing_ok=True)
        self.size, self.etag, self.total = 0, None, None

    def write(self, chunks: Sequence[bytes]) -> None:
        """Write data as it was sent."""
        if self._inflate is None:
            self._put(chunks)
        else:
            for chunk in chunks:
                for data in self._inflate.feed(chunk):
                    self._put((data,))

    def finish(self) -> Path:
        """Put the file under its name, now that all of it is there."""
        if self._inflate is not None:
            self._put((self._inflate.end(),))
        path = self._directory / str(self._name)
        os.fsync(self._descriptor)
        if fcntl is None:  # pragma: no cover -- Windows can't rename an open file
            self._close()
        (self._directory / f"{self._name}.part").replace(path)
        self._resume.unlink(missing_ok=True)
        self._close()
        return path

    def close(self) -> None:
        """Close the part. It stays only if it can be continued."""
        if self._fd is not None:
            try:
                if self.etag is None:
                    (self._directory / f"{self._name}.part").unlink(missing_ok=True)
            finally:
                self._close()

    def discard(self) -> None:
        """Close and remove the part, as far as the disk lets us."""
        self.etag = None
        with suppress(OSError):
            self.close()
        with suppress(OSError):
            self._resume.unlink(missing_ok=True)

    @property
    def _descriptor(self) -> int:
        return cast("int", self._fd)  # between `_open` and `_close`

    def _close(self) -> None:
        fd, self._fd = self._descriptor, None
        os.close(fd)

    def _open(self, name: str) -> None:
        """Open `<name>.part` for this process alone."""
        path = self._directory / f"{name}.part"
        flags = os.O_RDWR | os.O_CREAT
        for flag in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"):
            flags |= getattr(os, flag, 0)
        self._fd, self._name = os.open(path, flags, 0o666), name
        if fcntl is None:  # pragma: no cover -- Windows
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            ours = False
        except OSError:  # a file system without locks
            ours = True
        else:  # unless the process that had the lock has given the part its final name
            ours = path.exists() and os.path.samestat(os.fstat(self._descriptor), path.stat())
        if not ours:
            self._close()
            raise TransferError(f"another process is downloading it to {path}")
        os.lseek(self._descriptor, 0, os.SEEK_END)

    def _put(self, chunks: Sequence[bytes]) -> None:
        self.size += sum(map(len, chunks))
        if self.size > self._max_bytes:
            self.restart()  # so that the part is not kept
            raise _too_large(self._max_bytes)
        _write_all(self._descriptor, chunks)


def _write_all(fd: int, chunks: Sequence[bytes]) -> None:
    """Write chunks with few calls, as after each one this thread has to wait for the GIL."""
    rest = [memoryview(chunk) for chunk in reversed(chunks) if chunk]
    while rest:
        if hasattr(os, "writev"):
            written = os.writev(fd, rest[: -_MAX_VECTOR - 1 : -1])
        else:  # pragma: no cover -- Windows
            written = os.write(fd, rest[-1])
        while written:
            first = rest.pop()
            if written < len(first):
                rest.append(first[written:])
            written -= min(written, len(first))


class _Inflate:
    """Decodes gzip and zlib a little at a time, so that a small input can't fill the memory."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            while data:
                if self._decoder.eof:  # another member
                    self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)
                yield self._decoder.decompress(data, _BATCH)
                data = self._decoder.unconsumed_tail or self._decoder.unused_data
        except zlib.error:
            raise TransferError("its gzip encoding is broken", transient=True) from None

    def end(self) -> bytes:
        rest = self._decoder.flush()
        if not self._decoder.eof:
            raise TransferError("its gzip encoding is cut off", transient=True)
        return rest


def _too_large(max_bytes: int) -> TransferError:
    return TransferError(f"the file is larger than {max_bytes} bytes: raise max_download_bytes")


def _data_url(url: str) -> tuple[str, bytes]:
    """Return the extension and the bytes of a `data:` URL."""
    head, _, text = url[len("data:") :].partition(",")
    media_type, *parameters = head.split(";")
    data = unquote_to_bytes(text)
    if parameters and parameters[-1].strip().lower() == "base64":
        try:
            data = base64.b64decode(
                data.rstrip(b"=") + b"=" * (-len(data.rstrip(b"=")) % 4), validate=True
            )
        except ValueError:
            raise TransferError("its base64 is malformed") from None
    return extension_of_type(media_type) or "bin", data


class Downloader:
    """Saves the files of tasks, a few at once, for one client.

    Args:
        make_transport: builds what fetches them, given an executor for what blocks.
        policy: how a request is retried.
        max_bytes: the largest file taken.

    """

    __slots__ = (
        "_budget",
        "_closed",
        "_executor",
        "_jobs",
        "_locks",
        "_make_transport",
        "_max_bytes",
        "_policy",
        "_slots",
        "_transport",
    )

    def __init__(
        self,
        make_transport: Callable[[Executor], FileTransport],
        policy: RetryPolicy,
        max_bytes: int,
    ) -> None:
        self._make_transport = make_transport
        self._policy = policy
        self._max_bytes = max_bytes
        # Its own: what a storage service does must not keep polls from being retried.
        self._budget = RetryBudget(policy.budget)
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._jobs: set[asyncio.Task[None]] = set()
        self._executor: ThreadPoolExecutor | None = None
        self._transport: FileTransport | None = None
        self._closed = False

    async def save(
        self, task: TaskResult, task_id: str, directory: Path
    ) -> tuple[tuple[Path, ...], XaiTasksError | None]:
        """Save the files that a task's result points to.

        Args:
            task: the task.
            task_id: the id that it was asked for by; files are named after it.
            directory: where to put them; made if missing.

        Returns:
            the files saved, in the order of `task.urls`, and the first error, if any.

        Raises:
            OSError: the disk is full, or the directory can't be written.

        """
        urls = task.urls
        saved: list[Path | XaiTasksError | None] = [None] * len(urls)
        numbered = iter(enumerate(urls))

        async def work() -> None:
            for index, url in numbered:
                stem = file_stem(task_id, index + 1 if len(urls) > 1 else None)
                try:
                    saved[index] = await self._save_one(url, task_id, directory, stem)
                except XaiTasksError as error:
                    saved[index] = error.with_traceback(None)

        self._check_open()
        loop = asyncio.get_running_loop()
        jobs = [loop.create_task(work()) for _ in range(min(_AT_ONCE, len(urls)))]
        for job in jobs:
            self._jobs.add(job)
            job.add_done_callback(self._ended)
        try:
            if jobs:
                await asyncio.wait(jobs, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # Also those that wait for a thread to end its write, however often we are cancelled.
            await _cancel(jobs)
        for job in jobs:
            if not job.cancelled() and (failure := job.exception()) is not None:
                try:
                    raise failure
                finally:
                    del failure, job, jobs  # break the reference cycles of exception and frame
        if None in saved:  # a job was cancelled
            self._check_open()
            raise asyncio.CancelledError("a strategy of the retry policy raised it")
        errors = [each for each in saved if isinstance(each, XaiTasksError)]
        files = tuple(each for each in saved if isinstance(each, Path))
        return files, (errors[0] if errors else None)

    async def complete(self, directory: Path, outcome: Outcome) -> Outcome:
        """Save the files of a completed task; return its outcome with them.

        Raises:
            OSError: as in `save`.

        """
        task = cast("TaskResult", outcome.task)
        try:
            files, error = await self.save(task, outcome.task_id, directory)
        except ClientClosedError as closed:
            return evolve(outcome, error=closed.with_traceback(None))
        return evolve(outcome, files=files, error=error)

    async def close(self) -> None:
        """End what is under way, with `ClientClosedError`, and close the session."""
        self._closed = True
        try:
            await _cancel(self._jobs)
        finally:
            self._shut_down()
            if self._transport is not None:
                await self._transport.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosedError("the client was closed before the files were saved")

    def _ended(self, job: asyncio.Task[None]) -> None:
        self._jobs.discard(job)
        if not job.cancelled():
            job.exception()  # raised by `save`, unless another was first
        if self._closed:
            self._shut_down()

    def _shut_down(self) -> None:
        if self._executor is not None and not self._jobs:
            self._executor.shutdown(wait=False)

    def _ready(self) -> tuple[ThreadPoolExecutor, FileTransport]:
        if self._executor is None or self._transport is None:
            # Threads of our own: a slow disk must not keep the loop's from looking up names.
            self._executor = ThreadPoolExecutor(2 * _AT_ONCE, "xai-tasks-download")
            _keep_freed_memory()
            self._transport = self._make_transport(self._executor)
        return self._executor, self._transport

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread; if cancelled, wait for the thread all the same."""
        executor, _ = self._ready()
        call = asyncio.get_running_loop().run_in_executor(executor, function, *args)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            await _settle([call])
            call.exception()  # whatever it was, nobody waits for it
            raise

    async def _save_one(self, url: str, task_id: str, directory: Path, stem: str) -> Path:
        source = shown(url)
        part = _Part(directory, stem, source, self._max_bytes)
        # The same task may be asked for twice: the second time its file is there.
        lock = self._locks.setdefault(str(directory / stem), asyncio.Lock())
        try:
            async with lock, self._slots:
                try:
                    extension = extension_of_url(url)
                    usual = _USUAL if extension is None else (extension,)
                    there = await self._in_thread(part.find, usual)
                    if there is not None:
                        return there
                    return await self._fetch(url, task_id, part)
                except OSError:
                    await self._in_thread(part.discard)
                    raise
                finally:
                    await self._in_thread(part.close)
        except TransferError as error:
            failure: Exception = _download_error(error, task_id, source)
            error.__traceback__ = None  # tenacity's frames hold it
        except OSError as error:
            failure = _with_advice(error, task_id, directory)
            error.__traceback__ = None
        try:
            raise failure
        finally:
            del failure  # break the reference cycle between exception and frame

    async def _fetch(self, url: str, task_id: str, part: _Part) -> Path:
        await self._in_thread(part.load)
        if url[:5].lower() == "data:":
            return await self._in_thread(_save_data, url, part)
        if part.total is not None and part.size == part.total:
            return await self._in_thread(part.finish)  # the process ended just before this
        retrying = tenacity.AsyncRetrying(
            sleep=asyncio.sleep,
            stop=self._policy.stop,
            wait=self._delay,
            retry=tenacity.retry_if_exception(self._is_retried),
            before_sleep=partial(self._before_retry, task_id),
            reraise=True,
        )
        path: Path = await retrying(self._attempt, url, part)
        self._budget.succeeded()
        return path

    async def _attempt(self, url: str, part: _Part) -> Path:
        """Make one request, and write what it brings."""
        _, transport = self._ready()
        headers: dict[str, str] = {}
        if part.size and part.etag is not None:
            headers = {"Range": f"bytes={part.size}-", "If-Range": part.etag}
        response = await transport.get(url, headers)
        try:
            size = _continued(response, part) if headers else None
            if size is None and headers and response.status in {206, 412, 416}:
                await self._in_thread(part.restart)
                raise TransferError(
                    "the file has changed since its first part arrived", transient=True
                )
            if size is None:
                if response.status != 200:
                    raise self._refusal(response)
                etag, size, coding = _facts(response)
                if (size or 0) > self._max_bytes:
                    raise _too_large(self._max_bytes)
                content_type = response.headers.get("Content-Type", "")
                extension = extension_of_type(content_type) or extension_of_url(url) or "bin"
                if (there := await self._in_thread(part.find, (extension,))) is not None:
                    return there
                await self._in_thread(part.begin, extension, etag, size, coding)
                if coding:
                    size = None  # of what is sent, which the HTTP library checks
            await self._receive(response, part)
        finally:
            response.close()
        if size is not None and part.size != size:
            came = part.size
            await self._in_thread(part.restart)
            raise TransferError(f"{came} bytes came, not {size}", transient=True)
        return await self._in_thread(part.finish)

    async def _receive(self, response: FileResponse, part: _Part) -> None:
        """Write the body in batches, each while the next one is read."""
        loop = asyncio.get_running_loop()
        failure: TransferError | None = None
        writing: asyncio.Future[None] = loop.create_future()
        writing.set_result(None)
        try:
            ended = False
            while not ended:
                batch: list[bytes] = []
                try:
                    ended = await _read_batch(response, batch)
                except TransferError as error:
                    failure, ended = error, True  # the next attempt continues behind what came
                await asyncio.shield(writing)
                writing = loop.create_task(self._in_thread(part.write, batch))
                del batch  # its memory is used for the next one
            await asyncio.shield(writing)
        finally:
            await _settle([writing])  # a part has one thread at a time
            writing.exception()  # raised above, unless something else was
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # break the reference cycle between exception and frame

    def _refusal(self, response: FileResponse) -> TransferError:
        status = response.status
        return TransferError(
            f"HTTP {status}",
            transient=status in self._policy.statuses or status in _EXPIRED,
            status_code=status,
            retry_after=response.retry_after,
        )

    def _is_retried(self, error: BaseException) -> bool:
        return (
            isinstance(error, TransferError)
            and error.transient
            and self._budget.allows_retry
            and (error.retry_after or 0.0) <= self._policy.max_retry_after
        )

    def _delay(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome and state.outcome.exception()
        if isinstance(error, TransferError) and error.retry_after is not None:
            return error.retry_after
        delay = self._policy.wait(state)
        if not math.isfinite(delay):
            raise ValueError(f"the wait strategy of the retry policy gave {float(delay)} seconds")
        return max(0.0, delay)

    def _before_retry(self, task_id: str, state: tenacity.RetryCallState) -> None:
        self._budget.take()
        error = state.outcome and state.outcome.exception()
        seconds = state.next_action.sleep if state.next_action else 0.0
        logger.info(
            "downloading a file of task %r again in %.3g s: %s",
            printable(task_id),
            seconds,
            error,
            extra={"task_id": task_id, "attempt": state.attempt_number, "seconds": seconds},
        )


async def _read_batch(response: FileResponse, batch: list[bytes]) -> bool:
    """Add to `batch` until it is full or old; return whether this was the end of the body."""
    loop = asyncio.get_running_loop()
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as limit:
            while size < _BATCH:
                chunk = await response.read()
                if not chunk:
                    return True
                if not batch:
                    limit.reschedule(loop.time() + _MAX_UNWRITTEN)
                batch.append(chunk)
                size += len(chunk)
    return False


def _keep_freed_memory() -> None:
    """Make the C library keep the memory of chunks that were written, for those that come.

    glibc returns what is free beyond twice the largest block freed so far, and the kernel then
    clears each page again: a third of a download's CPU. Such a block costs nothing, as nothing is
    written to it.
    """
    bytes(_AT_ONCE * _BATCH)


def _save_data(url: str, part: _Part) -> Path:
    extension, data = _data_url(url)
    there = part.find((extension,))
    if there is None:
        part.begin(extension, None, None, "")
        part.write((data,))
        there = part.finish()
    return there


def _continued(response: FileResponse, part: _Part) -> int | None:
    """Return the size of the whole file if a 206 is the rest of it; None if it is anything else."""
    etag = response.headers.get("ETag")
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    coding = response.headers.get("Content-Encoding", "identity")
    if response.status != 206 or match is None or coding != "identity":
        return None
    first, size = int(match[1]), int(match[2]) + 1
    same = etag in {None, part.etag} and part.total in {None, size}
    return size if same and first == part.size and match[3] in {"*", str(size)} else None


def _facts(response: FileResponse) -> tuple[str | None, int | None, str]:
    """Return what a 200 says of a file: its strong validator, its size, its encoding.

    Raises:
        TransferError: the encoding is none that was asked for.

    """
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if coding == "identity":
        coding = ""
    if coding not in {"", "gzip", "x-gzip", "deflate"}:
        raise TransferError(f"it is encoded as {printable(coding, 50)}, which was not asked for")
    etag = response.headers.get("ETag", "")
    return (
        etag if _STRONG.fullmatch(etag) else None,
        _number(response.headers.get("Content-Length")),
        coding,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else None


def _download_error(error: TransferError, task_id: str, source: str) -> DownloadError:
    if error.status_code in _EXPIRED:
        return DownloadExpiredError(
            f"{error}; the URL may have expired: get the task again, and download what it then "
            "points to",
            task_id=task_id,
            url=source,
            status_code=error.status_code,
        )
    return DownloadError(str(error), task_id=task_id, url=source, status_code=error.status_code)


def _with_advice(error: OSError, task_id: str, directory: Path) -> OSError:
    """Return an error of the disk that says what was not saved, and what to do."""
    text = (
        f"{error.strerror}; the files of task {printable(task_id)!r} were not saved: free space or "
        "choose another directory, and download them again"
    )
    return OSError(error.errno, text, error.filename or str(directory))


async def _settle(futures: Iterable[asyncio.Future[Any]]) -> bool:
    """Wait for all to be done, through any cancellation; return whether there was one."""
    cancelled = False
    while rest := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(rest)
        except asyncio.CancelledError:
            cancelled = True
    return cancelled


async def _cancel(jobs: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end, through any cancellation, which is raised after it."""
    jobs = [job for job in jobs if not job.done()]
    for job in jobs:
        job.cancel()
    if await _settle(jobs):
        raise asyncio.CancelledError
