"""From what a recipe calls its corpus to the corpus itself."""

from pathlib import Path

from datasets import Dataset

from holistic_clip_hf.corpus.build import load_corpus
from training.corpora.emoji.build import build_emoji_corpus


def corpus_directory(name: str) -> Path:
    """The directory of the corpus called `"emoji"`, which is built if need be, or `name` as a directory itself."""
    return build_emoji_corpus() if name == "emoji" else Path(name)


def open_split(directory: Path, split: str, *, split_column: str) -> Dataset:
    """The rows of a corpus whose `split_column` says `split`.

    Raises:
        ValueError: no such column, or no such rows.
    """
    corpus = load_corpus(directory)
    if split_column not in corpus.column_names:
        raise ValueError(f"{directory} has no column {split_column!r}. It has: {', '.join(corpus.column_names)}.")
    rows = [index for index, value in enumerate(corpus[split_column]) if value == split]
    if not rows:
        valid = ", ".join(sorted(set(corpus[split_column])))
        raise ValueError(f"No row of {directory} has {split!r} in {split_column!r}. Valid: {valid}.")
    return corpus.select(rows)
