"""Rate limits that `TaskServer` answers with, each as a server that people use."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

from xai_tasks.testing._http import Reply, refusal

LimitStyle = Literal["bucket", "nginx", "nestjs", "draft-6", "draft-7", "draft-8"]
"""How a limit answers; see `TaskServer.limit`."""

_NGINX_PAGE = (
    b"<html>\r\n<head><title>503 Service Temporarily Unavailable</title></head>\r\n<body>\r\n"
    b"<center><h1>503 Service Temporarily Unavailable</h1></center>\r\n<hr>"
    b"<center>nginx</center>\r\n</body>\r\n</html>\r\n"
)

Headers = list[tuple[str, str]]


class RateLimit(Protocol):
    """A limit on one route."""

    def take(self, now: float) -> tuple[bool, Headers]:
        """Count a request at `now`; return whether it is accepted, and headers for its answer."""
        ...  # pragma: no cover -- a protocol

    def refuse(self, headers: Headers, task_id: str | None) -> Reply:
        """Build the answer to a request over the limit."""
        ...  # pragma: no cover -- a protocol


class TokenBucket:
    """`burst` requests at once, and `rate` per second over time.

    Args:
        rate: tokens added per second.
        burst: the capacity, in tokens; the bucket starts full.
        now: the clock, in seconds.
        retry_after: the `Retry-After` of the refusals; None: they have none.

    """

    __slots__ = ("_at", "_burst", "_rate", "_retry_after", "_tokens")

    def __init__(self, rate: float, burst: int, now: float, retry_after: str | None) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = now
        self._retry_after = retry_after

    def take(self, now: float) -> tuple[bool, Headers]:
        """Take a token, if there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            said = self._retry_after
            return False, [] if said is None else [("Retry-After", said)]
        self._tokens -= 1
        return True, []

    def refuse(self, headers: Headers, task_id: str | None) -> Reply:
        """Answer 429."""
        return refusal(429, "Too many requests", headers, task_id)


class Nginx(TokenBucket):
    """nginx's `limit_req zone=... burst=<burst - 1> nodelay`: 503 and an HTML page."""

    __slots__ = ()

    def __init__(self, rate: float, burst: int, now: float) -> None:
        super().__init__(rate, burst, now, None)

    def refuse(self, headers: Headers, task_id: str | None) -> Reply:
        """Answer 503, without any hint."""
        return Reply(503, _NGINX_PAGE, (("Content-Type", "text/html"), *headers))


class Throttler:
    """@nestjs/throttler 6: `limit` requests in any `ttl` seconds, then blocked for as long."""

    __slots__ = ("_blocked_until", "_hits", "_limit", "_suffix", "_ttl", "_window_ends")

    def __init__(self, limit: int, ttl: float, name: str) -> None:
        self._limit = limit
        self._ttl = ttl
        self._suffix = f"-{name}" if name else ""
        self._hits: deque[float] = deque()
        self._blocked_until: float | None = None
        self._window_ends = -math.inf

    def take(self, now: float) -> tuple[bool, Headers]:
        """Count a request; the first over the limit blocks, and after that it counts from 0."""
        if self._blocked_until is not None:
            if now < self._blocked_until:
                return False, self._retry_after(now)
            self._blocked_until = None
            self._hits.clear()
        while self._hits and self._hits[0] <= now - self._ttl:
            self._hits.popleft()
        self._hits.append(now)
        if len(self._hits) > self._limit:
            self._blocked_until = now + self._ttl
            return False, self._retry_after(now)
        if now >= self._window_ends:
            self._window_ends = now + self._ttl
        return True, [
            (f"X-RateLimit-Limit{self._suffix}", str(self._limit)),
            (f"X-RateLimit-Remaining{self._suffix}", str(self._limit - len(self._hits))),
            (f"X-RateLimit-Reset{self._suffix}", str(math.ceil(self._window_ends - now))),
        ]

    def refuse(self, headers: Headers, task_id: str | None) -> Reply:
        """Answer 429 with the exception's words."""
        return refusal(429, "ThrottlerException: Too Many Requests", headers, task_id)

    def _retry_after(self, now: float) -> Headers:
        seconds = math.ceil((self._blocked_until or now) - now)
        return [(f"Retry-After{self._suffix}", str(seconds))]


class ExpressRateLimit:
    """express-rate-limit: `limit` requests in a window that begins with its first request."""

    __slots__ = ("_draft", "_hits", "_limit", "_resets_at", "_seconds")

    def __init__(self, limit: int, seconds: float, draft: str) -> None:
        self._limit = limit
        self._seconds = seconds
        self._draft = draft
        self._hits = 0
        self._resets_at = -math.inf

    def take(self, now: float) -> tuple[bool, Headers]:
        """Count a request."""
        if now >= self._resets_at:
            self._hits, self._resets_at = 0, now + self._seconds
        self._hits += 1
        reset = math.ceil(self._resets_at - now)
        headers = self._headers(max(0, self._limit - self._hits), reset)
        if self._hits <= self._limit:
            return True, headers
        return False, [*headers, ("Retry-After", str(reset))]

    def refuse(self, headers: Headers, task_id: str | None) -> Reply:
        """Answer 429 with a text."""
        text = b"Too many requests, please try again later."
        return Reply(429, text, (("Content-Type", "text/html; charset=utf-8"), *headers))

    def _headers(self, left: int, reset: int) -> Headers:
        limit, seconds = self._limit, math.ceil(self._seconds)
        if self._draft == "draft-6":
            return [
                ("RateLimit-Policy", f"{limit};w={seconds}"),
                ("RateLimit-Limit", str(limit)),
                ("RateLimit-Remaining", str(left)),
                ("RateLimit-Reset", str(reset)),
            ]
        if self._draft == "draft-7":
            return [
                ("RateLimit-Policy", f"{limit};w={seconds}"),
                ("RateLimit", f"limit={limit}, remaining={left}, reset={reset}"),
            ]
        name = f'"{limit}-in-{seconds}sec"'
        return [
            ("RateLimit-Policy", f"{name}; q={limit}; w={seconds}"),
            ("RateLimit", f"{name}; r={left}; t={reset}"),
        ]


def limit_factory(
    rate: float, burst: int, now: float, retry_after: str | None, style: str, name: str
) -> Callable[[], RateLimit]:
    """Return what makes a limit for one route.

    Raises:
        ValueError: there is no such style, or a name where it has none.

    """
    window = burst / rate
    makers: dict[str, Callable[[], RateLimit]] = {
        "bucket": lambda: TokenBucket(rate, burst, now, retry_after),
        "nginx": lambda: Nginx(rate, burst, now),
        "nestjs": lambda: Throttler(burst, window, name),
        **{
            draft: lambda draft=draft: ExpressRateLimit(burst, window, draft)  # type: ignore[misc]
            for draft in ("draft-6", "draft-7", "draft-8")
        },
    }
    if style not in makers:
        raise ValueError(f"style must be one of {', '.join(makers)}, not {style!r}")
    if name and style != "nestjs":
        raise ValueError(f"only the style 'nestjs' has a name, not {style!r}")
    return makers[style]
