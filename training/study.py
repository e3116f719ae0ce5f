"""Compare methods over held-out domains and seeds: `python -m training.study [--study training/studies/emoji.yaml]`.

Every method is trained once for each replicate: a domain (an artist) that is held out, and a seed. Methods share both,
so their differences are paired and most of the noise cancels. Each finished run is a line of `results.jsonl` in the
study's folder; a killed study goes on where it was, and several that are started side by side share the runs.
Checkpoints stay in `--work-dir`: without `results.jsonl` a study only measures again.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import logging
from transformers.utils import SAFE_WEIGHTS_NAME

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.corpus.build import find_corpus, load_corpus, read_manifest
from holistic_clip_hf.evaluation.attributes import QueryRules
from holistic_clip_hf.evaluation.fusion_fitting import FITTED, fit_fusion
from holistic_clip_hf.evaluation.records import FUSED, PER_PERSPECTIVE, UNUSABLE, Record, capture_provenance
from holistic_clip_hf.evaluation.retrieval import CAPTION_SETS, EmbeddedCorpus, embed_corpus, measure_retrieval
from holistic_clip_hf.loss_holistic_clip import prefix_of
from holistic_clip_hf.options_holistic_clip import require_caption_form, require_prefixes
from holistic_clip_hf.storage import field_names, read_yaml, require_keys, shown
from holistic_clip_hf.trainer.recipes import (
    Recipe,
    Run,
    load_recipe,
    recipe_split,
    require_run_name,
    seconds_of_training,
)
from holistic_clip_hf.trainer.tower_states import hash_images
from training.changes import changed_fingerprint, load_changed, make_changed, require_change, train_changed
from training.rivals import require_ways

RESULTS = "results.jsonl"
PROTOCOLS = (PER_PERSPECTIVE, CAPTION_SETS)
KEPT_METRICS = ("recall@1", "recall@5", "mean_average_precision")
MAX, WITHOUT = "max", "without "  # scores that a study may name
OPTIONAL = {"queries", "scores", "widths", "title", "changes_of", "also_against", "fit_fusions"}  # keys
FIT_ON = {"weighted": "validation", "softmax": "validation", "routed": "train"}


@dataclass(frozen=True)
class Method:
    """Parts that one method has of its own; the rest is the study's recipe.

    Args:
        perspectives, slots: Names of its run.
        model, training: Differences from the recipe; sections are merged.
        as_much_compute_as: another method; the number of steps is then such that both do as many multiplications.
        replicates: Number of the study's replicates. Default: all.
        caption_form: Form of its captions, in training and where they ask; see `Recipe`. Default: the recipe's.
        seed_offset: Number added to the seed of each replicate, for a second run of what is else the same method.
        ways: Ways to ask its checkpoints for attributes, see `training.attribute_study`. Default: none.
        change: Name of what `training.changes` changes in its training. Default: nothing.
        label: Words that tables and pictures have for it, where its name in the records misleads. Default: the name.
    """

    perspectives: list[str]
    slots: list[str]
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    as_much_compute_as: str | None = None
    replicates: int | None = None
    caption_form: str | None = None
    seed_offset: int = 0
    ways: list[str] = field(default_factory=list)
    change: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Study:
    """A study file. Replicate r holds out `held_out[r]` in `column`, with seed r.

    `perspectives` are those measured, `training` is what the study changes in its recipe for all methods,
    `queries` are the rules of its attribute queries, and `scores` are measured beside the fusions: `max`, or
    `without` and a perspective for the mean of all other branches. A study with `widths` measures vectors of so many
    dimensions, the first and the principal ones, in place of other fusions. `title` is the heading of its page, by
    default its name. `changes_of` is the method that the others are single changes of, if they are.
    `also_against` is a method that the page compares all with a second time. Without `fit_fusions` branches are
    measured by the fused score that they were trained for, and by name.
    """

    path: Path
    recipe: Recipe
    column: str
    held_out: list[str]
    perspectives: list[str]
    training: dict[str, Any]
    methods: dict[str, Method]
    queries: QueryRules = field(default_factory=QueryRules)
    scores: list[str] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    title: str | None = None
    changes_of: str | None = None
    also_against: str | None = None
    fit_fusions: bool = True

    @property
    def results(self) -> Path:
        return self.path.with_suffix("") / RESULTS

    @property
    def heading(self) -> str:
        """First line of the study's page, in Markdown."""
        return f"# {self.title or self.path.stem}"

    @property
    def labels(self) -> dict[str, str]:
        """Words for each method, by its name."""
        return {name: method.label or name for name, method in self.methods.items()}

    def runs(self) -> list[tuple[str, int]]:
        """Return methods and replicates, those with all replicates first; replicate by replicate, so that a study cut
        short compares the same ones.
        """
        counts = {name: method.replicates or len(self.held_out) for name, method in self.methods.items()}
        return [
            (name, replicate)
            for count in sorted(set(counts.values()), reverse=True)
            for replicate in range(count)
            for name in self.methods
            if counts[name] == count
        ]


