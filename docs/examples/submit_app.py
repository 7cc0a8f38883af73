"""Submit videos from a FastAPI app: POST /videos answers with the id of the task.

In a clone of xai_tasks:  pip install . 'fastapi>=0.135' uvicorn
Beside this file:         uvicorn submit_app:app

MOUNTSEA_API_KEY holds the key. MOUNTSEA_BASE_URL, if set, is the API's URL.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from xai_tasks import (
    APIError,
    BadRequestError,
    RateLimitError,
    SubmissionUncertainError,
    TaskClient,
    VideoRequest,
)

logger = logging.getLogger(__name__)


class Video(BaseModel):
    """The body of POST /videos."""

    prompt: str
    duration: float | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Make one client for the process."""
    async with TaskClient() as client:
        yield {"client": client}


app = FastAPI(lifespan=lifespan)


def keep(task_id: str, video: VideoRequest) -> None:
    """Write the id where it is not lost: in an app of yours, into its database."""
    logger.warning("task %s: %s", task_id, video.prompt)


async def submit_and_keep(client: TaskClient, video: VideoRequest) -> str:
    task_id = await client.submit(video)
    keep(task_id, video)
    return task_id


@app.post("/videos", status_code=202)
async def submit(body: Video, request: Request) -> dict[str, str]:
    """Submit a video; wait for its task with the endpoints of the other examples."""
    try:
        video = VideoRequest(body.prompt, duration=body.duration)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    work = asyncio.create_task(submit_and_keep(request.state.client, video))
    # Shielded: a client that hangs up must not cancel what is paid for.
    return {"taskId": await asyncio.shield(work)}


@app.exception_handler(APIError)
async def on_api_error(request: Request, error: APIError) -> JSONResponse:
    """Answer with a status that says whether the request may be sent again."""
    if isinstance(error, SubmissionUncertainError):
        logger.error("%s", error)  # somebody has to check the account
        return JSONResponse({"detail": "it may have been submitted: do not send it again"}, 502)
    if isinstance(error, BadRequestError):
        return JSONResponse({"detail": error.message or "the API refused it"}, 422)
    headers = {}
    if isinstance(error, RateLimitError) and error.retry_after is not None:
        headers["Retry-After"] = str(round(error.retry_after))
    logger.warning("%s", error)
    return JSONResponse({"detail": "not submitted: try again later"}, 503, headers)
