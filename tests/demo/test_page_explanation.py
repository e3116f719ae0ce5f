"""Explanations agree with the scores that they explain, and each term is held against the branches that it asks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from conftest import draw, make_processor
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.search import FUSED, Answer, Term
from holistic_clip_hf.visualization import branch_relevance

pytest.importorskip("gradio")

from demo_pages import fill, open_drawings  # noqa: E402
from holistic_clip_hf.demo import markup  # noqa: E402
from holistic_clip_hf.demo.explanation import MOST_TERMS, MOST_WORDS, weights_by_branch  # noqa: E402
from holistic_clip_hf.demo.page import IMAGE, Asked, Page  # noqa: E402
from holistic_clip_hf.demo.showcase import Showcase  # noqa: E402

PERSPECTIVES = ["short", "main_object", "style"]


@pytest.fixture(scope="module")
def processor(session_tokenizer: CLIPTokenizer) -> HolisticCLIPProcessor:
    return make_processor(session_tokenizer)


@pytest.fixture(scope="module")
def showcase(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Showcase:
    folder = tmp_path_factory.mktemp("explained") / "drawings"
    fill(folder, draw)
    return open_drawings(folder, make_model(perspectives=PERSPECTIVES, fusion="mean"), processor)


def vectors(showcase: Showcase, image: Image.Image, text: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels, branches (H, D) of an image, and the vector (D,) of a text, by the model itself."""
    inputs = showcase._processor(images=[image], text=[text], return_tensors="pt")
    with torch.no_grad():
        output = showcase.model(**inputs)
    return inputs["pixel_values"], output.branch_embeds[0], output.text_embeds[0]


@pytest.mark.parametrize(
    ("query", "sliders"),
    [
        ("a red circle", {FUSED: 1.0}),
        ("not a red circle^0.5", {FUSED: 1.0, "style": 2.0}),
        ("style: a red circle", {FUSED: 1.0, "short": 2.0}),
        ("a red circle", {"short": 0.5, "main_object": 1.5}),
    ],
)
def test_weights_by_branch_add_up_to_the_score(showcase: Showcase, query: str, sliders: dict[str, float]) -> None:
    (term,) = showcase.wishes(query)
    weights = weights_by_branch(term, sliders, PERSPECTIVES)
    _, branches, text = vectors(showcase, draw("blue", "circle"), "a red circle")
    expected = sum(weight * float(branches[PERSPECTIVES.index(name)] @ text) for name, weight in weights.items())
    (hit,) = showcase.search(query, sliders, only="blue-circle.png")
    assert hit.score == pytest.approx(expected, abs=1e-5)


def test_each_term_is_drawn_for_the_branches_that_it_asks(showcase: Showcase) -> None:
    image = draw("blue", "circle")
    found = showcase.inspect(image, 'style: "red; blue"; not short: a circle^2; a square', {FUSED: 1.0, "style": -1.0})
    drawn = [(each.asked.term.text, each.asked.is_wanted, [map.name for map in each.maps]) for each in found.terms]
    assert drawn == [("red; blue", True, ["style"]), ("a circle", False, ["short"]), ("a square", True, PERSPECTIVES)]
    assert [map.is_wanted for map in found.terms[2].maps] == [True, True, False]  # the slider counts against
    for term in found.terms:
        pixels, branches, text = vectors(showcase, image, term.asked.term.text or "")
        relevance = branch_relevance(showcase.model, pixels, text[None])[0, :, 0]
        for map in term.maps:
            branch = PERSPECTIVES.index(map.name)
            assert relevance[branch].abs().max() > 1e-4
            assert torch.allclose(map.values.flatten(), relevance[branch].clamp(min=0), atol=1e-6)
            assert ("no patch raises" in map.blank) == bool(relevance[branch].max() <= 0)
            assert map.note == f"agrees {float(branches[branch] @ text):+.2f}"
    assert [(word.name, word.is_wanted) for word in found.words] == [
        ("red", True),
        ("blue", True),
        ("circle", False),
        ("square", True),
    ]


def test_an_example_image_is_held_branch_against_branch(showcase: Showcase) -> None:
    image, example = draw("blue", "circle"), draw("red", "square")
    (term,) = showcase.inspect(image, example).terms
    pixels, branches, _ = vectors(showcase, image, "x")
    _, others, _ = vectors(showcase, example, "x")
    for branch, map in enumerate(term.maps):
        relevance = branch_relevance(showcase.model, pixels, others[branch][None])[0, branch, 0]
        assert relevance.abs().max() > 1e-4
        assert torch.allclose(map.values.flatten(), relevance.clamp(min=0), atol=1e-6)
        assert map.note == f"agrees {float(branches[branch] @ others[branch]):+.2f}"


def test_what_is_not_drawn_is_counted(showcase: Showcase) -> None:
    query = "; ".join(f"short: word{number} thing{number} stuff{number}" for number in range(6))
    page = Page(showcase)
    told = page.inspect("blue-circle.png", Asked("text", query, None, [1.0, 0.0, 0.0, 0.0]))
    assert f"{6 - MOST_TERMS} more terms count for the score" in told and f"The first {MOST_WORDS} of " in told
    told = page.inspect("blue-circle.png", Asked("text", "of the", None, [1.0, 0.0, 0.0, 0.0]))
    assert "no word that could name a thing" in told


