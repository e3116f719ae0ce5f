# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Model cards, rendered from the configuration, records and facts alone.

Every number in a card comes from a record, and what is not known prints nothing. Facts are what neither records nor
configuration know, in a JSON file beside the checkpoint. The template lies beside this file, so that an installed
package has it too.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from transformers import AutoConfig, PreTrainedConfig, TrainingArguments
from transformers.utils import CONFIG_NAME

from ..configuration_holistic_clip import HolisticCLIPConfig
from ..evaluation.branch_report import TASK as BRANCHES
from ..evaluation.branch_report import branch_picture
from ..evaluation.ranking import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from ..evaluation.records import (
    BY_NAME,
    FUSED,
    PER_PERSPECTIVE,
    UNUSABLE,
    Detail,
    Record,
    describe,
    differing_unusable,
    load_records,
    records_of,
)
from ..evaluation.retrieval import CAPTION_SETS, note_of_few_images
from ..field_types import require_types
from ..initialization import saved_caption_form
from ..locks import hold_lock, lock_beside
from ..storage import field_names, parse_json, require_keys, write_atomically, write_json, write_text
from ..words import markdown_table
from .eval_results import RECORDS_FILE, ListedResult, eval_results, write_eval_results

FACTS_FILE = "card_facts.json"
Fact = Detail
# Of training arguments: where things lie, how they are watched and who may push say nothing about a model.
NOT_OF_THE_RECIPE = (
    *(
        "_dir",
        "_folder",
        "_token",
        "_path",
        "hub_",
        "push_to_hub",
        "run_name",
        "resume_from",
        "local_rank",
        "project",
        "trackio_",
    ),
    *(
        "logging_",
        "report_to",
        "tqdm",
        "log_level",
        "skip_memory_metrics",
        "project",
        "save_",
        "eval_",
        "do_",
        "use_cpu",
    ),
    *("dataloader_num_workers", "dataloader_pin_memory", "prefetch_factor"),
)


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
class EnvironmentalCost:
    """Cost of training, as far as somebody measured it. Grams of CO2 are of the whole training."""

    hardware: str = ""
    hours: float | None = None
    kilowatt_hours: float | None = None
    co2_grams: float | None = None
    location: str = ""

    @property
    def rows(self) -> dict[str, Fact]:
        """Return what is known, by what it is called."""
        told = {
            "hardware": self.hardware or None,
            "hours": self.hours,
            "energy, kWh": self.kilowatt_hours,
            "CO₂ emitted, g": self.co2_grams,
            "place": self.location or None,
        }
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True)
class CardFacts:
    """Facts for a card that neither records nor configuration know. Only the first two must be known.

    Args:
        repo_id: Repository of the card as `owner/name`, which `from_pretrained` is given.
        model_name: the name under which this checkpoint's records were taken.
        license: Licence of the weights, as the Hub spells it (`apache-2.0`, `cc-by-sa-4.0` ...).
        language: Language of the texts (`en`).
        base_model: the Hub name of the checkpoint it was started from.
        summary: a paragraph under the title.
        perspectives: Description of each perspective's captions, by its name.
        training_data: Origin of images and captions.
        training: the recipe, every value that is not a default: see `changed_arguments`.
        cost: Cost of the training.
        limitations: one sentence each, biases too.
        pictures: file in the repository by alternative text.
        code_url: Address of the code base.
        heading: Heading of the card. Default: the end of `repo_id`.
        listed_results: Records that the Hub lists on the leaderboards of benchmarks.
    """

    repo_id: str
    model_name: str
    license: str = ""
    language: str = ""
    base_model: str = ""
    summary: str = ""
    perspectives: Mapping[str, str] = field(default_factory=dict)
    training_data: Sequence[TrainingData] = ()
    training: Mapping[str, Fact] = field(default_factory=dict)
    cost: EnvironmentalCost = EnvironmentalCost()
    limitations: Sequence[str] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    code_url: str = ""
    heading: str = ""
    listed_results: Sequence[ListedResult] = ()

    @property
    def title(self) -> str:
        return self.heading or self.repo_id.split("/")[-1]


def save_facts(path: str | os.PathLike, facts: CardFacts) -> None:
    """Write facts as JSON; the file is replaced in one step."""
    write_json(Path(path), asdict(facts))


