"""From what a recipe calls its corpus to the corpus itself."""

from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset

from holistic_clip_hf.corpus.build import load_corpus
from training.corpora.emoji.build import build_emoji_corpus


def corpus_directory(name: str) -> Path:
    """The directory of the corpus called `"emoji"`, which is built if need be, or `name` as a directory itself."""
    return build_emoji_corpus() if name == "emoji" else Path(name)


def open_split(
    directory: Path, split: str, *, split_column: str, held_out: Mapping[str, str] | None = None
) -> Dataset:
    """The rows of a corpus whose `split_column` says `split`.

    With `held_out`, a column and the value of it that is never trained on, the rows of that value are the test split
    instead; what the corpus itself would test on is trained on.

    Raises:
        ValueError: no such column, or no such rows.
    """
    corpus = load_corpus(directory)
    for column in (split_column, *(held_out or {})):
        if column not in corpus.column_names:
            raise ValueError(f"{directory} has no column {column!r}. It has: {', '.join(corpus.column_names)}.")
    splits = list(corpus[split_column])
    for column, value in (held_out or {}).items():
        values = corpus[column]
        if value not in values:
            raise ValueError(f"No row of {directory} has {value!r} in {column!r}, so it cannot be held out.")
        splits = [
            "test" if held == value else "train" if told == "test" else told
            for told, held in zip(splits, values, strict=True)
        ]
    rows = [index for index, value in enumerate(splits) if value == split]
    if not rows:
        valid = ", ".join(sorted(set(splits)))
        raise ValueError(f"No row of {directory} has {split!r} in {split_column!r}. Valid: {valid}.")
    return corpus.select(rows)
