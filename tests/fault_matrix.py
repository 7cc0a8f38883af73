"""Every fault that `TaskServer` knows, and what the client is to make of it.

Plain data: `test_fault_matrix.py` tests each row, `docs/scripts/fault_table.py` makes the table in
`docs/reliability.md` of them.
"""

from __future__ import annotations

from attrs import frozen
from tenacity import wait_fixed

from xai_tasks import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    PaymentRequiredError,
    PermissionDeniedError,
    PollPolicy,
    RateLimitError,
    ServerError,
)
from xai_tasks.testing import Fault, odd_answers

ATTEMPTS = 4
"""Requests of one poll at most: `RetryPolicy.stop` as it is by default."""
REQUEST_TIMEOUT = 5.0
MAX_BYTES = 2**20
INTERVAL = 5.0
MAX_OUTAGE = 60.0
POLL = PollPolicy(wait=wait_fixed(INTERVAL), max_outage=MAX_OUTAGE, timeout=None)
TIMEOUT = 120.0
"""Seconds for waits that nothing but their timeout ends."""
GRACE = POLL.not_found_grace
MAX_RETRY_AFTER = 60.0
"""`RetryPolicy.max_retry_after` as it is by default."""


@frozen
class Row:
    """One fault."""

    what: str
    """What the server does, as the documentation says it."""
    faults: tuple[Fault, ...]
    """What the requests for the task meet, one each."""
    error: type[APIError] | None
    """What the client makes of it; None: a good answer."""
    retried: bool = True
    """Whether `get` asks again at once."""
    outlived: bool = True
    """Whether a wait goes on after one."""
    resent: bool = False
    """Whether aiohttp sends each GET twice: a connection is lost before an answer."""
    pause: float = 0.0
    """Seconds for which the server pauses the client."""
    seconds: float = MAX_OUTAGE
    """Seconds for which a wait goes on that meets nothing else; `TIMEOUT`: until its timeout."""

    @property
    def wire(self) -> int:
        """Requests that the server sees of one attempt, at most."""
        return 2 if self.resent else 1

    @property
    def most_of_get(self) -> int:
        """Requests that the server sees of one `get` that meets nothing but this, at most."""
        return self.wire * (ATTEMPTS if self.error and self.retried else 1)

    @property
    def most_of_wait(self) -> int:
        """Requests that the server sees of one wait that meets nothing but this, at most."""
        if self.error is None or not self.outlived:
            return len(self.faults)
        polls = 2 + int(self.seconds / INTERVAL)
        return self.wire * (ATTEMPTS if self.retried else 1) * polls


def _final(what: str, fault: Fault, error: type[APIError]) -> Row:
    return Row(what, (fault,), error, retried=False, outlived=False)


def _transient(
    what: str,
    fault: Fault,
    error: type[APIError],
    *,
    retried: bool = True,
    resent: bool = False,
    pause: float = 0.0,
    seconds: float = MAX_OUTAGE,
) -> Row:
    return Row(what, (fault,), error, retried=retried, resent=resent, pause=pause, seconds=seconds)


def _taken(what: str, *faults: Fault) -> Row:
    return Row(what, faults, None)


_HTML = b"<html><head><title>502 Bad Gateway</title></head></html>"
_ODD = odd_answers("a")


def _says(status: str) -> Fault:
    return Fault.body(b'{"taskId": "a", "status": "%s"}' % status.encode())


