"""Input pictures: what is drawn from them, and what is refused."""

from __future__ import annotations

import io
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from service.contract.errors import FailureCode
from worker.agent import decoder
from worker.agent.inputs import Decoded, Decoders, InvalidInput

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    decoders = Decoders()
    yield decoders
    decoders.close()


def saved(image: Image.Image, name: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, name, **options)
    return out.getvalue()


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(7).integers(0, 256, (size[1], size[0], len(Image.new(mode, (1, 1)).getbands())))
    return Image.fromarray(pixels.astype(np.uint8).squeeze(), mode if mode != "1" else None)


def rgb(decoded: Decoded) -> Image.Image:
    return Image.frombytes("RGB", (decoded.width_px, decoded.height_px), decoded.pixels)


def test_png_comes_through_exactly(decoders: Decoders) -> None:
    picture = noise((37, 23))
    decoded = decoders.decode(saved(picture, "PNG"), mode="RGB", deadline_s=DEADLINE_S)
    assert decoded == Decoded(37, 23, picture.tobytes())


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 60, "progressive": True}, {"subsampling": 0}])
def test_jpeg_is_what_pillow_reads(decoders: Decoders, options: dict[str, object]) -> None:
    data = saved(noise((64, 48)), "JPEG", **options)
    decoded = decoders.decode(data, mode="RGB", deadline_s=DEADLINE_S)
    assert decoded.pixels == Image.open(io.BytesIO(data)).tobytes()


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}])
def test_webp_is_what_pillow_reads(decoders: Decoders, options: dict[str, object]) -> None:
    data = saved(noise((64, 48)), "WEBP", **options)
    decoded = decoders.decode(data, mode="RGB", deadline_s=DEADLINE_S)
    assert decoded.pixels == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(64, 64), (128, 32), (24, 80)])
def test_resizing_is_diffusers_own(decoders: Decoders, mode: str, size: tuple[int, int]) -> None:
    from diffusers.image_processor import VaeImageProcessor

    picture = noise((50, 40), mode)
    processor = VaeImageProcessor(
        vae_scale_factor=8, do_normalize=False, do_convert_rgb=mode == "RGB", do_convert_grayscale=mode == "L"
    )
    expected = processor.preprocess(picture, width=size[0], height=size[1])[0].permute(1, 2, 0).numpy() * 255
    decoded = decoders.decode(saved(picture, "PNG"), mode=mode, size=size, deadline_s=DEADLINE_S)  # pyright: ignore[reportArgumentType]
    shape = (size[1], size[0], len(mode))
    assert np.array_equal(np.frombuffer(decoded.pixels, np.uint8).reshape(shape), np.rint(expected).astype(np.uint8))


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_turned_upright(decoders: Decoders, name: str, orientation: int) -> None:
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste("red", (0, 0, 16, 16))
    upright.paste("lime", (0, 0, 32, 8))
    undo = [0, 1, 2, 3, 4, 5, 8, 7, 6][orientation]  # 6 and 8 are each other's inverse
    method = decoder._UPRIGHT.get(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(method) if method is not None else upright
    decoded = decoders.decode(saved(stored, name, exif=exif, quality=100), mode="RGB", deadline_s=DEADLINE_S)
    assert (decoded.width_px, decoded.height_px) == (32, 16)
    for spot in ((4, 4), (28, 4), (4, 12), (28, 12)):
        found, wanted = rgb(decoded).getpixel(spot), upright.getpixel(spot)
        assert np.abs(np.subtract(found, wanted)).max() < 60, (spot, found, wanted)  # pyright: ignore[reportArgumentType]


def test_transparent_parts_lie_on_white_and_a_masks_on_black(decoders: Decoders) -> None:
    picture = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    picture.putpixel((1, 0), (255, 255, 255, 128))
    data = saved(picture, "PNG")
    assert decoders.decode(data, mode="RGB", deadline_s=DEADLINE_S).pixels == b"\xff" * 6
    assert decoders.decode(data, mode="L", deadline_s=DEADLINE_S).pixels == b"\x00\x80"


def test_palette_with_a_transparent_colour_is_resolved(decoders: Decoders) -> None:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    data = saved(picture, "PNG", transparency=0)
    assert decoders.decode(data, mode="RGB", deadline_s=DEADLINE_S).pixels == b"\xff\xff\xff" + bytes((40, 50, 60))


def test_deep_and_shallow_greys_keep_their_brightness(decoders: Decoders) -> None:
    deep = Image.frombytes("I;16", (3, 1), struct.pack("<3H", 0, 0x80FF, 0xFFFF))
    assert decoders.decode(saved(deep, "PNG"), mode="L", deadline_s=DEADLINE_S).pixels == b"\x00\x80\xff"
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    assert decoders.decode(saved(bits, "PNG"), mode="L", deadline_s=DEADLINE_S).pixels == b"\x00\xff"


def test_cmyk_jpeg_is_converted(decoders: Decoders) -> None:
    data = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = decoders.decode(data, mode="RGB", deadline_s=DEADLINE_S).pixels[:3]
    assert red > 240
    assert max(green, blue) < 15


def test_notes_in_the_file_change_nothing(decoders: Decoders) -> None:
    picture = noise((16, 16))
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "x" * 10_000, zip=True)
    notes.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="1"/>')
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = saved(picture, "PNG", pnginfo=notes, icc_profile=profile, exif=b"Exif\0\0" + b"\xff" * 50)
    assert decoders.decode(data, mode="RGB", deadline_s=DEADLINE_S).pixels == picture.tobytes()


