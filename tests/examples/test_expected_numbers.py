"""What the recipes of the emoji say to expect is what the records say."""

import re
from pathlib import Path

import pytest

from holistic_clip_hf.evaluation.ranking import TEXT_TO_IMAGE
from holistic_clip_hf.evaluation.records import FUSED, PER_PERSPECTIVE, Record, load_records

ROOT = Path(__file__).parents[2]


def recalls(records: list[Record]) -> dict[str, float]:
    """Recall@5 in percent of the holistic run's fused score, text to image, by perspective."""
    wanted = {"protocol": PER_PERSPECTIVE, "branch": FUSED, "direction": TEXT_TO_IMAGE}
    return {
        str(record.details["perspective"]): 100 * record.value
        for record in records
        if record.model == "holistic" and record.label == "recall@5" and wanted.items() <= dict(record.details).items()
    }


@pytest.mark.parametrize("name", ["emoji", "emoji_long"])
def test_the_head_of_a_recipe_tells_the_recorded_numbers(name: str) -> None:
    head = (ROOT / f"training/recipes/{name}.yaml").read_text().partition("corpus:")[0].replace("\n#", " ")
    told = {what: re.findall(r"\d+\.\d", head.partition(what)[2].partition("%")[0]) for what in ("`short`", "mean")}
    found: dict[str, list[str]] = {"`short`": [], "mean": []}
    paths = sorted((ROOT / f"model_cards/holistic-clip-{name.replace('_', '-')}").glob("results*.json"))
    for seed, path in enumerate(paths):
        records = load_records(path)
        assert {record.seed for record in records} == {seed}
        values = recalls(records)
        found["`short`"].append(f"{values['short']:.1f}")
        found["mean"].append(f"{sum(values.values()) / len(values):.1f}")
    assert told == found