@pytest.mark.parametrize("query", ["taste: sweet", 'a "', "x^2^3"])
def test_a_query_that_cannot_be_read_is_told_in_the_panel(showcase: Showcase, query: str) -> None:
    told = Page(showcase).inspect("blue-circle.png", Asked("text", query, None, [1.0, 0.0, 0.0, 0.0]))
    assert 'role="alert"' in told and "What speaks" not in told and "Where each branch looks" in told


def test_sliders_at_zero_do_not_matter_where_words_name_perspectives(showcase: Showcase) -> None:
    named = showcase.search("style: a circle", dict.fromkeys([FUSED, *PERSPECTIVES], 0.0))
    assert named == showcase.search("style: a circle")
    with pytest.raises(ValueError, match="All sliders are at zero"):
        showcase.search("style: a circle; square", {FUSED: 0.0})


def test_branches_that_share_their_attention_say_so(
    make_model: Callable[..., HolisticCLIPModel], processor: HolisticCLIPProcessor, tmp_path: Path
) -> None:
    fill(tmp_path / "drawings", draw)
    model = make_model(vision={"branch_type": "mlp"}, perspectives=PERSPECTIVES)
    found = open_drawings(tmp_path / "drawings", model, processor).inspect(draw("red", "circle"), "a circle")
    told = markup.explained(found)
    assert found.attention == [] and "which they share" in told and told.count("<figure>") == 3 + 1


def test_browsing_shows_more_without_moving_what_is_there(showcase: Showcase, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"{number:03d}.png" for number in range(100)]
    monkeypatch.setattr(type(showcase.index), "image_ids", ids)
    few, all_of_them = ([hit.image_id for hit in showcase.browse(k)] for k in (24, 1_000))
    assert all_of_them[:24] == few and sorted(all_of_them) == ids
    assert max(map(int, (each[:3] for each in few))) > 90  # from everywhere


def test_the_reach_of_a_query_bounds_its_scores(showcase: Showcase) -> None:
    query: Any = [Term("a circle", perspective="style", weight=2.0), Term("red", weight=-0.5)]
    hits = showcase.index.search(query)
    told = markup.results(Answer(hits), {hit.image_id: "" for hit in hits}, PERSPECTIVES, wishes=query, num_images=8)
    assert "from -2.5 to 2.5" in told and all(abs(hit.score) <= 2.5 for hit in hits)


def test_what_a_page_does_not_show_is_told(showcase: Showcase, monkeypatch: pytest.MonkeyPatch) -> None:
    hits = showcase.browse(3)
    thumbnails = {hit.image_id: "" for hit in hits}
    told = markup.results(Answer(hits), thumbnails, PERSPECTIVES, wishes=(), num_images=8)
    assert "3 of 8 images" in told and 'data-shown="3"' in told
    monkeypatch.setattr(markup, "MOST_SHOWN", 3)
    told = markup.results(Answer(hits), thumbnails, PERSPECTIVES, wishes=(), num_images=8)
    assert "3 of 8 images. Ask more precisely" in told and "data-shown" not in told
    told = markup.results(Answer(hits), thumbnails, PERSPECTIVES, wishes=(), num_images=3)
    assert "hc-more" not in told


def test_an_image_of_yours_and_what_is_to_differ(showcase: Showcase) -> None:
    """The page shows what the terms find, and explains it, the example by the branches that it is compared in."""
    example, weights = draw("red", "square"), [1.0, 0.0, 0.0, 0.0]
    terms = [Term(image=example, without=("style",)), Term("blue", perspective="style")]
    asked = Asked(IMAGE, "but style: blue", example, weights)
    found = Page(showcase).results(asked)
    for hit in showcase.index.search(terms, k=8):
        assert f"{hit.score:.2f}" in found
    told = Page(showcase).inspect("blue-circle.png", asked)
    assert "the image that you gave" in told and "style: blue" in told
    by_branch = weights_by_branch(terms[0], {FUSED: 1.0, "short": 0.5, "style": 2.0}, PERSPECTIVES)
    assert by_branch == {"short": 1.0, "main_object": 0.5}
    (hit,) = showcase.search(terms, {FUSED: 1.0, "style": 2.0}, only="blue-circle.png")
    assert [list(part.by_branch) for part in hit.parts] == [["short", "main_object"], ["style"]]
    assert "wants every perspective otherwise" in Page(showcase).results(
        Asked(IMAGE, "; ".join(f"but {name}: x" for name in PERSPECTIVES), example, weights)
    )


def test_probabilities_and_nothing_found_are_shown(showcase: Showcase) -> None:
    hits = [
        replace(hit, probability=share)
        for hit, share in zip(showcase.index.search("red", k=2), (0.12, 0.034), strict=True)
    ]
    shown: dict[str, Any] = {
        "thumbnails": {hit.image_id: "" for hit in hits},
        "wishes": [Term("red")],
        "num_images": 8,
    }
    told = markup.results(Answer(hits, found=True), branches=PERSPECTIVES, **shown)
    assert "· 12%" in told and "· 3%" in told and "probability that the image fits" in told
    assert "Nothing found" not in told
    told = markup.results(Answer(hits, found=False), branches=PERSPECTIVES, **shown)
    assert "Nothing found: even the best image fits with a probability of 12.0% only." in told and "· 3%" in told
