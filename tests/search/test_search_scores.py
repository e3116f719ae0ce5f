"""Whether what is found is what plain loops over single images find: every fusion, term and kind of vector."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch import nn

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.search import FUSED, DatasetImages, Filter, Hit, SearchIndex, Term, index_images
from holistic_clip_hf.search import index as index_module

MakeModel = Callable[..., HolisticCLIPModel]
NAMES = ["short", "main_object", "style"]
FUSIONS: dict[str, dict[str, Any]] = {
    "centroid": {},
    "mean": {"fusion": "mean"},
    "weighted": {"fusion": "weighted", "branch_weights": [1.0, 0.0, 3.0]},
    "routed": {"fusion": "routed"},
    "max": {"fusion": "max"},
    "softmax": {"fusion": "softmax", "fusion_scale": 7.0},
    "softmax by logit scale": {"fusion": "softmax"},
}
QUERIES: list[Any] = [
    "a red square",
    "style: one circle",
    "main object: a red square; short: blue^0.25; not style: all yellow^1.5; not a circle",
    "not main object: a red square",
    [Term("red"), Term("red", perspective="short", weight=2.0), Term("red", weight=-0.5)],
]


@pytest.fixture
def make_index(
    make_model: MakeModel, processor: HolisticCLIPProcessor, corpus: Dataset, tmp_path: Path
) -> Callable[..., SearchIndex]:
    """`make_index(model_options, **options)`: of the eight drawings, in segments of three."""

    def make(options: dict[str, Any] | None = None, **indexing: Any) -> SearchIndex:
        model = make_model(perspectives=NAMES, **(options or {}))
        if model.branch_fusion.router is not None:
            nn.init.normal_(model.branch_fusion.router.weight, generator=torch.Generator().manual_seed(5))
        images = DatasetImages(indexing.pop("dataset", corpus), columns=indexing.pop("columns", []))
        index_images(tmp_path / "index", images, model, processor, rows_per_segment=3, batch_size=2, **indexing)
        return SearchIndex(tmp_path / "index", model, processor, images=images)

    return make


def plain_vectors(index: SearchIndex, image: Image.Image) -> list[list[float]]:
    """Of one image, encoded alone."""
    asker = index._asker
    pixels = asker.processor(images=[image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return asker.model.get_image_features(pixels).branch_embeds[0].tolist()


def plain_text(index: SearchIndex, text: str) -> list[float]:
    tokens = index._asker.processor(text=[text], return_tensors="pt")
    with torch.no_grad():
        return index._asker.model.get_text_features(**tokens).text_embeds[0].tolist()


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def plain_fusion(model: HolisticCLIPModel, similarities: list[float], text: list[float]) -> float:
    """As the classes of `fusion_holistic_clip` say it, one number at a time."""
    config = model.config
    if config.fusion == "max":
        return max(similarities)
    if config.fusion == "softmax":
        scale = math.exp(model.logit_scale.item()) if config.fusion_scale is None else config.fusion_scale
        weights = [math.exp(scale * each) for each in similarities]
    elif config.fusion == "routed":
        router = model.branch_fusion.router
        rows = zip(router.weight.tolist(), router.bias.tolist(), strict=True)
        weights = [math.exp(dot(row, text) * len(text) ** 0.5 + bias) for row, bias in rows]
    else:
        weights = config.branch_weights or [1.0] * len(similarities)
    return dot(weights, similarities) / sum(weights)


def plain_similarity(index: SearchIndex, term: Term, branches: list[list[float]]) -> float:
    text = plain_text(index, term.text or "")
    similarities = [dot(branch, text) for branch in branches]
    if term.perspective != FUSED:
        return similarities[NAMES.index(term.perspective)]
    fused = plain_fusion(index._asker.model, similarities, text)
    if index._asker.model.config.fusion == "centroid":
        mean = [math.fsum(numbers) / len(branches) for numbers in zip(*branches, strict=True)]
        fused /= math.hypot(*mean)
    return fused


def plain_scores(index: SearchIndex, terms: list[Term], images: dict[str, Image.Image]) -> dict[str, float]:
    """The scores of a whole gallery. Beside others, a term against counts from one deviation above the mean on."""
    branches = {name: plain_vectors(index, image) for name, image in images.items()}
    scores = dict.fromkeys(images, 0.0)
    for term in terms:
        found = {name: plain_similarity(index, term, vectors) for name, vectors in branches.items()}
        if term.weight < 0 and any(each.weight > 0 for each in terms):
            mean = math.fsum(found.values()) / len(found)
            spread = math.sqrt(math.fsum((each - mean) ** 2 for each in found.values()) / len(found))
            found = {name: max(0.0, each - mean - spread) for name, each in found.items()}
        scores = {name: score + term.weight * found[name] for name, score in scores.items()}
    return scores


def images_of(corpus: Dataset) -> dict[str, Image.Image]:
    return {row["image_id"]: row["image"] for row in corpus}


def assert_same(hits: list[Hit], expected: dict[str, float]) -> None:
    order = sorted(expected, key=lambda image_id: -expected[image_id])
    assert [hit.image_id for hit in hits] == order[: len(hits)]
    assert [hit.score for hit in hits] == pytest.approx([expected[each] for each in order[: len(hits)]], abs=2e-6)


@pytest.mark.parametrize("options", FUSIONS.values(), ids=FUSIONS)
def test_scores_are_those_of_plain_loops(
    make_index: Callable[..., SearchIndex], corpus: Dataset, options: dict[str, Any]
) -> None:
    index = make_index(options)
    for query in QUERIES:
        terms = index.parse(query)
        expected = plain_scores(index, terms, images_of(corpus))
        hits = index.search(query, k=5)
        assert_same(hits, expected)
        for hit in hits:
            assert [part.term for part in hit.parts] == terms
            assert hit.score == pytest.approx(sum(part.score for part in hit.parts), abs=1e-12)
            for part in hit.parts:
                assert part.score == pytest.approx(sum(part.by_branch.values()), abs=1e-12)
                names = NAMES if part.term.perspective == FUSED else [part.term.perspective]
                assert list(part.by_branch) == names
        assert index.explain(query, hits[0].image_id) == hits[0]
        fused = index.search("a red square", k=1)[0].parts[0].by_branch
        assert options.get("fusion") != "max" or sorted(value != 0 for value in fused.values()) == [False, False, True]


@pytest.mark.parametrize("fusion", ["centroid", "mean", "weighted"])
def test_one_fused_vector(make_index: Callable[..., SearchIndex], corpus: Dataset, fusion: str) -> None:
    index = make_index(FUSIONS[fusion], vectors="fused")
    query = "a red square; not all yellow^0.5"
    expected = plain_scores(index, index.parse(query), images_of(corpus))
    assert_same(index.search(query, k=8), expected)
    assert index.perspectives == []
    with pytest.raises(ValueError, match="perspective is 'style'"):
        index.search("style: one circle")


def test_an_example_image(make_index: Callable[..., SearchIndex], corpus: Dataset) -> None:
    index = make_index(FUSIONS["routed"])
    example, shares = corpus[2]["image"], [1 / 3] * 3
    likeness = {}
    for row in corpus:
        pairs = zip(plain_vectors(index, row["image"]), plain_vectors(index, example), strict=True)
        likeness[row["image_id"]] = [dot(a, b) for a, b in pairs]
    assert_same(index.search(Term(image=example)), {name: dot(shares, each) for name, each in likeness.items()})
    by_style = Term(image=example, perspective="style", weight=-2.0)
    assert_same(index.search(by_style), {name: -2 * each[2] for name, each in likeness.items()})
    both = [Term("a red square", perspective="short"), Term(image=example, perspective="style", weight=0.5)]
    words = plain_scores(index, both[:1], images_of(corpus))
    assert_same(index.search(both, k=3), {name: words[name] + 0.5 * each[2] for name, each in likeness.items()})


@pytest.mark.parametrize("weights", [[1.0, 0.0, 3.0], [0.0, 2.0, 0.0]])
def test_like_this_but_otherwise(
    make_index: Callable[..., SearchIndex], corpus: Dataset, weights: list[float]
) -> None:
    """The example by the other branches, in their shares; equal ones if the fusion gives these no weight."""
    index = make_index({"fusion": "weighted", "branch_weights": weights})
    example = corpus[2]["image"]
    shares = [weights[0], 0.0, weights[2]] if any(weights[::2]) else [1.0, 0.0, 1.0]
    expected = {}
    for row in corpus:
        own, given = plain_vectors(index, row["image"]), plain_vectors(index, example)
        likeness = dot(shares, [dot(a, b) for a, b in zip(own, given, strict=True)]) / sum(shares)
        expected[row["image_id"]] = likeness + 0.5 * dot(own[1], plain_text(index, "a red square"))
    terms = index.parse("but main object: a red square^0.5", like=example)
    hits = index.search(terms, k=5)
    assert_same(hits, expected)
    assert [list(part.by_branch) for part in hits[0].parts] == [["short", "style"], ["main_object"]]


def test_what_is_usual_is_no_fault(make_index: Callable[..., SearchIndex], corpus: Dataset) -> None:
    """A filter makes another gallery, in which something else is usual; a term against never adds to a score."""
    index = make_index()
    terms = index.parse("short: a red square; not style: all yellow^1.5; not a circle")
    circles = {name: image for name, image in images_of(corpus).items() if name.endswith("circle")}
    expected = plain_scores(index, terms, circles)
    assert_same(index.search(terms, where=Filter(path="*circle")), expected)
    hits = index.search(terms)
    against = [part for hit in hits for part in hit.parts if part.term.weight < 0]
    assert all(part.score <= 0 for part in against) and any(part.score < 0 for part in against)
    assert sum(not part.score for part in against) > len(against) / 2  # most show no more of it than is usual
    assert expected[circle := hits[0].image_id.replace("square", "circle")] != index.explain(terms, circle).score


def test_ties_go_by_image_id(make_index: Callable[..., SearchIndex], corpus: Dataset) -> None:
    """The same drawing many times over: in different segments and places of a batch."""
    names = [f"copy-{number:02d}" for number in range(14)]
    dataset = Dataset.from_dict({"image_id": names[::-1], "image": [corpus[0]["image"]] * 14}).cast_column(
        "image", corpus.features["image"]
    )
    make_index(dataset=dataset.select(range(10)))  # the first ids come last, in rows of their own
    index = make_index(dataset=dataset)
    for block in index._vectors.values():  # batches of one and of two may round differently
        assert np.allclose(np.concatenate(block), block[0][0], atol=1e-6)
    index._vectors = {
        name: [np.repeat(blocks[0][:1], len(each), axis=0) for each in blocks]
        for name, blocks in index._vectors.items()
    }
    for query in QUERIES:
        assert [hit.image_id for hit in index.search(query, k=5)] == names[:5]
        assert len({hit.score for hit in index.search(query, k=14)}) == 1


def test_filters_and_more_results_than_images(make_index: Callable[..., SearchIndex], corpus: Dataset) -> None:
    colours = [name.split("-")[0] for name in corpus["image_id"]]
    index = make_index(dataset=corpus.add_column("colour", colours), columns=["colour"])
    hits = index.search("a circle", k=10_000)
    assert len(hits) == len(index) == 8
    for where, kept in (
        (Filter({"colour": ["red", "blue"]}), lambda name: name.startswith(("red", "blue"))),
        (Filter(path="*-circle"), lambda name: name.endswith("circle")),
        (Filter({"colour": "nowhere"}), lambda name: False),
    ):
        assert index.search("a circle", k=20, where=where) == [hit for hit in hits if kept(hit.image_id)]
    assert hits[0].columns == {"colour": hits[0].image_id.split("-")[0]}
    with pytest.raises(ValueError, match="no column 'artist'.*expected colour"):
        index.search("a circle", where=Filter({"artist": "x"}))


@pytest.mark.parametrize("lookup", ["ivf", "hnsw"])
def test_an_approximate_index_decides_by_exact_scores(
    make_index: Callable[..., SearchIndex], lookup: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "FEW", 0)
    index = make_index(FUSIONS["routed"], lookup=lookup)
    assert index._neighbours is not None
    for query in QUERIES:
        assert index.search(query, k=4) == index.search(query, k=4, exact=True)
        some = Filter(path="*-circle")
        assert index.search(query, where=some) == index.search(query, where=some, exact=True)


def test_fifty_at_once(make_index: Callable[..., SearchIndex]) -> None:
    index = make_index()
    index._asker.model.train()  # each query leaves the model as it was, and none sees dropout
    queries = [f"{name}: a {colour} square; not {colour} circle" for name in NAMES for colour in ("red", "blue")] * 9
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda query: index.search(query, k=3), queries))
    assert found == [index.search(query, k=3) for query in queries]
    assert index._asker.model.training


@pytest.mark.parametrize("k", [0, -1, 10_001, 2.5, True])
def test_how_many(make_index: Callable[..., SearchIndex], k: Any) -> None:
    with pytest.raises(ValueError, match="`k` is .*expected 1 to 10,000"):
        make_index().search("red", k=k)


def test_a_model_that_lost_its_mind(make_index: Callable[..., SearchIndex]) -> None:
    index = make_index()
    index._asker.model.text_projection.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        index.search("style: red")
