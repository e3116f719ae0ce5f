# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Result tables of a model card, in Markdown, from records alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..evaluation.branch_report import TASK as BRANCHES
from ..evaluation.caption_sets import CAPTION_SETS
from ..evaluation.ranking import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from ..evaluation.records import BY_NAME, FUSED, PER_PERSPECTIVE, Record

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
    """Sections on the data that `model` was measured on; other models appear where they are compared with it.

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
    return Section(f"Retrieval on {where}", text, _markdown_table(table))


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
    return Section(f"Branches on {where}", text, _markdown_table(table))


def _comparison_section(where: str, records: Sequence[Record], names: Sequence[str], own_model: str) -> Section:
    label, records = _headline([record for record in records if record.details["branch"] == FUSED])
    models = sorted({record.model for record in records}, key=_order_of([own_model]))
    table = [["texts", "direction", *models, "chance"]]
    for cell, row in _by_cell(records, names).items():
        if len({tuple(sorted(record.counts.items())) for record in row}) > 1:
            raise ValueError(
                f"On {where}, {' '.join(cell)}, the models {', '.join(models)} were measured on different numbers of "
                "queries or candidates, so their records cannot be compared. Evaluate them on the same corpus."
            )
        found = _by_name(row, [record.model for record in row])
        table.append([*_cell_names(cell), *_best_in_bold(found, models), _chance(row)])
    text = f"The same texts and images, each model by its fused vector: {label} in percent; the best of a row in bold."
    return Section(f"Models compared on {where}", text, _markdown_table(table))


def _other_section(where: str, records: Sequence[Record]) -> Section:
    table = [["model", "measurement", "value", "chance"]]
    for record in records:
        chance = "" if record.chance is None else f"{record.chance:.4g}"
        table.append([record.model, f"{record.task}, {describe(record)}", f"{record.value:.4g}", chance])
    return Section(f"Other measurements on {where}", "Shares as fractions of one.", _markdown_table(table))


def _headline(records: Sequence[Record]) -> tuple[str, list[Record]]:
    """The recall at the smallest k, the field's headline number, and its records."""
    recalls = [record for record in records if record.metric == "recall"]
    label = min(recalls, key=_label_order).label
    return label, [record for record in recalls if record.label == label]


def _by_cell(records: Iterable[Record], names: Sequence[str]) -> dict[Cell, list[Record]]:
    """Records of one perspective and direction together, perspectives in the order of the branches."""
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


def describe(record: Record) -> str:
    """What a record measured, in words."""
    details = [str(value).replace("_", " ") for name, value in sorted(record.details.items()) if name != "k"]
    return ", ".join([*details, record.label])


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
