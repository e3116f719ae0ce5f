"""A study asked for attributes, on drawn shapes: every way by hand, the page, and what is refused."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Value
from PIL import Image, ImageDraw
from torch.nn import functional as F

from holistic_clip_hf.corpus.build import build_corpus, corpus_features
from holistic_clip_hf.evaluation.attributes import FORMS, WITHOUT, AttributeQuery, Wish, measure_query
from training import attribute_study, attribute_tables
from training import study as study_module
from training.attribute_study import SCORES, Ground, optimised_scores
from training.emoji.traits import FACETS, drawing_traits
from training.rivals import OF_ANY, OF_BRANCHES, OF_ONE_VECTOR, WAYS, WordSearch, optimised_queries
from training.study import Study, load_results, load_study

ROOT = Path(__file__).parents[2]
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
SHAPES = ("square", "bar", "ring")
PERSPECTIVES = ["short", "nouns", "category", "palette"]


def rows() -> Iterator[dict[str, object]]:
    """Twelve drawings by each of three painters; validated on the second, tested on the third."""
    for painter, split in (("ann", "train"), ("bob", "validation"), ("cid", "test")):
        for number, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
            image = Image.new("RGB", (24, 24), "white")
            box = {"square": (4, 4, 20, 20), "bar": (2, 10, 22, 14), "ring": (6, 6, 18, 18)}[shape]
            ImageDraw.Draw(image).rectangle(box, fill=COLOURS[colour])
            texts = {
                "short": f"{shape} {number}",
                "nouns": f"{shape}, thing",
                "category": f"{shape}s, from {'wide' if shape == 'bar' else 'compact'} things",
                "palette": f"mostly {colour}, with a little white" if number % 2 else f"all {colour}",
            }
            captions = [{"perspective": name, "text": text, "source": "drawn"} for name, text in texts.items()]
            yield {
                "image_id": f"{painter}/{number}",
                "image": image,
                "captions": captions,
                "artist_split": split,
                "artist": painter,
            }


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two methods, trained for four steps into `work` beside the study."""
    folder = tmp_path_factory.mktemp("study")
    features = corpus_features(artist_split=Value("string"), artist=Value("string"))
    build_corpus(folder / "corpus", {"all": rows}, features, fingerprint="1")
    recipe = yaml.safe_load((ROOT / "training/recipes/emoji.yaml").read_text())
    recipe |= {"corpus": str(folder / "corpus"), "image_size": 32, "tokenizer": {"vocab_size": 530, "max_length": 24}}
    recipe["model"]["text_config"] |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    recipe["model"]["vision_config"]["backbone_config"] |= {"embedding_size": 8, "hidden_sizes": [8, 16, 32]}
    recipe["training"] |= {"max_steps": 4, "warmup_steps": 1, "per_device_train_batch_size": 6, "logging_steps": 1}
    recipe["training"] |= {"dataloader_num_workers": 0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    content: dict[str, Any] = {
        "recipe": str(folder / "recipe.yaml"),
        "column": "artist",
        "held_out": ["cid", "cid"],
        "perspectives": PERSPECTIVES,
        "training": {"eval_strategy": "no", "save_strategy": "no"},
        # Twelve drawings: two right ones have to be enough, among three wrong ones.
        "queries": {"most": 3, "fewest": 2, "num_negatives": 3},
        "methods": {
            "one_to_many": {
                "perspectives": ["all"],
                "slots": PERSPECTIVES,
                "model": {"fusion": "mean"},
                "caption_form": "{perspective}: {text}",
                "ways": [*OF_ANY, *OF_ONE_VECTOR],
                "replicates": 1,
            },
            "ours": {
                "perspectives": PERSPECTIVES,
                "slots": PERSPECTIVES,
                "ways": [*OF_ANY, *OF_BRANCHES],
                "replicates": 1,
            },
        },
    }
    (folder / "shapes.yaml").write_text(yaml.safe_dump(content))
    call(study_module.main, folder, "--work-dir", str(folder / "work"))
    return load_study(folder / "shapes.yaml")


def call(verb: Callable[[], None], folder: Path, *options: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["verb", "--study", str(folder / "shapes.yaml"), *options])
        verb()


@pytest.fixture(scope="module")
def rows_of_runs(study: Study) -> dict[str, dict[str, Any]]:
    """What was measured, by method."""
    folder = study.path.parent
    call(attribute_study.main, folder, "--work-dir", str(folder / "work"))
    return {row["model"]: row for row in load_results(study.results.with_name("attribute_results.jsonl"))}


def ground_of(study: Study, name: str) -> Ground:
    folder = study.path.parent
    return Ground(study, name, 0, folder / "corpus", folder / "work" / "shapes" / f"{name}-0")


def test_traits_are_what_captions_name() -> None:
    captions = {
        "short": ["a red heart and a heart"],
        "nouns": ["love, red thing"],
        "category": ["hearts, from smileys, from emotion"],
        "palette": ["mostly dark red, with white and a little light blue"],
    }
    assert {facet: set(each[0]) for facet, each in drawing_traits({k: [v] for k, v in captions.items()}).items()} == {
        "colour": {"dark red", "white", "light blue"},
        "kind": {"hearts, from smileys"},
        "group": {"emotion"},
        "object": {"red", "heart"},
        "keyword": {"love", "red thing"},
    }


def test_every_way_is_measured_once(study: Study, rows_of_runs: dict[str, dict[str, Any]]) -> None:
    queries = json.loads(study.results.with_name("queries.json").read_text())["cid"]
    assert {query["form"] for query in queries} == set(FORMS)
    asked = {query["query"]: query["right"] for query in queries}
    assert asked["colour: red"] == 3 and asked["kind: bars"] == 4 and asked["group: compact things"] == 8
    for name, method in study.methods.items():
        ways = rows_of_runs[name]["ways"]
        assert list(ways) == method.ways and rows_of_runs[name]["plan"] and rows_of_runs[name]["split"] == "cid"
        assert all(len(found["recall_of_queries"]) == len(queries) for found in ways.values())
    assert {way for row in rows_of_runs.values() for way in row["ways"]} == set(WAYS)
    path = study.results.with_name("attribute_results.jsonl")
    before = path.read_bytes()
    call(attribute_study.main, study.path.parent, "--work-dir", str(study.path.parent / "work"))
    assert path.read_bytes() == before, "what is measured is not measured again"


def scores_by_hand(ground: Ground, seen: attribute_study.Seen, way: str, wish: Wish) -> list[float]:
    """Return a score of each image, by plain loops."""
    perspective = FACETS[wish.facet]
    text = F.normalize(ground.vector(wish), dim=0)
    own = list(ground.model.config.perspectives)
    if way == "vector":
        return [float(F.normalize(image.mean(dim=0), dim=0) @ text) for image in seen.branches]
    if way == "by_name":
        return [float(image[own.index(perspective)] @ text) for image in seen.branches]
    if way == "patches":
        return [max(float(patch @ text) for patch in image) for image in seen.patches]
    if way == "own_caption_words":
        return WordSearch([texts[0] for texts in seen.captions[perspective]]).scores(wish.text).tolist()
    texts = ground.texts_of(perspective)
    vectors = {each: ground.trained_on.text_embeds[each] for each in texts}
    nearest = [max(texts, key=lambda each: float(image[0] @ vectors[each])) for image in seen.branches]
    if way == "caption_words":
        return WordSearch(nearest).scores(wish.text).tolist()
    assert way == "caption_vectors"
    return [float(vectors[each] @ text) for each in nearest]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *[
            ("one_to_many", way)
            for way in ("vector", "patches", "own_caption_words", "caption_words", "caption_vectors")
        ],
        *[("ours", way) for way in ("vector", "by_name", "patches")],
    ],
)
def test_ways_score_as_by_hand(study: Study, name: str, way: str) -> None:
    ground = ground_of(study, name)
    seen = ground.seen("test")
    wishes = [Wish("colour", "red"), Wish("object", "bar"), Wish("group", "wide things")]
    ground.learn([AttributeQuery((wish,), (0,)) for wish in wishes])
    score = SCORES[way][0](ground, seen, 0.0)
    for wish in wishes:
        assert score(wish).tolist() == pytest.approx(scores_by_hand(ground, seen, way, wish), abs=1e-5)


