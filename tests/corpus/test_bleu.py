"""BLEU against published values and against the definition, written out in plain loops."""

import math

import pytest

from holistic_clip_hf.corpus.diversity import self_bleu, sentence_bleu

# The example of nltk's documentation, with nltk's values (the second rounded there to 0.4118).
CANDIDATE = "It is a guide to action which ensures that the military always obeys the commands of the party"
REFERENCES = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]


def by_loops(words: list[str], references: list[list[str]]) -> float:
    """Papineni et al., 2002, with 0.1 in place of no match."""
    orders = [order for order in (1, 2, 3, 4) if order <= len(words)]
    product = 1.0
    for order in orders:
        runs = [words[start : start + order] for start in range(len(words) - order + 1)]
        matches = 0
        for place, run in enumerate(runs):
            earlier = sum(other == run for other in runs[:place])
            allowed = 0
            for reference in references:
                found = [reference[start : start + order] for start in range(len(reference) - order + 1)]
                allowed = max(allowed, sum(other == run for other in found))
            matches += earlier < allowed
        if order == 1 and not matches:
            return 0.0
        product *= (matches if matches else 0.1) / len(runs)
    nearest = min((len(reference) for reference in references), key=lambda n: (abs(n - len(words)), n))
    brevity = 1.0 if len(words) >= nearest else math.exp(1 - nearest / len(words))
    return brevity * product ** (1 / len(orders))


def test_published_values() -> None:
    references = [reference.split() for reference in REFERENCES]
    assert sentence_bleu(CANDIDATE.split(), references) == pytest.approx(0.5045666840058485, abs=1e-12)
    assert sentence_bleu(CANDIDATE.split(), references[:1]) == pytest.approx(0.4118, abs=5e-5)


def test_by_hand() -> None:
    """5 words, of which 4, 2 of 4 pairs, 1 of 3 triples and no quadruple are in the other."""
    expected = (4 / 5 * 2 / 4 * 1 / 3 * 0.1 / 2) ** 0.25
    assert sentence_bleu(["a", "dog", "on", "a", "lawn"], [["a", "cat", "on", "a", "lawn"]]) == pytest.approx(expected)
    # "the the the" finds one "the": clipped; and is shorter than its only reference by one word.
    expected = math.exp(1 - 4 / 3) * (1 / 3 * 0.1 / 2 * 0.1 / 1) ** (1 / 3)
    assert sentence_bleu(["the"] * 3, [["the", "dog", "sits", "here"]]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "others", "value"),
    [("a b c d e", ["a b c d e"], 1.0), ("a b", ["x y", "a b"], 1.0), ("a b", ["c d"], 0.0), ("", ["a"], 0.0)],
)
def test_ends_of_the_scale(text: str, others: list[str], value: float) -> None:
    assert sentence_bleu(text.split(), [other.split() for other in others]) == pytest.approx(value)
    assert sentence_bleu(text.split(), [[], *(other.split() for other in others)]) <= value + 1e-12


def test_each_text_against_all_others() -> None:
    texts = [text.casefold().split() for text in [CANDIDATE, *REFERENCES, "a guide", "the party the party the party"]]
    expected = [by_loops(text, [other for other in texts if other is not text]) for text in texts]
    assert len(set(expected)) == len(texts)
    assert self_bleu(texts) == pytest.approx(expected, abs=1e-12)