def test_phone_picture_with_a_second_one_behind_it_is_read(decoders: Decoders) -> None:
    first = noise((32, 32))
    data = saved(first, "MPO", save_all=True, append_images=[noise((32, 32))])
    assert decoders.decode(data, mode="RGB", deadline_s=DEADLINE_S).width_px == 32


def test_largest_picture_fits_into_the_memory_limit(decoders: Decoders) -> None:
    exif = Image.Exif()
    exif[0x0112] = 5
    data = saved(Image.new("RGBA", (8192, 2048), (9, 9, 9, 99)), "PNG", exif=exif, compress_level=1)
    decoded = decoders.decode(data, mode="RGB", size=(512, 512), deadline_s=DEADLINE_S)
    assert len(decoded.pixels) == 512 * 512 * 3


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, pixels: bytes, *extra: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bomb(side: int) -> bytes:
    """A small file that says it holds side² pixels, and does."""
    squeeze = zlib.compressobj(9)
    row = bytes(side * 3 + 1)
    return png_of(side, side, b"".join(squeeze.compress(row) for _ in range(side)) + squeeze.flush())


def gif(frames: int) -> bytes:
    pictures = [Image.new("P", (16, 16), n % 256) for n in range(frames)]
    return saved(pictures[0], "GIF", save_all=True, append_images=pictures[1:])


def animated(name: str) -> bytes:
    return saved(noise((16, 16)), name, save_all=True, append_images=[Image.new("RGB", (16, 16))], duration=50)


