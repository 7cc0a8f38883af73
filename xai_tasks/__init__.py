"""Wait for Mountsea generation tasks: one or a million, on asyncio."""

from __future__ import annotations

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
from xai_tasks._streams import OutcomeStream, Watch
from xai_tasks._version import __version__

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
    "XaiTasksError",
    "__version__",
    "wait_adaptive",
]
