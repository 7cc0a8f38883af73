"""Request checks: path, method, key and rate limit, in this order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from urllib.parse import parse_qsl

from aiohttp import web

from xai_tasks.testing._http import Reply, refusal
from xai_tasks.testing._rate_limits import Headers, RateLimit

TASKS = "/xai/tasks"
_PLAIN = f"{TASKS}?taskId="


class RequestChecks:
    """Refuse requests before any task is looked up.

    Each route has its own rate limit, as in NestJS: submissions take nothing from polls.

    Args:
        api_key: the bearer key, or keys, accepted; None: requests need none.
        methods: the method of each route, by its path.

    """

    __slots__ = ("_limits", "_methods", "api_key")

    def __init__(self, api_key: str | Collection[str] | None, methods: Mapping[str, str]) -> None:
        self.api_key = api_key
        self._methods = methods
        self._limits: dict[str, RateLimit] = {}

    def limit(self, make: Callable[[], RateLimit] | None) -> None:
        """Limit each route by a limit of its own; None: no limit."""
        self._limits = {} if make is None else {path: make() for path in self._methods}

    def refuse(
        self, request: web.BaseRequest, path: str, task_id: str | None, now: float
    ) -> Reply | Headers:
        """Return the answer to a request that is refused; for others, headers for their answer."""
        method = self._methods.get(path)
        if method is None:
            return refusal(404, f"Cannot {request.method} {request.raw_path}")
        if request.method != method:
            return refusal(405, f"Cannot {request.method} {path}", [("Allow", method)])
        if not self._has_key(request):
            return refusal(401, "Unauthorized", [("WWW-Authenticate", "Bearer")])
        limit = self._limits.get(path)
        if limit is None:
            return []
        accepted, headers = limit.take(now)
        return headers if accepted else limit.refuse(headers, task_id)

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
