"""Make a video from each prompt: submit, wait without a worker, collect the URLs."""

from __future__ import annotations

import asyncio
from typing import Any

from airflow.sdk import dag, task
from airflow_tasks import WaitForTasks

from xai_tasks import TaskClient, TaskResult, VideoRequest

PROMPTS = ["a cat eats a fish", "a fish eats a cat"]


# One mapped task for each prompt: its id is stored before the next is submitted. No retries, since
# each submission is paid for; see the text on what to do if one fails.
@task(retries=0)
def submit(prompt: str) -> str:
    async def main() -> str:
        async with TaskClient() as client:
            return await client.submit(VideoRequest(prompt))

    return asyncio.run(main())


@task
def urls(outcomes: list[dict[str, Any]]) -> list[str]:
    tasks = [TaskResult.from_raw(outcome["task"]) for outcome in outcomes]
    return [url for task in tasks for url in task.urls]


@dag(schedule=None)
def videos() -> None:
    ids = submit.expand(prompt=PROMPTS)
    waiting = WaitForTasks(task_id="wait", task_ids=ids, timeout=3600.0, retries=2)
    urls(waiting.output)


videos()
