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

from xai_tasks._errors import ClientClosedError, WaitTimeoutError, XaiTasksError, printable
from xai_tasks._http.transport import Response
from xai_tasks._limits.alarm import Alarm
from xai_tasks._limits.outage import Outage
from xai_tasks._limits.retrying import Counters, RetryingFetcher
from xai_tasks._limits.throttle import Throttle
from xai_tasks._models import TaskResult, body_to_keep
from xai_tasks._policies import PollPolicy
from xai_tasks._polling.deadlines import Deadlines
from xai_tasks._polling.ends import closed_while_waiting, end_of_grace, is_final, is_not_found
from xai_tasks._polling.entries import NEVER, Entry, PolicyGroup, Subscriber
from xai_tasks._polling.outage_ends import OutageEnds
from xai_tasks._polling.packed import BulkOwner, BulkSubscriber
from xai_tasks._polling.rotation import Rotation
from xai_tasks._polling.slices import in_slices
from xai_tasks._polling.workers import Answer, Workers

logger = logging.getLogger("xai_tasks")


class Poller:
    """Polls every id that has a subscriber, each under its policy, until it has ended."""

    __slots__ = (
        "_alarm",
        "_counters",
        "_deadlines",
        "_max_pause",
        "_outage",
        "_outage_ends",
        "_probe",
        "_rotation",
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
        self._throttle = throttle
        self._outage = outage
        self._counters = counters
        self._max_pause = max_pause
        self._rotation = Rotation()
        self._deadlines = Deadlines(self._rotation, self._is_held, self._time_out)
        self._outage_ends = OutageEnds(outage, self._rotation, self._end_id)
        self._workers = Workers(
            max_workers, fetcher, take=self._take, on_poll=self._on_poll, on_idle=self._on_idle
        )
        self._alarm = Alarm(self._on_alarm)
        self._probe: Entry | None = None
        """The entry that is polled to find out whether an outage is over."""
        self.closed: bool = False
        outage.on_change = self._on_outage_change

    @property
    def waiting(self) -> int:
        """The number of ids in rotation."""
        return self._rotation.waiting

    def has_room(self, timeout: float) -> bool:
        """Return whether one more id can be asked for often enough within `timeout` seconds."""
        return self.waiting < self._throttle.max_in_rotation(timeout)

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
        entry.add(subscriber)
        subscriber.entry = entry
        self._deadlines.add(subscriber)
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

    def subscribe_bulk(self, task_id: str, owner: BulkOwner, index: int, now: float) -> bool:
        """Subscribe to a task for a stream, which times out its ids itself.

        Returns:
            whether the id has been polled already, for somebody else.

        Raises:
            ClientClosedError: the client is closed.

        """
        if self.closed:
            raise ClientClosedError("the client is closed")
        polled = False
        if not self._rotation.add_packed(task_id, owner, index, now):
            group = owner.group
            entry = self._rotation.find(task_id, group) or self._rotation.add(task_id, group, now)
            entry.add(BulkSubscriber(entry, owner, index, now))
            polled = entry.polls > 0
        if self._workers.free or not self._alarm.is_set:  # else a worker takes it when it is free
            self._go_on(now)
        return polled

    def leave(self, entry: Entry, subscriber: Subscriber) -> None:
        """Remove a subscriber. With the last one, polling stops and a request is aborted."""
        entry.remove(subscriber)
        self._deadlines.remove(subscriber)
        if entry.subscribers is None and self._rotation.discard(entry):
            self._workers.abort(entry)
            self._on_left()

    def leave_bulk(self, task_id: str, owner: BulkOwner, index: int) -> None:
        """Remove one id of a stream, as `leave` does."""
        packed = self._rotation.find_packed(task_id, owner.group)
        if packed is not None and packed.owner is owner and packed.index == index:
            self._rotation.drop_packed(task_id, packed)
            self._on_left()
            return
        entry = self._rotation.find(task_id, owner.group)
        if entry is not None and (subscriber := entry.find((owner, index))) is not None:
            self.leave(entry, subscriber)

    def set_deadline(self, owner: BulkOwner, when: float) -> float:
        """Call the `expire` of a stream at `when`; return what `clear_deadline` needs."""
        due = self._deadlines.add_owner(owner, when)
        self._set_alarm()
        return due

    def clear_deadline(self, owner: BulkOwner, due: float) -> None:
        """Undo a `set_deadline`."""
        self._deadlines.remove_owner(owner, due)

    def deadline(self, task_id: str, owner: BulkOwner, index: int) -> float:
        """Return the time at which the wait for one id of a stream times out."""
        packed = self._rotation.find_packed(task_id, owner.group)
        if packed is not None:
            return packed.deadline
        return cast("Subscriber", owner.group.entries[task_id].find((owner, index))).deadline

    def expire_bulk(self, task_id: str, owner: BulkOwner, index: int, now: float) -> None:
        """Time out one id of a stream, unless it is owed a poll."""
        entry = self._rotation.find(task_id, owner.group)
        if entry is not None and (subscriber := entry.find((owner, index))) is not None:
            self._deadlines.expire(entry, subscriber, now)

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
        self._workers.abort_all()
        groups = self._rotation.groups
        members = ((group, i) for group in groups for i in self._rotation.members(group))
        return in_slices(members, self._close_one)

    async def closed_down(self) -> None:
        """Wait until the workers have ended, after `close`."""
        if self._workers.tasks:
            await asyncio.wait(self._workers.tasks)

    def _close_one(self, member: tuple[PolicyGroup, str]) -> None:
        group, task_id = member
        packed = self._rotation.find_packed(task_id, group)
        if packed is not None:
            self._rotation.drop_packed(task_id, packed)
            packed.owner.on_close(packed.index, first=not packed.polled)
        else:
            self._end_id(group, task_id, closed_while_waiting(task_id))

    def _group(self, policy: PollPolicy) -> PolicyGroup:
        group = self._rotation.group(policy)
        if group is None:
            group = self._rotation.add_group(policy)
            self._outage_ends.on_new_group(group)
        return group

    def _on_left(self) -> None:
        if not self._rotation.waiting:
            self._set_alarm()

    # What is due.

    def _take(self, now: float) -> Entry | None:
        """Take the entry to poll next: in an outage the probe, if it may leave."""
        if self._outage.since is None:
            return self._rotation.pop(now)
        if self._probe is None and self._outage.probe_at <= now:
            self._probe = self._rotation.pop_probe(now)
            return self._probe
        return None

    def _go_on(self, now: float) -> None:
        """Poll what is due, and set the alarm for what comes next."""
        self._workers.start_due(now)
        self._set_alarm()

    def _on_idle(self) -> None:
        if not self.closed:
            self._go_on(asyncio.get_running_loop().time())

    def _set_alarm(self) -> None:
        when = self._deadlines.next_time()
        if self._outage.since is not None:
            when = min(when, self._outage_ends.next_time)
            if self._probe is None:
                when = min(when, max(self._outage.probe_at, self._rotation.next_time()))
        elif self._workers.free:  # a worker that is busy sees to it afterwards
            when = min(when, self._rotation.next_time())
        self._alarm.set(when if self._rotation.waiting and not self.closed else NEVER)

    def _on_alarm(self) -> None:
        now = asyncio.get_running_loop().time()
        self._deadlines.run(self._alarm.at, now)
        if self._outage_ends.next_time <= now:
            self._outage_ends.run(now)
        self._go_on(now)

    # What an answer means.

    def _on_poll(self, entry: Entry, answer: Answer, now: float) -> None:
        if entry is self._probe:
            self._on_probe_end(now, failed=answer is not None)
        if entry.subscribers is None:
            return
        if answer is None:
            self._rotation.schedule(entry, now)
        else:
            self._on_answer(entry, answer, now)

    def _on_answer(self, entry: Entry, answer: Response | BaseException, now: float) -> None:
        """End the wait, or let the wait strategy decide when the next poll is."""
        # Since the last poll; longer than the strategy said if a worker or the rate was waited for.
        gap = now - entry.polled_at if entry.polls else 0.0
        entry.polled_at = entry.sent_at = now
        entry.polls += 1
        self._counters.polls += 1
        try:
            if isinstance(answer, Response):
                entry.on_answer()
                if answer.task.done:
                    entry.group.observe(entry, answer.task, now, gap)
                    self._end(entry, answer.task, None)
                    return
            elif is_final(entry, answer, now, self._outage.answered_at):
                self._end(entry, None, answer)
                return
            seconds = entry.group.next_wait(entry, answer, now, gap)
        except BaseException as error:
            # A strategy may raise anything: no wait may be left without an end.
            self._end(entry, None, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            return
        self._reschedule(entry, answer, now, seconds)

    def _reschedule(
        self, entry: Entry, answer: Response | BaseException, now: float, seconds: float
    ) -> None:
        """Schedule the next poll, and pass the answer on to the subscribers."""
        task: TaskResult | None = None
        if isinstance(answer, Response):
            task = answer.task
            entry.keep(body_to_keep(task, answer.body))
            if answer.retry_after is not None:
                seconds = max(seconds, min(answer.retry_after, self._max_pause))
        elif is_not_found(answer):
            seconds = min(seconds, max(end_of_grace(entry, now) - now, 0.0))
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
                self._deadlines.end_overdue(entry, now)
        if entry.subscribers is not None:
            self._rotation.schedule(entry, now, seconds)

    def _end(self, entry: Entry, task: TaskResult | None, error: BaseException | None) -> None:
        """End all waits for an entry."""
        self._rotation.discard(entry)
        subscribers = entry.all()
        entry.subscribers = None
        for number, subscriber in enumerate(subscribers):
            self._deadlines.remove(subscriber)
            # An exception gathers tracebacks where it is raised, so each gets its own.
            own = copy.copy(error) if number and isinstance(error, XaiTasksError) else error
            subscriber.on_end(entry.task_id, task, own)

    def _end_id(self, group: PolicyGroup, task_id: str, error: XaiTasksError) -> None:
        """End all waits for an id from outside of its worker."""
        packed = self._rotation.find_packed(task_id, group)
        if packed is not None:
            self._rotation.drop_packed(task_id, packed)
            packed.owner.on_end(packed.index, task_id, None, error, first=not packed.polled)
            return
        entry = self._rotation.find(task_id, group)
        if entry is not None:
            self._end(entry, None, error)
            self._workers.abort(entry)

    def _is_held(self, now: float) -> bool:
        """Return whether no request may leave: the client is paused, in an outage or stalled."""
        return (
            now < self._throttle.paused_until
            or self._outage.since is not None
            or self._throttle.is_stalled(now)
        )

    def _time_out(self, entry: Entry, subscriber: Subscriber) -> None:
        error = entry.timeout_error(subscriber.timeout)
        self.leave(entry, subscriber)
        subscriber.on_end(entry.task_id, None, error)

    # Outages.

    def _on_outage_change(self) -> None:
        if self.closed:
            return
        loop = asyncio.get_running_loop()
        if self._outage.since is None:
            self._throttle.start_slowly(loop.time())
        else:
            self._throttle.stop_polls()
        # Not at once: this is called in the middle of a worker's turn.
        loop.call_soon(self._after_outage_change)

    def _after_outage_change(self) -> None:
        if not self.closed:
            now = asyncio.get_running_loop().time()
            self._outage_ends.run(now)
            self._go_on(now)

    def _on_probe_end(self, now: float, *, failed: bool) -> None:
        self._probe = None
        if self._outage.since is not None and not self.closed:
            self._outage.probe_ended(failed=failed)
            if failed:
                self._outage_ends.run(now)
