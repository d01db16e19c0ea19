"""Signatures of webhooks against the published example, and against the libraries that receivers use."""

from __future__ import annotations

import base64
import time

import pytest
import standardwebhooks
import svix.webhooks

from service.tenants.webhook_secrets import WebhookSecret
from service.webhooks.signing import signature_headers

BODY = b'{"type":"generation.succeeded","data":{"prompt":"\xc3\xa9"}}'


def secret(name: str, key: bytes) -> WebhookSecret:
    return WebhookSecret(name, key, created_ms=0)


OLD, NEW = secret("whs_old", bytes(range(32))), secret("whs_new", bytes(range(100, 124)))


def test_the_published_example_of_standard_webhooks_gets_its_published_signature() -> None:
    published = secret("whs_1", base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
    headers = signature_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', [published])
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("verifier", [standardwebhooks.Webhook, svix.webhooks.Webhook])
def test_either_secret_of_a_rotation_verifies_and_no_other_does(verifier: type[standardwebhooks.Webhook]) -> None:
    headers = signature_headers("evt_gen_1_succeeded", int(time.time()), BODY, [NEW, OLD])
    assert len(headers["webhook-signature"].split()) == 2
    for valid in (NEW, OLD):
        verifier(valid.text).verify(BODY, headers)
    with pytest.raises(Exception, match="signature"):
        verifier(secret("whs_x", bytes(32)).text).verify(BODY, headers)
    for changed in (BODY + b" ", BODY.replace(b"succeeded", b"failed")):
        with pytest.raises(Exception, match="signature"):
            verifier(NEW.text).verify(changed, headers)
    with pytest.raises(Exception, match="signature"):
        verifier(NEW.text).verify(BODY, {**headers, "webhook-id": "evt_gen_2_succeeded"})
    with pytest.raises(Exception, match="signature"):
        verifier(NEW.text).verify(BODY, {**headers, "webhook-timestamp": str(int(time.time()) + 1)})


@pytest.mark.parametrize(("event_id", "secrets"), [("evt.1", [OLD]), ("", [OLD]), ("evt_1", [])])
def test_what_could_not_be_verified_is_not_signed(event_id: str, secrets: list[WebhookSecret]) -> None:
    with pytest.raises(ValueError, match="no dot"):
        signature_headers(event_id, 1, b"", secrets)


def test_a_secret_does_not_show_itself_when_it_is_printed_for_debugging() -> None:
    assert OLD.text.startswith("whsec_")
    assert OLD.text[6:] not in repr(OLD)
    assert repr(OLD.key)[2:-1] not in repr(OLD)
