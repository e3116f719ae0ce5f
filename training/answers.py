"""Calibrated answers of a recipe's runs: trained, calibrated on the validation split, asked on the test split.

  python -m training.answers --recipe training/recipes/emoji.yaml --runs holistic --seeds 0 1 2
  python -m training.answers --recipe training/studies/fashion_mnist_recipe.yaml --gallery-size 200

What is trained already, or has records, is not done again, so that a killed study goes on. It ends with a table.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets import disable_progress_bars
from transformers import logging

from holistic_clip_hf.cli import evaluate, fit
from holistic_clip_hf.corpus.build import corpus_name, find_corpus
from holistic_clip_hf.evaluation.calibration import TASK
from holistic_clip_hf.evaluation.records import FUSED, Record, load_records
from holistic_clip_hf.trainer.recipes import Recipe, load_recipe, train_run
from holistic_clip_hf.words import markdown_table
from training.seeds import records_file, with_seed

RECORDS = Path("training/studies/answers")
METRICS = {"calibration_error": "error", "told_nothing": "told", "answers_lost": "lost"}


def answers_of(path: Path, recipe: Recipe, runs: Iterable[str], gallery_size: int | None) -> list[Record]:
    """Return the records of runs of a recipe on galleries of this size."""
    dataset, names = corpus_name(find_corpus(recipe.corpus)), set(runs)
    return [
        record
        for record in (load_records(path) if path.is_file() else [])
        if (record.task, record.dataset) == (TASK, dataset)
        and record.model in names
        and record.details.get("gallery_size") == gallery_size
    ]


def measure(recipe: Recipe, run: str, folder: Path, gallery_size: int | None, output: Path) -> None:
    """Train a run, calibrate a copy of it, and add its records."""
    checkpoint, calibrated = folder / run, folder / f"{run}-calibrated"
    train_run(recipe, run, find_corpus(recipe.corpus), checkpoint)
    fit.Command(
        model=str(checkpoint),
        corpus=recipe.corpus,
        fusion="current",
        split_column=recipe.split_column,
        gallery_size=gallery_size,
        output=calibrated,
        replace=True,
    )()
    texts = evaluate.Texts(
        corpus=recipe.corpus,
        split_column=recipe.split_column,
        perspectives=tuple(recipe.runs[run].slots),
        gallery_size=gallery_size,
    )
    evaluate.Command(
        model=str(calibrated), name=run, tasks=("answers",), seed=recipe.seed, output=output, texts=texts
    )()


def answers_table(records: Iterable[Record], slots: Sequence[str]) -> str:
    """Return Markdown: a line for each run and kind of score, its numbers in %, in the order of the seeds."""
    values: dict[tuple[str, str], dict[str, list[str]]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        cells = values.setdefault((record.model, str(record.details["branch"])), {})
        cells.setdefault(record.metric, []).append(f"{100 * record.value:.1f}")
    order = [FUSED, *slots]
    lines = [
        [*entry, *(", ".join(values[entry].get(name, [])) for name in METRICS)]
        for entry in sorted(values, key=lambda entry: (entry[0], order.index(entry[1])))
    ]
    return markdown_table(["run", "score", *METRICS.values()], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=None, help="names of runs; default: all of the recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--gallery-size", type=int, default=None, help="images of a gallery; default: the whole split")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"), help="of checkpoints")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of records")
    options = parser.parse_args()
    disable_progress_bars()
    logging.disable_progress_bar()
    recipe = load_recipe(options.recipe)
    runs, size = options.runs or list(recipe.runs), options.gallery_size
    found: list[Record] = []
    for seed in options.seeds:
        seeded, path = with_seed(recipe, seed), records_file(options.records, recipe, seed)
        done = {record.model for record in answers_of(path, recipe, runs, size)}
        for run in runs:
            if run not in done:
                print(f"== {run}, seed {seed}", flush=True)
                measure(seeded, run, options.output_dir / seeded.name, size, path)
        found += answers_of(path, recipe, runs, size)
    print(answers_table(found, recipe.slots))


if __name__ == "__main__":
    main()
