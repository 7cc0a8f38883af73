"""The program `xai-tasks`, also `python -m xai_tasks`."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> int:
    """Run the command line with the arguments of this process.

    Returns:
        the exit code: 0 all completed; 1 some did not; 2 usage or configuration; 3 key refused or
        API unusable; 4 some timed out and nothing worse; 130 interrupted.

    """
    if find_spec("click") is None or find_spec("rich") is None:
        sys.stderr.write(
            "xai-tasks: the command line needs click and rich: pip install 'xai-tasks[cli]'\n"
        )
        return 2
    from xai_tasks._cli._app import run  # noqa: PLC0415 -- click may be missing, as was just seen

    return run()


if __name__ == "__main__":
    sys.exit(main())
