"""A page over drawings, on loopback: what the tests of the demo share."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio
from PIL import Image

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.demo.captions import CaptionsById
from holistic_clip_hf.demo.editing import CaptionFile
from holistic_clip_hf.demo.page import serve
from holistic_clip_hf.demo.showcase import Showcase
from holistic_clip_hf.search import FolderImages, SearchIndex, index_images

SCRIPT = "<img src=x onerror=alert(1)>"  # in a file's name, a caption and a query
SCRIPT_FILE = 'a"><svg onload=alert(1)>&.png'
LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "")


def fill(folder: Path, draw: Callable[..., Image.Image]) -> None:
    """Eight drawings, one of them under a name that holds a script."""
    folder.mkdir()
    for colour in ("red", "green", "blue", "yellow"):
        for shape in ("square", "circle"):
            name = SCRIPT_FILE if (colour, shape) == ("red", "circle") else f"{colour}-{shape}.png"
            draw(colour, shape).save(folder / name)


def open_drawings(
    folder: Path,
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    captions: CaptionsById | None = None,
    edited: CaptionFile | None = None,
) -> Showcase:
    """The showcase of a folder."""
    directory = folder.with_name(f"{folder.name}.index")
    index_images(directory, FolderImages(folder), model, processor)
    index = SearchIndex(directory, model, processor)
    return Showcase(index, model, processor, captions=captions, name="tiny", edited=edited)


@contextmanager
def served(showcase: Showcase) -> Iterator[gradio.Blocks]:
    """The page, until the block ends."""
    blocks = serve(showcase, block=False)
    try:
        yield blocks
    finally:
        blocks.close(verbose=False)


def noted_addresses() -> list[str]:
    """A list that every host is added to that this process connects to or looks up, from now on."""
    found: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            found.append(str(arguments[1][0]))
        elif event == "socket.getaddrinfo" and arguments[0] is not None:
            found.append(arguments[0].decode() if isinstance(arguments[0], bytes) else str(arguments[0]))

    sys.addaudithook(note)
    return found


def png(image: Image.Image) -> bytes:
    """The image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
