"""From nothing to three compared models: `python -m training.quickstart [--recipe training/recipes/emoji.yaml]`.

Builds the corpus, trains every run of the recipe, evaluates each on the artist that none has seen, and shows a table,
a picture, a model card and how to load the result. What is already there is reused.
"""

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import logging
from transformers.utils import CONFIG_NAME

from holistic_clip_hf.corpus.build import find_corpus, open_split, read_manifest
from holistic_clip_hf.evaluation.encoding import load_checkpoint
from holistic_clip_hf.evaluation.ranking import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from holistic_clip_hf.evaluation.records import (
    BY_NAME,
    FUSED,
    PER_PERSPECTIVE,
    Record,
    capture_provenance,
    load_records,
    save_records,
)
from holistic_clip_hf.evaluation.retrieval import CAPTION_SETS, evaluate_retrieval
from holistic_clip_hf.publishing.model_card import (
    AT_ONCE,
    FACTS_FILE,
    CardFacts,
    EnvironmentalCost,
    TrainingData,
    changed_arguments,
    load_facts,
    save_facts,
    write_model_card,
)
from holistic_clip_hf.storage import require_own_folder
from holistic_clip_hf.trainer import HolisticCLIPTrainingArguments
from holistic_clip_hf.trainer.recipes import Recipe, load_recipe, seconds_of_training, train_run
from holistic_clip_hf.visualization.result_grid import draw_results
from training.drawing import build_on_all_cores
from training.emoji.captions import PERSPECTIVES
from training.emoji.splits import TEST_ARTIST
from training.seeds import with_seed

CARD = "README.md"
RESULTS = "results.json"
PICTURE = "results.png"
PROTOCOLS = (PER_PERSPECTIVE, CAPTION_SETS)
SHOWN_RUN = "holistic"
TEST_SPLIT = "test"
EMOJI = "emoji"

LOADING = """
Picture     {picture}
Model card  {card}
Load it:

    import holistic_clip_hf
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained("{checkpoint}")
    processor = AutoProcessor.from_pretrained("{checkpoint}")
"""


def describe_corpus(corpus: Path) -> None:
    """Print what the corpus holds, and where its own card lies."""
    manifest = read_manifest(corpus)
    print(f"== corpus: {manifest['rows']:,} images")
    print(f"captions: {manifest['perspectives']}")
    for column, counts in manifest["columns"].items():
        print(f"{column}: {counts}")
    print(f"licences and all counts: {corpus / CARD}", flush=True)


def evaluate_run(recipe: Recipe, run: str, dataset: str, test: Dataset, checkpoint: Path) -> list[Record]:
    """Return the records of a finished run on the held-out artist: read if all are there, else measured."""
    path = checkpoint / RESULTS
    measured = [record for record in load_records(path) if record.model == run] if path.is_file() else []
    if {record.details["protocol"] for record in measured} == set(PROTOCOLS):
        return measured
    model, processor = load_checkpoint(checkpoint)
    records = evaluate_retrieval(
        model,
        processor,
        test,
        provenance=capture_provenance(model=run, dataset=dataset, split=TEST_SPLIT, seed=recipe.seed),
        perspectives=recipe.slots,
        protocols=PROTOCOLS,
        progress=True,
    )
    save_records(path, records)
    return records


def comparison_table(records: Sequence[Record], slots: Sequence[str]) -> str:
    """Return recall@5 in percent: a line per direction and model, a column per perspective and one for all captions at
    once.

    The fused vector of each model, and, where it has one, the branch of the text's own perspective; chance below.
    """
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for record in records:
        direction, perspective, branch = (str(record.details[key]) for key in ("direction", "perspective", "branch"))
        if record.label != "recall@5" or branch not in (FUSED, perspective, BY_NAME):
            continue
        if record.details["protocol"] == CAPTION_SETS:
            perspective = AT_ONCE
        model = record.model if branch == FUSED else f"{record.model}, own branch"
        cells.setdefault((direction, record.model), {})  # above its own branch, whatever comes first
        cells.setdefault((direction, model), {})[perspective] = record.value
        cells.setdefault((direction, "(chance)"), {})[perspective] = record.chance or 0.0
    columns = [*slots, AT_ONCE]
    lines = [f"{'recall@5, %':40}" + "".join(f"{name:>12}" for name in columns)]
    for direction in (TEXT_TO_IMAGE, IMAGE_TO_TEXT):
        models = sorted((line[1] for line in cells if line[0] == direction), key=lambda model: model == "(chance)")
        for model in models:
            found = cells[direction, model]
            values = "".join(f"{100 * found[name]:12.1f}" if name in found else " " * 12 for name in columns)
            lines.append(f"{direction.replace('_', ' '):16}{model:24}{values}")
    return "\n".join(lines)


