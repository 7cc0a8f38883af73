"""What the models have in common: `dict(model)`, and what pydantic and FastAPI ask a class for.

pydantic is not a dependency. Nothing here imports it until pydantic itself calls.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Self

__all__ = ["OUTCOME_SCHEMA", "TASK_SCHEMA", "UPDATE_SCHEMA", "JSONModel"]


class JSONModel:
    """A model that `dict`, pydantic and FastAPI take as it is, and write as its `to_dict`."""

    __slots__ = ()

    _JSON_SCHEMA: ClassVar[dict[str, Any]]

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the model as JSON-ready data."""

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield the items of `to_dict`, so that `dict(model)` works as it does in pydantic.

        FastAPI writes the return value of a handler without a return type in this way.
        """
        return iter(self.to_dict().items())

    @classmethod
    def _read(cls, value: object) -> Self:
        """Return a valid `value` for pydantic; raise `ValueError` for another."""
        raise ValueError(f"a {cls.__name__} is expected, not {type(value).__name__}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Return how pydantic reads and writes this class."""
        from pydantic_core import core_schema  # noqa: PLC0415 -- only pydantic calls this

        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls._read(value),
            ref=f"xai_tasks.{cls.__name__}:{id(cls)}",  # a component of its own in OpenAPI
            serialization=core_schema.plain_serializer_function_ser_schema(cls.to_dict),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        """Return the JSON Schema of this class, for OpenAPI pages."""
        return cls._JSON_SCHEMA


def _optional(*types: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [*types, {"type": "null"}]}


_STRING = {"type": "string"}
_DATE = {"type": "string", "format": "date-time"}
_ERROR = {
    "type": "object",
    "properties": {"type": _STRING, "message": _STRING},
    "required": ["type", "message"],
}

TASK_SCHEMA: dict[str, Any] = {
    "title": "TaskResult",
    "description": "A task, as the API described it.",
    "type": "object",
    "properties": {
        "taskId": _STRING,
        "status": {
            "type": "string",
            "description": "pending, ready, assigned, processing; completed, failed, cancelled or "
            "timeout once the task has ended. The API may add others.",
        },
        "result": {"description": "What the task made; it depends on the kind of task."},
        "errorMessage": _optional(_STRING),
        "errorCode": _optional({"type": "number"}, _STRING),
        "createdAt": _optional(_DATE),
        "finishedAt": _optional(_DATE),
        "traceId": _optional(_STRING),
    },
    "required": ["taskId", "status"],
    "additionalProperties": True,
}


def _one_of_many(
    title: str, flag: str, description: str, **fields: dict[str, Any]
) -> dict[str, Any]:
    """Return the JSON Schema of what a stream yields about one id of many."""
    properties = {
        "taskId": {"type": "string", "description": "The id that was asked for."},
        "index": {"type": "integer", "description": "The id's position in the input, from 0."},
        flag: {"type": "boolean", "description": description},
        "task": _optional(TASK_SCHEMA),
        "error": _optional(_ERROR),
        **fields,
    }
    required = list(properties)
    return {"title": title, "type": "object", "properties": properties, "required": required}


OUTCOME_SCHEMA: dict[str, Any] = _one_of_many(
    "Outcome",
    "ok",
    "Whether the task completed, and nothing went wrong.",
    request=_optional({"type": "object", "description": "The request that was submitted."}),
    files={"type": "array", "items": _STRING, "description": "The files downloaded."},
)
UPDATE_SCHEMA: dict[str, Any] = _one_of_many(
    "Update", "final", "Whether this is the last update of this id."
)
