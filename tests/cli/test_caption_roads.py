"""Every road on which a text with a known perspective reaches the text tower: it gets there in the model's own form.

What the tower gives is listened to, whoever asks. Expected are the vectors of texts that are written out by hand.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, Value
from PIL import Image
from torch import Tensor

from conftest import draw
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor, exporting
from holistic_clip_hf.cli.main import main
from holistic_clip_hf.corpus.build import build_corpus, corpus_features
from holistic_clip_hf.evaluation import adapters
from holistic_clip_hf.evaluation.classification import encode_classes, load_templates
from holistic_clip_hf.evaluation.encoding import encode_texts
from holistic_clip_hf.evaluation.retrieval import embed_alike, embed_corpus, texts_to_encode
from holistic_clip_hf.search import FolderImages, SearchIndex, Term, index_images
from holistic_clip_hf.trainer.collator import HolisticCLIPCollator
from holistic_clip_hf.trainer.recipes import Recipe, _warn_of_other_form
from holistic_clip_hf.visualization.result_grid import draw_results

FORM, NAMES, SLOTS = "{perspective}: {text}", ["short", "palette"], ["short", "palette"]
CLOSE = 1e-6


class Ground:
    """A tiny checkpoint whose processor has a form or none, and drawings that are all yellow."""

    def __init__(self, folder: Path, model: HolisticCLIPModel, processor: HolisticCLIPProcessor) -> None:
        self.folder, self.model, self.processor = folder, model, processor
        self.plain = HolisticCLIPProcessor(processor.image_processor, processor.tokenizer)
        self.image = draw("yellow", "square")
        captions = [
            {"perspective": name, "text": text, "source": "test"}
            for name, text in (("short", "a square"), ("palette", "yellow"))
        ]
        self.rows = [
            {"image_id": f"{number}.png", "image": draw("yellow", "square", 24 + number), "captions": captions}
            for number in range(4)
        ]

    @property
    def dataset(self) -> Dataset:
        return Dataset.from_list(self.rows, features=corpus_features())

    def index(self) -> SearchIndex:
        photos = self.folder / "photos"
        photos.mkdir()
        for row in self.rows:
            row["image"].save(photos / row["image_id"])
        index_images(self.folder / "index", FolderImages(photos), self.model, self.processor)
        return SearchIndex(self.folder / "index", self.model, self.processor)

    def showcase(self, **options: Any) -> Any:
        from holistic_clip_hf.demo.showcase import Showcase

        return Showcase(self.index(), self.model, self.processor, name="tiny", **options)


@contextmanager
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Collect every vector of a text that any model of ours gives inside."""
    heard: list[Tensor] = []
    flat, nested = HolisticCLIPModel.get_text_features, HolisticCLIPModel.encode_captions

    def listen(self: HolisticCLIPModel, *args: Any, **kwargs: Any) -> Any:
        output = flat(self, *args, **kwargs)
        heard.extend(output.text_embeds.detach().float().cpu().clone())
        return output

    def listen_nested(self: HolisticCLIPModel, *args: Any, **kwargs: Any) -> Tensor:
        embeds = nested(self, *args, **kwargs)
        heard.extend(embeds.detach().flatten(0, 1).clone())
        return embeds

    with monkeypatch.context() as patch:
        patch.setattr(HolisticCLIPModel, "get_text_features", listen)
        patch.setattr(HolisticCLIPModel, "encode_captions", listen_nested)
        yield heard


def is_heard(expected: Tensor, heard: list[Tensor]) -> bool:
    return any((each - expected).abs().max() < CLOSE for each in heard)


@torch.no_grad()
def vector_of(ground: Ground, text: str) -> Tensor:
    tokens = ground.processor.tokenizer([text], return_tensors="pt")
    return ground.model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).text_embeds[0]


def nested(ground: Ground) -> None:
    ground.model.encode_captions(**ground.processor.nested_captions([["a square", "yellow"]], NAMES))


