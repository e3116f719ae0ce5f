"""The page without a server, in a real browser: tokens, vectors and results are Python's; errors look like errors."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer, SiglipImageProcessorPil

from conftest import COLOURS, SHAPES, draw, make_processor
from families import make_siglip
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.search import SearchIndex

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'holistic-clip-hf[export]'")
pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'holistic-clip-hf[browser]'"
)

from demo_browsers import VISITS, opened_browser, visited  # noqa: E402
from exported_pages import NODE_MODULES, index_of, needs_npm, scores_of, served, with_sliders  # noqa: E402
from holistic_clip_hf.exporting.browser_folder import export_page  # noqa: E402
from holistic_clip_hf.initialization import from_siglip  # noqa: E402
from siglip_tokenizers import LENGTH, first_kind, second_kind  # noqa: E402

pytestmark.append(needs_npm)
NAMES = ["short", "detail", "main_object", "background", "style"]
SCRIPT_FILE = "<img src=x onerror=alert(1)>.png"
COUNT = 1_000
TEXTS = [
    "a red square",
    "  A  Red\tSQUARE\n ",
    "“curly” ‘quotes’ and a ﬁne ligature",
    "ｆｕｌｌ　ｗｉｄｔｈ",
    "fish &amp;amp; chips &lt;b&gt; &eacute; &copy",
    "a < b &amp; c",
    "ΟΔΟΣ ΣΑΣ",
    "café cafe\u0301 日本語 🦊👩‍🚒 \u200b x",
    "one two three four five six seven eight nine ten eleven twelve " * 3,
]
MakeModel = Callable[..., HolisticCLIPModel]


class Exported:
    """A page in a folder, and what it was made of."""

    def __init__(self, base: Path, model: HolisticCLIPModel, processor: HolisticCLIPProcessor) -> None:
        self.model, self.processor, self.folder = model, processor, base / "page"
        self.index: SearchIndex = index_of(base / "photos", base / "index", model, processor)
        export_page(model, processor, base / "index", self.folder, node_modules=NODE_MODULES)


@pytest.fixture(scope="module")
def exported(
    make_model: MakeModel, session_tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A thousand drawings, each of another size, with vectors as wide as CLIP's."""
    base = tmp_path_factory.mktemp("browser")
    (base / "photos").mkdir()
    for number in range(COUNT):
        colour, shape = list(COLOURS)[number % 4], SHAPES[number // 4 % 2]
        name = SCRIPT_FILE if number == 0 else f"{number:03d}-{colour}-{shape}.png"
        draw(colour, shape, 24 + number // 8).save(base / "photos" / name)
    model = make_model(perspectives=NAMES, projection_dim=512, vision={"num_branches": len(NAMES)})
    processor = make_processor(session_tokenizer)
    processor.caption_form, processor.caption_perspectives = "{perspective}: {text}", NAMES[1:]
    return Exported(base, model, processor)


@pytest.fixture(scope="module")
def address(exported: Exported) -> Iterator[str]:
    with served(exported.folder) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(params=VISITS.values(), ids=VISITS)
def visit(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Any]:
    name = f"{request.node.originalname}-{request.node.callspec.id}"
    with visited(browser, address, request.param, name, card=".card") as page:
        yield page


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with visited(browser, address, VISITS["desk, light"], "page", card=".card") as opened:
        yield opened


def ask(page: Any, query: str) -> None:
    page.locator("#query").fill(query)
    page.keyboard.press("Enter")
    page.wait_for_selector(".score")
    page.wait_for_function("document.querySelector('#status').textContent.startsWith('The best of')")


def shown(page: Any) -> dict[str, float]:
    pairs = page.locator(".card").evaluate_all("cards => cards.map(({dataset: d}) => [d.imageId, Number(d.score)])")
    return dict(pairs)


def move(page: Any, name: str, value: float) -> None:
    page.locator(f"input[name={name}]").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def assert_pythons(page: Any, exported: Exported, query: str, sliders: dict[str, float]) -> None:
    """The page shows Python's images with Python's scores, which may change places where they are that near."""
    hits = exported.index.search(with_sliders(exported.index, query, sliders), k=COUNT)
    found, every = shown(page), scores_of(hits)
    assert len(found) == 24
    assert [*found.values()] == pytest.approx([every[name] for name in found], abs=1e-5)
    assert [*found.values()] == pytest.approx([hit.score for hit in hits[:24]], abs=1e-5)


def test_search_by_perspective(visit: Any, exported: Exported) -> None:
    ask(visit, "a red square")
    assert_pythons(visit, exported, "a red square", {"fused": 1.0})
    move(visit, "fused", 0)
    move(visit, "style", -0.5)
    move(visit, "main_object", 1)
    visit.wait_for_function("document.querySelector('#status').textContent.startsWith('The best of')")
    assert_pythons(visit, exported, "a red square", {"fused": 0.0, "style": -0.5, "main_object": 1.0})
    named = "short: a circle; not main object: drawn flat^0.5"
    ask(visit, named)
    visit.locator("#weights[disabled]").wait_for()
    assert "the sliders have no effect" in visit.locator("#status").inner_text()
    assert_pythons(visit, exported, named, {})

    visit.locator(".card").nth(1).click()
    panel = visit.locator("#panel")
    panel.wait_for()
    parts = exported.index.explain(named, [*shown(visit)][1]).parts
    for part in parts:
        assert f"{part.score:.3f}" in panel.inner_text()
    visit.keyboard.press("Escape")
    panel.wait_for(state="hidden")
    visit.get_by_role("button", name="Show more").click()
    visit.wait_for_function("document.querySelectorAll('.card').length === 48")


EMBED = """async (texts) => {
  const { Encoder } = await import('./text.js');
  const facts = await (await fetch('search.json')).json();
  const encoder = await Encoder.open(facts.text, () => {});
  const answers = [];
  for (const text of texts) answers.push([encoder.tokens(text), Array.from(await encoder.embed(text))]);
  return answers;
}"""


@torch.no_grad()
def assert_reads_as(page: Any, model: HolisticCLIPModel, processor: HolisticCLIPProcessor) -> None:
    """The page makes Python's tokens and vectors of `TEXTS`, of which the last is too long."""
    found = page.evaluate(EMBED, TEXTS)
    for text, (ids, vector) in zip(TEXTS, found, strict=True):
        tokens = processor(text=text, return_tensors="pt")
        assert ids == tokens["input_ids"][0].tolist(), text
        expected = model.get_text_features(**tokens).pooler_output[0].numpy()
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5)
    assert len(found[-1][0]) == processor.tokenizer.model_max_length


def test_tokens_and_vectors_are_pythons(page: Any, exported: Exported) -> None:
    assert_reads_as(page, exported.model, exported.processor)


@pytest.mark.parametrize("make_tokenizer", [first_kind, second_kind])
def test_siglips_tokens_and_vectors_are_pythons(
    browser: Any, tmp_path: Path, make_tokenizer: Callable[[], Any]
) -> None:
    tokenizer = make_tokenizer()
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH, "pad_token_id": pad, "eos_token_id": end}
    model = from_siglip(make_siglip(**text), perspectives=NAMES, pad_token_id=pad).eval()
    processor = HolisticCLIPProcessor(SiglipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)
    (tmp_path / "photos").mkdir()
    draw("red", "square").save(tmp_path / "photos" / "red.png")
    exported = Exported(tmp_path, model, processor)
    with served(exported.folder) as address, visited(browser, address, {}, "siglip", card=".card") as page:
        assert_reads_as(page, model, processor)