def test_texts_ask_in_the_form_of_the_method(study: Study) -> None:
    asked = [AttributeQuery((Wish("colour", "red"),), (0,))]
    for name, text in (("one_to_many", "palette: red"), ("ours", "red")):
        ground = ground_of(study, name)
        ground.learn(asked)
        tokens = ground.processor(text=[text], return_tensors="pt", padding=True)
        with torch.inference_mode():
            expected = ground.model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).text_embeds[0]
        torch.testing.assert_close(ground.vector(asked[0].wishes[0]), expected, atol=1e-5, rtol=0)


def test_patches_have_as_many_numbers_as_branches(study: Study) -> None:
    """The scores stay if so many numbers hold all, and else they do not."""
    ground = ground_of(study, "one_to_many")
    seen = ground.seen("test")
    wish = Wish("colour", "red")
    ground.learn([AttributeQuery((wish,), (0,))])
    # Sixteen patches of 40 numbers are five vectors of 128.
    full = F.normalize(torch.randn(12, 16, 128), dim=-1)
    for patches, is_alike in ((full * (torch.arange(128) < 40), True), (full * (torch.arange(128) < 60), False)):
        drawn = attribute_study.Seen(seen.branches, patches, seen.captions)
        narrow, whole = (SCORES[way][0](ground, drawn, 0.0)(wish) for way in ("patches_narrow", "patches"))
        assert torch.allclose(narrow, whole, atol=1e-5) is is_alike


