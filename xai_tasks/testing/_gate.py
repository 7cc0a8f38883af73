"""Who is let in: path, method, key and rate, in this order."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import parse_qsl

from aiohttp import web

from xai_tasks.testing._http import Reply, refusal

_PATH = "/xai/tasks"
_PLAIN = f"{_PATH}?taskId="


class TokenBucket:
    """Lets `burst` requests in at once, and `rate` a second over time.

    Args:
        rate: tokens that come back, a second.
        burst: tokens that fit in; it starts full.
        now: the clock, in seconds.
        retry_after: the `Retry-After` of those it turns away; None: they get none.

    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens", "retry_after")

    def __init__(self, rate: float, burst: int, now: float, retry_after: str | None) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = now
        self.retry_after = retry_after

    def take(self, now: float) -> bool:
        """Take a token at `now`, or say that there is none."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Gate:
    """Turns requests away before any task is looked at.

    Args:
        api_key: the bearer key, or keys, that it takes; None: requests need none.

    """

    __slots__ = ("api_key", "bucket")

    def __init__(self, api_key: str | Collection[str] | None) -> None:
        self.api_key = api_key
        self.bucket: TokenBucket | None = None

    def refuse(self, request: web.BaseRequest, task_id: str | None, now: float) -> Reply | None:
        """Give the answer to a request that is turned away, None to one that may pass."""
        if request.raw_path.partition("?")[0] != _PATH:
            return refusal(404, f"Cannot {request.method} {request.raw_path}")
        if request.method != "GET":
            return refusal(405, f"Cannot {request.method} {_PATH}", [("Allow", "GET")])
        if not self._knows(request):
            return refusal(401, "Unauthorized", [("WWW-Authenticate", "Bearer")])
        bucket = self.bucket
        if bucket is not None and not bucket.take(now):
            when = [] if bucket.retry_after is None else [("Retry-After", bucket.retry_after)]
            return refusal(429, "Too many requests", when, task_id)
        return None

    def _knows(self, request: web.BaseRequest) -> bool:
        if self.api_key is None:
            return True
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        keys = (self.api_key,) if isinstance(self.api_key, str) else self.api_key
        return scheme.lower() == "bearer" and key in keys


def asked_for(target: str) -> str | None:
    """Give the taskId of a request target, None if it has none."""
    task_id = target.removeprefix(_PLAIN)
    # Nearly all ids need no decoding, and this is what a benchmark's requests go through.
    if task_id is not target and task_id.replace("-", "").isalnum() and task_id.isascii():
        return task_id
    pairs = parse_qsl(target.partition("?")[2], keep_blank_values=True)
    return next((value for name, value in pairs if name == "taskId"), None)