def test_a_thousand_images_take_less_than_a_second(page: Any, exported: Exported) -> None:
    assert len(exported.index) == COUNT
    spent = []
    for number in range(5):  # others may be at work on this machine
        ask(page, f"short: {number} circles; not style: drawn flat on {number}^0.5")
        spent.append(float(page.locator("#results").get_attribute("data-milliseconds")))
    assert min(spent) < 1_000, spent


def test_the_keyboard_is_enough(page: Any) -> None:
    page.keyboard.type("a red square")  # the field has the focus from the start
    page.keyboard.press("Enter")
    page.wait_for_selector(".score")
    for _ in range(2 + len(NAMES)):  # past the button and the sliders
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == NAMES[-1]
    page.keyboard.press("ArrowRight")
    assert page.locator(f"label:has(input[name={NAMES[-1]}]) output").inner_text() == "0.1"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#panel").wait_for()
    page.keyboard.press("Escape")
    page.locator("#panel").wait_for(state="hidden")
    assert page.evaluate("document.activeElement.className") == "card"


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("", "The query is empty."),
        ("colour: red", "The perspective is “colour”; expected one of short, detail,"),
        ('"<|endoftext|>"', "The text has <|endoftext|>, a mark of the tokenizer; expected words."),
        ("<img src=x onerror=alert(1)>: x", "The perspective is “<img src=x onerror=alert(1)>”"),
    ],
)
def test_a_query_that_cannot_be_asked(page: Any, query: str, sentence: str) -> None:
    page.locator("#query").fill(query)
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text(sentence).wait_for()


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    (folder / "vectors.bin").write_bytes((folder / "vectors.bin").read_bytes()[:-4])


