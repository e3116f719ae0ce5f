"""Images to caption rows: bad images, second runs, shards side by side, and what Ctrl-C and a full disk leave."""

import base64
import io
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from caption_server import CaptionServer, answer, caption_of, serving
from holistic_clip_hf.captioning.captioner import CaptioningReport, caption_images
from holistic_clip_hf.captioning.perspectives import Perspective
from holistic_clip_hf.captioning.remote_backend import Patience, RemoteBackend
from holistic_clip_hf.captioning.store import CaptionRow, CaptionStore, RowWriter
from holistic_clip_hf.images.folders import ImageFolder
from holistic_clip_hf.images.sources import Item, Skipped
from holistic_clip_hf.sharding import Shard

SCENE = Perspective("scene", "Describe this image in one sentence.")
STYLE = Perspective("style", "Describe its style.")
HASTY = Patience(timeout=20, attempts=1)
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def server() -> Iterator[CaptionServer]:
    with serving(CaptionServer()) as running:
        yield running


def png(level: int, mode: str = "RGB", size: tuple[int, int] = (9, 9), **options: object) -> bytes:
    file = io.BytesIO()
    colour = {"RGB": (level, level, level), "CMYK": (level, 0, 0, 0), "RGBA": (level, 0, 0, 0)}.get(mode, level)
    Image.new(mode, size, colour).save(file, str(options.pop("form", "PNG")), **options)
    return file.getvalue()


class Pictures:
    """A source of pictures in memory; `None` is one that is not there."""

    name = "pictures"

    def __init__(self, pictures: dict[str, bytes | None], again: tuple[str, ...] = ()) -> None:
        self.pictures = pictures
        self.again = again

    def items(self) -> Iterator[Item | Skipped]:
        for image_id in [*self.pictures, *self.again]:
            yield Item(image_id, image_id, "")
        yield Skipped("a.txt", "a text without an image")

    def read(self, place: str) -> bytes:
        data = self.pictures[place]
        if data is None:
            raise FileNotFoundError(f"no such file: {place}")
        return data


def numbered(count: int) -> Pictures:
    return Pictures({f"image {number}": png(number * 10) for number in range(count)})


@pytest.fixture
def run(server: CaptionServer, tmp_path: Path) -> Callable[..., CaptioningReport]:
    """`run(source, **options)`: captions into `tmp_path / "rows"`."""

    def captioned(source: Pictures, **options: object) -> CaptioningReport:
        backend = RemoteBackend(server.url, "me/c", concurrency=2, patience=HASTY, image_format="png")
        return caption_images(source, [SCENE, STYLE], backend, tmp_path / "rows", **options)

    return captioned


def rows_of(folder: Path) -> dict[tuple[str, str], CaptionRow]:
    rows = list(CaptionStore(folder).rows())
    assert len({row.key for row in rows}) == len(rows)
    return {(row.image_id, row.perspective): row for row in rows}


def test_every_image_gets_every_perspective(
    run: Callable[..., CaptioningReport], server: CaptionServer, tmp_path: Path
) -> None:
    report = run(numbered(5))
    assert (report.images, report.kept, dict(report.statuses)) == (5, 0, {"ok": 10})
    rows = rows_of(tmp_path / "rows")
    assert set(rows) == {(f"image {number}", name) for number in range(5) for name in ("scene", "style")}
    for asked in server.asked:
        picture, prompt = asked.question
        number = Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).getpixel((0, 0))[0]
        row = rows[f"image {number // 10}", {SCENE.prompt: "scene", STYLE.prompt: "style"}[prompt]]
        assert row.caption == caption_of(picture, prompt)
        assert (row.captioner, row.revision, row.status, row.error) == ("me/c", "", "ok", "")
        assert row.prompt_hash == (SCENE if row.perspective == "scene" else STYLE).prompt_hash


