"""The card: golden text, no number without a record, and nothing printed for what is not known.

`tests/data/model_card.md` is the expected text, read by a person. After a deliberate change of the template, write it
anew with `python -m tests.test_model_card` and read it again.
"""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from holistic_clip_hf import HolisticCLIPConfig
from holistic_clip_hf.evaluation.records import Provenance, Record
from holistic_clip_hf.publishing.model_card import CardFacts, EnvironmentalCost, TrainingData, render_model_card

HEADINGS = ["# plain", "## Use", "## Results", "## Limits and biases", "## Citation"]
GOLDEN = Path(__file__).parents[1] / "data" / "model_card.md"

TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = HolisticCLIPConfig(
    perspectives=["object", "style"],
    fusion="mean",
    projection_dim=32,
    text_config={**TOWER, "max_position_embeddings": 40},
    vision_config={**TOWER, "image_size": 48, "patch_size": 8},
)
PLAIN = HolisticCLIPConfig(perspectives=["all"], text_config=TOWER, vision_config=TOWER)
PROVENANCE = Provenance(
    model="emoji",
    dataset="drawings",
    split="test",
    seed=0,
    command="python -m training.evaluate --model runs/emoji",
    commit="0123abc",
    uncommitted_changes=True,
    versions={"python": "3.11.7", "torch": "2.13.0"},
    timestamp="2026-01-02T03:04:05+00:00",
)
FACTS = CardFacts(
    repo_id="someone/holistic-emoji",
    model_name="emoji",
    license="cc-by-sa-4.0",
    language="en",
    base_model="openai/clip-vit-base-patch32",
    summary="Tells emoji apart by what they show and by how they are drawn.",
    training_data=[
        TrainingData("OpenMoji", "CC BY-SA 4.0", "https://openmoji.org", "someone/drawings", 4321, "from metadata"),
        TrainingData("Own drawings", "CC0"),
    ],
    perspectives={"object": "the name of the thing"},
    training={"max_steps": 7, "images per step": 192},
    cost=EnvironmentalCost("2 CPU cores", 0.25, co2_grams=12.5),
    limitations=["Photographs were never seen."],
    pictures={"What it finds": "retrieval.png"},
    code_url="https://example.com/code",
)


def retrieval(value: float, perspective: str, direction: str, branch: str = "fused", k: int = 1, **changes) -> Record:
    details = {
        "protocol": "per_perspective",
        "perspective": perspective,
        "direction": direction,
        "branch": branch,
        "k": k,
    }
    record = Record(
        **vars(PROVENANCE),
        metric="recall",
        value=value,
        task="retrieval",
        details=details,
        counts={"n_queries": 1234, "n_candidates": 56, "n_left_out": 0},
        chance=0.0179 * k,
        confidence_interval=(value - 0.0311, value + 0.0289) if branch == "fused" else None,
    )
    return replace(record, **changes)


def records() -> list[Record]:
    """Distinct values, so that a number in the wrong cell is seen."""
    found, value = [], 0.1
    for perspective, direction in product(("style", "object"), ("image_to_text", "text_to_image")):
        for branch, k in product(("fused", "style", "object"), (5, 1)):
            found.append(retrieval(round(value, 4), perspective, direction, branch, k))
            value += 0.0173
        median = retrieval(0.0, perspective, direction)
        details = {name: detail for name, detail in median.details.items() if name != "k"}
        median = replace(
            median, metric="median_rank", value=3.5, details=details, chance=20.0, confidence_interval=None
        )
        found.append(median)
        found.append(retrieval(0.25, perspective, direction, model="baseline"))
    other = replace(found[0], task="classification", metric="accuracy", value=0.5, details={}, counts={}, chance=None)
    return [*found, replace(other, confidence_interval=None)]


