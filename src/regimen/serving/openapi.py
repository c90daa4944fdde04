"""The OpenAPI documents of the servers, made of the request types they read.

In: what is served. Out: documents of OpenAPI 3.1 for clients, and for testing the servers against.
"""

from __future__ import annotations

from typing import Any

import msgspec

from regimen import __version__
from regimen.errors import ConfigError
from regimen.gym.environment import Environment
from regimen.rollouts.messages import chat_tools
from regimen.serving.answers import HEALTH_PATHS
from regimen.serving.wire import ChatRequest, ResponsesRequest, TokenizeRequest

Object = dict[str, Any]
_OBJECT: Object = {"type": "object"}
_PARAMS: Object = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
        "instructions": {"type": ["string", "null"]},
        "tools": {"type": ["array", "null"], "items": {"type": "object"}},
    },
}
TASK_ROW: Object = {
    "type": "object",
    "required": ["responses_create_params"],
    "properties": {"responses_create_params": _PARAMS, "_ng_task_index": {"type": "integer"}},
}
VERIFY: Object = {
    "type": "object",
    "required": ["responses_create_params", "response"],
    "properties": {
        "responses_create_params": _PARAMS,
        "response": {
            "type": "object",
            "required": ["output"],
            "properties": {"output": {"type": "array", "items": {"type": "object"}}},
        },
    },
}
METRICS: Object = {
    "type": "object",
    "required": ["verify_responses"],
    "properties": {
        "verify_responses": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["reward"],
                "properties": {"reward": {"type": "number"}, "_ng_task_index": {"type": "integer"}},
            },
        }
    },
}
CLOSE: Object = {"type": "object", "properties": {"resources_session_id": {"type": "string"}}}


def environment_document(environment: Environment, with_agent: bool = False) -> Object:
    """The document of an environment server, its tools included; `with_agent` adds the agent's paths.

    Raises `ConfigError` for a tool that could not be called, since its path is the server's own.
    """
    tools = _tools(environment)
    paths = {
        "/seed_session": _post("Begin an episode", TASK_ROW),
        "/verify": _post("Judge an episode", VERIFY),
        "/reset": _post("Begin an episode that is played by steps", TASK_ROW),
        "/step": _post("Take a turn of the model", VERIFY),
        "/close": _post("End an episode that is played by steps", _OBJECT),
        "/close_session": _post("End an episode", CLOSE),
        "/aggregate_metrics": _post("Figures of finished episodes", METRICS),
    }
    if with_agent:
        paths |= {
            "/run": _post("Play and judge a task", TASK_ROW),
            "/v1/responses": _post("Play a prompt", _PARAMS),
            "/global_config_dict_yaml": _get("Where the instances are, as a JSON string of YAML"),
            "/server_instances": _get("The instances"),
        }
    for name, said, schema in tools:
        if f"/{name}" in (*paths, *HEALTH_PATHS, "/openapi.json"):
            raise ConfigError(
                f"the tool {name!r} has the name of one of the server's own paths",
                where=f"environment {environment.name!r}",
                fix="give the tool another name",
            )
        paths[f"/{name}"] = _post(said, schema)
    return _document(f"Environment {environment.name}", paths, {})


_MESSAGE: Object = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"type": "string"},
    },
}
_TOOLS: Object = {"type": "object", "properties": {"name": {"type": "string"}, "type": {"enum": ["function"]}}}
# What a request may not ask for is not offered either.
_REFUSED = ("stop", "logit_bias", "frequency_penalty", "presence_penalty", "repetition_penalty", "min_p")
_REFUSED_TOO = ("response_format", "previous_response_id", "conversation", "background", "text", "truncation")


def model_document(name: str, can_swap: bool) -> Object:
    """The document of a server of the model `name`."""
    kinds = [ChatRequest, ResponsesRequest, TokenizeRequest]
    bodies, found = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    chat, responses, tokenize = bodies
    components = {key: _offered(schema, name) for key, schema in found.items()}
    paths = {
        "/v1/chat/completions": _post("Answer chat messages", chat),
        "/v1/responses": _post("Answer Responses items", responses),
        "/tokenize": _post("Ids of a text or of messages", tokenize),
        "/v1/models": _get("The model that is served"),
        "/metrics": _get("Counters in Prometheus' format"),
    }
    if can_swap:
        schema = {
            "type": "object",
            "required": ["folder", "version"],
            "properties": {"folder": {"type": "string"}, "version": {"type": "integer"}},
        }
        paths["/weights"] = _post("Take new weights", schema)
    return _document(f"Model {name}", paths, components)


def _offered(schema: Object, name: str) -> Object:
    """The schema of a request, narrowed to what the server does."""
    properties: Object = schema["properties"]
    items = {"type": "array", "items": _MESSAGE}
    narrower: Object = {
        "model": {"enum": [name, None]},
        "messages": {**items, "minItems": 1},
        "input": {"anyOf": [{"type": "string"}, items]},
        "tools": {"anyOf": [{"type": "array", "items": _TOOLS}, {"type": "null"}]},
        "tool_choice": {"enum": ["auto", "none", None]},
        "top_logprobs": {"enum": [0, None]},
    }
    kept = {key: value for key, value in properties.items() if key not in (*_REFUSED, *_REFUSED_TOO)}
    return {**schema, "properties": {**kept, **{key: narrower[key] for key in narrower if key in kept}}}


def _tools(environment: Environment) -> list[tuple[str, str, Object]]:
    """Name, description and schema of the tools of the first task."""
    tasks = environment.tasks("train", 1)
    tools = chat_tools(tasks[0].row["responses_create_params"]) if tasks else []
    functions = [tool["function"] for tool in tools]
    return [(f["name"], f.get("description") or f["name"], f["parameters"]) for f in functions]


def _document(title: str, paths: Object, schemas: Object) -> Object:
    bearer = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__},
        "paths": {**paths, "/health": _get("The server answers")},
        "components": {"schemas": schemas, "securitySchemes": {"bearer": bearer}},
        "security": [{}, {"bearer": []}],
    }


def _get(summary: str) -> Object:
    return {"get": {"summary": summary, "responses": _responses()}}


def _post(summary: str, schema: Object) -> Object:
    content = {"application/json": {"schema": schema or _OBJECT}}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": content},
            "responses": _responses(),
        }
    }


def _responses() -> Object:
    error = {"description": "Refused, with the reason"}
    return {"200": {"description": "Done"}, **dict.fromkeys(("4XX", "5XX"), error)}