def collated(ground: Ground) -> None:
    batch = HolisticCLIPCollator(ground.processor, SLOTS).for_evaluation()(ground.rows)
    names = ("input_ids", "attention_mask", "caption_mask", "caption_ids")
    ground.model.encode_captions(**{name: batch[name] for name in names})


def evaluated(ground: Ground) -> None:
    embed_corpus(ground.model, ground.processor, ground.dataset, perspectives=NAMES)


def shared(ground: Ground) -> None:
    texts = texts_to_encode(ground.processor, ground.dataset, perspectives=NAMES)
    encode_texts(ground.model, ground.processor, texts, batch_size=4)


def asked_alike(ground: Ground) -> None:
    """Of two models the second, whatever the first one's form is; the first is asked outside."""
    seen = embed_corpus(Mute(ground.model), ground.plain, ground.dataset, perspectives=NAMES)
    embed_alike(ground.model, ground.processor, ground.dataset, seen)


def classes(ground: Ground) -> None:
    encode_classes(ground.model, ground.processor, ["yellow"], load_templates("plain"), perspective="palette")


def classes_of_the_command(ground: Ground) -> None:
    for part in (ground.model, ground.processor):
        part.save_pretrained(ground.folder / "model")
    rows = [{**row, "part": "test"} for row in ground.rows]

    build_corpus(
        ground.folder / "corpus", {"all": lambda: rows}, corpus_features(part=Value("string")), fingerprint="1"
    )
    command = ["evaluate", "--model", ground.folder / "model", "--corpus", ground.folder / "corpus", "--classes"]
    command += ["palette", "--tasks", "classification", "--split-column", "part", "--templates", "plain"]
    main([*map(str, command), "--output", str(ground.folder / "results.json")])


def searched(ground: Ground) -> None:
    ground.index().search("palette: yellow")


def searched_against(ground: Ground) -> None:
    ground.index().search("a square; not palette: yellow^0.5")


def searched_by_term(ground: Ground) -> None:
    ground.index().search(Term("yellow", perspective="Palette", weight=2.0))


def searched_beside_an_example(ground: Ground) -> None:
    index = ground.index()
    index.search(index.parse("but palette: yellow", like=ground.image))


def explained(ground: Ground) -> None:
    ground.index().explain("palette: yellow", "0.png")


def asked_by_a_slider(ground: Ground) -> None:
    ground.showcase().search("yellow", {"palette": 1.0})


def inspected(ground: Ground) -> None:
    ground.showcase().inspect(ground.image, "palette: yellow")


def captions_of_the_page(ground: Ground) -> None:
    ground.showcase(captions={"0.png": [("palette", "yellow")]})


def matched_on_the_page(ground: Ground) -> None:
    from holistic_clip_hf.demo.explanation import Explainer

    Explainer(ground.model, ground.processor).inspect(ground.image, [], [("palette", "yellow")])


def vectors_of_the_server(ground: Ground) -> None:
    from holistic_clip_hf.demo.interface import BETWEEN, Interface

    Interface(ground.showcase()).embeddings({"model": f"tiny{BETWEEN}palette", "input": ["yellow"]})


def search_of_the_server(ground: Ground) -> None:
    from holistic_clip_hf.demo.interface import Interface

    Interface(ground.showcase()).search({"query": "palette: yellow"})


def drawn(ground: Ground) -> None:
    path = ground.folder / "grid.png"
    draw_results(ground.model, ground.processor, ground.dataset, path, perspectives=["palette"], seed=0)
    assert Image.open(path).width > 0


ROADS: list[Callable[[Ground], None]] = [
    *(nested, collated, evaluated, shared, asked_alike, classes, classes_of_the_command),
    *(searched, searched_against, searched_by_term, searched_beside_an_example, explained, drawn),
]
ROADS_OF_THE_PAGE: list[Callable[[Ground], None]] = [
    *(asked_by_a_slider, inspected, captions_of_the_page, matched_on_the_page),
    *(vectors_of_the_server, search_of_the_server),
]


