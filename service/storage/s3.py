"""Objects in any S3. One client for gateways and agents; safe to share between threads.

    DarkroomError
    └── StorageError
        ├── ObjectMissing
        ├── ObjectTooLarge
        ├── ObjectDamaged            not what was stored, or not what was sent
        └── StorageUnavailable       (also `Unavailable`) no answer, or a refusal that only an operator can mend
            └── TransferBroken       the answer broke off

No message of these errors holds a secret or a signed link.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError

from service.contract.errors import DarkroomError, Unavailable
from service.settings.groups import StorageSettings
from service.storage.keys import is_within_a_job

#: S3's own limit for one list or delete call.
_PAGE = 1000
_CHUNK_BYTES = 1 << 16
#: botocore retries a call, but not the reading of its reply.
_READ_ATTEMPTS = 3
_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MISSING = frozenset({"NoSuchKey", "NotFound", "404"})
_DAMAGED = frozenset({"BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"})


class StorageError(DarkroomError):
    """The storage could not do what was asked."""


class ObjectMissing(StorageError):
    """There is no such object."""


class ObjectTooLarge(StorageError):
    """The object is larger than the reader takes."""


class ObjectDamaged(StorageError):
    """The object's bytes are not those that were stored."""


class StorageUnavailable(StorageError, Unavailable):
    """The storage does not answer."""


class TransferBroken(StorageUnavailable):
    """The storage broke off in the middle of an object."""


class _Body(Protocol):
    def read(self, _bytes: int, /) -> bytes: ...
    def close(self) -> None: ...


class _Client(Protocol):
    """What is used of boto3's S3 client, which has no types of its own."""

    def put_object(self, **request: Any) -> dict[str, Any]: ...
    def get_object(self, **request: Any) -> dict[str, Any]: ...
    def head_bucket(self, **request: Any) -> dict[str, Any]: ...
    def create_bucket(self, **request: Any) -> dict[str, Any]: ...
    def list_objects_v2(self, **request: Any) -> dict[str, Any]: ...
    def delete_objects(self, **request: Any) -> dict[str, Any]: ...
    def generate_presigned_url(self, _method: str, /, **request: Any) -> str: ...
    def close(self) -> None: ...


