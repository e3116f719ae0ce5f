# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""BLEU of one text against others, and of a set's texts against each other: how much they say in the same words."""

import math
from collections import Counter
from collections.abc import Sequence

Words = Sequence[str]
_Runs = list[Counter[Words]]  # of 1 to 4 words in a row, how often each occurs

_ORDERS = (1, 2, 3, 4)
_INSTEAD_OF_NONE = 0.1  # matches, where no run of an order matches: "smoothing 1" of Chen and Cherry, 2014 (W14-3346)


def sentence_bleu(words: Words, references: Sequence[Words]) -> float:
    """BLEU-4, 0 to 1, of a text against one reference or more (https://aclanthology.org/P02-1040), smoothed.

    Of a text that is shorter than 4 words only the runs that it has are counted; one without a word has 0.

    >>> round(sentence_bleu("a dog on a lawn".split(), ["a cat on a lawn".split()]), 3)
    0.286
    """
    return _bleu(_runs(words), [_runs(reference) for reference in references])


def self_bleu(texts: Sequence[Words]) -> list[float]:
    """Of each of two texts or more, its BLEU against all others (https://arxiv.org/abs/1802.01886)."""
    runs = [_runs(words) for words in texts]
    return [_bleu(each, [*runs[:place], *runs[place + 1 :]]) for place, each in enumerate(runs)]


def _bleu(text: _Runs, references: Sequence[_Runs]) -> float:
    logs = []
    for order, found in enumerate(text):
        others = [reference[order] for reference in references]
        matches = sum(min(many, max([other.get(run, 0) for other in others])) for run, many in found.items())
        if not matches and order == 0:
            return 0.0
        if found:
            logs.append(math.log((matches or _INSTEAD_OF_NONE) / found.total()))
    length = text[0].total()
    lengths = [reference[0].total() for reference in references]
    nearest = min(lengths, key=lambda other: (abs(other - length), other))
    return math.exp(min(0.0, 1 - nearest / length) + sum(logs) / len(logs))


def _runs(words: Words) -> _Runs:
    return [Counter(zip(*(words[start:] for start in range(order)), strict=False)) for order in _ORDERS]
