"""The guard of the page: other names and origins, slow and idle connections, what uploads may be, and what is left."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPTokenizer

from conftest import draw, make_processor
from holistic_clip_hf import HolisticCLIPModel

gradio = pytest.importorskip("gradio")

import httpx  # noqa: E402

from demo_pages import fill, open_drawings, png, served  # noqa: E402
from holistic_clip_hf.demo import serving, uploads  # noqa: E402
from holistic_clip_hf.demo.guard import KnownHosts, RequestGuard, name_of  # noqa: E402
from holistic_clip_hf.demo.showcase import Showcase  # noqa: E402

FUSED = (1.0, 0.0, 0.0, 0.0)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def showcase(
    make_model: Callable[..., HolisticCLIPModel],
    session_tokenizer: CLIPTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Showcase:
    folder = tmp_path_factory.mktemp("guard") / "drawings"
    fill(folder, draw)
    processor = make_processor(session_tokenizer)
    return open_drawings(folder, make_model(perspectives=["short", "main_object", "style"]), processor)


@pytest.fixture(scope="module")
def page(showcase: Showcase) -> Iterator[gradio.Blocks]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "HEAD_SECONDS", 0.3)
        with served(showcase) as blocks:
            yield blocks


def port_of(page: gradio.Blocks) -> int:
    return int(page.local_url.rstrip("/").rpartition(":")[2])


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:{port}", None, 200),
        ("localhost:{port}", "http://localhost:{port}", 200),
        ("LOCALHOST:8080", "http://LOCALHOST:8080", 200),  # through a tunnel
        ("[::1]:{port}", None, 200),
        ("evil.example", None, 403),
        ("evil.example:{port}", "http://evil.example:{port}", 403),
        ("127.0.0.1.evil.example", None, 403),
        ("localhost.evil.example:{port}", None, 403),
        ("192.0.2.7:{port}", None, 403),
        ("", None, 403),
        ("127.0.0.1:{port}", "http://evil.example", 403),
        ("127.0.0.1:{port}", "http://127.0.0.1:1", 403),  # another program of this machine
        ("127.0.0.1:{port}", "null", 403),
        ("127.0.0.1:{port}", "http://[", 403),
    ],
)
def test_only_the_page_under_its_own_name_is_answered(
    page: gradio.Blocks, host: str, origin: str | None, status: int
) -> None:
    port = port_of(page)
    headers = {"Host": host.format(port=port)} | ({} if origin is None else {"Origin": origin.format(port=port)})
    for method, path in (("GET", "/"), ("GET", "/config"), ("POST", "/gradio_api/call/search")):
        answer = httpx.request(
            method, f"{page.local_url.rstrip('/')}{path}", headers=headers, json={"data": ["a", *FUSED]}
        )
        assert (answer.status_code == 403) == (status == 403), (path, answer.status_code)


def test_further_names_and_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    proxied = KnownHosts("127.0.0.1", ["Photos.example.org"])
    assert proxied.allows("photos.example.org") and not proxied.allows("example.org")
    assert proxied.allows_origin("https://photos.example.org", "127.0.0.1:7860")
    assert not proxied.allows_origin("https://other.example.org", "127.0.0.1:7860")
    everywhere = KnownHosts("0.0.0.0")
    assert everywhere.allows("192.0.2.7:7860") and everywhere.allows(socket.gethostname())
    assert not everywhere.allows("evil.example:7860")
    monkeypatch.setenv("SPACE_HOST", "me-search.hf.space")
    assert KnownHosts("0.0.0.0").allows("me-search.hf.space")
    assert [name_of(each) for each in ("a:1", "[::1]:2", "[::1]", "B", "")] == ["a", "::1", "::1", "b", ""]


@pytest.mark.parametrize(
    "path",
    ["/monitoring", "/gradio_api/deep_link", "/gradio_api/vibe-edit", "/gradio_api/run/search", "/login", "/nothing"]
    + ["/gradio_api/component_server", "/gradio_api/process_recording", "/custom_component/1/x/y/z", "/svelte/x"],
)
def test_what_the_page_does_not_need_is_not_there(page: gradio.Blocks, path: str) -> None:
    for method in ("GET", "POST"):
        assert httpx.request(method, f"{page.local_url.rstrip('/')}{path}").status_code == 404


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_connections_that_send_no_request_are_closed(page: gradio.Blocks, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port_of(page)), timeout=20) as visitor:
        begin = time.monotonic()
        visitor.sendall(sent)
        while time.monotonic() - begin < 15:
            try:
                visitor.sendall(b"x")  # letter by letter
                visitor.settimeout(0.1)
                if visitor.recv(10) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - begin < 10
    assert httpx.get(page.local_url).status_code == 200


def test_a_request_that_is_answered_slowly_is_not_cut(page: gradio.Blocks, showcase: Showcase) -> None:
    """The stream of an answer outlasts several checks of its connection."""
    address = f"{page.local_url}gradio_api/call/search"
    with showcase._lock, showcase.index._asker._lock:
        event = httpx.post(address, json={"data": ["a slow circle", *FUSED]}).json()["event_id"]
        with httpx.stream("GET", f"{address}/{event}", timeout=30) as answer:
            time.sleep(1.5)
            showcase.index._asker._lock.release()
            try:
                text = "".join(answer.iter_text())
            finally:
                showcase.index._asker._lock.acquire()
    assert "event: complete" in text


def test_a_body_that_comes_slowly_is_refused() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        while True:
            await receive()

    guard = RequestGuard(reads, KnownHosts("127.0.0.1"), body_seconds=0.4)
    scope = {"type": "http", "path": "/gradio_api/queue/join", "headers": [(b"host", b"localhost")]}
    begin = time.monotonic()
    asyncio.run(asyncio.wait_for(guard(scope, receive, send), 20))
    assert sent[0]["status"] == 408 and 0.3 < time.monotonic() - begin < 5


def test_web_sockets_are_refused() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(*_: Any) -> None:
        raise AssertionError("reached")

    asyncio.run(RequestGuard(app, KnownHosts("127.0.0.1"))({"type": "websocket", "headers": []}, send, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def stored() -> list[Path]:
    return [path for path in Path(serving._upload_folder()).rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("page.html", b"<script>alert(1)</script>"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("notes.png", b"not an image"),
        ("program.exe", b"MZ" + bytes(100)),
        ("kitten.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("empty.png", b""),
        ("large.png", png(Image.new("L", (5_000, 4_001)))),
        ("narrow.png", png(Image.new("L", (5_000, 2)))),
    ],
)
def test_what_is_not_an_image_of_bounded_size_is_not_kept(page: gradio.Blocks, name: str, contents: bytes) -> None:
    before = stored()
    answer = httpx.post(f"{page.local_url}gradio_api/upload", files={"files": (name, contents)})
    assert answer.status_code == 415 and ("image" in answer.text) and stored() == before


def test_uploads_are_served_as_images_or_not_at_all(page: gradio.Blocks) -> None:
    whole = png(draw("red", "circle"))
    for name, status in (("mine.png", 200), ("mine.html", 403), ("mine.svg", 403), ("mine", 403), ("mine.js", 403)):
        places = httpx.post(f"{page.local_url}gradio_api/upload", files={"files": (name, whole)}).json()
        answer = httpx.get(f"{page.local_url}gradio_api/file={places[0]}")
        assert answer.status_code == status, name
        assert (answer.content == whole) == (status == 200) and answer.headers["x-content-type-options"] == "nosniff"


def test_large_photographs_are_decoded_at_a_part_of_their_side(tmp_path: Path) -> None:
    photo = Image.linear_gradient("L").resize((8_000, 6_000)).convert("RGB")
    photo.save(tmp_path / "photo.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright
    photo.save(tmp_path / "turned.jpg", exif=exif)
    read, turned = (uploads.read_upload(str(tmp_path / name)) for name in ("photo.jpg", "turned.jpg"))
    assert min(read.size) >= uploads.LEAST_SIDE and read.width * read.height < 8_000_000
    assert read.width / read.height == pytest.approx(4 / 3, rel=0.01) and turned.size == read.size[::-1]
    assert pixels(read) == pytest.approx(pixels(photo), abs=2)


def pixels(image: Image.Image) -> list[int]:
    """Grey levels of an image, averaged to 64."""
    return np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX)).flatten().tolist()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_large_images_of_any_mode_are_made_smaller_alike(mode: str, tmp_path: Path) -> None:
    base = Image.linear_gradient("L").resize((2_100, 2_100))
    image = base.point(lambda value: value * 257, "I").convert("I;16") if mode == "I;16" else base.convert(mode)
    image.save(tmp_path / "large.png")
    read = uploads.read_upload(str(tmp_path / "large.png"))
    assert read.size == (1_050, 1_050)
    assert pixels(read) == pytest.approx(pixels(base), abs=4)


def test_the_page_keeps_nothing_of_visitors_who_have_left(page: gradio.Blocks) -> None:
    """Sessions, answers that nobody fetches, and statistics are bounded."""
    address = f"{page.local_url}gradio_api/call/search"
    with httpx.Client() as visitor:
        for number in range(serving.MOST_SESSIONS + 20):
            event = visitor.post(address, json={"data": [f"circle {number % 3}", *FUSED]}).json()["event_id"]
            if number % 2:
                visitor.get(f"{address}/{event}", timeout=30)
    assert len(page.app.state_holder.session_data) <= serving.MOST_SESSIONS
    assert page._queue.pending_messages_per_session.max_size == serving.MOST_WAITING
    assert len(page._queue.event_analytics) <= serving.MOST_WAITING
    assert page.server.config.limit_concurrency == serving.MOST_CONNECTIONS


SERVES = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from transformers import CLIPImageProcessor
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.demo.page import serve
from holistic_clip_hf.demo.showcase import open_showcase
serve(open_showcase({checkpoint!r}, {images!r}), port={port})
print("ended", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_end_leaves_no_upload(showcase: Showcase, tmp_path: Path, how: signal.Signals) -> None:
    images, uploaded = tmp_path / "drawings", tmp_path / "temporary"
    fill(images, draw)
    uploaded.mkdir()
    showcase.model.save_pretrained(tmp_path / "checkpoint")
    showcase._processor.save_pretrained(tmp_path / "checkpoint")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    checkpoint, tests = str(tmp_path / "checkpoint"), str(ROOT / "tests")
    code = SERVES.format(root=str(ROOT), tests=tests, checkpoint=checkpoint, images=str(images), port=port)
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(uploaded)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(300):
                try:
                    httpx.get(address)
                    break
                except httpx.TransportError:
                    time.sleep(0.5)
            files = {"files": ("mine.png", png(draw("red", "circle")))}
            assert httpx.post(f"{address}/gradio_api/upload", files=files).status_code == 200
            assert [path for path in uploaded.rglob("*") if path.is_file()]
            process.send_signal(how)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0 and "ended" in output
    assert not [path for path in uploaded.rglob("*") if path.is_file()]


def test_an_answer_that_is_not_there_ends_in_an_error_and_not_in_a_broken_connection(page: gradio.Blocks) -> None:
    answer = httpx.get(f"{page.local_url}gradio_api/call/search/{'0' * 32}", timeout=30)
    assert answer.status_code == 200 and answer.text.startswith("event: error")
    assert httpx.get(f"{page.local_url}gradio_api/call/search/x").status_code == 404
