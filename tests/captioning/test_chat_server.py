"""What goes to a server and where: addresses, proxies, redirects, members, sizes; and how its answers end."""

import base64
import io
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from PIL import Image

from caption_server import Asked, CaptionServer, answer, serving
from holistic_clip_hf.captioning.captioner import Reply, Work
from holistic_clip_hf.captioning.chat_server import ChatServer
from holistic_clip_hf.captioning.patience import Patience
from holistic_clip_hf.captioning.perspectives import Perspective
from holistic_clip_hf.captioning.remote_backend import RemoteBackend, ServerError
from holistic_clip_hf.captioning.sent_pictures import SentLimits

SHORT = Perspective("short", "Describe this image in a few words.", max_new_tokens=32)
HASTY = Patience(timeout=10, attempts=1, first_pause=0.01)
SMALL = Image.new("RGB", (6, 4), "red")


def ask(url: str, image: Image.Image = SMALL, count: int = 1, **options: Any) -> list[Reply]:
    backend = RemoteBackend(url, "m", **{"patience": HASTY, "token": "secret", **options})
    return list(backend.answer(Work(f"image {number}", image, [SHORT]) for number in range(count)))


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/v1beta/openai", "/v1beta/openai/chat/completions"),
        ("/v1beta/openai/", "/v1beta/openai/chat/completions"),
        ("/api/v3", "/api/v3/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        (
            "/openai/deployments/m?api-version=1",
            "/openai/deployments/m/chat/completions?api-version=1",
        ),
    ],
)
def test_a_path_is_kept_as_it_is_given(given: str, path: str) -> None:
    """As OpenAI's own client does; an address without a path means `/v1`."""
    with serving(CaptionServer(path=path)) as server:
        [reply] = ask(server.url + given)
    assert reply.text and [asked.path for asked in server.asked] == [path]


def test_a_path_that_is_not_there_is_told() -> None:
    with serving(CaptionServer()) as server, pytest.raises(ServerError, match=r"HTTP 404: .*/api/chat/completions"):
        ask(f"{server.url}/api?key=hidden")


@pytest.mark.parametrize(
    ("host", "is_here"),
    [("[::1]", True), ("[::ffff:127.0.0.1]", True), ("127.8.9.1", True), ("me.localhost", True), ("10.0.0.1", False)]
    + [("localhost.example.org", False), ("[2001:db8::1]", False), ("LOCALHOST", True)],
)
def test_addresses_of_this_machine(host: str, is_here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    for scheme in ("http", "https"):
        server = ChatServer(f"{scheme}://{host}:8000", "m", None, {})
        client = server.client()
        assert (client._transport_for_url(server.url) is client._transport) == is_here


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_this_machine_is_never_reached_through_a_proxy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(each, raising=False)
    with serving(CaptionServer()) as proxy, serving(CaptionServer()) as server:
        monkeypatch.setenv(name, proxy.url)
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):
            [reply] = ask(server.url.replace("127.0.0.1", host), patience=Patience(timeout=10, attempts=1))
            assert reply.text, host
    assert not proxy.asked and len(server.asked) == 3


def test_a_proxy_that_cannot_be_used_does_not_matter_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx does not even start without a package for SOCKS."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with serving(CaptionServer()) as server:
        [reply] = ask(server.url)
    assert reply.text


def test_another_machine_is_reached_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CaptionServer(path="http://captions.invalid:8000/v1/chat/completions")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        [reply] = ask("http://captions.invalid:8000")
    assert reply.text and len(proxy.asked) == 1


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
@pytest.mark.parametrize(
    "place", ["another port", "another host", "another scheme", "//elsewhere.invalid/v1", "http://["]
)
def test_no_image_and_no_token_follow_a_redirect_to_another_origin(status: str, place: str) -> None:
    with serving(CaptionServer()) as other, serving(CaptionServer([status] * 9)) as server:
        places = {"another port": other.url, "another host": server.url.replace("127.0.0.1", "localhost")}
        places["another scheme"] = server.url.replace("http", "https")
        server.headers = {"Location": f"{places[place]}/v1/chat/completions" if place in places else place}
        with pytest.raises(ServerError, match=f"HTTP {status}: it redirects to .*no image is sent there unasked"):
            ask(server.url)
    assert not other.asked and len(server.asked) == 1


@pytest.mark.parametrize("status", ["307", "308", "301", "302"])
def test_a_redirect_within_the_origin_is_followed(status: str) -> None:
    class Moved(CaptionServer):
        def note(self, asked: Asked) -> str:
            self.asked.append(asked)
            return "" if asked.path == "/new/completions" else status

    with serving(Moved(headers={"Location": "/new/completions"})) as server:
        [reply] = ask(server.url)
    assert reply.text and [asked.path for asked in server.asked] == ["/v1/chat/completions", "/new/completions"]
    assert server.asked[0].body == server.asked[1].body
    round_and_round = CaptionServer(["307"] * 9, headers={"Location": "/v1/chat/completions"})
    with serving(round_and_round) as server, pytest.raises(ServerError, match="more than 5 redirects"):
        ask(server.url)


@pytest.mark.parametrize("status", ["400", "422"])
def test_models_that_refuse_the_older_name_of_the_budget_are_given_the_newer(status: str) -> None:
    """The text is OpenAI's."""
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."

    class Newer(CaptionServer):
        def note(self, asked: Asked) -> str:
            super().note(asked)
            return status if "max_tokens" in asked.body else ""

    with serving(Newer(error=json.dumps({"error": {"message": said}}).encode())) as server:
        replies = ask(server.url, count=3, concurrency=1)
    assert all(reply.text for reply in replies)
    budgets = [(asked.body.get("max_tokens"), asked.body.get("max_completion_tokens")) for asked in server.asked]
    assert budgets == [(32, None), (None, 32), (None, 32), (None, 32)]


