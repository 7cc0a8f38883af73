"""A test kit: the API as a real HTTP server on loopback, with scripted tasks and faults."""

from __future__ import annotations

from xai_tasks.testing._durations import Duration, constant, lognormal, parse_duration, uniform
from xai_tasks.testing._faults import Fault, odd_answers
from xai_tasks.testing._lifecycle import Ending, Step
from xai_tasks.testing._log import RequestRecord
from xai_tasks.testing._rate_limits import LimitStyle
from xai_tasks.testing._server import TaskServer

__all__ = [
    "Duration",
    "Ending",
    "Fault",
    "LimitStyle",
    "RequestRecord",
    "Step",
    "TaskServer",
    "constant",
    "lognormal",
    "odd_answers",
    "parse_duration",
    "uniform",
]
