"""A study on drawn squares: every run once, the held-out painter never trained on, and tables from closed forms."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Value
from filelock import FileLock
from PIL import Image

from holistic_clip_hf.corpus.build import (
    EmptySplitError,
    build_corpus,
    corpus_features,
    load_corpus,
    open_split,
)
from holistic_clip_hf.corpus.near_duplicates import NearDuplicates
from holistic_clip_hf.evaluation.encoding import load_checkpoint
from holistic_clip_hf.evaluation.retrieval import CAPTION_SETS, EmbeddedCorpus, embed_corpus
from holistic_clip_hf.trainer.recipes import make_trainer, recipe_split, train_tokenizer
from training import study as study_module
from training import study_tables
from training.near_duplicates import table_of_leaks
from training.study import (
    finish_runs,
    first_dimensions,
    hash_start,
    load_results,
    load_study,
    load_trained,
    measure_run,
    method_recipe,
    missing_runs,
    multiplications,
    plan_of,
    principal_dimensions,
    require_plan,
)
from training.study_picture import study_picture
from training.study_tables import (
    BY_NAME,
    MEAN,
    Estimate,
    entries_of,
    estimate,
    full_tables,
    scores_of,
    summary_table,
    unusable_note,
    width_tables,
)

ROOT = Path(__file__).parents[2]
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
SLOTS = ["short", "palette"]


def rows() -> Iterator[dict[str, object]]:
    """Four colours by three painters; the corpus tests on the third, and validates on one colour of the second."""
    for number, painter in enumerate(("ann", "bob", "cid")):
        for colour, rgb in COLOURS.items():
            captions = [{"perspective": "short", "text": f"{colour} thing", "source": "drawn"}]
            captions.append({"perspective": "palette", "text": f"all {colour}", "source": "drawn"})
            image = Image.new("RGB", (20 + number, 20), rgb)
            split = "test" if painter == "cid" else "validation" if (painter, colour) == ("bob", "red") else "train"
            row = {"image_id": f"{painter}/{colour}", "image": image, "captions": captions}
            yield {**row, "artist_split": split, "artist": painter}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    features = corpus_features(artist_split=Value("string"), artist=Value("string"))
    build_corpus(directory, {"all": rows}, features, fingerprint="1")
    return directory


@pytest.fixture(scope="module")
def study_path(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    recipe = yaml.safe_load((ROOT / "training/studies/emoji_recipe.yaml").read_text())
    recipe["corpus"], recipe["image_size"] = str(corpus), 16
    recipe["tokenizer"] = {"vocab_size": 520, "max_length": 16}
    for tower in ("text_config", "vision_config"):
        recipe["model"][tower] |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    recipe["training"] |= {"max_steps": 4, "warmup_steps": 1, "per_device_train_batch_size": 4, "logging_steps": 1}
    recipe["training"]["dataloader_num_workers"] = 0
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    study = {
        "recipe": str(folder / "recipe.yaml"),
        "column": "artist",
        "held_out": ["ann", "cid"],
        "perspectives": SLOTS,
        "training": {"eval_strategy": "no", "save_strategy": "no"},
        "scores": ["max", "without short"],
        "methods": {
            "one_to_many": {"perspectives": ["all"], "slots": SLOTS},
            "ours": {
                "perspectives": SLOTS,
                "slots": SLOTS,
                "model": {
                    "fusion": "routed",
                    "fused_weight": 1.0,
                    "vision_config": {"branch_type": "mlp", "num_branch_layers": 1},
                },
            },
            "as_much": {"perspectives": ["all"], "slots": ["short"], "as_much_compute_as": "ours", "replicates": 1},
        },
    }
    (folder / "squares.yaml").write_text(yaml.safe_dump(study))
    return folder / "squares.yaml"


def run(study_path: Path, work: Path, *arguments: str) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["study", "--study", str(study_path), "--work-dir", str(work), *arguments])
        study_module.main()
    return load_results(load_study(study_path).results)


def test_every_run_once_with_all_that_was_measured(study_path: Path, tmp_path: Path) -> None:
    (tmp_path / "squares").mkdir()
    # Another process is at two of the five.
    with FileLock(tmp_path / "squares" / "ours-0.lock"), FileLock(tmp_path / "squares" / "one_to_many-1.lock"):
        first = run(study_path, tmp_path)
    assert [(row["model"], row["replicate"]) for row in first] == [("one_to_many", 0), ("ours", 1), ("as_much", 0)]
    study = load_study(study_path)
    assert missing_runs(study) == [("ours", 0), ("one_to_many", 1)]
    finish_runs(study, tmp_path / "squares", {"ours", "as_much"})
    assert missing_runs(study) == [("one_to_many", 1)] and not missing_runs(study, {"ours", "as_much"})
    found = run(study_path, tmp_path)
    assert found[:3] == first, "finished runs stay as they are"
    keys = {(row["model"], row["split"], row["seed"]) for row in found}
    assert keys == {
        ("one_to_many", "ann", 0),
        ("ours", "ann", 0),
        ("as_much", "ann", 0),
        ("one_to_many", "cid", 1),
        ("ours", "cid", 1),
    }
    by_key = {(row["model"], row["split"]): row for row in found}
    assert set(by_key["one_to_many", "ann"]["numbers"]) == {"fused, centroid"}
    ours = by_key["ours", "ann"]["numbers"]
    fused = {"fused, centroid", "fused, mean", "fused, weighted", "fused, routed", "fused, softmax"}
    fused |= {"fused, max", "fused, without short"}
    assert set(ours) == {*fused, "short", "palette", BY_NAME}
    assert all(set(ours[by]) == {*SLOTS, CAPTION_SETS} for by in fused)
    assert set(ours["short"]) == set(SLOTS) and set(ours[BY_NAME]) == {CAPTION_SETS}
    assert set(ours["short"]["palette"]["image_to_text"]) == {"recall@1", "recall@5", "mean_average_precision"}
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(found), "what is measured can be measured again"
    steps = {name: by_key[name, "ann"]["steps"] for name in ("one_to_many", "ours", "as_much")}
    operations = {name: by_key[name, "ann"]["operations_per_step"] for name in steps}
    assert steps["ours"] == steps["one_to_many"] == 4
    assert steps["as_much"] == round(4 * operations["ours"] / operations["as_much"]) > 4
    assert run(study_path, tmp_path) == found


def test_a_run_done_again_gives_its_numbers(study_path: Path, corpus: Path, tmp_path: Path) -> None:
    study = load_study(study_path)
    first, again = (measure_run(study, "ours", 1, corpus, tmp_path / name) for name in ("first", "again"))
    assert first["numbers"] == again["numbers"]
    require_scores(
        first["numbers"], tmp_path / "first/ours-1", recipe_split(method_recipe(study, "ours", 1), corpus, "test")
    )


def require_scores(numbers: dict[str, Any], checkpoint: Path, rows: Dataset) -> None:
    """The best branch by a loop over branches; without one of two, the other is left."""
    model, processor = load_checkpoint(checkpoint)
    embedded = embed_corpus(model, processor, rows, perspectives=SLOTS)
    for slot in SLOTS:
        hits = 0
        for image, texts in enumerate(embedded.captions[slot]):
            scores = [
                max(float(branch @ embedded.text_embeds[texts[0]]) for branch in branches)
                for branches in embedded.branch_embeds
            ]
            hits += scores[image] == max(scores)
        assert numbers["fused, max"][slot]["text_to_image"]["recall@1"] == hits / len(rows)
    assert {slot: numbers["fused, without short"][slot] for slot in SLOTS} == numbers["palette"]


def test_shorter_vectors_are_measured_in_place_of_fusions(study_path: Path, corpus: Path, tmp_path: Path) -> None:
    content = {**yaml.safe_load(study_path.read_text()), "scores": []}
    path = tmp_path / "widths.yaml"
    path.write_text(yaml.safe_dump({**content, "widths": [128, 2]}))
    with pytest.raises(ValueError, match="ours: `fusion` is 'routed', whose router reads whole vectors, beside `wid"):
        load_study(path)
    content["methods"]["ours"]["model"] = {}
    path.write_text(yaml.safe_dump({**content, "widths": [128, 2]}))
    study = load_study(path)
    numbers = measure_run(study, "ours", 1, corpus, tmp_path)["numbers"]
    ways = {f"fused, centroid, {way} {width}" for way in ("first", "principal") for width in (128, 2)}
    assert set(numbers) == {"fused, centroid", *ways, *SLOTS, BY_NAME}
    for slot in SLOTS:  # vectors of all dimensions are whole vectors, also turned
        assert numbers["fused, centroid, first 128"][slot] == numbers["fused, centroid"][slot]
        assert numbers["fused, centroid, principal 128"][slot] == numbers["fused, centroid"][slot]
    for wrong in ([0], [64, 64], "64"):
        path.write_text(yaml.safe_dump({**content, "widths": wrong}))
        with pytest.raises(ValueError, match="expected whole numbers, 1 or more, each once"):
            load_study(path)


def test_vectors_are_shortened_to_their_first_and_their_principal_dimensions() -> None:
    """Against numpy: slices of unit length, and right singular vectors of the branches' vectors."""
    generator = np.random.default_rng(0)
    images, text = generator.normal(size=(7, 2, 5)) * [1, 5, 2, 9, 1], generator.normal(size=5)
    corpus = EmbeddedCorpus(torch.from_numpy(images), {}, {"a text": torch.from_numpy(text)})
    axes = np.linalg.svd(images.reshape(14, 5)).Vh.T
    for way, turn in ((first_dimensions, np.eye(5)), (principal_dimensions, axes)):
        found = way(corpus, 3)
        cut, asked = (images @ turn)[..., :3], (text @ turn)[:3]
        expected = cut @ asked / np.linalg.norm(cut, axis=-1) / np.linalg.norm(asked)
        np.testing.assert_allclose(found.branch_embeds @ found.text_embeds["a text"], expected)


