"""Polls every id that somebody waits for, by few workers and one timer.

An id in rotation is an `Entry`. It is scheduled until its next poll is due. Then a worker takes it,
makes a request, and either ends its subscribers' waits or schedules it again. Results reach
subscribers by callback: `on_poll` and `on_end`.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from typing import cast

from xai_tasks._errors import (
    APIError,
    ClientClosedError,
    NotFoundError,
    RateLimitError,
    ServerError,
    WaitTimeoutError,
    XaiTasksError,
    is_transient,
    printable,
)
from xai_tasks._http.transport import Response
from xai_tasks._limits.alarm import Alarm
from xai_tasks._limits.outage import Outage, PollsStopped
from xai_tasks._limits.retrying import Counters, RetryingFetcher
from xai_tasks._limits.throttle import Throttle
from xai_tasks._models import TaskResult
from xai_tasks._policies import PollPolicy
from xai_tasks._polling.entries import NEVER, Entry, PolicyGroup, Subscriber
from xai_tasks._polling.packed import BulkOwner, BulkSubscriber
from xai_tasks._polling.rotation import Rotation
from xai_tasks._polling.schedule import Schedule
from xai_tasks._polling.slices import SLICE, in_slices
from xai_tasks._polling.stops import Stops
from xai_tasks._polling.workers import Workers

logger = logging.getLogger("xai_tasks")

_RECHECK = 1.0
"""Seconds after which a wait that is overdue, but whose id is owed a poll, is considered again."""

_SILENCE = 10.0
"""Seconds that the answer to an owed poll may take."""


class Poller:
    """Polls every id that has a subscriber, each under its policy, until it has ended."""

    __slots__ = (
        "_alarm",
        "_counters",
        "_deadlines",
        "_fetcher",
        "_max_pause",
        "_outage",
        "_outage_end",
        "_probe",
        "_rotation",
        "_stops",
        "_throttle",
        "_workers",
        "closed",
    )

    def __init__(
        self,
        fetcher: RetryingFetcher,
        throttle: Throttle,
        outage: Outage,
        counters: Counters,
        *,
        max_workers: int,
        max_pause: float,
    ) -> None:
        """Use at most `max_workers`; obey a `Retry-After` of a good answer up to `max_pause` s."""
        self._fetcher = fetcher
        self._throttle = throttle
        self._outage = outage
        self._counters = counters
        self._max_pause = max_pause
        self._rotation = Rotation()
        self._deadlines: Schedule[Subscriber | BulkOwner] = Schedule()
        self._workers = Workers(max_workers, self._on_worker_end)
        self._alarm = Alarm(self._on_alarm)
        self._stops = Stops()
        self._probe: Entry | None = None
        """The entry that is polled to find out whether an outage is over."""
        self._outage_end = NEVER
        """When the outage, if there is one, ends the next waits."""
        self.closed: bool = False
        outage.on_change = self._on_outage_change

    @property
    def waiting(self) -> int:
        """The number of ids in rotation."""
        return self._rotation.waiting

    # Who waits.

    def subscribe(self, task_id: str, policy: PollPolicy, subscriber: Subscriber) -> Entry | None:
        """Subscribe to a task. A new one is polled at once.

        Waits for the same id under the same policy share one entry: single flight.

        Returns:
            the entry to `leave`; None if `subscriber` had no time at all and its wait has ended.

        Raises:
            ClientClosedError: the client is closed.

        """
        if self.closed:
            raise ClientClosedError("the client is closed")
        now = asyncio.get_running_loop().time()
        if subscriber.deadline <= now:
            subscriber.on_end(task_id, None, WaitTimeoutError(task_id, subscriber.timeout))
            return None
        group = self._group(policy)
        entry = self._rotation.find(task_id, group) or self._rotation.add(task_id, group, now)
        self._join(entry, subscriber)
        self._go_on(now)
        return entry

    def register(self, owner: BulkOwner, policy: PollPolicy) -> PolicyGroup:
        """Add a bulk stream, before its first id; return the group that it belongs to."""
        group = self._group(policy)
        self._rotation.register(owner, group)
        return group

    def release(self, owner: BulkOwner) -> None:
        """Remove a bulk stream, none of whose ids is waited for any more."""
        self._rotation.release(owner)

    def subscribe_bulk(self, task_id: str, owner: BulkOwner, index: int, now: float) -> None:
        """Subscribe to a task for a stream, which times out its ids itself.

        Raises:
            ClientClosedError: the client is closed.

        """
        if self.closed:
            raise ClientClosedError("the client is closed")
        if not self._rotation.add_packed(task_id, owner, index, now):
            group = owner.group
            entry = self._rotation.find(task_id, group) or self._rotation.add(task_id, group, now)
            entry.add(BulkSubscriber(entry, owner, index))
        self._go_on(now)

    def leave(self, entry: Entry, subscriber: Subscriber) -> None:
        """Remove a subscriber. With the last one, polling stops and a request is aborted."""
        self._part(entry, subscriber)
        if entry.subscribers is None and self._rotation.discard(entry):
            self._workers.abort(entry)
            if not self._rotation.waiting:
                self._set_alarm()

    def leave_bulk(self, task_id: str, owner: BulkOwner, index: int) -> None:
        """Remove one id of a stream, as `leave` does."""
        entry = self._rotation.find(task_id, owner.group)
        if entry is not None:
            for subscriber in _of_stream(entry, owner, index):
                self.leave(entry, subscriber)

    def set_deadline(self, owner: BulkOwner, when: float) -> float:
        """Call the `expire` of a stream at `when`; return what `clear_deadline` needs."""
        due = self._deadlines.add(owner, when)
        self._set_alarm()
        return due

    def clear_deadline(self, owner: BulkOwner, due: float) -> None:
        """Undo a `set_deadline`."""
        self._deadlines.remove(owner, due)

    def expire_bulk(self, task_id: str, owner: BulkOwner, index: int, now: float) -> None:
        """Time out one id of a stream, unless it is owed a poll."""
        entry = self._rotation.find(task_id, owner.group)
        if entry is not None:
            for subscriber in _of_stream(entry, owner, index):
                self._expire(entry, subscriber, now)

    async def aborted(self) -> None:
        """Wait until the requests of those who have left have ended."""
        await self._workers.aborted()

    def close(self) -> asyncio.Future[None]:
        """End every wait with `ClientClosedError`, and every request made for one.

        Returns:
            a future that is done once each wait has ended.

        """
        self.closed = True
        self._alarm.cancel()
        for entry in self._workers.in_flight:
            self._workers.abort(entry)
        groups = self._rotation.groups
        members = ((group, i) for group in groups for i in self._rotation.members(group))
        return in_slices(members, self._close_one)

    async def closed_down(self) -> None:
        """Wait until the workers have ended, after `close`."""
        if self._workers.tasks:
            await asyncio.wait(self._workers.tasks)

    def _close_one(self, member: tuple[PolicyGroup, str]) -> None:
        group, task_id = member
        text = f"the client was closed while task {printable(task_id)!r} was waited for"
        self._end_id(group, task_id, ClientClosedError(text))

    def _group(self, policy: PollPolicy) -> PolicyGroup:
        group = self._rotation.group(policy)
        if group is None:
            group = self._rotation.add_group(policy)
            self._outage_end = min(self._outage_end, self._future_end(group))
        return group

    def _join(self, entry: Entry, subscriber: Subscriber) -> None:
        entry.add(subscriber)
        subscriber.entry = entry
        if subscriber.deadline < NEVER:
            subscriber.due = self._deadlines.add(subscriber, subscriber.deadline)

    def _part(self, entry: Entry, subscriber: Subscriber) -> None:
        entry.remove(subscriber)
        if subscriber.due is not None:
            self._deadlines.remove(subscriber, subscriber.due)
            subscriber.due = None

    # The timer and the workers.

    def _next(self, now: float) -> Entry | None:
        """Take the entry to poll next: in an outage the probe, if it may leave."""
        if self._outage.since is None:
            return self._rotation.pop(now)
        if self._probe is None and self._outage.probe_at <= now:
            self._probe = self._rotation.pop_probe(now)
            return self._probe
        return None

    def _go_on(self, now: float) -> None:
        """Start a worker for each entry that is due, and set the alarm for what comes next."""
        while self._workers.free:
            entry = self._next(now)
            if entry is None:
                break
            self._workers.start(entry, self._work(entry))
        self._set_alarm()

    def _set_alarm(self) -> None:
        when = self._deadlines.next_time()
        if self._outage.since is not None:
            when = min(when, self._outage_end)
            if self._probe is None:
                when = min(when, max(self._outage.probe_at, self._rotation.next_time()))
        elif self._workers.free:  # a worker that is busy sees to it afterwards
            when = min(when, self._rotation.next_time())
        self._alarm.set(when if self._rotation.waiting and not self.closed else NEVER)

    def _on_alarm(self) -> None:
        now = asyncio.get_running_loop().time()
        self._stops.observe(self._alarm.at, now)
        for _ in range(SLICE):
            item = self._deadlines.pop(now)
            if item is None:
                break
            if isinstance(item, Subscriber):
                item.due = None
                self._expire(item.entry, item, now)
            else:
                item.expire(now)
        if self._outage_end <= now:
            self._end_outlasted(now)
        self._go_on(now)

    async def _work(self, entry: Entry) -> None:
        """Poll `entry` and then whatever is due, until nothing is."""
        worker = cast("asyncio.Task[None]", asyncio.current_task())
        clock = asyncio.get_running_loop().time
        following: Entry | None = entry
        while following is not None:
            entry = following
            answer = await self._fetch(entry, worker)
            now = clock()
            self._workers.land(entry)
            if entry is self._probe:
                self._on_probe_end(now)
            if entry.subscribers is None:
                pass
            elif answer is None:
                self._rotation.schedule(entry, now)
            else:
                self._on_answer(entry, answer, now)
            following = self._next(now)
            if following is None:
                self._set_alarm()
            else:
                self._workers.take(following, worker)
                self._go_on(now)

    async def _fetch(
        self, entry: Entry, worker: asyncio.Task[None]
    ) -> Response | BaseException | None:
        """Return the answer, or the error; None if no request was made, or it was aborted."""
        try:
            return await self._fetcher.fetch(entry.task_id, poll=entry)
        except PollsStopped:
            return None
        except asyncio.CancelledError as error:
            if not worker.cancelling():
                return error  # raised by a key function
            if entry.subscribers is not None or worker.uncancel():
                raise  # cancelled from outside, and not only by `abort`
            return None
        except Exception as error:  # noqa: BLE001 -- a key function may raise anything
            return error

    def _on_worker_end(self, left: list[Entry]) -> None:
        """Schedule again what a worker that was cancelled from outside left in flight."""
        now = asyncio.get_running_loop().time()
        for entry in left:
            if entry is self._probe:
                self._probe = None
            if entry.subscribers is not None:
                self._rotation.schedule(entry, now)
        if not self.closed:
            self._go_on(now)

    # What an answer means.

    def _on_answer(self, entry: Entry, answer: Response | BaseException, now: float) -> None:
        """End the wait, or let the wait strategy decide when the next poll is."""
        # Since the last poll; longer than the strategy said if a worker or the rate was waited for.
        gap = now - entry.polled_at if entry.polls else 0.0
        entry.polled_at = now
        entry.polls += 1
        self._counters.polls += 1
        try:
            if isinstance(answer, Response):
                entry.on_answer()
                if answer.task.done:
                    entry.group.observe(entry, answer.task, now, gap)
                    self._end(entry, answer.task, None)
                    return
            elif self._is_final(entry, answer, now):
                self._end(entry, None, answer)
                return
            seconds = entry.group.next_wait(entry, cast("Response | Exception", answer), now, gap)
        except BaseException as error:
            # A strategy may raise anything: no wait may be left without an end.
            self._end(entry, None, error)
            if isinstance(error, (Exception, asyncio.CancelledError)):
                return
            raise
        self._reschedule(entry, answer, now, seconds)

    def _is_final(self, entry: Entry, error: BaseException, now: float) -> bool:
        """Return whether a failed poll ends the wait."""
        failures, policy = entry.failures, entry.group.policy
        if failures is None or not isinstance(error, APIError):
            return True
        if _is_not_found(error) and failures.not_found_since is not None:
            return now >= failures.not_found_since + policy.not_found_grace
        if not is_transient(error):
            return True
        since = failures.since
        if policy.max_outage is None or since is None or isinstance(error, RateLimitError):
            return False
        if isinstance(error, ServerError) and error.status_code == 503:
            # While others are answered it means "later", as a 429 does.
            return self._outage.answered_at < since and now >= since + policy.max_outage
        return now >= since + policy.max_outage

    def _reschedule(
        self, entry: Entry, answer: Response | BaseException, now: float, seconds: float
    ) -> None:
        """Schedule the next poll, and pass the answer on to the subscribers."""
        task: TaskResult | None = None
        if isinstance(answer, Response):
            task = answer.task
            entry.body = answer.body
            if answer.retry_after is not None:
                seconds = max(seconds, min(answer.retry_after, self._max_pause))
        elif _is_not_found(answer) and entry.failures is not None:
            grace_end = (entry.failures.not_found_since or now) + entry.group.policy.not_found_grace
            seconds = min(seconds, max(grace_end - now, 0.0))
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "polled task %r: %s; next poll in %.3g s",
                printable(entry.task_id),
                answer if task is None else task.status.value,
                seconds,
                extra={"task_id": entry.task_id, "seconds": seconds},
            )
        for subscriber in entry.all():
            subscriber.on_poll(task)
        if entry.owed:
            entry.owed -= 1
            if entry.owed:
                seconds = 0.0
            else:
                self._end_overdue(entry, now)
        if entry.subscribers is not None:
            self._rotation.schedule(entry, now + seconds)

    def _end(self, entry: Entry, task: TaskResult | None, error: BaseException | None) -> None:
        """End all waits for an entry."""
        self._rotation.discard(entry)
        subscribers = entry.all()
        entry.subscribers = None
        for number, subscriber in enumerate(subscribers):
            self._part(entry, subscriber)
            # An exception gathers tracebacks where it is raised, so each gets its own.
            own = copy.copy(error) if number and isinstance(error, XaiTasksError) else error
            subscriber.on_end(entry.task_id, task, own)

    def _end_id(self, group: PolicyGroup, task_id: str, error: XaiTasksError) -> None:
        """End all waits for an id from outside of its worker."""
        entry = self._rotation.find(task_id, group)
        if entry is not None:
            self._end(entry, None, error)
            self._workers.abort(entry)

    # Deadlines.

    def _expire(self, entry: Entry, subscriber: Subscriber, now: float) -> None:
        """Time out a wait whose deadline has passed, unless its id is owed a poll.

        Each id is asked for once, and once more if the process was stopped at its deadline.
        """
        if not entry.owed:
            if self._stops.cover(subscriber.deadline):
                # Of a request in flight the answer may be from before the stop.
                entry.owed = 1 if entry.due is not None else 2
            elif entry.sent_at is None:
                entry.owed = 1
            if entry.owed:
                self._rotation.hasten(entry, now)
        if entry.owed and not self._is_held(now) and not self._is_silent(entry, subscriber, now):
            subscriber.due = self._deadlines.add(subscriber, now + _RECHECK)
        else:
            self._time_out(entry, subscriber)

    def _is_silent(self, entry: Entry, subscriber: Subscriber, now: float) -> bool:
        """Return whether the request for an overdue wait has had no answer for long enough."""
        if entry.due is not None or entry.sent_at is None:
            return False
        return now > max(entry.sent_at, subscriber.deadline, self._stops.end) + _SILENCE

    def _is_held(self, now: float) -> bool:
        """Return whether no request may leave: the client is paused, in an outage or stalled."""
        return (
            now < self._throttle.paused_until
            or self._outage.since is not None
            or self._throttle.is_stalled(now)
        )

    def _end_overdue(self, entry: Entry, now: float) -> None:
        for subscriber in entry.all():
            if subscriber.deadline <= now:
                self._time_out(entry, subscriber)

    def _time_out(self, entry: Entry, subscriber: Subscriber) -> None:
        error = entry.timeout_error(subscriber.timeout)
        self.leave(entry, subscriber)
        subscriber.on_end(entry.task_id, None, error)

    # Outages.

    def _on_outage_change(self) -> None:
        if self.closed:
            return
        if self._outage.since is None:
            self._outage_end = NEVER
            self._throttle.start_slowly(asyncio.get_running_loop().time())
        else:
            self._throttle.stop_polls()
            self._set_outage_end()
        # Not at once: this is called in the middle of a worker's turn.
        asyncio.get_running_loop().call_soon(self._go_on_unless_closed)

    def _go_on_unless_closed(self) -> None:
        if not self.closed:
            self._end_outlasted(asyncio.get_running_loop().time())
            self._go_on(asyncio.get_running_loop().time())

    def _on_probe_end(self, now: float) -> None:
        self._probe = None
        if self._outage.since is not None and not self.closed:
            self._outage.probe_failed()
            self._end_outlasted(now)

    def _end_outlasted(self, now: float) -> None:
        """End the waits that the outage has outlasted."""
        since = self._outage.since
        for group in self._rotation.groups:
            if since is not None and now >= since + _max_outage(group):
                members = ((group, task_id) for task_id in self._rotation.members(group))
                in_slices(members, self._end_by_outage)
        self._set_outage_end()

    def _end_by_outage(self, member: tuple[PolicyGroup, str]) -> None:
        group, task_id = member
        entry = self._rotation.find(task_id, group)
        if entry is not None and self._outage.since is not None:
            failing = entry.failures is not None and entry.failures.since is not None
            error = self._outage.error_for(task_id, entry.error if failing else None)
            self._end_id(group, task_id, error)

    def _set_outage_end(self) -> None:
        ends = [self._future_end(group) for group in self._rotation.groups]
        self._outage_end = min(ends, default=NEVER)

    def _future_end(self, group: PolicyGroup) -> float:
        """Return when an outage, if there is one, ends the waits under a policy.

        For waits that begin when that time has passed already: infinity. The next probe that fails
        ends them. If nobody could begin to wait, nobody would find out that the outage is over.
        """
        since = self._outage.since
        end = NEVER if since is None else since + _max_outage(group)
        return end if end > asyncio.get_running_loop().time() else NEVER


def _is_not_found(error: BaseException) -> bool:
    """Return whether the API does not know an id: a gateway's 404 is transient."""
    return isinstance(error, NotFoundError) and not is_transient(error)


def _max_outage(group: PolicyGroup) -> float:
    limit = group.policy.max_outage
    return NEVER if limit is None else limit


def _of_stream(entry: Entry, owner: BulkOwner, index: int) -> list[BulkSubscriber]:
    """Return the subscriber that stands for one id of a stream."""
    return [
        subscriber
        for subscriber in entry.all()
        if isinstance(subscriber, BulkSubscriber)
        and subscriber.owner is owner
        and subscriber.index == index
    ]