def table_after(card: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, its ruler left out."""
    lines = card.split(f"\n{heading}\n", 1)[1].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return [table[0], *table[2:]]


def test_golden_text():
    assert render_model_card(CONFIG, records(), FACTS) == GOLDEN.read_text(encoding="utf-8")


def test_every_result_is_a_records_and_in_its_cell():
    by_details = {tuple(record.details.values()): record.value for record in records() if record.model == "emoji"}
    arrows = {"text → image": "text_to_image", "image → text": "image_to_text"}
    head, *rows = table_after(render_model_card(CONFIG, records(), FACTS), "### Branches on drawings, test")

    assert head == ["texts", "direction", "fused", "object", "style", "chance"]
    assert [row[:2] for row in rows] == [list(cell) for cell in product(("object", "style"), arrows)]
    for perspective, arrow, *cells, chance in rows:
        values = [by_details["per_perspective", perspective, arrows[arrow], branch, 1] for branch in head[2:5]]
        assert [cell.strip("*") for cell in cells] == [f"{100 * value:.1f}" for value in values]
        assert [cell.startswith("**") for cell in cells] == [value == max(values) for value in values]
        assert chance == "1.8"


def test_all_captions_at_once_are_the_last_row_and_by_name_the_last_branch():
    def at_once(value: float, branch: str, **changes) -> Record:
        record = retrieval(value, "all", "text_to_image", branch, **changes)
        return replace(record, details={**record.details, "protocol": "caption_sets"})

    sets = [at_once(0.61, "fused"), at_once(0.72, "by name"), at_once(0.5, "fused", model="baseline")]
    card = render_model_card(CONFIG, [*records(), *sets], FACTS)
    assert table_after(card, "### Retrieval on drawings, test")[-1][:3] == [
        "all at once",
        "text → image",
        "61.0 (57.9–63.9) / 1.8",
    ]
    head, *rows = table_after(card, "### Branches on drawings, test")
    assert head == ["texts", "direction", "fused", "object", "style", "by name", "chance"]
    assert rows[-1] == ["all at once", "text → image", "61.0", "", "", "**72.0**", "1.8"]
    assert [row[5] for row in rows[:-1]] == [""] * 4
    assert table_after(card, "### Models compared on drawings, test")[-1][2:4] == ["**61.0**", "50.0"]
    assert "`all at once` all captions of an image ask together" in card
    assert "`all at once`" not in render_model_card(CONFIG, records(), FACTS)


def test_front_matter_is_read_back_by_the_hub_client():
    data = ModelCard(render_model_card(CONFIG, records(), FACTS)).data

    assert (data.license, data.language, data.library_name) == ("cc-by-sa-4.0", "en", "transformers")
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.datasets == ["someone/drawings"]
    assert data.base_model == "openai/clip-vit-base-patch32"
    assert data.model_name == "holistic-emoji"
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert len(results) == 2 * 2 * 3 + 1  # fused only: perspectives, directions, metrics; and the accuracy
    wanted = [r for r in records() if r.model == "emoji" and r.details.get("branch", "fused") == "fused"]
    assert sorted(results.values()) == sorted(record.value for record in wanted)


def test_a_backbone_says_its_sizes():
    resnet = {"model_type": "resnet", "layer_type": "basic", "hidden_sizes": [8, 16], "depths": [1, 2]}
    config = HolisticCLIPConfig(
        perspectives=["object", "style"], text_config=TOWER, vision_config={"backbone_config": resnet}
    )
    card = render_model_card(config, [], FACTS)
    assert "| image tower | resnet, 3 layers of width 16," in card and "| branches | 2 probes |" in card
    for name, value in (("layer_type", "basic"), ("hidden_sizes", "[8, 16]"), ("depths", "[1, 2]")):
        assert f"| `vision_config.backbone_config.{name}` | {value} |" in card
    assert "embedding_size" not in card, "a default"


def test_what_is_not_known_prints_nothing():
    card = render_model_card(PLAIN, [], CardFacts(repo_id="someone/plain", model_name="plain"))

    assert re.findall("^#+ .*", card, flags=re.MULTILINE) == HEADINGS
    assert "No evaluation of this checkpoint has been recorded." in card
    for absent in (
        "license",
        "language",
        "base_model",
        "datasets",
        "model-index",
        "None",
        "branch_embeds",
        "![",
        "]()",
    ):
        assert absent not in card
    assert "\n\n\n" not in card


def test_a_single_model_is_not_compared_and_a_single_vector_has_no_branch_table():
    own = [record for record in records() if record.model == "emoji" and record.details.get("branch") == "fused"]
    card = render_model_card(CONFIG, own, FACTS)

    assert "### Retrieval on" in card
    assert "### Branches on" not in card
    assert "### Models compared" not in card
    assert "Other measurements" not in card


def test_two_data_sets_have_their_own_tables():
    both = [*records(), *(replace(record, dataset="photos") for record in records())]
    headings = re.findall("^### (.*)", render_model_card(CONFIG, both, FACTS), flags=re.MULTILINE)

    kinds = ("Retrieval", "Branches", "Models compared", "Other measurements")
    expected = [f"{kind} on {dataset}, test" for dataset in ("drawings", "photos") for kind in kinds]
    assert headings == [*expected, "How these numbers were made"]


def test_each_command_is_printed_once_with_its_latest_run():
    later = replace(retrieval(0.3, "style", "text_to_image", k=10), timestamp="2027-01-01T00:00:00+00:00")
    card = render_model_card(CONFIG, [*records(), later], FACTS)

    assert card.count(PROVENANCE.command) == 1
    assert later.timestamp in card and PROVENANCE.timestamp not in card


def test_load_lines_name_the_repository_and_code_is_python():
    card = render_model_card(CONFIG, [], FACTS)
    assert card.count('from_pretrained("someone/holistic-emoji", trust_remote_code=True)') == 2
    assert card.count('model="someone/holistic-emoji", trust_remote_code=True)') == 1
    for block in re.findall("```python\n(.*?)```", card, flags=re.DOTALL):
        compile(block, "card", "exec")


def test_records_of_other_models_alone_are_refused():
    with pytest.raises(ValueError, match="No record is of 'emoji'; they are of baseline"):
        render_model_card(CONFIG, [retrieval(0.5, "style", "text_to_image", model="baseline")], FACTS)


def test_models_measured_on_different_data_are_not_compared():
    pair = [
        retrieval(0.5, "style", "text_to_image"),
        retrieval(0.5, "style", "text_to_image", model="baseline", counts={"n_queries": 9, "n_candidates": 56}),
    ]
    with pytest.raises(ValueError, match="different numbers.*Evaluate them on the same corpus"):
        render_model_card(CONFIG, pair, FACTS)


def test_models_that_left_out_other_rows_are_compared_with_a_word():
    def card(**unusable: int) -> str:
        counts = {"n_queries": 56, "n_candidates": 56}
        pair = [retrieval(0.5, "style", "text_to_image", counts=counts)]
        pair.append(retrieval(0.5, "style", "text_to_image", model="baseline", counts=counts | unusable))
        return render_model_card(CONFIG, pair, FACTS)

    said = f"that could not be used differ in number: {FACTS.model_name} 0, baseline 2."
    assert said in card(n_unusable=2) and "could not be used" not in card()


def test_the_branch_report_is_no_result_of_the_model():
    """It has `recall` of the fused vector too, without a branch, and is in the picture."""
    base = retrieval(0.5, "style", "text_to_image")
    report = [
        replace(base, task="branches", details={**base.details, "without": "style"}),
        replace(base, task="branches", metric="wins", details={"branch": "style", "perspective": "style"}),
    ]
    assert render_model_card(CONFIG, [*records(), *report], FACTS) == render_model_card(CONFIG, records(), FACTS)


def test_emissions_are_metadata_where_they_are_known():
    data = ModelCard(render_model_card(CONFIG, [], FACTS)).data
    assert data.co2_eq_emissions == {"emissions": 12.5, "hardware_used": "2 CPU cores"}
    assert "co2" not in render_model_card(CONFIG, [], replace(FACTS, cost=EnvironmentalCost(hours=3)))


def test_two_fusions_of_one_model_do_not_hide_each_other():
    mean = retrieval(0.5, "style", "text_to_image")
    weighted = replace(mean, details={**mean.details, "fusion": "weighted"})
    with pytest.raises(ValueError, match="records of one fusion"):
        render_model_card(CONFIG, [mean, weighted], FACTS)


@pytest.mark.parametrize("fusion", ["centroid", "mean", "max", "softmax", "routed"])
def test_the_use_is_that_of_the_fusion(fusion: str) -> None:
    """Only the length of a mean ranks; maximum and softmax have no vector of the image to compare with."""
    card = render_model_card(HolisticCLIPConfig.from_dict({**CONFIG.to_dict(), "fusion": fusion}), records(), FACTS)
    assert ("Do not normalise" in card) == (fusion == "mean")
    assert ("image.pooler_output @ text.T" in card) == (fusion not in ("max", "softmax"))
    assert ("logits_per_image / model.logit_scale.exp()" in card) == (fusion in ("max", "softmax"))


if __name__ == "__main__":
    GOLDEN.write_text(render_model_card(CONFIG, records(), FACTS), encoding="utf-8")
