"""The page explains itself, in a real browser: the query that was asked, errors, scores, corrected captions."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from conftest import COLOURS, IMAGE_SIZE, SHAPES, draw, make_processor
from holistic_clip_hf import HolisticCLIPModel

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="gradio is not installed: pip install 'holistic-clip-hf[browser]'")
pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'holistic-clip-hf[browser]'"
)

from demo_browsers import VISITS, ids, opened_browser, visited  # noqa: E402
from demo_pages import open_drawings, served  # noqa: E402
from holistic_clip_hf.demo.editing import CaptionFile  # noqa: E402
from holistic_clip_hf.demo.showcase import SHOWN, Showcase  # noqa: E402

LONG_NAME = f"00-{'a-very-long-name-' * 6}of-a-red-square.png"
QUERY = "short: red; style: flat on white; not main object: circle^0.5"


@pytest.fixture(scope="module")
def captions_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("edited") / "captions.jsonl"


@pytest.fixture(scope="module")
def showcase(
    make_model: Callable[..., HolisticCLIPModel],
    session_tokenizer: CLIPTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
    captions_file: Path,
) -> Showcase:
    """Thirty drawings, some more than are shown at first."""
    folder = tmp_path_factory.mktemp("browser") / "drawings"
    folder.mkdir()
    captions = {}
    for number in range(30):
        colour, shape = list(COLOURS)[number % 4], SHAPES[number % 2]
        name = LONG_NAME if number == 0 else f"{number:02d}-{colour}-{shape}.png"
        draw(colour, shape, IMAGE_SIZE + number).save(folder / name)
        captions[name] = [("short", f"a {colour} {shape}"), ("style", f"drawn flat, {colour}")]
    processor = make_processor(session_tokenizer)
    model = make_model(perspectives=["short", "main_object", "style"])
    return open_drawings(folder, model, processor, captions, CaptionFile(captions_file))


@pytest.fixture(scope="module")
def address(showcase: Showcase) -> Iterator[str]:
    with served(showcase) as blocks:
        yield blocks.local_url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(params=VISITS.values(), ids=VISITS)
def visit(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    with visited(browser, address, request.param, f"{request.node.originalname}-{request.node.callspec.id}") as page:
        yield page


def ask(page: Any, text: str) -> None:
    page.get_by_role("textbox").first.fill(text)
    page.get_by_role("button", name="Search").click()


def section(panel: Any, heading: str) -> Any:
    return panel.locator("section").filter(has=panel.page.get_by_role("heading", name=heading, exact=True))


def test_the_query_that_was_asked_is_explained_term_by_term(visit: Any) -> None:
    ask(visit, QUERY)
    visit.wait_for_selector(".hc-score")
    visit.get_by_role("textbox").first.fill("something else that was not asked")
    visit.locator(".hc-card").first.click()
    panel = visit.locator(".hc-panel")
    panel.wait_for()
    names = panel.locator("figcaption").evaluate_all("all => all.map(each => each.firstChild.textContent)")
    branches = ["short", "main object", "style"]
    assert names == [*branches, "short", "style", "main object", "red", "flat", "white", "circle"]
    for heading, branch in (("“red”", "short"), ("“flat on white”", "style")):
        found = section(panel, f"What speaks for {heading}")
        assert found.locator("figure").count() == 1 and f"Asked of {branch} alone" in found.inner_text()
    against = section(panel, "What speaks against: “circle” is not wanted")
    assert (
        "lower the score" in against.inner_text() and against.locator("figcaption").inner_text()[:11] == "main object"
    )
    words = section(panel, "Words and patches").locator("figcaption").all_inner_texts()
    assert ["not wanted" in each for each in words] == [False, False, False, True]
    terms = panel.locator(".hc-terms li").all_inner_texts()
    assert [each.split("\n")[0] for each in terms] == [
        "short: red",
        "style: flat on white",
        "main object: circle not wanted",
    ]
    assert "something else" not in panel.inner_text()


def test_an_image_that_was_asked_for_is_explained_by_the_image(visit: Any, tmp_path: Path) -> None:
    visit.get_by_role("textbox").first.fill("words that were not asked")
    visit.get_by_role("tab", name="By image").click()
    draw("green", "circle").save(tmp_path / "mine.png")
    visit.set_input_files("input[type=file]", tmp_path / "mine.png")
    visit.wait_for_selector(".hc-score")
    visit.locator(".hc-card").first.click()
    panel = visit.locator(".hc-panel")
    panel.wait_for()
    assert section(panel, "What speaks for the image that you gave").locator("figure").count() == 3
    assert "words that were not asked" not in panel.inner_text()
    visit.keyboard.press("Escape")
    panel.wait_for(state="detached")
    before = ids(visit)
    weight = visit.get_by_label("number input for all")
    weight.fill("-1")
    weight.press("Tab")
    visit.wait_for_function("first => document.querySelector('.hc-card').dataset.imageId !== first", arg=before[0])


def test_sliders_are_switched_off_where_the_words_have_taken_over(visit: Any) -> None:
    sliders = visit.locator("#hc-weights")
    ask(visit, QUERY)
    said = visit.locator(".hc-said")
    said.get_by_text("so the sliders have no effect").wait_for()
    assert "short and style and main object" in said.inner_text()
    visit.wait_for_function("document.querySelector('#hc-weights').inert")
    assert float(sliders.evaluate("each => getComputedStyle(each).opacity")) < 0.6
    ask(visit, "style: flat; a circle")
    said.get_by_text("The sliders hold for “a circle” alone").wait_for()
    visit.wait_for_function("!document.querySelector('#hc-weights').inert")
    ask(visit, "a circle")
    said.wait_for(state="detached")
    assert not sliders.evaluate("each => each.inert")


def test_errors_look_and_sound_like_errors(visit: Any) -> None:
    ask(visit, "taste: sweet")
    error = visit.get_by_role("alert").filter(has_text="The perspective is")
    error.wait_for()
    assert visit.locator(".hc-card").count() == 0
    red, green, blue = error.evaluate("each => getComputedStyle(each).borderLeftColor").strip("rgb()").split(", ")[:3]
    assert int(red) > 2 * int(green) and int(red) > 2 * int(blue)
    ask(visit, "short: sweet")
    visit.wait_for_selector(".hc-score")
    assert visit.locator(".hc-error").count() == 0


def test_more_results(visit: Any, showcase: Showcase) -> None:
    assert len(ids(visit)) == SHOWN
    first = ids(visit)
    visit.get_by_role("button", name="Show more").click()
    visit.wait_for_function("document.querySelectorAll('.hc-card').length === 30")
    assert ids(visit)[:SHOWN] == first and visit.get_by_role("button", name="Show more").count() == 0
    ask(visit, "a red square")
    visit.wait_for_selector(".hc-score")
    assert "24 of 30 images" in visit.locator(".hc-more").inner_text()
    visit.get_by_role("button", name="Show more").click()
    visit.wait_for_function("document.querySelectorAll('.hc-card').length === 30")
    assert ids(visit) == [hit.image_id for hit in showcase.search("a red square", k=30)]


def test_examples_ask_what_they_say(visit: Any, showcase: Showcase) -> None:
    buttons = visit.locator(".hc-examples button")
    assert buttons.all_inner_texts() == showcase.examples and len(showcase.examples) == 4
    buttons.last.click()
    visit.wait_for_selector(".hc-score")
    assert visit.get_by_role("textbox").first.input_value() == showcase.examples[-1]
    assert ids(visit)[0] == showcase.search(showcase.examples[-1])[0].image_id
    visit.locator(".hc-card").first.click()
    visit.locator(".hc-panel .hc-terms").wait_for()


def test_scores_are_explained(visit: Any) -> None:
    assert visit.locator(".hc-how").count() == 0  # nothing was asked
    ask(visit, QUERY)
    visit.wait_for_selector(".hc-score")
    visit.get_by_text("What the numbers mean").click()
    told = visit.locator(".hc-how p").inner_text()
    assert "cosine similarity" in told and "from -2.5 to 2.5" in told
    scores = [float(each) for each in visit.locator(".hc-score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True) and max(map(abs, scores)) <= 2.5


def test_names_are_shown_whole(visit: Any) -> None:
    card = visit.locator(f'[data-image-id="{LONG_NAME}"]')
    name = card.locator(".hc-name")
    assert LONG_NAME in name.inner_text() and name.get_attribute("title") == LONG_NAME
    assert name.evaluate("each => each.scrollWidth <= each.clientWidth && each.scrollHeight <= each.clientHeight + 1")


def test_captions_are_corrected_and_saved(visit: Any, captions_file: Path, showcase: Showcase) -> None:
    image_id = "03-yellow-circle.png"
    visit.locator(f'[data-image-id="{image_id}"]').click()
    fields = visit.locator(".hc-editor textarea")
    fields.first.wait_for()
    own = dict(showcase.captions[image_id])
    shown = zip(fields.evaluate_all("all => all.map(each => each.dataset.perspective)"), fields.all(), strict=True)
    assert {name: field.input_value() for name, field in shown} == {"main_object": "", **own}
    new = f'a <b>yellow</b> "disc" & {visit.viewport_size["width"]}, {len(own)}'
    fields.nth(0).fill(new)
    visit.get_by_role("button", name="Save captions").click()
    visit.get_by_role("status").filter(has_text="Saved").wait_for()
    lines = [json.loads(line) for line in captions_file.read_text("utf-8").splitlines()]
    assert len(lines) == 30 and [line for line in lines if line["file_name"] == image_id][0]["short"] == new
    assert new in visit.locator(".hc-panel table").inner_text()  # shown, as text
    assert visit.locator(".hc-panel table b").count() == 0
    visit.keyboard.press("Escape")
    visit.locator(".hc-panel").wait_for(state="detached")


def test_captions_that_somebody_else_changed_are_not_overwritten(visit: Any, captions_file: Path) -> None:
    image_id = "02-blue-square.png"
    visit.locator(f'[data-image-id="{image_id}"]').click()
    fields = visit.locator(".hc-editor textarea")
    fields.first.wait_for()
    CaptionFile(captions_file)
    lines = (
        [json.loads(line) for line in captions_file.read_text("utf-8").splitlines()] if captions_file.exists() else []
    )
    others = [line for line in lines if line["file_name"] != image_id]
    theirs = {"file_name": image_id, "short": f"theirs, {visit.viewport_size['width']}"}
    captions_file.write_text("".join(json.dumps(line) + "\n" for line in [*others, theirs]), "utf-8")
    fields.first.fill("mine")
    visit.get_by_role("button", name="Save captions").click()
    visit.get_by_role("alert").filter(has_text="Somebody else").wait_for()
    assert fields.first.input_value() == "mine" and '"mine"' not in captions_file.read_text("utf-8")


def test_maps_in_which_nothing_stands_out_say_why(visit: Any, showcase: Showcase) -> None:
    """A query for which no patch counts, since a last layer of zeros lets class tokens see no patch."""
    ask(visit, "a circle")
    visit.wait_for_selector(".hc-score")
    layers = showcase.model.vision_model.encoder.layers[-1]
    saved = [(each, each.data.clone()) for each in layers.parameters()]
    try:
        for each, _ in saved:
            each.data.zero_()  # class tokens see no patch any more
        visit.locator(".hc-card").first.click()
        found = section(visit.locator(".hc-panel"), "What speaks for “a circle”")
        found.wait_for()
        assert found.locator(".hc-blank").all_inner_texts() == ["Blank: no patch raises this branch's agreement."] * 3
    finally:
        for each, before in saved:
            each.data.copy_(before)