def card_facts(recipe: Recipe, run: str, manifest: Mapping[str, Any], checkpoint: Path) -> CardFacts:
    """Return what the card says beside configuration and records."""
    packages, shards = manifest["about"].get("packages", {}), manifest["shards"]
    held_out = "held out, for evaluation only"
    data = [
        TrainingData(
            name=facts["title"] + (f" ({held_out})" if name == TEST_ARTIST else ""),
            license=facts["license"],
            url=facts["source"],
            num_images=shards[name]["rows"] if name in shards else None,
        )
        for name, facts in packages.items()
    ]
    return CardFacts(
        repo_id=str(checkpoint),
        model_name=run,
        heading=f"holistic-clip-{recipe.name.replace('_', '-')}",
        language="en",
        summary="A small model, trained from scratch on emoji by many artists, to show the whole way from corpus to "
        "checkpoint. It is compared with CLIP and with a one-to-many model of the same backbone, steps and batch.",
        perspectives=PERSPECTIVES if recipe.corpus == EMOJI else {},
        training_data=data,
        training=recipe_facts(recipe, run),
        cost=EnvironmentalCost(hours=hours_of_training(checkpoint)),
        limitations=(
            "It has seen emoji only; it knows neither photographs nor whole sentences.",
            "Names, keywords and definitions are those of the emoji's publishers and a dictionary, in English: what "
            "they find worth a picture, and how they show people, is what the model knows of the world.",
        ),
        pictures={"Texts and what the branches find": PICTURE},
    )


def recipe_facts(recipe: Recipe, run: str) -> dict[str, Any]:
    """Return every value of a run's recipe that is not a default, but for those that the configuration holds."""
    args = HolisticCLIPTrainingArguments(output_dir="runs", slots=recipe.runs[run].slots, **recipe.training)
    told = {"recipe": f"{recipe.name}, run {run}", **changed_arguments(args)}
    told |= {f"tokenizer {name}": value for name, value in recipe.tokenizer.items()}
    for name, value in (recipe.augmentation or {}).items():
        told[f"augmentation {name}"] = _told(value)
    return told


def _told(value: Any) -> Any:
    """Return limits as `0.65 to 1.0`, names as a list, and anything else as it is."""
    if not isinstance(value, list):
        return value
    return ", ".join(value) if all(isinstance(each, str) for each in value) else " to ".join(map(str, value))


def hours_of_training(checkpoint: Path) -> float | None:
    """Return the hours that the trainer measured, or None if it left no log."""
    seconds = seconds_of_training(checkpoint)
    return None if seconds is None else round(seconds / 3600, 2)


def write_quickstart_card(
    recipe: Recipe, corpus: Path, test: Dataset, records: Sequence[Record], checkpoint: Path
) -> None:
    """Draw the picture and render the card of a checkpoint, into its folder, with all that it is rendered from."""
    model, processor = load_checkpoint(checkpoint)
    draw_results(model, processor, test, checkpoint / PICTURE, perspectives=recipe.slots, seed=recipe.seed)
    save_facts(checkpoint / FACTS_FILE, card_facts(recipe, checkpoint.name, read_manifest(corpus), checkpoint))
    save_records(checkpoint / RESULTS, records)
    write_model_card(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="training/recipes/emoji.yaml")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    parser.add_argument("--seed", type=int, default=None, help="another than the recipe's; its runs lie apart")
    parser.add_argument("--card-dir", type=Path, default=None, help="also put the card and its sources there")
    options = parser.parse_args()
    disable_progress_bars()  # of `datasets` and `transformers`: reading and writing takes a second
    logging.disable_progress_bar()
    if options.card_dir and not (options.card_dir / FACTS_FILE).is_file():
        require_own_folder(options.card_dir, lambda path: False, holds="a model card")
    started, recipe = time.monotonic(), with_seed(load_recipe(options.recipe), options.seed)
    output_dir = options.output_dir / recipe.name

    corpus = build_on_all_cores() if recipe.corpus == EMOJI else find_corpus(recipe.corpus)
    describe_corpus(corpus)
    test, records = open_split(corpus, TEST_SPLIT, split_column=recipe.split_column), []
    for run in recipe.runs:
        print(f"== {run}", flush=True)
        train_run(recipe, run, corpus, output_dir / run)
        records += evaluate_run(recipe, run, corpus.name, test, output_dir / run)

    print(f"== results on {len(test):,} drawings by an artist that none has seen")
    print(comparison_table(records, recipe.slots))
    checkpoint = output_dir / (SHOWN_RUN if SHOWN_RUN in recipe.runs else list(recipe.runs)[-1])
    write_quickstart_card(recipe, corpus, test, records, checkpoint)
    if options.card_dir:
        options.card_dir.mkdir(parents=True, exist_ok=True)
        # The facts come first: by them the folder is known again.
        for name in (FACTS_FILE, CARD, CONFIG_NAME, RESULTS, *load_facts(checkpoint / FACTS_FILE).pictures.values()):
            shutil.copy(checkpoint / name, options.card_dir / name)
    print(LOADING.format(checkpoint=checkpoint, picture=checkpoint / PICTURE, card=checkpoint / CARD))
    print(f"All of it took {(time.monotonic() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