def test_a_second_run_asks_what_is_new_only(
    run: Callable[..., CaptioningReport], server: CaptionServer, tmp_path: Path
) -> None:
    run(numbered(2))
    report = run(numbered(3))
    assert (report.images, report.kept, dict(report.statuses)) == (3, 4, {"ok": 2})
    assert len(server.asked) == 6
    for other in (replace(STYLE, prompt="Its style?"), replace(STYLE, max_new_tokens=9)):
        backend = RemoteBackend(server.url, "me/c", patience=HASTY)
        assert caption_images(numbered(3), [SCENE, other], backend, tmp_path / "rows").kept == 3
    backend = RemoteBackend(server.url, "me/another", patience=HASTY)
    assert caption_images(numbered(3), [SCENE, STYLE], backend, tmp_path / "rows").kept == 0
    assert len(list(CaptionStore(tmp_path / "rows").rows())) == 6 + 3 + 3 + 6


def test_failures_are_rows_and_asked_again_on_demand(
    run: Callable[..., CaptioningReport], server: CaptionServer, tmp_path: Path
) -> None:
    server.faults = {STYLE.prompt: ["500", "500"]}
    assert dict(run(numbered(3)).statuses) == {"ok": 3, "failed": 3}
    assert {row.error for row in rows_of(tmp_path / "rows").values()} == {"", "HTTP 500: overloaded (attempts: 1)"}
    assert run(numbered(3)).kept == 6
    assert dict(run(numbered(3), retry_failed=True).statuses) == {"failed": 3}
    assert dict(run(numbered(3), retry_failed=True).statuses) == {"ok": 3}
    assert dict(run(numbered(3), retry_failed=True).statuses) == {}
    assert {row.status for row in rows_of(tmp_path / "rows").values()} == {"ok"}
    assert len(server.asked) == 6 + 3 + 3


def test_answers_that_are_no_captions_have_a_status(
    run: Callable[..., CaptioningReport], server: CaptionServer, tmp_path: Path
) -> None:
    said = b'{"choices": [{"message": {"content": "A red \\ud83d bird."}, "finish_reason": "stop"}]}'
    server.answers = {SCENE.prompt: answer("I'm sorry, but I cannot see any image."), STYLE.prompt: said}
    assert dict(run(numbered(1)).statuses) == {"refusal": 1, "ok": 1}
    scene, style = rows_of(tmp_path / "rows").values()
    assert (scene.caption, scene.usable) == ("I'm sorry, but I cannot see any image.", False)
    assert style.caption.encode().startswith(b"A red ")


