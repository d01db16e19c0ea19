"""The contract as a document: `python -m service.api.openapi > openapi.yaml`."""

from __future__ import annotations

import sys
from typing import Any, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.api.access import SCOPE_OF
from service.api.application import build_api
from service.api.examples import add_examples
from service.api.openapi_webhooks import COMPONENTS, webhooks
from service.api.problems import Problem
from service.api.webhook_resources import EndpointRequest, RotationRequest
from service.generations.batch import BatchRequest
from service.generations.rerun import RERUN_REQUEST
from service.generations.uploads import UploadRequest
from service.generations.webhook_message import WebhookMessage
from service.settings.gateway import HttpSettings
from service.tenants.scopes import SCOPES

_SECURITY = "apiKey"

_KEYS = """Made by `darkroom keys create`; shown once. A gateway with AUTH=none asks for none.

A key has every scope, or those it was made with; `x-scope` of an operation says which one it asks for:

""" + "\n".join(f"- `{scope}`: {words}" for scope, words in SCOPES.items())


def document(api: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of the application."""
    found = get_openapi(
        title=api.title,
        version=api.version,
        description=api.description,
        routes=api.routes,
        servers=[
            {"url": "http://127.0.0.1:8000", "description": "A gateway on this machine, as `make run` starts it."}
        ],
        license_info={"name": "MIT", "identifier": "MIT"},
    )
    _, definitions = models_json_schema(
        [
            *(
                (model, "validation")
                for model in (BatchRequest, RERUN_REQUEST, UploadRequest, RotationRequest, EndpointRequest, Problem)
            ),
            (WebhookMessage, "serialization"),
        ],
        ref_template="#/components/schemas/{model}",
    )
    components = found.setdefault("components", {})
    schemas = cast("dict[str, Any]", components.setdefault("schemas", {}))
    schemas.update(definitions["$defs"])
    add_examples(schemas)
    components["schemas"] = dict(sorted(schemas.items()))
    components["securitySchemes"] = {
        _SECURITY: {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "dk_<id>_<secret>",
            "description": _KEYS,
        }
    }
    for path, operations in cast("dict[str, dict[str, Any]]", found["paths"]).items():
        for operation in operations.values():
            operation["security"] = [{_SECURITY: []}] if path.startswith("/v1/") else []
            _drop_untold(operation)
            if path.startswith("/v1/"):
                operation["x-scope"] = SCOPE_OF[operation["operationId"]]
    found["webhooks"] = webhooks()
    components.update(COMPONENTS)
    return found


def _drop_untold(operation: dict[str, Any]) -> None:
    """Leave out the JSON of no schema that FastAPI adds to replies that have none."""
    for response in operation["responses"].values():
        content = response.get("content", {})
        if content.get("application/json", {}).get("schema") == {}:
            del content["application/json"]


def as_yaml(openapi: dict[str, Any]) -> str:
    """Return the document as text, the same for the same document."""
    import yaml  # noqa: PLC0415 - a tool of developers, not of the running gateway

    return yaml.safe_dump(openapi, sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    sys.stdout.write(as_yaml(document(build_api(HttpSettings(), local_only=False))))
