"""`holistic-clip caption`, as a user runs it: against `transformers serve`, killed, interrupted, and misspelt."""

import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import get_session
from huggingface_hub.errors import HTTPError
from PIL import Image

from caption_server import CaptionServer, answer, serving
from holistic_clip_hf.captioning.captioner import Work
from holistic_clip_hf.captioning.local_backend import LocalBackend
from holistic_clip_hf.captioning.perspectives import Perspective
from holistic_clip_hf.captioning.remote_backend import RemoteBackend
from holistic_clip_hf.captioning.store import CaptionRow, CaptionStore
from holistic_clip_hf.cli import caption
from holistic_clip_hf.cli.main import HELP, main, parse
from tiny_captioner import make_tiny_captioner

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = """
- name: scene
  prompt: Describe it.
  max_new_tokens: 8
- name: nouns
  prompt: Name what there is.
  max_new_tokens: 8
  answer: {form: list}
- name: web
  prompt: null
  answer: {form: phrase}
"""


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite is offline; a server on this machine is not the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    for number in range(12):
        Image.new("RGB", (16, 16), (20 * number, 90, 255 - 20 * number)).save(folder / f"{number:02}.png")
    return folder


def arguments(photos: Path, *options: str) -> list[str]:
    given = ["folder", photos, "--model", "m", "--perspectives-file", photos.parent / "prompts.yaml"]
    return [*map(str, given), "--output", str(photos.parent / "rows"), *options]


def rows_of(photos: Path) -> list[CaptionRow]:
    return list(CaptionStore(photos.parent / "rows").rows())


@pytest.fixture
def run(photos: Path) -> Callable[..., None]:
    """`run(*options)`: the verb in this process."""
    return lambda *options: parse("caption", arguments(photos, *options))()


def test_a_folder_of_images(run: Callable[..., None], photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "12.png").write_bytes(b"")
    with serving(CaptionServer()) as server:
        run("--server", server.url, "--shard", "1/2")
        run("--server", server.url)
        run("--server", server.url, "--perspectives", "scene", "--retry-failed")
    statuses = {(row.image_id == "12.png", row.status) for row in rows_of(photos)}
    assert len(rows_of(photos)) == 26 and statuses == {(True, "failed"), (False, "ok")}
    told = capsys.readouterr().out
    assert re.search(r"13 images; 12 captions were kept, 1 were added:\nfailed +1\nNo caption .* failed, 0 by", told)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--perspectives", "moon"], r"`names` has \['moon'\]; expected some of scene, nouns, web"),
        (["--perspectives", "web"], "no prompt"),
        (["--perspectives", "scene", "scene"], r"`perspectives` is \['scene', 'scene'\]; .* each name once"),
        (["--shard", "4/4"], "expected i/n"),
        (["--batch-size", "2"], "`batch_size` is 2; expected none, since a server does not heed it"),
        (["--revision", "v1"], "`revision` is v1; expected none, since a server does not heed it"),
        (["--perspective", "scene"], "`--perspective` is scene; expected none, .*; --perspectives says what is asked"),
        (["--caption", "a=b"], "`--caption` is a=b; expected none"),
        (["--concurrency", "0"], "`concurrency` is 0; expected 1 or more"),
        (["--token-variable", "NO_SUCH_TOKEN"], "NO_SUCH_TOKEN, which is not set"),
        (["--extra-body", "[1]"], r"`--extra-body` is '\[1\]'; expected a JSON object"),
        (["--extra-body", '{"stream": true}'], "`extra_body` has stream"),
        (["--chat-template-kwargs", "{"], "`--chat-template-kwargs` is '{'; expected a JSON object"),
        (["--max-bytes", "9"], "`max_bytes` is 9; expected 10,000 or more"),
        (["--timeout", "0"], "`timeout` is 0.0; expected a number above 0"),
    ],
)
def test_what_is_misspelt_is_told_before_anything_is_asked(
    options: list[str], message: str, run: Callable[..., None], photos: Path
) -> None:
    with serving(CaptionServer()) as server, pytest.raises(ValueError, match=message):
        run("--server", server.url, *options)
    assert not server.asked and not (photos.parent / "rows").exists()


