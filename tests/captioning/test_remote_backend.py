"""Captions from servers that fail, hang, drip and talk nonsense: nothing is lost, and nothing waits for ever."""

import asyncio
import base64
import io
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from caption_server import BROKEN_JSON, FAULTS, CaptionServer, caption_of, serving
from holistic_clip_hf.captioning.captioner import Reply, Work
from holistic_clip_hf.captioning.perspectives import Perspective
from holistic_clip_hf.captioning.remote_backend import Patience, RemoteBackend

SHORT = Perspective("short", "Describe this image in a few words.", max_new_tokens=32)
STYLE = Perspective("style", "Describe the style.", temperature=0.7, top_p=0.9)
LATER = Perspective("later", "What may happen next?")
HASTY = Patience(timeout=10, attempts=2, first_pause=0.01)


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
    patience = Patience(timeout=0.5, attempts=len(FAULTS) + 3, first_pause=1e-6)  # doubles each time
    with serving(CaptionServer(FAULTS)) as server:
        replies = list(RemoteBackend(server.url, "m", patience=patience).answer(pictures(3)))
    assert len(replies) == 6 and texts(replies) == expected(3)
    assert min(server.times.values()) > len(FAULTS)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ("429", "503")])
def test_what_stays_broken_becomes_failures_and_ends(fault: str) -> None:
    patience = replace(HASTY, timeout=0.4) if fault in ("hang", "drip") else HASTY
    begin = time.monotonic()
    with serving(CaptionServer([fault] * 9)) as server:
        replies = list(RemoteBackend(server.url, "m", patience=patience).answer(pictures(2)))
    assert len({(reply.image_id, reply.perspective) for reply in replies}) == len(replies) == 4
    assert all(reply.error and not reply.text for reply in replies)
    assert set(server.times.values()) == {HASTY.attempts}
    assert time.monotonic() - begin < 9
    kind = "HTTP" if fault.isdecimal() else "no answer within" if fault in ("hang", "drip") else "the "
    assert {reply.error.startswith(kind) for reply in replies} == {True}, replies
    assert ("cannot be read" in replies[0].error) == (fault in (*BROKEN_JSON, "html"))


def test_a_question_as_the_server_gets_it() -> None:
    with serving(CaptionServer()) as server:
        backend = RemoteBackend(f"{server.url}/v1/", "me/captioner", image_format="png")
        assert (backend.captioner, backend.revision) == ("me/captioner", "")
        list(backend.answer(pictures(1)))
        first, second = server.asked
        list(backend.answer(pictures(1)))
    picture = first.body["messages"][0]["content"][0]["image_url"]["url"]
    sent = Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/png;base64,"))))
    assert sent.tobytes() == next(pictures(1)).image.tobytes()
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": SHORT.prompt}]
    greedy = {"max_tokens": 32, "temperature": 0.0, "stream": False}
    assert first.body == {"model": "me/captioner", "messages": [{"role": "user", "content": content}], **greedy}
    sampled = {key: second.body[key] for key in ("max_tokens", "temperature", "top_p")}
    assert sampled == {"max_tokens": 77, "temperature": 0.7, "top_p": 0.9}
    assert second.body["seed"] == server.asked[3].body["seed"] in range(2**31)


def test_no_more_images_at_a_time_than_told_and_none_taken_early() -> None:
    taken = 0

    def counted() -> Iterator[Work]:
        nonlocal taken
        for work in pictures(12):
            taken += 1
            yield work

    with serving(CaptionServer(delay=0.05)) as server:
        for number, _ in enumerate(RemoteBackend(server.url, "m", concurrency=3).answer(counted())):
            assert taken <= 3 + number // 2 + 1
    assert server.most_at_once == 3


def test_a_bad_request_costs_one_image_and_is_not_repeated() -> None:
    with serving(CaptionServer(["400"], error=b'{"message": "image too large"}')) as server:
        replies = list(RemoteBackend(server.url, "m", patience=HASTY).answer(pictures(2)))
    assert len(replies) == len(server.asked) == 4
    assert {reply.error.partition(":")[0] for reply in replies} == {"HTTP 400"}


def test_the_token_goes_to_the_server_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_hub")
    caplog.set_level(logging.DEBUG)
    with serving(CaptionServer(["500"], error=b'{"error": "Bearer secret-1 is over its limit"}')) as server:
        patience = Patience(attempts=1)
        backend = RemoteBackend(server.url, "m", token="secret-1", patience=patience)
        replies = list(backend.answer(pictures(1)))
        list(RemoteBackend(server.url, "m").answer(pictures(1)))
    assert [asked.token for asked in server.asked] == ["Bearer secret-1"] * 2 + [None] * 2
    assert {reply.error for reply in replies} == {"HTTP 500: Bearer *** is over its limit (attempts: 1)"}
    assert "secret-1" not in caplog.text + repr(backend) + repr(replies)


def test_closing_the_replies_stops_requests_under_way() -> None:
    with serving(CaptionServer(["", "hang"], delay=0.01)) as server:
        replies = RemoteBackend(server.url, "m", concurrency=4).answer(pictures(9))
        next(replies)
        begin = time.monotonic()
        replies.close()
        assert time.monotonic() - begin < 2
    assert not [thread for thread in threading.enumerate() if thread.name == "requests"]


def test_in_a_notebook() -> None:
    async def cell(url: str) -> list[Reply]:
        return list(RemoteBackend(url, "m").answer(pictures(2)))

    with serving(CaptionServer()) as server:
        assert texts(asyncio.run(cell(server.url))) == expected(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "expected an address such as http://localhost:8000"),
        ({"url": "http://localhost:port"}, "expected an address"),
        ({"url": "http://me:hunter2@localhost"}, "has a user or a password in it"),
        ({"model": " "}, "the name of a model"),
        ({"concurrency": 0}, "1 or more"),
        ({"image_format": "gif"}, "one of jpeg, png"),
        ({"token": "hunter2\n"}, "`token` has spaces, line ends"),
        ({"token": "hunter2é"}, "`token` has spaces, line ends"),
        ({"extra_body": {"stream": True, "messages": []}}, "`extra_body` has messages, stream; expected other"),
    ],
)
def test_what_cannot_be_asked_is_told_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        RemoteBackend(**{"url": "http://localhost", "model": "m", **options})
    assert "hunter2" not in str(caught.value)


def test_a_perspective_without_a_prompt_is_refused() -> None:
    with serving(CaptionServer()) as server, pytest.raises(ValueError, match="no prompt"):
        list(RemoteBackend(server.url, "m").answer([Work("a", Image.new("RGB", (4, 4)), (Perspective("web", None),))]))
