"""A page over an index: its queries and scores are Python's, and what does not belong together is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from exported_pages import fill_node_modules, index_of, needs_node, run_node, scores_of, with_sliders
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.exporting import browser_folder
from holistic_clip_hf.exporting.browser_folder import export_page
from holistic_clip_hf.search import FolderImages, index_images, parse_query
from holistic_clip_hf.search.query import MOST_LETTERS, MOST_TERMS
from photo_index import write_photos

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
NAMES = ["short", "main_object", "style"]
MakeModel = Callable[..., HolisticCLIPModel]

QUERIES = [
    "a dog",
    "main object: a dog; background: snow^0.5; not style: drawing",
    "MAIN-object :  a  dog ;; not  style:drawing ^ .5 ;",
    "Not a dog^1e-2",
    "nothing, not now",
    "notable: dog",
    'style: "a: b; c^2 ""quoted"""^3',
    '"not a dog"',
    'fused: "x"',
    "all: x",
    "a dog^",
    "a dog^0",
    "a dog^-1",
    "a dog^nan",
    "a dog^1^2",
    "a: b: c",
    'a "dog',
    'a "dog"',
    '"dog" b',
    '"a" "b"',
    "style:",
    "not",
    "not ",
    "; ;",
    "",
    "^2",
    "x^+2.",
    ";".join("abc" for _ in range(MOST_TERMS)),
    ";".join("abc" for _ in range(MOST_TERMS + 1)),
    "x" * MOST_LETTERS,
    "😀" * MOST_LETTERS,
    "x" * (MOST_LETTERS + 1),
    "a\n;\tb",
    "short : café: x",
]
PARSE = """
const { parseQuery } = await import(`${page}/query.js`);
const [queries, names, limits] = given;
const read = (query) => {
  try {
    return parseQuery(query, names, limits);
  } catch (error) {
    return error.message;
  }
};
console.log(JSON.stringify(queries.map(read)));
"""


def parsed(query: str, names: list[str]) -> list[dict[str, Any]] | str:
    try:
        terms = parse_query(query, names)
    except ValueError as error:
        return str(error)
    return [{"text": term.text, "perspective": term.perspective, "weight": term.weight} for term in terms]


@needs_node
def test_queries_are_read_as_in_python() -> None:
    names = [*NAMES, "background"]
    found = run_node(PARSE, QUERIES, names, {"letters": MOST_LETTERS, "terms": MOST_TERMS})
    for query, answer in zip(QUERIES, found, strict=True):
        expected = parsed(query, names)
        if isinstance(expected, list):
            assert answer == expected, query
        else:  # the same refusal, whose sentence ends alike but for its quotes
            assert isinstance(answer, str) and ends(answer) == ends(expected), query


def ends(sentence: str) -> list[str]:
    return re.sub("[`“”]", "", sentence).split()[-3:]


WRITE = """
const { written } = await import(`${page}/query.js`);
const [asked, captions] = given;
console.log(JSON.stringify(asked.map(([text, perspective]) => written(text, perspective, captions ?? undefined))));
"""


@needs_node
def test_texts_are_written_as_in_python(processor: HolisticCLIPProcessor) -> None:
    asked = [("yellow", "style"), ("yellow", "fused"), ("yellow", "background"), ("$& {text} {perspective}", "short")]
    for form in ("{perspective}: {text}", "{text} ({perspective}), {text} {x}", None):
        processor.caption_form, processor.caption_perspectives = form, NAMES
        captions = None if form is None else {"form": form, "perspectives": NAMES}
        found = run_node(WRITE, asked, captions)
        assert found == [processor.write_caption(*each) for each in asked]


@pytest.mark.parametrize("form", ["{perspective}: {text}", None])
def test_the_page_is_told_of_the_form(
    make_model: MakeModel, processor: HolisticCLIPProcessor, form: str | None
) -> None:
    processor.caption_form, processor.caption_perspectives = form, NAMES
    found = browser_folder._text_facts(make_model(perspectives=NAMES), processor, False).get("captions")
    assert found == (None if form is None else {"form": form, "perspectives": NAMES})


SCORE = """
import fs from 'node:fs';
const { parseQuery } = await import(`${page}/query.js`);
const { Index, readVectors, weighted } = await import(`${page}/score.js`);
const [folder, asked, embeds] = given;
const facts = JSON.parse(fs.readFileSync(`${folder}/search.json`));
const bytes = fs.readFileSync(`${folder}/${facts.vectors.file}`);
const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
const index = new Index(facts, readVectors(buffer, facts.vectors.kind));
const answers = asked.map(([query, sliders]) => {
  const terms = weighted(parseQuery(query, facts.perspectives, facts.limits), sliders);
  const questions = terms.map((term) => index.ask(term, Float32Array.from(embeds[term.text])));
  return index.best(index.withFloors(questions), 5).map(({ row, score }) => [facts.images[row], score]);
});
console.log(JSON.stringify(answers));
"""
ASKED: list[tuple[str, dict[str, float]]] = [
    ("a red square", {"fused": 1.0}),
    ("a red square; not one circle^0.5", {"fused": 0.5, "style": -1.0, "short": 0.3}),
    ("main object: one circle; not style: a red square^2; a red square", {"fused": 1.0}),
]
FUSIONS: dict[str, dict[str, Any]] = {
    "centroid": {},
    "mean": {"fusion": "mean"},
    "weighted": {"fusion": "weighted", "branch_weights": [0.5, 0.2, 0.3]},
    "max": {"fusion": "max"},
    "softmax": {"fusion": "softmax", "fusion_scale": 3.0},
    "routed": {"fusion": "routed"},
}


