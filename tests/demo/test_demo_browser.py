"""The page as people meet it: in a real browser, at a desk and on a phone, in light and dark."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTokenizer

from conftest import draw, make_processor
from holistic_clip_hf import HolisticCLIPModel

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="gradio is not installed: pip install 'holistic-clip-hf[browser]'")
pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'holistic-clip-hf[browser]'"
)

from demo_browsers import VISITS, ids, opened_browser, visited  # noqa: E402
from demo_pages import SCRIPT, SCRIPT_FILE, fill, open_drawings, served  # noqa: E402


@pytest.fixture(scope="module")
def address(
    make_model: Callable[..., HolisticCLIPModel],
    session_tokenizer: CLIPTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("browser") / "drawings"
    fill(folder, draw)
    processor = make_processor(session_tokenizer)
    captions = {"red-square.png": [("short", "a red square"), ("style", SCRIPT)]}
    model = make_model(perspectives=["short", "main_object", "style"])
    with served(open_drawings(folder, model, processor, captions)) as blocks:
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
    page.wait_for_selector(".hc-score")


def test_search_move_a_slider_open_an_image(visit: Any) -> None:
    assert visit.locator(".hc-score").count() == 0 and set(ids(visit)) >= {SCRIPT_FILE, "blue-circle.png"}
    ask(visit, "a red square")
    before = ids(visit)
    assert len(before) == 8

    weight = visit.get_by_label("number input for all")
    weight.fill("-1")
    weight.press("Tab")
    visit.wait_for_function("first => document.querySelector('.hc-card').dataset.imageId !== first", arg=before[0])
    assert ids(visit) == before[::-1]  # what counted for now counts against

    visit.locator('[data-image-id="red-square.png"]').click()
    panel = visit.locator(".hc-panel")
    panel.wait_for()
    words = panel.inner_text()
    assert "red-square.png" in words and SCRIPT in words
    for heading in ("Where each branch looks", "What speaks for “a red square”", "Its captions and its branches"):
        assert heading in words
    assert panel.locator("figure img").count() == 3 + 3 + 2  # by branch, by branch, by word
    assert panel.locator("figure img").evaluate_all("images => images.every(image => image.naturalWidth > 0)")
    assert visit.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing sticks out
    visit.keyboard.press("Escape")
    panel.wait_for(state="detached")
    visit.locator('[data-image-id="red-square.png"]').click()  # the same one again
    panel.wait_for()
    visit.get_by_label("Close").click()
    panel.wait_for(state="detached")


def test_an_image_whose_name_is_a_script(visit: Any) -> None:
    ask(visit, SCRIPT)
    visit.locator(".hc-card").nth(ids(visit).index(SCRIPT_FILE)).click()
    assert SCRIPT_FILE in visit.locator(".hc-panel h3").inner_text()


def test_upload(visit: Any, tmp_path: Path) -> None:
    visit.get_by_role("tab", name="By image").click()
    draw("green", "circle").save(tmp_path / "mine.png")
    visit.set_input_files("input[type=file]", tmp_path / "mine.png")
    visit.wait_for_selector(".hc-branch")
    visit.wait_for_function("document.querySelector('.hc-card')?.dataset.imageId === 'green-circle.png'")
    assert visit.locator(".hc-branch").count() == 3
    assert visit.locator(".hc-maps figure").count() == 3

    (tmp_path / "evil.png").write_text("<script>alert(1)</script>")
    visit.get_by_label("Remove Image").or_(visit.get_by_label("Clear")).first.click()
    visit.locator(".hc-branch").first.wait_for(state="detached")
    visit.set_input_files("input[type=file]", tmp_path / "evil.png")
    visit.get_by_text("not an image that can be read here").wait_for()