def test_the_held_out_painter_is_tested_on_and_never_trained_on(corpus: Path) -> None:
    def painters(split: str, **held_out: str) -> list[str]:
        return open_split(corpus, split, split_column="artist_split", held_out=held_out or None)["image_id"]

    assert painters("test") == [f"cid/{colour}" for colour in COLOURS]
    assert painters("test", artist="ann") == [f"ann/{colour}" for colour in COLOURS]
    assert painters("train", artist="ann") == ["bob/green", "bob/blue", "bob/yellow", *painters("test")]
    assert painters("validation", artist="ann") == ["bob/red"]
    with pytest.raises(ValueError, match="'dan' in 'artist', so it cannot be held out"):
        painters("test", artist="dan")
    with pytest.raises(ValueError, match="`held_out` of .* is 'painter', which it does not have"):
        painters("test", painter="ann")


def test_near_duplicates_of_what_is_tested_can_be_left_out(study_path: Path, tmp_path: Path) -> None:
    """Cid draws red and green as the others do, and blue and yellow darker."""

    def drawn() -> Iterator[dict[str, object]]:
        for row in rows():
            if row["image_id"] in ("cid/blue", "cid/yellow"):
                row["image"] = row["image"].point(lambda value: value // 2)
            yield row

    features = corpus_features(artist_split=Value("string"), artist=Value("string"))
    build_corpus(tmp_path, {"all": drawn}, features, fingerprint="1")
    every = method_recipe(load_study(study_path), "ours", 0)
    every = replace(every, held_out={"artist": "cid"})
    chosen = replace(every, drop_near_duplicates=True)
    assert chosen.fingerprint("ours", "1") != every.fingerprint("ours", "1")
    alike = {"ann/red", "ann/green", "bob/green"}
    for split, left_out in {"train": alike, "validation": {"bob/red"}, "test": set()}.items():
        names = recipe_split(every, tmp_path, split)["image_id"]
        kept = [name for name in names if name not in left_out]
        if kept:
            assert recipe_split(chosen, tmp_path, split)["image_id"] == kept
        else:
            with pytest.raises(EmptySplitError, match="All rows of validation of .* are near-duplicates"):
                recipe_split(chosen, tmp_path, split)


def test_near_duplicates_between_domains_are_counted(tmp_path: Path) -> None:
    sides = {"a/1": "a", "a/2": "a", "b/1": "b", "b/2": "b", "c/1": "c"}
    found = NearDuplicates([["a/1", "a/2", "b/1"], ["b/2", "c/1"]]).among(sides)
    table = table_of_leaks(found, Counter({"a": 4, "b": 2, "c": 10}))
    assert table.splitlines()[2:] == [
        "| a | 4 | 2 | 50.0 % | b 2 |",
        "| b | 2 | 2 | 100.0 % | a 1, c 1 |",
        "| c | 10 | 1 | 10.0 % | b 1 |",
    ]


def test_half_the_batch_is_about_half_the_multiplications(study_path: Path, corpus: Path, tmp_path: Path) -> None:
    """Not exactly: equal captions of a batch are encoded once."""
    recipe = method_recipe(load_study(study_path), "one_to_many", 0)
    once = multiplications(recipe, "one_to_many", corpus, tmp_path)
    recipe.training["per_device_train_batch_size"] = 2
    assert 0.3 < multiplications(recipe, "one_to_many", corpus, tmp_path) / once < 0.7


def test_mistakes_in_a_study_are_named(study_path: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(study_path.read_text())
    cases = [
        (
            {"metods": {}},
            "unknown keys metods. Did you mean methods. Valid keys: also_against, changes_of, column, fit_fusions, ",
        ),
        (
            {"methods": {"ours": {"perspectives": SLOTS, "slots": SLOTS, "lr": 1}}},
            "ours: unknown keys lr. Valid keys: as_much",
        ),
        (
            {"methods": {"ours": {"perspectives": SLOTS, "slots": SLOTS, "as_much_compute_as": "theirs"}}},
            r"`as_much_compute_as` \['theirs'\]; expected one of ours",
        ),
        ({"scores": ["max", "without style"]}, "`scores` has 'without style'; expected some of max, without short"),
    ]
    cases.append(({"changes_of": "theirs"}, "`changes_of` is 'theirs'; expected one of as_much, one_to_many, ours"))
    for name in ("/any/path", "../x", ".hidden"):
        methods = {"methods": {name: {"perspectives": SLOTS, "slots": SLOTS}}}
        cases.append((methods, f"`methods` has '{name}'; expected names of letters, digits"))
    for change, message in cases:
        path = tmp_path / "wrong.yaml"
        path.write_text(yaml.safe_dump({**content, **change}))
        with pytest.raises(ValueError, match=message):
            load_study(path)


def test_texts_of_a_method_carry_their_perspective(study_path: Path, corpus: Path, tmp_path: Path) -> None:
    """Where it is trained and where it is asked, each once, and not in the rows."""
    content = yaml.safe_load(study_path.read_text())
    content["methods"]["named"] = {**content["methods"]["one_to_many"], "caption_form": "{perspective}: {text}"}
    path = tmp_path / "named.yaml"
    path.write_text(yaml.safe_dump(content))
    study = load_study(path)
    recipe = method_recipe(study, "named", 0)
    trainer = make_trainer(recipe, "named", corpus, tmp_path / "states")
    processor, rows = trainer.processing_class, recipe_split(recipe, corpus, "train")
    assert (processor.caption_form, processor.caption_perspectives) == ("{perspective}: {text}", SLOTS)
    texts = [[caption["text"] for caption in captions] for captions in rows["captions"]]
    assert texts[0][0] == f"{rows['image_id'][0].partition('/')[2]} thing", "rows are as the corpus has them"
    written = [[f"short: {short}", f"palette: {palette}"] for short, palette in texts]
    by_hand = train_tokenizer([text for each in written for text in each], vocab_size=520, max_length=16)
    assert processor.tokenizer.get_vocab() == by_hand.get_vocab()
    batch, expected = trainer.data_collator(list(rows)), processor.nested_captions(written)
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    other = make_trainer(method_recipe(study, "one_to_many", 0), "one_to_many", corpus, tmp_path / "states")
    assert other.processing_class.caption_form is None
    content["methods"]["named"]["caption_form"] = "{perspective}"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"named: `caption_form` is '\{perspective\}'; expected a form with \{text\}"):
        load_study(path)


def test_a_second_run_of_a_method_differs_by_its_seed_alone(study_path: Path) -> None:
    study = load_study(study_path)
    study.methods["again"] = replace(study.methods["ours"], seed_offset=100)
    first, second = (method_recipe(study, name, 1) for name in ("ours", "again"))
    assert second.training == {**first.training, "seed": 101}
    assert replace(second, training=first.training, runs=first.runs) == first


def test_results_of_another_plan_are_refused_by_name(study_path: Path, corpus: Path) -> None:
    study = load_study(study_path)
    mine = {"model": "ours", "replicate": 1, "plan": plan_of(study, "ours", 1, corpus)}
    require_plan(study, [mine, {"model": "ours", "replicate": 0}], corpus)
    for row, message in (
        ({**mine, "model": "theirs"}, "has replicate 1 of 'theirs'; expected methods as_much, one_to_many, ours and"),
        ({**mine, "replicate": 2}, "has replicate 2 of 'ours'; expected .* replicates below 2"),
        ({**mine, "replicate": 0}, "has replicate 0 of 'ours' by another recipe or corpus; expected those of"),
    ):
        with pytest.raises(ValueError, match=message):
            require_plan(study, [row], corpus)


def test_results_that_start_from_other_weights_are_refused(study_path: Path, corpus: Path, tmp_path: Path) -> None:
    study = load_study(study_path)
    study = replace(study, recipe=replace(study.recipe, start_from=str(tmp_path)))
    row = {"model": "ours", "replicate": 1, "plan": plan_of(study, "ours", 1, corpus)}
    require_plan(study, [{**row, "start": "0123456789abcdef"}], corpus)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    hash_start.cache_clear()
    require_plan(study, [row, {**row, "start": hashlib.sha256(b"weights").hexdigest()[:16]}], corpus)
    with pytest.raises(ValueError, match="replicate 1 of 'ours' from other weights than those of .*; expected the sa"):
        require_plan(study, [{**row, "start": "0123456789abcdef"}], corpus)


def test_a_corpus_built_anew_by_other_code_is_the_same_if_its_rows_are(
    study_path: Path, corpus: Path, tmp_path: Path
) -> None:
    """Its fingerprint is another, by which records of before still name it."""
    study, rows = load_study(study_path), load_corpus(corpus)
    anew, other = tmp_path / "anew", tmp_path / "other"
    for path, kept in ((anew, rows), (other, rows.select(range(len(rows) - 1)))):
        build_corpus(path, {"all": lambda kept=kept: kept}, rows.features, fingerprint=path.name)
    mine, before = {"model": "ours", "replicate": 1}, method_recipe(study, "ours", 1)
    require_plan(study, [{**mine, "plan": plan_of(study, "ours", 1, corpus)}], anew)
    require_plan(study, [{**mine, "plan": before.fingerprint("ours", "anew")}], anew)
    for plan in (plan_of(study, "ours", 1, corpus), before.fingerprint("ours", "anew")):
        with pytest.raises(ValueError, match="by another recipe or corpus"):
            require_plan(study, [{**mine, "plan": plan}], other)


def test_estimates_are_students() -> None:
    """Of 1, 2, 3, 4: mean 2.5, deviation sqrt(5/3), and 3.182 of t with three degrees of freedom."""
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert found == Estimate(2.5, pytest.approx(3.182 * math.sqrt(5 / 3) / 2), 4)
    assert found.excludes_zero and not estimate([-1.0, 1.5]).excludes_zero
    assert not estimate([3.0]).excludes_zero and str(estimate([0.3])) == "30.0"


def result(method: str, replicate: int, **by: float) -> dict[str, Any]:
    numbers = {
        f"fused, {name}": {
            slot: {direction: {"recall@5": value} for direction in ("text_to_image", "image_to_text")}
            for slot in SLOTS
        }
        for name, value in by.items()
    }
    return {"model": method, "replicate": replicate, "numbers": numbers}


def test_differences_are_paired(tmp_path: Path) -> None:
    """Replicates differ widely and methods do not: only the paired interval tells the methods apart."""
    found = []
    for replicate, level in enumerate((0.1, 0.5, 0.9)):
        found.append(result("one_to_many", replicate, mean=level))
        found.append(result("ours", replicate, mean=level + 0.01, routed=level + 0.02 + 0.001 * replicate))
    found.append(result("extra", 2, mean=0.4))
    table = full_tables(json.loads(json.dumps(found)), SLOTS, "one_to_many", {"extra": "noise floor"}).split("###")[1]
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in table.split("Differences")[1].splitlines()}
    assert lines["ours, mean"].split(" | ")[2] == "**+1.0 ± 0.0**"
    assert lines["ours, routed"].split(" | ")[2] == "**+2.1 ± 0.2**"
    assert lines["noise floor, mean"].split(" | ")[1:3] == ["1", "-50.0"]
    assert "| ours, mean | 3 | 51.0 ± 99.4 |" in table


