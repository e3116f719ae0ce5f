"""A folder's card, rendered from the files beside it; and its snippets, run as a reader would run them."""

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_model_card import CONFIG, FACTS, records

from conftest import CORPUS_SLOTS
from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.records import save_records
from holistic_clip_hf.locks import hold_lock
from holistic_clip_hf.publishing.inventory import require_safe_folder
from holistic_clip_hf.publishing.model_card import (
    CardFacts,
    EnvironmentalCost,
    changed_arguments,
    load_facts,
    render_model_card,
    save_facts,
    write_model_card,
)
from holistic_clip_hf.trainer import HolisticCLIPTrainingArguments

CARDS = sorted((Path(__file__).parents[2] / "model_cards").glob("*/README.md"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "card"
    CONFIG.save_pretrained(place)
    save_facts(place / "card_facts.json", FACTS)
    save_records(place / "results.json", records())
    return place


def test_facts_survive_the_disk(tmp_path: Path) -> None:
    save_facts(tmp_path / "facts.json", FACTS)
    facts = load_facts(tmp_path / "facts.json")
    assert replace(facts, training_data=tuple(facts.training_data)) == replace(
        FACTS, training_data=tuple(FACTS.training_data)
    )
    assert render_model_card(CONFIG, records(), facts) == render_model_card(CONFIG, records(), FACTS)
    (tmp_path / "facts.json").write_text('{"repo_id": "a/b", "model_name": "b"}')
    assert load_facts(tmp_path / "facts.json") == CardFacts("a/b", "b")


def test_a_card_waits_for_who_is_writing_it(folder: Path) -> None:
    held, done = threading.Event(), []

    def hold() -> None:
        with hold_lock(folder / ".README.md.lock", keep=False):
            held.set()
            time.sleep(0.5)
            done.append("other")

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    write_model_card(folder)
    assert done == ["other"]
    other.join()
    assert not list(folder.glob("*.lock")) and not list(folder.glob(".*.lock"))


def test_facts_that_are_refused_stay_as_they_are(folder: Path) -> None:
    path = folder / "card_facts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_name": "another"}))  # of whom no record is
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    with pytest.raises(ValueError, match="No record is of 'another'"):
        write_model_card(folder)
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", r"got \[\]; expected keys and values, with the keys base_model"),
        ('{"repo_id": "a/b", "model_name": "b", "accuracy": 1}', "unknown keys accuracy"),
        ('{"repo_id": "a/b", "model_name": "b", "training_data": [{"name": "x"}]}', "training_data.*missing keys lic"),
        ('{"repo_id": "a/b", "model_name": "b", "cost": {"trees": 1}}', "cost: unknown keys trees"),
        ('{"repo_id": "a/b", "model_name": "b", "training": 5}', "`training` is 5; expected keys and values"),
        ('{"repo_id": "a/b", "model_name": "b", "training_data": 5}', "`training_data` is 5; expected a list"),
        (
            '{"repo_id": "a/b", "model_name": "b", "cost": {"hours": "two"}}',
            "cost: `hours` is .two.; expected a num",
        ),
    ],
)
def test_other_files_are_no_facts(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "facts.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_facts(tmp_path / "facts.json")


def test_only_what_is_known_of_the_cost_is_said() -> None:
    assert EnvironmentalCost().rows == {}
    assert EnvironmentalCost(hours=0.0, location="here").rows == {"hours": 0.0, "place": "here"}


def test_changed_arguments_are_those_of_the_recipe() -> None:
    told = {"learning_rate": 3e-4, "max_steps": 9, "slots": ["a", "b"], "learning_rate_multipliers": {"x.*": 0.5}}
    aside = {"use_cpu": True, "hub_token": "hf_secret", "logging_steps": 3, "save_steps": 7, "run_name": "mine"}
    args = HolisticCLIPTrainingArguments("/somewhere/private", weight_decay=0.2, **told, **aside)
    expected = {**told, "slots": "a, b", "learning_rate_multipliers": "x.*: 0.5"}
    assert changed_arguments(args) == expected


def test_a_folder_is_rendered_with_its_picture_and_again_to_the_same(folder: Path) -> None:
    card = write_model_card(folder)
    text = card.read_text(encoding="utf-8")
    assert "(branches-drawings-test.png)" in text and "(retrieval.png)" in text
    with Image.open(folder / "branches-drawings-test.png") as picture:
        assert min(picture.size) > 100
    assert load_facts(folder / "card_facts.json").pictures.keys() > FACTS.pictures.keys()
    assert write_model_card(folder).read_text(encoding="utf-8") == text
    files = {path.name for path in folder.iterdir()}
    assert files == {"README.md", "config.json", "card_facts.json", "results.json", "branches-drawings-test.png"} | {
        name for name in files if name.endswith("_holistic_clip.py")
    }
    require_safe_folder(folder)


def test_without_records_nothing_is_drawn_and_without_facts_names_are_rendered(folder: Path) -> None:
    (folder / "results.json").unlink()
    assert "branches-" not in write_model_card(folder).read_text(encoding="utf-8")
    (folder / "card_facts.json").unlink()
    assert "# card" in write_model_card(folder).read_text(encoding="utf-8")
    facts = load_facts(folder / "card_facts.json")
    assert (facts.repo_id, facts.model_name, facts.license) == ("card", "card", "")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"card, which has no config\.json; expected the folder"):
        write_model_card(folder)


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_no_card_in_the_checkout_was_edited_by_hand(card: Path, tmp_path: Path) -> None:
    for name in ("config.json", "card_facts.json", "results.json"):
        (tmp_path / name).write_bytes((card.parent / name).read_bytes())
    assert write_model_card(tmp_path).read_bytes() == card.read_bytes()
    for picture in load_facts(tmp_path / "card_facts.json").pictures.values():
        assert (card.parent / picture).is_file()


SAY = """
print(scores.shape, alone.shape, [sorted(one) for one in found])
assert not [name for name in sys.modules if name.split(".")[0] == "holistic_clip_hf"]
"""


def test_the_snippets_run_for_a_stranger(
    make_model: Callable[..., HolisticCLIPModel],
    processor: HolisticCLIPProcessor,
    red_square: Image.Image,
    without_the_package: Callable[..., str],
    tmp_path: Path,
) -> None:
    checkpoint = tmp_path / "checkpoint"
    model = make_model(perspectives=CORPUS_SLOTS)
    for part in (model, processor):
        part.save_pretrained(checkpoint)
    red_square.save(tmp_path / "picture.png")
    form: dict[str, Any] = {"caption_form": "{perspective}: {text}", "caption_perspectives": ["colour", "shape"]}
    card = render_model_card(model.config, [], CardFacts(str(checkpoint), "emoji"), **form)
    assert "captions of `colour`, `shape` had the form `{perspective}: {text}`. A\ntext that asks" in card
    snippets = re.findall("```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(snippets) == 4
    script = "import os, sys\nos.chdir(sys.argv[1])\n" + "\n".join(snippets)
    for snippet, name in (
        ("image.pooler_output @", "scores"),
        ("image.branch_embeds[", "alone"),
        ("classify(", "found"),
    ):
        assert script.count(f"\n{snippet}") == 1
        script = script.replace(f"\n{snippet}", f"\n{name} = {snippet}")
    printed = without_the_package(script + SAY, tmp_path)
    assert printed.splitlines()[-1] == "torch.Size([1, 2]) torch.Size([1, 2]) [['label', 'score'], ['label', 'score']]"
