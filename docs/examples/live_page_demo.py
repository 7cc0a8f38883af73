"""Show the live page without a key: twenty made-up tasks that take 10 to 60 seconds.

In a clone of xai_tasks:                                pip install .
Beside this file, aiohttp_app.py and live_page.html:    python live_page_demo.py

Then open the address that it prints.
"""

from __future__ import annotations

import os
from urllib.parse import urlencode

from aiohttp import web
from aiohttp_app import make_app

from xai_tasks.testing import TaskServer, uniform

PORT = int(os.environ.get("PORT", "8080"))

with TaskServer.in_thread() as server:
    os.environ |= {"MOUNTSEA_API_KEY": "test", "MOUNTSEA_BASE_URL": server.url}
    ids = [
        *server.add_many(17, duration=uniform(10, 60), prefix="video"),
        server.add("refused", "pending", failed=("the prompt was refused", 40001)),
        server.add("slow", [("pending", 5), ("processing", 600)]),
    ]
    server.advance("refused")
    query = urlencode([("id", task_id) for task_id in [*ids, "no-such-task"]])
    print(f"Open http://127.0.0.1:{PORT}/#{query}")
    web.run_app(make_app(), host="127.0.0.1", port=PORT, handler_cancellation=True, print=None)
