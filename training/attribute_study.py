"""Ask the checkpoints of a study for attributes: `python -m training.attribute_study [--study STUDY]`.

The traits that captions name are asked for alone, in pairs, and one without another, in every way that the study
names for a method. Each measured run is a line of `attribute_results.jsonl` in the study's folder, with the recall of
each query in the order of `queries.json`, and is not measured again. `python -m training.study` trains.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from filelock import FileLock, Timeout
from torch import Tensor
from transformers import logging

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.corpus.build import find_corpus
from holistic_clip_hf.evaluation.attributes import (
    FORMS,
    ONE,
    WITHOUT,
    AttributeQuery,
    QueryScores,
    Wish,
    attribute_queries,
    measure_query,
    score_queries,
)
from holistic_clip_hf.evaluation.encoding import encode_images, encode_texts, evaluation_mode, fuse
from holistic_clip_hf.evaluation.fusion_fitting import fit_fusion
from holistic_clip_hf.evaluation.ranking import top_candidates
from holistic_clip_hf.evaluation.records import capture_provenance
from holistic_clip_hf.evaluation.retrieval import EmbeddedCorpus, captions_by_perspective, embed_corpus
from holistic_clip_hf.storage import write_json
from holistic_clip_hf.trainer.recipes import recipe_split
from training.emoji.traits import FACETS, drawing_traits
from training.rivals import (
    WordSearch,
    conditional_scores,
    leading_directions,
    optimised_queries,
    patch_scores,
)
from training.study import (
    Study,
    append_result,
    load_results,
    load_study,
    load_trained,
    method_recipe,
    plan_of,
    require_plan,
)

ATTRIBUTES = "attribute_results.jsonl"
QUERIES = "queries.json"
BATCH_SIZE = 64
# Numbers that rivals leave to the user, chosen on the validation split, where no query is one of the test's images.
WEIGHTS = (0.0, 0.25, 0.5, 1.0)  # of what is not wanted
RANKS = (4, 8, 16, 32, 64)  # of a subspace, of 128 numbers
DEO_STEPS = (20, 100, 500)
BYTES_OF = 5  # vectors of a model with branches, which patches may take as well


@dataclass(frozen=True)
class Seen:
    """Images as a checkpoint sees them.

    Args:
        branches: (N, H, D), of unit length.
        patches: (N, P, D), of unit length; (0,) where no way of the method asks for them.
        captions: Own captions of the N images by perspective, as the corpus has them.
    """

    branches: Tensor
    patches: Tensor
    captions: Mapping[str, Sequence[Sequence[str]]]


class Ground:
    """One checkpoint of a study, with all that ways to ask need of it, encoded once and when it is needed."""

    def __init__(self, study: Study, name: str, replicate: int, corpus: Path, checkpoint: Path) -> None:
        if not (checkpoint / "config.json").is_file():
            raise ValueError(
                f"`--work-dir` lacks {checkpoint.name}, the checkpoint of a finished run; expected what training "
                "left. Name the folder that `python -m training.study` was given, or train it again."
            )
        self.recipe = method_recipe(study, name, replicate)
        self.study, self.corpus, self.ways = study, corpus, study.methods[name].ways
        self.model, self.processor = load_trained(checkpoint, self.recipe)
        self._vectors: dict[str, Tensor] = {}

    def seen(self, split: str) -> Seen:
        """Encode the images of a split, and read their captions in the corpus's own form."""
        rows = recipe_split(self.recipe, self.corpus, split)
        branches = encode_images(self.model, self.processor, rows, batch_size=BATCH_SIZE).branch_embeds
        if len(branches) < len(rows):
            raise ValueError(f"{len(rows) - len(branches)} images of {split} cannot be read; expected whole ones.")
        patches = torch.empty(0)
        if any(way in OF_PATCHES for way in self.ways):
            patches = encode_patches(self.model, self.processor, rows)
        return Seen(branches, patches, captions_by_perspective(rows, self.study.perspectives))

    @cached_property
    def trained_on(self) -> EmbeddedCorpus:
        """Texts of the training split, in the method's form."""
        rows = recipe_split(self.recipe, self.corpus, "train")
        return embed_corpus(self.model, self.processor, rows, perspectives=self.study.perspectives, with_images=False)

    def texts_of(self, perspective: str) -> list[str]:
        """Return the distinct texts of the training split."""
        return list(dict.fromkeys(text for owned in self.trained_on.captions[perspective] for text in owned))

    @cached_property
    def routed(self) -> HolisticCLIPModel:
        """Copy of the model whose router knows the perspectives of the training texts."""
        model = copy.deepcopy(self.model)
        fit_fusion(model, self.trained_on, "routed")
        return model

    def learn(self, queries: Sequence[AttributeQuery]) -> None:
        """Encode the texts of all wishes at once, in the method's form."""
        texts = list(dict.fromkeys(self._written(wish) for query in queries for wish in query.wishes))
        vectors = encode_texts(self.model, self.processor, texts, batch_size=BATCH_SIZE)
        self._vectors |= dict(zip(texts, vectors, strict=True))

    def vector(self, wish: Wish) -> Tensor:
        """Return the vector of a wish that was learned, (D,)."""
        return self._vectors[self._written(wish)]

    def _written(self, wish: Wish) -> str:
        return self.processor.write_caption(wish.text, FACETS[wish.facet])


