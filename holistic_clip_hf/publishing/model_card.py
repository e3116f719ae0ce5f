# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards, rendered from the configuration, records and facts alone.

No number is in a card without a record; what is not known prints nothing. The template lies beside this file, so that
an installed package has it too.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from ..atomic import write_atomically
from ..configuration_holistic_clip import HolisticCLIPConfig
from ..evaluation.branch_picture import branch_picture
from ..evaluation.branch_report import TASK as BRANCHES
from ..evaluation.records import FUSED, Record, load_records
from .card_facts import FACTS_FILE, CardFacts, load_facts, save_facts
from .result_tables import describe, result_sections

TEMPLATE_PATH = Path(__file__).with_name("model_card_template.md")
CARD_FILE, RECORDS_FILE = "README.md", "results.json"
TAGS = ("holistic-clip", "clip", "image-text-retrieval", "multi-branch", "arxiv:2412.00440")

MATCHING_NAMES = {
    "aligned": "aligned: by name",
    "free": "free: the best branch on the true pair",
    "balanced": "balanced: captions shared out evenly between the branches",
}
# Said by the rows of the architecture, or by how the files are written and read.
SAID_ELSEWHERE = {
    *("perspectives", "matching", "fusion", "projection_dim", "num_branches", "branch_type"),
    *("hidden_size", "num_hidden_layers", "image_size", "patch_size", "max_position_embeddings"),
    *("model_type", "architectures", "auto_map", "dtype", "transformers_version", "_name_or_path"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}


def render_model_card(
    config: HolisticCLIPConfig,
    records: Sequence[Record],
    facts: CardFacts,
    *,
    template_path: Path = TEMPLATE_PATH,
) -> str:
    """The whole README.md of a checkpoint, front matter included.

    `records` may hold other models too: they are compared with this one, on the same data. Raises `ValueError` where
    there are records but none of `facts.model_name`, or models were compared on different data.

    >>> facts = CardFacts(repo_id="someone/holistic-clip-emoji", model_name="emoji", license="apache-2.0")
    >>> Path("README.md").write_text(render_model_card(config, load_records("results.json"), facts))
    """
    names = list(config.perspectives or ())
    own = [record for record in records if record.model == facts.model_name]
    if records and not own:
        measured = ", ".join(sorted({record.model for record in records}))
        raise ValueError(f"No record is of {facts.model_name!r}; they are of {measured}. Set `CardFacts.model_name`.")
    card = ModelCard.from_template(
        _front_matter(own, facts),
        template_path=str(template_path),
        facts=facts,
        perspectives=names,
        architecture=_architecture(config),
        settings=_settings(config),
        text_length=_text_length(config),
        sections=result_sections(records, facts.model_name, names),
        runs=_runs(own),
    )
    return f"{card}\n"


def write_model_card(folder: str | Path) -> Path:
    """Render a folder's `README.md` from its `config.json`, `card_facts.json` and, if there, `results.json`.

    Draws the branch report of each data set as a picture beside it, and enters the pictures in the facts.

    Raises:
        ValueError: a file is missing, or is not what its name says.
        ImportError: there is a branch report to draw, and matplotlib is not installed.
    """
    folder = Path(folder)
    missing = [name for name in (CONFIG_NAME, FACTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {' and '.join(missing)}; a card is rendered from both. See `save_facts`.")
    config = HolisticCLIPConfig.from_pretrained(folder)
    facts = load_facts(folder / FACTS_FILE)
    records = load_records(folder / RECORDS_FILE) if (folder / RECORDS_FILE).is_file() else []
    pictures = _draw_branches([record for record in records if record.model == facts.model_name], config, folder)
    facts = replace(facts, pictures={**facts.pictures, **pictures})
    save_facts(folder / FACTS_FILE, facts)
    card = folder / CARD_FILE
    with write_atomically(card) as file:
        file.write(render_model_card(config, records, facts).encode())
    return card


def _draw_branches(own: Sequence[Record], config: HolisticCLIPConfig, folder: Path) -> dict[str, str]:
    """Pictures by alternative text, one for each split of a data set on which branches were measured."""
    pictures = {}
    names = config.perspectives
    for dataset, split in dict.fromkeys((record.dataset, record.split) for record in own):
        here = [record for record in own if (record.dataset, record.split) == (dataset, split)]
        if any(record.details.get("branch") in names for record in here):
            name = f"branches-{re.sub('[^A-Za-z0-9]+', '-', f'{dataset}-{split}')}.png"
            branch_picture(here, names=names).save(folder / name)
            pictures[f"What each branch finds on {dataset}, {split}: recall of each branch on each perspective"] = name
    return pictures


def _front_matter(own: Sequence[Record], facts: CardFacts) -> ModelCardData:
    results = [
        EvalResult(
            task_type=record.task,
            dataset_type=record.dataset,
            dataset_name=record.dataset,
            dataset_split=record.split,
            metric_type=record.label,
            metric_name=describe(record),
            metric_value=round(record.value, 4),
        )
        for record in own
        # The branches' own numbers are in tables and picture; hundreds of them would bury the rest.
        if record.details.get("branch", FUSED) == FUSED and record.task != BRANCHES
    ]
    return ModelCardData(
        license=facts.license or None,
        language=facts.language or None,
        base_model=facts.base_model or None,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=list(TAGS),
        datasets=[data.hub_id for data in facts.training_data if data.hub_id] or None,
        model_name=facts.title,
        eval_results=results or None,
        **_emissions(facts),
    )


def _emissions(facts: CardFacts) -> dict[str, Any]:
    if facts.cost.co2_grams is None:
        return {}
    told = {"hardware_used": facts.cost.hardware, "geographical_location": facts.cost.location}
    return {"co2_eq_emissions": {"emissions": facts.cost.co2_grams, **{k: v for k, v in told.items() if v}}}


def _architecture(config: HolisticCLIPConfig) -> dict[str, str]:
    # Both are dictionaries in the signature of the configuration, but never after its construction.
    vision: Any = config.vision_config
    text: Any = config.text_config
    size = f"images of {vision.image_size} pixels, patches of {vision.patch_size}"
    rows = {
        "image tower": f"{vision.num_hidden_layers} layers of width {vision.hidden_size}, {size}",
        "text tower": f"{text.num_hidden_layers} layers of width {text.hidden_size}, "
        f"{text.max_position_embeddings} tokens",
        "vector": f"{config.projection_dim} numbers",
    }
    if vision.num_branches > 1:
        kind = {"cls": "class tokens", "mlp": "branched MLPs"}[vision.branch_type]
        rows["branches"] = f"{vision.num_branches} {kind}"
        rows["matching of branch and caption"] = MATCHING_NAMES.get(config.matching, config.matching)
        rows["fusion"] = config.fusion
    return rows


def _text_length(config: HolisticCLIPConfig) -> int:
    text: Any = config.text_config  # a dictionary in the signature, never after construction
    return text.max_position_embeddings


def _settings(config: HolisticCLIPConfig) -> dict[str, Any]:
    """Every other value of the configuration that is not at its default; of a tower with the tower's name before."""

    sections: dict[str, tuple[PreTrainedConfig, PreTrainedConfig]] = {"": (config, HolisticCLIPConfig())}
    for tower in ("text_config", "vision_config"):
        settings: PreTrainedConfig = getattr(config, tower)
        sections[f"{tower}."] = (settings, type(settings)())
    changed = {}
    for prefix, (told, usual) in sections.items():
        default = usual.to_dict()
        for name, value in told.to_dict().items():
            if name not in SAID_ELSEWHERE and value != default.get(name) and not isinstance(value, dict):
                changed[f"{prefix}{name}"] = value
    return changed


def _runs(own: Sequence[Record]) -> list[dict[str, str]]:
    runs: dict[str, Record] = {}
    for record in own:
        latest = runs.setdefault(record.command, record)
        if record.timestamp > latest.timestamp:
            runs[record.command] = record
    return [{"command": command, "facts": _run_facts(record)} for command, record in runs.items()]


def _run_facts(record: Record) -> str:
    facts = [f"{package} {version}" for package, version in record.versions.items()]
    if record.commit:
        facts.append(f"commit {record.commit}{' with uncommitted changes' if record.uncommitted_changes else ''}")
    return ", ".join([*facts, f"seed {record.seed}", record.timestamp])
