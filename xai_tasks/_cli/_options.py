"""Options as decorators, and the values that they take.

This module imports little but click, not even pathlib: `--help` and completion are quick.
A type of an option is a function: a generic `click.ParamType` needs click 8.4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([smh]?)")


def seconds(text: str) -> float:
    """Parse a length of time: `90`, `90s`, `10m`, `2h`."""
    match = _DURATION.fullmatch(str(text).strip().lower())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a time such as 90, 90s, 10m or 2h")
    value = float(match[1]) * _UNITS[match[2]]
    if value == math.inf:
        raise click.BadParameter(f"{text[:20]!r}... is too long; for no limit there is none")
    return value


def seconds_or_none(text: str) -> float | None:
    """Parse a length of time, or `none` for no limit."""
    return None if text == "none" else seconds(text)


def positive_seconds(text: str) -> float:
    """Parse a length of time above 0."""
    value = seconds(text)
    if value == 0:
        raise click.BadParameter(f"{text!r} is not above 0")
    return value


def rate(text: str) -> float:
    """Parse a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise click.BadParameter(f"{text!r} is not a number above 0")
    return value


def number(text: str) -> float:
    """Parse a number above 0, a whole one as an int."""
    value = rate(text)
    return int(value) if value.is_integer() else value


def share(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise click.BadParameter(f"{text!r} is not a number from 0 to 1")
    return value


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Build what parses a whole number from `minimum` to `maximum`."""
    bound = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum or (maximum is not None and value > maximum):
            raise click.BadParameter(f"{text!r} is not a whole number {bound}")
        return value

    return number


def shard(text: str) -> tuple[int, int]:
    """Parse `K/N`: the Kth of N parts."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise click.BadParameter(f"{text!r} is not K/N with 1 <= K <= N, such as 1/4")
    return int(first), int(second)


def filled(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Refuse empty ids."""
    if not all(value if isinstance(value, tuple) else (value,)):
        raise click.BadParameter("an id is empty")
    return value


def _all_of(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


api_options = _all_of(
    click.option(
        "--api-key-file",
        type=click.Path(exists=True, dir_okay=False),
        metavar="FILE",
        help="Where the key is; read again when the server refuses it.  "
        "[default: $MOUNTSEA_API_KEY]",
    ),
    click.option(
        "--base-url",
        metavar="URL",
        help="Where the API is.  [default: $MOUNTSEA_BASE_URL, or Mountsea's]",
    ),
    click.option(
        "--proxy",
        metavar="URL",
        help="An HTTP proxy, http://host:port.  [default: $HTTPS_PROXY or $HTTP_PROXY, but for the "
        "hosts in $NO_PROXY]",
    ),
)
"""The options of every command that asks the API; `make_client` takes their values."""

pace_options = _all_of(
    click.option(
        "--timeout",
        type=seconds_or_none,
        metavar="S",
        default="600",
        show_default=True,
        help="Time to wait for a task: seconds, or 90s, 10m, 2h; none: no limit.",
    ),
    click.option(
        "--interval",
        type=positive_seconds,
        metavar="S",
        default="5",
        show_default=True,
        help="Time between polls of a task, until it is learned how long tasks take. Then no more "
        "polls than this would make.",
    ),
)
"""The options of every command that polls; `make_client` takes their values."""

bulk_options = _all_of(
    click.option(
        "--concurrency",
        type=whole_number(1),
        metavar="N",
        default="64",
        show_default=True,
        help="Requests in flight at most.",
    ),
    click.option(
        "--rate", type=rate, metavar="R", help="Requests per second at most.  [default: learned]"
    ),
)
"""The options of every command for many tasks; `make_client` takes their values."""

log_options = _all_of(
    click.option("-q", "--quiet", is_flag=True, help="Show errors only."),
    click.option(
        "-v",
        "--verbose",
        count=True,
        help="Show retries and polls; -vv: with times, and connections.",
    ),
)
"""What is shown on stderr."""

request_options = _all_of(
    click.option("--model", metavar="M", help="The model.  [default: the API's first]"),
    click.option("--duration", type=number, metavar="S", help="Seconds of a video, such as 10."),
    click.option("--aspect-ratio", metavar="W:H", help="Such as 16:9 or 9:16."),
    click.option("--resolution", metavar="R", help="Of a video, such as 720P."),
    click.option(
        "--reference",
        "references",
        multiple=True,
        metavar="URL",
        help="An image to start from. May be given more than once.",
    ),
)
"""What requests have where their line says nothing else; `take_fields` takes their values."""


def take_fields(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the values of `request_options` out of a command's, as the API's fields."""
    fields = {
        "model": settings.pop("model"),
        "duration": settings.pop("duration"),
        "aspectRatio": settings.pop("aspect_ratio"),
        "resolution": settings.pop("resolution"),
        "images": list(settings.pop("references")) or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


download_option = click.option(
    "--download",
    "directory",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Save the files that results point to in DIR, as tasks end; with --resume also those of "
    "tasks that ended in earlier runs.",
)

output_options = _all_of(
    click.option(
        "-o",
        "--output",
        "output_name",
        type=click.Path(dir_okay=False, allow_dash=True),
        metavar="FILE",
        help="Append the lines to FILE, which may be a pipe, instead of stdout (-).",
    ),
    click.option(
        "--summary",
        "summary_name",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Write the counts of the whole job as JSON to FILE, however the job ends.",
    ),
)
"""Where lines and counts go; `Output` and `SummaryFile` take their values."""