def with_sets(row: dict[str, Any], by: str, value: float) -> dict[str, Any]:
    both = {direction: {"recall@5": value} for direction in ("text_to_image", "image_to_text")}
    row["numbers"].setdefault(by, {})[CAPTION_SETS] = both
    return row


def test_all_captions_at_once_have_tables_and_panels_of_their_own() -> None:
    """Known of two of the three methods only, and left out of the mean over perspectives."""
    found = []
    for replicate, level in enumerate((0.1, 0.5)):
        found.append(with_sets(result("one_to_many", replicate, mean=level), "fused, mean", level))
        found.append(with_sets(result("ours", replicate, mean=level + 0.02), "fused, mean", level + 0.03))
        found[-1] = with_sets(found[-1], BY_NAME, level + 0.05)
        found[-1]["numbers"] |= dict.fromkeys(SLOTS, found[-1]["numbers"]["fused, mean"])
        found.append(result("old", replicate, mean=level - 0.01))
    methods = {"one_to_many": "one_to_many", "ours": "ours", "old": "noise floor"}
    one, sets = (summary_table(found, methods, "one_to_many", column).splitlines() for column in (MEAN, CAPTION_SETS))
    assert one[5].startswith("| noise floor, mean | 2 |")
    assert [line.split(" | ")[3] for line in one[3:]] == ["**+2.0 ± 0.0**", "**+2.0 ± 0.0**", "**-1.0 ± 0.0**"]
    assert [line.split(" | ")[::3] for line in sets[3:]] == [
        ["| ours, mean", "**+3.0 ± 0.0**"],
        ["| ours, by name", "**+5.0 ± 0.0**"],
    ]
    panels = study_picture(found, methods, "one_to_many", fewest=2).axes
    names = [[label.get_text() for label in panel.get_yticklabels()] for panel in panels]
    assert names == [["ours", "noise floor"], ["", ""], ["ours"], [""]]
    drawn = [[x for line in panel.lines if line.get_marker() == "o" for x in line.get_xdata()] for panel in panels]
    assert drawn[0] == pytest.approx([2.0, 2.0, -1.0]) and drawn[2] == pytest.approx([3.0, 5.0])
    with pytest.raises(ValueError, match="No method but one_to_many has 5 finished runs"):
        study_picture(found, methods, "one_to_many")


