# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Results as the Hub lists them: `.eval_results/*.yaml` beside a checkpoint, made of its records.

The Hub shows them on the model's page and on the leaderboard of the data set, if that is a benchmark with an
`eval.yaml` of its own. Which record stands for which task of which benchmark is a fact of the card.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, constants, eval_result_entries_to_yaml

from ..evaluation.records import Detail, Record, describe
from ..storage import write_text

FOLDER = constants.EVAL_RESULTS_FOLDER
RECORDS_FILE = "results.json"


@dataclass(frozen=True)
class ListedResult:
    """Record that the Hub lists as a result on a benchmark; see `eval_results`.

    Args:
        hub_id: Name of the benchmark, a data set on the Hub that has an `eval.yaml`.
        task_id: Task of the benchmark, as its `eval.yaml` calls it.
        dataset: Name of the data set in the record.
        metric: Metric as tables print it, such as `recall@1`.
        split: Split in the record. Default: any.
        details: Details that the record has, such as `direction`, as far as they tell it from others.
        in_percent: Write 100 times the share that the record has, as the benchmark's leaderboard does.
        revision: Commit of the benchmark.
    """

    hub_id: str
    task_id: str
    dataset: str
    metric: str
    split: str = ""
    details: Mapping[str, Detail] = field(default_factory=dict)
    in_percent: bool = False
    revision: str = ""


def eval_results(
    own: Sequence[Record], listed_results: Sequence[ListedResult], repo_id: str
) -> dict[str, list[EvalResultEntry]]:
    """Return what the Hub is to list, by the name of the file: one for each benchmark.

    Args:
        own: Records of the checkpoint.
        listed_results: Results to list.
        repo_id: Repository of the checkpoint, whose records are named as the source.

    Raises:
        ValueError: a listed result that no record or several records stand for, or two of the same task.
    """
    found: dict[str, list[EvalResultEntry]] = {}
    for listed in listed_results:
        entries = found.setdefault(f"{re.sub('[^A-Za-z0-9_-]+', '-', listed.hub_id)}.yaml", [])
        if any(entry.task_id == listed.task_id for entry in entries):
            raise ValueError(
                f"`listed_results` has the task {listed.task_id!r} of {listed.hub_id} twice; expected once, since the "
                "Hub shows one number for a task. Leave one out."
            )
        entries.append(_entry(_record_of(own, listed), listed, repo_id))
    return found


def write_eval_results(folder: Path, found: Mapping[str, Sequence[EvalResultEntry]]) -> None:
    """Write what `eval_results` found into the folder of a checkpoint, each file in one step."""
    for name, entries in found.items():
        path = folder / FOLDER / name
        path.parent.mkdir(exist_ok=True)
        write_text(path, yaml.safe_dump(eval_result_entries_to_yaml(list(entries)), sort_keys=False))


def _record_of(own: Sequence[Record], listed: ListedResult) -> Record:
    """Return the one record that a listed result is of."""
    wanted = {"dataset": listed.dataset, **({"split": listed.split} if listed.split else {})}
    fitting = [
        record
        for record in own
        if record.label == listed.metric
        and all(getattr(record, name) == value for name, value in wanted.items())
        and all(record.details.get(name) == value for name, value in listed.details.items())
    ]
    if len(fitting) != 1:
        some = "; ".join(f"{each.split}, {describe(each)}" for each in fitting[:3])
        raise ValueError(
            f"`listed_results` has {listed.metric} on {listed.dataset} for {listed.hub_id}, which {len(fitting)} "
            f"records are of{f' ({some} ...)' if some else ''}; expected one. Name `split` and `details` as "
            f"{RECORDS_FILE} has them."
        )
    return fitting[0]


def _entry(record: Record, listed: ListedResult, repo_id: str) -> EvalResultEntry:
    value = 100 * record.value if listed.in_percent else record.value
    return EvalResultEntry(
        dataset_id=listed.hub_id,
        task_id=listed.task_id,
        value=round(value, 6),
        dataset_revision=listed.revision or None,
        date=record.timestamp,
        source_url=f"https://huggingface.co/{repo_id}/blob/main/{RECORDS_FILE}",
        source_name="Records of the evaluation",
        notes=f"{record.split}: {describe(record)}",
    )
