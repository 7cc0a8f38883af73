"""Run ty over the typing tests: it may find only what they expect,
and the differences named here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

KNOWN = {
    "assert-type-unspellable-subtype": "it narrows a union by isinstance to an intersection, "
    "`XaiTasksError & ~TaskResult`, where the others drop the other class",
}


def main() -> None:
    command = [Path(sys.executable).parent / "ty", "check", "--python", sys.prefix]
    found = subprocess.run(
        [*command, "--output-format=concise", "tests/typing"],
        capture_output=True,
        text=True,
        check=False,
    )
    unknown = []
    for file, line, rule in re.findall(
        r"^(\S+?):(\d+):\d+: \w+\[([\w-]+)\]", found.stdout, flags=re.MULTILINE
    ):
        text = Path(file).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        if "type: ignore" in text:  # a mistake on purpose, which mypy and pyright find too
            continue
        if rule in KNOWN:
            print(f"ty, {file}:{line}: {KNOWN[rule]}")
        else:
            unknown.append(f"{file}:{line}: {rule}")
    if unknown or found.returncode not in {0, 1}:
        sys.exit(f"{found.stdout}{found.stderr}\nNot expected of ty:\n" + "\n".join(unknown))


main()