def test_shorter_vectors_are_compared_with_those_of_their_width() -> None:
    """Plain vectors lose a tenth at each width, more in some replicates; the others a twentieth less."""
    found = []
    for replicate, level in enumerate((0.3, 0.5, 0.7)):
        plain = {"mean": level, "mean, first 8": level, "mean, first 4": level - 0.1, "mean, principal 4": level - 0.1}
        found.append(result("plain", replicate, **plain))
        found.append(result("prefixes", replicate, **{name: value + 0.05 for name, value in plain.items()}))
    tables = width_tables(found, {"plain": "plain", "prefixes": "trained"}, [8, 4], "plain").split("###")
    lines = [line.strip("| ").split(" | ") for line in tables[1].splitlines()[4:] if line]
    assert [line[0] for line in lines] == ["plain, first", "plain, principal", "trained, first", "trained, principal"]
    assert lines[0][1:] == ["50.0 ± 49.7", "", "40.0 ± 49.7"]
    assert lines[1][3:] == ["40.0 ± 49.7", "+0.0 ± 0.0"]
    assert lines[2][1:] == ["55.0 ± 49.7", "**+5.0 ± 0.0**", "45.0 ± 49.7", "**+5.0 ± 0.0**"]


def test_the_page_is_written_beside_the_results(study_path: Path, tmp_path: Path) -> None:
    """Under the title of the study, the table of each question, and those by perspective."""
    path = tmp_path / "pages.yaml"
    content = yaml.safe_load(study_path.read_text())
    found = []
    for replicate, level in enumerate((0.1, 0.5)):
        found += [with_sets(result("one_to_many", replicate, mean=level), "fused, mean", level)]
        found += [with_sets(result("ours", replicate, mean=level + 0.02), "fused, mean", level + 0.03)]
    content["title"] = "Which of two?"
    path.write_text(yaml.safe_dump(content))
    study = load_study(path)
    study.results.parent.mkdir()
    study.results.write_text("".join(json.dumps(row) + "\n" for row in found))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["study_tables", "--study", str(path), "--page"])
        study_tables.main()
        page = study.results.with_name("README.md").read_text()
        path.write_text(yaml.safe_dump({**content, "title": None}))
        with pytest.raises(ValueError, match="has no `title`; expected the heading of its page"):
            study_tables.main()
    assert page.startswith("# Which of two?\n")
    of_one, of_sets = (
        page.split(f"## {question}")[1] for question in ("One caption asks", "All captions of an image ask")
    )
    assert "**+2.0 ± 0.0**" in of_one.split("##")[0] and "**+3.0 ± 0.0**" not in of_one.split("##")[0]
    assert "**+3.0 ± 0.0**" in of_sets.split("##")[0] and "**+2.0 ± 0.0**" not in of_sets.split("##")[0]
    assert "### Text to image: recall@5, %" in page and "### Image to text: recall@5, %" in page


