"""Every error has its status, and says no more than it should."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator

import pytest

import service
from service.api.problems import STATUSES, problem_response, status_of, unexpected_response
from service.contract import errors
from service.contract.errors import DarkroomError, FieldError, GenerationFailed, InvalidRequest, Overloaded

_NOT_GATEWAY = ("service.cli",)


def every_error() -> Iterator[type[DarkroomError]]:
    for module in pkgutil.walk_packages(service.__path__, "service."):
        if not module.name.startswith(_NOT_GATEWAY) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    waiting = [DarkroomError]
    while waiting:
        kind = waiting.pop()
        yield kind
        waiting.extend(kind.__subclasses__())


def test_every_error_of_the_contract_stands_in_the_table_itself() -> None:
    own = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DarkroomError)}
    assert own <= set(STATUSES)


def test_every_error_anywhere_finds_a_status_below_the_common_root() -> None:
    for kind in every_error():
        found = next(each for each in kind.__mro__ if each in STATUSES)
        assert kind is DarkroomError or found is not DarkroomError or kind.code == "internal", kind


def test_codes_of_refusals_are_each_their_own() -> None:
    codes = [kind.code for kind in STATUSES if kind.code != "internal"]
    assert len(set(codes)) == len(codes)


def test_a_problem_is_complete() -> None:
    response = problem_response(InvalidRequest([FieldError("/steps", "must be less")]), "req_1")
    assert response.media_type == "application/problem+json"
    assert json.loads(bytes(response.body)) == {
        "type": "urn:darkroom:problem:invalid_request",
        "title": "Invalid request",
        "status": 422,
        "detail": "The request has fields that are not allowed.",
        "instance": "urn:darkroom:request:req_1",
        "code": "invalid_request",
        "request_id": "req_1",
        "errors": [{"pointer": "/steps", "detail": "must be less"}],
    }


def test_a_full_system_says_when_to_come_again() -> None:
    assert problem_response(Overloaded(retry_after_s=9), "req_1").headers["retry-after"] == "9"


def test_a_defect_tells_nothing_but_the_request_id() -> None:
    body = json.loads(bytes(unexpected_response("req_1").body))
    assert (body["status"], body["code"], body["request_id"]) == (500, "internal", "req_1")


@pytest.mark.parametrize(
    ("failure", "status"),
    [("invalid_input", 422), ("canceled", 422), ("flagged", 422), ("deadline_exceeded", 504), ("poison", 500)],
)
def test_failures_of_a_picture_are_told_apart_by_whose_fault_they_are(failure: str, status: int) -> None:
    assert status_of(GenerationFailed(failure, "It failed.")) == status