def of_another_checkpoint(folder: Path) -> None:
    path = folder / "model" / "export.json"
    path.write_text(path.read_text().replace('"checkpoint": "', '"checkpoint": "0'))


def changed(exported: Exported, base: Path, change: Callable[[Path], None]) -> Path:
    """A copy of the page with one thing changed."""
    folder = base / "page"
    shutil.copytree(exported.folder, folder, ignore=shutil.ignore_patterns("thumbnails"))
    change(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("search.json"), "search.json cannot be loaded (404"),
        (without("vectors.bin"), "vectors.bin cannot be loaded (404"),
        (cut, "vectors.bin has 10239996 bytes; expected 10240000"),
        (of_another_checkpoint, "model/ is of another checkpoint than the vectors. Export both together again"),
        (without("model/onnx/text_model.onnx"), "The text model cannot be loaded ("),
        (without("model/tokenizer.json"), "The text model cannot be loaded ("),
        (without("transformers/ort-wasm-simd-threaded.wasm"), "The text model cannot be loaded ("),
        (without("transformers/transformers.min.js"), "The text model cannot be loaded ("),
        (without("score.js"), "The page cannot start ("),
    ],
)
def test_a_page_that_is_not_whole(
    browser: Any, exported: Exported, tmp_path: Path, change: Callable[[Path], None], sentence: str
) -> None:
    with served(changed(exported, tmp_path, change)) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_role("alert").get_by_text(sentence).wait_for(timeout=20_000)
        page.close()


def test_a_page_opened_as_a_file_and_a_browser_without_webassembly(
    browser: Any, exported: Exported, address: str
) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto((exported.folder / "index.html").as_uri())
    page.get_by_role("alert").get_by_text("This page was opened as a file").wait_for()
    assert page.evaluate("getComputedStyle(document.querySelector('#problem')).borderLeftWidth") == "5px"
    page.close()
    context = browser.new_context()
    context.add_init_script("delete globalThis.WebAssembly")
    page = context.new_page()
    page.goto(address)
    page.get_by_role("alert").get_by_text("This browser has no WebAssembly").wait_for()
    context.close()


def test_thumbnails_are_the_images(exported: Exported) -> None:
    place = exported.index.image_ids.index("999-yellow-circle.png")
    drawn = Image.open(exported.folder / "thumbnails" / f"{place:06d}.webp").convert("RGB")
    assert drawn.getpixel((drawn.width // 2, drawn.height // 2)) == pytest.approx(COLOURS["yellow"], abs=12)
