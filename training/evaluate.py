"""Measure a checkpoint, print tables, and merge the records into `--output`: one command for every task.

    python -m training.evaluate --model runs/emoji/holistic
    python -m training.evaluate --model runs/emoji/holistic --tasks retrieval branches --branch-picture branches.png
    python -m training.evaluate --model runs/emoji/holistic --tasks classification probes --classes category
    python -m training.evaluate --model me/mine --corpus coco=/data/coco --protocols standard paper
    python -m training.evaluate --model me/mine --tasks classification --classes imagenet=/data/imagenet
    python -m training.evaluate --model me/mine --tasks segmentation --masks voc21=/data/VOC2012 --short-side 336

`retrieval` and `branches` take `--corpus`, `classification` and `probes` take `--classes`, `segmentation` takes
`--masks`. The heads of the files in training/benchmarks/ say what a benchmark's folder must hold. Records are saved
after each task, so that of an interrupted command the finished tasks stay.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModel, AutoProcessor

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.evaluation.branch_picture import branch_picture
from holistic_clip_hf.evaluation.encoding import FusedVectors, encode_images, encode_texts, fuse
from holistic_clip_hf.evaluation.linear_probe import NEIGHBOURS
from holistic_clip_hf.evaluation.metrics import caption_pairs
from holistic_clip_hf.evaluation.protocols import captions_by_perspective
from holistic_clip_hf.evaluation.ranking import dot, swapped, top_candidates
from holistic_clip_hf.evaluation.records import FUSED, PER_PERSPECTIVE, save_records
from holistic_clip_hf.evaluation.retrieval import RETRIEVAL_PROTOCOLS
from holistic_clip_hf.evaluation.segmentation import READOUTS
from holistic_clip_hf.visualization import ResultRow, result_grid
from training.evaluation_tasks import TASKS, Evaluation
from training.results_table import results_table

IMAGES_PER_ROW = 8


def load_checkpoint(name: str | Path) -> tuple[HolisticCLIPModel, HolisticCLIPProcessor]:
    """As anybody would load it, onto the device that training would use."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModel.from_pretrained(name).to(device), AutoProcessor.from_pretrained(name)


def draw_results(
    model: HolisticCLIPModel,
    processor: HolisticCLIPProcessor,
    dataset: Dataset,
    path: Path,
    *,
    perspectives: Sequence[str],
    batch_size: int = 64,
    seed: int,
) -> None:
    """One text of each perspective, drawn at random and not picked for its result, and the images found for it.

    Each text is answered by the fused vector and, where there is one, by the branch of its own perspective.
    """
    picker, branches = random.Random(seed), encode_images(model, processor, dataset, batch_size=batch_size)
    by_branch = dict(zip(model.config.perspectives, branches.unbind(dim=1), strict=True))
    rows = []
    for perspective, captions in captions_by_perspective(dataset, perspectives).items():
        texts, pairs = caption_pairs(captions)
        index = picker.randrange(len(texts))
        correct = set(pairs[pairs[:, 1] == index, 0].tolist())
        query = encode_texts(model, processor, [texts[index]], batch_size=batch_size)
        asked = {FUSED: fuse(model, branches, query)}
        if perspective in by_branch:
            asked[perspective] = FusedVectors(by_branch[perspective], query, dot)
        for name, (images, query_vectors, score) in asked.items():
            found = min(IMAGES_PER_ROW, len(dataset))
            ranked = top_candidates(query_vectors, images, found, score=swapped(score))[0].tolist()
            label = f"{perspective}, by {'all branches' if name == FUSED else 'its branch'}"
            rows.append(ResultRow(label, texts[index], ranked, correct))
    shown = {index: dataset[index]["image"] for row in rows for index in row.ranked}
    path.parent.mkdir(parents=True, exist_ok=True)
    result_grid(rows, shown, title="Texts of each perspective, drawn at random, and the images found").save(path)


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """What a task needs, before a checkpoint is loaded."""
    if options.classes is None and {"classification", "probes"} & set(options.tasks):
        parser.error("classification and probes need --classes: a perspective, a column, or as imagenet=DIR")
    if options.masks is None and "segmentation" in options.tasks:
        parser.error("segmentation needs --masks: a benchmark and its folder, as voc21=DIR")
    if options.branch_picture and not {"retrieval", "branches"} & set(options.tasks):
        parser.error("--branch-picture is drawn from the tasks retrieval and branches")
    if options.picture and not {"retrieval", "branches"} & set(options.tasks):
        parser.error("--picture is drawn from the corpus of retrieval: add the task")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint's directory, or its name on the Hub")
    parser.add_argument("--name", default=None, help="what records call the model; default: the end of `--model`")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["retrieval"])
    parser.add_argument("--split", default="test")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of confidence intervals and of all that is drawn")
    parser.add_argument("--output", type=Path, default=Path("results.json"))
    texts = parser.add_argument_group("retrieval, branches")
    texts.add_argument("--corpus", default="emoji", help="`emoji`, a corpus directory, or a benchmark as coco=DIR")
    texts.add_argument("--split-column", default="artist_split", help="the column that holds the split's name")
    texts.add_argument("--perspectives", nargs="+", default=None, help="default: all that the split has")
    texts.add_argument("--protocols", nargs="+", choices=RETRIEVAL_PROTOCOLS, default=[PER_PERSPECTIVE])
    texts.add_argument("--picture", type=Path, default=None, help="also draw a grid of results into this PNG")
    texts.add_argument("--branch-picture", type=Path, default=None, help="also draw the branch report into this PNG")
    classes = parser.add_argument_group("classification, probes")
    classes.add_argument("--classes", help="a perspective or a column of `--corpus`, or a benchmark as imagenet=DIR")
    classes.add_argument("--templates", default="openai-80", help="plain, photo, openai-7 or %(default)s")
    classes.add_argument("--most-train", type=int, default=None, help="of probes' training rows; default: all")
    classes.add_argument(
        "--neighbours", type=int, default=NEIGHBOURS, help="who vote on a class; default: %(default)s"
    )
    masks = parser.add_argument_group("segmentation")
    masks.add_argument("--masks", help="a benchmark as voc21=DIR")
    masks.add_argument("--readouts", nargs="+", choices=READOUTS, default=list(READOUTS))
    masks.add_argument("--short-side", type=int, default=None, help="pixels; default: the model's image size")
    masks.add_argument("--background-threshold", type=float, default=None, help="default: the background's own text")
    options = parser.parse_args()
    check_options(parser, options)
    return options


def main() -> None:
    options = parse_options()
    model, processor = load_checkpoint(options.model)
    evaluation, records = Evaluation(model, processor, options), []
    for task in dict.fromkeys(options.tasks):
        found = TASKS[task](evaluation)
        save_records(options.output, found)
        records += found
    print(results_table(records, model.config.perspectives))
    if options.branch_picture:
        options.branch_picture.parent.mkdir(parents=True, exist_ok=True)
        branch_picture(records, names=model.config.perspectives).save(options.branch_picture)
    if options.picture:
        draw_results(
            model,
            processor,
            evaluation.corpus[1],
            options.picture,
            perspectives=evaluation.perspectives,
            batch_size=options.batch_size,
            seed=options.seed,
        )


if __name__ == "__main__":
    main()