def load_study(path: Path) -> Study:
    """Read a study file. Raises `ValueError` for unknown or lacking keys and methods."""
    content = read_yaml(path)
    valid = field_names(Study) - {"path"}
    content = require_keys(str(path), content, valid, valid - OPTIONAL)
    require_prefixes(content.get("widths", []))
    rules = field_names(QueryRules)
    content["queries"] = QueryRules(**require_keys(f"{path}, queries", content.get("queries") or {}, rules))
    known = field_names(Method)
    for name, method in content["methods"].items():
        require_run_name(name, f"{path}: `methods`")
        require_keys(f"{path}, {name}", method, known)
    known_scores = [MAX, *(WITHOUT + name for name in content["perspectives"])]
    if unknown := [each for each in content.get("scores", ()) if each not in known_scores]:
        raise ValueError(f"{path}: `scores` has {shown(unknown[0])}; expected some of {', '.join(known_scores)}.")
    methods = {name: Method(**method) for name, method in content.pop("methods").items()}
    for name, each in methods.items():
        require_caption_form(f"{path}, {name}", each.caption_form)
        require_change(f"{path}, {name}", each.change, each.perspectives, each.slots)
        require_ways(f"{path}, {name}", each.ways, each.perspectives, content["perspectives"])
        if content.get("widths") and each.model.get("fusion") == "routed":
            raise ValueError(
                f"{path}, {name}: `fusion` is 'routed', whose router reads whole vectors, beside `widths`; expected "
                "another fusion. Leave one of them out."
            )
    models = {each.as_much_compute_as for each in methods.values() if each.as_much_compute_as}
    if missing := sorted(models - set(methods)):
        raise ValueError(f"{path}: got `as_much_compute_as` {missing}; expected one of {', '.join(methods)}.")
    for key in ("changes_of", "also_against"):
        if content.get(key) not in (None, *methods):
            raise ValueError(f"{path}: `{key}` is {content[key]!r}; expected one of {', '.join(methods)}.")
    return Study(path=path, methods=methods, recipe=load_recipe(content.pop("recipe")), **content)


def method_recipe(study: Study, name: str, replicate: int) -> Recipe:
    """Return the recipe of one run, of which it is the only one."""
    method, recipe = study.methods[name], study.recipe
    return replace(
        recipe,
        name=study.path.stem,
        model=merge_sections(recipe.model, method.model),
        training={**recipe.training, **study.training, **method.training, "seed": replicate + method.seed_offset},
        runs={name: Run(method.perspectives, method.slots)},
        held_out={study.column: study.held_out[replicate]},
        caption_form=method.caption_form or recipe.caption_form,
    )


@lru_cache
def hash_corpus(corpus: Path) -> str:
    """Hash all rows of a corpus. Its own fingerprint changes with the code that builds it, too."""
    rows = load_corpus(corpus)
    digest = hashlib.sha256(hash_images(rows).encode())
    for row in rows.remove_columns("image"):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