class Mute:
    """A model whose answers are not heard: it gives each text a vector of its own."""

    def __init__(self, model: HolisticCLIPModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        width = self._model.config.projection_dim
        return type("Output", (), {"text_embeds": torch.ones(len(input_ids), width)})


@pytest.fixture
def make_ground(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, tmp_path: Path
) -> Callable[[str | None], Ground]:
    def make(form: str | None) -> Ground:
        model = make_model(perspectives=NAMES, vision={"num_branches": 2})
        told: dict[str, Any] = {} if form is None else {"caption_form": form, "caption_perspectives": SLOTS}
        return Ground(tmp_path, model, HolisticCLIPProcessor(processor.image_processor, processor.tokenizer, **told))

    return make


@pytest.mark.parametrize("form", [FORM, None])
@pytest.mark.parametrize("road", [*ROADS, *ROADS_OF_THE_PAGE], ids=lambda road: road.__name__)
def test_a_text_with_a_perspective_reaches_the_tower_in_the_form_of_the_model(
    road: Callable[[Ground], None],
    form: str | None,
    make_ground: Callable[[str | None], Ground],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if road in ROADS_OF_THE_PAGE:
        pytest.importorskip("gradio")
    ground = make_ground(form)
    written, plain = vector_of(ground, "palette: yellow"), vector_of(ground, "yellow")
    assert (written - plain).abs().max() > 0.01
    with listening(monkeypatch) as heard:
        road(ground)
    expected, other = (plain, written) if form is None else (written, plain)
    assert is_heard(expected, heard) and not is_heard(other, heard)


@pytest.mark.parametrize(
    ("form", "prompts"),
    [
        (FORM, {"short": "short: ", "palette": "palette: "}),
        ("see {text}", {"short": "see ", "palette": "see "}),
        ("{text} ({perspective})", None),
        ("{text}, {text}", None),
        (None, None),
    ],
)
def test_a_form_that_is_a_prefix_is_a_prompt_of_sentence_transformers(
    form: str | None,
    prompts: dict[str, str] | None,
    make_ground: Callable[[str | None], Ground],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ground, given = make_ground(form), list[dict[str, Any]]()
    for part in (ground.model, ground.processor):
        part.save_pretrained(ground.folder / "model")

    def encoder(checkpoint: str, **options: Any) -> list[Any]:
        given.append(options)
        return [SimpleNamespace(model=ground.model)]

    library = SimpleNamespace(SentenceTransformer=encoder)
    monkeypatch.setattr(adapters, "import_extra", lambda *names: library)
    adapters.sentence_transformer(str(ground.folder / "model"))
    adapters.sentence_transformer(str(ground.folder / "model"), prompts={"mine": "x"})
    assert [each.get("prompts") for each in given] == [prompts, {"mine": "x"}]


def test_an_exported_processor_is_said_to_write_no_captions(
    make_ground: Callable[[str | None], Ground], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "export_stock", lambda *given, **options: {})
    for form, name in ((FORM, "formed"), (None, "plain")):
        ground = make_ground(form)
        for part in (ground.model, ground.processor):
            part.save_pretrained(ground.folder / name)
        main(["export", str(ground.folder / name), "--layout", "clip", "--output", str(ground.folder / "stock")])
        told = "Write a text that asks one of short, palette as '{perspective}: {text}'."
        assert (told in capsys.readouterr().out) == (form is not None)


def test_training_on_with_another_form_is_said(
    make_ground: Callable[[str | None], Ground], caplog: pytest.LogCaptureFixture
) -> None:
    ground = make_ground(FORM)
    for part in (ground.model, ground.processor):
        part.save_pretrained(ground.folder / "start")
    given: dict[str, Any] = {"corpus": "any", "split_column": "part", "image_size": 32, "model": {}, "training": {}}
    given |= {"tokenizer": {}, "runs": {}, "start_from": str(ground.folder / "start"), "name": "on"}
    for form in (FORM, None, "{text}"):
        caplog.clear()
        _warn_of_other_form(Recipe(**given, caption_form=form))
        said = "start had the form '{perspective}: {text}', and recipe 'on' trains it on with the form '{text}'"
        assert (said in caplog.text) == (form != FORM)


@pytest.mark.parametrize("ask", ["yellow", '"palette: yellow"'])
def test_a_text_without_a_perspective_stays_as_it_is(
    ask: str, make_ground: Callable[[str | None], Ground], monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = make_ground(FORM)
    with listening(monkeypatch) as heard:
        ground.index().search(ask)
    assert is_heard(vector_of(ground, ask.strip('"')), heard) and len(heard) == 1


def test_two_terms_of_one_word_are_two_texts(
    make_ground: Callable[[str | None], Ground], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is remembered of a text is remembered by what the tower has read."""
    ground = make_ground(FORM)
    index = ground.index()
    index.search("yellow")
    with listening(monkeypatch) as heard:
        hit = index.search("short: yellow; palette: yellow; yellow", k=1)[0]
    assert len(heard) == 2
    with torch.no_grad():
        pixels = ground.processor(images=[index.image(hit.image_id)], return_tensors="pt")
        branches = ground.model.get_image_features(**pixels).branch_embeds[0]
    by_hand = [branches[0] @ vector_of(ground, "short: yellow"), branches[1] @ vector_of(ground, "palette: yellow")]
    assert [part.score for part in hit.parts[:2]] == pytest.approx([float(each) for each in by_hand], abs=1e-5)


def test_the_page_compares_captions_of_two_perspectives_and_shows_what_people_wrote(
    make_ground: Callable[[str | None], Ground],
) -> None:
    pytest.importorskip("gradio")
    ground = make_ground(FORM)
    showcase = ground.showcase(captions={"0.png": [("short", "yellow"), ("palette", "yellow"), ("file name", "0")]})
    assert showcase.texts == ["yellow", "yellow", "0"]
    vectors = [vector_of(ground, text) for text in ("short: yellow", "palette: yellow", "0")]
    torch.testing.assert_close(showcase._text_embeds, torch.stack(vectors), rtol=0, atol=1e-6)


def test_maps_are_of_the_text_that_a_slider_asks(
    make_ground: Callable[[str | None], Ground], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By sliders of branches alone each is asked by name; with the one of all together, as it stands."""
    pytest.importorskip("gradio")
    ground = make_ground(FORM)
    showcase = ground.showcase()
    for sliders, text, other in (
        ({"palette": 1.0}, "palette: yellow", "yellow"),
        ({"fused": 1.0}, "yellow", "palette: yellow"),
    ):
        found = showcase.inspect(ground.image, "yellow", sliders)
        (shown,) = [each for each in found.terms[0].maps if each.name == "palette"]
        with torch.no_grad():
            pixels = ground.processor(images=[ground.image], return_tensors="pt")
            branch = ground.model.get_image_features(**pixels).branch_embeds[0, 1]
        right, wrong = (float(branch @ vector_of(ground, each)) for each in (text, other))
        assert shown.note == f"agrees {right:+.2f}" and f"{wrong:+.2f}" not in shown.note


def test_two_models_are_asked_the_same_each_in_its_own_form(make_ground: Callable[[str | None], Ground]) -> None:
    ground = make_ground(FORM)
    mine = embed_corpus(ground.model, ground.processor, ground.dataset, perspectives=NAMES)
    base = embed_alike(ground.model, ground.plain, ground.dataset, mine)
    again = embed_alike(ground.model, ground.processor, ground.dataset, base)
    assert mine.captions["palette"] == again.captions["palette"] == [["palette: yellow"]] * 4
    assert base.captions == mine.plain_captions == base.plain_captions == again.plain_captions
    torch.testing.assert_close(base.text_embeds["yellow"], vector_of(ground, "yellow"), rtol=0, atol=1e-6)
    assert torch.equal(again.text_embeds["palette: yellow"], mine.text_embeds["palette: yellow"])
