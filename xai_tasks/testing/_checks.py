"""Request checks: path, method, key and rate limit, in this order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from urllib.parse import parse_qsl

from aiohttp import web

from xai_tasks.testing._http import Reply, refusal

TASKS = "/xai/tasks"
_PLAIN = f"{TASKS}?taskId="


class TokenBucket:
    """A rate limit: `burst` requests at once, and `rate` per second over time.

    Args:
        rate: tokens added per second.
        burst: the capacity, in tokens; the bucket starts full.
        now: the clock, in seconds.
        retry_after: the `Retry-After` of the refusals; None: they have none.

    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens", "retry_after")

    def __init__(self, rate: float, burst: int, now: float, retry_after: str | None) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = now
        self.retry_after = retry_after

    def take(self, now: float) -> bool:
        """Take a token at `now`; return whether there was one."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class RequestChecks:
    """Refuse requests before any task is looked up.

    Each route has its own rate limit, as in NestJS: submissions take nothing from polls.

    Args:
        api_key: the bearer key, or keys, accepted; None: requests need none.
        methods: the method of each route, by its path.

    """

    __slots__ = ("_buckets", "_methods", "api_key")

    def __init__(self, api_key: str | Collection[str] | None, methods: Mapping[str, str]) -> None:
        self.api_key = api_key
        self._methods = methods
        self._buckets: dict[str, TokenBucket] = {}

    def limit(self, bucket: Callable[[], TokenBucket] | None) -> None:
        """Limit each route by a bucket of its own; None: no limit."""
        self._buckets = {} if bucket is None else {path: bucket() for path in self._methods}

    def refuse(
        self, request: web.BaseRequest, path: str, task_id: str | None, now: float
    ) -> Reply | None:
        """Return the answer to a request that is refused, None for one that is accepted."""
        method = self._methods.get(path)
        if method is None:
            return refusal(404, f"Cannot {request.method} {request.raw_path}")
        if request.method != method:
            return refusal(405, f"Cannot {request.method} {path}", [("Allow", method)])
        if not self._has_key(request):
            return refusal(401, "Unauthorized", [("WWW-Authenticate", "Bearer")])
        bucket = self._buckets.get(path)
        if bucket is not None and not bucket.take(now):
            when = [] if bucket.retry_after is None else [("Retry-After", bucket.retry_after)]
            return refusal(429, "Too many requests", when, task_id)
        return None

    def _has_key(self, request: web.BaseRequest) -> bool:
        if self.api_key is None:
            return True
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        keys = (self.api_key,) if isinstance(self.api_key, str) else self.api_key
        return scheme.lower() == "bearer" and key in keys


def requested_id(target: str) -> str | None:
    """Return the `taskId` of a request target, None if it has none."""
    task_id = target.removeprefix(_PLAIN)
    # Fast path, for benchmarks: nearly all ids need no decoding.
    if task_id is not target and task_id.replace("-", "").isalnum() and task_id.isascii():
        return task_id
    pairs = parse_qsl(target.partition("?")[2], keep_blank_values=True)
    return next((value for name, value in pairs if name == "taskId"), None)
