"""Print each direct dependency as it is installed here, and fail unless that is its lower bound."""

from __future__ import annotations

import sys
from importlib.metadata import requires, version

from packaging.requirements import Requirement
from packaging.version import Version

EXTRAS = ("", "cli", "dask", "otel", "speed", "testing")


def main() -> None:
    above = []
    for line in requires("xai-tasks") or ():
        requirement = Requirement(line)
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in EXTRAS
        ):
            continue
        installed = version(requirement.name)
        [bound] = [each.version for each in requirement.specifier if each.operator == ">="]
        print(f"{requirement.name}=={installed}")
        if Version(installed) != Version(bound):
            above.append(f"{requirement.name}: the bound is {bound}, installed is {installed}")
    if above:
        sys.exit("Another dependency needs more: raise the bound.\n" + "\n".join(above))


main()
