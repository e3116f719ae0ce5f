"""Text from strangers is read in linear time: no function that takes it goes over it again for each of its letters.

A pattern that can share a run of letters out between two of its parts tries every way to do so, with the interpreter's
lock held. 40,000 letters take milliseconds here; where the time is quadratic, seconds.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from holistic_clip_hf import processing_holistic_clip as processing
from holistic_clip_hf.cli.main import sentence_of_usage
from holistic_clip_hf.demo.guard import _FETCHES
from holistic_clip_hf.images.decoding import _ADDRESS
from holistic_clip_hf.images.files import is_address
from holistic_clip_hf.images.records import TextForm, read_records
from holistic_clip_hf.images.sources import list_in
from holistic_clip_hf.visualization.figures import RECALL
from holistic_clip_hf.words import split_sentences, split_words, words_of
from training.debian import openclipart
from training.emoji.concepts import Concept
from training.emoji.splits import name_family

LETTERS, MOST_SECONDS = 40_000, 1.0
UNITS = [" ", "\t", ".", "-", "─", "(", "'", " <", "<a at 0x", "&", "amp;", "semi", ". ", "a ", "a-", "x.)", "a_", "é"]
UNITS += ["[", "['", '["', '"', '",', "|", ";", "#0", "#1\t", "1", "://", "a+", "{", '{"a":', "],", "-", "\\"]
UNITS += [
    "question ",
    "circle ",
    "facing left",
    "Missing from ",
    "/file= ",
    "\x1b[1;",
    "。",
    "Part of the ",
    "eval_",
    "hash(",
]


def family(label: str) -> str:
    return name_family(Concept("1F600", label, (), "objects", "tool"))


def openclipart_patterns(text: str) -> list[Any]:
    return [openclipart._NO_KEYWORD.search(text), openclipart._NO_TITLE.search(text)]


def usage(text: str) -> str:
    return sentence_of_usage(f"heading\n│ {text}")


def unpacked(text: str) -> list[Any]:
    return [list_in(before + text + after) for before in ("", "[", "['", '["') for after in ("", "]", "']", '"]')]


READERS = [split_words, split_sentences, words_of, usage, family, openclipart_patterns, unpacked, is_address]


@pytest.mark.parametrize("read", READERS)
def test_functions_of_foreign_text_take_linear_time(read: Callable[[str], Any]) -> None:
    require_linear(read)


@pytest.mark.parametrize("has_ftfy", [False, True])
def test_captions_are_cleaned_in_linear_time(has_ftfy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if has_ftfy:
        pytest.importorskip("ftfy")
    else:
        monkeypatch.setattr(processing, "ftfy", None)
    require_linear(processing.clean_caption)
    for text in (
        "&" + "#38;" * 10_000,
        "＆" + "amp;" * 10_000,
        "&semi" * 4_000 + ";",
        "&#11&#5" * 4_000 + ";" * 9_000,
    ):
        begin = time.process_time()
        processing.clean_caption(text)
        assert time.process_time() - begin < MOST_SECONDS, text[:20]


def test_captions_escaped_some_times_are_resolved() -> None:
    for depth in range(1, 12):
        assert processing.clean_caption(f"Tom &{'amp;' * depth} Jerry") == "Tom & Jerry"


@pytest.mark.parametrize("pattern", [_ADDRESS, _FETCHES])
def test_patterns_are_searched_in_linear_time(pattern: Any) -> None:
    require_linear(lambda text: pattern.sub("", text))


def test_names_of_metrics_are_read_in_linear_time() -> None:
    require_linear(lambda text: RECALL.fullmatch(f"eval_{text}"))


@pytest.mark.parametrize("quotes", [True, False])
def test_lists_are_read_in_linear_time(quotes: bool, tmp_path: Path) -> None:
    """Whatever form the letters make of them: a head, lines, an array, an object."""

    def read(text: str) -> None:
        for begin, end in (("", ""), ("a,b\nx,", ""), ("[", "]"), ('[{"a": "', '"}]'), ("{", "}"), ('{"a": [', "]}")):
            (tmp_path / "list").write_text(f"{begin}{text}{end}\n", encoding="utf-8")
            with suppress(ValueError):
                list(read_records(tmp_path / "list", TextForm(quotes=quotes)))

    require_linear(read)


def require_linear(read: Callable[[str], Any]) -> None:
    for unit in UNITS:
        for before in ("", "&", "a: "):
            text = before + (unit * (LETTERS // len(unit) + 1))[:LETTERS] + "x"
            begin = time.process_time()
            read(text)
            assert time.process_time() - begin < MOST_SECONDS, (before, unit)
