"""Page of what fine-tuning in folds found: `python -m training.photos_tables`.

It is written into the study's folder, from its records alone. Queries of all folds are pooled, each by the ranks of
its own fold. The bootstrap draws photos. Those that share a caption in a fold, or are near-duplicates, are drawn
together, since the query of a caption is about all of them.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from holistic_clip_hf.evaluation.ranking import DIRECTIONS
from holistic_clip_hf.evaluation.records import FUSED
from holistic_clip_hf.storage import write_text
from holistic_clip_hf.words import markdown_table
from training.bootstrap import DRAWS
from training.photos_study import (
    DEFAULT,
    STUDY,
    ZERO_SHOT,
    Folds,
    PhotoStudy,
    load_folds,
    load_photo_study,
    require_rows,
)
from training.study import load_results
from training.study_tables import PAGE

K = 5
RECALL, PRECISION = f"recall@{K}", "average precision"
BOTH = "both"
WAYS_TO_ASK = {BOTH: DIRECTIONS, **{direction.replace("_", " "): (direction,) for direction in DIRECTIONS}}
Row = Mapping[str, Any]


class Pooled(NamedTuple):
    """A mean over queries with its 95 % interval, in fractions of one."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        text = f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"**{text}**" if self.low > 0 or self.high < 0 else text


def pool(values: Sequence[float], units: Sequence[int]) -> Pooled:
    """Return the mean of the values of queries, with an interval by a bootstrap over the units that they belong to.

    Args:
        values: Value of each query.
        units: Unit of each query; its queries are drawn together.
    """
    _, places = np.unique(np.asarray(units), return_inverse=True)
    sums, counts = np.bincount(places, np.asarray(values, np.float64)), np.bincount(places)
    drawn = np.random.default_rng(0).multinomial(len(sums), [1 / len(sums)] * len(sums), DRAWS)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), [0.025, 0.975])
    return Pooled(float(sums.sum() / counts.sum()), float(low), float(high))


def units_of(rows: Iterable[Row], folds: Folds) -> list[int]:
    """Return the unit of each photo: the first of those that share a caption in their fold, or are near-duplicates."""
    unit = list(range(len(folds.photos)))

    def root(photo: int) -> int:
        while unit[photo] != photo:
            photo = unit[photo]
        return photo

    shared = {tuple(owners) for row in rows for asked in row["owners"].values() for owners in asked[DIRECTIONS[0]]}
    for owners in [*sorted(shared), *enumerate(folds.group)]:
        roots = sorted(root(photo) for photo in owners)
        for each in roots:
            unit[each] = roots[0]
    return [root(photo) for photo in range(len(unit))]


@dataclass(frozen=True)
class Asked:
    """Choice of queries and of how they count.

    Args:
        perspectives: Perspectives of the texts.
        metric: `recall@5` or `average precision`.
        directions: Directions.
    """

    perspectives: Sequence[str]
    metric: str
    directions: Sequence[str] = DIRECTIONS


