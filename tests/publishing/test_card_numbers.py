"""No number is in a card that is not in a record, the configuration or the facts, whatever these are."""

import random
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from test_model_card import CONFIG, FACTS, records

from holistic_clip_hf import HolisticCLIPConfig
from holistic_clip_hf.evaluation.records import Record
from holistic_clip_hf.publishing.model_card import (
    IN_PERCENT,
    TAGS,
    TEMPLATE_PATH,
    CardFacts,
    EnvironmentalCost,
    render_model_card,
)

NUMBER = re.compile(r"\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
# What tables say of themselves: the width of intervals and the counts "one branch", "several" are spelled in words.
# The paper's year, pages and number at arXiv: all numbers that the template itself may hold.
CITED = {"2025", "29791", "29802", "2412.00440"}
SAID_BY_TABLES = {"95"}


def numbers_in(text: str) -> set[str]:
    return {found.rstrip(".,") for found in NUMBER.findall(text)}


def leaves(content: Any) -> list[Any]:
    if isinstance(content, dict):
        return [leaf for pair in content.items() for one in pair for leaf in leaves(one)]
    return [leaf for one in content for leaf in leaves(one)] if isinstance(content, list | tuple) else [content]


def spelled(value: float, *, percent: bool) -> set[str]:
    """Each way in which a card may write a value."""
    ways = [f"{value:g}", f"{value:.4g}", f"{value:,}", str(value), str(round(value, 4))]
    return {found for way in [*ways, *([f"{100 * value:.1f}"] if percent else [])] for found in numbers_in(way)}


def known(config: HolisticCLIPConfig, measured: list[Record], facts: CardFacts) -> set[str]:
    allowed = CITED | numbers_in(" ".join(TAGS)) | SAID_BY_TABLES
    for leaf in leaves([asdict(facts), config.to_dict(), [asdict(record) for record in measured]]):
        allowed |= numbers_in(str(leaf)) | (spelled(leaf, percent=False) if isinstance(leaf, int | float) else set())
    for record in measured:
        for value in (record.value, record.chance, *(record.confidence_interval or ())):
            allowed |= set() if value is None else spelled(value, percent=record.metric in IN_PERCENT)
    # Branches are numbered from zero.
    return allowed | {str(index) for index in range(len(config.perspectives))}


def drawn(rng: random.Random) -> tuple[HolisticCLIPConfig, list[Record], CardFacts]:
    """Inputs of which no two numbers are alike by more than chance."""
    width = 8 * rng.randint(5, 90)
    tower = {"hidden_size": width, "num_hidden_layers": rng.randint(4, 60), "intermediate_size": rng.randint(90, 9000)}
    tower["num_attention_heads"] = 8
    config = HolisticCLIPConfig(
        perspectives=["object", "style"],
        projection_dim=rng.randint(33, 999),
        diversity_weight=rng.random(),
        text_config={**tower, "max_position_embeddings": rng.randint(11, 999)},
        vision_config={**tower, "image_size": 32 * rng.randint(3, 40), "patch_size": 32, "patch_dropout": 0.123},
    )
    measured = []
    for record in records():
        shares = {"value": rng.random() * (1 if record.metric in (*IN_PERCENT, "accuracy") else 999)}
        shares |= {"chance": None if record.chance is None else rng.random()}
        interval = record.confidence_interval and (rng.random(), rng.random())
        seed, commit = rng.randint(60, 10**6), f"{rng.getrandbits(60):x}"
        measured.append(replace(record, **shares, confidence_interval=interval, seed=seed, commit=commit))
    counts = {"n_queries": rng.randint(10**4, 10**6), "n_candidates": rng.randint(10**4, 10**6)}
    measured = [replace(record, counts=counts if record.counts else {}) for record in measured]
    cost = EnvironmentalCost(hours=rng.random(), kilowatt_hours=rng.random(), co2_grams=rng.random())
    return (
        config,
        measured,
        replace(FACTS, cost=cost, training={"learning_rate": rng.random(), "s": rng.randint(60, 9999)}),
    )


def unexplained(config: HolisticCLIPConfig, measured: list[Record], facts: CardFacts, template: Path) -> set[str]:
    card = render_model_card(config, measured, facts, template_path=template)
    return numbers_in(card) - known(config, measured, facts)


@pytest.mark.parametrize("seed", range(20))
def test_every_number_of_a_card_is_a_records_or_the_configurations_or_a_fact(seed: int) -> None:
    assert unexplained(*drawn(random.Random(seed)), TEMPLATE_PATH) == set()


def test_without_records_no_number_is_a_result() -> None:
    card = render_model_card(CONFIG, [], FACTS)
    assert numbers_in(card) <= known(CONFIG, [], FACTS)
    assert not numbers_in(card.split("## Results")[1].split("## Training data")[0])


@pytest.mark.parametrize(
    "sneaked",
    ["It is 1.7 times as fast.", "{{ 100 * 0.8731 }}", "{{ sections | length + 4711 }}", "Of 123,456 images."],
)
def test_a_number_that_comes_from_nowhere_is_found(sneaked: str, tmp_path: Path) -> None:
    template = tmp_path / "template.md"
    template.write_text(TEMPLATE_PATH.read_text(encoding="utf-8") + sneaked, encoding="utf-8")
    assert unexplained(*drawn(random.Random(1)), template)
