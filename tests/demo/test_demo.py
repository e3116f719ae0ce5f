"""The page over loopback: what it answers, what it refuses, and what never leaves it."""

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from conftest import COLOURS, SHAPES, draw, make_processor
from holistic_clip_hf import HolisticCLIPModel

gradio = pytest.importorskip("gradio")
pytest.importorskip("gradio_client")

import httpx  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

import holistic_clip_hf.demo  # noqa: E402
from demo_pages import LOOPBACK, SCRIPT, SCRIPT_FILE, fill, noted_addresses, open_drawings, png, served  # noqa: E402
from holistic_clip_hf.demo.showcase import Showcase  # noqa: E402
from holistic_clip_hf.demo.uploads import MOST_BYTES  # noqa: E402

SECRET = "the contents of a file that nobody may see"
FUSED, NEUTRAL = (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0)


class Cards(HTMLParser):
    """The ids of cards in a piece of HTML, its text, and everything in it that could run."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.words, self.dangers = "", []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "data-image-id"]
        self.dangers += [f"<{tag} {name}>" for name, _ in attrs if name.startswith("on")]
        self.dangers += [f"<{tag}>" for known in ("script", "svg", "iframe", "a", "form") if tag == known]
        sources = [value or "" for name, value in attrs if name in ("src", "href")]
        self.dangers += [source for source in sources if not source.startswith("data:image/webp;base64,")]

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def addresses() -> list[str]:
    return noted_addresses()


@pytest.fixture(scope="module")
def showcase(
    make_model: Callable[..., HolisticCLIPModel],
    session_tokenizer: CLIPTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
    addresses: list[str],
) -> Showcase:
    folder = tmp_path_factory.mktemp("demo") / "drawings"
    fill(folder, draw)
    (folder.parent / "secret.txt").write_text(SECRET)
    processor = make_processor(session_tokenizer)
    captions = {f"{colour}-{shape}.png": [("short", f"a {colour} {shape}")] for colour in COLOURS for shape in SHAPES}
    captions[SCRIPT_FILE] = [("short", SCRIPT), ("style", "drawn flat")]
    return open_drawings(folder, make_model(perspectives=["short", "main_object", "style"]), processor, captions)


@pytest.fixture(scope="module")
def page(showcase: Showcase) -> Iterator[gradio.Blocks]:
    with served(showcase) as blocks:
        yield blocks


@pytest.fixture(scope="module")
def client(page: gradio.Blocks) -> Client:
    return Client(page.local_url, verbose=False)


def ranked(showcase: Showcase, text: str, weights: dict[str, float]) -> list[str]:
    """Image ids by what the model itself says of each image, one after the other.

    What counts against, beside others, does so from one standard deviation above its mean on.
    """
    found: dict[str, dict[str, float]] = {}
    for path in sorted(Path(showcase.index.manifest.origin["root"]).iterdir()):
        inputs = showcase._processor(images=[Image.open(path)], text=[text], return_tensors="pt")
        with torch.no_grad():
            output = showcase.model(**inputs)
        by_name = dict(zip(showcase.branches, (output.branch_embeds[0] @ output.text_embeds[0]).tolist(), strict=True))
        by_name["fused"] = float(output.image_embeds[0] @ output.text_embeds[0])
        found[path.name] = by_name
    scores = dict.fromkeys(found, 0.0)
    for name, weight in weights.items():
        values = np.array([by_name[name] for by_name in found.values()])
        if weight < 0 and any(each > 0 for each in weights.values()):
            values = np.maximum(values - values.mean() - values.std(), 0)
        scores = {image_id: scores[image_id] + weight * value for image_id, value in zip(scores, values, strict=True)}
    return sorted(scores, key=lambda name: -scores[name])


def test_a_text_finds_images_in_the_order_of_the_model(client: Client, showcase: Showcase) -> None:
    found = client.predict("a red square", *FUSED, api_name="/search")
    assert Cards(found).ids == ranked(showcase, "a red square", {"fused": 1})


@pytest.mark.parametrize(
    ("text", "weights", "expected"),
    [
        ("one circle", (0.0, 0.0, -1.5, 0.0), {"main_object": -1.5}),
        ("one circle", (0.5, 2.0, 0.0, -1.0), {"fused": 0.5, "short": 2.0, "style": -1.0}),
        ("not style: one circle", (0.0, 1.0, 0.0, 0.0), {"style": -1.0}),
        ("not one circle^0.5", (0.0, 2.0, 0.0, 0.0), {"short": -1.0}),
    ],
)
def test_perspectives_count_as_the_sliders_say(
    client: Client, showcase: Showcase, text: str, weights: tuple[float, ...], expected: dict[str, float]
) -> None:
    found = client.predict(text, *weights, api_name="/search")
    assert Cards(found).ids == ranked(showcase, "one circle", expected)


def test_an_empty_text_shows_images_from_everywhere(client: Client) -> None:
    found = client.predict("  ", *FUSED, api_name="/search")
    assert len(set(Cards(found).ids)) == 8 and "hc-score" not in found


@pytest.mark.parametrize(
    ("text", "weights", "sentence"),
    [
        ("a dog", (0.0, *NEUTRAL), "All sliders are at zero"),
        ("taste: sweet", FUSED, "The perspective is"),
        ("x" * 5_000, FUSED, "letters; expected up to"),
    ],
)
def test_what_cannot_be_asked_is_said(client: Client, text: str, weights: tuple[float, ...], sentence: str) -> None:
    found = client.predict(text, *weights, api_name="/search")
    assert sentence in Cards(found).words and not Cards(found).ids


def test_an_image_is_seen_from_all_sides(client: Client, showcase: Showcase) -> None:
    found = Cards(client.predict("blue-square.png", "a blue square", api_name="/inspect"))
    for heading in ("What each branch adds", "Where each branch looks", "What speaks for", "Words and patches"):
        assert heading in found.words
    assert "a blue square" in found.words and "main object" in found.words and found.dangers == []


def test_an_uploaded_image_finds_itself_and_its_captions(client: Client, showcase: Showcase, tmp_path: Path) -> None:
    draw("green", "circle").save(tmp_path / "mine.png")
    found, captions, maps = client.predict(handle_file(tmp_path / "mine.png"), *FUSED, api_name="/look")
    assert Cards(found).ids[0] == "green-circle.png"
    pixels = showcase._processor(images=[draw("green", "circle")], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        branches = showcase.model.get_image_features(pixels).branch_embeds[0]
    for branch, block in zip(branches, captions.split("<ol>")[1:], strict=True):
        scores = {}
        for text in showcase.texts:
            tokens = showcase._processor(text=[text], return_tensors="pt")
            with torch.no_grad():
                scores[text] = float(branch @ showcase.model.get_text_features(**tokens).text_embeds[0])
        words = Cards(f"<ol>{block}").words
        best = sorted(scores, key=lambda text: -scores[text])[:5]
        assert [words.index(text) for text in best] == sorted(words.index(text) for text in best)
    assert "Where each branch looks" in maps


def test_scripts_in_names_captions_and_queries_are_text(client: Client, tmp_path: Path) -> None:
    draw("red", "circle").save(tmp_path / "evil.png")
    found = client.predict(SCRIPT, *FUSED, api_name="/search")
    similar, captions, _ = client.predict(handle_file(tmp_path / "evil.png"), *FUSED, api_name="/look")
    panel = client.predict(SCRIPT_FILE, f'"{SCRIPT}"', api_name="/inspect")
    for piece in (found, similar, captions, panel):
        assert Cards(piece).dangers == []
    assert SCRIPT_FILE in Cards(found).ids and SCRIPT_FILE in Cards(found).words
    assert SCRIPT in Cards(captions).words and SCRIPT in Cards(panel).words
    refused = client.predict(f"{SCRIPT}: x", *FUSED, api_name="/search")
    assert Cards(refused).dangers == [] and SCRIPT in Cards(refused).words


@pytest.mark.parametrize("image_id", ["../secret.txt", "/etc/passwd", "..", "", "nothing.png", "x\0y", "*"])
def test_only_images_of_the_index_are_shown(client: Client, image_id: str) -> None:
    assert client.predict(image_id, "", api_name="/inspect") == ""


def test_no_file_is_served(page: gradio.Blocks, showcase: Showcase) -> None:
    root = Path(showcase.index.manifest.origin["root"])
    index = showcase.index.directory / "index.json"
    wanted = ["/etc/passwd", "../../../../../../etc/passwd", "%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/proc/self/environ"]
    wanted += [str(root.parent / "secret.txt"), f"{root}/../secret.txt", str(root / "red-square.png"), str(index)]
    wanted += [holistic_clip_hf.demo.__file__, "setup.cfg", "file:///etc/passwd"]
    wanted += ["http://127.0.0.1:1/x", "HTTPS://example.org/"]
    routes = ["/gradio_api/file=", "/gradio_api/file/", "/file=", "/gradio_api/proxy=", "/static/", "/assets/"]
    with httpx.Client(base_url=page.local_url) as visitor:
        for route, path in itertools.product(routes, wanted):
            answer = visitor.get(f"{route}{path}")
            assert answer.status_code in (400, 403, 404), (route, path, answer.status_code)
            assert SECRET not in answer.text and "root:" not in answer.text


@pytest.mark.parametrize("place", ["secret", "/etc/passwd", "http://127.0.0.1:1/image.png"])
def test_no_path_or_address_passes_for_an_upload(page: gradio.Blocks, showcase: Showcase, place: str) -> None:
    if place == "secret":
        place = str(Path(showcase.index.manifest.origin["root"]) / "red-square.png")
    file = {"path": place, "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
    address = f"{page.local_url}gradio_api/call/look"
    started = httpx.post(address, json={"data": [file, *FUSED]})
    answer = httpx.get(f"{address}/{started.json()['event_id']}", timeout=30).text
    assert "event: error" in answer and "webp" not in answer and SECRET not in answer


def test_data_in_the_address_is_no_upload(page: gradio.Blocks) -> None:
    file = {"path": None, "url": "data:image/png;base64,AAAA", "meta": {"_type": "gradio.FileData"}}
    address = f"{page.local_url}gradio_api/call/look"
    started = httpx.post(address, json={"data": [file, *FUSED]})
    assert "event: error" in httpx.get(f"{address}/{started.json()['event_id']}", timeout=30).text


def test_large_requests_are_refused(page: gradio.Blocks) -> None:
    address, large = f"{page.local_url}gradio_api/upload", os.urandom(MOST_BYTES + 1)
    assert httpx.post(address, files={"files": ("a.png", large)}, timeout=30).status_code == 413
    whole = png(Image.effect_noise((250, 250), 50))
    assert httpx.post(address, files={"files": ("a.png", whole)}, timeout=30).status_code == 200
    for body in (large + large, iter([large, large])):  # the second does not say how long it is
        call = f"{page.local_url}gradio_api/call/search"
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # it may hang up before all is sent
            assert httpx.post(call, content=body, timeout=30).status_code == 413


def test_what_is_no_image_is_refused_in_a_sentence(client: Client, tmp_path: Path) -> None:
    whole = png(Image.effect_noise((200, 200), 50))
    header = whole[:16] + (60_000).to_bytes(4, "big") * 2
    for name, contents, sentence in (
        ("notes.png", b"not an image at all", "not an image that can be read here"),
        (
            "page.svg",
            b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
            "not an image that can be read here",
        ),
        ("half.png", whole[: len(whole) // 2], "damaged"),
        ("bomb.png", header + whole[24:], "image"),
        ("narrow.png", png(Image.new("1", (5_000, 2))), "too narrow"),
    ):
        (tmp_path / name).write_bytes(contents)
        expected = AppError if name == "half.png" else httpx.HTTPStatusError  # the others are not even stored
        with pytest.raises(expected) as raised:
            client.predict(handle_file(tmp_path / name), *FUSED, api_name="/look")
        error = raised.value
        assert sentence in (error.response.text if isinstance(error, httpx.HTTPStatusError) else str(error))


def test_fifty_queries_at_once_get_each_its_own_answer(client: Client, showcase: Showcase) -> None:
    texts = [f"{colour} {shape} {number}" for number in range(7) for colour in COLOURS for shape in SHAPES][:50]
    jobs = [client.submit(text, *FUSED, api_name="/search") for text in texts]
    jobs += [client.submit("red-square.png", text, api_name="/inspect") for text in texts[:5]]
    answers = [job.result(timeout=120) for job in jobs]
    for text, found in zip(texts, answers[:50], strict=True):
        assert Cards(found).ids == [hit.image_id for hit in showcase.search(text)]
    for text, panel in zip(texts, answers[50:], strict=False):
        assert text in Cards(panel).words


@pytest.mark.slow
def test_two_hundred_queries_at_once_lose_nothing(page: gradio.Blocks, showcase: Showcase) -> None:
    """From twenty visitors, each with ten at once; half of them move a slider."""
    patient = {"timeout": 300}  # a client gives up after five seconds, and others may load the machine
    visitors = [Client(page.local_url, verbose=False, httpx_kwargs=patient) for _ in range(20)]
    asked = []
    for number in range(200):
        words = f"{list(COLOURS)[number % 4]} {SHAPES[number % 2]} {number}"
        asked.append((words, FUSED if number % 2 else (0.5, 0.0, 1.0, -0.5)))
    jobs = [
        visitors[number % 20].submit(text, *weights, api_name="/search")
        for number, (text, weights) in enumerate(asked)
    ]
    answers = [job.result(timeout=300) for job in jobs]
    names = ["fused", *showcase.index.perspectives]
    for (text, weights), found in zip(asked, answers, strict=True):
        hits = showcase.search(text, dict(zip(names, weights, strict=True)))
        assert Cards(found).ids == [hit.image_id for hit in hits]
        assert [f"{hit.score:.2f}" for hit in hits] == re.findall(r'<span class="hc-score">(-?[\d.]+)', found)


def test_the_page_is_on_loopback_and_talks_to_nobody(
    page: gradio.Blocks, client: Client, addresses: list[str]
) -> None:
    assert page.server_name == "127.0.0.1" and page.share is False and page.analytics_enabled is False
    assert page.allowed_paths == [] and page.max_file_size == MOST_BYTES
    client.predict("a red square", *FUSED, api_name="/search")
    assert addresses and set(addresses) <= set(LOOPBACK)


def test_nothing_is_written_beside_the_code(page: gradio.Blocks) -> None:
    folder = Path(holistic_clip_hf.demo.__file__).parent
    assert {path.suffix for path in folder.iterdir() if path.is_file()} == {".py", ".css", ".js"}
