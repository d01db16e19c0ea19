"""boto3's S3 client as it is used here: its settings, its types, its errors turned into ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from service.settings.groups import StorageSettings
from service.storage.errors import ObjectDamaged, ObjectMissing, StorageUnavailable

_MISSING = frozenset({"NoSuchKey", "NotFound", "404"})
_DAMAGED = frozenset({"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"})


class S3Client(Protocol):
    """What is used of boto3's S3 client, which has no types of its own."""

    def put_object(self, **request: Any) -> dict[str, Any]: ...
    def get_object(self, **request: Any) -> dict[str, Any]: ...
    def head_object(self, **request: Any) -> dict[str, Any]: ...
    def copy_object(self, **request: Any) -> dict[str, Any]: ...
    def head_bucket(self, **request: Any) -> dict[str, Any]: ...
    def create_bucket(self, **request: Any) -> dict[str, Any]: ...
    def list_objects_v2(self, **request: Any) -> dict[str, Any]: ...
    def delete_objects(self, **request: Any) -> dict[str, Any]: ...
    def generate_presigned_url(self, _method: str, /, **request: Any) -> str: ...
    def generate_presigned_post(self, _bucket: str, _key: str, /, **request: Any) -> dict[str, Any]: ...
    def get_bucket_cors(self, **request: Any) -> dict[str, Any]: ...
    def put_bucket_cors(self, **request: Any) -> dict[str, Any]: ...
    def close(self) -> None: ...


def session_of(settings: StorageSettings) -> Session:
    """Return who we are to the storage."""
    _silence_debug_logs()
    return Session(
        aws_access_key_id=settings.access_key.get_secret_value() if settings.access_key else None,
        aws_secret_access_key=settings.secret_key.get_secret_value() if settings.secret_key else None,
        region_name=settings.region,
    )


def client_of(session: Session, endpoint: str | None, *, read_timeout_s: float, attempts: int) -> S3Client:
    """Return a client for one address; `attempts` at a call, with growing pauses of seconds in between."""
    loopback = endpoint is not None and urlsplit(endpoint).hostname in {"127.0.0.1", "::1", "localhost"}
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if endpoint else "auto"},
        connect_timeout=2,
        read_timeout=read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=32,
        # We send a SHA-256 with every object; older servers do not know the CRCs that boto3 would add to other calls.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_supported",
        # An HTTP_PROXY in the environment is for the world outside, not for a server on this machine.
        proxies={} if loopback else None,
    )
    return cast("S3Client", session.client("s3", endpoint_url=endpoint, config=config))


@contextmanager
def clean(action: str) -> Iterator[None]:
    """Turn boto3's errors into ours."""
    try:
        yield
    except ClientError as err:
        code = code_of(err)
        if code in _MISSING:
            raise ObjectMissing from err
        if code in _DAMAGED:
            raise ObjectDamaged from err
        raise refused(action, err) from err
    except BotoCoreError as err:
        raise StorageUnavailable from err


def refused(action: str, err: ClientError) -> StorageUnavailable:
    """Return what a refusal is to us: only an operator can mend it."""
    return StorageUnavailable(f"The storage refused to {action}: {code_of(err)[:60]}.")


def code_of(err: ClientError) -> str:
    """Return S3's own name of an error."""
    response = cast("dict[str, Any]", err.response)
    return str(response.get("Error", {}).get("Code", "unknown"))


def _silence_debug_logs() -> None:
    """At DEBUG these libraries log signatures, signed links and whole requests."""
    for name in ("boto3", "botocore", "urllib3", "s3transfer"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logging.INFO, logger.level))
