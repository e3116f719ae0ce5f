"""When a server is asked again, when everybody waits, and when it is given up, against real servers on loopback."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from email.utils import formatdate

import pytest
from PIL import Image

import caption_server
from caption_server import Asked, CaptionServer, serving
from holistic_clip_hf.captioning.captioner import Reply, Work
from holistic_clip_hf.captioning.patience import Patience, retry_after
from holistic_clip_hf.captioning.perspectives import Perspective
from holistic_clip_hf.captioning.remote_backend import RemoteBackend, ServerError
from holistic_clip_hf.captioning.sent_pictures import SentLimits, data_url

SHORT = Perspective("short", "Describe this image in a few words.", max_new_tokens=32)
STYLE = Perspective("style", "Describe the style.")
HASTY = Patience(timeout=10, attempts=2, first_pause=0.01)


def pictures(count: int, perspectives: Sequence[Perspective] = (SHORT, STYLE)) -> Iterator[Work]:
    for level in range(count):
        yield Work(f"image {level}", Image.new("RGB", (6, 4), (level % 16 * 16, level // 16 * 16, 0)), perspectives)


def answered(replies: list[Reply]) -> list[str]:
    return sorted(reply.image_id for reply in replies if reply.text)


class FlaggingServer(CaptionServer):
    """Refuses what it is asked about the first images, and no others, at once."""

    def __init__(self, flagged: int, status: str) -> None:
        super().__init__(error=b'{"error": {"message": "flagged by moderation"}}')
        self.status = status
        self.flagged = {data_url(work.image, "jpeg", SentLimits()) for work in pictures(flagged)}

    def note(self, asked: Asked) -> str:
        super().note(asked)
        return self.status if asked.question[0] in self.flagged else ""


class LimitedServer(CaptionServer):
    """Answers a question every so many seconds, and refuses the others without a word about when to come again."""

    def __init__(self, seconds: float, **options: object) -> None:
        super().__init__(**options)
        self.seconds, self.next, self.refused = seconds, 0.0, 0

    def note(self, asked: Asked) -> str:
        super().note(asked)
        with self.lock:
            if asked.moment < self.next:
                self.refused += 1
                return "429"
            self.next = asked.moment + self.seconds
            return ""


@pytest.mark.parametrize("header", [None, "soon", "0.02"])
def test_a_limited_rate_costs_no_row(header: str | None) -> None:
    """16 images at a time on a server that takes 20 questions a second: with one attempt each, nothing fails."""
    patience = Patience(timeout=10, attempts=1, first_pause=0.02)
    with serving(LimitedServer(0.05, retry_after=header)) as server:
        replies = list(RemoteBackend(server.url, "m", patience=patience).answer(pictures(16)))
    assert len(answered(replies)) == len(replies) == 32
    assert server.refused > 16


@pytest.mark.parametrize(("status", "header", "least"), [("429", "1", 1), ("503", "date", 1), ("429", "0.6", 0.6)])
def test_a_busy_server_is_left_alone_by_everybody(status: str, header: str, least: float) -> None:
    """What is asked about the other image waits, too. A date is 2 seconds ahead, cut to whole ones."""
    first, second = pictures(2)
    work = [first._replace(perspectives=(SHORT,)), second._replace(perspectives=(STYLE, Perspective("c", "What?")))]
    patience = Patience(timeout=10, attempts=1, first_pause=0.01)
    with serving(CaptionServer({SHORT.prompt: [status]}, delay=0.1, retry_after=header)) as server:
        replies = list(RemoteBackend(server.url, "m", patience=patience).answer(work))
    assert len(answered(replies)) == 3
    refused = next(asked.moment for asked in server.asked if asked.question[1] == SHORT.prompt)
    moments = [asked.moment - refused for asked in server.asked]
    assert len(moments) == 4 and max(moments) < least + 4
    # One may be under way when the other is refused; then nobody is for as long as the server said.
    assert not [moment for moment in moments if 0.7 * least < moment < least]
    assert len([moment for moment in moments if moment >= least]) >= 2


def test_milliseconds_count_before_seconds() -> None:
    with serving(CaptionServer(["429"], retry_after="60", headers={"Retry-After-Ms": "300"})) as server:
        list(RemoteBackend(server.url, "m", patience=HASTY).answer(pictures(1, [SHORT])))
    assert 0.3 <= server.asked[1].moment - server.asked[0].moment < 30


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": " 7 "}, 7),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "soon"}, None),
        ({}, None),
    ],
)
def test_how_long_a_server_wants_to_be_left_alone(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_date_is_as_far_away_as_it_says() -> None:
    wait = retry_after({"retry-after": formatdate(time.time() + 90, usegmt=True)})
    assert wait is not None and 88 < wait <= 90


@pytest.mark.parametrize(
    ("faults", "retry", "error", "reason"),
    [
        (["503"], "7200", b"", "HTTP 503: Service Unavailable; it wants to be left alone for 7,200 seconds"),
        (["429"], "1", b'{"error": {"message": "pay", "code": "insufficient_quota"}}', "HTTP 429: pay"),
        (["429"] * 99, None, b'{"detail": "too many"}', "HTTP 429: too many; nothing was answered for"),
        (["hang"] * 9, None, b"", "no answer within 0.4 seconds; nothing was answered for"),
    ],
)
def test_a_server_that_answers_nobody_for_long_is_not_waited_for(
    faults: list[str], retry: str | None, error: bytes, reason: str
) -> None:
    patience = Patience(timeout=0.4, attempts=9, first_pause=0.01, longest_silence=0.8)
    begin = time.monotonic()
    with (
        serving(CaptionServer(faults, retry_after=retry, error=error)) as server,
        pytest.raises(ServerError, match=reason),
    ):
        list(RemoteBackend(server.url, "m", patience=patience).answer(pictures(3)))
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("status", ["401", "402", "403", "404", "405"])
def test_a_server_that_refuses_everybody_ends_the_run(status: str) -> None:
    with (
        serving(CaptionServer([status] * 9, error=b'{"error": "no such key: hf_secret"}')) as server,
        pytest.raises(
            ServerError, match=rf"The server refuses 'm': HTTP {status}: no such key: \*\*\*.*\. Correct the"
        ),
    ):
        list(RemoteBackend(server.url, "m", token="hf_secret", concurrency=1).answer(pictures(9)))
    # 403 may be said of one image, so another picture is asked about.
    assert len(server.asked) == (2 if status == "403" else 1)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("flagged", [1, 14])
@pytest.mark.parametrize("status", ["403", "400", "500"])
def test_images_that_are_refused_cost_no_others_their_answers(status: str, flagged: int, concurrency: int) -> None:
    """The first ones, before anything is answered; more of them than would be taken for a server that is lost."""
    patience = Patience(timeout=10, attempts=1, first_pause=0.01)
    with serving(FlaggingServer(flagged, status)) as server:
        backend = RemoteBackend(server.url, "m", patience=patience, concurrency=concurrency)
        replies = list(backend.answer(pictures(20)))
    assert len(replies) == 40 and len(answered(replies)) == 2 * (20 - flagged)
    assert {reply.error.partition(" (")[0] for reply in replies} == {"", f"HTTP {status}: flagged by moderation"}


@pytest.mark.parametrize("status", ["400", "500"])
def test_a_server_that_fails_everybody_is_found_out(status: str) -> None:
    replies: list[Reply] = []
    with (
        serving(CaptionServer([status] * 9)) as server,
        pytest.raises(ServerError, match=f"HTTP {status}: overloaded"),
    ):
        for reply in RemoteBackend(server.url, "m", patience=HASTY, concurrency=2).answer(pictures(200)):
            replies.append(reply)
    assert not replies  # the next run asks them again
    assert len(server.times) < 30


@pytest.mark.parametrize("images", [1, 120])
def test_a_dead_server_ends_the_run_with_the_reason(images: int, caplog: pytest.LogCaptureFixture) -> None:
    with serving(CaptionServer()) as server:
        pass
    begin = time.monotonic()
    with pytest.raises(
        ServerError, match=r"does not answer for 'm': the connection failed: ConnectError: .*\(attempts: 3\)\. Correct"
    ):
        list(RemoteBackend(server.url, "m", patience=Patience(attempts=3, first_pause=0.1)).answer(pictures(images)))
    assert time.monotonic() - begin < 3
    # Told at once, and not after all attempts.
    [warning] = [record for record in caplog.records if "asked again" in record.getMessage()]
    assert "the connection failed" in warning.getMessage() and warning.levelno == logging.WARNING


@pytest.mark.parametrize("fault", ["killed", "502"])
def test_a_server_that_dies_half_way_ends_the_run_and_leaves_no_failures(fault: str) -> None:
    replies: list[Reply] = []
    alone = subprocess.Popen([sys.executable, caption_server.__file__, "0.02"], stdout=subprocess.PIPE, text=True)
    assert alone.stdout is not None
    patience = Patience(timeout=5, attempts=3, first_pause=0.05)
    with alone, serving(CaptionServer()) as server, pytest.raises(ServerError, match="HTTP 502|the connection failed"):
        url = server.url if fault == "502" else alone.stdout.readline().strip()
        for reply in RemoteBackend(url, "m", patience=patience, concurrency=3).answer(pictures(100)):
            replies.append(reply)
            if len(replies) == 10:
                server.faults = ["502"] * 9
                alone.kill()
    assert 10 <= len(replies) < 30 and not [reply for reply in replies if reply.error]


def test_patience_has_bounds() -> None:
    with pytest.raises(ValueError, match="expected a number above 0"):
        Patience(attempts=0)
    assert [Patience(first_pause=2).pause(attempt) for attempt in (0, 1, 4, 5, 10**6)] == [2, 4, 32, 60, 60]
    assert Patience(timeout=900).silence == 1800