def test_changes_are_compared_way_by_way(study_path: Path, tmp_path: Path) -> None:
    """By name with by name; the page of a study of changes has its picture in place of tables by perspective."""
    found = []
    for replicate, level in enumerate((0.1, 0.5)):
        for name, fused, named in (("ours", 0.0, 0.2), ("as_much", 0.02, 0.25)):
            found.append(result(name, replicate, mean=level + fused))
            branch = result(name, replicate, mean=level + named)["numbers"]["fused, mean"]
            found[-1]["numbers"] |= dict.fromkeys(SLOTS, branch)
    labels = {"ours": "ours", "as_much": "changed"}
    usual, alike = (summary_table(found, labels, "ours", alike=each).splitlines()[-2:] for each in (False, True))
    assert [line.split(" | ")[3] for line in usual] == ["**+2.0 ± 0.0**", "**+25.0 ± 0.0**"]
    assert [line.split(" | ")[3] for line in alike] == ["**+2.0 ± 0.0**", "**+5.0 ± 0.0**"]
    panel = study_picture(found, labels, "ours", fewest=2, alike=True).axes[0]
    drawn = [x for line in panel.lines if line.get_marker() == "o" for x in np.asarray(line.get_xdata())]
    assert drawn == pytest.approx([2.0, 5.0])
    content = yaml.safe_load(study_path.read_text())
    path = tmp_path / "changes.yaml"
    path.write_text(yaml.safe_dump({**content, "changes_of": "ours", "also_against": "as_much"}))
    page = study_tables.study_page(load_study(path), found, "ours")
    assert "both asked in the same way" in page and "differences.png" in page and "### " not in page
    again = page.split("## Against `as_much`: one caption asks")[1].split("##")[0]
    assert "| ours, mean | 2 | 30.0 ± 254.1 | **-2.0 ± 0.0** |" in again


