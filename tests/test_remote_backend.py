"""Captions from servers that fail, hang, drip and talk nonsense: nothing is lost, and nothing waits for ever."""

import asyncio
import base64
import io
import itertools
import logging
import threading
import time
from collections.abc import Iterator

import huggingface_hub.constants
import pytest
from caption_server import BROKEN_JSON, FAULTS, CaptionServer, answer, caption_of, serving
from PIL import Image

from holistic_clip_hf.captioning.backend import Reply, Work
from holistic_clip_hf.captioning.patience import Patience
from holistic_clip_hf.captioning.perspectives import Perspective
from holistic_clip_hf.captioning.remote_backend import RemoteBackend, ServerError

SHORT = Perspective("short", "Describe this image in a few words.", max_new_tokens=32)
STYLE = Perspective("style", "Describe the style.", temperature=0.7, top_p=0.9)
HASTY = Patience(timeout=0.4, attempts=2, first_pause=0.01)


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite is offline; a server on this machine is not the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def pictures(count: int) -> Iterator[Work]:
    for level in range(count):
        yield Work(f"image {level}", Image.new("RGB", (6, 4), (level % 16 * 16, level // 16 * 16, 0)), (SHORT, STYLE))


def data_url(image: Image.Image, form: str = "jpeg", **options: int) -> str:
    file = io.BytesIO()
    image.save(file, form, **options)
    return f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"


def expected(count: int) -> set[tuple[str, str, str]]:
    """What the server says about each, asked by hand."""
    return {
        (work.image_id, each.name, caption_of(data_url(work.image, quality=95, subsampling=0), str(each.prompt)))
        for work in pictures(count)
        for each in work.perspectives
    }


def texts(replies: list[Reply]) -> set[tuple[str, str, str]]:
    return {(reply.image_id, reply.perspective.name, reply.text) for reply in replies if not reply.error}


def test_each_fault_is_asked_again_until_it_is_answered() -> None:
    patience = Patience(timeout=0.4, attempts=len(FAULTS) + 1, first_pause=1e-6)  # doubles each time
    with serving(CaptionServer(FAULTS)) as server:
        replies = list(RemoteBackend(server.url, "m", patience=patience).answer(pictures(3)))
    assert len(replies) == 6 and texts(replies) == expected(3)
    assert set(server.times.values()) == {len(FAULTS) + 1}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_stays_broken_becomes_failures_and_ends(fault: str) -> None:
    begin = time.monotonic()
    with serving(CaptionServer([fault] * 9)) as server:
        replies = list(RemoteBackend(server.url, "m", patience=HASTY).answer(pictures(2)))
    assert len({(reply.image_id, reply.perspective) for reply in replies}) == len(replies) == 4
    assert all(reply.error and not reply.text for reply in replies)
    assert set(server.times.values()) == {HASTY.attempts}
    assert time.monotonic() - begin < 5
    kind = "HTTP" if fault.isdecimal() else "no answer within" if fault in ("hang", "drip") else "the "
    assert {reply.error.startswith(kind) for reply in replies} == {True}, replies
    assert ("cannot be read" in replies[0].error) == (fault in (*BROKEN_JSON, "html"))
