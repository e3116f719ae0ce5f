"""Captions on the page: corrected ones and the file they are saved in, vectors that stay with the index, examples."""

import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from conftest import draw
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.cli.main import parse
from holistic_clip_hf.corpus.build import load_corpus
from holistic_clip_hf.evaluation.encoding import encode_texts
from holistic_clip_hf.search import FolderImages, index_images, parse_query
from holistic_clip_hf.search.store import CAPTION_VECTORS

pytest.importorskip("gradio")

from demo_pages import fill, open_drawings  # noqa: E402
from holistic_clip_hf.demo import captions  # noqa: E402
from holistic_clip_hf.demo.captions import FILE_NAME, embed_kept, example_queries  # noqa: E402
from holistic_clip_hf.demo.editing import CaptionFile, RefusedCaptionsError, clean_edited, digest_of  # noqa: E402
from holistic_clip_hf.demo.page import Asked, Page  # noqa: E402
from holistic_clip_hf.demo.showcase import Showcase, open_showcase  # noqa: E402
from holistic_clip_hf.publishing.model_card import CardFacts, save_facts  # noqa: E402

PERSPECTIVES = ["short", "main_object", "style"]
Captions = dict[str, list[tuple[str, str]]]
CAPTIONS: Captions = {
    "red-square.png": [("short", "a red square"), ("style", "drawn flat"), ("style", "on white")],
    "blue-circle.png": [("short", "a blue circle")],
}


@pytest.fixture
def model(make_model: Callable[..., HolisticCLIPModel]) -> HolisticCLIPModel:
    return make_model(perspectives=PERSPECTIVES)


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    fill(tmp_path / "drawings", draw)
    return tmp_path / "drawings"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "captions.jsonl"


@pytest.fixture
def showcase(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, drawings: Path, file: Path) -> Showcase:
    return open_drawings(drawings, model, processor, CAPTIONS, CaptionFile(file))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def seen(showcase: Showcase, image_id: str) -> str:
    return digest_of(showcase.captions.get(image_id, ()))


def test_a_correction_is_saved_shown_and_compared(showcase: Showcase, file: Path) -> None:
    image_id = "red-square.png"
    given = [
        ["short", "  a  crimson\nsquare "],
        ["style", "on white"],
        ["style", ""],
        ["main_object", "square ✓ 👩‍🚀"],
    ]
    showcase.correct(image_id, seen(showcase, image_id), given)
    assert lines_of(file) == [
        {"file_name": image_id, "short": "a crimson square", "style": "on white", "main_object": "square ✓ 👩‍🚀"},
        {"file_name": "blue-circle.png", "short": "a blue circle"},
    ]
    assert "a crimson square" in showcase.texts and "a red square" not in showcase.texts
    found = {text for texts in showcase.nearest_captions(draw("red", "square")).values() for text, _ in texts}
    assert found == {"a crimson square", "on white", "square ✓ 👩‍🚀", "a blue circle"}


def test_the_next_page_begins_with_corrected_captions(
    showcase: Showcase, file: Path, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, drawings: Path
) -> None:
    showcase.correct("red-square.png", seen(showcase, "red-square.png"), [["short", "crimson"]])
    showcase.correct("blue-circle.png", seen(showcase, "blue-circle.png"), [["short", ""]])
    again = open_drawings(drawings, model, processor, CAPTIONS, CaptionFile(file))
    assert again.captions["red-square.png"] == [("short", "crimson")] and again.texts == ["crimson"]
    assert lines_of(file)[1] == {"file_name": "blue-circle.png"}  # known to have none


def test_corrections_build_a_corpus(showcase: Showcase, file: Path, drawings: Path, tmp_path: Path) -> None:
    showcase.correct("green-circle.png", digest_of([]), [["short", "green"], ["style", "flat"]])
    options = ["--caption", "short", "--caption", "style", "--output", str(tmp_path / "corpus"), "--no-report"]
    parse("corpus", ["list", str(file), "--root", str(drawings), *options])()
    corpus = load_corpus(tmp_path / "corpus")
    captions = {row["image_id"]: {(each["perspective"], each["text"]) for each in row["captions"]} for row in corpus}
    assert captions == {
        "green-circle.png": {("short", "green"), ("style", "flat")},
        **{image_id: set(pairs) for image_id, pairs in CAPTIONS.items()},
    }


def test_captions_made_of_names_are_not_saved(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, drawings: Path, file: Path
) -> None:
    names: Captions = {"red-square.png": [(FILE_NAME, "red square")], "blue-circle.png": [(FILE_NAME, "blue circle")]}
    showcase = open_drawings(drawings, model, processor, names, CaptionFile(file))
    assert showcase.caption_perspectives == PERSPECTIVES
    showcase.correct("red-square.png", digest_of([]), [["short", "a red square"]])
    assert lines_of(file) == [{"file_name": "red-square.png", "short": "a red square"}]
    assert showcase.captions["blue-circle.png"] == names["blue-circle.png"]