@lru_cache
def hash_start(start: str | None) -> str | None:
    """Hash the weights of a checkpoint that runs start from; None without one, or if there is no such file."""
    weights = None if start is None else Path(start) / SAFE_WEIGHTS_NAME
    if weights is None or not weights.is_file():
        return None
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


def plan_of(study: Study, name: str, replicate: int, corpus: Path) -> str:
    """Return a hash that changes with all that decides a run: its recipe, its change, and what the corpus holds."""
    return _plan_by(study, name, replicate, hash_corpus(corpus))


def _plan_by(study: Study, name: str, replicate: int, corpus: str) -> str:
    """Return the plan's hash, given that of the corpus."""
    recipe = method_recipe(study, name, replicate)
    return changed_fingerprint(recipe.fingerprint(name, corpus), study.methods[name].change)


def require_plan(study: Study, rows: Iterable[dict[str, Any]], corpus: Path | None = None) -> None:
    """Refuse results that another plan has made, before anything is added to them or told of them.

    Args:
        study: Plan.
        rows: Finished runs, as `load_results` returns them. Those that name no plan are older than this check.
        corpus: Corpus, to hold the runs' recipes against. Default: names and replicates alone are looked at.

    Raises:
        ValueError: a method or a replicate that the study does not have, or a run by another recipe or from other
            weights.
    """
    start = None if corpus is None else hash_start(study.recipe.start_from)
    # Earlier runs name the corpus by its fingerprint, the first no plan at all.
    hashes = [] if corpus is None else [hash_corpus(corpus), read_manifest(corpus)["fingerprint"]]
    for row in rows:
        name, replicate = row["model"], row["replicate"]
        where = f"{study.results} has replicate {replicate} of {name!r}"
        if name not in study.methods or not 0 <= replicate < len(study.held_out):
            raise ValueError(
                f"{where}; expected methods {', '.join(study.methods)} and replicates below {len(study.held_out)}, as "
                f"{study.path} says. Add it to the plan, or move the results away."
            )
        if hashes and row.get("plan") not in (None, *(_plan_by(study, name, replicate, each) for each in hashes)):
            raise ValueError(
                f"{where} by another recipe or corpus; expected those of {study.path}. Put the plan back as it was, "
                "or move the results away."
            )
        # Trained again, a network is another, and runs that start from the two are no pairs.
        if None not in (start, row.get("start")) and row["start"] != start:
            raise ValueError(
                f"{where} from other weights than those of {study.recipe.start_from}; expected the same for all. Put "
                "them back, or move the results away."
            )


def multiplications(recipe: Recipe, run: str, corpus: Path, states: Path, change: str | None = None) -> int:
    """Count the floating-point operations of the first training step, forward and backward, without a frozen tower."""
    trainer = make_changed(recipe, run, corpus, states, change)
    if trainer.frozen_tower is not None:
        trainer.frozen_tower.prepare(trainer.accelerator.autocast)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    with FlopCounterMode(display=False) as counter:
        loss = trainer.compute_loss(trainer.model, batch)
        assert isinstance(loss, Tensor)
        loss.backward()
    return counter.get_total_flops()


