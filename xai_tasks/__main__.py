"""The program `xai-tasks`, also `python -m xai_tasks`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from importlib.util import find_spec
from types import FrameType


def main() -> int:
    """Run the command line with the arguments of this process.

    Returns:
        the exit code: 0 all completed; 1 some did not; 2 usage or configuration; 3 key refused or
        API unusable; 4 some timed out and nothing worse; 130 interrupted.

    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return _run()
    try:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, _exit_at_once)
        return _run()
    finally:
        if signal.getsignal(signal.SIGINT) is _exit_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT before and after a command: a KeyboardInterrupt in an import tells nothing."""
    with suppress(OSError):
        os.write(2, b"xai-tasks: interrupted\n")
    os._exit(130)


def _run() -> int:
    if find_spec("click") is None or find_spec("rich") is None:
        sys.stderr.write(
            "xai-tasks: the command line needs click and rich: pip install 'xai-tasks[cli]'\n"
        )
        return 2
    from xai_tasks._cli._app import run  # noqa: PLC0415 -- click may be missing, as was just seen

    return run()


if __name__ == "__main__":
    sys.exit(main())
