"""Captioning killed with -9 at random moments, again and again: it ends with the rows of a run that nobody disturbed.

Real processes, forked from one that has read the model already, so that every kill finds a run at work.
"""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from caption_server import CaptionServer, serving
from holistic_clip_hf.captioning.captioner import Backend, caption_images
from holistic_clip_hf.captioning.local_backend import LocalBackend
from holistic_clip_hf.captioning.perspectives import Answer, Perspective
from holistic_clip_hf.captioning.remote_backend import Patience, RemoteBackend
from holistic_clip_hf.captioning.store import CaptionRow, CaptionStore
from holistic_clip_hf.images.folders import ImageFolder
from tiny_captioner import make_tiny_captioner

FORK = multiprocessing.get_context("fork")
ANY = Answer(form="phrase", language=None)
PERSPECTIVES = [
    Perspective("scene", "Describe it.", max_new_tokens=6, answer=ANY),
    Perspective("style", "Its style?", max_new_tokens=6, temperature=1.5, answer=ANY),  # sampled again, the same
    Perspective("nouns", "Name what there is.", max_new_tokens=6, answer=ANY),
]
FEW, MANY = (4, 14), (25, 60)  # kills and images
MOST_ROWS_BETWEEN = 3  # files between two kills, each of one row, beside those that are under way

Caption = Callable[[Path], None]


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Backend]:
    yield LocalBackend(str(make_tiny_captioner(tmp_path / "captioner")), batch_size=2)


@pytest.fixture
def remote() -> Iterator[Backend]:
    patience = Patience(timeout=60, attempts=3, first_pause=0.01)
    with serving(CaptionServer(["500"], delay=0.02)) as server:
        yield RemoteBackend(server.url, "m", concurrency=3, patience=patience)


def draw_photos(folder: Path, images: int) -> Path:
    """All different, and the last one cannot be read."""
    folder.mkdir()
    for number in range(images - 1):
        Image.new("RGB", (16, 16), (4 * number, 255 - 4 * number, 90)).save(folder / f"{number:02}.png")
    (folder / "99.png").write_bytes(b"")
    return folder


def lines_in(folder: Path) -> list[bytes]:
    return b"".join(path.read_bytes() for path in folder.glob("*.jsonl")).splitlines()


def kill_at_random(caption: Caption, folder: Path, picker: random.Random) -> None:
    """Start it, and end it after some rows more, or before the first."""
    process = FORK.Process(target=caption, args=(folder,))
    wanted = len(lines_in(folder)) + picker.randint(0, MOST_ROWS_BETWEEN)
    process.start()
    deadline = time.monotonic() + 60
    while process.is_alive() and len(lines_in(folder)) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(picker.random() * 0.03)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it was done before it was killed"


@pytest.mark.parametrize(("kills", "images"), [FEW, pytest.param(*MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["local", "remote"])
def test_killed_again_and_again(
    kind: str, kills: int, images: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    photos = draw_photos(tmp_path / "photos", images)
    backend = request.getfixturevalue(kind)

    def caption(folder: Path) -> None:
        caption_images(ImageFolder(photos), PERSPECTIVES, backend, folder, seconds_per_file=0)

    def rows(folder: Path) -> list[CaptionRow]:
        return list(CaptionStore(folder).rows())

    caption(tmp_path / "undisturbed")
    expected = set(rows(tmp_path / "undisturbed"))
    assert len(expected) == images * 3
    picker, disturbed = random.Random(kills), tmp_path / "disturbed"
    for _ in range(kills):
        kill_at_random(caption, disturbed, picker)
        assert set(rows(disturbed)) < expected  # readable, and right, at any moment
    caption(disturbed)
    assert len(rows(disturbed)) == len(expected) and set(rows(disturbed)) == expected
    assert len(lines_in(disturbed)) == len(expected)  # nothing was asked and written twice