def measure_run(study: Study, name: str, replicate: int, corpus: Path, work: Path) -> dict[str, Any]:
    """Train, fit every fusion, and measure on the domain that was held out."""
    recipe, checkpoint = method_recipe(study, name, replicate), work / f"{name}-{replicate}"
    plan, change = plan_of(study, name, replicate, corpus), study.methods[name].change
    operations = multiplications(recipe, name, corpus, work / "unused", change)
    if other := study.methods[name].as_much_compute_as:
        theirs, their_change = method_recipe(study, other, replicate), study.methods[other].change
        ratio = multiplications(theirs, other, corpus, work / "unused", their_change) / operations
        recipe = _stretch(recipe, ratio)
    train_changed(recipe, name, corpus, checkpoint, change)
    model, processor = load_trained(checkpoint, recipe)
    has_fusions = model.config.num_branches > 1 and not study.widths and study.fit_fusions
    encoded = {
        split: embed_corpus(
            model,
            processor,
            recipe_split(recipe, corpus, split),
            perspectives=study.perspectives,
            with_images=split != "train",
        )
        # One vector has no fusion to fit.
        for split in (("train", "validation", "test") if has_fusions else ("test",))
    }
    provenance = capture_provenance(model=name, dataset=corpus.name, split=study.held_out[replicate], seed=recipe.seed)
    row = {
        **vars(provenance),
        "versions": dict(provenance.versions),
        "replicate": replicate,
        "plan": plan,
        "start": hash_start(recipe.start_from),
        "steps": recipe.training["max_steps"],
        "operations_per_step": operations,
        "train_seconds": seconds_of_training(checkpoint),
    }
    numbers = _numbers(_all_records(model, encoded, provenance, with_fusions=has_fusions))
    for width in study.widths:
        for way, corpus_of in WAYS_TO_SHORTEN.items():
            records = measure_retrieval(
                model, corpus_of(encoded["test"], width), provenance=provenance, with_branches=False
            )
            numbers |= {f"{by}, {way} {width}": asked for by, asked in _numbers(records).items()}
    for score in study.scores:
        if _set_score(model, score):
            records = measure_retrieval(
                model, encoded["test"], provenance=provenance, protocols=PROTOCOLS, with_branches=False
            )
            numbers[f"{FUSED}, {score}"] = next(iter(_numbers(records).values()))
    return {**row, UNUSABLE: len(encoded["test"].left_out), "numbers": numbers}


def load_trained(checkpoint: Path, recipe: Recipe) -> tuple[HolisticCLIPModel, HolisticCLIPProcessor]:
    """Load the checkpoint of a run, with the form of captions that its recipe says: earlier runs did not save it."""
    model, processor = load_changed(checkpoint)
    if recipe.caption_form is not None:
        processor.caption_form, processor.caption_perspectives = recipe.caption_form, recipe.slots
    return model, processor


def _set_score(model: HolisticCLIPModel, score: str) -> bool:
    """Make a model answer by one of the study's `scores`, and tell whether it has the branches for it."""
    names, left_out = list(model.config.perspectives), score.removeprefix(WITHOUT)
    if len(names) < 2 or left_out not in (MAX, *names):
        return False
    fusion, weights = (MAX, None) if score == MAX else ("weighted", [float(name != left_out) for name in names])
    model.branch_fusion.router = None
    model.config.update({"fusion": fusion, "branch_weights": weights, "fusion_scale": None})
    return True


def first_dimensions(corpus: EmbeddedCorpus, width: int) -> EmbeddedCorpus:
    """Return the same with the first dimensions of all vectors, made of unit length, as an index keeps them."""
    texts = {text: prefix_of(vector, width) for text, vector in corpus.text_embeds.items()}
    return replace(corpus, branch_embeds=prefix_of(corpus.branch_embeds, width), text_embeds=texts)


def principal_dimensions(corpus: EmbeddedCorpus, width: int) -> EmbeddedCorpus:
    """Return the same with the principal components of the branches' vectors, which needs no training.

    They are not centred, so that all of them together give the similarities of whole vectors.
    """
    vectors = corpus.branch_embeds.flatten(0, 1)
    axes = torch.linalg.eigh(vectors.T @ vectors).eigenvectors.flip(1)
    texts = {text: vector @ axes for text, vector in corpus.text_embeds.items()}
    return first_dimensions(replace(corpus, branch_embeds=corpus.branch_embeds @ axes, text_embeds=texts), width)


FIRST, PRINCIPAL = "first", "principal"
WAYS_TO_SHORTEN = {FIRST: first_dimensions, PRINCIPAL: principal_dimensions}


