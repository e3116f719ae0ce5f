"""The JSON interface of the page's server, over loopback: OpenAI's own client, curl's requests, refusals, limits."""

import base64
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from conftest import COLOURS, MAX_LENGTH, draw, make_processor
from holistic_clip_hf import HolisticCLIPModel

gradio = pytest.importorskip("gradio")

import httpx  # noqa: E402

from demo_pages import fill, open_drawings, png, served  # noqa: E402
from holistic_clip_hf.demo import interface  # noqa: E402
from holistic_clip_hf.demo.showcase import Showcase  # noqa: E402
from holistic_clip_hf.demo.uploads import MOST_BYTES  # noqa: E402

TEXTS = ["a red square", "one blue circle, drawn flat on white", "a red square"]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def showcase(
    make_model: Callable[..., HolisticCLIPModel],
    session_tokenizer: CLIPTokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Showcase:
    folder = tmp_path_factory.mktemp("interface") / "drawings"
    fill(folder, draw)
    captions = {f"{colour}-square.png": [("short", f"a {colour} square")] for colour in COLOURS}
    model = make_model(perspectives=["short", "main_object", "style"], fusion="mean")
    return open_drawings(folder, model, make_processor(session_tokenizer), captions)


@pytest.fixture(scope="module")
def page(showcase: Showcase) -> Iterator[gradio.Blocks]:
    with served(showcase) as blocks:
        yield blocks


@pytest.fixture
def ask(page: gradio.Blocks) -> Ask:
    """`ask(path, body, method="POST", **options)` of the server."""

    def ask(path: str, body: Any = None, method: str = "POST", **options: Any) -> httpx.Response:
        given = {"content": body} if isinstance(body, bytes) else {"json": body}
        return httpx.request(method, f"{page.local_url.rstrip('/')}{path}", timeout=60, **{**given, **options})

    return ask


def data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def expected(showcase: Showcase, branch: int | None = None) -> torch.Tensor:
    """The vectors of TEXTS and, behind them, of a blue circle, by the model itself."""
    processor, model = showcase._processor, showcase.model
    with torch.no_grad():
        texts = model.get_text_features(**processor(text=TEXTS, return_tensors="pt", padding=True)).pooler_output
        image = model.get_image_features(**processor(images=[draw("blue", "circle")], return_tensors="pt"))
    return torch.cat([texts, image.pooler_output if branch is None else image.branch_embeds[:, branch]])


@pytest.mark.parametrize(("model", "branch"), [("tiny", None), ("tiny:main_object", 1), ("tiny:style", 2)])
def test_openais_client_gets_the_models_vectors(
    page: gradio.Blocks, showcase: Showcase, model: str, branch: int | None
) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{page.local_url}v1", api_key="unused", max_retries=0)
    inputs = [*TEXTS, data_url(draw("blue", "circle"))]
    for form in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
        found = client.embeddings.create(model=model, input=inputs, **form)
        vectors = [each.embedding for each in found.data]
        if form.get("encoding_format") == "base64":  # only where nobody asked does the client decode
            vectors = [np.frombuffer(base64.b64decode(each), "<f4").tolist() for each in vectors]
        torch.testing.assert_close(torch.tensor(vectors), expected(showcase, branch), **CLOSE)
        assert [each.index for each in found.data] == [0, 1, 2, 3] and found.model == model
    lengths = [len(showcase._processor.tokenizer(text)["input_ids"]) for text in TEXTS]
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(lengths)
    assert client.embeddings.create(model=model, input="one text").data[0].index == 0
    assert [each.id for each in client.models.list()] == ["tiny", "tiny:short", "tiny:main_object", "tiny:style"]
    with pytest.raises(openai.NotFoundError, match="expected one of 'tiny', 'tiny:short'"):
        client.embeddings.create(model="text-embedding-3-small", input="a")
    with pytest.raises(openai.BadRequestError, match="`dimensions` is 3; expected 16"):
        client.embeddings.create(model=model, input="a", dimensions=3)


def test_texts_that_are_cut_are_counted(ask: Ask, showcase: Showcase) -> None:
    found = ask("/v1/embeddings", {"input": ["a " * 60, "b " * 60, "short"]}).json()
    assert found["num_truncated"] == 2
    assert ask("/embed", {"input": "short"}).json()["data"] == ask("/v1/embeddings", {"input": "short"}).json()["data"]
    whole = len(showcase._processor.tokenizer("short")["input_ids"])
    assert found["usage"]["prompt_tokens"] == 2 * MAX_LENGTH + whole


def test_dot_products_rank_as_the_search_does(ask: Ask, showcase: Showcase) -> None:
    folder = Path(showcase.index.manifest.origin["root"])
    names = showcase.index.image_ids
    inputs = ["a red square", *(data_url(Image.open(folder / name)) for name in names)]
    found = ask("/v1/embeddings", {"input": inputs}).json()["data"]
    text, *images = (np.array(each["embedding"]) for each in found)
    scores = {name: float(image @ text) for name, image in zip(names, images, strict=True)}
    hits = ask("/search", {"query": "a red square", "k": 8}).json()["images"]
    assert [hit["id"] for hit in hits] == sorted(scores, key=lambda name: -scores[name])
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-5)