def encode_patches(model: HolisticCLIPModel, processor: HolisticCLIPProcessor, rows: Dataset) -> Tensor:
    """Encode the patches of N images in the space of texts, (N, P, D), of unit length."""
    found = []
    with evaluation_mode(model):
        for start in range(0, len(rows), BATCH_SIZE):
            pixels = processor(images=rows[start : start + BATCH_SIZE]["image"], return_tensors="pt")["pixel_values"]
            found.append(model.get_patch_features(pixels.to(model.device)).patch_embeds.float().cpu())
    return torch.cat(found).clone()  # outside of inference mode again


# A way to ask: given a checkpoint, images, and the number that is chosen, the score (N,) of a wish.
Score = Callable[[Wish], Tensor]
Way = Callable[[Ground, Seen, float], Score]


def _vector(ground: Ground, seen: Seen, _: float) -> Score:
    return _fused(ground.model, ground, seen)


def _routed(ground: Ground, seen: Seen, _: float) -> Score:
    return _fused(ground.routed, ground, seen)


def _fused(model: HolisticCLIPModel, ground: Ground, seen: Seen) -> Score:
    def score(wish: Wish) -> Tensor:
        vectors = fuse(model, seen.branches, ground.vector(wish)[None])
        return vectors.score(vectors.images, vectors.texts)[:, 0]

    return score


def _by_name(ground: Ground, seen: Seen, _: float) -> Score:
    names = list(ground.model.config.perspectives)
    return lambda wish: seen.branches[:, names.index(FACETS[wish.facet])] @ ground.vector(wish)


def _conditional(ground: Ground, seen: Seen, rank: float) -> Score:
    images, texts = seen.branches[:, 0], ground.trained_on
    spaces = {name: texts.embeds_of(ground.texts_of(name)) for name in set(FACETS.values())}
    return lambda wish: conditional_scores(images, ground.vector(wish)[None], spaces[FACETS[wish.facet]], int(rank))[0]


def _patches(ground: Ground, seen: Seen, _: float) -> Score:
    return lambda wish: patch_scores(seen.patches, ground.vector(wish)[None])[0]


