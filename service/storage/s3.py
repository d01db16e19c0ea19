"""Objects in any S3. One client for gateways and agents; safe to share between threads."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError

from service.settings.groups import StorageSettings
from service.storage.client import clean, client_of, code_of, refused, session_of
from service.storage.errors import ObjectDamaged, ObjectTooLarge, StorageUnavailable, TransferBroken
from service.storage.keys import is_within_a_job

#: S3's own limit for one list or delete call.
_PAGE = 1000
_CHUNK_BYTES = 1 << 16
#: botocore retries a call, but not the reading of its reply.
_READ_ATTEMPTS = 3
#: Our rule among those of the bucket.
_CORS_RULE = "darkroom"
_FILENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class _Body(Protocol):
    def read(self, _bytes: int, /) -> bytes: ...
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


@dataclass(frozen=True, slots=True)
class UploadForm:
    """An HTML form (RFC 7578) that stores one object: these fields, and after them the file as `file`; a secret."""

    url: str
    fields: dict[str, str]


class ObjectStorage:
    """One bucket."""

    def __init__(self, settings: StorageSettings, *, attempts: int = 4) -> None:
        """`attempts`: how often a call is tried, with growing pauses of seconds in between."""
        self._bucket = settings.bucket
        self._region = settings.region
        self._endpoint = settings.endpoint
        self._link_ttl_s = settings.link_ttl_s
        session = session_of(settings)
        self._client = client_of(session, settings.endpoint, read_timeout_s=30, attempts=attempts)
        self._probe = client_of(session, settings.endpoint, read_timeout_s=2, attempts=1)
        # A signature covers the host name, so links are signed for the one that callers use.
        self._signer = client_of(session, settings.public_endpoint or settings.endpoint, read_timeout_s=2, attempts=1)

    def put(self, key: str, data: bytes, *, content_type: str, sha256: str) -> None:
        """Store an object, replacing what was there.

        `sha256`: lower-case hex over `data`; the storage compares it with what arrived and refuses anything else,
        which raises `ObjectDamaged` here.
        """
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode("ascii")
        with clean("store an object"):
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

    def size_bytes(self, key: str) -> int:
        """Return the size of an object; raises `ObjectMissing`."""
        with clean("look at an object"):
            return int(self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"])

    def copy(self, source: str, target: str, *, content_type: str) -> None:
        """Store an object's bytes under another key, within the storage; raises `ObjectMissing`."""
        with clean("copy an object"):
            self._client.copy_object(
                Bucket=self._bucket,
                Key=target,
                CopySource={"Bucket": self._bucket, "Key": source},
                ContentType=content_type,
                MetadataDirective="REPLACE",
            )

    def open_stream(self, key: str) -> ObjectStream:
        """Return an object to be read piece by piece."""
        with clean("read an object"):
            return ObjectStream(self._client.get_object(Bucket=self._bucket, Key=key))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete these objects; those that are not there are no error."""
        for first in range(0, len(keys), _PAGE):
            wanted = [{"Key": key} for key in keys[first : first + _PAGE]]
            with clean("delete objects"):
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
            with clean("list objects"):
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
        with clean("sign a link"):
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

    def presign_form(self, key: str, *, content_type: str, size_bytes: int, ttl_s: int) -> UploadForm:
        """Return a form that lets its holder store one object for `ttl_s`, of this type and size alone. Asks nobody."""
        with clean("sign a form"):
            form = self._signer.generate_presigned_post(
                self._bucket,
                key,
                Fields={"Content-Type": content_type},
                Conditions=[{"Content-Type": content_type}, ["content-length-range", size_bytes, size_bytes]],
                ExpiresIn=ttl_s,
            )
        return UploadForm(form["url"], form["fields"])

    def allow_origins(self, origins: Sequence[str]) -> bool:
        """Let web pages of these origins fetch by link and upload by form (CORS); return whether that is new.

        Rules that somebody else gave the bucket stay as they are.
        """
        wanted = {
            "ID": _CORS_RULE,
            "AllowedOrigins": list(origins),
            "AllowedMethods": ["GET", "HEAD", "POST"],
            "AllowedHeaders": ["*"],
            "ExposeHeaders": ["ETag"],
            "MaxAgeSeconds": 3600,
        }
        found = self._cors_rules()
        if wanted in found:
            return False
        rules = [rule for rule in found if rule.get("ID") != _CORS_RULE]
        with clean("set the origins of the bucket"):
            self._client.put_bucket_cors(Bucket=self._bucket, CORSConfiguration={"CORSRules": [*rules, wanted]})
        return True

    def _cors_rules(self) -> list[dict[str, Any]]:
        try:
            return self._client.get_bucket_cors(Bucket=self._bucket)["CORSRules"]
        except ClientError as err:
            if code_of(err) == "NoSuchCORSConfiguration":
                return []
            raise refused("look at the origins of the bucket", err) from err
        except BotoCoreError as err:
            raise StorageUnavailable from err

    def ensure_bucket(self) -> None:
        """Create the bucket if it is not there."""
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except ClientError as err:
            if code_of(err) not in {"404", "NoSuchBucket", "NotFound"}:
                raise refused("look at the bucket", err) from err
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
            if code_of(err) != "BucketAlreadyOwnedByYou":  # another gateway was faster
                raise refused("create the bucket", err) from err
        except BotoCoreError as err:
            raise StorageUnavailable from err

    def ping(self) -> None:
        """Return when the bucket answers; raises `StorageUnavailable` within about 4 s otherwise."""
        try:
            self._probe.head_bucket(Bucket=self._bucket)
        except ClientError as err:
            raise refused("look at the bucket", err) from err
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
