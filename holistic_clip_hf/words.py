# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Words and sentences of captions, in scripts with and without spaces; tables of words."""

import difflib
import re
import string
from collections.abc import Iterable, Sequence

COMMAS = ",，、;；"
# Han, kana, Thai, Lao, Burmese and Khmer put no spaces between words.
_SPACELESS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_MARKS = string.punctuation + "“”‘’«»„…–—·•¿¡。，、！？；：（）「」『』【】《》।۔؟،"
_WORD = re.compile(r"\w+")


def split_words(text: str) -> list[str]:
    """Return words without the marks around them; each character counts as one in scripts that put no spaces between
    words.

    >>> split_words('A "red" sail-boat, 停泊.')
    ['A', 'red', 'sail-boat', '停', '泊']
    """
    words = (word.strip(_MARKS) for word in _SPACELESS.sub(r" \g<0> ", text).split())
    return [word for word in words if word]


# A full stop, then a space and the start of a sentence ("e.g. a dog" goes on); in Chinese and Japanese no space.
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[^\W_a-z])|(?<=[。！？])\s*(?=\S)")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a caption, in order.

    >>> split_sentences("A dog, e.g. a poodle, sits. Snow falls behind it!")
    ['A dog, e.g. a poodle, sits.', 'Snow falls behind it!']
    """
    return [sentence for sentence in _END.split(text.strip()) if sentence]


# They name nothing that could be seen.
FUNCTION_WORDS = frozenset(
    ["a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "has", "have", "in", "into", "is", "it", "its"]
    + ["of", "on", "onto", "or", "over", "that", "the", "their", "there", "this", "to", "under", "was", "were"]
    + ["which", "while", "who", "with"]
)


def words_of(caption: str) -> list[str]:
    """Return the words of a caption that could name something in a picture, each once, in their order.

    >>> words_of("A dog and a dog's ball, on the grass")
    ['dog', "dog's", 'ball', 'grass']
    """
    words = re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", caption.lower())
    return [word for word in dict.fromkeys(words) if word not in FUNCTION_WORDS]


def closest(word: str, valid: Iterable[str]) -> str:
    """Return the valid word that is spelled most alike, or nothing.

    >>> closest("learning_rat", ["learning_rate", "seed"])
    'learning_rate'
    """
    return next(iter(difflib.get_close_matches(word, list(valid), n=1)), "")


MOST_SHOWN = 200  # letters of a value that somebody wrote, in a message


def shorten(text: str, most: int = MOST_SHOWN) -> str:
    """Return a text as a message may have it, without its middle if it is long."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, align: str = "") -> str:
    """Return a table in Markdown, in which no cell can break its row.

    Args:
        head: Names of the columns.
        rows: Cells of each row, as many as `head` has.
        align: Letter for each column, `l` or `r`. Default: as the reader's style has it.

    >>> print(markdown_table(["slot", "captions"], [["a|b", "3"]], align="lr"))
    | slot | captions |
    |---|---:|
    | a\\|b | 3 |
    """
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in [head, *rows]]
    rule = ["---:" if letter == "r" else "---" for letter in align or "l" * len(head)]
    head_row, *others = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([head_row, f"|{'|'.join(rule)}|", *others])