def test_members_of_the_request_are_added_replaced_and_taken_out() -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": 0.2, "max_tokens": None}
    with serving(CaptionServer()) as server:
        ask(server.url, extra_body=extra)
    [asked] = server.asked
    assert asked.body.keys() == {"model", "messages", "stream", "temperature", "chat_template_kwargs"}
    assert asked.body["chat_template_kwargs"] == {"enable_thinking": False} and asked.body["temperature"] == 0.2


ENDINGS = {
    "stop": True,
    "STOP": True,
    "eos": True,
    "eos_token": True,
    "stop_sequence": True,
    "length": False,
    "max_tokens": False,
    "content_filter": False,
    "model_length": False,
    "tool_calls": False,
    "abort": False,
    "error": False,
    "anything else": False,
    None: False,
}


@pytest.mark.parametrize("end", ENDINGS)
def test_only_endings_that_are_known_to_be_good_are_finished(end: str | None) -> None:
    said = answer("A dog sits on", end=end)  # type: ignore[arg-type]
    with serving(CaptionServer(answers={str(SHORT.prompt): said})) as server:
        assert ask(server.url) == [Reply("image 0", SHORT, "A dog sits on", finished=ENDINGS[end])]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "reasoning_content": "It is a dog."}, "<think>It is a dog."),
        ({"reasoning": "It is a dog."}, "<think>It is a dog."),
        ({"content": "A dog.", "reasoning": "It is a dog."}, "A dog."),
        ({"content": None, "refusal": "No."}, ""),
        ({"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "A dog."}]}, "A dog."),
        ({"content": [{"type": "text", "text": "A "}, {"type": "text", "text": "dog."}]}, "A dog."),
    ],
)
def test_texts_are_found_beside_thinking(message: Mapping[str, Any], text: str) -> None:
    said = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
    with serving(CaptionServer(answers={str(SHORT.prompt): said})) as server:
        assert ask(server.url) == [Reply("image 0", SHORT, text, finished=True)]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b'{"error": {"message": "too long", "code": 400}}', "too long"),
        (b'{"error": "too long"}', "too long"),
        (b'{"message": "too long"}', "too long"),
        (b'{"detail": [{"loc": ["body"], "msg": "too long"}]}', "too long"),
        (b"too long", "too long"),
        (b"<html><body>too long</body></html>", "Bad Request"),
        (b"", "Bad Request"),
        (b"[" * 50_000, "[[[["),
        (b"x" * 5_000_000, "x" * 300 + " ..."),
    ],
)
def test_what_a_server_says_about_an_error_is_the_reason(said: bytes, reason: str) -> None:
    with serving(CaptionServer(["400"], error=said)) as server:
        [reply] = ask(server.url)
    assert reply.error.startswith(f"HTTP 400: {reason}") and len(reply.error) < 400


def test_an_answer_without_end_is_not_kept() -> None:
    with serving(CaptionServer(answers={str(SHORT.prompt): b" " * 20_000_000})) as server:
        [reply] = ask(server.url)
    assert "more than 16,000,000 bytes" in reply.error


def noise(width: int, height: int) -> Image.Image:
    return Image.frombytes("RGB", (width, height), random.Random(0).randbytes(width * height * 3))


def sent(server: CaptionServer) -> Sequence[tuple[str, Image.Image]]:
    pictures = [asked.question[0] for asked in server.asked]
    return [(url, Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in pictures]


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
@pytest.mark.parametrize("max_bytes", [4_000_000, 100_000])
def test_what_is_sent_has_a_limit_whatever_the_picture(image_format: str, max_bytes: int) -> None:
    """Noise is what takes most bytes; at 12 megapixels, some 24 million as JPEG and 36 as PNG."""
    image, limits = noise(4000, 3000), SentLimits(max_bytes=max_bytes)
    with serving(CaptionServer()) as server:
        ask(server.url, image, image_format=image_format, limits=limits)
    [(url, picture)] = sent(server)
    assert len(url) <= max_bytes
    assert max(picture.size) <= 2048 and abs(picture.width / picture.height - 4 / 3) < 0.02
    assert len(url) > max_bytes / 4  # not much smaller than need be


@pytest.mark.parametrize(
    ("size", "expected"),
    [((3000, 1500), (2048, 1024)), ((70_000, 1), (2048, 1)), ((2048, 9), (2048, 9)), ((2, 9), (2, 9))],
)
def test_large_pictures_are_made_smaller_and_small_ones_stay(size: tuple[int, int], expected: tuple[int, int]) -> None:
    with serving(CaptionServer()) as server:
        ask(server.url, Image.new("RGB", size, "red"))
    [(_, picture)] = sent(server)
    assert picture.size == expected


def test_limits_of_pictures_have_bounds() -> None:
    for limits in ({"max_side": 0}, {"max_bytes": 5}):
        with pytest.raises(ValueError, match="expected (1|10,000) or more"):
            SentLimits(**limits)
    with serving(CaptionServer()) as server:
        ask(server.url, noise(500, 500), limits=SentLimits(max_bytes=10_000))
    assert len(sent(server)[0][0]) <= 10_000