STATUSES = (
    _final("400", Fault.status(400, body=b'{"message": "no such parameter"}'), BadRequestError),
    _final("401, and the key is a string", Fault.status(401), AuthenticationError),
    _final("402", Fault.status(402), PaymentRequiredError),
    _final("403", Fault.status(403), PermissionDeniedError),
    _transient(
        "403 with a page that is not JSON",
        Fault.status(403, {"Content-Type": "text/html"}, _HTML),
        PermissionDeniedError,
    ),
    _transient(
        "404",
        Fault.status(404, body=b'{"detail": ["no such task"]}'),
        NotFoundError,
        retried=False,
        seconds=GRACE,
    ),
    _transient(
        "404 with a page that is not JSON",
        Fault.status(404, {"Content-Type": "text/plain"}, b"404 page not found\n"),
        NotFoundError,
    ),
    _transient("408", Fault.status(408), APIStatusError),
    _final("422", Fault.status(422), BadRequestError),
    _transient("429", Fault.status(429), RateLimitError, seconds=TIMEOUT),
    _transient(
        "429 with `Retry-After: 1`",
        Fault.status(429, {"Retry-After": "1"}),
        RateLimitError,
        pause=1.0,
        seconds=TIMEOUT,
    ),
    _transient(
        "429 with `Retry-After: 3600`: longer than `max_retry_after`",
        Fault.status(429, {"Retry-After": "3600"}),
        RateLimitError,
        retried=False,
        pause=3600.0,
        seconds=TIMEOUT,
    ),
    _final("any other 4xx", Fault.status(418), APIStatusError),
    _transient("500", Fault.status(500), ServerError),
    _transient("501, 505 and other 5xx", Fault.status(501), ServerError, retried=False),
    _transient(
        "502 with a page of HTML",
        Fault.status(502, {"Content-Type": "text/html"}, _HTML),
        ServerError,
    ),
    _transient("503", Fault.status(503), ServerError),
    _transient(
        "503 with `Retry-After: 1`", Fault.status(503, {"Retry-After": "1"}), ServerError, pause=1.0
    ),
    _transient("504", Fault.status(504), ServerError),
    _final("a redirect to the same origin", Fault.redirect("/xai/tasks?taskId=a"), APIStatusError),
    _final(
        "a redirect to another origin",
        Fault.redirect("https://other.invalid/", 307),
        APIStatusError,
    ),
    _final(
        "a redirect to plain http", Fault.redirect("http://other.invalid/", 308), APIStatusError
    ),
)

CONNECTION = (
    _transient("a reset in place of an answer", Fault.reset(), APIConnectionError, resent=True),
    _transient(
        "a reset inside the headers", Fault.reset("headers"), APIConnectionError, resent=True
    ),
    _transient("a reset inside the body", Fault.reset("body"), APIConnectionError),
    _transient("a body shorter than its `Content-Length`", Fault.truncate(), APIConnectionError),
    _transient("malformed chunks", Fault.bad_chunking(), APIConnectionError),
    _transient("no byte of an answer", Fault.stall(), APITimeoutError),
    _transient("a byte a second", Fault.drip(1.0), APITimeoutError),
    _transient("bytes that are not HTTP", Fault.garbage(), APIConnectionError),
    _transient("headers of 64 KiB", Fault.oversized_headers(), APIConnectionError),
    _taken("a kept-alive connection closed after an answer", Fault.close_after()),
)

ANSWERS = (
    _transient("200 with a page of HTML", _ODD["html"], APIResponseValidationError),
    _transient("200 with an empty body", _ODD["empty"], APIResponseValidationError),
    _transient("204", Fault.status(204), APIResponseValidationError),
    _transient("`null`", _ODD["null"], APIResponseValidationError),
    _transient("JSON cut short", _ODD["cut short"], APIResponseValidationError),
    _transient("no `status`", _ODD["no status"], APIResponseValidationError),
    _transient("bytes that are not UTF-8", _ODD["not UTF-8"], APIResponseValidationError),
    _transient("UTF-16", _ODD["UTF-16"], APIResponseValidationError),
    _transient("`NaN`", _ODD["NaN"], APIResponseValidationError),
    _transient("an integer of 5,000 digits", _ODD["huge integer"], APIResponseValidationError),
    _transient("100,000 nested brackets", _ODD["deep nesting"], APIResponseValidationError),
    _final("gzip that expands to 64 MiB", Fault.gzip_bomb(64 * 2**20), APIResponseValidationError),
    _final("an endless body", Fault.endless(), APIResponseValidationError),
    _taken("a byte order mark before the JSON", _ODD["BOM"]),
    _taken("JSON labelled as text", _ODD["wrong content type"]),
    _taken("no `Content-Type`", _ODD["no content type"]),
    _taken("another `taskId` than asked for, on a new connection; logged once", _ODD["wrong id"]),
    _taken("a status that goes back", _says("processing"), _says("pending"), _says("completed")),
)

ROWS = (*STATUSES, *CONNECTION, *ANSWERS)
