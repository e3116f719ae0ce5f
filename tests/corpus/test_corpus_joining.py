"""Images of one source with captions of others and of captioners, by image id; the tables they lie in meanwhile."""

import errno
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from holistic_clip_hf.captioning.store import CaptionRow, CaptionStore
from holistic_clip_hf.corpus.from_sources import JoinedSource, captions_of_rows, captions_of_source
from holistic_clip_hf.images.sources import Item, Skipped
from holistic_clip_hf.storage import scratch_database


def caption(text: str, perspective: str = "web", source: str = "own") -> dict[str, str]:
    return {"perspective": perspective, "text": text, "source": source}


class Images:
    name = "images"

    def __init__(self, *items: Item | Skipped) -> None:
        self._items = items

    def items(self) -> Iterator[Item | Skipped]:
        yield from self._items

    def read(self, place: str) -> bytes:
        return place.encode()


def row(image_id: str, perspective: str, text: str, status: str = "ok", error: str = "") -> CaptionRow:
    return CaptionRow(image_id, perspective, text, "vlm", "abc", "0123", status, error)


FOLDER = Images(
    Item("a", "place of a", "1", [caption("own a")], 7, "test"), Skipped("b", "torn"), Item("c", "place of c", "1")
)


@pytest.mark.parametrize(("stored", "said"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_ids_are_joined_in_either_form_of_unicode(stored: str, said: str) -> None:
    name, other = (unicodedata.normalize(form, "café.jpg") for form in (stored, said))  # type: ignore[arg-type]
    source = JoinedSource(Images(Item(name, "place", "1")), lambda: [(other, caption("a coffee"))])
    (item,) = source.items()
    assert isinstance(item, Item) and (item.image_id, item.captions) == (name, [caption("a coffee")])


def test_rows_are_joined_to_their_images(tmp_path: Path) -> None:
    rows = [row("c", "detail", "c in detail"), row("a", "short", "a in short", "cut", "cut an end")]
    rows += [row("a", "detail", "", "failed", "time-out"), row("a", "detail", "I cannot", "refusal", "refuses")]
    rows += [row("x", "short", "of no image"), row("x", "detail", "nor this"), row("a", "style", "a in style")]
    store = CaptionStore(tmp_path)
    with store.writer() as writer:
        for each in rows:
            writer.add(each)
    source = JoinedSource(FOLDER, lambda: captions_of_rows(store.rows()))
    added = [caption("a in short", "short", "vlm"), caption("a in style", "style", "vlm")]
    for _ in range(2):
        assert list(source.items()) == [
            Skipped("a, detail", "caption row is refusal: refuses"),
            Item("a", "place of a", "1", [caption("own a"), *added], 7, "test"),
            Skipped("b", "torn"),
            Item("c", "place of c", "1", [caption("c in detail", "detail", "vlm")]),
            Skipped("x", "captions without an image: 2"),
        ]
    assert (source.name, source.read("place of c")) == ("images", b"place of c")


def test_captioners_of_one_name_are_sources_of_their_own(tmp_path: Path) -> None:
    """In one folder of rows or in two; a corpus keeps one caption of a source from each perspective."""
    ours, theirs, old = (row("a", "short", text) for text in ("ours", "theirs", "old"))
    rows = [ours._replace(weights="0123abcdef"), theirs._replace(weights="fedcba9876"), old]
    assert [each["source"] for _, each in captions_of_rows(rows)] == ["vlm", "vlm@fedcba9", "vlm"]
    known: dict[str, list[str]] = {}
    for _ in range(2):
        for each, source in zip(rows, ["vlm", "vlm@fedcba9", "vlm"], strict=True):
            assert [caption["source"] for _, caption in captions_of_rows([each], known)] == [source]


def test_captions_of_another_source_are_joined() -> None:
    other = Images(Item("c", "", "", [caption("c again", "short")]), Skipped("line 3", "no record"), Item("a", "", ""))
    joined = list(JoinedSource(FOLDER, lambda: captions_of_source(other)).items())
    assert joined[0] == Skipped("line 3", "no record")
    assert joined[-1] == Item("c", "place of c", "1", [caption("c again", "short")])


def test_a_text_without_bytes_in_utf8_is_listed() -> None:
    rows = [row("a", "short", "half \ud800"), row("a", "style", "whole")]
    joined = list(JoinedSource(FOLDER, lambda: captions_of_rows(rows)).items())
    assert joined[0] == Skipped("'a'", "a caption that is not UTF-8")
    assert isinstance(joined[1], Item) and joined[1].captions[1:] == [caption("whole", "style", "vlm")]


def test_a_full_disk_for_temporary_files_says_so() -> None:
    with (
        pytest.raises(OSError, match="disk for temporary files is full.*TMPDIR") as caught,
        scratch_database() as database,
    ):
        database.execute("CREATE TABLE texts (text TEXT)")
        database.execute("PRAGMA max_page_count = 10")
        database.executemany("INSERT INTO texts VALUES (?)", (("x" * 1000,) for _ in range(1000)))
    assert caught.value.errno == errno.ENOSPC
