# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Records as tables on a screen: a line for each thing measured, a column for each metric, chance after a slash."""

from collections.abc import Sequence

from ..evaluation.branch_report import TASK as BRANCHES
from ..evaluation.branch_report import branch_panels
from ..evaluation.records import BY_NAME, FUSED, Record
from ..evaluation.retrieval import note_of_few_images

NOT_SHARES = ("median_rank", "inverse_regularisation")
SHORT_NAMES = {
    "mean_average_precision": "mAP",
    "median_rank": "median rank",
    "mean_per_class_accuracy": "per class",
    "inverse_regularisation": "C",
}
COUNTS = ("n_queries", "n_candidates", "n_left_out", "n_images", "n_train", "n_classes", "n_pixels")
IN_HEADINGS, IN_LINES = ("protocol", "templates"), ("perspective", "direction", "branch")


def results_table(records: Sequence[Record], names: Sequence[str]) -> str:
    """Return every record but the branches' answers to other perspectives' texts, which `branches` shows as matrices.

    `names` are the model's branches, in order.
    """
    sections: dict[str, list[Record]] = {}
    for record in records:
        if _is_shown(record):
            told = [str(record.details[name]) for name in IN_HEADINGS if name in record.details]
            what = BRANCHES if record.task == BRANCHES else ", ".join([record.task, *told])
            sections.setdefault(f"{what} on {record.dataset}, {record.split}", []).append(record)
    found = []
    for heading, rows in sections.items():
        shared = [] if rows[0].task == BRANCHES else _shared(rows)
        text = "; ".join([heading, *(f"{name} {rows[0].details[name]}" for name in shared)]).replace("_", " ")
        table = _matrices(records, names) if rows[0].task == BRANCHES else _table(rows, shared)
        found.append(f"== {text}\n{table}")
    return "\n\n".join(found)


def advice_on_few_images(records: Sequence[Record]) -> str:
    """Return what `note_of_few_images` says with what to do, or nothing."""
    note = note_of_few_images(records)
    return f"{note} Build the corpus with a larger share, such as `--test 0.3`, or add images." if note else ""


def _shared(rows: Sequence[Record]) -> list[str]:
    """Return the details that all rows have in common, and that a line need not repeat."""
    first = rows[0].details
    return [
        name
        for name in first
        if name not in (*IN_HEADINGS, *IN_LINES, "fusion", "k")
        and all(row.details.get(name) == first[name] for row in rows)
    ]


def _is_shown(record: Record) -> bool:
    branch, perspective = record.details.get("branch"), record.details.get("perspective")
    return record.task == BRANCHES or perspective is None or branch in (FUSED, BY_NAME, perspective)


def _table(records: Sequence[Record], shared: Sequence[str]) -> str:
    lines: dict[str, dict[str, str]] = {}
    for record in records:
        line = lines.setdefault(_line_name(record, shared), {})
        line[SHORT_NAMES.get(record.metric, record.label)] = _value(record)
        line |= {name.removeprefix("n_"): f"{record.counts[name]:,}" for name in COUNTS if record.counts.get(name)}
    columns = list(dict.fromkeys(name for line in lines.values() for name in line))
    last = [name.removeprefix("n_") for name in COUNTS]  # behind the numbers, in this order
    columns.sort(key=lambda name: last.index(name) if name in last else -1)
    cells = [["", *columns], *([name, *(line.get(column, "") for column in columns)] for name, line in lines.items())]
    return _aligned(cells)


def _line_name(record: Record, shared: Sequence[str]) -> str:
    details = {name: value for name, value in record.details.items() if name not in (*IN_HEADINGS, *shared, "k")}
    fusion = details.pop("fusion", None)
    if fusion is not None:
        details["branch"] = f"{details['branch']} ({fusion})"
    told = [str(details.pop(name)) for name in IN_LINES if name in details]
    return ", ".join([*told, *(f"{name} {value}" for name, value in details.items())]).replace("_", " ")


def _matrices(records: Sequence[Record], names: Sequence[str]) -> str:
    found = []
    for panel in branch_panels(records, names=names):
        if panel.cells:
            cells = {place: panel.form.format(value) for place, value in panel.cells.items()}
            rows = [[row, *(cells.get((row, column), "") for column in panel.columns)] for row in panel.rows]
            found.append(_aligned([[panel.title, *panel.columns], *rows]))
    return "\n".join(found)


def _value(record: Record) -> str:
    if record.metric in NOT_SHARES:
        return f"{record.value:g}"
    chance = "" if record.chance is None else f" /{100 * record.chance:.1f}"
    return f"{100 * record.value:.1f}{chance}"


def _aligned(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    )
