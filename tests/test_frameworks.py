"""Models as return values, response models, fields and bodies in web frameworks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import httpx
import litestar
import litestar.testing
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from fastapi import Body, FastAPI
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.responses import JSONResponse

from xai_tasks import Outcome, TaskResult, Update, VideoRequest, WaitTimeoutError

RAW = {"taskId": "a", "status": "completed", "result": {"videoUrl": "https://x/a.mp4"}, "new": [1]}
TASK = TaskResult.from_raw(RAW)
TIMED_OUT = WaitTimeoutError("b", 5.0)
OUTCOME = Outcome("b", 1, error=TIMED_OUT)
UPDATE = Update("a", 0, TASK, final=True)
MODELS = [TASK, OUTCOME, UPDATE]


class Report(BaseModel):
    task: TaskResult
    outcomes: list[Outcome] = []
    update: Update | None = None


def test_outcome_to_dict():
    assert OUTCOME.to_dict() == {
        "taskId": "b",
        "index": 1,
        "ok": False,
        "task": None,
        "error": {"type": "WaitTimeoutError", "message": str(TIMED_OUT)},
        "request": None,
        "files": [],
    }


def test_outcome_to_dict_with_request_and_files():
    outcome = Outcome("a", 0, TASK, request=VideoRequest("a cat"), files=(Path("v/a.mp4"),))

    assert outcome.to_dict()["request"] == outcome.request.to_json()
    assert outcome.to_dict()["files"] == [str(Path("v/a.mp4"))]


def test_update_to_dict():
    assert UPDATE.to_dict() == {
        "taskId": "a",
        "index": 0,
        "final": True,
        "task": RAW,
        "error": None,
    }


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
def test_dict_of_a_model_is_its_to_dict(model):
    assert dict(model) == model.to_dict() == json.loads(json.dumps(model.to_dict()))


@pytest.mark.slow
def test_pydantic_is_not_imported():
    code = "import sys, xai_tasks; print('pydantic' in sys.modules, 'pydantic_core' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert printed.stdout.split() == [b"False", b"False"]


# pydantic.


def test_pydantic_fields_take_instances():
    report = Report(task=TASK, outcomes=[OUTCOME], update=UPDATE)

    assert report.task is TASK
    assert report.outcomes == [OUTCOME]
    assert report.update is UPDATE


@pytest.mark.parametrize("mode", ["python", "json"])
def test_pydantic_dumps_what_to_dict_returns(mode):
    report = Report(task=TASK, outcomes=[OUTCOME], update=UPDATE)

    assert report.model_dump(mode=mode) == {
        "task": RAW,
        "outcomes": [OUTCOME.to_dict()],
        "update": UPDATE.to_dict(),
    }


def test_pydantic_reads_a_task():
    adapter = TypeAdapter(TaskResult)

    assert adapter.validate_python(RAW) == adapter.validate_json(json.dumps(RAW)) == TASK
    assert Report.model_validate_json(json.dumps({"task": RAW})).task == TASK


@pytest.mark.parametrize("value", [{"taskId": "a"}, {}, 7, "a", None, [RAW]], ids=str)
def test_pydantic_refuses_what_is_not_a_task(value):
    with pytest.raises(ValidationError):
        TypeAdapter(TaskResult).validate_python(value)


@pytest.mark.parametrize("cls", [Outcome, Update])
@pytest.mark.parametrize("value", [RAW, OUTCOME.to_dict(), TASK, None], ids=lambda v: str(v)[:20])
def test_pydantic_reads_outcomes_and_updates_only_as_instances(cls, value):
    with pytest.raises(ValidationError, match=f"a {cls.__name__} is expected"):
        TypeAdapter(cls).validate_python(value)


def test_pydantic_schemas_name_the_apis_fields():
    schema = Report.model_json_schema()["$defs"]

    assert set(schema["TaskResult"]["properties"]) >= {"taskId", "status", "result", "errorCode"}
    assert set(schema["Outcome"]["properties"]) == set(OUTCOME.to_dict())
    assert set(schema["Update"]["properties"]) == set(UPDATE.to_dict())


# FastAPI.

app = FastAPI()


@app.get("/unannotated/{number}")
async def unannotated(number: int):
    return MODELS[number]


@app.get("/task")
async def task() -> TaskResult:
    return TASK


@app.get("/tasks")
async def tasks() -> list[TaskResult]:
    return [TASK]


@app.get("/outcome")
async def outcome() -> Outcome:
    return OUTCOME


@app.get("/update", response_model=Update)
async def update():
    return UPDATE


@app.get("/report")
async def report() -> Report:
    return Report(task=TASK, outcomes=[OUTCOME], update=UPDATE)


@app.post("/task")
async def post(task: TaskResult) -> str:
    return task.task_id


@app.post("/task/marked")
async def post_marked(task: Annotated[TaskResult, Body()]) -> str:
    return task.task_id


@pytest.fixture
async def fastapi():
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/task", RAW),
        ("/tasks", [RAW]),
        ("/outcome", OUTCOME.to_dict()),
        ("/update", UPDATE.to_dict()),
        ("/report", {"task": RAW, "outcomes": [dict(OUTCOME)], "update": dict(UPDATE)}),
        *[(f"/unannotated/{number}", model.to_dict()) for number, model in enumerate(MODELS)],
    ],
)
async def test_fastapi_returns_models(fastapi, path, expected):
    answer = await fastapi.get(path)

    assert (answer.status_code, answer.json()) == (200, expected)


@pytest.mark.parametrize("path", ["/task", "/task/marked"])
async def test_fastapi_reads_a_task_from_a_body(fastapi, path):
    good, bad = await fastapi.post(path, json=RAW), await fastapi.post(path, json={})

    assert (good.status_code, good.json()) == (200, "a")
    assert bad.status_code == 422
    assert "'taskId' is missing" in bad.text


async def test_openapi_page_describes_models(fastapi):
    page = (await fastapi.get("/openapi.json")).json()

    schemas = page["components"]["schemas"]
    assert {"TaskResult", "Outcome", "Update"} <= set(schemas)
    content = page["paths"]["/task"]["get"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/TaskResult"}


# The others, by `to_dict`.


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
async def test_starlette_writes_to_dict(model):
    assert json.loads(JSONResponse(model.to_dict()).body) == model.to_dict()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
async def test_aiohttp_writes_to_dict(model):
    async def handler(request):
        return web.json_response(model.to_dict())

    app = web.Application()
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client, client.get("/") as answer:
        assert await answer.json() == model.to_dict()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
async def test_litestar_writes_to_dict(model):
    @litestar.get("/")
    async def handler() -> dict:
        return model.to_dict()

    async with litestar.testing.create_async_test_client(handler) as client:
        assert (await client.get("/")).json() == model.to_dict()
