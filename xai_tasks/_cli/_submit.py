"""What `run` submits: requests as there is room, and the ids of their tasks for `_job`."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from xai_tasks import (
    APIConnectionError,
    APIStatusError,
    AuthenticationError,
    ConfigurationError,
    PaymentRequiredError,
    SubmissionUncertainError,
    TaskClient,
    XaiTasksError,
)
from xai_tasks._cli._input import IdSource
from xai_tasks._cli._journal import Entry, Journal, JournalWriter
from xai_tasks._cli._records import NOT_SENT, REFUSED, UNCERTAIN, CompletedIds
from xai_tasks._cli._requests import RequestLines, Wanted
from xai_tasks._cli._tally import Tally

_SUBMITTERS = 8
"""Submissions in flight at most: that many are uncertain after a kill."""
_MAX_OUTAGE = 300.0
"""Seconds for which a request that can't be sent is tried again: a wait's `max_outage`."""
_HOPELESS = 10
"""Requests in a row that could not be sent, after which the rest is left to a later run."""
_LONGEST_DELAY = 30.0
"""Seconds between two attempts where the server names none."""
_GRACE = 10.0
"""Seconds in which requests that were sent are answered after an interruption."""
_EXCERPT = 200
"""Characters of a request in a message."""


class Plan:
    """The requests of a job, in order, less those that are done with.

    Args:
        lines: the input.
        parser: parses it.
        journal: what earlier runs began; None: nothing is resumed.
        completed: the tasks that have ended; None: nothing is resumed.
        retry_uncertain: whether to submit again what may have been accepted.

    """

    def __init__(
        self,
        lines: IdSource,
        parser: RequestLines,
        journal: Journal,
        completed: CompletedIds | None,
        *,
        retry_uncertain: bool,
    ) -> None:
        self._parser = parser
        self._journal = journal
        self._begun: list[Entry] = []
        self.lines = lines
        self.uncertain: Sequence[Entry] = ()
        """The requests that may have been accepted, and are not submitted again."""
        if completed is None:
            return
        self._begun = [
            *(each for each in journal.open_tasks() if completed.claim(each.task_id)),
            *journal.unsent(),
        ]
        if retry_uncertain:
            self._begun += journal.uncertain()
        else:
            self.uncertain = journal.uncertain()
        for end, count in ((UNCERTAIN, len(self.uncertain)), (REFUSED, journal.refused())):
            if count:
                completed.counts[end] = count

    @property
    def expected(self) -> float | None:
        """How many requests there will be, where that is known."""
        expected = self.lines.expected
        return None if expected is None else expected + len(self._begun)

    async def entries(self) -> AsyncIterator[tuple[Entry, Callable[[], None]]]:
        """Yield each request, and what to call once it has a line in the output."""
        for begun in self._begun:
            yield begun, lambda: None
        kept = len(self.lines.kept)
        async for line in self.lines:
            index = self.lines.taken - 1
            wanted = cast("Wanted", self._parser.parse(line))
            entry = self._journal.claim(wanted, is_more=index < kept)
            if entry is None:
                self.lines.settle(index)
            else:
                yield entry, partial(self.lines.settle, index)


class RequestSource:
    """Submits requests as there is room; an async iterable of the ids of their tasks.

    Args:
        client: submits.
        plan: the requests.
        writer: writes down what was begun.
        tally: counts what has no task.
        say: called with messages.
        max_pending: tasks that have not ended, at most.
        retry_statuses: answers that surely mean "not accepted".

    """

    def __init__(
        self,
        client: TaskClient,
        plan: Plan,
        writer: JournalWriter,
        tally: Tally,
        say: Callable[[str], None],
        *,
        max_pending: int,
        retry_statuses: frozenset[int],
    ) -> None:
        self._client = client
        self._plan = plan
        self._writer = writer
        self._tally = tally
        self._say = say
        self._retry_statuses = retry_statuses
        self._slots = asyncio.Semaphore(max_pending)
        self._reading = asyncio.Lock()
        self._answered = asyncio.Event()
        self._accepted: asyncio.Queue[Entry | BaseException | None] = asyncio.Queue()
        self._sent: set[asyncio.Task[None]] = set()
        self._waited_for: dict[int, Entry] = {}
        self._not_sent_in_a_row = 0
        self.stopped = False
        """Set it, and no more requests are begun."""
        self.taken = 0
        """Ids given out."""

    @property
    def expected(self) -> float | None:
        """How many requests there will be, where that is known."""
        return self._plan.expected

    @property
    def misread(self) -> int:
        """Lines that hold no request."""
        return self._plan.lines.misread

    @property
    def broken(self) -> bool:
        """Whether an input could not be read to its end."""
        return self._plan.lines.broken

    def prove(self) -> None:
        """Do nothing: the ids are the server's own."""

    def settle(self, index: int) -> None:
        """Make room: the task with this index, counted from 0 in the order given out, has ended."""
        del self._waited_for[index]
        self._slots.release()

    def unfinished(self) -> list[str]:
        """Stop, and return the lines read from a pipe that were not begun."""
        self.stopped = True
        return self._plan.lines.unfinished()

    def about(self, index: int) -> Mapping[str, Any]:
        """Return what the line of a task says of its request."""
        return self._waited_for[index].record

    async def __aiter__(self) -> AsyncIterator[str]:
        for entry in self._plan.uncertain:
            self._say(
                f"not submitted again, as it may have been accepted: {_excerpt(entry)}; "
                "look into the account, or use --retry-uncertain"
            )
        self._plan.lines.prove()
        work = asyncio.create_task(self._work())
        try:
            while True:
                found = await self._accepted.get()
                if found is None:
                    return
                if isinstance(found, BaseException):
                    raise found
                self._waited_for[self.taken] = found
                self.taken += 1
                yield found.task_id
        finally:
            self.stopped = True
            work.cancel()
            await asyncio.wait([work])

    async def _work(self) -> None:
        """Run the submitters, the first of them alone until the server has answered it."""
        entries = self._plan.entries()
        submitters = [asyncio.create_task(self._submitter(entries))]
        try:
            answered = asyncio.create_task(self._answered.wait())
            await asyncio.wait([answered, *submitters], return_when=asyncio.FIRST_COMPLETED)
            answered.cancel()
            submitters += [
                asyncio.create_task(self._submitter(entries)) for _ in range(_SUBMITTERS - 1)
            ]
            for each in asyncio.as_completed(submitters):
                await each
            self._accepted.put_nowait(None)
        except Exception as error:  # noqa: BLE001 -- raised to the reader of the ids
            self._accepted.put_nowait(error)
        finally:
            self.stopped = True
            for each in submitters:
                if each not in self._sent:
                    each.cancel()
            if self._sent:
                await asyncio.wait(self._sent, timeout=_GRACE)
            for each in submitters:
                each.cancel()
            await asyncio.wait(submitters)

    async def _submitter(self, entries: AsyncIterator[tuple[Entry, Callable[[], None]]]) -> None:
        while not self.stopped:
            await self._slots.acquire()
            try:
                async with self._reading:
                    entry, on_begun = await anext(entries)
            except StopAsyncIteration:
                self._slots.release()
                return
            if entry.task_id or await self._submit(entry, on_begun):
                self._accepted.put_nowait(entry)
            else:
                self._slots.release()

    async def _submit(self, entry: Entry, on_begun: Callable[[], None]) -> bool:
        """Submit a request until there is a clear answer; return whether it was accepted.

        Raises:
            AuthenticationError, PaymentRequiredError, ConfigurationError: every other request
                would meet the same.
            APIConnectionError: many requests in a row could not be sent.
            OSError: a line can't be written.

        """
        try:
            task_id = await self._attempts(entry, on_begun)
        except XaiTasksError as error:
            end = self._end(error)
            self._writer.failed(entry, end, error)
            self._tally.count(end)
            on_begun()
            if end == UNCERTAIN:
                self._say(str(error))
            self._not_sent_in_a_row = self._not_sent_in_a_row + 1 if end == NOT_SENT else 0
            if isinstance(error, (AuthenticationError, PaymentRequiredError, ConfigurationError)):
                raise
            if self._not_sent_in_a_row >= _HOPELESS:
                raise
            self._answered.set()
            return False
        entry.task_id = task_id
        try:
            self._writer.submitted(entry, task_id)
        except OSError:
            self._say(f"the line of task {task_id} can't be written: {_excerpt(entry)}")
            raise
        self._not_sent_in_a_row = 0
        self._tally.answered = True
        self._answered.set()
        return True

    async def _attempts(self, entry: Entry, on_begun: Callable[[], None]) -> str:
        """Submit a request until it is accepted; raise why it will not be."""
        clock = asyncio.get_running_loop().time
        attempt, give_up_at = 0, clock() + _MAX_OUTAGE
        while True:
            try:
                return await self._attempt(entry, on_begun)
            except APIStatusError as error:
                if error.status_code not in self._retry_statuses:
                    raise
                self._writer.waiting(entry)
                self._answered.set()
                give_up_at = clock() + _MAX_OUTAGE
                keeps_pause = error.retry_after is not None
            except APIConnectionError:
                if clock() >= give_up_at:
                    raise
                keeps_pause = False
            if not keeps_pause:  # else the client does
                attempt = min(attempt + 1, 5)
                await asyncio.sleep(random.uniform(0, min(_LONGEST_DELAY, 2.0**attempt)))

    async def _attempt(self, entry: Entry, on_begun: Callable[[], None]) -> str:
        task = cast("asyncio.Task[None]", asyncio.current_task())

        def on_send() -> None:
            self._writer.begin(entry)
            on_begun()
            self._sent.add(task)

        try:
            return await self._client.submit(entry.wanted.request, on_send=on_send)
        finally:
            self._sent.discard(task)

    def _end(self, error: XaiTasksError) -> str:
        if isinstance(error, SubmissionUncertainError):
            return UNCERTAIN
        return REFUSED if isinstance(error, APIStatusError) else NOT_SENT


def _excerpt(entry: Entry) -> str:
    text = json.dumps(entry.wanted.record)
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}..."
