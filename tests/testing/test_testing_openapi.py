"""TaskServer follows `openapi.yaml`, checked by tools for any API."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from raw_peer import connected

from xai_tasks.testing import TaskServer, constant

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parents[1] / "openapi.yaml"


@pytest.fixture(scope="module")
def document():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))


def add_one_of_each_kind(server):
    """Add a task for every status and every end; return their ids."""
    running = ("pending", "ready", "assigned", "processing")
    return [
        *(server.add(status, status) for status in running),
        server.add("completed", result={"videoUrl": "https://videos.invalid/1.mp4"}),
        server.add("completed with nothing"),
        server.add("failed", failed=("bad prompt", 40001)),
        server.add("failed silently", failed=True),
        server.add("cancelled", cancelled="by its owner"),
        server.add("timeout", timeout=("took too long", 504.5)),
        *server.add_many(4, duration=constant(0), failed=0.5),
        server.add_many(1, duration=constant(60))[0],
    ]


def test_document_is_valid(document):
    pytest.importorskip("openapi_spec_validator").validate(document)


def test_every_status_is_covered(document):
    with TaskServer.in_thread() as server:
        statuses = {answer["status"] for answer in asyncio.run(answers(server)).values()}

    assert statuses == set(
        document["components"]["schemas"]["TaskResultDto"]["properties"]["status"]["enum"]
    )


def test_answers_match_the_schema(document):
    openapi_schema_validator = pytest.importorskip("openapi_schema_validator")
    validator = openapi_schema_validator.OAS30Validator(
        document["components"]["schemas"]["TaskResultDto"],
        format_checker=openapi_schema_validator.oas30_format_checker,
    )
    with TaskServer.in_thread() as server:
        for answer in asyncio.run(answers(server)).values():
            validator.validate(answer)
            assert answer.keys() <= validator.schema["properties"].keys()


async def answers(server):
    seen = {}
    ids = add_one_of_each_kind(server)
    async with connected(server) as peer:
        for task_id in ids:
            peer.ask(task_id.replace(" ", "+"))
            status, seen[task_id] = await peer.json()
            assert (status, seen[task_id]["taskId"]) == (200, task_id)
    return seen


def test_schemathesis_on_known_tasks():
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_path(DOCUMENT)
    with TaskServer.in_thread() as server:
        for task_id in add_one_of_each_kind(server):
            case = schema["/xai/tasks"]["GET"].Case(query={"taskId": task_id})

            case.call_and_validate(base_url=server.url, headers={"Authorization": "Bearer test"})

        with_the_key = [
            one for one in server.requests if one.headers.get("Authorization") == "Bearer test"
        ]
        assert {record.status for record in with_the_key} == {200}


def test_schemathesis_on_anything_else(tmp_path):
    with TaskServer.in_thread() as server:
        # The document names no status but 200: neither a missing key nor an unknown task has one.
        run_schemathesis(
            server,
            tmp_path,
            "--include-path=/xai/tasks",
            "--exclude-checks=status_code_conformance",
            "--max-examples=50",
        )

        assert {record.status for record in server.requests} >= {401, 404, 405, 422}


def test_schemathesis_on_submissions(tmp_path):
    with TaskServer.in_thread() as server:
        # Lengths and values are not checked, and an empty prompt is refused, as `TaskServer` says.
        run_schemathesis(
            server,
            tmp_path,
            "--exclude-path=/xai/tasks",
            "--exclude-checks="
            "status_code_conformance,negative_data_rejection,positive_data_acceptance",
            "--max-examples=50",
        )

        assert {record.status for record in server.requests} >= {200, 400, 401, 405}


def run_schemathesis(server, directory, *options):
    pytest.importorskip("schemathesis")
    run = subprocess.run(
        [
            *(
                sys.executable,
                "-c",
                "from schemathesis.cli import schemathesis; schemathesis()",
                "run",
            ),
            *(str(DOCUMENT), f"--url={server.url}", "--header=Authorization: Bearer test"),
            *("--checks=all", "--seed=1", "--no-color", *options),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