class Measured:
    """Records of one way.

    Args:
        rows: Records of its runs, by base and fold.
        units: Unit of each photo.
    """

    def __init__(self, rows: Iterable[Row], units: Sequence[int]) -> None:
        self.rows = {(row["base"], row["fold"]): row for row in rows}
        self.units = units

    def of(self, bases: Sequence[str]) -> "Measured":
        """Return the records from some bases."""
        return Measured((row for (base, _), row in self.rows.items() if base in bases), self.units)

    def values(self, score: str, asked: Asked, keys: Iterable[tuple[str, int]]) -> np.ndarray:
        """Return the value of each query by a score: (Q,), run by run."""
        found = [
            [rank < K for rank in each["ranks"]] if asked.metric == RECALL else each["precision"]
            for each in (
                _score(self.rows[key], score)[perspective][direction]
                for key in keys
                for perspective in asked.perspectives
                for direction in asked.directions
            )
        ]
        return np.concatenate(found).astype(np.float64)

    def units_of_queries(self, asked: Asked, keys: Iterable[tuple[str, int]]) -> list[int]:
        """Return the unit of each query, in the order of `values`."""
        return [
            self.units[owners[0]]
            for key in keys
            for perspective in asked.perspectives
            for direction in asked.directions
            for owners in self.rows[key]["owners"][perspective][direction]
        ]

    def mean(self, score: str, asked: Asked) -> float:
        """Return the mean over the queries of all runs."""
        return float(self.values(score, asked, self.rows).mean())

    def gain(self, score: str, other: "Measured", over: str, asked: Asked) -> Pooled:
        """Compare a score with another one, of this way or another, query by query, in the runs that both have."""
        keys = [key for key in self.rows if key in other.rows]
        difference = self.values(score, asked, keys) - other.values(over, asked, keys)
        return pool(difference.tolist(), self.units_of_queries(asked, keys))

    def best_other(self, perspective: str, asked: Asked) -> str:
        """Return the branch that is best for a perspective besides its own."""
        first = next(iter(self.rows.values()))
        others = [name for name in first["scores"] if name not in (FUSED, perspective)]
        return max(others, key=lambda name: self.mean(name, asked))

    @property
    def similarity(self) -> str:
        """Mean cosine of two branches, and the largest of a fold."""
        found = [row["similarity"] for row in self.rows.values() if row["similarity"] is not None]
        return f"{np.mean(found):.2f} ({max(found):.2f})" if found else ""


def _score(row: Row, score: str) -> Mapping[str, Any]:
    """Return what a score found; a model of one branch has the fused one alone, which is every branch's."""
    return row["scores"].get(score, row["scores"][FUSED])


def by_base(
    ways: Mapping[str, Measured], bases: Sequence[str], cells: Callable[[Measured, str], list[list[str]]]
) -> list[list[str]]:
    """Return the lines of a table for each base that the default has records from, and for all of them together.

    Args:
        ways: Records by way.
        bases: Names of the bases.
        cells: Function that gives lines of cells for some records, and the name of their bases.
    """
    found = {base: ways[DEFAULT].of([base]) for base in bases}
    found = {base: measured for base, measured in found.items() if measured.rows}
    found |= {"all": ways[DEFAULT]} if len(found) > 1 else {}
    return [line for base, measured in found.items() for line in cells(measured, base)]


def name_table(ways: Mapping[str, Measured], bases: Sequence[str], perspectives: Sequence[str]) -> str:
    """Return Markdown of each perspective's own branch beside the best other one."""

    def lines(measured: Measured, base: str) -> list[list[str]]:
        found = []
        for perspective in perspectives:
            for words, directions in WAYS_TO_ASK.items():
                cells = [base, str(len(measured.rows)), perspective, words]
                for metric in (RECALL, PRECISION):
                    asked = Asked([perspective], metric, directions)
                    other = measured.best_other(perspective, Asked([perspective], metric))
                    own, theirs = (100 * measured.mean(name, asked) for name in (perspective, other))
                    cells += [f"{own:.1f}", f"{theirs:.1f}"]
                    cells.append(str(measured.gain(perspective, measured, other, asked)))
                found.append(cells)
        return found

    head = ["base", "runs", "captions", "direction"]
    head += [cell for metric in (RECALL, PRECISION) for cell in (f"{metric}, own", "best other", "own less other")]
    return markdown_table(head, by_base(ways, bases, lines))


def gain_table(ways: Mapping[str, Measured], bases: Sequence[str], perspectives: Sequence[str]) -> str:
    """Return Markdown of what fine-tuning is worth by the fused score, over the queries of all perspectives."""

    def lines(measured: Measured, base: str) -> list[list[str]]:
        before = ways[ZERO_SHOT].of([key[0] for key in measured.rows])
        found = []
        for words, directions in WAYS_TO_ASK.items():
            cells = [base, str(len(measured.rows)), words]
            for metric in (RECALL, PRECISION):
                asked = Asked(perspectives, metric, directions)
                cells += [f"{100 * each.mean(FUSED, asked):.1f}" for each in (before, measured)]
                cells.append(str(measured.gain(FUSED, before, FUSED, asked)))
            found.append([*cells, measured.similarity if words == BOTH else ""])
        return found

    head = ["base", "runs", "direction"]
    head += [cell for metric in (RECALL, PRECISION) for cell in (f"{metric}, base", "tuned", "gain")]
    return markdown_table([*head, "similarity (largest)"], by_base(ways, bases, lines))


