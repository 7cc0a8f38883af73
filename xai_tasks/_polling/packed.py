"""The ids of bulk streams while nothing happens to them, for few bytes each.

A process that waits for 100,000 ids has to keep them somewhere. As objects they cost 500 bytes each
and every full garbage collection reads all of them, which stops the event loop for a tenth of
a second. So an entry that one bulk stream alone waits for is packed into a string of bytes between
its polls. It is an `Entry` again while it is in flight, or when somebody else waits for its id.
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from array import array
from collections.abc import Hashable, Iterator
from typing import cast

from attrs import define

from xai_tasks._models import TaskResult
from xai_tasks._polling.entries import NEVER, Entry, PolicyGroup, Subscriber


class BulkOwner(ABC):
    """A stream that waits for many ids under one policy."""

    __slots__ = ()

    group: PolicyGroup
    ids: PendingIds
    """The ids that have not ended."""
    timeout: float
    """Seconds that each id may take; infinity for no limit."""

    @abstractmethod
    def on_poll(self, index: int, task: TaskResult | None, *, first: bool) -> None:
        """Take note of a poll after which the wait goes on; `first` if the id had none before."""

    @abstractmethod
    def on_end(
        self,
        index: int,
        task_id: str,
        task: TaskResult | None,
        error: BaseException | None,
        *,
        first: bool,
    ) -> None:
        """Take the end of the wait for the id pulled as number `index`."""

    @abstractmethod
    def expire(self, now: float) -> None:
        """Time out the ids whose deadline has passed."""


class BulkSubscriber(Subscriber):
    """One id of a bulk stream, while its entry is not packed."""

    __slots__ = ("index", "owner", "polled")

    def __init__(self, entry: Entry, owner: BulkOwner, index: int) -> None:
        self.entry = entry
        self.owner = owner
        self.index = index
        self.polled = entry.polls > 0
        self.timeout = owner.timeout
        self.deadline = owner.ids.deadline(index)
        self.due = None

    @property
    def key(self) -> Hashable:
        return self.owner, self.index

    def on_poll(self, task: TaskResult | None) -> None:
        self.owner.on_poll(self.index, task, first=not self.polled)
        self.polled = True

    def on_end(self, task_id: str, task: TaskResult | None, error: BaseException | None) -> None:
        self.owner.on_end(self.index, task_id, task, error, first=not self.polled)


_UNPACKED = b""
"""Stands in for an entry that is not packed now: a dict whose keys come and go grows."""

_ROW = struct.Struct("=IIQddd")  # owner, polls, index, due, started, polled at; then the body


@define
class Packed:
    """Whose a packed entry is, and when it is due."""

    owner: BulkOwner
    index: int
    due: float
    polled: bool


class PackedEntries:
    """Entries that one bulk stream alone waits for, each as bytes."""

    __slots__ = ("_numbers", "_owners", "_rows", "_serial")

    def __init__(self) -> None:
        self._rows: dict[str, bytes] = {}
        self._numbers: dict[BulkOwner, int] = {}
        """What stands for each stream in a packed entry."""
        self._owners: dict[int, BulkOwner] = {}
        self._serial = 0

    def __contains__(self, task_id: str) -> bool:
        return bool(self._rows.get(task_id))

    def register(self, owner: BulkOwner) -> None:
        """Add a stream, before its first id."""
        self._serial += 1
        self._numbers[owner] = self._serial
        self._owners[self._serial] = owner

    def release(self, owner: BulkOwner) -> None:
        """Remove a stream, none of whose ids is packed any more. Twice is fine."""
        number = self._numbers.pop(owner, None)
        if number is not None:
            del self._owners[number]

    def add(self, task_id: str, owner: BulkOwner, index: int, now: float, due: float) -> None:
        """Add a new id that is due at `due` for the first time."""
        self._rows[task_id] = _ROW.pack(self._numbers[owner], 0, index, due, now, now)

    def pack(self, entry: Entry, subscriber: BulkSubscriber, due: float) -> None:
        """Pack an entry, which has no other subscriber and no failures."""
        owner = subscriber.owner
        number, index = self._numbers[owner], subscriber.index
        row = _ROW.pack(number, entry.polls, index, due, entry.started, entry.polled_at)
        if entry.body is not None and owner.timeout < NEVER:  # who has no timeout never needs it
            row += entry.body
        self._rows[entry.task_id] = row

    def look_up(self, task_id: str, group: PolicyGroup) -> Packed | None:
        """Return what is packed for an id; None if there is nothing, or nothing in `group`."""
        row = self._rows.get(task_id)
        if not row:
            return None
        number, polls, index, due, _, _ = _ROW.unpack_from(row)
        owner = self._owners[number]
        return Packed(owner, index, due, polls > 0) if owner.group is group else None

    def remove(self, task_id: str) -> None:
        """Remove an entry that is packed."""
        del self._rows[task_id]

    def take(self, task_id: str, group: PolicyGroup | None = None) -> Entry | None:
        """Unpack an entry; return None if there is none, or none in `group`."""
        row = self._rows.get(task_id)
        if not row:
            return None
        number, polls, index, due, started, polled_at = _ROW.unpack_from(row)
        owner = self._owners[number]
        if group is not None and owner.group is not group:
            return None
        self._rows[task_id] = _UNPACKED
        entry = Entry(task_id, owner.group, started)
        entry.polls = polls
        entry.polled_at = polled_at
        entry.sent_at = polled_at if polls else None
        entry.due = due
        entry.subscribers = BulkSubscriber(entry, owner, index)
        if len(row) > _ROW.size:
            entry.body = row[_ROW.size :]
        return entry

    def forget(self, task_id: str) -> None:
        """Remove what stands in for an entry that has ended."""
        if self._rows.get(task_id) == _UNPACKED:
            del self._rows[task_id]


_BLOCK = 64


class _Block:
    """Up to 64 ids in a row."""

    __slots__ = ("deadlines", "ids", "live")

    def __init__(self) -> None:
        self.ids: list[str] | tuple[str, ...] = [""] * _BLOCK
        self.deadlines = array("d", [math.nan]) * _BLOCK
        """Not a number where there is no id, or one that has ended."""
        self.live = 0


class PendingIds:
    """The ids of a stream that have not ended, by the number with which each was pulled.

    They stand in blocks, and a block is freed when its last id has ended. So an id costs 20 bytes,
    and one that takes long keeps its block and not all that were pulled after it. A full block has
    its ids in a tuple, which the garbage collector does not see, as it does a list.
    """

    __slots__ = ("_blocks", "_last", "expired")

    def __init__(self) -> None:
        self._blocks: dict[int, _Block] = {}
        self._last: _Block | None = None
        """The block that is being filled."""
        self.expired: int = 0
        """The ids before this number have met their deadline."""

    def __bool__(self) -> bool:
        """Return whether there is any."""
        return bool(self._blocks)

    def add(self, index: int, task_id: str, deadline: float) -> None:
        """Add an id; numbers and deadlines must not fall from one to the next."""
        block = self._blocks.get(index // _BLOCK)
        if block is None:
            if self._last is not None:
                self._last.ids = tuple(self._last.ids)
            block = self._blocks[index // _BLOCK] = self._last = _Block()
        cast("list[str]", block.ids)[index % _BLOCK] = task_id
        block.deadlines[index % _BLOCK] = deadline
        block.live += 1

    def discard(self, index: int) -> bool:
        """Remove an id that has ended; return False if it was removed before."""
        block = self._blocks.get(index // _BLOCK)
        if block is None or math.isnan(block.deadlines[index % _BLOCK]):
            return False
        block.deadlines[index % _BLOCK] = math.nan
        block.live -= 1
        if not block.live:
            del self._blocks[index // _BLOCK]
        return True

    def deadline(self, index: int) -> float:
        """Return the time at which the wait for an id that has not ended times out."""
        return self._blocks[index // _BLOCK].deadlines[index % _BLOCK]

    def after(self, index: int) -> Iterator[tuple[int, str]]:
        """Iterate over number and id of those from `index` on; ids may end meanwhile."""
        for number in [number for number in self._blocks if number >= index // _BLOCK]:
            block = self._blocks.get(number)
            if block is None:
                continue
            for offset, task_id in enumerate(block.ids):
                at = number * _BLOCK + offset
                if at >= index and not math.isnan(block.deadlines[offset]):
                    yield at, task_id
