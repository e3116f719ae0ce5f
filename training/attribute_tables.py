"""Page and picture of what was found of attributes: `python -m training.attribute_tables [--study STUDY]`.

They are written into the study's folder, from its records alone.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holistic_clip_hf.drawing import COLOURS, INK, new_figure
from holistic_clip_hf.evaluation.attributes import FORMS, ONE
from holistic_clip_hf.storage import write_atomically, write_text
from holistic_clip_hf.words import markdown_table
from training.attribute_study import ATTRIBUTES, QUERIES
from training.bootstrap import ALL, Entry, Found
from training.study import Study, load_results, load_study, require_plan
from training.study_tables import PAGE, QUESTIONS, summary_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (*FORMS, ALL)
PICTURE = "attributes.png"
LIMIT = "own_caption_words"  # search in the very words that traits are read from: no rival, but a limit
ONE_VECTOR, OURS, AGAIN = "one_to_many", "ours", "ours_again"
NAMED = Entry(OURS, "by_name")
AIM = 0.15  # relative gain over the fused vector and over the best rival
WORDS = {
    "vector": "the vector",
    "routed": "routed",
    "by_name": "by name",
    "conditional": "projected on the perspective (CLAY)",
    "optimised": "optimised query (DEO)",
    "patches": "best of 16 patches",
    "patches_narrow": "best of 16 patches, 5 vectors' bytes",
    "caption_words": "words of the nearest captions (BM25)",
    "caption_vectors": "vectors of the nearest captions",
    LIMIT: "words of its own captions (limit)",
}


def load_found(study: Study) -> Found:
    """Read the recalls of a study.

    Raises:
        ValueError: nothing was measured, or it was measured by another plan or with other queries.
    """
    path = study.results.with_name(ATTRIBUTES)
    rows = load_results(path)
    if not rows:
        raise ValueError(f"{path} has no run. Run: python -m training.attribute_study --study {study.path}")
    require_plan(study, rows)
    told = json.loads(path.with_name(QUERIES).read_text(encoding="utf-8"))
    queries = {replicate: told[left_out] for replicate, left_out in enumerate(study.held_out) if left_out in told}
    recalls: dict[Entry, dict[int, list[float]]] = {}
    for row in rows:
        asked = queries.get(row["replicate"], ())
        for way, found in row["ways"].items():
            if len(found["recall_of_queries"]) != len(asked):
                raise ValueError(
                    f"{path} has {len(found['recall_of_queries'])} queries of replicate {row['replicate']}; expected "
                    f"the {len(asked)} of {QUERIES}. Move {path.name} away, and measure again."
                )
            recalls.setdefault(Entry(row["model"], way), {})[row["replicate"]] = found["recall_of_queries"]
    order = [Entry(name, way) for name, method in study.methods.items() for way in method.ways]
    return Found(queries, {entry: recalls[entry] for entry in order if entry in recalls})


def label_of(study: Study, entry: Entry) -> str:
    return f"{study.labels[entry.method].replace('_', ' ')}, {WORDS[entry.way]}"


def by_name(found: Found) -> list[Entry]:
    """Return the entries of named branches, but for those that differ from another by their seed."""
    return [entry for entry in found.recalls if entry.way == NAMED.way and entry.method != AGAIN]


def rivals(found: Found) -> list[Entry]:
    """Return the entries that have no branches and do not look at what traits are read from."""
    return [entry for entry in found.recalls if not entry.method.startswith(OURS) and entry.way != LIMIT]


def best_rival(found: Found) -> Entry:
    """Return the rival of the highest recall, of those measured in as many replicates as ours; picked after the fact,
    which is in its favour.
    """
    count = len(found.recalls[NAMED])
    full = [entry for entry in rivals(found) if len(found.recalls[entry]) >= count]
    return max(full, key=lambda entry: found.mean(entry, ALL))


def recall_table(study: Study, found: Found, over: Entry) -> str:
    """Return Markdown of the mean recalls of all entries, and of the gain over one of them."""
    rows = []
    for entry, by_replicate in found.recalls.items():
        means = [f"{100 * found.mean(entry, column):.1f}" for column in COLUMNS]
        gain = "" if entry == over else str(found.gain(entry, over, ALL))
        rows.append([label_of(study, entry), str(len(by_replicate)), *means, gain])
    return markdown_table(["method, way", "n", *COLUMNS, "gain"], rows)


def gain_section(study: Study, found: Found, entry: Entry) -> list[str]:
    """Return heading and Markdown table of the gain of one entry over the others, by form."""
    others = [other for other in found.recalls if other != entry and other.way != LIMIT]
    rows = [
        [label_of(study, other), *(str(found.gain(entry, other, column)) for column in COLUMNS)] for other in others
    ]
    return [f"## Gain of {label_of(study, entry)}", markdown_table(["over", *COLUMNS], rows)]


def change_table(study: Study, found: Found, base: str) -> str:
    """Return Markdown of the gain of each method over the one that it is a change of, both asked in the same way."""
    rows = []
    for entry, by_replicate in found.recalls.items():
        over = entry._replace(method=base)
        if entry.method != base and over in found.recalls:
            gains = [str(found.gain(entry, over, column)) for column in COLUMNS]
            rows.append([label_of(study, entry), str(len(by_replicate)), *gains])
    return markdown_table(["method, way", "n", *COLUMNS], rows)


def facet_table(study: Study, found: Found) -> str:
    """Return Markdown of the recall of each facet where one trait is asked for."""
    table = {entry: found.facets(entry, ONE) for entry in found.recalls}
    names = list(next(iter(table.values())))
    rows = [[label_of(study, entry), *(f"{100 * of[name]:.1f}" for name in names)] for entry, of in table.items()]
    return markdown_table(["method, way", *names], rows)


def metric_table(study: Study, found: Found, rows: Sequence[dict[str, Any]]) -> str:
    """Return Markdown of what is found among all images, by form: precision@5 and mean average precision."""
    table = []
    for entry in found.recalls:
        cells = [label_of(study, entry)]
        for metric in ("precision", "average_precision"):
            of_runs = [row["ways"][entry.way][metric] for row in rows if row["model"] == entry.method]
            cells += [f"{100 * statistics.fmean(each[form] for each in of_runs):.1f}" for form in FORMS]
        table.append(cells)
    head = [f"{metric}, {form}" for metric in ("precision@5", "mAP") for form in FORMS]
    return markdown_table(["method, way", *head], table)


def verdict(study: Study, found: Found) -> str:
    """Say whether named branches reached the aim, a line for each method that has them."""
    lines = [f"The aim was {100 * AIM:.0f} % more recall by name, with an interval above zero."]
    for entry in by_name(found):
        told = []
        for words, other in (
            ("its own fused vector", entry._replace(way="vector")),
            ("the best rival", best_rival(found)),
        ):
            gain = found.gain(entry, other, ALL)
            reached = "reached" if gain.value >= AIM and gain.low > 0 else "missed"
            name = "" if other.method == entry.method else f" ({label_of(study, other)})"
            told.append(f"{gain.text} over {words}{name}, {reached}")
        lines.append(f"- {label_of(study, entry)}: {', and '.join(told)}.")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def attribute_picture(study: Study, found: Found) -> "Figure":
    """Return the gain of every entry over one vector, a panel for each form; for light pages and dark ones.

    In a study of changes it is the gain over what is changed, both asked in the same way.
    """
    base = study.changes_of
    over = {entry: Entry(ONE_VECTOR, "vector") if base is None else Entry(base, entry.way) for entry in found.recalls}
    shown = [entry for entry in found.recalls if over[entry] in found.recalls and entry.way != LIMIT]
    shown = [entry for entry in shown if entry.method != over[entry].method or entry.way != over[entry].way]
    figure = new_figure(11.0, 0.3 * len(shown) + 1.2)
    panels = figure.subplots(1, len(FORMS), sharey=True, squeeze=False)[0]
    for panel, form in zip(panels, FORMS, strict=True):
        panel.axvline(0.0, color=INK, linewidth=1)
        for place, entry in enumerate(shown):
            gain = found.gain(entry, over[entry], form)
            panel.plot([100 * gain.low, 100 * gain.high], [place, place], color=_colour(entry), linewidth=1.5)
            panel.plot([100 * gain.value], [place], "o", color=_colour(entry), markersize=4)
        panel.set_title(form, color=INK, fontsize=10)
        panel.set_xlabel(f"recall@5, % above {(base or ONE_VECTOR).replace('_', ' ')}", color=INK, fontsize=9)
        panel.set_yticks(range(len(shown)), [label_of(study, entry) for entry in shown])
        panel.set_ylim(len(shown) - 0.5, -0.5)
        panel.set_facecolor("none")
        panel.tick_params(colors=INK, labelsize=9)
        for side in panel.spines.values():
            side.set_color(INK)
    return figure


def _colour(entry: Entry) -> str:
    return COLOURS[1] if entry.method.startswith(OURS) else COLOURS[0]


def _gains(study: Study, found: Found) -> tuple[list[str], list[str]]:
    """Return what the page says of gains above the noise floor, and below the recalls."""
    base = study.changes_of
    if base is None:
        return [verdict(study, found)], [
            part for entry in by_name(found) for part in gain_section(study, found, entry)
        ]
    heading = f"Gain over {study.labels[base]}, both asked in the same way:"
    return [heading, change_table(study, found, base)], []


def study_page(study: Study, found: Found, runs: Sequence[dict[str, Any]]) -> str:
    """Return the page of the study, as Markdown."""
    over, counts = Entry(ONE_VECTOR, "vector"), sorted({len(each) for each in found.queries.values()})
    if over not in found.recalls and study.changes_of is not None:
        over = Entry(study.changes_of, over.way)
    drawn = study.queries.num_negatives
    again = [Entry(AGAIN, entry.way) for entry in found.recalls if entry.method == OURS]
    floor = [
        f"{WORDS[entry.way]} {found.gain(entry, Entry(OURS, entry.way), ALL)}"
        for entry in again
        if entry in found.recalls
    ]
    above, below = _gains(study, found)
    parts = [
        study.heading,
        f"Rendered by `python -m training.attribute_tables` from `results.jsonl`, `{ATTRIBUTES}` and `{QUERIES}` in "
        "this folder. What it means, and how far to trust it, is in [science.md](../../../docs/science.md).",
        f"Recall@5 in %: an image that has the traits stands among {drawn} that have not, mean over every draw of "
        f"these. Chance is {500 / (1 + drawn):.0f} %. Each replicate asks {' or '.join(map(str, counts))} queries. "
        f"Facets count alike, and so do the three forms in *{ALL}*. Gains are relative, with a 95 % interval by "
        "bootstrap over queries and replicates, bold where it leaves out zero. With so few replicates it is "
        "somewhat too narrow, and of so many lines one in twenty is bold by chance.",
        *above,
        "**Noise floor**, the same method with other seeds: " + ("; ".join(floor) or "not measured yet") + ".",
        f"![Gain over {'one vector' if study.changes_of is None else study.changes_of}]({PICTURE})",
        f"## Recall, and gain over {label_of(study, over)}",
        recall_table(study, found, over),
        *below,
        "## One trait, by facet",
        facet_table(study, found),
        "## Among all images",
        metric_table(study, found, load_results(study.results.with_name(ATTRIBUTES))),
    ]
    base = study.changes_of
    for column, words in QUESTIONS.items():
        table = summary_table(runs, study.labels, base or ONE_VECTOR, column, alike=base is not None)
        parts += [f"## Retrieval by captions: {words}", table]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("training/studies/attributes.yaml"))
    options = parser.parse_args()
    study = load_study(options.study)
    found, folder = load_found(study), study.results.parent
    write_text(folder / PAGE, study_page(study, found, load_results(study.results)))
    with write_atomically(folder / PICTURE) as file:
        attribute_picture(study, found).savefig(file, format="png", dpi=110)
    print(folder / PAGE)


if __name__ == "__main__":
    main()
