# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards, rendered from the configuration, records and facts alone.

No number is in a card without a record; what is not known prints nothing. The template lies beside this file, so that
an installed package has it too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..configuration_holistic_clip import HolisticCLIPConfig
from ..evaluation.records import FUSED, Record
from .result_tables import describe, result_sections

TEMPLATE_PATH = Path(__file__).with_name("model_card_template.md")
TAGS = ("holistic-clip", "clip", "image-text-retrieval", "multi-branch", "arxiv:2412.00440")

MATCHING_NAMES = {
    "aligned": "aligned: by name",
    "free": "free: the best branch on the true pair",
    "balanced": "balanced: captions shared out evenly between the branches",
}


@dataclass(frozen=True)
class TrainingData:
    """One source of images: its licence in words, its page, its name on the Hub, and what captioned it."""

    name: str
    license: str
    url: str = ""
    hub_id: str = ""
    num_images: int | None = None
    captions: str = ""


@dataclass(frozen=True)
class CardFacts:
    """What a card says that neither records nor configuration know. Only the first two must be known.

    Args:
        repo_id: where the card will stand, `owner/name`: what `from_pretrained` is given.
        model_name: the name under which this checkpoint's records were taken.
        license: of the weights, as the Hub spells it (`apache-2.0`, `cc-by-sa-4.0` ...).
        language: of the texts (`en`).
        base_model: the Hub name of the checkpoint it was started from.
        summary: a paragraph under the title.
        training_data: where images and captions came from.
        training: the procedure as rows of a table: hardware, duration, batch size ...
        limitations: one sentence each.
        pictures: file in the repository by alternative text.
        code_url: of the code base.
        heading: of the card; default: the end of `repo_id`.
    """

    repo_id: str
    model_name: str
    license: str = ""
    language: str = ""
    base_model: str = ""
    summary: str = ""
    training_data: Sequence[TrainingData] = ()
    training: Mapping[str, str | int | float] = field(default_factory=dict)
    limitations: Sequence[str] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    code_url: str = ""
    heading: str = ""

    @property
    def title(self) -> str:
        return self.heading or self.repo_id.split("/")[-1]


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
        sections=result_sections(records, facts.model_name, names),
        runs=_runs(own),
    )
    return f"{card}\n"


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
        # The branches' own numbers are in the tables; hundreds of them would bury the rest.
        if record.details.get("branch", FUSED) == FUSED
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
    )


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