def _all_records(
    model: HolisticCLIPModel, encoded: dict[str, EmbeddedCorpus], provenance: Any, *, with_fusions: bool
) -> Iterator[Record]:
    """Yield each fusion by its fused score, and the branches once. What was trained is not fitted again."""
    trained = model.config.fusion
    yield from measure_retrieval(model, encoded["test"], provenance=provenance, protocols=PROTOCOLS)
    if with_fusions:
        for fusion in sorted({"centroid", "mean", *FITTED} - {trained}):
            if fusion in FITTED:
                fit_fusion(model, encoded[FIT_ON[fusion]], fusion)
            else:
                model.config.fusion = fusion
            yield from measure_retrieval(
                model, encoded["test"], provenance=provenance, protocols=PROTOCOLS, with_branches=False
            )


def _numbers(records: Iterable[Record]) -> dict[str, Any]:
    """Collect numbers by fusion or branch, perspective of the texts (or `caption_sets`), direction, and metric.

    Without what the whole run shares.
    """
    numbers: dict[str, Any] = {}
    for record in records:
        if record.label in KEPT_METRICS:
            details = record.details
            by = f"{FUSED}, {details['fusion']}" if details["branch"] == FUSED else str(details["branch"])
            asked = details["perspective"] if details["protocol"] == PER_PERSPECTIVE else CAPTION_SETS
            of_texts = numbers.setdefault(by, {}).setdefault(asked, {})
            of_texts.setdefault(details["direction"], {})[record.label] = round(record.value, 5)
    return numbers


def _stretch(recipe: Recipe, ratio: float) -> Recipe:
    """Train as many times as many steps, warm-up in proportion."""
    steps = {name: max(1, round(recipe.training[name] * ratio)) for name in ("max_steps", "warmup_steps")}
    return replace(recipe, training={**recipe.training, **steps})


def merge_sections(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return a mapping with changes; sections that both have are merged likewise."""
    both = {name: merge_sections(old[name], value) for name, value in new.items() if isinstance(old.get(name), dict)}
    return {**old, **new, **both}


def load_results(path: Path) -> list[dict[str, Any]]:
    """Return the finished runs of a study."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] if path.is_file() else []
    )


def append_result(path: Path, row: dict[str, Any]) -> None:
    """Add a finished run; other processes may do so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def missing_runs(study: Study, methods: Collection[str] | None = None) -> list[tuple[str, int]]:
    """Return methods and replicates without a line in the results, of some methods or of all."""
    done = {(row["model"], row["replicate"]) for row in load_results(study.results)}
    return [run for run in study.runs() if run not in done and (methods is None or run[0] in methods)]


def finish_runs(study: Study, work: Path, methods: Collection[str] | None = None) -> None:
    """Train and measure the runs that are missing and that no other process is at.

    Args:
        study: Plan.
        work: Folder of the checkpoints.
        methods: Names of the methods that are wanted. Default: all.

    Raises:
        ValueError: the results are of another plan.
    """
    corpus = find_corpus(study.recipe.corpus)
    require_plan(study, load_results(study.results), corpus)
    work.mkdir(parents=True, exist_ok=True)
    for name, replicate in missing_runs(study, methods):
        # The system lets go of the lock of a process that was killed.
        with suppress(Timeout), FileLock(work / f"{name}-{replicate}.lock", timeout=0):
            left = missing_runs(study, methods)
            if (name, replicate) not in left:
                continue
            sys.stderr.write(f"== {name}, without {study.held_out[replicate]}, {len(left)} to do\n")
            append_result(study.results, measure_run(study, name, replicate, corpus, work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("training/studies/emoji.yaml"))
    parser.add_argument("--work-dir", type=Path, default=Path("runs/studies"), help="of checkpoints")
    parser.add_argument("--methods", nargs="+", default=None, help="those that are wanted now; default: all")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: its own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    disable_progress_bars()
    logging.disable_progress_bar()
    study = load_study(options.study)
    if unknown := sorted({*(options.methods or ())} - set(study.methods)):
        raise ValueError(f"`--methods` has {', '.join(unknown)}; expected some of {', '.join(study.methods)}.")
    finish_runs(study, options.work_dir / study.path.stem, options.methods)


if __name__ == "__main__":
    main()
