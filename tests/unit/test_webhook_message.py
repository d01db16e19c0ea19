"""The body of a webhook."""

from __future__ import annotations

import json

from service.generations.resource import generation_resource
from service.generations.webhook_message import webhook_message
from tests.jobs import make_job


def test_a_message_tells_what_happened_when_and_the_generation_as_a_look_at_it_would() -> None:
    job = make_job("gen_" + "0" * 40)
    body = json.loads(webhook_message(job, "generation.started", 1_800_000_000_250).model_dump_json())
    assert body == {
        "type": "generation.started",
        "timestamp": "2027-01-15T08:00:00.250000Z",
        "data": json.loads(generation_resource(job).model_dump_json()),
    }