def test_what_a_visitor_sends_is_checked(showcase: Showcase, file: Path) -> None:
    for given, reason in (
        ("text", "pairs of a perspective"),
        ([["short"]], "pairs of a perspective"),
        ([["short", 3]], "pairs of a perspective"),
        ([["short", "a"]] * 65, "up to 64"),
        ([["taste", "sweet"]], "no perspective 'taste'"),
        ([["file_name", "x"]], "no perspective"),
        ([["short", "x" * 2_001]], "2,001 letters"),
        ([["short", "a\x00b"]], "control"),
        ([["short", "a\ud800b"]], "control"),
    ):
        with pytest.raises(RefusedCaptionsError, match=reason):
            showcase.correct("red-square.png", seen(showcase, "red-square.png"), given)
    with pytest.raises(KeyError):
        showcase.correct("../x.png", digest_of([]), [["short", "a"]])
    with pytest.raises(RefusedCaptionsError, match="Somebody else"):
        showcase.correct("red-square.png", digest_of([]), [["short", "a"]])
    assert not file.exists() and clean_edited([["short", "a"], ["short", " a "]], ["short"]) == [("short", "a")]


def test_pages_without_the_option_save_nothing(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, drawings: Path
) -> None:
    page = Page(open_drawings(drawings, model, processor, CAPTIONS))
    asked = Asked("text", "", None, [1.0, 0.0, 0.0, 0.0])
    assert "hc-editor" not in page.inspect("red-square.png", asked)
    told = page.save("red-square.png", digest_of(CAPTIONS["red-square.png"]), [["short", "a"]], asked)
    assert "Not saved" in told and "Saved." not in told


def test_many_save_at_once_and_nothing_is_lost(showcase: Showcase, file: Path) -> None:
    ids = showcase.index.image_ids

    def save(image_id: str) -> None:
        for number in range(5):
            showcase.correct(image_id, seen(showcase, image_id), [["short", f"{image_id} {number}"]])

    workers = [threading.Thread(target=save, args=(image_id,)) for image_id in ids]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {line["file_name"]: line["short"] for line in lines_of(file)} == {each: f"{each} 4" for each in ids}
    assert {each: dict(showcase.captions[each])["short"] for each in ids} == {each: f"{each} 4" for each in ids}
    assert [path.name for path in file.parent.glob(".*.partial")] == []


