"""The parts of one client, put together in one place."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from xai_tasks._downloads import Downloader
from xai_tasks._http.credentials import Credentials
from xai_tasks._http.file_transport import FileTransport
from xai_tasks._http.proxy import ProxySetting
from xai_tasks._http.transport import Transport
from xai_tasks._limits.outage import Outage
from xai_tasks._limits.retrying import Counters, RetryingFetcher
from xai_tasks._limits.submitting import Submitter
from xai_tasks._limits.throttle import Throttle
from xai_tasks._policies import RetryPolicy
from xai_tasks._polling.poller import Poller

if TYPE_CHECKING:
    import aiohttp


class Parts:
    """What requests, retries, polls, submits and downloads for one client.

    Polls and submissions have a throttle each, because the API limits each route apart.
    """

    __slots__ = (
        "_submission_throttle",
        "counters",
        "downloader",
        "fetcher",
        "poller",
        "submitter",
        "throttle",
        "transport",
    )

    def __init__(
        self,
        credentials: Credentials,
        base_url: str,
        *,
        session: aiohttp.ClientSession | None,
        proxies: ProxySetting,
        request_timeout: float,
        retry: RetryPolicy,
        max_concurrency: int,
        rate_limit: float | None,
        max_response_bytes: int,
        max_download_bytes: int,
        retry_statuses: frozenset[int],
        allow_insecure_http: bool,
        user_agent: str | None,
    ) -> None:
        """Take `TaskClient`'s arguments, checked."""
        self.counters = Counters()
        self.transport = Transport(
            credentials,
            base_url,
            session=session,
            request_timeout=request_timeout,
            max_bytes=max_response_bytes,
            user_agent=user_agent,
            proxies=proxies,
        )
        max_concurrency = self.transport.limit_concurrency(max_concurrency)
        outage = Outage()
        self.throttle = Throttle(max_concurrency, rate_limit, retry.max_retry_after)
        self.fetcher = RetryingFetcher(
            self.transport, self.throttle, outage, credentials, retry, self.counters
        )
        self._submission_throttle = Throttle(max_concurrency, rate_limit, retry.max_retry_after)
        self.submitter = Submitter(
            self.transport,
            self._submission_throttle,
            credentials,
            retry,
            self.counters,
            self.fetcher.budget,
            retry_statuses=retry_statuses,
            on_answer=outage.answered,
        )
        self.poller = Poller(
            self.fetcher,
            self.throttle,
            outage,
            self.counters,
            max_workers=max_concurrency,
            max_pause=retry.max_retry_after,
        )
        make_transport = partial(
            FileTransport,
            base_url,
            allow_insecure_http=allow_insecure_http,
            request_timeout=request_timeout,
            agent=self.transport.agent,
            proxies=proxies,
        )
        self.downloader = Downloader(make_transport, retry, max_download_bytes)

    @property
    def in_flight(self) -> int:
        """Requests that are under way, submissions among them."""
        return self.throttle.in_flight + self._submission_throttle.in_flight

    async def close(self) -> None:
        """End every wait, request and download, and close the sessions that are the client's own.

        All that closes a session happens before its first suspension. So cancelling this call,
        even again and again, stops only the waiting.
        """
        self.throttle.close()
        self._submission_throttle.close()
        self.fetcher.close()
        self.submitter.close()
        ended = self.poller.close()
        try:
            await self.transport.close()
        finally:
            await self.downloader.close()
        await asyncio.shield(ended)
        await self.poller.closed_down()