def way_table(
    ways: Mapping[str, Measured], bases: Sequence[str], perspectives: Sequence[str], metric: str = PRECISION
) -> str:
    """Return Markdown of each way: what is gained by name, and how own branches and the fused score compare with the
    default's.
    """
    table = []
    for base in bases:
        for way, measured in ((way, measured.of([base])) for way, measured in ways.items() if way != ZERO_SHOT):
            if not measured.rows:
                continue
            cells = [base, way, str(len(measured.rows)), measured.similarity]
            default = ways[DEFAULT].of([base])
            for perspective in perspectives:
                asked = Asked([perspective], metric)
                other = measured.best_other(perspective, asked)
                cells.append(str(measured.gain(perspective, measured, other, asked)))
                cells.append(f"{100 * measured.mean(perspective, asked):.1f}")
            asked = Asked(perspectives, metric)
            cells.append(f"{100 * measured.mean(FUSED, asked):.1f}")
            cells.append("" if way == DEFAULT else str(measured.gain(FUSED, default, FUSED, asked)))
            table.append(cells)
    head = ["base", "way", "runs", "similarity (largest)"]
    head += [cell for name in perspectives for cell in (f"{name}, own less other", "own")]
    return markdown_table([*head, "fused", "fused less default's"], table)


def sort_ways(study: PhotoStudy, folds: Folds, rows: Sequence[Row]) -> dict[str, Measured]:
    """Return the records by way, in the order of the plan."""
    units = units_of(rows, folds)
    found = {way: Measured([row for row in rows if row["way"] == way], units) for way in (ZERO_SHOT, *study.ways)}
    return {way: measured for way, measured in found.items() if measured.rows}


def photos_page(study: PhotoStudy, folds: Folds, rows: Sequence[Row]) -> str:
    """Return the page of the study, as Markdown."""
    ways, bases = sort_ways(study, folds, rows), list(study.bases)
    perspectives = list(study.captions.values())
    units = len(set(units_of(rows, folds)))
    captions = ", ".join(f"`{column}` as `{perspective}`" for column, perspective in study.captions.items())
    parts = [
        f"# {study.title}",
        "Rendered by `python -m training.photos_tables` from `results.jsonl` and `folds.json` in this folder. What it "
        "means, and how far to trust it, is in [photos.md](../../../docs/photos.md).",
        f"{len(folds.photos)} photos in {study.folds} folds, captions {captions}. Each photo is held out once, and "
        f"its queries are answered among the photos of its fold. Numbers are in %, differences in points with a 95 % "
        f"interval by bootstrap over {units} units of photos: those that share a caption in their fold are drawn "
        "together. Differences are paired, query by query, and bold where their interval leaves out zero. The "
        "intervals are of other photos, not of other seeds. Of so many lines, one in twenty is bold by chance.",
        "## Is each branch the better one for its own perspective?",
        name_table(ways, bases, perspectives),
        "## What fine-tuning is worth",
        "By the fused score, over the queries of all perspectives. The base is the checkpoint as it is.",
        gain_table(ways, bases, perspectives),
    ]
    if len(ways) > 1 + (ZERO_SHOT in ways):
        parts += [
            "## What was tried",
            f"By {PRECISION}, both directions. A way is the default with the changes that `{study.path.name}` lists.",
            way_table(ways, bases, perspectives),
        ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=STUDY)
    options = parser.parse_args()
    study = load_photo_study(options.study)
    rows = load_results(study.results)
    require_rows(study, rows)
    if not {ZERO_SHOT, DEFAULT} <= {row["way"] for row in rows}:
        raise ValueError(
            f"{study.results} lacks runs of {ZERO_SHOT} or {DEFAULT}; expected both. Run: python -m "
            f"training.photos_study --study {options.study}"
        )
    page = study.results.with_name(PAGE)
    write_text(page, photos_page(study, load_folds(study), rows))
    print(page)


if __name__ == "__main__":
    main()
