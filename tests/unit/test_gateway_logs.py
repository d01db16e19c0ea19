"""What the log says, and above all what it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from service.telemetry.context import request_id_from
from service.telemetry.logs import mask_secrets


def run(code: str) -> str:
    """Run code in a process of its own, since logging is configured per process; return its stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_json_lines_carry_the_request_and_the_job() -> None:
    lines = run("""
        import logging, structlog
        from service.telemetry.context import begin_request, bind_job
        from service.telemetry.logs import configure_logging
        configure_logging("json", "info")
        log = structlog.get_logger()
        begin_request("req_1")
        bind_job("gen_1")
        log.info("generation_accepted", model="shapes")
        logging.getLogger("some.library").warning("slow %s", "disk")
        log.debug("unseen")
    """).splitlines()
    first, second = (json.loads(line) for line in lines)
    assert first.items() >= {"event": "generation_accepted", "request_id": "req_1", "job_id": "gen_1"}.items()
    assert second.items() >= {"event": "slow disk", "logger": "some.library", "request_id": "req_1"}.items()
    assert first["timestamp"].endswith("Z")
    assert len(lines) == 2


def test_an_exception_is_one_json_line_without_secrets() -> None:
    (line,) = run("""
        import structlog
        from service.telemetry.logs import configure_logging
        configure_logging("json", "info")
        try:
            raise RuntimeError("GET http://s3/x?X-Amz-Signature=abcdef0123 by dk_abc_0123456789 at redis://u:hunter2@h/0")
        except RuntimeError:
            structlog.get_logger().exception("unexpected_error", prompt="a private prompt")
    """).splitlines()
    event = json.loads(line)
    assert "RuntimeError" in event["exception"]
    for secret in ("abcdef0123", "0123456789", "hunter2", "private"):
        assert secret not in line


def test_console_lines_are_for_people() -> None:
    text = run("""
        import structlog
        from service.telemetry.logs import configure_logging
        configure_logging("console", "info")
        structlog.get_logger().info("gateway_ready", port=8000)
    """)
    assert "gateway_ready" in text
    assert "port=8000" in text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("dk_ab12_SECRETSECRET", "dk_ab12_***"),
        ("whsec_c2VjcmV0+/9=", "whsec_***"),
        ("authorization: Bearer abc.def", "authorization: Bearer ***"),
        ("https://h/p?X-Amz-Credential=AK&X-Amz-Signature=ff", "https://h/p?X-Amz-Credential=***&X-Amz-Signature=***"),
        ("redis://user:pw@host:6379/0", "redis://user:***@host:6379/0"),
        ("/v1/generations/{generation_id}", "/v1/generations/{generation_id}"),
    ],
)
def test_secrets_are_masked_inside_any_text(text: str, masked: str) -> None:
    assert mask_secrets(None, "info", {"event": text}) == {"event": masked}


@pytest.mark.parametrize("given", ["a", "req-1.2_3", "x" * 128])
def test_a_safe_request_id_is_kept(given: str) -> None:
    assert request_id_from(given) == given


@pytest.mark.parametrize("given", [None, "", "a b", "x" * 129, "a\nb", "é", "<script>"])
def test_any_other_request_id_is_replaced(given: str | None) -> None:
    fresh = request_id_from(given)
    assert fresh.startswith("req_")
    assert fresh != request_id_from(given)


def test_a_log_that_nobody_takes_fails_nothing() -> None:
    """As on a full disk, or in `darkroom gateway 2>&1 | head -1`."""
    code = """
        import logging, structlog
        from service.telemetry.logs import configure_logging
        configure_logging("json", "info")
        structlog.get_logger().info("told_to_nobody")
        logging.getLogger("library").warning("told to nobody")
        print("went on")
    """
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            check=False,
            stdout=subprocess.PIPE,
            stderr=writer,
            text=True,
            timeout=30,
        )
    finally:
        os.close(writer)
    assert done.stdout == "went on\n"
