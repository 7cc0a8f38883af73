"""The due-time queue: every id that a client waits for, and the few workers that poll them.

An id in rotation is an `Entry`. It rests in a heap until its next poll is due, stands in a line until a worker is
free, is in flight while a worker asks for it, and then rests again or settles its subscribers. One timer serves them all.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import heapq
import logging
import math
from collections import deque
from collections.abc import Callable
from typing import cast

from xai_tasks._errors import (
    ClientClosedError,
    WaitTimeoutError,
    XaiTasksError,
    is_transient,
    printable,
)
from xai_tasks._http.transport import Response
from xai_tasks._limits.retrying import Counters, RetryingFetcher
from xai_tasks._limits.throttle import Throttle
from xai_tasks._models import TaskResult
from xai_tasks._policies import PollPolicy
from xai_tasks._polling.entries import NEVER, Due, Entry, PolicyGroup, PollState, Subscriber

logger = logging.getLogger("xai_tasks")

_MIN_LEFTOVERS = 1000
"""Below this many, throwing leftovers out isn't worth the reading."""

_SLICE = 1000
"""Entries handled without a pause: 2 ms or so, after which others on the loop get a turn."""

_TICK = 0.001
"""Seconds within which events count as at the same moment, so that they can share one float of it."""


class Poller:
    """Polls every id that has a subscriber, each under its policy, until it has ended."""

    __slots__ = (
        "_counters",
        "_cut",
        "_fetcher",
        "_groups",
        "_heap",
        "_in_flight",
        "_landing",
        "_leaving",
        "_leftovers",
        "_line",
        "_max_pause",
        "_max_workers",
        "_sweeper",
        "_throttle",
        "_tick_began",
        "_timer",
        "_timer_at",
        "_workers",
        "closed",
        "waiting",
    )

    def __init__(
        self,
        fetcher: RetryingFetcher,
        throttle: Throttle,
        counters: Counters,
        *,
        max_workers: int,
        max_pause: float,
    ) -> None:
        """Use at most `max_workers` at once; on a good answer, heed a `Retry-After` up to `max_pause` seconds."""
        self._fetcher = fetcher
        self._throttle = throttle
        self._counters = counters
        self._max_workers = max_workers
        self._max_pause = max_pause
        self._groups: dict[PollPolicy, PolicyGroup] = {}
        self._heap: list[Due] = []
        self._leftovers = 0
        self._line: deque[Entry] = deque()
        self._in_flight: dict[Entry, asyncio.Task[None]] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._cut = NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float = 0.0  # uvloop's handles can't all say it
        self._sweeper: asyncio.TimerHandle | None = None
        self._landing: asyncio.Future[None] | None = None
        self._leaving: deque[tuple[Callable[[Subscriber], bool], deque[Entry]]] = deque()
        self._tick_began = -NEVER
        self.waiting: int = 0
        self.closed: bool = False
        throttle.on_outage = self._outage_goes_on

    def subscribe(self, task_id: str, policy: PollPolicy, subscriber: Subscriber) -> Entry | None:
        """Have `subscriber` told how the task ends; the first look is due at once.

        Joins the poll loop of the same id under the same policy, where there is one, without a look of its own.

        Returns:
            the entry to `leave`; None if there was no time to wait at all and `subscriber` has been told so.

        """
        if self.closed:
            raise ClientClosedError("the client is closed")
        now = asyncio.get_running_loop().time()
        if subscriber.deadline <= now:
            subscriber.on_end(task_id, None, WaitTimeoutError(task_id, subscriber.timeout))
            return None
        group = self._groups.get(policy)
        if group is None:
            group = self._groups[policy] = PolicyGroup(policy)
            self._set_sweeper()
        entry = group.entries.get(task_id)
        if entry is None:
            entry = group.entries[task_id] = Entry(task_id, group, self.shared(now))
            entry.add(subscriber)
            self.waiting += 1
            self._line_up(entry)
            self._dispatch(now)
        else:
            entry.add(subscriber)
            if entry.due == NEVER:
                self._cut = min(self._cut, subscriber.deadline)
            elif subscriber.deadline < entry.due:
                self._rest(entry, float(entry.due) if entry.poll_at is None else entry.poll_at)
        self._set_timer()
        return entry

    def leave(self, entry: Entry, subscriber: Subscriber) -> None:
        """Let `subscriber` go; with the last one, polling the id stops and a request under way is aborted."""
        entry.remove(subscriber)
        if entry.subscribers is None:
            self._drop(entry)

    def leave_all(self, whose: Callable[[Subscriber], bool]) -> None:
        """Let every subscriber go for whom `whose` is true: those whose poll is under way or next first, and of many a slice at a time."""
        self._leaving.append((whose, deque((*self._in_flight, *self._line, *self._entries()))))
        if len(self._leaving) == 1:
            self._leave_slice()

    def _leave_slice(self) -> None:
        whose, entries = self._leaving[0]
        for _ in range(min(len(entries), _SLICE)):
            entry = entries.popleft()
            for subscriber in entry.all():
                if whose(subscriber):
                    self.leave(entry, subscriber)
        if not entries:
            self._leaving.popleft()
        if self._leaving:
            asyncio.get_running_loop().call_soon(self._leave_slice)
        else:
            self._tell_landing()

    def never_polled(self, whose: Callable[[Subscriber], bool]) -> set[Subscriber]:
        """Give those for whom `whose` is true and whose id has not been looked at yet."""
        return {
            each
            for entry in self._entries()
            if not entry.polls
            for each in entry.all()
            if whose(each)
        }

    def shared(self, now: float) -> float:
        """Give one float for all moments within a tick: a float of its own costs 32 bytes, a million have as many."""
        if now >= self._tick_began + _TICK:
            self._tick_began = now
        return self._tick_began

    async def aborted(self) -> None:
        """Return once all who leave have left, and no request is under way that nobody waits for any more."""
        while self._leaving or any(entry.subscribers is None for entry in self._in_flight):
            if self._landing is None:
                self._landing = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._landing)

    async def close(self) -> None:
        """End every wait with `ClientClosedError` and every request made for one."""
        self.closed = True
        for entry in self._entries():
            error = ClientClosedError(
                f"the client was closed while task {printable(entry.task_id)!r} was waited for"
            )
            self._tell(entry, None, error)
            self._drop(entry)
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._workers:
            await asyncio.wait(self._workers)

    # An entry is in the heap, in the line or in flight.

    def _entries(self) -> list[Entry]:
        return [entry for group in self._groups.values() for entry in group.entries.values()]

    def _rest(self, entry: Entry, poll_at: float) -> None:
        """Have the timer see to an entry when it is to be polled, or when a wait for it runs out before."""
        if entry.due < NEVER:
            self._leftovers += 1
        deadline = entry.deadline
        entry.poll_at = poll_at if deadline < poll_at else None
        due = entry.due = Due(min(poll_at, deadline))
        due.entry = entry
        heapq.heappush(self._heap, due)

    def _line_up(self, entry: Entry) -> None:
        self._line.append(entry)
        self._cut = min(self._cut, entry.deadline)

    def _next(self, now: float) -> Entry | None:
        """Take the entry that is first in the line, or else due."""
        if not self._line:
            self._collect(now)
        while self._line:
            entry = self._line.popleft()
            if entry.subscribers is not None:
                return entry
            self._leftovers -= 1
        return None

    def _collect(self, now: float) -> None:
        """Move what is due from the heap into the line, a slice at most, and end the waits whose time has run out."""
        heap = self._heap
        for _ in range(_SLICE):
            if not heap or heap[0] > now:
                break
            due = heapq.heappop(heap)
            entry = due.entry
            if entry.due is not due:
                self._leftovers -= 1
                continue
            entry.due = NEVER
            self._expire(entry, now)
            if entry.subscribers is None:
                self._forget(entry)
            elif entry.poll_at is None or entry.poll_at <= now:
                self._line_up(entry)
            else:
                self._rest(entry, entry.poll_at)
        if self._cut <= now:
            self._cut_short(now)

    def _cut_short(self, now: float) -> None:
        """End the waits in the line and in flight whose time has run out."""
        nearest = NEVER
        for entry in (*self._line, *self._in_flight):
            if entry.subscribers is not None:
                self._expire(entry, now)
                if entry.subscribers is None:
                    self._drop(entry)
                else:
                    nearest = min(nearest, entry.deadline)
        # A long line isn't read again at once, however near the next deadline: reading costs 0.2 us an entry, so
        # this is at most a tenth of the loop's time.
        self._cut = max(nearest, now + 2e-6 * len(self._line))

    def _expire(self, entry: Entry, now: float) -> None:
        """End the waits for `entry` whose time has run out."""
        if entry.deadline > now:
            return
        last = entry.last
        for subscriber in entry.all():
            if subscriber.deadline <= now:
                entry.remove(subscriber)
                error = WaitTimeoutError(entry.task_id, subscriber.timeout, last, entry.error)
                subscriber.on_end(entry.task_id, None, error)

    def _forget(self, entry: Entry) -> None:
        """Take an entry that is in no queue out of rotation."""
        group = entry.group
        del group.entries[entry.task_id]
        if not group.entries:
            del self._groups[group.policy]
        self.waiting -= 1
        if not self.waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop(self, entry: Entry) -> None:
        """Take an entry out of rotation, wherever it is; it is left lying in its queue until that is tidied."""
        if entry.group.entries.get(entry.task_id) is not entry:
            return
        self._forget(entry)
        worker = self._in_flight.get(entry)
        if worker is not None:
            worker.cancel()
            return
        entry.due = NEVER
        self._leftovers += 1
        if (
            self._leftovers > _MIN_LEFTOVERS
            and self._leftovers > (len(self._heap) + len(self._line)) / 2
        ):
            self._tidy()

    def _tidy(self) -> None:
        self._heap = [due for due in self._heap if due.entry.due is due]
        heapq.heapify(self._heap)
        self._line = deque(entry for entry in self._line if entry.subscribers is not None)
        self._leftovers = 0

    # The timer and the workers.

    def _set_timer(self) -> None:
        when = min(self._heap[0] if self._heap else NEVER, self._cut)
        if self._timer is not None:
            if self._timer_at <= when:
                return  # it comes in time, and sets itself anew
            self._timer.cancel()
            self._timer = None
        if when < NEVER and self.waiting:
            self._timer_at = when
            self._timer = asyncio.get_running_loop().call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        self._collect(now)
        self._dispatch(now)
        self._set_timer()

    def _dispatch(self, now: float) -> None:
        """Give those in line a worker each, as far as there are any."""
        while self._line and len(self._workers) < self._max_workers:
            entry = self._next(now)
            if entry is None:
                return
            # A context of its own: that of whoever happened to wait first is none of the others' business.
            worker = asyncio.get_running_loop().create_task(
                self._work(entry), context=contextvars.Context()
            )
            self._workers.add(worker)
            worker.add_done_callback(self._worker_ended)
            self._in_flight[entry] = worker

    def _land(self, entry: Entry) -> None:
        self._in_flight.pop(entry, None)
        self._tell_landing()

    def _tell_landing(self) -> None:
        if self._landing is not None:
            self._landing.set_result(None)
            self._landing = None

    async def _work(self, entry: Entry) -> None:
        """Poll `entry` and then whatever is due, until nothing is."""
        worker = cast("asyncio.Task[None]", asyncio.current_task())
        clock = asyncio.get_running_loop().time
        following: Entry | None = entry
        while following is not None:
            entry = following
            answer: Response | Exception | None = None
            try:
                answer = await self._fetcher.fetch(entry.task_id, poll=True, on_error=entry.failed)
            except asyncio.CancelledError:
                if entry.subscribers is not None or worker.uncancel():
                    raise  # by somebody else, and not only because everybody left
            except Exception as error:  # noqa: BLE001 -- a key function may raise anything; a subscriber must hear of it
                answer = error
            now = clock()
            self._land(entry)
            if entry.subscribers is not None and answer is not None:
                self._step(entry, answer, now)
            following = self._next(now)
            if following is not None:
                self._in_flight[following] = worker
            self._dispatch(now)
            self._set_timer()

    def _worker_ended(self, worker: asyncio.Task[None]) -> None:
        self._workers.discard(worker)
        now = asyncio.get_running_loop().time()
        for entry in [entry for entry, by in self._in_flight.items() if by is worker]:
            # Cancelled before its first step, or by somebody else.
            self._land(entry)
            if entry.subscribers is not None:
                self._rest(entry, now)
        self._dispatch(now)
        self._set_timer()

    # What an answer means.

    def _step(self, entry: Entry, answer: Response | Exception, now: float) -> None:
        """Do what follows from an answer: end the wait, or let the wait strategy say when the next poll is."""
        # What passed since the last poll; more than was slept, if a worker, the rate or a pause was waited for.
        gap = now - entry.polled_at if entry.polls else 0.0
        entry.polled_at = self.shared(now)
        entry.polls += 1
        self._counters.polls += 1
        group = entry.group
        if isinstance(answer, Response):
            task = answer.task
            entry.answered()
            if task.done:
                waited = now - entry.started if entry.polls > 1 else 0.0
                for learner in group.learners:
                    learner.observe(task, waited=waited, gap=gap)
                self._end(entry, task, None)
                return
        elif self._is_final(entry, answer, now):
            self._end(entry, None, answer)
            return
        try:
            seconds = float(group.policy.wait(PollState(entry, now, answer, gap)))
            if not math.isfinite(seconds):
                raise ValueError(f"the wait strategy of the poll policy gave {seconds} seconds")
        except Exception as error:  # noqa: BLE001 -- a strategy of the user's may raise anything
            self._end(entry, None, error)
            return
        self._lay_down(entry, answer, now, max(0.0, seconds))

    def _is_final(self, entry: Entry, error: Exception, now: float) -> bool:
        """Tell whether a failed poll ends the wait."""
        limit = entry.group.policy.max_outage
        since = entry.failing_since
        return not is_transient(error) or (
            limit is not None and since is not None and now >= since + limit
        )

    def _lay_down(
        self, entry: Entry, answer: Response | Exception, now: float, seconds: float
    ) -> None:
        """Lay an entry down until its next poll."""
        task: TaskResult | None = None
        if isinstance(answer, Response):
            task = answer.task
            entry.body = answer.body
            if answer.retry_after is not None:
                seconds = max(seconds, min(answer.retry_after, self._max_pause))
        self._rest(entry, now + seconds)
        if logger.isEnabledFor(logging.DEBUG):
            _log_poll(entry, answer, seconds)
        for subscriber in entry.all():
            subscriber.on_poll(task)

    def _end(self, entry: Entry, task: TaskResult | None, error: Exception | None) -> None:
        self._forget(entry)
        self._tell(entry, task, error)

    def _tell(self, entry: Entry, task: TaskResult | None, error: Exception | None) -> None:
        subscribers = entry.all()
        entry.subscribers = None
        for number, subscriber in enumerate(subscribers):
            # An exception gathers tracebacks where it is raised, so each gets its own.
            own = copy.copy(error) if number and isinstance(error, XaiTasksError) else error
            subscriber.on_end(entry.task_id, task, own)

    def _outage_goes_on(self) -> None:
        # Not at once: this is called by a worker, which must not come to cancel itself.
        asyncio.get_running_loop().call_soon(self._sweep)

    def _sweep(self) -> None:
        """End the waits that have had enough of an outage."""
        for group in list(self._groups.values()):
            if self._end_of_patience(group) > asyncio.get_running_loop().time():
                continue
            for entry in list(group.entries.values()):
                own = None if entry.failing_since is None else entry.error
                error = self._throttle.outage.error
                self._tell(entry, None, own or (error and error.for_task(entry.task_id)))
                self._drop(entry)
        self._set_sweeper()

    def _set_sweeper(self) -> None:
        """Have the sweep come when the next waits will have had enough.

        Those who come when they would have had enough already aren't ended by it but by the next probe that fails:
        where an outage has ended all waits, nobody else would find out that it is over.
        """
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        loop = asyncio.get_running_loop()
        ends = (self._end_of_patience(group) for group in self._groups.values())
        nearest = min((end for end in ends if end > loop.time()), default=NEVER)
        if nearest < NEVER:
            self._sweeper = loop.call_at(nearest, self._sweep)

    def _end_of_patience(self, group: PolicyGroup) -> float:
        """Say when an outage, if there is one, will have lasted too long for a policy."""
        since, limit = self._throttle.outage.since, group.policy.max_outage
        return NEVER if since is None or limit is None else since + limit


def _log_poll(entry: Entry, answer: Response | Exception, seconds: float) -> None:
    logger.debug(
        "polled task %r: %s; next poll in %.3g s",
        printable(entry.task_id),
        answer.task.status.value if isinstance(answer, Response) else answer,
        seconds,
        extra={"task_id": entry.task_id, "seconds": seconds},
    )