def load_facts(path: str | os.PathLike) -> CardFacts:
    """Return facts as `save_facts` wrote them; what is left out is unknown. Raises `ValueError` for anything else."""
    try:
        told = parse_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}). Correct it, or delete it: it is then made of names alone."
        ) from error
    told = require_keys(str(path), told, field_names(CardFacts), ["repo_id", "model_name"])
    require_types(str(path), told, get_type_hints(CardFacts))
    data = _read_entries(f"{path}, training_data", told.pop("training_data", []), TrainingData)
    listed = _read_entries(f"{path}, listed_results", told.pop("listed_results", []), ListedResult)
    cost = require_keys(f"{path}, cost", told.pop("cost", {}), field_names(EnvironmentalCost))
    require_types(f"{path}, cost", cost, get_type_hints(EnvironmentalCost))
    return CardFacts(**told, training_data=data, cost=EnvironmentalCost(**cost), listed_results=listed)


def _read_entries(place: str, told: Sequence[Any], kind: type[Any]) -> tuple[Any, ...]:
    needed = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
    entries = [require_keys(place, one, field_names(kind), needed) for one in told]
    for each in entries:
        require_types(place, each, get_type_hints(kind))
    return tuple(kind(**each) for each in entries)


def known_facts(checkpoint: Path) -> CardFacts:
    """Read `card_facts.json` beside a checkpoint; without it, the name of its folder is all that is known."""
    path, name = checkpoint / FACTS_FILE, checkpoint.absolute().name
    return load_facts(path) if path.is_file() else CardFacts(name, model_name=name)


def changed_arguments(args: TrainingArguments) -> dict[str, Fact]:
    """Return every training argument that is not at its default and bears on the result, by name."""
    usual: Any = type(args)(output_dir=args.output_dir)
    changed = {}
    for item in fields(args):
        value = getattr(args, item.name)
        if value == getattr(usual, item.name) or any(part in item.name for part in NOT_OF_THE_RECIPE):
            continue
        changed[item.name] = value if isinstance(value, Fact) else _in_words(value)
    return changed


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


DIRECTION_NAMES = {TEXT_TO_IMAGE: "text → image", IMAGE_TO_TEXT: "image → text"}
IN_PERCENT = ("recall", "mean_average_precision")
AT_ONCE = "all at once"  # the row of caption sets
Cell = tuple[str, str]  # perspective and direction: a row of the retrieval tables


class Section(NamedTuple):
    """A table of results, with a heading and a sentence on how to read it."""

    title: str
    text: str
    table: str


def result_sections(records: Sequence[Record], model: str, names: Sequence[str]) -> list[Section]:
    """Return sections on the data that `model` was measured on; other models appear where they are compared with it.

    `names` are the branches, whose order the tables keep. Records of the branch report are left to its picture.
    """
    sections = []
    records = [record for record in records if record.task != BRANCHES]
    for dataset, split in dict.fromkeys((record.dataset, record.split) for record in records if record.model == model):
        here = [record for record in records if (record.dataset, record.split) == (dataset, split)]
        retrieval = [record for record in here if record.details.get("protocol") in (PER_PERSPECTIVE, CAPTION_SETS)]
        own, where = [record for record in retrieval if record.model == model], f"{dataset}, {split}"
        if own:
            sections.append(_retrieval_section(where, own, names))
        if len({record.details["branch"] for record in own}) > 1:
            sections.append(_branch_section(where, own, names))
        if own and len({record.model for record in retrieval}) > 1:
            sections.append(_comparison_section(where, retrieval, names, model))
        others = [record for record in here if record not in retrieval]
        if others:
            sections.append(_other_section(where, others))
    return sections