HOSTILE = {
    "nothing": (b"", "must be a PNG, JPEG or WebP"),
    "text": (b"hello" * 100, "must be a PNG, JPEG or WebP"),
    "300 frames of GIF": (gif(300), "this is a GIF"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "this is a PostScript"),
    "FITS": (b"SIMPLE  =                    T" + bytes(2850), "this is a FITS"),
    "BMP": (saved(noise((9, 9)), "BMP"), "this is a BMP"),
    "TIFF": (saved(noise((9, 9)), "TIFF"), "this is a TIFF"),
    "SVG": (b"<svg onload='alert(1)'/>", "this is an SVG"),
    "PNG named JPEG": (b"\xff\xd8\xff" + saved(noise((9, 9)), "PNG"), "cut off or damaged"),
    "animated PNG": (animated("PNG"), "must have one frame"),
    "animated WebP": (animated("WEBP"), "must have one frame"),
    "81 million pixels in a small PNG": (bomb(9000), "sides of 8192 px at most"),
    "67 million pixels in a small PNG": (bomb(8192), "16777216 px²"),
    "one pixel wide": (saved(Image.new("L", (1, 8192)), "PNG"), "16 times as long"),
    "8192 × 1 WebP": (saved(Image.new("RGB", (8192, 1)), "WEBP"), "16 times as long"),
    "no pixels": (png_of(0, 0, zlib.compress(b"")), "at least one pixel"),
    "2³¹ pixels wide": (png_of(2**31 - 1, 2**31 - 1, b""), "at most"),
    "PNG without its end": (saved(noise((64, 64)), "PNG")[:-600], "damaged, cut off"),
    "JPEG without its end": (saved(noise((64, 64)), "JPEG")[:-600], "damaged, cut off"),
    "WebP without its end": (saved(noise((64, 64)), "WEBP")[:-600], "damaged, cut off"),
    "PNG with a broken stream": (png_of(64, 64, b"\x78\x9c" + b"\xff" * 500), "damaged, cut off"),
    "PNG of unknown depth": (png_of(9, 9, b"").replace(b"\x08\x02\x00\x00\x00", b"\x07\x02\x00\x00\x00"), "damaged"),
    "text bomb": (
        png_of(9, 9, zlib.compress(bytes(28) * 9), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))),
        "damaged, cut off",
    ),
    "JPEG of garbage after its header": (saved(noise((64, 64)), "JPEG")[:400] + os.urandom(5000), "damaged, cut off"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_picture_is_refused_in_our_own_words(decoders: Decoders, kind: str) -> None:
    data, words = HOSTILE[kind]
    with pytest.raises(InvalidInput) as refused:
        decoders.decode(data, mode="RGB", deadline_s=DEADLINE_S)
    assert words in refused.value.message
    assert refused.value.message.startswith("An input picture ")
    assert refused.value.failure == FailureCode.INVALID_INPUT


def test_archive_hidden_behind_a_picture_does_not_come_through(decoders: Decoders) -> None:
    picture = noise((16, 16))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("evil.js", "alert(1)")
    data = saved(picture, "PNG") + archive.getvalue()
    assert zipfile.is_zipfile(io.BytesIO(data))
    assert decoders.decode(data, mode="RGB", deadline_s=DEADLINE_S).pixels == picture.tobytes()


def test_slow_picture_is_killed_at_its_deadline(decoders: Decoders) -> None:
    data = bomb(4096)
    started = time.monotonic()
    with pytest.raises(InvalidInput, match="takes too long"):
        decoders.decode(data, mode="RGB", size=(4000, 4000), deadline_s=0.1)
    assert time.monotonic() - started < 2
    assert decoders.decode(saved(noise((8, 8)), "PNG"), mode="RGB", deadline_s=DEADLINE_S).width_px == 8


def test_dead_spare_is_replaced() -> None:
    decoders = Decoders()
    spare = decoders._spares[0]
    spare.kill()
    spare._process.wait()
    assert decoders.decode(saved(noise((8, 8)), "PNG"), mode="RGB", deadline_s=DEADLINE_S).width_px == 8
    decoders.close()


def test_threads_decode_side_by_side(decoders: Decoders) -> None:
    def work(shade: int) -> bytes:
        data = saved(Image.new("L", (64, 64), shade), "PNG")
        return decoders.decode(data, mode="L", deadline_s=DEADLINE_S).pixels

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(16))) == [bytes([shade]) * 4096 for shade in range(16)]


def test_no_process_outlives_its_picture(decoders: Decoders) -> None:
    own = Decoders()
    own.decode(saved(noise((8, 8)), "PNG"), mode="RGB", deadline_s=DEADLINE_S)
    pid = own._spares[0]._process.pid
    own.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    own.decode(saved(noise((8, 8)), "PNG"), mode="RGB", deadline_s=DEADLINE_S)
    assert not own._spares


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_damaged_picture_is_decoded_or_refused(decoders: Decoders, data: st.DataObject) -> None:
    whole = bytearray(saved(noise((24, 24)), data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decoders.decode(bytes(whole), mode="RGB", deadline_s=DEADLINE_S)
    except InvalidInput:
        return
    assert len(decoded.pixels) == decoded.width_px * decoded.height_px * 3
