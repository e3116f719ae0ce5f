"""Attribute queries on the emoji: a kind of thing with a colour, and without it, by several ways to combine two terms.

  python -m training.attributes --model runs/emoji/holistic --split validation
  python -m training.attributes --model runs/emoji/holistic --split test --output records.json

A query is a category and a colour of which at least `FEWEST` drawings of the category have one, and as many have none.
What is right is known from the captions. Axes: N images, D projection width.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from holistic_clip_hf.corpus.build import corpus_name, find_corpus, open_split
from holistic_clip_hf.evaluation.encoding import encode_texts, load_checkpoint
from holistic_clip_hf.evaluation.ranking import bootstrap_interval
from holistic_clip_hf.evaluation.records import BY_NAME, FUSED, Record, Recorder, capture_provenance, save_records
from holistic_clip_hf.evaluation.retrieval import EmbeddedCorpus, embed_corpus
from training.rivals import optimised_queries

TASK = "attributes"
FEWEST = 3
SPLIT_COLUMN = "artist_split"
CATEGORY, PALETTE = "category", "palette"
FIRST = 10  # results among which those are counted that have what is not wanted
_AMOUNT = re.compile(r"^(?:all|mostly|a little) ")


class Case(NamedTuple):
    """A query: category and colour, and which drawings (N,) are of the one and have the other."""

    category: str
    colour: str
    is_of_category: np.ndarray
    has_colour: np.ndarray


class Scores(NamedTuple):
    """Similarities (N,) to the category and to the colour."""

    wanted: np.ndarray
    other: np.ndarray


def colours_of(palette: str) -> set[str]:
    """Return the colours of a caption.

    >>> sorted(colours_of("mostly dark red, with white and a little black"))
    ['black', 'dark red', 'white']
    """
    return {_AMOUNT.sub("", part) for part in re.split(r", with | and |, ", palette)}


def cases_of(corpus: EmbeddedCorpus) -> Iterator[Case]:
    """Yield every query that enough drawings answer, with the colour and without."""
    captions = corpus.plain_captions
    categories = np.array([owned[0] for owned in captions[CATEGORY]])
    palettes = [colours_of(owned[0]) for owned in captions[PALETTE]]
    for category in sorted(set(categories)):
        for colour in sorted(set().union(*palettes)):
            is_of, has = categories == category, np.array([colour in palette for palette in palettes])
            if min((is_of & has).sum(), (is_of & ~has).sum()) >= FEWEST:
                yield Case(category, colour, is_of, has)


def standing(scores: np.ndarray) -> np.ndarray:
    """Return by how many standard deviations scores (N,) lie above their mean."""
    return (scores - scores.mean()) / scores.std()


def place(scores: np.ndarray) -> np.ndarray:
    """Return the rank of each score, the highest being 0."""
    return np.argsort(np.argsort(-scores))


WITHOUT: dict[str, Callable[[Scores], np.ndarray]] = {
    "left out": lambda scores: scores.wanted,
    "subtracted": lambda scores: scores.wanted - scores.other,
    "a quarter subtracted": lambda scores: scores.wanted - 0.25 * scores.other,
    "above the mean": lambda scores: scores.wanted - np.maximum(0, scores.other - scores.other.mean()),
    "above the usual": lambda scores: (
        scores.wanted - np.maximum(0, scores.other - scores.other.mean() - scores.other.std())
    ),
}
WITH: dict[str, Callable[[Scores], np.ndarray]] = {
    "left out": lambda scores: scores.wanted,
    "added": lambda scores: scores.wanted + scores.other,
    "standings added": lambda scores: standing(scores.wanted) + standing(scores.other),
    "reciprocal ranks": lambda scores: 1 / (60 + place(scores.wanted)) + 1 / (60 + place(scores.other)),
}


def average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    """Return the mean, over what is right (N,), of the precision at its place."""
    places = np.flatnonzero(right[np.argsort(-scores, kind="stable")])
    return float(((np.arange(len(places)) + 1) / (places + 1)).mean())


def ranked_by(sides: tuple[Tensor, Tensor], texts: Tensor, *, is_one: bool) -> dict[tuple[str, str], list[np.ndarray]]:
    """Return the scores (N,) of each query by each way to combine its terms.

    Args:
        sides: Vectors (N, D) that are held against categories and against colours.
        texts: Vectors of category and colour, (Q, 2, D).
        is_one: True if the two sides are the same, so that one vector may ask both.
    """
    similar = [(side @ texts[:, number].T).double().numpy().T for number, side in enumerate(sides)]
    scores = [Scores(*each) for each in zip(*similar, strict=True)]
    found = {("with", name): [way(each) for each in scores] for name, way in WITH.items()}
    found |= {("without", name): [way(each) for each in scores] for name, way in WITHOUT.items()}
    if is_one:
        for steps in (20, 500):
            queries = optimised_queries(texts[:, 0], texts[:, 1], steps)
            found["without", f"DEO, {steps} steps"] = list((queries @ sides[0].T).double().numpy())
    return found


def measure(
    cases: Sequence[Case], branch: str, found: dict[tuple[str, str], list[np.ndarray]], recorder: Recorder
) -> list[Record]:
    """Return records of average precision, and of the share of the first results that have the colour.

    Args:
        cases: Queries.
        branch: Name of what answers.
        found: Scores of `ranked_by`.
        recorder: Maker of the records.
    """
    records = []
    counts = {"n_queries": len(cases), "n_candidates": len(cases[0].has_colour)}
    for (kind, way), scores in found.items():
        right = [case.is_of_category & (case.has_colour == (kind == "with")) for case in cases]
        precision = np.array([average_precision(*each) for each in zip(scores, right, strict=True)])
        first = [case.has_colour[np.argsort(-each)[:FIRST]].mean() for case, each in zip(cases, scores, strict=True)]
        details = {"query": kind, "terms": way, "branch": branch}
        records.append(
            recorder.record(
                "mean_average_precision",
                float(precision.mean()),
                details,
                counts,
                confidence_interval=bootstrap_interval(precision, seed=recorder.provenance.seed),
            )
        )
        share = float(np.mean(first))
        records.append(recorder.record("share_with_colour", share, {**details, "results": FIRST}, counts))
    return records


def main() -> None:
    """Measure a checkpoint, print the table, and merge the records into --output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, help="folder of the checkpoint")
    parser.add_argument("--split", default="test", help="split of the emoji to measure on")
    parser.add_argument("--seed", default=0, type=int, help="seed of the training, and of the intervals")
    parser.add_argument("--output", type=Path, help="file of records")
    options = parser.parse_args()
    model, processor = load_checkpoint(options.model)
    directory = find_corpus("emoji")
    dataset = open_split(directory, options.split, split_column=SPLIT_COLUMN)
    corpus = embed_corpus(model, processor, dataset, perspectives=[CATEGORY, PALETTE])
    cases = list(cases_of(corpus))
    asked = [
        processor.write_caption(text, perspective)
        for case in cases
        for text, perspective in ((case.category, CATEGORY), (f"mostly {case.colour}", PALETTE))
    ]
    texts = encode_texts(model, processor, asked, batch_size=64).unflatten(0, (-1, 2))
    fused = F.normalize(corpus.branch_embeds.mean(dim=1), dim=-1)
    images = {FUSED: (fused, fused)}
    names = list(model.config.perspectives)
    if {CATEGORY, PALETTE} <= set(names):
        category, palette = (corpus.branch_embeds[:, names.index(name)] for name in (CATEGORY, PALETTE))
        images[BY_NAME] = (category, palette)
    provenance = capture_provenance(
        model=options.model.name, dataset=corpus_name(directory), split=options.split, seed=options.seed
    )
    recorder, records = Recorder(provenance, TASK, len(corpus.left_out)), []
    for branch, sides in images.items():
        records += measure(cases, branch, ranked_by(sides, texts, is_one=branch == FUSED), recorder)
    for record in records:
        details = ", ".join(str(record.details[name]) for name in ("query", "terms", "branch"))
        print(f"{details:44} {record.metric:24} {100 * record.value:5.1f}")
    if options.output:
        save_records(options.output, records)


if __name__ == "__main__":
    main()