def test_a_server_that_refuses_ends_it_with_a_sentence(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with serving(CaptionServer(["404"])) as server, pytest.raises(SystemExit) as ended:
        main(["caption", *arguments(photos, "--server", server.url)])
    signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 2 and "The server refuses 'm': HTTP 404" in capsys.readouterr().err


@pytest.mark.parametrize("status", ["400", "422", "500"])
def test_nothing_but_failures_is_not_a_success(status: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the run that gets the failures, in one that finds them, and in one that asks again."""
    for path in sorted(photos.iterdir())[3:]:
        path.unlink()
    with serving(CaptionServer([status] * 9, error=b'{"error": "no room for images"}')) as server:
        for options, asked in (([], 6), ([], 6), (["--retry-failed"], 12)):
            with pytest.raises(SystemExit) as ended:
                main(["caption", *arguments(photos, "--server", server.url, "--attempts", "1", *options)])
            assert ended.value.code == 2 and len(server.asked) == asked
            told = capsys.readouterr().err.splitlines()[-1]
            reason = f"failed, HTTP {status}: no room .*--retry-failed"
            assert re.search(rf"^holistic-clip caption: 'm' answered nothing, .*: {reason}\.$", told)
        server.faults = ()
        main(["caption", *arguments(photos, "--server", server.url, "--retry-failed")])
    assert len(rows_of(photos)) == 6 and all(row.usable for row in rows_of(photos))


def test_images_none_of_which_can_be_read_are_not_a_success(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in photos.iterdir():
        path.write_bytes(b"")
    with serving(CaptionServer()) as server, pytest.raises(SystemExit) as ended:
        main(["caption", *arguments(photos, "--server", server.url)])
    assert ended.value.code == 2 and "answered nothing, and the most frequent reason is: failed, 0 bytes." in (
        capsys.readouterr().err
    )


def test_options_reach_the_server(run: Callable[..., None], photos: Path) -> None:
    Image.new("RGB", (400, 100), "red").save(photos / "wide.png")
    thinking = ["--chat-template-kwargs", '{"enable_thinking": false}', "--extra-body", '{"top_k": 5}']
    with serving(CaptionServer()) as server:
        run("--server", server.url, *thinking, "--max-side", "100")
    members = [(asked.body["chat_template_kwargs"], asked.body["top_k"]) for asked in server.asked]
    assert members == [({"enable_thinking": False}, 5)] * 26
    pictures = [base64.b64decode(asked.question[0].partition(",")[2]) for asked in server.asked]
    assert {Image.open(io.BytesIO(picture)).size for picture in pictures} == {(16, 16), (100, 25)}


def test_thinking_that_takes_every_budget_is_told(
    run: Callable[..., None], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = answer("<think>The user wants a description. I should", end="length")
    with serving(CaptionServer(answers={"Describe it.": said, "Name what there is.": said})) as server:
        run("--server", server.url)
    told = capsys.readouterr().out
    assert "No caption was added. The most frequent reason: unfinished, thinking that did not end" in told
    assert """switched off by --chat-template-kwargs '{"enable_thinking": false}'.""" in told


def test_every_command_that_is_shown_names_the_captioner_that_loads_everywhere() -> None:
    shown = [HELP, str(caption.__doc__), *((ROOT / name).read_text() for name in ("README.md", "docs/captions.md"))]
    commands = [line for text in shown for line in text.splitlines() if " caption folder photos --model " in line]
    names = {line.partition("--model ")[2].split()[0] for line in commands}
    assert len(commands) >= 4 and names - {"me/thinker"} == {"llava-hf/llava-interleave-qwen-0.5b-hf"}


def start(photos: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "holistic_clip_hf", "caption", *arguments(photos, *options)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_command_killed_stopped_and_started_again(photos: Path) -> None:
    with serving(CaptionServer(delay=0.2)) as server:
        for number, signed in enumerate([signal.SIGKILL, signal.SIGINT, signal.SIGTERM], start=1):
            process = start(photos, "--server", server.url, "--concurrency", "1")
            while len(server.asked) < 5 * number:
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            process.send_signal(signed)
            _, told = process.communicate(timeout=20)
            if signed != signal.SIGKILL:
                assert process.returncode == 128 + signed, told
                assert "stopped. Give the same command again" in told and "Traceback" not in told
        # Of each stopped run the answers before the one under way; the killed one had no time to write.
        assert 8 <= len(rows_of(photos)) <= 10
        process = start(photos, "--server", server.url)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
        assert re.search(r"\d+/\d+ \[\d\d:\d\d<\d\d:\d\d, +[\d.]+caption/s", told), told  # time left, and rate
    assert len(rows_of(photos)) == 24
    assert {row.status for row in rows_of(photos)} == {"ok"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A tiny captioner behind `transformers serve`: URL and folder."""
    folder = make_tiny_captioner(tmp_path / "captioner")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--port", str(port)]
    log = tmp_path / "serve.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--device", "cpu"], stdout=file, stderr=file, env=environment
        )
    try:
        deadline = time.monotonic() + 240
        while not is_healthy(f"http://127.0.0.1:{port}"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", folder
    finally:
        process.kill()
        process.wait()


def is_healthy(url: str) -> bool:
    try:
        return get_session().get(f"{url}/health").status_code == 200
    except HTTPError:  # nobody listens yet
        return False


@pytest.mark.slow
def test_transformers_serve_says_what_the_model_says_here(served: tuple[str, Path], photos: Path) -> None:
    url, folder = served
    perspectives = [Perspective(name, prompt, max_new_tokens=12) for name, prompt in [("a", "What?"), ("b", "Why?")]]
    work = [Work(path.name, Image.open(path).convert("RGB"), perspectives) for path in sorted(photos.iterdir())]
    here = set(LocalBackend(str(folder), batch_size=1).answer(work))
    there = set(RemoteBackend(url, str(folder), concurrency=2, image_format="png").answer(work))
    assert len(here) == 24 and not any(reply.error for reply in here | there)
    assert there == here