def _retrieval_section(where: str, records: Sequence[Record], names: Sequence[str]) -> Section:
    fused = [record for record in records if record.details["branch"] == FUSED]
    labels = list(dict.fromkeys(record.label for record in sorted(fused, key=_label_order)))
    table = [["texts", "direction", *(label.replace("_", " ") for label in labels), "queries", "candidates"]]
    for cell, row in _by_cell(fused, names).items():
        found = _by_name(row, [record.label for record in row])
        counts = row[0].counts
        table.append(
            [*_cell_names(cell)]
            + [_with_chance(found[label]) if label in found else "" for label in labels]
            + [f"{counts[name]:,}" for name in ("n_queries", "n_candidates")]
        )
    text = (
        "Retrieval by the fused vector, one row for each perspective of the texts. Recall and precision in percent, "
        "with their 95 % intervals; behind the stroke what chance would give on the same data. Ties count against the "
        "model."
    )
    if any(record.details["protocol"] == CAPTION_SETS for record in records):
        text += f" In the row `{AT_ONCE}` all captions of an image ask together."
    if note := note_of_few_images(records):
        text += f" **{note}**"
    return Section(f"Retrieval on {where}", text, markdown_table(table[0], table[1:]))


def _branch_section(where: str, records: Sequence[Record], names: Sequence[str]) -> Section:
    label, records = _headline(records)
    branches = sorted({str(record.details["branch"]) for record in records}, key=_order_of([FUSED, *names, BY_NAME]))
    table = [["texts", "direction", *branches, "chance"]]
    for cell, row in _by_cell(records, names).items():
        found = _by_name(row, [str(record.details["branch"]) for record in row])
        table.append([*_cell_names(cell), *_best_in_bold(found, branches), _chance(row)])
    text = f"The same by each branch alone: {label} in percent; the best of a row in bold."
    if BY_NAME in branches:
        text += " By name, each caption is answered by the branch of its own perspective."
    return Section(f"Branches on {where}", text, markdown_table(table[0], table[1:]))


def _comparison_section(where: str, records: Sequence[Record], names: Sequence[str], own_model: str) -> Section:
    label, records = _headline([record for record in records if record.details["branch"] == FUSED])
    models = sorted({record.model for record in records}, key=_order_of([own_model]))
    table = [["texts", "direction", *models, "chance"]]
    for cell, row in _by_cell(records, names).items():
        sizes = [{name: count for name, count in record.counts.items() if name != UNUSABLE} for record in row]
        if any(each != sizes[0] for each in sizes):
            raise ValueError(
                f"On {where}, {' '.join(cell)}, the models {', '.join(models)} were measured on different numbers of "
                "queries or candidates, so their records cannot be compared. Evaluate them on the same corpus."
            )
        found = _by_name(row, [record.model for record in row])
        table.append([*_cell_names(cell), *_best_in_bold(found, models), _chance(row)])
    text = f"The same texts and images, each model by its fused vector: {label} in percent; the best of a row in bold."
    if told := differing_unusable({model: [each for each in records if each.model == model] for model in models}):
        text += f" Images and captions that could not be used differ in number: {told}."
    return Section(f"Models compared on {where}", text, markdown_table(table[0], table[1:]))


def _other_section(where: str, records: Sequence[Record]) -> Section:
    table = [["model", "measurement", "value", "chance"]]
    for record in records:
        chance = "" if record.chance is None else f"{record.chance:.4g}"
        table.append([record.model, f"{record.task}, {describe(record)}", f"{record.value:.4g}", chance])
    return Section(
        f"Other measurements on {where}", "Shares as fractions of one.", markdown_table(table[0], table[1:])
    )


def _headline(records: Sequence[Record]) -> tuple[str, list[Record]]:
    """Return the recall at the smallest k, the field's headline number, and its records."""
    recalls = [record for record in records if record.metric == "recall"]
    label = min(recalls, key=_label_order).label
    return label, [record for record in recalls if record.label == label]


def _by_cell(records: Iterable[Record], names: Sequence[str]) -> dict[Cell, list[Record]]:
    """Return records of one perspective and direction together, perspectives in the order of the branches."""
    cells: dict[Cell, list[Record]] = {}
    for record in records:
        at_once = record.details["protocol"] == CAPTION_SETS
        texts = AT_ONCE if at_once else str(record.details["perspective"])
        cells.setdefault((texts, str(record.details["direction"])), []).append(record)
    by_name, by_direction = _order_of(names), _order_of(list(DIRECTION_NAMES))
    return {cell: cells[cell] for cell in sorted(cells, key=lambda cell: (by_name(cell[0]), by_direction(cell[1])))}


