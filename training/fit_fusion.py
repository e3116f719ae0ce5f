"""Fit how branches become one score: `python -m training.fit_fusion --model runs/emoji/holistic --fusion routed`.

`weighted` and `softmax` are fitted so that texts of `--split` find their images, and want a split that was not trained
on; `routed` learns from the captions alone which perspective a text is of, and takes the training split.
"""

import argparse
from pathlib import Path

from holistic_clip_hf.evaluation.fusion_fitting import FITTED, fit_fusion
from holistic_clip_hf.evaluation.retrieval import embed_corpus
from training.corpora.opening import corpus_directory, open_split
from training.evaluate import load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint's directory, or its name on the Hub")
    parser.add_argument("--fusion", required=True, choices=FITTED)
    parser.add_argument("--corpus", default="emoji", help="`emoji`, or a corpus directory")
    parser.add_argument("--split-column", default="artist_split", help="the column that holds the split's name")
    parser.add_argument("--split", default=None, help="default: train for `routed`, else validation")
    parser.add_argument("--seed", type=int, default=0, help="of the part that is drawn from a large split")
    parser.add_argument("--output", type=Path, default=None, help="default: the checkpoint's own directory")
    options = parser.parse_args()
    routed = options.fusion == "routed"
    model, processor = load_checkpoint(options.model)
    split = options.split or ("train" if routed else "validation")
    dataset = open_split(corpus_directory(options.corpus), split, split_column=options.split_column)
    corpus = embed_corpus(
        model,
        processor,
        dataset,
        perspectives=list(model.config.perspectives),
        with_images=not routed,
        progress=True,
    )
    fit_fusion(model, corpus, options.fusion, seed=options.seed)
    output = options.output or Path(options.model)
    for part in (model, processor):
        part.save_pretrained(output)
    print(f"{output} now answers with fusion={options.fusion!r}, fitted on {len(dataset):,} rows of {split}.")
    if model.config.branch_weights is not None:
        for name, weight in zip(model.config.perspectives, model.config.branch_weights, strict=True):
            print(f"{name:16} {weight:.3f}")
    if model.config.fusion_scale is not None:
        print(f"scale {model.config.fusion_scale:.2f}")


if __name__ == "__main__":
    main()
