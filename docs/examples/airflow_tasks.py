"""Wait for a batch of tasks in Airflow, without a worker: a deferrable operator and its trigger.

Put this file where the scheduler, the workers and the triggerer can import it, such as the plugins
folder. MOUNTSEA_API_KEY is in the environment of the triggerer; it is in no DAG and in no database.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

from xai_tasks import TaskClient


class TasksTrigger(BaseTrigger):
    """Wait until all tasks of a batch have ended.

    It only waits, and polling is idempotent. So it does no harm if a triggerer is restarted, or if
    two run the same trigger for a while.

    Args:
        task_ids: the batch.
        end: Unix time until which to wait. It stays the same if another triggerer takes over.

    """

    def __init__(self, task_ids: Sequence[str], end: float) -> None:
        super().__init__()
        self.task_ids = list(task_ids)
        self.end = end

    def serialize(self) -> tuple[str, dict[str, Any]]:
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {"task_ids": self.task_ids, "end": self.end}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        outcomes: list[dict[str, Any]] = [{}] * len(self.task_ids)
        timeout = max(0.0, self.end - time.time())
        async with TaskClient() as client:
            async for outcome in client.as_completed(self.task_ids, timeout=timeout):
                outcomes[outcome.index] = outcome.to_dict()
        yield TriggerEvent(outcomes)


class WaitForTasks(BaseOperator):
    """Wait for a batch of tasks, and return their outcomes in the order of the ids.

    The operator holds no worker while it waits. A retry waits again, for the same ids.

    Args:
        task_ids: the batch, usually what an earlier task returned.
        timeout: seconds to wait for the whole batch.
        check: whether the operator fails unless all tasks completed.

    """

    template_fields = ("task_ids",)

    def __init__(
        self, *, task_ids: Sequence[str], timeout: float = 3600.0, check: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.task_ids = task_ids
        self.timeout = timeout
        self.check = check

    def execute(self, context: Any) -> list[dict[str, Any]]:
        task_ids = list(self.task_ids)
        if task_ids:  # `defer` raises: Airflow goes on with `resume`
            trigger = TasksTrigger(task_ids, time.time() + self.timeout)
            self.defer(trigger=trigger, method_name="resume")
        return []

    def resume(self, context: Any, event: list[dict[str, Any]]) -> list[dict[str, Any]]:
        failed = [outcome for outcome in event if not outcome["ok"]]
        if failed and self.check:
            messages = "; ".join(outcome["error"]["message"] for outcome in failed[:5])
            raise RuntimeError(f"{len(failed)} of {len(event)} tasks did not complete: {messages}")
        return event
