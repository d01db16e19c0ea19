"""Signatures of webhooks: Standard Webhooks 1.0.0, the symmetric scheme `v1`."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence

from service.tenants.webhook_secrets import WebhookSecret


def signature_headers(event_id: str, timestamp_s: int, body: bytes, secrets: Sequence[WebhookSecret]) -> dict[str, str]:
    """Return the three headers of one attempt to deliver `body`: a signature for each secret that is valid.

    `timestamp_s` is the moment of this attempt, s since 1970. Raises ValueError where there is no secret, or where the
    id has a dot: it separates the parts of what is signed.
    """
    if not secrets or not event_id or "." in event_id:
        msg = "a webhook is signed with at least one secret, and its id has no dot"
        raise ValueError(msg)
    signed = f"{event_id}.{timestamp_s}.".encode() + body
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(f"v1,{_signature(secret.key, signed)}" for secret in secrets),
    }


def _signature(key: bytes, signed: bytes) -> str:
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
