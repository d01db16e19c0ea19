"""Forms by which callers store one object themselves, copies within the storage, and the origins of web pages."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import httpx
import pytest

from service.settings.groups import StorageSettings
from service.storage.errors import ObjectMissing
from service.storage.keys import job_prefix, sent_key
from service.storage.s3 import ObjectStorage, UploadForm

SIZE = 1000
DATA = b"\x89PNG" + b"x" * (SIZE - 4)


@pytest.fixture(scope="module")
def storage(storage_settings: StorageSettings) -> Iterator[ObjectStorage]:
    storage = ObjectStorage(storage_settings)
    yield storage
    storage.close()


@pytest.fixture
def key() -> str:
    return sent_key(job_prefix("acme", 1_700_000_000_000, f"upl_{secrets.token_hex(8)}"))


def form_of(storage: ObjectStorage, key: str, *, ttl_s: int = 60) -> UploadForm:
    return storage.presign_form(key, content_type="image/png", size_bytes=SIZE, ttl_s=ttl_s)


def send(form: UploadForm, data: bytes = DATA, **changed: str) -> httpx.Response:
    return httpx.post(form.url, data={**form.fields, **changed}, files={"file": ("a.png", data)})


def test_a_form_stores_the_declared_size_and_type(storage: ObjectStorage, key: str) -> None:
    assert send(form_of(storage, key)).status_code == 204
    assert storage.get(key, max_bytes=SIZE) == DATA
    assert storage.size_bytes(key) == SIZE
    with storage.open_stream(key) as stream:
        assert stream.content_type == "image/png"


@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1, 3_000_000])
def test_a_form_stores_no_other_size(storage: ObjectStorage, key: str, size: int) -> None:
    assert send(form_of(storage, key), b"x" * size).status_code == 400
    with pytest.raises(ObjectMissing):
        storage.size_bytes(key)


@pytest.mark.parametrize(
    "changed",
    [
        {"Content-Type": "text/html"},
        {"key": "acme/2023/11/upl_other/files/sent"},
        {"x-amz-meta-a": "b"},
        {"x-amz-signature": "0" * 64},
        {"policy": "e30="},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_form_that_was_changed_stores_nothing(storage: ObjectStorage, key: str, changed: dict[str, str]) -> None:
    assert send(form_of(storage, key), **changed).status_code in {400, 403}
    with pytest.raises(ObjectMissing):
        storage.size_bytes(key)


def test_a_form_ends(storage: ObjectStorage, key: str) -> None:
    form = form_of(storage, key, ttl_s=1)
    deadline = time.monotonic() + 10
    while (status := send(form).status_code) == 204:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert status == 403


def test_a_form_is_for_the_public_host_and_our_own_calls_are_not(storage_settings: StorageSettings, key: str) -> None:
    public = storage_settings.model_copy(update={"public_endpoint": "https://pictures.example.com"})
    storage = ObjectStorage(public)
    form = form_of(storage, key)
    assert form.url == f"https://pictures.example.com/{public.bucket}"
    with pytest.raises(ObjectMissing):  # answered by the storage itself: nothing listens at the public name
        storage.size_bytes(key)
    storage.close()


def test_a_copy_stays_when_the_original_changes(storage: ObjectStorage, key: str) -> None:
    copy = key.replace("files/sent", "inputs/0.png")
    send(form_of(storage, key))
    storage.copy(key, copy, content_type="image/png")
    send(form_of(storage, key), b"y" * SIZE)
    assert storage.get(copy, max_bytes=SIZE) == DATA


def test_what_is_not_there_is_not_copied(storage: ObjectStorage, key: str) -> None:
    with pytest.raises(ObjectMissing):
        storage.copy(key, key + ".copy", content_type="image/png")


def test_web_pages_of_allowed_origins_may_send_and_read(storage_settings: StorageSettings, key: str) -> None:
    # Rules hold for a whole bucket: one of this test's own.
    storage = ObjectStorage(storage_settings.model_copy(update={"bucket": f"cors-{secrets.token_hex(4)}"}))
    storage.ensure_bucket()
    try:
        assert storage.allow_origins(["https://shop.example", "https://app.example"])
        assert not storage.allow_origins(["https://shop.example", "https://app.example"])
        assert storage.allow_origins(["https://shop.example"])
        form = form_of(storage, key)
        for origin, allowed in (("https://shop.example", True), ("https://app.example", False)):
            body = {"data": form.fields, "files": {"file": ("a.png", DATA)}, "headers": {"Origin": origin}}
            sent = httpx.post(form.url, **body)  # type: ignore[arg-type]
            link = storage.presign_get(key, content_type="image/png", filename="a.png", inline=True)
            read = httpx.get(link, headers={"Origin": origin})
            told = [reply.headers.get("access-control-allow-origin") for reply in (sent, read)]
            assert told == ([origin, origin] if allowed else [None, None])
    finally:
        storage.close()


def test_rules_of_others_stay(storage_settings: StorageSettings) -> None:
    storage = ObjectStorage(storage_settings.model_copy(update={"bucket": f"cors-{secrets.token_hex(4)}"}))
    storage.ensure_bucket()
    theirs = {"AllowedOrigins": ["https://theirs.example"], "AllowedMethods": ["GET"]}
    storage._client.put_bucket_cors(Bucket=storage._bucket, CORSConfiguration={"CORSRules": [theirs]})
    storage.allow_origins(["https://shop.example"])
    storage.allow_origins(["https://app.example"])
    rules = storage._client.get_bucket_cors(Bucket=storage._bucket)["CORSRules"]
    assert [rule["AllowedOrigins"] for rule in rules] == [["https://theirs.example"], ["https://app.example"]]
    storage.close()