def _by_name(row: Sequence[Record], names: Sequence[str]) -> dict[str, Record]:
    if len(set(names)) < len(names):
        raise ValueError(
            f"Several records stand for one place of a table: {'; '.join(describe(record) for record in row)}. Pass "
            "records of one fusion."
        )
    return dict(zip(names, row, strict=True))


def _order_of(names: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    return lambda name: (names.index(name) if name in names else len(names), name)


def _label_order(record: Record) -> tuple[bool, int]:
    return record.metric != "recall", int(record.details.get("k", 0))


def _cell_names(cell: Cell) -> tuple[str, str]:
    return cell[0], DIRECTION_NAMES.get(cell[1], cell[1])


def _best_in_bold(found: Mapping[str, Record], names: Sequence[str]) -> list[str]:
    best = max(record.value for record in found.values())
    shown = {name: _number(record, record.value) for name, record in found.items()}
    return [
        f"**{shown[name]}**" if name in found and found[name].value == best else shown.get(name, "") for name in names
    ]


def _with_chance(record: Record) -> str:
    text = _number(record, record.value)
    if record.confidence_interval is not None:
        low, high = record.confidence_interval
        text += f" ({_number(record, low)}–{_number(record, high)})"
    return text if record.chance is None else f"{text} / {_number(record, record.chance)}"


def _chance(row: Sequence[Record]) -> str:
    return next((_number(record, record.chance) for record in row if record.chance is not None), "")


def _number(record: Record, value: float) -> str:
    return f"{100 * value:.1f}" if record.metric in IN_PERCENT else f"{value:g}"


TEMPLATE_PATH = Path(__file__).with_name("model_card_template.md")
CARD_FILE = "README.md"
TAGS = ("holistic-clip", "clip", "image-text-retrieval", "multi-branch", "arxiv:2412.00440")
MATCHING_NAMES = {
    "aligned": "aligned: by name",
    "free": "free: the best branch on the true pair",
    "balanced": "balanced: captions shared out evenly between the branches",
}
# Said by the rows of the architecture, or by how the files are written and read.
SAID_ELSEWHERE = {
    *("perspectives", "matching", "fusion", "projection_dim", "matryoshka_dims", "num_branches", "branch_type"),
    *("hidden_size", "num_hidden_layers", "image_size", "patch_size", "max_position_embeddings"),
    *("model_type", "architectures", "auto_map", "dtype", "transformers_version", "_name_or_path"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("stage_names", "out_features", "out_indices"),  # of a backbone, whose `depths` say them
}


def render_model_card(
    config: HolisticCLIPConfig,
    records: Sequence[Record],
    facts: CardFacts,
    *,
    caption_form: str | None = None,
    caption_perspectives: Sequence[str] = (),
    template_path: Path = TEMPLATE_PATH,
) -> str:
    """Return the whole README.md of a checkpoint, front matter included.

    `records` may hold other models too: they are compared with this one, on the same data. `caption_form` and
    `caption_perspectives` are those of the processor. Raises `ValueError` where there are records but none of
    `facts.model_name`, or models were compared on different data.

    >>> facts = CardFacts(repo_id="someone/holistic-clip-emoji", model_name="emoji", license="apache-2.0")
    >>> Path("README.md").write_text(render_model_card(config, load_records("results.json"), facts))
    """
    names = list(config.perspectives or ())
    own = records_of(records, facts.model_name)
    if records and not own:
        measured = ", ".join(sorted({record.model for record in records}))
        raise ValueError(f"No record is of {facts.model_name!r}; they are of {measured}. Set `CardFacts.model_name`.")
    card = ModelCard.from_template(
        _front_matter(own, facts),
        template_path=str(template_path),
        facts=facts,
        perspectives=names,
        fusion=config.fusion if len(names) > 1 else "",
        architecture=_architecture(config),
        settings=_settings(config),
        text_length=_text_length(config),
        caption_form=caption_form,
        caption_perspectives=caption_perspectives,
        sections=result_sections(records, facts.model_name, names),
        runs=_runs(own),
    )
    return f"{card}\n"


def write_model_card(folder: str | Path) -> Path:
    """Render a folder's `README.md` from its `config.json` and, if there, `card_facts.json` and `results.json`.

    Draws the branch report of each data set as a picture beside it, and enters the pictures in the facts. Results that
    the facts list for benchmarks of the Hub are written into `.eval_results`.

    Raises:
        ValueError: a file is missing, or is not what its name says.
        ImportError: there is a branch report to draw, and matplotlib is not installed.
    """
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(
            f"`checkpoint` is {folder}, which has no {CONFIG_NAME}; expected the folder of a checkpoint or of a card. "
            "Correct the path."
        )
    config, card = AutoConfig.from_pretrained(folder, trust_remote_code=False), folder / CARD_FILE
    with hold_lock(lock_beside(card), wait=math.inf, keep=False):
        facts = known_facts(folder)
        records = load_records(folder / RECORDS_FILE) if (folder / RECORDS_FILE).is_file() else []
        own = records_of(records, facts.model_name)
        drawn = _draw_branches(own, config)
        facts = replace(facts, pictures={**facts.pictures, **{text: name for text, (name, _) in drawn.items()}})
        form, written = saved_caption_form(folder)
        text = render_model_card(config, records, facts, caption_form=form, caption_perspectives=written)
        listed = eval_results(own, facts.listed_results, facts.repo_id)
        # Nothing is written before all of it is known to be right.
        for name, picture in drawn.values():
            with write_atomically(folder / name) as file:
                picture.save(file, "PNG")
        save_facts(folder / FACTS_FILE, facts)
        write_eval_results(folder, listed)
        write_text(card, text)
    return card


def _draw_branches(own: Sequence[Record], config: HolisticCLIPConfig) -> dict[str, tuple[str, Image.Image]]:
    """Draw pictures, one for each split of a data set on which branches were measured: name and picture by
    alternative text.
    """
    pictures = {}
    names = config.perspectives
    for dataset, split in dict.fromkeys((record.dataset, record.split) for record in own):
        here = [record for record in own if (record.dataset, record.split) == (dataset, split)]
        if any(record.details.get("branch") in names for record in here):
            name = f"branches-{re.sub('[^A-Za-z0-9]+', '-', f'{dataset}-{split}')}.png"
            text = f"What each branch finds on {dataset}, {split}: recall of each branch on each perspective"
            pictures[text] = (name, branch_picture(here, names=names))
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
    family = f"{vision.backbone.model_type}, " if hasattr(vision, "backbone_config") else ""
    rows = {
        "image tower": f"{family}{vision.num_hidden_layers} layers of width {vision.hidden_size}, {size}",
        "text tower": f"{text.num_hidden_layers} layers of width {text.hidden_size}, "
        f"{text.max_position_embeddings} tokens",
        "vector": f"{config.projection_dim} numbers",
    }
    if prefixes := [width for width in config.matryoshka_dims if width < config.projection_dim]:
        rows["vector"] += f"; the first {' or '.join(map(str, prefixes))} were trained to serve alone"
    if vision.num_branches > 1:
        kind = {"cls": "class tokens", "mlp": "branched MLPs", "probe": "probes"}[vision.branch_type]
        own = ", each with MLPs of its own" if getattr(vision, "branched_token_mlp", False) else ""
        rows["branches"] = f"{vision.num_branches} {kind}{own}"
        rows["matching of branch and caption"] = MATCHING_NAMES.get(config.matching, config.matching)
        rows["fusion"] = config.fusion
    return rows


def _text_length(config: HolisticCLIPConfig) -> int:
    text: Any = config.text_config  # a dictionary in the signature, never after construction
    return text.max_position_embeddings


def _settings(config: HolisticCLIPConfig) -> dict[str, Any]:
    """Return every other value of the configuration that is not at its default; of a tower with the tower's name
    before.
    """

    sections: dict[str, tuple[PreTrainedConfig, PreTrainedConfig]] = {"": (config, type(config)())}
    for tower in ("text_config", "vision_config"):
        settings: PreTrainedConfig = getattr(config, tower)
        sections[f"{tower}."] = (settings, type(settings)())
        backbone = getattr(settings, "backbone_config", None)
        if backbone is not None:
            sections[f"{tower}.backbone_config."] = (backbone, type(backbone)())
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
