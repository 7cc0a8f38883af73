"""A clock that jumps, a transport without sockets, and a few sources
and subscribers to test with.
"""

from __future__ import annotations

import asyncio
import gc
import json
import selectors
from collections import defaultdict, deque

from attrs import define

from xai_tasks import (
    APIConnectionError,
    APIResponseValidationError,
    ClientClosedError,
    NotFoundError,
    TaskClient,
    TaskStatus,
)
from xai_tasks._errors import status_error_class
from xai_tasks._http.transport import Accepted, Response
from xai_tasks._models import decode_task

ENDS = {status.value for status in TaskStatus} & {"completed", "failed", "cancelled", "timeout"}


class _JumpingSelector(selectors.DefaultSelector):
    now = 1000.0  # not 0: nothing may depend on where a clock begins
    _since = 0.0
    _turns = 0

    def select(self, timeout=None):
        self._turns += 1
        if self.now > self._since + 1e-3:
            self._since, self._turns = self.now, 0
        assert self._turns < 500_000, "the loop turns and turns, and time does not go on"
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if len(self.get_map()) > 1 and (ready := super().select(0.001)):
            return ready  # a real socket, to which the kernel was about to deliver
        if timeout is None:
            if ready := super().select(1.0):
                return ready  # another thread
            raise AssertionError(
                "nothing is under way and no timer is set: this would wait for ever"
            )
        self.now += timeout
        return []


class FakeClockLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while anything can run, and jumps to the
    next timer when nothing can.

    It counts the timers that were set in `timers`. Sockets on loopback work in it.
    """

    def __init__(self):
        self._clock = _JumpingSelector()
        self.timers = 0
        super().__init__(self._clock)

    def time(self):
        return self._clock.now

    def call_at(self, *args, **kwargs):
        self.timers += 1
        return super().call_at(*args, **kwargs)

    def timers_left(self):
        return [handle for handle in self._scheduled if not handle.cancelled()]


def run(coroutine):
    """Run to its end in a loop with a fake clock, for tests that need one
    of their own for each example.
    """
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        return runner.run(coroutine)


def body(task_id, status, **fields):
    return json.dumps({"taskId": task_id, "status": status, **fields}).encode()


def response(task_id, status, *, retry_after=None, server_time=None, **fields):
    """Build the good answer that tells of `status`."""
    data = body(task_id, status, **fields)
    return Response(decode_task(data), data, server_time, retry_after)


def status(code, retry_after=None, message=None):
    """Make a fault: an answer with an HTTP status that is no success."""

    def fault(task_id):
        detail = f"HTTP {code}" + (f": {message}" if message else "")
        return status_error_class(code)(
            detail, task_id=task_id, status_code=code, message=message, retry_after=retry_after
        )

    return fault


def refused(task_id):
    """Be a fault: nobody listens."""
    return APIConnectionError("ConnectionRefusedError", task_id=task_id)


def malformed(task_id):
    """Be a fault: a 200 that is no JSON."""
    return APIResponseValidationError(
        "HTTP 200, but the answer can't be read: '<html>'",
        task_id=task_id,
        status_code=200,
        body="<html>",
    )


def stalled(task_id):
    """Be a fault: no answer ever comes."""
    return asyncio.get_running_loop().create_future()


def says(word, **fields):
    """Make a fault that is none: a good answer that tells of the status `word`."""
    return lambda task_id: response(task_id, word, **fields)


@define(eq=False)
class Sent:
    """One request as the fake server saw it."""

    task_id: str
    time: float
    answer: object = "none"


class FakeTransport:
    """Stands in for `Transport`: the API by the loop's clock, without a socket.

    A request takes `latency` seconds. It gets, in this order: the next fault queued for its
    id, the next one queued for any, what `weather` gives for it, or the state of its task
    at the moment of the answer.
    """

    def __init__(self, latency=0.1):
        self.latency = latency
        self.requests = []
        self.submissions = []
        self.submitting = self.most_submitting = 0
        self.in_flight = self.most_in_flight = 0
        self.weather = lambda task_id: None
        self.default = None
        self.closed = False
        self._tasks = {}
        self._faults = defaultdict(deque)
        self._closing = set()

    def add(self, task_id, *steps, end="completed", **fields):
        """Add a task that begins now and goes through `steps`, pairs of a
        status and seconds, to its `end`.
        """
        self._tasks[task_id] = asyncio.get_running_loop().time(), steps, end, fields
        return task_id

    def add_many(self, number, seconds, **kwargs):
        return [self.add(f"task-{n}", ("processing", seconds), **kwargs) for n in range(number)]

    def fault(self, task_id, *faults):
        self._faults[task_id].extend(faults)

    def times(self, task_id=None):
        """Return when requests came."""
        return [sent.time for sent in self.requests if task_id in (None, sent.task_id)]

    def count(self, task_id=None):
        return len(self.times(task_id))

    def aborted(self):
        return [sent.task_id for sent in self.requests if sent.answer == "aborted"]

    def check_loop(self, loop):
        pass

    async def close(self):
        self.closed = True
        for closing in self._closing:
            if not closing.done():
                closing.set_result(None)

    async def submit(self, request, *, on_send):
        """Submit a request: its id is its prompt. A fault is called before the request is sent."""
        if self.closed:
            raise ClientClosedError("the client is closed")
        sent = Sent(request.prompt, asyncio.get_running_loop().time())
        self.submissions.append(sent)
        self.submitting += 1
        self.most_submitting = max(self.most_submitting, self.submitting)
        try:
            faults = self._faults.get("POST")
            sent.answer = faults.popleft()(request) if faults else request.prompt
            if isinstance(sent.answer, APIConnectionError):
                raise sent.answer
            on_send()
            await self._travel(None if asyncio.isfuture(sent.answer) else self.latency)
            if isinstance(sent.answer, Exception):
                raise sent.answer
            return Accepted(sent.answer)
        except asyncio.CancelledError:
            sent.answer = "aborted"
            raise
        finally:
            self.submitting -= 1

    async def fetch(self, task_id):
        if self.closed:
            raise ClientClosedError("the client is closed")
        sent = Sent(task_id, asyncio.get_running_loop().time())
        self.requests.append(sent)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        fault = self._fault(task_id)
        try:
            await self._travel(self.latency)
            answer = fault(task_id) if fault is not None else self._state(task_id)
            if asyncio.isfuture(answer):
                await self._travel(None)
            sent.answer = answer
            if isinstance(answer, Exception):
                raise answer
            return answer
        except asyncio.CancelledError:
            sent.answer = "aborted"
            raise
        finally:
            self.in_flight -= 1

    def _fault(self, task_id):
        for key in (task_id, None):
            if self._faults.get(key):
                return self._faults[key].popleft()
        return self.weather(task_id)

    def _state(self, task_id):
        if task_id not in self._tasks:
            if self.default is None:
                return NotFoundError("HTTP 404", task_id=task_id, status_code=404)
            return response(task_id, self.default)
        left, steps, end, fields = self._tasks[task_id]
        left = asyncio.get_running_loop().time() - left
        for word, seconds in steps:
            if left < seconds:
                return response(task_id, word)
            left -= seconds
        return response(task_id, end, **fields)

    async def _travel(self, seconds):
        closing = asyncio.get_running_loop().create_future()
        self._closing.add(closing)
        try:
            done, _ = await asyncio.wait([closing], timeout=seconds)
        finally:
            self._closing.discard(closing)
        if done:
            raise ClientClosedError("the client was closed")


def client_over(transport, **options):
    """Build a real client whose requests go to `transport`."""
    client = TaskClient(options.pop("api_key", "test-key"), **options)
    client._parts.transport = client._parts.fetcher._transport = transport
    client._parts.submitter._transport = transport
    return client


async def assert_nothing_runs(client=None):
    """Assert that no task but the current one is left, and that the
    client has nothing under way.
    """
    gc.collect()
    await settle()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others
    if client is not None:
        assert client.stats.waiting == 0
        assert client.stats.in_flight == 0


async def settle(turns=10):
    """Run everything that can run now, without time going on."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def later(seconds, function, *args):
    """Call after some seconds; for `asyncio.gather` beside what is tested."""
    await asyncio.sleep(seconds)
    return function(*args)


def now():
    return asyncio.get_running_loop().time()
