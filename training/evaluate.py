"""Measure retrieval of a checkpoint: `python -m training.evaluate --model runs/emoji/holistic`.

Records are merged into `--output`.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModel, AutoProcessor

from holistic_clip_hf import HolisticCLIPModel, HolisticCLIPProcessor
from holistic_clip_hf.corpus.schema import count_perspectives
from holistic_clip_hf.evaluation.encoding import FusedVectors, encode_images, encode_texts, fuse
from holistic_clip_hf.evaluation.metrics import caption_pairs
from holistic_clip_hf.evaluation.protocols import captions_by_perspective
from holistic_clip_hf.evaluation.ranking import dot, swapped, top_candidates
from holistic_clip_hf.evaluation.records import FUSED, Record, capture_provenance, save_records
from holistic_clip_hf.evaluation.retrieval import evaluate_retrieval
from holistic_clip_hf.visualization import ResultRow, result_grid
from training.corpora.opening import corpus_directory, open_split

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


def format_records(records: Sequence[Record]) -> str:
    """The fused numbers as lines of text, chance beside each."""
    lines = [f"{'texts':14} {'direction':14} {'metric':12} {'value':>8} {'chance':>8} {'queries':>8}"]
    for record in records:
        details = record.details
        if details["branch"] == FUSED:
            numbers = f"{record.value:8.3f} {record.chance:8.3f} {record.counts['n_queries']:8,}"
            lines.append(f"{details['perspective']:14} {details['direction']:14} {record.label:12} {numbers}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint's directory, or its name on the Hub")
    parser.add_argument("--name", default=None, help="what records call the model; default: the end of `--model`")
    parser.add_argument("--corpus", default="emoji", help="`emoji`, or a corpus directory")
    parser.add_argument("--split-column", default="artist_split", help="the column that holds the split's name")
    parser.add_argument("--split", default="test")
    parser.add_argument("--perspectives", nargs="+", default=None, help="default: all that the split has")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of the confidence intervals and the picture's queries")
    parser.add_argument("--output", type=Path, default=Path("results.json"))
    parser.add_argument("--picture", type=Path, default=None, help="also draw a grid of results into this PNG")
    options = parser.parse_args()

    model, processor = load_checkpoint(options.model)
    corpus = corpus_directory(options.corpus)
    dataset = open_split(corpus, options.split, split_column=options.split_column)
    perspectives = options.perspectives or sorted(count_perspectives(dataset))
    name = options.name or Path(options.model).name
    provenance = capture_provenance(model=name, dataset=corpus.name, split=options.split, seed=options.seed)
    common = {"perspectives": perspectives, "batch_size": options.batch_size}
    records = evaluate_retrieval(model, processor, dataset, provenance=provenance, progress=True, **common)
    save_records(options.output, records)
    print(format_records(records))
    if options.picture:
        draw_results(model, processor, dataset, options.picture, seed=options.seed, **common)


if __name__ == "__main__":
    main()