def bad_images() -> dict[str, tuple[bytes | None, str]]:
    whole = png(5, size=(64, 64), form="JPEG")
    return {
        "missing": (None, "FileNotFoundError: no such file: missing"),
        "truncated": (whole[: len(whole) // 2], "does not decode"),
        "empty": (b"", "0 bytes"),
        "text": (b"not an image", "no image"),
        "pixel": (png(1, size=(1, 1)), "too small: 1 x 1 pixels"),
        "wide": (png(1, "L", size=(30_000, 9)), "too many pixels: 30,000 x 9 pixels"),
    }


def test_images_that_cannot_be_read_are_failures_with_the_reason(
    run: Callable[..., CaptioningReport], server: CaptionServer, tmp_path: Path
) -> None:
    bad = bad_images()
    report = run(Pictures({"first": png(1), **{name: data for name, (data, _) in bad.items()}, "last": png(2)}))
    assert dict(report.statuses) == {"ok": 4, "failed": 2 * len(bad)}
    rows = rows_of(tmp_path / "rows")
    for name, (_, reason) in bad.items():
        assert all(rows[name, each].error.startswith(reason) for each in ("scene", "style")), rows[name, "scene"]
    assert len(server.asked) == 4


def test_what_models_get_is_upright_and_rgb_on_white(
    run: Callable[..., CaptioningReport], server: CaptionServer
) -> None:
    exif = Image.Exif()
    exif[274] = 6  # held on its side
    animation = png(10, "L", form="GIF", save_all=True, append_images=[Image.new("L", (9, 9), 200)])
    odd = {"clear": png(0, "RGBA"), "print": png(0, "CMYK", form="JPEG"), "deep": png(65_535, "I;16")}
    odd |= {"animated": animation, "lying": png(0, size=(9, 18), form="JPEG", exif=exif.tobytes())}
    assert dict(run(Pictures(odd)).statuses) == {"ok": 10}
    seen = [
        Image.open(io.BytesIO(base64.b64decode(asked.question[0].partition(",")[2])))
        for asked in server.asked
        if asked.question[1] == SCENE.prompt
    ]
    assert {image.mode for image in seen} == {"RGB"}
    assert sorted((image.size, image.getpixel((4, 4))[0] // 8) for image in seen) == [
        ((9, 9), 1),  # the first picture of the animation
        *[((9, 9), 31)] * 3,
        ((18, 9), 0),
    ]


def test_what_is_left_out_is_listed(run: Callable[..., CaptioningReport], tmp_path: Path) -> None:
    double = Pictures({"a": png(1), "b": png(2)}, again=("a",))
    expected = [("a", "another image has this id and came before"), ("a.txt", "a text without an image")]
    reports = [run(double, shard=Shard(index, 2)) for index in range(2)]
    assert sorted(each for report in reports for each in report.skipped) == expected
    assert [report.images for report in reports].count(0) < 2 and sum(report.images for report in reports) == 2
    listed = [json.loads(path.read_text()) for path in (tmp_path / "rows").glob("skipped.*.json")]
    assert sorted((each["item"], each["reason"]) for part in listed for each in part) == expected
    assert len(rows_of(tmp_path / "rows")) == 4


@pytest.mark.parametrize(
    ("perspectives", "message"),
    [([], "one or more"), ([SCENE, SCENE], "each name once"), ([Perspective("web", None)], "have no prompt")],
)
def test_perspectives_that_cannot_be_asked(
    perspectives: list[Perspective], message: str, server: CaptionServer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        caption_images(numbered(1), perspectives, RemoteBackend(server.url, "m"), tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


def test_two_shards_side_by_side(run: Callable[..., CaptioningReport], server: CaptionServer, tmp_path: Path) -> None:
    server.delay = 0.05
    processes = [FORK.Process(target=run, args=(numbered(20),), kwargs={"shard": Shard(i, 2)}) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(rows_of(tmp_path / "rows")) == len(server.asked) == 40
    assert server.most_at_once > 2  # both at the same time
    assert run(numbered(20)).kept == 40


def test_ctrl_c_commits_what_is_finished_and_does_not_hang(
    run: Callable[..., CaptioningReport], server: CaptionServer, tmp_path: Path
) -> None:
    server.faults = {STYLE.prompt: ["hang"]}
    server.answers = {}
    added, add = FORK.Semaphore(0), RowWriter.add

    def add_and_tell(writer: RowWriter, row: CaptionRow) -> None:
        add(writer, row)
        added.release()

    def interrupted() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        RowWriter.add = add_and_tell  # in this process alone
        try:
            run(numbered(6))
        except KeyboardInterrupt:
            os._exit(7)

    process = FORK.Process(target=interrupted)
    process.start()
    while len(server.asked) < 4:  # both images under way are asked for their style, which hangs
        signal.sigtimedwait([], 0.01)
    assert all(added.acquire(timeout=60) for _ in range(2))  # an answer in flight would be asked for again
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(10)
    assert process.exitcode == 7
    assert {(row.perspective, row.status) for row in rows_of(tmp_path / "rows").values()} == {("scene", "ok")}
    assert len(rows_of(tmp_path / "rows")) == 2
    server.faults = ()
    assert run(numbered(6)).kept == 2
    assert len(rows_of(tmp_path / "rows")) == 12


def test_images_of_a_folder(server: CaptionServer, tmp_path: Path) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "photos" / "cats" / "one.png").write_bytes(png(3))
    backend = RemoteBackend(server.url, "m", patience=HASTY)
    caption_images(ImageFolder(tmp_path / "photos"), [SCENE], backend, tmp_path / "rows", progress=True)
    assert list(rows_of(tmp_path / "rows")) == [("cats/one.png", "scene")]
