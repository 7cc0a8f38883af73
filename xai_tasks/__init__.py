"""Wait for Mountsea generation tasks: one or a million, on asyncio."""

from __future__ import annotations

import importlib
import typing

from xai_tasks._version import __version__

if typing.TYPE_CHECKING:
    from xai_tasks._client import TaskClient
    from xai_tasks._errors import (
        APIConnectionError,
        APIError,
        APIResponseValidationError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        ClientClosedError,
        ConfigurationError,
        DownloadError,
        DownloadExpiredError,
        InvalidTaskIdError,
        NotFoundError,
        PaymentRequiredError,
        PermissionDeniedError,
        RateLimitError,
        ServerError,
        SubmissionUncertainError,
        TaskCancelledError,
        TaskError,
        TaskFailedError,
        TaskTimedOutError,
        WaitTimeoutError,
        XaiTasksError,
    )
    from xai_tasks._learning.adaptive import wait_adaptive
    from xai_tasks._models import ClientStats, Outcome, TaskResult, TaskStatus, Update
    from xai_tasks._policies import PollPolicy, RetryPolicy
    from xai_tasks._requests import ImageRequest, VideoRequest
    from xai_tasks._streams import OutcomeStream, Watch, WatchAll

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "ClientClosedError",
    "ClientStats",
    "ConfigurationError",
    "DownloadError",
    "DownloadExpiredError",
    "ImageRequest",
    "InvalidTaskIdError",
    "NotFoundError",
    "Outcome",
    "OutcomeStream",
    "PaymentRequiredError",
    "PermissionDeniedError",
    "PollPolicy",
    "RateLimitError",
    "RetryPolicy",
    "ServerError",
    "SubmissionUncertainError",
    "TaskCancelledError",
    "TaskClient",
    "TaskError",
    "TaskFailedError",
    "TaskResult",
    "TaskStatus",
    "TaskTimedOutError",
    "Update",
    "VideoRequest",
    "WaitTimeoutError",
    "Watch",
    "WatchAll",
    "XaiTasksError",
    "__version__",
    "wait_adaptive",
]

if not typing.TYPE_CHECKING:
    # Names are imported when they are first used, so that `xai-tasks --help`, and completion at
    # each press of Tab, need not wait for aiohttp.
    _MODULES = (
        "_errors",
        "_models",
        "_policies",
        "_requests",
        "_learning.adaptive",
        "_client",
        "_streams",
    )

    def __getattr__(name: str) -> object:
        if name in __all__:
            for module_name in _MODULES:
                module = importlib.import_module(f"{__name__}.{module_name}")
                if hasattr(module, name):
                    globals()[name] = getattr(module, name)
                    return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
