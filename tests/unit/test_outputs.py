"""Result pictures, read back with Pillow."""

from __future__ import annotations

import hashlib
import io
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.contract.errors import GenerationFailed
from service.contract.generation import ImageFormat, Output
from service.net.pictures import sniff
from worker.agent.outputs import encode

FORMATS: list[ImageFormat] = ["png", "jpeg", "webp"]
WIDTH, HEIGHT = 96, 64
INFOTEXT = "a red circle, 日本 🎨\nNegative prompt: –\nSteps: 20, Sampler: Euler a, Seed: 42"


def gradient() -> bytes:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([columns * 2, rows * 3, rows + columns], axis=-1).astype(np.uint8).tobytes()


def read(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def error_of(data: bytes) -> float:
    difference = np.asarray(read(data).convert("RGB"), np.int16).ravel() - np.frombuffer(gradient(), np.uint8)
    return float(np.abs(difference).mean())


@pytest.mark.parametrize(
    ("image_format", "content_type", "ext"),
    [("png", "image/png", "png"), ("jpeg", "image/jpeg", "jpg"), ("webp", "image/webp", "webp")],
)
def test_file_is_what_it_says(image_format: ImageFormat, content_type: str, ext: str) -> None:
    encoded = encode(gradient(), WIDTH, HEIGHT, Output(format=image_format))
    assert (encoded.content_type, encoded.ext) == (content_type, ext)
    assert encoded.sha256 == hashlib.sha256(encoded.data).hexdigest()
    header = sniff(encoded.data)
    assert (header.format, header.width_px, header.height_px, header.frames) == (image_format, WIDTH, HEIGHT, 1)


def test_png_keeps_every_pixel() -> None:
    assert read(encode(gradient(), WIDTH, HEIGHT, Output()).data).tobytes() == gradient()


@given(st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_png_keeps_every_pixel_of_any_size(width: int, height: int, random: Random) -> None:
    pixels = random.randbytes(width * height * 3)
    picture = read(encode(pixels, width, height, Output()).data)
    assert (picture.size, picture.tobytes()) == ((width, height), pixels)


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_quality_is_followed(image_format: ImageFormat) -> None:
    files = [encode(gradient(), WIDTH, HEIGHT, Output(format=image_format, quality=q)).data for q in (1, 50, 92, 100)]
    assert sorted(files, key=len) == files
    assert error_of(files[0]) > error_of(files[2])
    assert error_of(files[2]) < 2.5
    assert error_of(encode(gradient(), WIDTH, HEIGHT, Output(format=image_format)).data) < 2.5


@pytest.mark.parametrize(("quality", "sampling"), [(None, (1, 1)), (90, (1, 1)), (100, (1, 1)), (89, (2, 2))])
def test_good_jpegs_keep_colour_at_full_resolution(quality: int | None, sampling: tuple[int, int]) -> None:
    data = encode(gradient(), WIDTH, HEIGHT, Output(format="jpeg", quality=quality)).data
    luma = read(data).layer[0]  # pyright: ignore[reportAttributeAccessIssue]
    assert luma[1:3] == sampling


@pytest.mark.parametrize("image_format", FORMATS)
def test_same_pixels_give_the_same_bytes(image_format: ImageFormat) -> None:
    output = Output(format=image_format, embed_parameters=True)
    assert len({encode(gradient(), WIDTH, HEIGHT, output, INFOTEXT).data for _ in range(3)}) == 1


@pytest.mark.parametrize("image_format", FORMATS)
def test_nothing_is_embedded_unasked(image_format: ImageFormat) -> None:
    encoded = encode(gradient(), WIDTH, HEIGHT, Output(format=image_format), INFOTEXT)
    assert encoded.data == encode(gradient(), WIDTH, HEIGHT, Output(format=image_format, embed_parameters=True)).data
    picture = read(encoded.data)
    assert not picture.getexif()
    assert not set(picture.info) & {"parameters", "exif", "comment", "xmp", "icc_profile"}


@pytest.mark.parametrize("infotext", [INFOTEXT, "plain Latin text", ""])
def test_png_carries_its_parameters_when_asked(infotext: str) -> None:
    encoded = encode(gradient(), WIDTH, HEIGHT, Output(embed_parameters=True), infotext)
    picture = read(encoded.data)
    assert picture.info["parameters"] == infotext
    assert picture.tobytes() == gradient()


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_user_comment_carries_the_parameters_when_asked(image_format: ImageFormat) -> None:
    encoded = encode(gradient(), WIDTH, HEIGHT, Output(format=image_format, embed_parameters=True), INFOTEXT)
    comment = read(encoded.data).getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + INFOTEXT.encode("utf-16-be")


def test_parameters_that_no_jpeg_holds_are_refused_in_words() -> None:
    output = Output(format="jpeg", embed_parameters=True)
    assert encode(gradient(), WIDTH, HEIGHT, output, "x" * 32_000).data
    with pytest.raises(GenerationFailed, match="too long to be embedded in a JPEG"):
        encode(gradient(), WIDTH, HEIGHT, output, "x" * 33_000)
    webp = encode(gradient(), WIDTH, HEIGHT, Output(format="webp", embed_parameters=True), "x" * 33_000)
    assert len(read(webp.data).getexif().get_ifd(0x8769)[0x9286]) == 66_008


def test_pixels_of_another_size_are_refused() -> None:
    for pixels in (gradient()[:-1], gradient() + b"\0", b""):
        with pytest.raises(ValueError, match="are no picture of 96 × 64"):
            encode(pixels, WIDTH, HEIGHT, Output())
