from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import pytest
from soak import soak


@pytest.mark.slow
def test_nothing_grows_from_day_to_day():
    done = soak(days=4, jobs=150)

    assert done.ends == {"ok": 600, "visits": 12}
    (objects, items), *_, (last_objects, last_items) = done.samples[1:]
    assert last_objects <= objects + 200
    assert last_items <= 1.1 * items
