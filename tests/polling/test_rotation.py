from __future__ import annotations

import pytest
from test_packed import Owner

from xai_tasks import PollPolicy
from xai_tasks._polling.rotation import Rotation


@pytest.fixture
def rotation():
    return Rotation()


def test_an_entry_that_is_due_later_can_be_hastened(rotation):
    entry = rotation.add("a", rotation.add_group(PollPolicy()), 1000.0)
    assert rotation.pop(1000.0) is entry
    entry.polls = 1
    rotation.schedule(entry, 1000.0, 30.0)
    assert rotation.pop(1001.0) is None

    rotation.hasten(entry, 1001.0)
    rotation.hasten(entry, 1001.0)

    assert rotation.pop(1001.0) is entry
    rotation.hasten(entry, 1002.0)
    assert entry.due is None


def test_a_group_goes_with_its_last_entry_and_stream(rotation):
    group = rotation.add_group(PollPolicy())
    owner = Owner()
    owner.group = group
    rotation.register(owner, group)
    entry = rotation.add("a", group, 1000.0)

    assert rotation.discard(entry)
    assert rotation.groups == [group]
    rotation.release(owner)

    assert rotation.groups == []
    assert not rotation.discard(entry)
    rotation.release(owner)