def test_search_tells_why_and_knows_captions(ask: Ask, showcase: Showcase) -> None:
    query, weights = "style: a red square; one circle^0.5", {"short": 1.0, "main_object": -1}
    hits = ask("/search", {"query": query, "weights": weights, "k": 3}).json()["images"]
    assert len(hits) == 3
    for hit in hits:
        assert [part["term"] for part in hit["parts"]] == [
            "style: a red square",
            "short: one circle",
            "main_object: one circle",
        ]
        assert hit["score"] == pytest.approx(sum(part["score"] for part in hit["parts"]), abs=1e-5)
        for part in hit["parts"]:
            assert part["score"] == pytest.approx(sum(part["by_branch"].values()), abs=1e-5)
    asked = ask("/search", {"query": data_url(draw("green", "square"))}).json()["images"]
    assert asked[0]["id"] == "green-square.png"
    assert asked[0]["captions"] == [{"perspective": "short", "text": "a green square"}]


MANY = ["a"] * (interface.MOST_INPUTS + 1)
IMAGE = "data:image/png;base64,"


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/v1/embeddings", b"{", 400, "The request is not JSON"),
        ("/v1/embeddings", b'{"input": "a", "input": "b"}', 400, "stands twice"),
        ("/v1/embeddings", b"[" * 100_000, 400, "The request is not JSON"),
        ("/v1/embeddings", b"\xff", 400, "The request is not JSON"),
        ("/v1/embeddings", ["a"], 400, "expected keys and values"),
        ("/v1/embeddings", {}, 400, "missing keys input"),
        ("/v1/embeddings", {"input": "a", "imput": "b"}, 400, "unknown keys imput"),
        ("/v1/embeddings", {"input": [1, 2]}, 400, "not a list of strings"),
        ("/v1/embeddings", {"input": []}, 400, "0 entries"),
        ("/v1/embeddings", {"input": MANY}, 400, "257 entries"),
        ("/v1/embeddings", {"input": [IMAGE] * 17}, 400, "17 images"),
        ("/v1/embeddings", {"input": ""}, 400, "empty"),
        ("/v1/embeddings", {"input": "a" * 4_001}, 400, "4,001 letters"),
        ("/v1/embeddings", {"input": ["a", "https://example.org/cat.jpg"]}, 400, "Input 1 is an address"),
        ("/v1/embeddings", {"input": "data:image/png,abc"}, 400, "Input 0 cannot be read. A data URL needs"),
        ("/v1/embeddings", {"input": f"{IMAGE}a"}, 400, "Input 0 is not base64"),
        ("/v1/embeddings", {"input": f"{IMAGE}abcd"}, 400, "not an image that can be read here"),
        ("/v1/embeddings", {"input": data_url(Image.new("L", (5_000, 4_001)))}, 400, "too large or too narrow"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, 400, "expected 'float' or 'base64'"),
        ("/v1/embeddings", {"input": "a", "model": 3}, 404, "`model` is 3; expected one of 'tiny'"),
        ("/v1/embeddings", {"input": "a", "model": "x" * 100_000}, 404, "expected one of 'tiny'"),
        ("/search", {"query": 3}, 400, "expected a text"),
        ("/search", {"query": "a", "k": 0}, 400, "expected 1 to 240"),
        ("/search", {"query": "a", "k": True}, 400, "expected 1 to 240"),
        ("/search", {"query": "a", "weights": {"taste": 1}}, 400, "The perspective is"),
        ("/search", {"query": "a", "weights": {"short": "much"}}, 400, "expected an object of numbers"),
        ("/search", {"query": "a", "weights": ["short"]}, 400, "expected an object of numbers"),
        ("/search", {"query": "a", "weights": {"short": 10**400}}, 400, "expected an object of numbers"),
        ("/search", {"query": "a", "weights": {"short": 0}}, 400, "All sliders are at zero"),
        ("/search", b'{"query": "a", "weights": {"short": NaN}}', 400, "expected an object of numbers"),
        ("/search", {"query": "taste: sweet"}, 400, "The perspective is"),
        ("/search", {"query": "https://example.org/cat.jpg"}, 400, "is an address"),
        ("/search", {"query": f"{IMAGE}abcd"}, 400, "not an image that can be read here"),
    ],
)
def test_mistakes_are_one_sentence(ask: Ask, path: str, body: Any, status: int, sentence: str) -> None:
    answer = ask(path, body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert sentence in error["message"] and "\n" not in error["message"] and len(answer.content) < 1_000
    assert error["type"] == "invalid_request_error"


def test_other_methods_names_and_pages_are_refused_in_json(ask: Ask) -> None:
    for path, method in (("/v1/embeddings", "GET"), ("/search", "PUT"), ("/v1/models", "POST")):
        answer = ask(path, {"input": "a"}, method)
        assert answer.status_code == 405 and answer.headers["allow"] in ("GET", "POST")
        assert "expected" in answer.json()["error"]["message"]
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        for path in interface.JSON_PATHS:
            answer = ask(path, {"input": "a"}, headers=headers)
            assert answer.status_code == 403 and answer.json()["error"]["message"].startswith("This page")
    large = ask("/v1/embeddings", b"x" * (MOST_BYTES + 2**20 + 1))
    assert large.status_code == 413 and "bytes" in large.json()["error"]["message"]

    def stream() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 2**19

    undeclared = ask("/v1/embeddings", b"", content=stream())
    assert undeclared.status_code == 413 and "bytes" in undeclared.json()["error"]["message"]


@pytest.mark.slow
def test_many_at_once_are_asked_to_come_back(ask: Ask, showcase: Showcase) -> None:
    answers: list[httpx.Response] = []
    with showcase._lock:
        threads = [
            threading.Thread(target=lambda: answers.append(ask("/v1/embeddings", {"input": "a"})))
            for _ in range(interface.MOST_AT_WORK + 4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=2)
        refused = list(answers)
    for thread in threads:
        thread.join(timeout=60)
    assert [each.status_code for each in refused] == [429] * 4 and refused[0].headers["retry-after"] == "1"
    assert sorted(each.status_code for each in answers) == [200] * interface.MOST_AT_WORK + [429] * 4
    assert interface.JSONEndpoint.num_at_work == 0


def test_a_fault_of_the_server_says_so_and_nothing_else(
    ask: Ask, showcase: Showcase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(showcase, "embed", fail)
    answer = ask("/v1/embeddings", {"input": "a"})
    assert answer.status_code == 500 and "secret" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"


def test_a_fusion_without_a_vector_is_asked_by_branch(ask: Ask, showcase: Showcase) -> None:
    config, before = showcase.model.config, showcase.model.config.fusion
    config.fusion = "max"
    try:
        answer = ask("/v1/embeddings", {"input": "a"})
        assert answer.status_code == 400 and "fusion is 'max'" in answer.json()["error"]["message"]
        assert ask("/v1/embeddings", {"input": "a", "model": "tiny:style"}).status_code == 200
    finally:
        config.fusion = before
