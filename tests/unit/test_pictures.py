"""The header sniffer, against files that Pillow wrote and against anything at all."""

from __future__ import annotations

import io
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from service.net.pictures import NotAPicture, PictureHeader, sniff

SIZES = [(1, 1), (1, 8192), (8192, 1), (640, 481), (300, 301)]


def made(mode: str, size: tuple[int, int], **save: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 128 if mode in {"L", "I;16"} else None).save(out, **save)  # pyright: ignore[reportArgumentType]
    return out.getvalue()


def animation(name: str, frames: int) -> bytes:
    pictures = [Image.new("RGB", (32, 16), (n * 9 % 256, 0, 0)) for n in range(frames)]
    out = io.BytesIO()
    pictures[0].save(out, name, save_all=True, append_images=pictures[1:], duration=40)
    return out.getvalue()


def outcome(data: bytes) -> PictureHeader | str:
    try:
        return sniff(data)
    except NotAPicture as err:
        return str(err)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("mode", "save", "expected"),
    [
        ("RGB", {"format": "PNG"}, "png"),
        ("RGBA", {"format": "PNG"}, "png"),
        ("P", {"format": "PNG", "transparency": 0}, "png"),
        ("1", {"format": "PNG"}, "png"),
        ("I;16", {"format": "PNG"}, "png"),
        ("RGB", {"format": "JPEG"}, "jpeg"),
        ("L", {"format": "JPEG", "optimize": True}, "jpeg"),
        ("CMYK", {"format": "JPEG"}, "jpeg"),
        ("RGB", {"format": "JPEG", "progressive": True, "comment": b"\xff\xc0 is no marker here"}, "jpeg"),
        ("RGB", {"format": "JPEG", "exif": b"Exif\0\0" + bytes(60_000), "icc_profile": bytes(150_000)}, "jpeg"),
        ("RGB", {"format": "WEBP"}, "webp"),
        ("RGB", {"format": "WEBP", "lossless": True}, "webp"),
        ("RGBA", {"format": "WEBP"}, "webp"),
        ("RGB", {"format": "WEBP", "exif": b"Exif\0\0" + bytes(100), "icc_profile": bytes(1001)}, "webp"),
    ],
)
def test_size_and_format_are_those_that_pillow_wrote(
    size: tuple[int, int], mode: str, save: dict[str, object], expected: str
) -> None:
    assert sniff(made(mode, size, **save)) == PictureHeader(expected, *size)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["PNG", "WEBP"])
@pytest.mark.parametrize("frames", [2, 7, 40])
def test_frames_of_an_animation_are_counted(name: str, frames: int) -> None:
    header = sniff(animation(name, frames))
    assert (header.width_px, header.height_px, header.frames) == (32, 16, frames)


def test_orientation_leaves_the_stored_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    header = sniff(made("RGB", (40, 20), format="JPEG", exif=exif))
    assert (header.width_px, header.height_px) == (40, 20)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (made("RGB", (9, 9), format="GIF"), "a GIF"),
        (made("RGB", (9, 9), format="BMP"), "a BMP"),
        (made("RGB", (9, 9), format="TIFF"), "a TIFF"),
        (made("RGB", (9, 9), format="ICO"), "an icon"),
        (made("RGB", (9, 9), format="EPS"), "a PostScript"),
        (b"SIMPLE  =                    T" + bytes(2850), "a FITS"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
        (b"\0\0\0\x1cftypavif", "an AVIF"),
        (b"\0\0\0\x18ftypheic", "a HEIC"),
        (b"%PDF-1.7", "a PDF"),
    ],
)
def test_other_formats_are_refused_by_name(data: bytes, name: str) -> None:
    with pytest.raises(NotAPicture, match=f"must be a PNG, JPEG or WebP file; this is {name}"):
        sniff(data)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot write AVIF")
def test_real_avif_is_refused_by_name() -> None:
    with pytest.raises(NotAPicture, match="this is an AVIF"):
        sniff(made("RGB", (9, 9), format="AVIF"))


@pytest.mark.parametrize("data", [b"", b"\x89", b"hello", b"RIFF\0\0\0\0WAVE", b"PK\x03\x04", bytes(100)])
def test_anything_else_is_told_what_is_taken(data: bytes) -> None:
    with pytest.raises(NotAPicture, match=r"must be a PNG, JPEG or WebP file\Z"):
        sniff(data)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_file_cut_off_in_its_header_is_said_to_be_cut_off(name: str) -> None:
    data = made("RGB", (64, 48), format=name)
    told = [outcome(data[:length]) for length in range(12, len(data) + 1)]
    first = told.index(sniff(data))
    assert first > 0
    assert all("cut off or damaged" in str(answer) for answer in told[:first])
    assert all(answer == sniff(data) for answer in told[first:])


@pytest.mark.parametrize(("name", "at"), [("PNG", 16), ("JPEG", None)])
def test_picture_without_pixels_is_refused(name: str, at: int | None) -> None:
    data = bytearray(made("RGB", (64, 48), format=name))
    at = data.index(b"\xff\xc0") + 5 if at is None else at
    data[at : at + 2] = data[at + 2 : at + 4] = b"\0\0"
    with pytest.raises(NotAPicture, match="at least one pixel"):
        sniff(bytes(data))


def test_frame_count_after_the_pixels_does_not_count() -> None:
    data = animation("PNG", 3)
    start = data.index(b"acTL") - 4
    control = data[start : start + 20]
    moved = data[:start] + data[start + 20 : -12] + control + data[-12:]
    assert sniff(moved).frames == 1


def test_millions_of_empty_chunks_take_no_time() -> None:
    head = made("RGB", (9, 9), format="PNG")[:33]
    started = time.process_time()
    with pytest.raises(NotAPicture):
        sniff(head + b"\0\0\0\0teXt\0\0\0\0" * 1_000_000)
    with pytest.raises(NotAPicture):
        sniff(b"\xff\xd8" + b"\xff\xfe\0\2" * 2_000_000)
    with pytest.raises(NotAPicture):
        sniff(b"\xff\xd8\xff" + b"\xff" * 10_000_000)
    canvas = b"VP8X\x0a\0\0\0\2\0\0\0\7\0\0\7\0\0"
    assert sniff(b"RIFF\0\0\0\0WEBP" + canvas + b"ANMF\0\0\0\0" * 1_000_000).frames > 1
    assert time.process_time() - started < 0.5


_HEADS = [made("RGB", (30, 20), format=name) for name in ("PNG", "JPEG", "WEBP")] + [
    made("RGBA", (30, 20), format="WEBP"),
    made("RGB", (30, 20), format="WEBP", lossless=True),
    animation("PNG", 3),
    animation("WEBP", 3),
]


@st.composite
def damaged_pictures(draw: st.DrawFn) -> bytes:
    """A real file with bytes changed, removed and put in."""
    data = bytearray(draw(st.sampled_from(_HEADS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(data), 120)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data[: draw(st.integers(0, len(data)))])


@given(st.one_of(st.binary(max_size=300), damaged_pictures(), st.sampled_from(_HEADS)))
@example(b"RIFF\0\0\0\0WEBPVP8X\xff\xff\xff\xff")
@example(b"\xff\xd8\xff\xc0\0")
@settings(max_examples=1000)
def test_any_bytes_are_a_picture_or_refused(data: bytes) -> None:
    told = outcome(data)
    if isinstance(told, str):
        assert told.startswith("must be ")
    else:
        assert min(told.width_px, told.height_px, told.frames) > 0
