"""The files that results point to: ranges, validators, and a small real file for every task."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Callable
from hashlib import sha256
from urllib.parse import quote, unquote

from aiohttp import web
from attrs import frozen

from xai_tasks.testing._http import Reply, refusal
from xai_tasks.testing._samples import sample_mp4, sample_png

FILES = "/files/"
"""Where all files are. They need no key, as files at a storage service need none."""

_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)

_SAMPLES: dict[str, tuple[Callable[[], bytes], str]] = {
    ".mp4": (sample_mp4, "video/mp4"),
    ".png": (sample_png, "image/png"),
}


@frozen
class _File:
    data: bytes
    content_type: str

    def reply(self, request: web.BaseRequest) -> Reply:
        """Answer a request for the file, or for a range of it."""
        size = len(self.data)
        etag = f'"{sha256(self.data).hexdigest()[:16]}"'
        headers = (("Content-Type", self.content_type), ("ETag", etag), ("Accept-Ranges", "bytes"))
        wanted = _RANGE.fullmatch(request.headers.get("Range", ""))
        if (
            wanted is None
            or wanted.group() == "bytes=-"
            or request.headers.get("If-Range", etag) != etag
        ):
            return Reply(200, self.data, headers)
        first, last = wanted.groups()
        start = int(first) if first else max(0, size - int(last))
        stop = min(size, int(last) + 1 if first and last else size)
        if start >= stop:
            return Reply(416, b"", (*headers, ("Content-Range", f"bytes */{size}")))
        what = ("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        return Reply(206, self.data[start:stop], (*headers, what))


class FileBook:
    """Finds files by path.

    Args:
        is_task: whether there is a task of an id, which then has a video and a picture.

    """

    __slots__ = ("_files", "_is_task")

    def __init__(self, is_task: Callable[[str], bool]) -> None:
        self._files: dict[str, _File] = {}
        self._is_task = is_task

    def add(self, path: str, data: bytes, content_type: str | None) -> str:
        """Add a file, replacing one of that path; return the path as it stands in a URL."""
        path = FILES + quote(path.removeprefix(FILES).lstrip("/"), safe="/%~")
        if content_type is None:
            content_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
        self._files[path] = _File(data, content_type)
        return path

    def reply(self, request: web.BaseRequest, path: str) -> Reply:
        """Answer a request for what is at `path`."""
        if request.method not in {"GET", "HEAD"}:
            return refusal(405, f"Cannot {request.method} {path}", [("Allow", "GET, HEAD")])
        file = self._files.get(path) or self._sample(path)
        return refusal(404, f"Cannot GET {path}") if file is None else file.reply(request)

    def clear(self) -> None:
        """Remove all files."""
        self._files.clear()

    def _sample(self, path: str) -> _File | None:
        sample = _SAMPLES.get(path[-4:])
        if sample is None or not self._is_task(unquote(path[len(FILES) : -4])):
            return None
        return _File(sample[0](), sample[1])
