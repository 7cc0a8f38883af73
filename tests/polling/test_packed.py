from __future__ import annotations

import gc
import sys

import pytest

from xai_tasks import PollPolicy
from xai_tasks._polling.entries import NEVER, PolicyGroup
from xai_tasks._polling.packed import BulkOwner, BulkSubscriber, PackedEntries, PendingIds


class Owner(BulkOwner):
    def __init__(self, timeout=60.0):
        self.group = PolicyGroup(PollPolicy())
        self.ids = PendingIds()
        self.timeout = timeout
        self.heard = []

    def on_poll(self, index, task, *, first):
        self.heard.append((index, task, first))

    def on_end(self, index, task_id, task, error, *, first):
        self.heard.append((index, task_id, task, error, first))

    def on_close(self, index, *, first):
        pass

    def expire(self, now):
        pass


@pytest.fixture
def packed():
    return PackedEntries()


def added(packed, task_id="a", index=0, timeout=60.0):
    owner = Owner(timeout)
    packed.register(owner)
    owner.ids.add(index, task_id)
    packed.add(task_id, owner, index, 1000.0, 1000.5)
    return owner


class TestPackedEntries:
    def test_an_entry_comes_out_as_it_went_in(self, packed):
        owner = added(packed, index=7)
        entry = packed.take("a")
        assert (entry.polls, entry.sent_at, entry.due, entry.kept) == (0, None, 1000.5, None)
        entry.polls, entry.polled_at = 3, 1001.0
        entry.keep(b'{"taskId": "a", "status": "pending"}')

        packed.pack(entry, entry.subscribers, 1005.0)
        again = packed.take("a")

        assert (again.task_id, again.group) == ("a", owner.group)
        assert (again.polls, again.started) == (3, 1000.0)
        assert (again.polled_at, again.sent_at, again.due) == (1001.0, 1001.0, 1005.0)
        assert again.kept == entry.kept
        assert again.last.task_id == "a"
        assert again.subscribers.owner is owner
        assert (again.subscribers.index, again.subscribers.deadline) == (7, 1060.0)

    def test_without_a_timeout_the_last_answer_is_not_kept(self, packed):
        added(packed, timeout=NEVER)
        entry = packed.take("a")
        entry.keep(b"{}")

        packed.pack(entry, entry.subscribers, 1005.0)

        assert packed.take("a").kept is None

    def test_what_is_taken_is_not_packed_any_more(self, packed):
        added(packed)

        packed.take("a")

        assert "a" not in packed
        assert packed.take("a") is None

    def test_an_entry_of_another_group_is_left(self, packed):
        added(packed)

        assert packed.take("a", PolicyGroup(PollPolicy())) is None
        assert "a" in packed

    def test_nothing_is_left_of_what_has_ended(self, packed):
        owner = added(packed)
        packed.take("a")

        packed.forget("a")
        packed.forget("b")
        packed.release(owner)
        packed.release(owner)

        assert (packed._owners, packed._numbers) == ({}, {})
        assert not any(packed._shards)

    def test_what_is_packed_is_not_forgotten(self, packed):
        added(packed)

        packed.forget("a")

        assert "a" in packed

    def test_the_garbage_collector_does_not_see_a_packed_entry(self, packed):
        added(packed)

        if sys.version_info < (3, 14):  # from then on it sees every dict
            assert not any(gc.is_tracked(shard) for shard in packed._shards)
        assert not gc.is_tracked(packed._rows("a")["a"])


class TestBulkSubscriber:
    def test_reports_the_first_poll_as_such(self, packed):
        owner = added(packed)
        subscriber = packed.take("a").subscribers

        subscriber.on_poll(None)
        subscriber.on_poll(None)

        assert owner.heard == [(0, None, True), (0, None, False)]

    def test_reports_an_end_before_the_first_poll_as_such(self, packed):
        owner = added(packed)
        error = ValueError()

        packed.take("a").subscribers.on_end("a", None, error)

        assert owner.heard == [(0, "a", None, error, True)]

    def test_of_an_entry_that_was_polled_has_no_first_poll(self, packed):
        owner = added(packed)
        entry = packed.take("a")
        entry.polls = 1

        BulkSubscriber(entry, owner, 0, 1000.0).on_poll(None)

        assert owner.heard == [(0, None, False)]


class TestPendingIds:
    def test_come_in_the_order_in_which_they_were_pulled(self):
        ids = PendingIds()
        for n in range(1000):
            ids.add(n, f"task-{n}")

        assert list(ids.after(0)) == [(n, f"task-{n}") for n in range(1000)]
        assert list(ids.after(700)) == [(n, f"task-{n}") for n in range(700, 1000)]
        assert ids.task_id(321) == "task-321"

    def test_one_that_has_ended_is_gone(self):
        ids = PendingIds()
        for n in range(10):
            ids.add(n, f"task-{n}")

        assert ids.discard(4)
        assert not ids.discard(4)
        assert not ids.discard(4000)

        assert [n for n, _ in ids.after(0)] == [0, 1, 2, 3, 5, 6, 7, 8, 9]

    def test_a_block_is_freed_with_its_last_id(self):
        ids = PendingIds()
        for n in range(10_000):
            ids.add(n, f"task-{n}")
        assert ids

        for n in range(1, 10_000):
            ids.discard(n)
        assert len(ids._blocks) == 1
        ids.discard(0)

        assert not ids

    def test_may_end_while_they_are_iterated_over(self):
        ids = PendingIds()
        for n in range(600):
            ids.add(n, f"task-{n}")
        seen = []

        for n, _ in ids.after(0):
            seen.append(n)
            if n == 100:
                for other in range(200, 600):
                    ids.discard(other)
            ids.discard(n)

        assert seen == list(range(200))
        assert not ids