@pytest.fixture
def photos(corpus: Dataset, tmp_path: Path) -> Path:
    return write_photos(corpus, tmp_path / "photos")


@needs_node
@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_scores_are_pythons_with_every_fusion(
    make_model: MakeModel, processor: HolisticCLIPProcessor, photos: Path, tmp_path: Path, fusion: str, half: bool
) -> None:
    model = make_model(perspectives=NAMES, **FUSIONS[fusion])
    index = index_of(photos, tmp_path / "index", model, processor)
    modules = fill_node_modules(tmp_path / "node_modules")
    report = export_page(model, processor, tmp_path / "index", tmp_path / "page", node_modules=modules, half=half)
    assert report.images == 8 and report.without_thumbnail == {}
    texts = ["a red square", "one circle"]
    with torch.no_grad():
        embeds = model.get_text_features(**processor(text=texts, return_tensors="pt")).pooler_output.tolist()
    found = run_node(SCORE, str(tmp_path / "page"), ASKED, dict(zip(texts, embeds, strict=True)))
    for (query, sliders), answer in zip(ASKED, found, strict=True):
        hits = index.search(with_sliders(index, query, sliders), k=5)
        if half:
            every = scores_of(index.search(with_sliders(index, query, sliders), k=8))
            assert [score for _, score in answer] == pytest.approx([every[name] for name, _ in answer], abs=5e-3)
        else:
            assert [name for name, _ in answer] == [hit.image_id for hit in hits]
            assert [score for _, score in answer] == pytest.approx([hit.score for hit in hits], abs=1e-6)


@pytest.mark.slow
def test_a_page_holds_what_it_needs_and_no_path(
    make_model: MakeModel, processor: HolisticCLIPProcessor, photos: Path, tmp_path: Path
) -> None:
    model = make_model(perspectives=NAMES)
    index = index_of(photos, tmp_path / "index", model, processor)
    (photos / "red" / "red-square.png").unlink()
    modules = fill_node_modules(tmp_path / "node_modules")
    report = export_page(model, processor, tmp_path / "index", tmp_path / "page", node_modules=modules, int8=True)
    assert [*report.without_thumbnail] == ["red/red-square.png"]
    folder = tmp_path / "page"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    place = index.image_ids.index("red/red-square.png")
    assert {f"thumbnails/{number:06d}.webp" for number in range(8) if number != place} < names
    assert {"index.html", "page.css", "start.js", "page.js", "query.js", "score.js", "text.js"} < names
    assert {name for name in names if name.endswith(".onnx")} == {"model/onnx/text_model_quantized.onnx"}
    facts = json.loads((folder / "search.json").read_text())
    assert facts["without_thumbnail"] == [place] and facts["text"]["dtype"] == "q8"
    vectors = np.fromfile(folder / "vectors.bin", np.float32).reshape(3, 8, 16)
    rows = {fact["image_id"]: each for facts, found in index.rows(3) for fact, each in zip(facts, found, strict=True)}
    for number, name in enumerate(index.image_ids):
        np.testing.assert_array_equal(vectors[:, number], rows[name])
    assert max(Image.open(folder / "thumbnails/000000.webp").size) <= 320
    for path in folder.rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path


def test_what_does_not_belong_together_is_refused(
    make_model: MakeModel,
    processor: HolisticCLIPProcessor,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, other = make_model(perspectives=NAMES), make_model(seed=1, perspectives=NAMES)
    index_of(photos, tmp_path / "index", model, processor)
    modules = fill_node_modules(tmp_path / "node_modules")

    def refused(message: str, by: HolisticCLIPModel = model, name: str = "index", at: Path = modules) -> None:
        with pytest.raises(ValueError, match=message):
            export_page(by, processor, tmp_path / name, tmp_path / "page", node_modules=at)
        assert not (tmp_path / "page").exists()

    refused("index was made by another checkpoint .*: its vectors mean nothing to it", by=other)
    index_images(tmp_path / "fused", FolderImages(photos), model, processor, vectors="fused")
    refused("`index` is .*fused, which holds fused vectors alone; expected those of branches", name="fused")
    refused(
        "`node_modules` is .*nowhere, which holds no @huggingface/transformers.*npm install", at=tmp_path / "nowhere"
    )
    old = fill_node_modules(tmp_path / "old", version="3.8.1")
    refused("holds @huggingface/transformers 3.8.1 and onnxruntime-web 1.31.0; expected @huggingface/t.* 4.x", at=old)
    mixed = fill_node_modules(tmp_path / "mixed", runtime="1.30.0")
    refused("and onnxruntime-web 1.30.0; expected .* with its own onnxruntime-web", at=mixed)
    (old / "onnxruntime-web" / "dist" / "ort-wasm-simd-threaded.wasm").unlink()
    (old / "@huggingface" / "transformers" / "package.json").write_text(
        (modules / "@huggingface" / "transformers" / "package.json").read_text()
    )
    refused("in which ort-wasm-simd-threaded.wasm is missing", at=old)
    monkeypatch.setattr(browser_folder, "MOST_BYTES", 8 * 3 * 16 * 4 - 1)
    refused("whose 8 images have 0 MB of vectors; expected at most 0 MB, .* or write `half` as many bytes")
