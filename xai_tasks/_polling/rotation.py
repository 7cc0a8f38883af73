"""Every id that is polled, and when each is polled next."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import cast

from xai_tasks._policies import PollPolicy
from xai_tasks._polling.entries import Entry, PolicyGroup
from xai_tasks._polling.packed import BulkOwner, BulkSubscriber, Packed, PackedEntries
from xai_tasks._polling.schedule import Schedule


class Rotation:
    """The entries of a client. Each is either scheduled or in flight.

    Ids that have never been polled stand in a schedule of their own: in an outage they go first.
    A packed entry is scheduled by its id, any other by itself.
    """

    __slots__ = ("_first", "_groups", "_later", "_packed", "waiting")

    def __init__(self) -> None:
        self._groups: dict[PollPolicy, PolicyGroup] = {}
        self._packed = PackedEntries()
        self._first: Schedule[Entry | str] = Schedule(early=True)
        self._later: Schedule[Entry | str] = Schedule()
        self.waiting: int = 0
        """The number of entries."""

    @property
    def groups(self) -> list[PolicyGroup]:
        """The policies in use, and what is polled under each."""
        return list(self._groups.values())

    def group(self, policy: PollPolicy) -> PolicyGroup | None:
        """Return the group of a policy that is in use."""
        return self._groups.get(policy)

    def add_group(self, policy: PollPolicy) -> PolicyGroup:
        """Add the group of a policy; it is removed with its last entry and stream."""
        group = self._groups[policy] = PolicyGroup(policy)
        return group

    def register(self, owner: BulkOwner, group: PolicyGroup) -> None:
        """Add a bulk stream to a group."""
        self._packed.register(owner)
        group.owners.add(owner)

    def release(self, owner: BulkOwner) -> None:
        """Remove a bulk stream, none of whose ids is in rotation any more."""
        self._packed.release(owner)
        owner.group.owners.discard(owner)
        self._prune(owner.group)

    def find(self, task_id: str, group: PolicyGroup) -> Entry | None:
        """Return the entry of an id under a policy, unpacked; None if there is none."""
        entry = group.entries.get(task_id)
        if entry is None and (entry := self._packed.take(task_id, group)) is not None:
            group.entries[task_id] = entry
            due = cast("float", entry.due)  # a packed entry is scheduled
            schedule = self._schedule_of(entry)
            schedule.remove(task_id, due)
            entry.due = schedule.add(entry, due)
        return entry

    def find_packed(self, task_id: str, group: PolicyGroup) -> Packed | None:
        """Return whose the entry of an id under a policy is, if it is packed."""
        return self._packed.look_up(task_id, group)

    def drop_packed(self, task_id: str, packed: Packed) -> None:
        """Remove what `find_packed` has just found, without unpacking it."""
        self._packed.remove(task_id)
        (self._later if packed.polled else self._first).remove(task_id, packed.due)
        self.waiting -= 1

    def add(self, task_id: str, group: PolicyGroup, now: float) -> Entry:
        """Add an id that is due at once."""
        entry = group.entries[task_id] = Entry(task_id, group, now)
        self.waiting += 1
        entry.due = entry.started = self._first.add(entry, now)
        return entry

    def add_packed(self, task_id: str, owner: BulkOwner, index: int, now: float) -> bool:
        """Add an id of a bulk stream, due at once; False if it is in rotation already."""
        if task_id in self._packed or task_id in owner.group.entries:
            return False
        self.waiting += 1
        self._packed.add(task_id, owner, index, now, self._first.add(task_id, now))
        return True

    def next_time(self) -> float:
        """Return when the next entry is due; infinity if none is scheduled."""
        return min(self._first.next_time(), self._later.next_time())

    def pop(self, now: float) -> Entry | None:
        """Take the entry that has been due for longest; None if none is due."""
        if self._first.next_time() <= self._later.next_time():
            return self._taken(self._first.pop(now))
        return self._taken(self._later.pop(now))

    def pop_probe(self, now: float) -> Entry | None:
        """Take an entry that is due, one that has never been polled if there is any."""
        return self._taken(self._first.pop(now) or self._later.pop(now))

    def schedule(self, entry: Entry, now: float, delay: float = 0.0) -> None:
        """Schedule an entry that was in flight, in `delay` seconds; it is packed if possible."""
        subscriber = entry.subscribers
        if (
            isinstance(subscriber, BulkSubscriber)
            and entry.failures is None
            and not entry.owed
            and subscriber.deadline == entry.started + subscriber.timeout
            and entry.task_id not in self._packed
        ):
            del entry.group.entries[entry.task_id]
            due = self._schedule_of(entry).add(entry.task_id, now + delay, delay)
            self._packed.pack(entry, subscriber, due)
        else:
            entry.due = self._schedule_of(entry).add(entry, now + delay, delay)

    def hasten(self, entry: Entry, now: float) -> None:
        """Make an entry due at once, if it is scheduled for later."""
        if entry.due is not None and entry.due > now:
            schedule = self._schedule_of(entry)
            schedule.remove(entry, entry.due)
            entry.due = schedule.add(entry, now)

    def discard(self, entry: Entry) -> bool:
        """Remove an entry, scheduled or in flight; False if it was removed before."""
        group = entry.group
        if group.entries.get(entry.task_id) is not entry:
            return False
        if entry.due is not None:
            self._schedule_of(entry).remove(entry, entry.due)
            entry.due = None
        del group.entries[entry.task_id]
        self._packed.forget(entry.task_id)
        self.waiting -= 1
        self._prune(group)
        return True

    def members(self, group: PolicyGroup) -> Iterator[str]:
        """Iterate over the ids under a policy; they may be removed meanwhile."""
        streams = (task_id for owner in list(group.owners) for _, task_id in owner.ids.after(0))
        return chain(list(group.entries), streams)

    def _taken(self, item: Entry | str | None) -> Entry | None:
        if item is None:
            return None
        if isinstance(item, str):
            entry = cast("Entry", self._packed.take(item))
            entry.group.entries[item] = entry
        else:
            entry = item
        entry.due = None
        return entry

    def _schedule_of(self, entry: Entry) -> Schedule[Entry | str]:
        return self._later if entry.polls else self._first

    def _prune(self, group: PolicyGroup) -> None:
        if not group.entries and not group.owners and self._groups.get(group.policy) is group:
            del self._groups[group.policy]
