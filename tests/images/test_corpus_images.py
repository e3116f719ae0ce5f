"""Which images a corpus takes, and what it stores of them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from holistic_clip_hf.images.decoding import ImageLimits, UnreadableImageError, decode_image, verify_image

SIDE = 16


def picture(mode: str = "RGB", size: tuple[int, int] = (SIDE, SIDE + 8)) -> Image.Image:
    """Dark but for a white corner, top left, so that a turn shows."""
    image = Image.new("RGB", size, (10, 20, 30))
    image.paste((255, 255, 255), (0, 0, size[0] // 2, size[1] // 2))
    return image.convert(mode)


def encode(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def pixels(data: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode)).astype(int)


@pytest.mark.parametrize(
    ("image", "file_format", "ending"),
    [
        (picture(), "PNG", "png"),
        (picture(), "JPEG", "jpg"),
        (picture("L"), "JPEG", "jpg"),
        (picture("P"), "GIF", "gif"),
        (picture("RGBA"), "WEBP", "webp"),
        (picture("LA"), "PNG", "png"),
        (picture("1"), "TIFF", "tif"),
        (picture().convert("I;16"), "PNG", "png"),
        (picture(), "BMP", "bmp"),
    ],
)
def test_what_needs_no_change_is_kept_as_it_came(image: Image.Image, file_format: str, ending: str) -> None:
    data = encode(image, file_format)
    assert verify_image(data) == (data, ending)


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


BAD = {
    "0 bytes": (b"", "0 bytes"),
    "text": (b"<html>404</html>", "no image"),
    "truncated JPEG": (encode(picture(size=(200, 200)), "JPEG")[:-300], "does not decode: .*truncated"),
    "truncated PNG": (encode(Image.effect_noise((64, 64), 80))[:-900], "does not decode"),
    "1 x 1": (encode(picture(size=(1, 1))), "too small: 1 x 1 pixels"),
    "narrow": (encode(picture(size=(300, 7))), "too small: 300 x 7 pixels"),
    "30,000 wide": (encode(Image.new("1", (30_000, 40))), "too many pixels: 30,000 x 40 pixels"),
    "bomb": (bomb(60_000, 60_000), "too many pixels: "),
    "half a bomb": (bomb(12_000, 12_000), "too many pixels: 12,000 x 12,000 pixels"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n", "PostScript is not read"),
    "photo of a phone": (b"\0\0\0\x24ftypmif1\0\0\0\0mif1heic" + bytes(99), "the format HEIC is not read; convert it"),
    "drawing": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "the format SVG is not read"),
    "moving picture": (b"\0\0\0\x20ftypisom" + bytes(99), "the format video"),
    "JPEG XL": (b"\xff\n" + bytes(99), "the format JPEG XL is not read"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_images_are_refused_with_a_reason(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(UnreadableImageError, match=reason):
        verify_image(data)
    if reason.startswith("the format"):  # said alike wherever images are opened
        with pytest.raises(UnreadableImageError, match=reason):
            decode_image({"bytes": data, "path": None})


def test_limits_hold_at_their_edge() -> None:
    data = encode(picture(size=(20, 30)))
    exact = ImageLimits(min_side=20, max_side=30, max_pixels=600, max_bytes=len(data))
    assert verify_image(data, exact)[0] == data
    for change in ({"min_side": 21}, {"max_side": 29}, {"max_pixels": 599}, {"max_bytes": len(data) - 1}):
        with pytest.raises(UnreadableImageError, match="too"):
            verify_image(data, ImageLimits(**{**vars(exact), **change}))
    with pytest.raises(ValueError, match="`min_side` is 0; expected 1 or more"):
        ImageLimits(min_side=0)


# What each value of the EXIF orientation asks for, by numpy, from the EXIF standard's own table.
TURNS = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_photographs_are_turned_upright(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    given = encode(picture(), file_format, exif=exif)
    data, ending = verify_image(given)
    stored = Image.open(io.BytesIO(data))
    assert (stored.getexif().get(0x0112, 1), ending) == (1, {"PNG": "png", "JPEG": "jpg"}[file_format])
    expected = TURNS[orientation](np.asarray(Image.open(io.BytesIO(given))).astype(int))
    assert np.abs(pixels(data) - expected).max() <= (0 if file_format == "PNG" else 12)
    assert verify_image(data) == (data, ending)


def test_the_profile_of_a_turned_photograph_stays() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data, _ = verify_image(encode(picture(), "JPEG", exif=exif, icc_profile=profile))
    assert Image.open(io.BytesIO(data)).info["icc_profile"] == profile


def test_an_upright_note_changes_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    data = encode(picture(), "JPEG", exif=exif)
    assert verify_image(data)[0] == data


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_the_first_is_taken(file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    later = [Image.new("RGB", (SIDE, SIDE + 8), colour) for colour in ("red", "blue")]
    given = encode(picture(), file_format, save_all=True, append_images=later, **options)
    data, ending = verify_image(given)
    stored = Image.open(io.BytesIO(data))
    assert (stored.format, ending, getattr(stored, "n_frames", 1)) == ("PNG", "png", 1)
    np.testing.assert_array_equal(pixels(data), pixels(encode(picture())))


def test_pictures_of_phones_are_kept_as_they_came() -> None:
    given = encode(picture(), "MPO", save_all=True, append_images=[picture(size=(8, 8))])
    assert Image.open(io.BytesIO(given)).n_frames == 2
    assert verify_image(given) == (given, "jpg")


def test_colours_of_print_become_rgb() -> None:
    for file_format in ("JPEG", "TIFF"):
        image = Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0))
        data, _ = verify_image(encode(image, file_format))
        assert Image.open(io.BytesIO(data)).mode == "RGB"
        assert np.abs(pixels(data) - [0, 255, 255]).max() <= 3, "full cyan, by definition"


def test_transparency_stays() -> None:
    image = picture("RGBA")
    image.putalpha(77)
    data, _ = verify_image(encode(image))
    assert (pixels(data, "RGBA")[..., 3] == 77).all()


def test_a_damaged_note_of_a_camera_is_none() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encode(picture(), "JPEG", exif=exif))
    place = data.index(b"Exif\x00\x00")
    data[place + 6 : place + 14] = b"XXXXXXXX"
    assert verify_image(bytes(data)) == (bytes(data), "jpg")
