"""The bucket, against a real S3 server."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from pydantic import SecretStr

from service.contract.errors import Unavailable
from service.settings.groups import StorageSettings
from service.storage.errors import ObjectDamaged, ObjectMissing, ObjectTooLarge, StorageUnavailable, TransferBroken
from service.storage.keys import image_key, input_key, job_prefix
from service.storage.s3 import ObjectStorage

PNG = "image/png"


@pytest.fixture(scope="module")
def storage(storage_settings: StorageSettings) -> Iterator[ObjectStorage]:
    storage = ObjectStorage(storage_settings)
    yield storage
    storage.close()


@pytest.fixture
def prefix() -> str:
    """A job of the test's own."""
    return job_prefix("tenant", 1_763_600_000_000, secrets.token_hex(8))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(storage: ObjectStorage, key: str, data: bytes) -> None:
    storage.put(key, data, content_type=PNG, sha256=sha(data))


def test_what_is_put_is_got(storage: ObjectStorage, prefix: str) -> None:
    data = os.urandom(9_000_000)  # more than one chunk of the server's
    key = image_key(prefix, "e1", 0, "png")
    put(storage, key, data)
    assert storage.get(key, max_bytes=len(data), sha256=sha(data)) == data


def test_empty_object_is_an_object(storage: ObjectStorage, prefix: str) -> None:
    put(storage, f"{prefix}empty", b"")
    assert storage.get(f"{prefix}empty", max_bytes=0) == b""


def test_second_put_replaces_the_first(storage: ObjectStorage, prefix: str) -> None:
    put(storage, f"{prefix}a", b"first")
    put(storage, f"{prefix}a", b"second")
    assert storage.get(f"{prefix}a", max_bytes=10) == b"second"


def test_stream_knows_size_and_content_type(storage: ObjectStorage, prefix: str) -> None:
    data = os.urandom(200_000)
    put(storage, f"{prefix}a", data)
    with storage.open_stream(f"{prefix}a") as stream:
        assert (stream.size_bytes, stream.content_type) == (len(data), PNG)
        pieces = list(stream)
    assert b"".join(pieces) == data
    assert len(pieces) > 1


def test_upload_that_is_not_what_its_checksum_says_is_refused(storage: ObjectStorage, prefix: str) -> None:
    with pytest.raises(ObjectDamaged):
        storage.put(f"{prefix}a", b"damaged on the way", content_type=PNG, sha256=sha(b"as it was"))
    with pytest.raises(ObjectMissing):
        storage.get(f"{prefix}a", max_bytes=100)


def test_bytes_other_than_expected_are_refused(storage: ObjectStorage, prefix: str) -> None:
    put(storage, f"{prefix}a", b"swapped")
    with pytest.raises(ObjectDamaged):
        storage.get(f"{prefix}a", max_bytes=100, sha256=sha(b"original"))


def test_missing_object_is_said_to_be_missing(storage: ObjectStorage, prefix: str) -> None:
    with pytest.raises(ObjectMissing):
        storage.get(f"{prefix}nothing", max_bytes=100)
    with pytest.raises(ObjectMissing):
        storage.open_stream(f"{prefix}nothing")


def test_object_over_the_limit_is_not_read(storage: ObjectStorage, prefix: str) -> None:
    put(storage, f"{prefix}a", b"x" * 1001)
    with pytest.raises(ObjectTooLarge, match="has 1001 bytes; at most 1000 are read"):
        storage.get(f"{prefix}a", max_bytes=1000)


def test_prefix_deletion_takes_all_pages_and_no_neighbour(storage: ObjectStorage, prefix: str) -> None:
    neighbour = f"{prefix[:-1]}0/a"
    put(storage, neighbour, b"stays")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: put(storage, f"{prefix}e/{n}", b"x"), range(1005)))
    put(storage, input_key(prefix, 0, "png"), b"x")
    assert storage.delete_prefix(f"{prefix}e/") == 1005
    assert storage.get(input_key(prefix, 0, "png"), max_bytes=1) == b"x"
    assert storage.delete_prefix(prefix) == 1
    assert storage.delete_prefix(prefix) == 0
    assert storage.get(neighbour, max_bytes=10) == b"stays"


@pytest.mark.parametrize(
    "prefix", ["", "/", "tenant", "tenant/", "tenant/2026/", "tenant/2026/11/", "tenant/2026/11/job", "t/2026/11/j/../"]
)
def test_nothing_above_a_job_is_deleted_in_one_call(storage: ObjectStorage, prefix: str) -> None:
    with pytest.raises(ValueError, match="only a job's prefix"):
        storage.delete_prefix(prefix)


def test_deleting_what_is_not_there_is_no_error(storage: ObjectStorage, prefix: str) -> None:
    put(storage, f"{prefix}a", b"x")
    storage.delete([f"{prefix}a", f"{prefix}never"])
    storage.delete([])
    with pytest.raises(ObjectMissing):
        storage.get(f"{prefix}a", max_bytes=1)