def test_pages_of_their_own_save_into_one_file(file: Path) -> None:
    def save(page: int) -> None:
        for number in range(10):
            CaptionFile(file).save(f"{page}-{number}.png", digest_of([]), [("short", f"{page} {number}")], {})

    workers = [threading.Thread(target=save, args=(page,)) for page in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    expected = {f"{page}-{number}.png": f"{page} {number}" for page in range(6) for number in range(10)}
    assert {line["file_name"]: line["short"] for line in lines_of(file)} == expected


@pytest.mark.parametrize(
    ("name", "contents", "reason"),
    [
        ("captions.csv", None, "ends in .jsonl"),
        ("captions.jsonl", '{"image": "a.png"}\n', "line 1 is not a record"),
        ("captions.jsonl", '{"file_name": "a"}\n{"file_name": "a"}\n', "line 2 names 'a' again"),
        ("captions.jsonl", '{"file_name": "a", "short": 3}\n', "line 1 is not a record"),
        ("captions.jsonl", "\n[1]\n", "line 2 is not a record"),
        ("captions.jsonl", '{"file_name": ', "line 1 is not a record"),
    ],
)
def test_other_files_are_refused_at_the_door(name: str, contents: str | None, reason: str, tmp_path: Path) -> None:
    if contents is not None:
        (tmp_path / name).write_text(contents)
    with pytest.raises(ValueError, match=reason):
        CaptionFile(tmp_path / name)
    assert contents is None or (tmp_path / name).read_text() == contents


def test_splits_and_images_of_others_stay_in_the_file(file: Path) -> None:
    first, second = (
        '{"file_name": "a.png", "short": "one", "split": "test"}',
        '{"file_name": "b.png", "short": ["x\u2028y"]}',
    )
    file.write_text(f"{first}\n{second}\n", "utf-8")
    CaptionFile(file).save("a.png", digest_of([("short", "one")]), [("short", "two")], {})
    assert lines_of(file)[0] == {"file_name": "a.png", "short": "two", "split": "test"}
    assert CaptionFile(file).read()["b.png"] == [("short", "x\u2028y")]


def counted(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, asked: list[str]
) -> Callable[[Sequence[str]], torch.Tensor]:
    def embed(texts: Sequence[str]) -> torch.Tensor:
        asked.extend(texts)
        return encode_texts(model, processor, texts, batch_size=8)

    return embed


def test_vectors_of_captions_stay_with_the_index(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    asked: list[str] = []
    embed = counted(model, processor, asked)
    texts = ["a red square", "a blue circle", "flat"]
    first = embed_kept(tmp_path, "this", texts, embed)
    assert asked == texts and torch.equal(first, encode_texts(model, processor, texts, batch_size=8))
    assert torch.equal(embed_kept(tmp_path, "this", texts[::-1], embed), first.flip(0)) and asked == texts
    embed_kept(tmp_path, "this", ["new", "flat"], embed)
    assert asked == [*texts, "new"]
    embed_kept(tmp_path, "another checkpoint", ["flat"], embed)
    assert asked == [*texts, "new", "flat"]


@pytest.mark.parametrize("damage", [b"", b"not safetensors", "cut", "nan"])
def test_damaged_vectors_are_made_anew(
    damage: Any, model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    embed, path = counted(model, processor, []), tmp_path / CAPTION_VECTORS
    whole = embed_kept(tmp_path, "this", ["a", "b"], embed)
    if damage == "nan":
        embed_kept(
            tmp_path, "this", ["a", "b", "c"], lambda texts: torch.full((len(texts), whole.shape[1]), torch.nan)
        )
    else:
        path.write_bytes(path.read_bytes()[:-4] if damage == "cut" else damage)
    expected = encode_texts(model, processor, ["a", "c"], batch_size=8)
    assert torch.allclose(embed_kept(tmp_path, "this", ["a", "c"], embed), expected, atol=1e-6)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_index_that_may_not_be_written_is_opened(
    model: HolisticCLIPModel, processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    assert len(embed_kept(tmp_path, "this", ["a"], counted(model, processor, []))) == 1


def test_a_second_start_encodes_no_caption(
    showcase: Showcase, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    showcase.model.save_pretrained(tmp_path / "checkpoint")
    showcase._processor.save_pretrained(tmp_path / "checkpoint")
    open_showcase(str(tmp_path / "checkpoint"), drawings)
    asked: list[str] = []
    monkeypatch.setattr(Showcase, "_encode", lambda self, texts: asked.extend(texts))
    facts = CardFacts("me/mine", model_name="mine")
    save_facts(tmp_path / "checkpoint" / "card_facts.json", facts)
    again = open_showcase(str(tmp_path / "checkpoint"), drawings)
    assert again.name == "mine"
    assert asked == [] and len(again.texts) == 8
    index_images(tmp_path / "drawings.index", FolderImages(drawings), again.model, again._processor)
    assert (tmp_path / "drawings.index" / CAPTION_VECTORS).is_file()


def test_examples_are_queries_that_find_something(showcase: Showcase) -> None:
    captions: Captions = {
        "red-square.png": [("short", "red: a square"), ("style", "not drawn"), ("other", "x")],
        "blue-circle.png": [("short", 'a "blue" circle; small'), ("style", "flat^2")],
    }
    examples = example_queries(captions, PERSPECTIVES)
    assert len(examples) == 4 and examples[-1].count("not style:") == 1
    texts = {text for pairs in captions.values() for _, text in pairs}
    for query in examples:
        assert {term.text for term in parse_query(query, PERSPECTIVES)} <= texts
        assert showcase.search(query)
    assert example_queries({}, PERSPECTIVES) == [] and example_queries({"a": []}, PERSPECTIVES) == []
    assert example_queries({"a": [("short", "x" * 200)]}, PERSPECTIVES) == []
    assert example_queries({"a": [(FILE_NAME, "red fox")]}, PERSPECTIVES) == ["red fox"]


def test_of_too_many_captions_the_same_are_chosen_whatever_becomes_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "MOST_CAPTIONS", 50)
    many: Captions = {str(number): [("short", f"caption {number}")] for number in range(500)}
    before = list(captions.chosen_texts(many))
    assert len(before) == 50 and before == sorted(before, key=lambda text: int(text.split()[1]))
    assert len({int(text.split()[1]) // 100 for text in before}) == 5  # from everywhere
    after = list(captions.chosen_texts({**many, "0": [("short", "another")], "900": [("short", "one more")]}))
    assert len(set(before) - set(after)) <= 3


def test_captions_of_a_corpus_that_say_nothing_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Blank texts cannot be encoded, and one of them kept the page from opening."""
    texts = ["a dog", "", "&nbsp;", None]
    rows = [
        {"image_id": "a", "captions": [{"perspective": "short", "text": text} for text in texts]},
        {"image_id": "b", "captions": None},
    ]
    assert captions.captions_of_corpus(Dataset.from_list(rows)) == {"a": [("short", "a dog")], "b": []}
    for name in ("a, short is left out", "a, short, caption 3 is left out", "b, captions is left out"):
        assert name in caplog.text
