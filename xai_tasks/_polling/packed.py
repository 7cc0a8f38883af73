"""The ids of bulk streams while nothing happens to them, for few bytes each.

A process that waits for 100,000 ids has to keep them somewhere. As objects they cost 500 bytes each
and every full garbage collection reads all of them, which stops the event loop for a tenth of
a second. So an entry that one bulk stream alone waits for is packed into a string of bytes between
its polls. It is an `Entry` again while it is in flight, or when somebody else waits for its id.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections import deque
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
    def on_close(self, index: int, *, first: bool) -> None:
        """Take the end of the wait for an id by the end of the client; `first` as in `on_end`."""

    @abstractmethod
    def expire(self, now: float) -> None:
        """Time out the ids whose deadline has passed."""


class BulkSubscriber(Subscriber):
    """One id of a bulk stream, while its entry is not packed."""

    __slots__ = ("index", "owner", "polled")

    def __init__(self, entry: Entry, owner: BulkOwner, index: int, started: float) -> None:
        self.entry = entry
        self.owner = owner
        self.index = index
        self.polled = entry.polls > 0
        self.timeout = owner.timeout
        self.deadline = started + owner.timeout
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

_ROW = struct.Struct("=IIQddd")  # owner, polls, index, due, started, polled at; then the answer

_SHARDS = 64
"""Dicts that share the entries: one of a million entries takes 50 ms to grow."""


@define
class Packed:
    """Whose a packed entry is, and when it is due."""

    owner: BulkOwner
    index: int
    due: float
    deadline: float
    polled: bool


class PackedEntries:
    """Entries that one bulk stream alone waits for, each as bytes."""

    __slots__ = ("_numbers", "_owners", "_serial", "_shards")

    def __init__(self) -> None:
        self._shards: list[dict[str, bytes]] = [{} for _ in range(_SHARDS)]
        """Each entry by its id, in the dict that `_rows` says."""
        self._numbers: dict[BulkOwner, int] = {}
        """What stands for each stream in a packed entry."""
        self._owners: dict[int, BulkOwner] = {}
        self._serial = 0

    def __contains__(self, task_id: str) -> bool:
        return bool(self._rows(task_id).get(task_id))

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
        row = _ROW.pack(self._numbers[owner], 0, index, due, now, now)
        self._rows(task_id)[task_id] = row

    def pack(self, entry: Entry, subscriber: BulkSubscriber, due: float) -> None:
        """Pack an entry, which has no failures, and began with its only subscriber."""
        owner = subscriber.owner
        number, index = self._numbers[owner], subscriber.index
        row = _ROW.pack(number, entry.polls, index, due, entry.started, entry.polled_at)
        if entry.kept is not None and owner.timeout < NEVER:  # who has no timeout never needs it
            row += entry.kept
        self._rows(entry.task_id)[entry.task_id] = row

    def look_up(self, task_id: str, group: PolicyGroup) -> Packed | None:
        """Return what is packed for an id; None if there is nothing, or nothing in `group`."""
        row = self._rows(task_id).get(task_id)
        if not row:
            return None
        number, polls, index, due, started, _ = _ROW.unpack_from(row)
        owner = self._owners[number]
        if owner.group is not group:
            return None
        return Packed(owner, index, due, started + owner.timeout, polls > 0)

    def remove(self, task_id: str) -> None:
        """Remove an entry that is packed."""
        del self._rows(task_id)[task_id]

    def take(self, task_id: str, group: PolicyGroup | None = None) -> Entry | None:
        """Unpack an entry; return None if there is none, or none in `group`."""
        rows = self._rows(task_id)
        row = rows.get(task_id)
        if not row:
            return None
        number, polls, index, due, started, polled_at = _ROW.unpack_from(row)
        owner = self._owners[number]
        if group is not None and owner.group is not group:
            return None
        rows[task_id] = _UNPACKED
        entry = Entry(task_id, owner.group, started)
        entry.polls = polls
        entry.polled_at = polled_at
        entry.sent_at = polled_at if polls else None
        entry.due = due
        entry.subscribers = BulkSubscriber(entry, owner, index, started)
        if len(row) > _ROW.size:
            entry.kept = row[_ROW.size :]
        return entry

    def forget(self, task_id: str) -> None:
        """Remove what stands in for an entry that has ended."""
        rows = self._rows(task_id)
        if rows.get(task_id) == _UNPACKED:
            del rows[task_id]

    def _rows(self, task_id: str) -> dict[str, bytes]:
        return self._shards[hash(task_id) % _SHARDS]


_BLOCK = 128


class _Block:
    """Up to 128 ids in a row."""

    __slots__ = ("ids", "live")

    def __init__(self) -> None:
        self.ids: list[str] | tuple[str, ...] = []
        self.live = 0
        """A bit for each id that has not ended."""


class PendingIds:
    """The ids of a stream that have not ended, by the number with which each was pulled.

    They stand in blocks, and a block is freed when its last id has ended. So an id costs 10 bytes,
    and one that takes long keeps its block and not all that were pulled after it. A full block has
    its ids in a tuple, which the garbage collector does not see, as it does a list.
    """

    __slots__ = ("_blocks", "_last", "closed", "expired")

    def __init__(self) -> None:
        self._blocks: dict[int, _Block] = {}
        self._last: _Block | None = None
        """The block that is being filled."""
        self.closed: deque[int] = deque()
        """Ids that the end of the client has ended, by number. They become outcomes one by one as
        these are read: 100,000 at once would set off garbage collections of 60 ms and more."""
        self.expired: int = 0
        """The ids before this number have met their deadline."""

    def __bool__(self) -> bool:
        """Return whether there is any."""
        return bool(self._blocks)

    def add(self, index: int, task_id: str) -> None:
        """Add an id; numbers must rise from one to the next."""
        block = self._blocks.get(index // _BLOCK)
        if block is None:
            if self._last is not None:
                self._last.ids = tuple(self._last.ids)
            block = self._blocks[index // _BLOCK] = self._last = _Block()
        ids = cast("list[str]", block.ids)
        ids += [""] * (index % _BLOCK - len(ids))
        ids.append(task_id)
        block.live |= 1 << index % _BLOCK

    def discard(self, index: int) -> bool:
        """Remove an id that has ended; return False if it was removed before."""
        block, bit = self._blocks.get(index // _BLOCK), 1 << index % _BLOCK
        if block is None or not block.live & bit:
            return False
        block.live ^= bit
        if not block.live:
            del self._blocks[index // _BLOCK]
        return True

    def task_id(self, index: int) -> str:
        """Return an id that has not ended."""
        return self._blocks[index // _BLOCK].ids[index % _BLOCK]

    def after(self, index: int) -> Iterator[tuple[int, str]]:
        """Iterate over number and id of those from `index` on; ids may end meanwhile."""
        for number in [number for number in self._blocks if number >= index // _BLOCK]:
            block = self._blocks.get(number)
            if block is None:
                continue
            for offset, task_id in enumerate(block.ids):
                at = number * _BLOCK + offset
                if at >= index and block.live >> offset & 1:
                    yield at, task_id
