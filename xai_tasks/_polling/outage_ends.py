"""Which waits an outage ends, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xai_tasks._errors import XaiTasksError
from xai_tasks._limits.outage import Outage
from xai_tasks._polling.entries import NEVER, PolicyGroup
from xai_tasks._polling.rotation import Rotation
from xai_tasks._polling.slices import in_slices


class OutageEnds:
    """Ends the waits that an outage has outlasted, each policy's after its `max_outage`."""

    __slots__ = ("_end_id", "_outage", "_rotation", "next_time")

    def __init__(
        self,
        outage: Outage,
        rotation: Rotation,
        end_id: Callable[[PolicyGroup, str, XaiTasksError], None],
    ) -> None:
        """Call `end_id` to end all waits for an id with an error."""
        self._outage = outage
        self._rotation = rotation
        self._end_id = end_id
        self.next_time: float = NEVER
        """When the outage, if there is one, ends the next waits."""

    def on_change(self) -> None:
        """Take note that an outage has begun or is over."""
        ends = [self._future_end(group) for group in self._rotation.groups]
        self.next_time = min(ends, default=NEVER)

    def on_new_group(self, group: PolicyGroup) -> None:
        """Take note of the first wait under a policy."""
        if self._outage.since is not None:
            self.next_time = min(self.next_time, self._future_end(group))

    def run(self, now: float) -> None:
        """End the waits that the outage has outlasted."""
        since = self._outage.since
        for group in self._rotation.groups:
            if since is not None and now >= since + _max_outage(group):
                members = ((group, task_id) for task_id in self._rotation.members(group))
                in_slices(members, self._end_one)
        self.on_change()

    def _end_one(self, member: tuple[PolicyGroup, str]) -> None:
        group, task_id = member
        if self._outage.since is not None:
            entry = group.entries.get(task_id)  # a packed one has no failures
            failures = None if entry is None else entry.failures
            own = None if failures is None or failures.since is None else failures.last
            self._end_id(group, task_id, self._outage.error_for(task_id, own))

    def _future_end(self, group: PolicyGroup) -> float:
        """Return when an outage, if there is one, ends the waits under a policy.

        For waits that begin when that time has passed already: infinity. The next probe that fails
        ends them. If nobody could begin to wait, nobody would find out that the outage is over.
        """
        since = self._outage.since
        end = NEVER if since is None else since + _max_outage(group)
        return end if end > asyncio.get_running_loop().time() else NEVER


def _max_outage(group: PolicyGroup) -> float:
    limit = group.policy.max_outage
    return NEVER if limit is None else limit
