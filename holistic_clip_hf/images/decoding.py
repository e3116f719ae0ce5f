# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Decoding of images: the one door through which files and bytes are opened, and the bytes that a corpus keeps.

`read_image` gives what a model sees of an image, whatever it came from; `docs/images.md` has the rules as a table.
`verify_image` gives the bytes that a corpus stores:

- Kept as they came: whatever decodes and needs nothing of the following. Transparency, palettes and grey stay.
- Turned upright, if a camera noted how it was held, since many readers do not look at that note.
- Animations and files of several pages: the first picture.
- Colours of print (CMYK) become RGB, by Pillow's plain formula. Their colour profile is not applied.

What had to change is stored without loss, photographs (JPEG) at quality 95.
"""

import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import Image, UnidentifiedImageError

from ..processing_holistic_clip import FORMATS, MAX_BYTES, MAX_PIXELS, MAX_RATIO, eight_bits, from_array, upright
from .files import read_named
from .limits import ImageLimits

READING = 1  # to be raised when an image that was left out is to be read, or others have other pixels
STORABLE = ImageLimits()  # what a corpus takes; what is read at all is more
READABLE = ImageLimits(
    min_side=1, max_side=MAX_PIXELS, max_pixels=MAX_PIXELS, max_bytes=MAX_BYTES, max_ratio=MAX_RATIO
)


class UnreadableImageError(ValueError):
    """An image that does not decode, or that is beyond the limits; its text is the reason."""


class BeyondLimitsError(UnreadableImageError):
    """An image of too many bytes or pixels, or of too narrow a shape."""


class UnreadFormatError(UnidentifiedImageError):
    """A file of a known format that is not read; its text is the reason, and what to do."""


def open_image(given: bytes | str | Path | IO[bytes]) -> Image.Image:
    """Open a file, by its path or open already, or the bytes of one, without decoding its pixels.

    What its name says does not count.

    Raises:
        UnreadFormatError: of a format that is known and not read, such as HEIC.
        PIL.UnidentifiedImageError: not an image of one of `FORMATS`.
        OSError: the file cannot be read.
    """
    file = io.BytesIO(given) if isinstance(given, bytes) else given
    try:
        return Image.open(file, formats=known_formats())
    except UnidentifiedImageError as error:
        if name := unread_format(_head(file)):
            raise UnreadFormatError(f"{NOT_READ} {name} is not read; {CONVERT}") from error
        raise


def _head(file: str | Path | IO[bytes]) -> bytes:
    if isinstance(file, str | Path):
        with open(file, "rb") as opened:
            return opened.read(_BYTES_OF_HEAD)
    file.seek(0)
    return file.read(_BYTES_OF_HEAD)


NOT_READ = "the format"  # beginning of the reason
CONVERT = "convert it, as with `magick mogrify -format jpg FILE`"
_BYTES_OF_HEAD = 512
# Beginnings of files that people take for images. Photos of phones are boxes (ISO 14496-12) whose type comes fifth.
_UNREAD_BEGINNINGS = {
    b"\xff\n": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "PSD",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"FUJIFILMCCD-RAW": "RAF",
    b"IIU\0": "RW2",
    b"IIRO": "ORF",
}
_UNREAD_BOXES = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),  # where Pillow was built without it
    b"crx ": "CR3",
    **dict.fromkeys((b"isom", b"iso2", b"mp41", b"mp42", b"qt  ", b"M4V "), "video (MP4, MOV)"),
}


def unread_format(head: bytes) -> str:
    """Return the name of a format that is known and not read, by the first bytes of a file; nothing for any other.

    >>> unread_format(b"\\0\\0\\0\\x18ftypheic"), unread_format(b"GIF89a")
    ('HEIC', '')
    """
    if head[4:8] == b"ftyp":
        return _UNREAD_BOXES.get(head[8:12], "")
    if b"<svg" in head:
        return "SVG"
    return next((name for begin, name in _UNREAD_BEGINNINGS.items() if head.startswith(begin)), "")


@cache
def known_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def read_image(image: Any, roots: Sequence[str | Path] = (), limits: ImageLimits = READABLE) -> Image.Image:
    """Return an image as a model is to see it: the first picture, upright, of 8 bits, within the limits.

    Transparency is kept, since the background is the processor's; see `on_background`.

    Args:
        image: Bytes, row or Pillow image, as `decode_image` takes them, or an array or tensor, as the processor does.
        roots: Folders below which a path may lie.
        limits: Limits of the image.

    Raises:
        UnreadableImageError: as `decode_image`; pixels that are not finite, or whose scale is unknown.
    """
    try:
        found = decode_image(image, roots, limits)
        if not isinstance(found, Image.Image):
            found = decode_image(from_array(found), limits=limits)
        return eight_bits(found)
    except UnreadableImageError:
        raise
    except ValueError as error:
        raise UnreadableImageError(str(error)) from error


def decode_image(image: Any, roots: Sequence[str | Path] = (), limits: ImageLimits = READABLE) -> Image.Image:
    """Return the image of a row with the values that it holds, upright.

    It is for masks, whose values are numbers of classes and must not be scaled. For pictures there is `read_image`.

    Args:
        image: Value of the column: a mapping with `bytes` or a `path`, as `decode=False` gives it, a path, the bytes
            of a file, or an image that is decoded.
        roots: Folders below which a path may lie; see `files.read_named`. Rows of strangers name any file.
        limits: Limits of the image.

    Raises:
        UnreadableImageError: truncated, not an image, beyond the limits, no pixels, no such file, or one that may not
            be read. Any other error of reading a file is raised as it is: next time the file may be readable.
    """
    if isinstance(image, str):
        image = {"bytes": None, "path": image}
    if isinstance(image, Mapping):
        image = _read(image, roots)
    if image is None:
        raise UnreadableImageError("the row has no image")
    if isinstance(image, io.BytesIO):
        image = image.getbuffer()
    if isinstance(image, (bytearray, memoryview)):
        image = bytes(image)
    if isinstance(image, bytes):
        if len(image) > limits.max_bytes:
            raise BeyondLimitsError(f"file too large: {len(image):,} bytes")
        image = _decoded(lambda: open_image(image))
    if not isinstance(image, Image.Image) and not hasattr(image, "shape"):  # an array, of whatever library
        raise UnreadableImageError(f"it is {type(image).__name__}, not an image")
    if not isinstance(image, Image.Image):
        return image
    if 0 in image.size:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels")
    if fault := limits.fault_of(image.size):
        raise BeyondLimitsError(fault)
    _decoded(image.load)
    return _decoded(lambda: upright(image))


_ADDRESS = re.compile(r" <[^<>]* at 0x[0-9a-fA-F]+>")
Found = TypeVar("Found")


def _decoded(run: Callable[[], Found]) -> Found:
    try:
        return run()
    except UnreadFormatError as error:
        raise UnreadableImageError(str(error)) from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        # Where the bytes lay in memory is another place in every run.
        said = _ADDRESS.sub("", f"{type(error).__name__}: {error}".replace("\n", " "))
        is_bomb = isinstance(error, Image.DecompressionBombError)
        raise (BeyondLimitsError if is_bomb else UnreadableImageError)(said) from error


def _read(image: Mapping[str, Any], roots: Sequence[str | Path]) -> bytes:
    if image.get("bytes") is not None:
        return image["bytes"]
    if image.get("path") is None:
        raise UnreadableImageError("the row has neither bytes nor a path")
    try:
        return read_named(image["path"], roots)
    except FileNotFoundError as error:
        raise UnreadableImageError(f"no such file: {image['path']}") from error
    except OSError as error:
        if error.errno is None:  # not of the system: refused, not a regular file, or too large
            raise UnreadableImageError(str(error)) from error
        raise


_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}
_QUALITY = 95
_MODES_OF_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def verify_image(data: bytes, limits: ImageLimits = STORABLE) -> tuple[bytes, str]:
    """Return the bytes to store and the ending that fits them; see the head of this module.

    Raises:
        UnreadableImageError: no image, a damaged one, or one beyond the limits; its text is the reason.
    """
    if len(data) > limits.max_bytes:
        raise BeyondLimitsError(f"file too large: {len(data):,} bytes")
    image = _open(data)
    if fault := limits.fault_of(image.size):
        raise BeyondLimitsError(fault)
    file_format = image.format or ""
    try:
        image.load()
        changed = _changed(image)
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise UnreadableImageError(f"does not decode: {type(error).__name__}, {error}") from error
    read_image(changed or image, limits=limits)  # refuses pixels that no model can be shown
    if changed is None:
        return data, _ENDINGS.get(file_format, file_format.casefold())
    return _encode(changed, "JPEG" if file_format in ("JPEG", "MPO") else "PNG")


def _open(data: bytes) -> Image.Image:
    try:
        return open_image(data)
    except UnreadFormatError as error:
        raise UnreadableImageError(str(error)) from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError("no image" if data else "0 bytes") from error
    except Image.DecompressionBombError as error:
        raise BeyondLimitsError(f"too many pixels: {error}") from error
    except Exception as error:  # as above
        raise UnreadableImageError(f"does not decode: {type(error).__name__}, {error}") from error


def _changed(image: Image.Image) -> Image.Image | None:
    """Return the first picture, upright and not in CMYK; `None` where the image is that already."""
    # A picture of a phone (MPO) holds others beside the first, which is the one that was taken.
    is_changed = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    if is_changed:
        image.seek(0)
    turned = upright(image)  # a new image also where the note is damaged: other readers would stumble over it
    image, is_changed = turned, is_changed or turned is not image
    if image.mode == "CMYK":
        image, is_changed = image.convert("RGB"), True
        image.info.pop("icc_profile", None)  # of the colours that it had
    return image if is_changed else None


def _encode(image: Image.Image, file_format: str) -> tuple[bytes, str]:
    file = io.BytesIO()
    if file_format == "JPEG":
        image.save(file, "JPEG", quality=_QUALITY, icc_profile=image.info.get("icc_profile"))
        return file.getvalue(), "jpg"
    image = image if image.mode in _MODES_OF_PNG else eight_bits(image)
    (image.convert("RGBA") if image.mode == "PA" else image).save(file, "PNG")
    return file.getvalue(), "png"


Given = TypeVar("Given")
Made = TypeVar("Made")


def map_ahead(
    pool: ThreadPoolExecutor, most: int, make: Callable[[Given], Made], given: Iterable[Given]
) -> Iterator[Made]:
    """Map in threads, in order, with at most `most` waiting or at work; `given` is read in the calling thread."""
    waiting: deque[Future[Made]] = deque()
    for each in given:
        waiting.append(pool.submit(make, each))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
