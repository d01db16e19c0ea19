"""What no process writes down, whatever happens to a job: prompts, keys, links, webhook addresses and secrets."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
from pydantic import SecretStr

from service.settings.groups import RedisSettings, StorageSettings
from service.tenants.store import KeyStore, TenantStore
from tests.e2e.outages import Outpost
from tests.e2e.processes import wait_for
from tests.gateway import gateway_process
from tests.sites import PUBLIC

WORDS = {
    "prompt": "xyzzyprompt",
    "negative_prompt": "xyzzynegative",
    "label": "xyzzylabel",
    "token": "xyzzytoken",
    "path": "xyzzypath",
    "idempotency": "xyzzyidempotency",
}


@contextmanager
def receiver() -> Iterator[tuple[int, list[str]]]:
    """A receiver of webhooks, which refuses those to `/down/…`; yield its port, and the paths that it was sent."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(500 if self.path.startswith("/down") else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            paths.append(self.path)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((PUBLIC, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port, paths
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def sender(environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-m", "service.webhooks"], env=environment, stderr=file)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def post(client: httpx.Client, port: int, prompt: str = "", *, place: str = "up", **fields: object) -> httpx.Response:
    body = {
        "prompt": f"{WORDS['prompt']} {prompt}",
        "negative_prompt": WORDS["negative_prompt"],
        "labels": {"order": WORDS["label"]},
        "steps": 4,
        "webhook": {"url": f"http://{PUBLIC}:{port}/{place}/{WORDS['path']}?token={WORDS['token']}"},
        **fields,
    }
    return client.post(
        "/v1/generations", json=body, headers={"Idempotency-Key": f"{WORDS['idempotency']}{prompt}{place}"}
    )


def test_no_log_of_any_process_holds_what_is_private(
    outpost: Outpost, storage_settings: StorageSettings, name: str, tmp_path: Path
) -> None:
    outpost.redis.flushdb()
    TenantStore(outpost.redis).create("ada")
    key = KeyStore(outpost.redis).create("ada").text
    redis_settings = RedisSettings(url=SecretStr(outpost.valkey.url))
    with receiver() as (port, hits):
        egress = {
            "DARKROOM_EGRESS_HTTP": "true",
            "DARKROOM_EGRESS_NETWORKS": f"{PUBLIC}/32",
            "DARKROOM_EGRESS_PORTS": str(port),
            "DARKROOM_LOG_LEVEL": "debug",
        }
        outpost.agent(name, **egress)
        environment = {**outpost.service.environment(), "DARKROOM_REDIS_URL": outpost.valkey.url, **egress}
        log = tmp_path / "sender.log"
        with (
            gateway_process(redis_settings, storage_settings, **egress) as gateway,
            sender(environment, log),
            httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client,
        ):
            wait_for("a model", lambda: client.get("/v1/models").json()["data"], timeout_s=10)
            secret = client.get("/v1/webhooks/secret").json()["secret"].removeprefix("whsec_")
            replies = [post(client, port), post(client, port, "crash"), post(client, port, "omit", place="down")]
            assert [reply.status_code for reply in replies] == [202] * 3, replies[0].text
            ids = [reply.json()["id"] for reply in replies]
            assert outpost.ended(ids) == ["succeeded", "failed", "failed"]
            link = client.get(f"/v1/generations/{ids[0]}/images/0").headers["Location"]
            assert post(client, port, steps="many", model=WORDS["prompt"]).status_code == 422
            wrong = {"Authorization": f"Bearer {key[:-4]}zzzz"}
            assert client.get(f"/v1/{WORDS['path']}?token={WORDS['token']}", headers=wrong).status_code == 404
            assert client.get("/v1/models", headers=wrong).status_code == 401
            wait_for("all three webhooks", lambda: len(hits) >= 3, timeout_s=20)
            assert WORDS["token"] in hits[0]
            wait_for(
                "a line about the one that failed", lambda: "webhook_failed" in log.read_text("utf-8"), timeout_s=10
            )
        lines = {"gateway": "".join(gateway.lines), "agent": outpost.log(name), "sender": log.read_text("utf-8")}
    signature = parse_qs(urlsplit(link).query)["X-Amz-Signature"][0]
    private = {
        **WORDS,
        "key": key.rpartition("_")[2],
        "link": signature,
        "secret": secret,
        "receiver": f"{PUBLIC}:{port}",
    }
    # Each process had something to write down about it.
    assert ids[0] in lines["gateway"]
    assert ids[0] in lines["agent"]
    assert '"engine_lost"' in lines["agent"]
    assert {line["job_id"] for line in map(json.loads, lines["sender"].splitlines()) if "event_id" in line} == set(ids)
    for process, text in lines.items():
        assert {what for what, word in private.items() if word in text} == set(), process
