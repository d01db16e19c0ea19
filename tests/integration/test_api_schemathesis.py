"""The contract against the app: schemathesis makes requests from `openapi.yaml`, valid and invalid, over a socket.

12 examples per operation and phase are some 2 800 cases; `make fuzz-api` makes it search longer, by `API_EXAMPLES`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from service.settings.groups import RedisSettings, StorageSettings
from tests.gateway import EMOJI, SHAPES, gateway_process, make_key, show_models

EXAMPLES = int(os.environ.get("API_EXAMPLES", "12"))
#: How many cases there have to be, of a campaign.
API_CASES = int(os.environ.get("API_CASES", "0"))

#: Not `positive_data_acceptance`: what a model allows is in its card, not in the schema.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "ensure_resource_availability",
    "use_after_free",
    "ignored_auth",
    "unsupported_method",
    "allow_header_conformance",
)


@pytest.fixture
def target(valkey_url: str, storage_settings: StorageSettings) -> Iterator[tuple[str, str]]:
    """A gateway process on a database of its own: its address and a key."""
    url = valkey_url.rpartition("/")[0] + "/8"
    client = redis.Redis.from_url(url, decode_responses=True)
    client.flushdb()
    show_models(client, SHAPES, EMOJI)
    key = make_key(client)
    settings = RedisSettings(url=SecretStr(url))
    # Nothing is drawn here: whoever waits or follows is let go soon.
    limits = {"DARKROOM_WAIT_CAP_S": "1", "DARKROOM_STREAM_CAP_S": "0.1", "DARKROOM_QUEUE_LIMIT": "100000"}
    with gateway_process(settings, storage_settings, **limits) as gateway:
        yield gateway.url, key
    client.flushdb()
    client.close()


def test_generated_requests_find_nothing_that_breaks_the_contract(target: tuple[str, str], tmp_path: Path) -> None:
    address, key = target
    contract = Path(__file__).parents[2] / "openapi.yaml"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", str(contract), "--url", address),
        *("-H", f"Authorization: Bearer {key}", "--mode", "all", "--checks", ",".join(CHECKS)),
        *("--max-examples", str(EXAMPLES), "--seed", "1", "--generation-database", "none", "--continue-on-failure"),
    ]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert found is not None
    assert int(found[1]) >= 2000
    if API_CASES:
        sys.stdout.write(done.stdout[-3000:])
        assert int(found[1]) >= API_CASES