@pytest.mark.parametrize(("inline", "disposition"), [(True, "inline"), (False, "attachment")])
def test_link_gives_the_picture_with_fixed_headers(
    storage: ObjectStorage, prefix: str, inline: bool, disposition: str
) -> None:
    storage.put(f"{prefix}a", b"<html>", content_type="text/html", sha256=sha(b"<html>"))
    link = storage.presign_get(f"{prefix}a", content_type=PNG, filename="cat-0.png", inline=inline)
    with httpx.Client(trust_env=False) as web:
        reply = web.get(link)
    assert (reply.status_code, reply.content) == (200, b"<html>")
    assert reply.headers["content-type"] == PNG
    assert reply.headers["content-disposition"] == f'{disposition}; filename="cat-0.png"'


def test_tampered_link_is_refused(storage: ObjectStorage, prefix: str) -> None:
    put(storage, f"{prefix}a", b"x")
    put(storage, f"{prefix}b", b"x")
    link = storage.presign_get(f"{prefix}a", content_type=PNG, filename="a.png", inline=True)
    with httpx.Client(trust_env=False) as web:
        assert web.get(link.replace(f"{prefix}a", f"{prefix}b")).status_code == 403
        assert web.get(link.replace("image%2Fpng", "text%2Fhtml")).status_code == 403
        assert web.get(link.replace("X-Amz-Expires=3600", "X-Amz-Expires=9999")).status_code == 403
        assert web.get(link.partition("?")[0]).status_code == 403
        assert web.put(link, content=b"other").status_code == 403
        assert web.delete(link).status_code == 403
    assert storage.get(f"{prefix}a", max_bytes=1) == b"x"


def test_link_is_signed_for_the_public_host_and_for_an_hour_at_most(storage_settings: StorageSettings) -> None:
    public = storage_settings.model_copy(update={"public_endpoint": "https://pictures.example.com", "link_ttl_s": 60})
    link = httpx.URL(
        ObjectStorage(public).presign_get("t/2026/11/j/e/0.png", content_type=PNG, filename="a.png", inline=True)
    )
    assert (link.scheme, link.host) == ("https", "pictures.example.com")
    assert link.path == "/darkroom/t/2026/11/j/e/0.png"
    assert link.params["X-Amz-Expires"] == "60"
    with pytest.raises(ValueError, match="link_ttl_s"):
        StorageSettings(link_ttl_s=3601)


@pytest.mark.parametrize("filename", ["", "a b.png", 'a".png', "a\r\nX-Evil: 1", "../a.png", "a" * 101, "ä.png"])
def test_file_name_that_could_break_the_header_is_refused(storage: ObjectStorage, filename: str) -> None:
    with pytest.raises(ValueError, match="file name"):
        storage.presign_get("t/2026/11/j/e/0.png", content_type=PNG, filename=filename, inline=True)


def test_bucket_is_created_once(storage_settings: StorageSettings) -> None:
    fresh = ObjectStorage(storage_settings.model_copy(update={"bucket": f"b-{secrets.token_hex(4)}"}))
    with pytest.raises(StorageUnavailable):
        fresh.ping()
    fresh.ensure_bucket()
    fresh.ensure_bucket()
    fresh.ping()
    fresh.close()


def test_no_answer_is_unavailable(storage_settings: StorageSettings) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refused
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        away = ObjectStorage(storage_settings.model_copy(update={"endpoint": endpoint}))
        for call in (away.ping, away.ensure_bucket, lambda: away.get("a", max_bytes=1), lambda: put(away, "a", b"x")):
            with pytest.raises(Unavailable):
                call()
        away.close()


def test_object_that_breaks_off_is_an_error_and_not_a_short_object(storage_settings: StorageSettings) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        served = 0

        def serve() -> None:
            nonlocal served
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: image/png\r\n\r\nshort"
                    )
                served += 1

        thread = threading.Thread(target=serve)
        thread.start()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        broken = ObjectStorage(storage_settings.model_copy(update={"endpoint": endpoint}))
        with pytest.raises(TransferBroken):
            broken.get("a", max_bytes=2000)
        broken.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert served == 3


def test_no_secret_reaches_a_message_or_a_log(
    storage_settings: StorageSettings, caplog: pytest.LogCaptureFixture
) -> None:
    assert storage_settings.access_key is not None
    caplog.set_level(logging.DEBUG)
    secret = secrets.token_hex(20)
    wrong = ObjectStorage(storage_settings.model_copy(update={"secret_key": SecretStr(secret)}))
    with pytest.raises(
        StorageUnavailable, match="The storage refused to store an object: SignatureDoesNotMatch"
    ) as refused:
        put(wrong, "t/2026/11/j/a", b"x")
    link = wrong.presign_get("t/2026/11/j/a", content_type=PNG, filename="a.png", inline=True)
    wrong.close()
    written = caplog.text + "".join(traceback.format_exception(refused.value)) + repr(storage_settings)
    assert secret not in written
    assert storage_settings.access_key.get_secret_value() not in written
    assert link.rpartition("Signature=")[2] not in written
    assert "Signature=" not in written


def test_proxy_of_the_environment_is_not_used_for_this_machine(
    storage_settings: StorageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    direct = ObjectStorage(storage_settings)
    direct.ping()
    direct.close()


def test_threads_share_one_storage(storage: ObjectStorage, prefix: str) -> None:
    def round_trip(n: int) -> bool:
        data = bytes([n]) * 10_000
        put(storage, f"{prefix}{n}", data)
        return storage.get(f"{prefix}{n}", max_bytes=10_000, sha256=sha(data)) == data

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(round_trip, range(64)))
