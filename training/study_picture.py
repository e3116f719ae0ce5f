"""Picture of what a study found: `python -m training.study_picture [--study training/studies/emoji.yaml]`.

Each method's difference to one of them, mean over replicates with its 95 % interval, by the score that it was trained
for and, where it has a branch for every perspective, by the branch of the texts' own. Methods of few runs are
left out.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holistic_clip_hf.drawing import COLOURS, INK, new_figure
from holistic_clip_hf.evaluation.ranking import DIRECTIONS
from holistic_clip_hf.evaluation.records import BY_NAME
from training.study import load_results, load_study
from training.study_tables import (
    DIFFERENCES,
    METRIC,
    QUESTIONS,
    Estimate,
    column_of,
    difference,
    scores_of,
    trained_for,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW, WIDTH = 0.34, 9.0  # inches
FEWEST = 5  # runs of a method; the interval of three is so wide that nothing beside it can be read: tables have them


def study_picture(
    rows: Sequence[dict[str, Any]],
    labels: Mapping[str, str],
    against: str,
    *,
    fewest: int = FEWEST,
    alike: bool = False,
) -> "Figure":
    """Return a line for each method with enough runs, panels for question and direction; for light pages and dark
    ones. `labels` are the words for each method, by its name. `alike` compares branches by name with those of
    `against` by name.

    Raises `ValueError` where no method has `fewest` runs.
    """
    shown = {column: _measured(rows, list(labels), against, column, fewest) for column in QUESTIONS}
    shown = {column: names for column, names in shown.items() if names}
    if not shown:
        raise ValueError(f"No method but {against} has {fewest} finished runs. Run more of the study.")
    heights = [len(names) for names in shown.values()]
    figure = new_figure(WIDTH, ROW * sum(heights) + 1.1 * len(heights))
    panels = figure.subplots(len(shown), len(DIRECTIONS), squeeze=False, sharex="col", height_ratios=heights)
    for line, (column, names) in zip(panels, shown.items(), strict=True):
        for panel, direction in zip(line, DIRECTIONS, strict=True):
            panel.axvline(0.0, color=INK, linewidth=1)
            for place, name in enumerate(names):
                for shift, by, colour in ((-0.12, trained_for(rows, name), COLOURS[0]), (0.12, BY_NAME, COLOURS[1])):
                    same = BY_NAME if alike and by == BY_NAME else None
                    found = difference(rows, name, by, against, direction, column, against_by=same)
                    _draw(panel, place + shift, found, colour)
            panel.set_title(f"{QUESTIONS[column]}, {direction.replace('_', ' ')}", color=INK, fontsize=10)
            _style(
                panel, [labels[name].replace("_", " ") for name in names] if panel is line[0] else [""] * len(names)
            )
    for panel in panels[-1]:
        panel.set_xlabel(f"{METRIC}, % points above {against}", color=INK, fontsize=9)
    for label, colour in (("the score it was trained for", COLOURS[0]), (f"branch {BY_NAME}", COLOURS[1])):
        panels[-1, -1].plot([], [], "o-", color=colour, label=label)
    figure.legend(
        *panels[-1, -1].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )
    return figure


def _measured(
    rows: Sequence[dict[str, Any]], methods: Sequence[str], against: str, column: str, fewest: int
) -> list[str]:
    scores = {name: scores_of(rows, name, trained_for(rows, name), DIRECTIONS[0]) for name in methods}
    return [name for name in methods if name != against and len(column_of(scores[name], column)) >= fewest]


def _draw(panel: Any, height: float, found: Estimate, colour: str) -> None:
    if found.count:
        half = found.half_width if found.count > 1 else 0.0
        panel.errorbar(100 * found.mean, height, xerr=100 * half, fmt="o", color=colour, markersize=4, capsize=2)


def _style(panel: Any, names: Sequence[str]) -> None:
    panel.set_facecolor("none")
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(colors=INK, labelsize=9)
    for side in panel.spines.values():
        side.set_color(INK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("training/studies/emoji.yaml"))
    parser.add_argument("--against", default="one_to_many", help="the method that others are compared with")
    parser.add_argument("--output", type=Path, default=None, help="default: in the study's folder")
    options = parser.parse_args()
    study = load_study(options.study)
    output = options.output or study.results.with_name(DIFFERENCES)
    rows, is_of_changes = load_results(study.results), study.changes_of is not None
    study_picture(rows, study.labels, options.against, alike=is_of_changes).savefig(output, dpi=110)
    print(output)


if __name__ == "__main__":
    main()
