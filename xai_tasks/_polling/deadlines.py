"""When waits time out."""

from __future__ import annotations

from collections.abc import Callable

from xai_tasks._polling.entries import NEVER, Entry, Subscriber
from xai_tasks._polling.packed import BulkOwner
from xai_tasks._polling.rotation import Rotation
from xai_tasks._polling.schedule import Schedule
from xai_tasks._polling.slices import SLICE
from xai_tasks._polling.stops import Stops

_RECHECK = 1.0
"""Seconds after which a wait that is overdue, but whose id is owed a poll, is considered again."""

_SILENCE = 10.0
"""Seconds that the answer to an owed poll may take."""


class Deadlines:
    """Times out waits: of single subscribers one by one, of a stream through its owner.

    Each id is asked for once before its wait times out, and once more if the process was stopped
    at its deadline. It is then owed a poll, unless no request may leave anyway.
    """

    __slots__ = ("_is_held", "_rotation", "_schedule", "_stops", "_time_out")

    def __init__(
        self,
        rotation: Rotation,
        is_held: Callable[[float], bool],
        time_out: Callable[[Entry, Subscriber], None],
    ) -> None:
        """Ask `is_held` whether requests may leave now; call `time_out` to end a wait."""
        self._rotation = rotation
        self._is_held = is_held
        self._time_out = time_out
        self._schedule: Schedule[Subscriber | BulkOwner] = Schedule()
        self._stops = Stops()

    def add(self, subscriber: Subscriber) -> None:
        """Time out a wait at its deadline, if it has one."""
        if subscriber.deadline < NEVER:
            due = self._schedule.add(subscriber, subscriber.deadline)
            subscriber.due = subscriber.deadline = due

    def remove(self, subscriber: Subscriber) -> None:
        """Undo `add`."""
        if subscriber.due is not None:
            self._schedule.remove(subscriber, subscriber.due)
            subscriber.due = None

    def add_owner(self, owner: BulkOwner, when: float) -> float:
        """Call the `expire` of a stream at `when`; return what `remove_owner` needs."""
        return self._schedule.add(owner, when)

    def remove_owner(self, owner: BulkOwner, due: float) -> None:
        """Undo `add_owner`."""
        self._schedule.remove(owner, due)

    def next_time(self) -> float:
        """Return the earliest deadline."""
        return self._schedule.next_time()

    def run(self, due: float, now: float) -> None:
        """End the waits whose deadline has passed, a slice at most.

        Args:
            due: the time at which this should have been called.
            now: the time at which it is.

        """
        self._stops.observe(due, now)
        for _ in range(SLICE):
            item = self._schedule.pop(now)
            if item is None:
                break
            if isinstance(item, Subscriber):
                item.due = None
                self.expire(item.entry, item, now)
            else:
                item.expire(now)

    def expire(self, entry: Entry, subscriber: Subscriber, now: float) -> None:
        """Time out a wait whose deadline has passed, unless its id is owed a poll."""
        if not entry.owed:
            if self._stops.cover(subscriber.deadline):
                # Of a request in flight the answer may be from before the stop.
                entry.owed = 1 if entry.due is not None else 2
            elif entry.sent_at is None:
                entry.owed = 1
            if entry.owed:
                self._rotation.hasten(entry, now)
        if entry.owed and not self._is_held(now) and not self._is_silent(entry, subscriber, now):
            subscriber.due = self._schedule.add(subscriber, now + _RECHECK)
        else:
            self._time_out(entry, subscriber)

    def end_overdue(self, entry: Entry, now: float) -> None:
        """Time out the waits that have only waited for an owed poll."""
        for subscriber in entry.all():
            if subscriber.deadline <= now:
                self._time_out(entry, subscriber)

    def _is_silent(self, entry: Entry, subscriber: Subscriber, now: float) -> bool:
        """Return whether the request for an overdue wait has had no answer for long enough."""
        if entry.due is not None or entry.sent_at is None:
            return False
        return now > max(entry.sent_at, subscriber.deadline, self._stops.end) + _SILENCE
