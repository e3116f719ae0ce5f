"""Tables of what a study found: `python -m training.study_tables [--study training/studies/emoji.yaml]`.

Each number is a mean over replicates with its 95 % interval, by Student's t. Below, the same of the differences to one
method, replicate by replicate: where such an interval leaves out zero, the methods differ.
"""

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from holistic_clip_hf.evaluation.ranking import DIRECTIONS
from holistic_clip_hf.evaluation.records import BY_NAME, FUSED, UNUSABLE
from holistic_clip_hf.evaluation.retrieval import CAPTION_SETS
from holistic_clip_hf.storage import write_text
from holistic_clip_hf.words import markdown_table
from training.study import FIRST, RESULTS, WAYS_TO_SHORTEN, Study, load_results, load_study, require_plan

METRIC = "recall@5"
PAGE = "README.md"
DIFFERENCES = "differences.png"  # drawn by `training.study_picture`
MEAN = "one caption"  # asks; the mean over perspectives
QUESTIONS = {MEAN: "one caption asks", CAPTION_SETS: "all captions of an image ask"}
# 97.5 % quantiles of Student's t with 1 to 30 degrees of freedom, as every statistics textbook prints them.
T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Estimate(NamedTuple):
    """A mean, half the width of its 95 % interval, and the number of replicates; both NaN where there are too few."""

    mean: float
    half_width: float
    count: int  # type: ignore[assignment]  # a tuple has a method of this name

    def __str__(self) -> str:
        if not self.count:
            return ""
        return f"{100 * self.mean:.1f} ± {100 * self.half_width:.1f}" if self.count > 1 else f"{100 * self.mean:.1f}"

    @property
    def excludes_zero(self) -> bool:
        return self.count > 1 and abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate the mean of independent values."""
    count = len(values)
    if count < 2:
        return Estimate(values[0] if values else math.nan, math.nan, count)
    return Estimate(statistics.fmean(values), T[count - 2] * statistics.stdev(values) / math.sqrt(count), count)


# By replicate, then by perspective of the caption that asks; MEAN of those, and CAPTION_SETS where it was measured.
Scores = dict[int, dict[str, float]]


def scores_of(rows: Sequence[dict[str, Any]], method: str, by: str, direction: str) -> Scores:
    """Return what a method reached by `by`: a fusion, or by name, if every perspective has a branch."""
    found = {}
    for row in rows:
        numbers = row["numbers"]
        if row["model"] == method and by in (*numbers, BY_NAME):
            perspectives = [name for name in next(iter(numbers.values())) if name != CAPTION_SETS]
            asked = {name: numbers.get(name if by == BY_NAME else by, {}).get(name) for name in perspectives}
            values = {name: each[direction][METRIC] for name, each in asked.items() if each}
            if len(values) == len(perspectives):
                found[row["replicate"]] = {**values, MEAN: statistics.fmean(values.values())}
                if sets := numbers.get(by, {}).get(CAPTION_SETS):
                    found[row["replicate"]][CAPTION_SETS] = sets[direction][METRIC]
    return found


def entries_of(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return methods and the fusions that each was measured with, in the order of the results; branches by name come
    last.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    pairs = [(row["model"], by) for row in rows for by in row["numbers"] if by.startswith(FUSED)]
    pairs += [(model, BY_NAME) for model in models if scores_of(rows, model, BY_NAME, DIRECTIONS[0])]
    return sorted(dict.fromkeys(pairs), key=lambda pair: models.index(pair[0]))


def difference(
    rows: Sequence[dict[str, Any]],
    method: str,
    by: str,
    against: str,
    direction: str,
    column: str = MEAN,
    *,
    against_by: str | None = None,
) -> Estimate:
    """Compare a method with another one, by default as that was trained to score, in the replicates that both have."""
    base = column_of(scores_of(rows, against, against_by or trained_for(rows, against), direction), column)
    scores = column_of(scores_of(rows, method, by, direction), column)
    return estimate([scores[each] - base[each] for each in sorted(scores.keys() & base.keys())])


def column_of(scores: Scores, column: str) -> dict[int, float]:
    """Return the values by replicate, where they were measured."""
    return {replicate: each[column] for replicate, each in scores.items() if column in each}


def trained_for(rows: Sequence[dict[str, Any]], method: str) -> str:
    """Return the score that a method was trained for, which is measured first; empty before its first run."""
    return next((next(iter(row["numbers"])) for row in rows if row["model"] == method), "")


def summary_table(
    rows: Sequence[dict[str, Any]],
    labels: Mapping[str, str],
    against: str,
    column: str = MEAN,
    *,
    alike: bool = False,
) -> str:
    """Return Markdown: a line for each method and way to ask, what it reached, and the difference to `against`.

    Args:
        rows: Finished runs.
        labels: Words for each method, by its name.
        against: Method to compare with, by the score that it was trained for.
        column: Who asks.
        alike: Compare branches by name with those of `against` by name.
    """
    table = []
    for method, label in labels.items():
        for by in (trained_for(rows, method), BY_NAME):
            found = [column_of(scores_of(rows, method, by, direction), column) for direction in DIRECTIONS]
            if found[0]:
                cells = [f"{label}, {by.removeprefix(f'{FUSED}, ')}", str(len(found[0]))]
                for values, direction in zip(found, DIRECTIONS, strict=True):
                    cells.append(str(estimate(list(values.values()))))
                    same = BY_NAME if alike and by == BY_NAME else None
                    paired = difference(rows, method, by, against, direction, column, against_by=same)
                    cells.append("" if method == against else signed(paired))
                table.append(cells)
    words = [direction.replace("_", " ") for direction in DIRECTIONS]
    return markdown_table(["method", "n", *(cell for word in words for cell in (word, "difference"))], table)


def width_tables(
    rows: Sequence[dict[str, Any]], labels: Mapping[str, str], widths: Sequence[int], against: str
) -> str:
    """Return Markdown: for each direction, recall by vectors of each width, and the difference to `against`.

    `labels` are the words for each method, by its name. All are compared with the first dimensions of `against`.
    """
    sections = []
    for direction in DIRECTIONS:
        table = []
        for (method, label), way in product(labels.items(), WAYS_TO_SHORTEN):
            cells: list[str] = []
            for width in widths:
                by = f"{trained_for(rows, method)}, {way} {width}"
                base = f"{trained_for(rows, against)}, {FIRST} {width}"
                values = column_of(scores_of(rows, method, by, direction), MEAN)
                paired = difference(rows, method, by, against, direction, against_by=base)
                is_base = (method, way) == (against, FIRST)
                cells += [str(estimate(list(values.values()))), "" if is_base else signed(paired)]
            table.append([f"{label}, {way}", *cells])
        head = [cell for width in widths for cell in (str(width), "difference")]
        words = direction.replace("_", " ").capitalize()
        sections.append(f"### {words}: {METRIC}, %\n\n" + markdown_table(["method, dimensions", *head], table))
    return "\n\n".join(sections) + "\n"


def unusable_note(rows: Sequence[dict[str, Any]]) -> str:
    """Return a sentence on replicates in which methods left out differently many images and captions, if any."""
    by_replicate: dict[int, dict[str, int]] = {}
    for row in rows:
        by_replicate.setdefault(row["replicate"], {})[row["model"]] = row.get(UNUSABLE, 0)  # once not written
    told = [
        f"replicate {replicate} ({', '.join(f'{method} {count:,}' for method, count in counts.items())})"
        for replicate, counts in sorted(by_replicate.items())
        if len(set(counts.values())) > 1
    ]
    return f"Methods left out differently many images and captions in {'; '.join(told)}.\n" if told else ""


def full_tables(
    rows: Sequence[dict[str, Any]], perspectives: Sequence[str], against: str, labels: Mapping[str, str]
) -> str:
    """Return Markdown: for each direction, recall of every method and fusion, then differences to `against`.

    `labels` are words for methods, by their names; a method without has its name.
    """
    columns, sections = [MEAN, *perspectives, CAPTION_SETS], []
    for direction in DIRECTIONS:
        plain, differences = [], []
        for method, by in entries_of(rows):
            scores = scores_of(rows, method, by, direction)
            name = f"{labels.get(method, method)}, {by.removeprefix(f'{FUSED}, ')}"
            cells = [estimate(list(column_of(scores, column).values())) for column in columns]
            plain.append([name, str(len(scores)), *map(str, cells)])
            paired = [difference(rows, method, by, against, direction, column) for column in columns]
            if method != against and paired[0].count:
                differences.append([name, str(paired[0].count), *map(signed, paired)])
        words = direction.replace("_", " ")
        sections.append(
            f"### {words.capitalize()}: {METRIC}, %\n\n" + markdown_table(["method", "n", *columns], plain)
        )
        sections.append(f"Differences to `{against}`:\n\n" + markdown_table(["method", "n", *columns], differences))
    return "\n\n".join(sections) + "\n"


def study_page(study: Study, rows: Sequence[dict[str, Any]], against: str) -> str:
    """Return the page of a study, as Markdown."""
    is_of_changes = study.changes_of is not None
    compared = "both asked in the same way," if is_of_changes else "by the score that it was trained for,"
    parts = [
        study.heading,
        f"Rendered by `python -m training.study_tables --page` from `{RESULTS}` in this folder. What it means, and "
        "how far to trust it, is in [science.md](../../../docs/science.md).",
        f"{METRIC.capitalize()} in %, with its 95 % interval over replicates. Differences to `{against}`, {compared} "
        "are taken replicate by replicate, and bold where their interval leaves out "
        "zero. *By name*, each caption is answered by the branch of its own perspective. Of so many lines, one in "
        "twenty is bold by chance.",
    ]
    if study.widths:
        parts += ["## By dimensions", width_tables(rows, study.labels, study.widths, against).strip()]
    for column, words in QUESTIONS.items():
        table = summary_table(rows, study.labels, against, column, alike=is_of_changes)
        parts += [f"## {words.capitalize()}", table]
    if study.also_against is not None:
        for column, words in QUESTIONS.items():
            heading = f"## Against `{study.also_against}`: {words}"
            parts += [heading, summary_table(rows, study.labels, study.also_against, column)]
    if is_of_changes:
        parts.append(f"![Differences to {against}]({DIFFERENCES})")
    else:
        parts += ["## By perspective", full_tables(rows, study.perspectives, against, study.labels).strip()]
    return "\n\n".join([*parts, *filter(None, [unusable_note(rows).strip()])]) + "\n"


def signed(value: Estimate) -> str:
    """Return an estimate with its sign, bold if its interval leaves out zero."""
    if not value.count:
        return ""
    text = f"{'+' if value.mean >= 0 else ''}{value}"
    return f"**{text}**" if value.excludes_zero else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("training/studies/emoji.yaml"))
    parser.add_argument("--against", default="one_to_many", help="the method that others are compared with")
    parser.add_argument("--summary", action="store_true", help="a line for each method and way to ask, and no more")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE} beside the results, with all tables")
    options = parser.parse_args()
    study = load_study(options.study)
    rows = load_results(study.results)
    require_plan(study, rows)
    if not rows:
        raise ValueError(f"{study.results} has no finished run. Run: python -m training.study --study {options.study}")
    if options.page:
        if study.title is None:
            raise ValueError(
                f"{study.path} has no `title`; expected the heading of its page. Add it, unless the page is "
                "written by hand."
            )
        write_text(study.results.with_name(PAGE), study_page(study, rows, options.against))
        print(study.results.with_name(PAGE))
        return
    if study.widths:
        print(width_tables(rows, study.labels, study.widths, options.against))
    elif options.summary:
        for column, words in QUESTIONS.items():
            print(f"### {words.capitalize()}\n\n{summary_table(rows, study.labels, options.against, column)}\n")
    else:
        print(full_tables(rows, study.perspectives, options.against, study.labels))
    print(unusable_note(rows), end="")


if __name__ == "__main__":
    main()