class ObjectStream:
    """An object on its way: iterate for its bytes, once. Close it, or use it as a context."""

    def __init__(self, reply: dict[str, Any]) -> None:
        self._body = cast("_Body", reply["Body"])
        self.size_bytes = int(reply["ContentLength"])
        self.content_type = str(reply.get("ContentType", "application/octet-stream"))

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes in pieces. Raises `TransferBroken`, or `ObjectDamaged` after the last one."""
        seen = 0
        with self:
            try:
                while chunk := self._body.read(_CHUNK_BYTES):
                    seen += len(chunk)
                    yield chunk
            except FlexibleChecksumError as err:
                raise ObjectDamaged from err
            except (BotoCoreError, OSError) as err:
                raise TransferBroken from err
        if seen != self.size_bytes:
            raise TransferBroken

    def close(self) -> None:
        """Give the connection back."""
        self._body.close()

    def __enter__(self) -> ObjectStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ObjectStorage:
    """One bucket."""

    def __init__(self, settings: StorageSettings, *, attempts: int = 4) -> None:
        """`attempts`: how often a call is tried, with growing pauses of seconds in between."""
        _silence_debug_logs()
        self._bucket = settings.bucket
        self._region = settings.region
        self._endpoint = settings.endpoint
        self._link_ttl_s = settings.link_ttl_s
        session = Session(
            aws_access_key_id=settings.access_key.get_secret_value() if settings.access_key else None,
            aws_secret_access_key=settings.secret_key.get_secret_value() if settings.secret_key else None,
            region_name=settings.region,
        )
        self._client = _client(session, settings.endpoint, read_timeout_s=30, attempts=attempts)
        self._probe = _client(session, settings.endpoint, read_timeout_s=2, attempts=1)
        # A signature covers the host name, so links are signed for the one that callers use.
        self._signer = _client(session, settings.public_endpoint or settings.endpoint, read_timeout_s=2, attempts=1)

    def put(self, key: str, data: bytes, *, content_type: str, sha256: str) -> None:
        """Store an object, replacing what was there.

        `sha256`: lower-case hex over `data`; the storage compares it with what arrived and refuses anything else,
        which raises `ObjectDamaged` here.
        """
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode("ascii")
        with _clean("store an object"):
            self._client.put_object(
                Bucket=self._bucket, Key=key, Body=data, ContentType=content_type, ChecksumSHA256=checksum
            )

    def get(self, key: str, *, max_bytes: int, sha256: str | None = None) -> bytes:
        """Return an object's bytes.

        Raises `ObjectTooLarge` without reading more than `max_bytes`, `ObjectMissing`, and `ObjectDamaged` where the
        bytes are not those of `sha256` (lower-case hex).
        """
        data = b""
        for attempt in range(1, _READ_ATTEMPTS + 1):
            try:
                data = self._read(key, max_bytes)
                break
            except TransferBroken:
                if attempt == _READ_ATTEMPTS:
                    raise
        if sha256 is not None and not hmac.compare_digest(hashlib.sha256(data).hexdigest(), sha256):
            raise ObjectDamaged
        return data

    def open_stream(self, key: str) -> ObjectStream:
        """Return an object to be read piece by piece."""
        with _clean("read an object"):
            return ObjectStream(self._client.get_object(Bucket=self._bucket, Key=key))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete these objects; those that are not there are no error."""
        for first in range(0, len(keys), _PAGE):
            wanted = [{"Key": key} for key in keys[first : first + _PAGE]]
            with _clean("delete objects"):
                reply = self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": wanted, "Quiet": True})
            failed = reply.get("Errors", [])
            if failed:
                msg = f"The storage did not delete {len(failed)} of {len(wanted)} objects: {failed[0].get('Code')}."
                raise StorageUnavailable(msg)

    def delete_prefix(self, prefix: str) -> int:
        """Delete everything of a job, or everything under one of its folders, and return how many objects that were.

        ValueError for any prefix above a job. Objects that are stored meanwhile may stay.
        """
        if not is_within_a_job(prefix):
            msg = "only a job's prefix, or one below it, can be deleted"
            raise ValueError(msg)
        deleted = 0
        while True:
            # Always the first page: what it listed is gone by the next call, and no token can skip over a neighbour.
            with _clean("list objects"):
                page = self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, MaxKeys=_PAGE)
            keys = [str(entry["Key"]) for entry in page.get("Contents", [])]
            if not keys:
                return deleted
            self.delete(keys)
            deleted += len(keys)

    def presign_get(self, key: str, *, content_type: str, filename: str, inline: bool) -> str:
        """Return a link that lets its holder read one object for `link_ttl_s`; a secret. Asks nobody.

        The reply's content type and disposition are part of the signature. `filename`: letters, digits, `.`, `_`, `-`.
        """
        if _FILENAME.fullmatch(filename) is None:
            msg = "a file name in a link has 1 to 100 of A-Z a-z 0-9 . _ - and begins with a letter or digit"
            raise ValueError(msg)
        disposition = "inline" if inline else "attachment"
        with _clean("sign a link"):
            return self._signer.generate_presigned_url(
                "get_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": key,
                    "ResponseContentType": content_type,
                    "ResponseContentDisposition": f'{disposition}; filename="{filename}"',
                },
                ExpiresIn=self._link_ttl_s,
            )

    def ensure_bucket(self) -> None:
        """Create the bucket if it is not there."""
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except ClientError as err:
            if _code(err) not in {"404", "NoSuchBucket", "NotFound"}:
                raise _unavailable("look at the bucket", err) from err
        except BotoCoreError as err:
            raise StorageUnavailable from err
        else:
            return
        # AWS wants its regions named, except the first one, where the name is an error.
        where = {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
        elsewhere = self._endpoint is None and self._region != "us-east-1"
        try:
            self._client.create_bucket(Bucket=self._bucket, **(where if elsewhere else {}))
        except ClientError as err:
            if _code(err) != "BucketAlreadyOwnedByYou":  # another gateway was faster
                raise _unavailable("create the bucket", err) from err
        except BotoCoreError as err:
            raise StorageUnavailable from err

    def ping(self) -> None:
        """Return when the bucket answers; raises `StorageUnavailable` within about 4 s otherwise."""
        try:
            self._probe.head_bucket(Bucket=self._bucket)
        except ClientError as err:
            raise _unavailable("look at the bucket", err) from err
        except BotoCoreError as err:
            raise StorageUnavailable from err

    def close(self) -> None:
        """Close idle connections."""
        for client in (self._client, self._probe, self._signer):
            client.close()

    def _read(self, key: str, max_bytes: int) -> bytes:
        with self.open_stream(key) as stream:
            if stream.size_bytes > max_bytes:
                msg = f"The object has {stream.size_bytes} bytes; at most {max_bytes} are read."
                raise ObjectTooLarge(msg)
            return b"".join(stream)


def _client(session: Session, endpoint: str | None, *, read_timeout_s: float, attempts: int) -> _Client:
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
    return cast("_Client", session.client("s3", endpoint_url=endpoint, config=config))


@contextmanager
def _clean(action: str) -> Iterator[None]:
    """Turn boto3's errors into ours."""
    try:
        yield
    except ClientError as err:
        code = _code(err)
        if code in _MISSING:
            raise ObjectMissing from err
        if code in _DAMAGED:
            raise ObjectDamaged from err
        raise _unavailable(action, err) from err
    except BotoCoreError as err:
        raise StorageUnavailable from err


def _unavailable(action: str, err: ClientError) -> StorageUnavailable:
    return StorageUnavailable(f"The storage refused to {action}: {_code(err)[:60]}.")


def _code(err: ClientError) -> str:
    response = cast("dict[str, Any]", err.response)
    return str(response.get("Error", {}).get("Code", "unknown"))


def _silence_debug_logs() -> None:
    """At DEBUG these libraries log signatures, signed links and whole requests."""
    for name in ("boto3", "botocore", "urllib3", "s3transfer"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logging.INFO, logger.level))