def _patches_narrow(ground: Ground, seen: Seen, _: float) -> Score:
    """Keep as many numbers of all patches together as a model with branches has."""
    num_patches, width = seen.patches.shape[1:]
    directions = leading_directions(seen.patches.flatten(0, 1), BYTES_OF * width // num_patches)
    narrow = seen.patches @ directions.T
    return lambda wish: patch_scores(narrow, (directions @ ground.vector(wish))[None])[0]


def _nearest(ground: Ground, seen: Seen) -> dict[str, list[str]]:
    """Give N images captions without a captioner: of each perspective, the training text that is most like each."""
    found = {}
    for name in set(FACETS.values()):
        texts = ground.texts_of(name)
        best = top_candidates(seen.branches[:, 0], ground.trained_on.embeds_of(texts), 1)[:, 0]
        found[name] = [texts[row] for row in best.tolist()]
    return found


def _caption_words(ground: Ground, seen: Seen, _: float) -> Score:
    return _words(_nearest(ground, seen))


def _caption_vectors(ground: Ground, seen: Seen, _: float) -> Score:
    vectors = {name: ground.trained_on.embeds_of(texts) for name, texts in _nearest(ground, seen).items()}
    return lambda wish: vectors[FACETS[wish.facet]] @ ground.vector(wish)


def _own_caption_words(ground: Ground, seen: Seen, _: float) -> Score:
    return _words({name: [" ".join(texts) for texts in seen.captions[name]] for name in set(FACETS.values())})


def _words(captions: Mapping[str, Sequence[str]]) -> Score:
    searches = {name: WordSearch(texts) for name, texts in captions.items()}
    return lambda wish: searches[FACETS[wish.facet]].scores(wish.text)


ANY = (0.0,)
# Of each way that the study knows, how it scores, and what is chosen for it.
SCORES: dict[str, tuple[Way, Sequence[float]]] = {
    "vector": (_vector, ANY),
    "routed": (_routed, ANY),
    "by_name": (_by_name, ANY),
    "conditional": (_conditional, RANKS),
    "patches": (_patches, ANY),
    "patches_narrow": (_patches_narrow, ANY),
    "caption_words": (_caption_words, ANY),
    "caption_vectors": (_caption_vectors, ANY),
    "own_caption_words": (_own_caption_words, ANY),
}
OF_PATCHES = ("patches", "patches_narrow")
OPTIMISED = "optimised"  # one vector, with a query of its own where something is not wanted
Queries = Sequence[AttributeQuery]


def optimised_scores(ground: Ground, seen: Seen, queries: Queries, steps: float) -> Tensor:
    """Score (Q, N) by one vector, and by an optimised query where something is not wanted."""
    scores = score_queries(queries, _vector(ground, seen, 0.0))
    rows = [row for row, query in enumerate(queries) if query.form == WITHOUT]
    pairs = [[ground.vector(wish) for wish in queries[row].wishes] for row in rows]
    wanted, unwanted = (torch.stack(each) for each in zip(*pairs, strict=True))
    scores[rows] = optimised_queries(wanted, unwanted, int(steps)) @ seen.branches[:, 0].T
    return scores


def measure_queries(study: Study, scores: Tensor, queries: Queries) -> list[QueryScores]:
    """Return the numbers of each query, of scores (Q, N)."""
    drawn = study.queries.num_negatives
    return [measure_query(row, query, num_negatives=drawn) for row, query in zip(scores, queries, strict=True)]


def mean_by_facets(values: Sequence[float], queries: Queries, form: str) -> float:
    """Return the mean over the facets, or pairs of facets, of a form, each of which counts alike."""
    groups: dict[str, list[float]] = {}
    for value, query in zip(values, queries, strict=True):
        if query.form == form:
            groups.setdefault(query.facets, []).append(value)
    return statistics.fmean(map(statistics.fmean, groups.values()))


def measure_way(
    ground: Ground, way: str, chosen_on: tuple[Seen, Queries], asked: tuple[Seen, Queries]
) -> dict[str, Any]:
    """Choose a way's numbers on one split, and measure it on another."""
    seen, queries = chosen_on

    def best(tried: Sequence[float], scores: Callable[[float], Tensor], form: str) -> float:
        if len(tried) == 1:
            return tried[0]

        def reached(value: float) -> float:
            found = measure_queries(ground.study, scores(value), queries)
            return mean_by_facets([each.recall for each in found], queries, form)

        return max(tried, key=reached)

    if way == OPTIMISED:
        number = best(DEO_STEPS, lambda value: optimised_scores(ground, seen, queries, value), WITHOUT)
        chosen, scores = {"steps": number}, optimised_scores(ground, *asked, number)
    else:
        score, tried = SCORES[way]
        number = best(tried, lambda value: score_queries(queries, score(ground, seen, value)), ONE)
        scorer = score(ground, seen, number)
        weight = best(WEIGHTS, lambda value: score_queries(queries, scorer, unwanted_weight=value), WITHOUT)
        chosen = {"unwanted_weight": weight, **({"rank": number} if len(tried) > 1 else {})}
        scores = score_queries(asked[1], score(ground, asked[0], number), unwanted_weight=weight)
    measured = measure_queries(ground.study, scores, asked[1])
    means = {
        metric: {
            form: round(mean_by_facets([getattr(each, metric) for each in measured], asked[1], form), 5)
            for form in FORMS
        }
        for metric in ("recall", "precision", "average_precision")
    }
    return {"chosen": chosen, **means, "recall_of_queries": [round(each.recall, 4) for each in measured]}


def measure_attributes(study: Study, name: str, replicate: int, corpus: Path, checkpoint: Path) -> dict[str, Any]:
    """Ask one checkpoint in all ways of its method."""
    ground = Ground(study, name, replicate, corpus, checkpoint)
    splits = []
    for split in ("validation", "test"):
        seen = ground.seen(split)
        queries = attribute_queries(drawing_traits(seen.captions), study.queries)
        ground.learn(queries)
        splits.append((seen, queries))
    provenance = capture_provenance(
        model=name, dataset=corpus.name, split=study.held_out[replicate], seed=ground.recipe.seed
    )
    return {
        **vars(provenance),
        "versions": dict(provenance.versions),
        "replicate": replicate,
        "plan": plan_of(study, name, replicate, corpus),
        "ways": {way: measure_way(ground, way, *splits) for way in study.methods[name].ways},
    }


def write_queries(study: Study, corpus: Path) -> None:
    """Write what is asked of each replicate, and how many images are right, beside the results."""
    told = {}
    for replicate, left_out in enumerate(study.held_out):
        rows = recipe_split(method_recipe(study, next(iter(study.methods)), replicate), corpus, "test")
        traits = drawing_traits(captions_by_perspective(rows, study.perspectives))
        queries = attribute_queries(traits, study.queries)
        told[left_out] = [
            {"query": str(query), "form": query.form, "facets": query.facets, "right": len(query.relevant)}
            for query in queries
        ]
    study.results.parent.mkdir(parents=True, exist_ok=True)
    write_json(study.results.with_name(QUERIES), told)


def unmeasured(study: Study, corpus: Path) -> Iterator[tuple[str, int]]:
    """Yield the finished runs whose ways have not been asked yet.

    Raises:
        ValueError: results of another plan, or no finished run.
    """
    finished, path = load_results(study.results), study.results.with_name(ATTRIBUTES)
    if not finished:
        raise ValueError(f"{study.results} has no finished run. Run: python -m training.study --study {study.path}")
    measured = load_results(path)
    require_plan(study, finished, corpus)
    require_plan(study, measured, corpus)
    done = {(row["model"], row["replicate"]) for row in measured}
    for row in finished:
        if study.methods[row["model"]].ways and (row["model"], row["replicate"]) not in done:
            yield row["model"], row["replicate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("training/studies/attributes.yaml"))
    parser.add_argument("--work-dir", type=Path, default=Path("runs/studies"), help="of checkpoints")
    options = parser.parse_args()
    disable_progress_bars()
    logging.disable_progress_bar()
    study = load_study(options.study)
    corpus, work = find_corpus(study.recipe.corpus), options.work_dir / study.path.stem
    todo = list(unmeasured(study, corpus))
    write_queries(study, corpus)
    for number, (name, replicate) in enumerate(todo):
        with suppress(Timeout), FileLock(work / f"{name}-{replicate}.attributes.lock", timeout=0):
            if (name, replicate) in set(unmeasured(study, corpus)):
                sys.stderr.write(f"== {name}, {study.held_out[replicate]}, {number} of {len(todo)} done\n")
                row = measure_attributes(study, name, replicate, corpus, work / f"{name}-{replicate}")
                append_result(study.results.with_name(ATTRIBUTES), row)


if __name__ == "__main__":
    main()