def test_only_what_is_not_wanted_moves_an_optimised_query(study: Study) -> None:
    ground = ground_of(study, "one_to_many")
    seen = ground.seen("test")
    red, bar, no_bar = Wish("colour", "red"), Wish("object", "bar"), Wish("object", "bar", is_wanted=False)
    queries = [AttributeQuery(wishes, (0,)) for wishes in ((red,), (red, bar), (red, no_bar))]
    ground.learn(queries)
    one, both, without = optimised_scores(ground, seen, queries, 20)
    images, wanted, unwanted = seen.branches[:, 0], ground.vector(red), ground.vector(bar)
    torch.testing.assert_close(one, images @ wanted)
    torch.testing.assert_close(both, images @ (wanted + unwanted))
    torch.testing.assert_close(without, images @ optimised_queries(wanted[None], unwanted[None], 20)[0])


def test_numbers_are_chosen_on_the_other_split(study: Study, rows_of_runs: dict[str, dict[str, Any]]) -> None:
    """Of four weights, the one that finds most where something is not wanted, among drawings of the second painter."""
    chosen = rows_of_runs["ours"]["ways"]["by_name"]["chosen"]["unwanted_weight"]
    ground = ground_of(study, "ours")
    seen = ground.seen("validation")
    queries = attribute_study.attribute_queries(drawing_traits(seen.captions), study.queries)
    ground.learn(queries)
    reached = {}
    for weight in (0.0, 0.25, 0.5, 1.0):
        groups: dict[str, list[float]] = {}
        for query in queries:
            if query.form == WITHOUT:
                wanted, unwanted = (
                    torch.tensor(scores_by_hand(ground, seen, "by_name", wish)) for wish in query.wishes
                )
                found = measure_query(wanted - weight * unwanted, query, num_negatives=3)
                groups.setdefault(query.facets, []).append(found.recall)
        reached[weight] = sum(sum(each) / len(each) for each in groups.values()) / len(groups)
    assert reached[chosen] == pytest.approx(max(reached.values()), abs=1e-6)


def test_the_page_comes_from_the_records(study: Study, rows_of_runs: dict[str, dict[str, Any]]) -> None:
    folder = study.results.parent
    call(attribute_tables.main, study.path.parent)
    page = (folder / "README.md").read_text()
    named, rival = (
        rows_of_runs[name]["ways"][way]["recall"] for name, way in (("ours", "by_name"), ("one_to_many", "vector"))
    )
    for recall in (named, rival):
        assert " | ".join(f"{100 * recall[form]:.1f}" for form in FORMS) in page
    assert "The aim was 15 % more recall by name" in page and page.count("missed") + page.count("reached") == 2
    assert "**Noise floor**, the same method with other seeds: not measured yet." in page
    for metric in ("precision", "average_precision"):
        of_forms = rows_of_runs["ours"]["ways"]["by_name"][metric]
        assert " | ".join(f"{100 * of_forms[form]:.1f}" for form in FORMS) in page
    with Image.open(folder / "attributes.png") as picture:
        assert picture.width > 500
    told = json.loads((folder / "queries.json").read_text())
    (folder / "queries.json").write_text(json.dumps({"cid": told["cid"][:-1]}))
    with pytest.raises(ValueError, match=r"queries of replicate 0; expected the \d+ of queries.json"):
        call(attribute_tables.main, study.path.parent)
    (folder / "queries.json").write_text(json.dumps(told))


def test_what_cannot_be_asked_is_refused_by_name(study: Study, rows_of_runs: object, tmp_path: Path) -> None:
    content = yaml.safe_load(study.path.read_text())
    for name, ways, message in (
        ("ours", ["by_nme"], r"ours: `ways` has \['by_nme'\]; expected some of vector, patches"),
        (
            "one_to_many",
            ["by_name"],
            "one_to_many: `ways` has 'by_name'; expected a branch for each perspective, and short",
        ),
        ("ours", ["conditional"], "ours: `ways` has 'conditional'; expected one vector, not 4"),
    ):
        wrong = {**content, "methods": {**content["methods"], name: {**content["methods"][name], "ways": ways}}}
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
        with pytest.raises(ValueError, match=message):
            load_study(tmp_path / "wrong.yaml")
    with pytest.raises(ValueError, match="has no finished run. Run: python -m training.study"):
        (tmp_path / "shapes.yaml").write_text(study.path.read_text())
        call(attribute_study.main, tmp_path)
    with pytest.raises(ValueError, match="`--work-dir` lacks ours-1, the checkpoint of a finished run"):
        Ground(study, "ours", 1, study.path.parent / "corpus", tmp_path / "ours-1")
    other = {**content, "training": {**content["training"], "max_steps": 5}}
    before = study.path.read_text()
    study.path.write_text(yaml.safe_dump(other))
    with pytest.raises(ValueError, match="has replicate 0 of 'one_to_many' by another recipe or corpus"):
        call(attribute_study.main, study.path.parent)
    study.path.write_text(before)
