"""`openapi.yaml` is the app's own document, and says what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from service.api.application import build_api
from service.api.openapi import as_yaml, document
from service.contract.events import EventType
from service.settings.gateway import HttpSettings


@pytest.fixture(scope="module")
def contract() -> dict[str, Any]:
    return document(build_api(HttpSettings(), local_only=False))


def operations(contract: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{method} {path}": each for path, methods in contract["paths"].items() for method, each in methods.items()}


def test_the_file_at_the_root_is_what_the_app_says(contract: dict[str, Any]) -> None:
    file = Path(__file__).parents[2] / "openapi.yaml"
    assert file.read_text(encoding="utf-8") == as_yaml(contract), "run: python -m service.api.openapi > openapi.yaml"


def test_every_operation_has_an_id_a_summary_and_its_problems(contract: dict[str, Any]) -> None:
    found = operations(contract)
    ids = [each["operationId"] for each in found.values()]
    assert len(set(ids)) == len(ids) == 29
    for each in found.values():
        assert each["summary"]
        for status in ("400", "405", "500", "503"):
            assert "application/problem+json" in each["responses"][status]["content"]


def test_every_event_that_a_receiver_may_get_is_described(contract: dict[str, Any]) -> None:
    assert set(contract["webhooks"]) == set(get_args(EventType))
    schemas = contract["components"]["schemas"]
    for each in contract["webhooks"].values():
        schema = each["post"]["requestBody"]["content"]["application/json"]["schema"]
        reference = schema["allOf"][0]["$ref"].rpartition("/")[2]
        assert schemas[reference]["properties"]["data"]["$ref"].endswith("/GenerationResource")
        assert {"2XX", "410"} <= set(each["post"]["responses"])


def test_v1_asks_for_a_key_and_health_does_not(contract: dict[str, Any]) -> None:
    for name, each in operations(contract).items():
        assert bool(each["security"]) == ("/v1/" in name)


def test_every_number_of_the_request_has_its_limits(contract: dict[str, Any]) -> None:
    properties = contract["components"]["schemas"]["GenerationRequest"]["properties"]
    for name, schema in properties.items():
        for option in schema.get("anyOf", [schema]):
            if option.get("type") in {"integer", "number"}:
                assert "maximum" in option, name
                assert "minimum" in option or "exclusiveMinimum" in option, name
            if option.get("type") == "string":
                assert "maxLength" in option or "enum" in option, name


def test_nothing_of_fastapis_own_validation_is_documented(contract: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in str(contract)


def described(contract: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every description of a body, asked for or answered, by where it is."""
    found: dict[str, dict[str, Any]] = {}
    for name, each in operations(contract).items():
        bodies = {"request": each.get("requestBody", {}), **each["responses"]}
        for kind, body in bodies.items():
            found |= {f"{name} {kind} {media}": told for media, told in body.get("content", {}).items()}
    return found


def examples(contract: dict[str, Any], told: dict[str, Any]) -> list[Any]:
    """Return the examples of a body: its own, or those of the schema that it names."""
    if "example" in told:
        return [told["example"]]
    own = [each["value"] for each in told.get("examples", {}).values()]
    component = told["schema"].get("$ref", "").rpartition("/")[2]
    return own or contract["components"]["schemas"].get(component, {}).get("examples", [])


def test_every_body_of_json_has_an_example_that_its_schema_allows(contract: dict[str, Any]) -> None:
    of_json = {name: told for name, told in described(contract).items() if name.endswith("json")}
    assert len(of_json) > 100
    for name, told in of_json.items():
        shown = examples(contract, told)
        assert shown, f"{name} has no example: give it one in service/api/examples.py"
        schema = {**told["schema"], "components": contract["components"]}
        for example in shown:
            jsonschema.Draft202012Validator(schema).validate(example)