def test_by_name_each_perspective_is_answered_by_its_branch() -> None:
    row = result("ours", 0, mean=0.4)
    for place, slot in enumerate(SLOTS):
        by_perspective = {other: {"text_to_image": {"recall@5": 0.01}} for other in SLOTS}
        row["numbers"][slot] = {**by_perspective, slot: {"text_to_image": {"recall@5": 0.1 * (place + 1)}}}
    found = scores_of([row], "ours", BY_NAME, "text_to_image")[0]
    expected = {slot: 0.1 * (place + 1) for place, slot in enumerate(SLOTS)}
    assert found == pytest.approx({**expected, MEAN: sum(expected.values()) / len(SLOTS)})
    assert entries_of([row, result("clip", 0, mean=0.3)]) == [
        ("ours", "fused, mean"),
        ("ours", BY_NAME),
        ("clip", "fused, mean"),
    ]
    del row["numbers"][SLOTS[0]]
    assert not scores_of([row], "ours", BY_NAME, "text_to_image")


def test_methods_that_left_out_other_rows_are_told() -> None:
    rows = [result(method, replicate, mean=0.5) for replicate in (0, 1) for method in ("clip", "ours")]
    assert unusable_note(rows) == ""
    rows[3] |= {"n_unusable": 2}
    assert unusable_note(rows) == (
        "Methods left out differently many images and captions in replicate 1 (clip 0, ours 2).\n"
    )


def test_the_row_that_varies_nothing_is_called_the_noise_floor() -> None:
    """Equal captions as negatives are the loss of shared targets, with softmax and matching by name."""
    study = load_study(ROOT / "training/studies/emoji.yaml")
    assert "noise floor" in study.labels["ours_duplicates_negative"]
    page = (ROOT / "training/studies/emoji/README.md").read_text()
    assert "`ours_duplicates_negative`" in page and "shows nothing" in " ".join(page.split())


def test_a_run_that_was_trained_before_its_form_was_saved_is_asked_in_it(study_path: Path, tmp_path: Path) -> None:
    study = load_study(study_path)
    recipe = method_recipe(study, "one_to_many", 0)
    trainer = make_trainer(recipe, "one_to_many", Path(recipe.corpus), tmp_path / "states")
    trainer.save_result(tmp_path / "run")
    named = replace(recipe, caption_form="{perspective}: {text}")
    assert load_trained(tmp_path / "run", named)[1].write_caption("all red", "palette") == "palette: all red"
    assert load_trained(tmp_path / "run", recipe)[1].write_caption("all red", "palette") == "all red"
