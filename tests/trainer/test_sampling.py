"""Sentences of long captions: where they end, and how often each is drawn."""

from collections import Counter

import pytest
import torch

from holistic_clip_hf.trainer.collator import sample_sentences
from holistic_clip_hf.words import split_sentences

LONG = "A dog sits. Snow falls behind it. The light is blue. It looks old."


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A dog", ["A dog"]),
        (LONG, ["A dog sits.", "Snow falls behind it.", "The light is blue.", "It looks old."]),
        ("A 3.5 cm coin, e.g. a cent. Round!", ["A 3.5 cm coin, e.g. a cent.", "Round!"]),
        ('He says "Stop." Then he goes. Why?', ['He says "Stop.', "Then he goes.", "Why?"]),
        ("一只狗。雪在下。", ["一只狗。", "雪在下。"]),
        ("Une île. Émile y va.  «Bon» dit-il.", ["Une île.", "Émile y va.  «Bon» dit-il."]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_how_often_each_is_drawn() -> None:
    """Of 4 sentences, 1 to 3, without the first half of the time."""
    generator, draws = torch.Generator().manual_seed(0), 4000
    counts: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    orders = set()
    for _ in range(draws):
        drawn = split_sentences(sample_sentences(LONG, 3, generator))
        assert len(set(drawn)) == len(drawn)
        counts.update(drawn)
        lengths[len(drawn)] += 1
        orders.add(tuple(drawn))
    first, *rest = split_sentences(LONG)
    # 2 on average, of 4 or, without the first, of 3
    assert counts[first] / draws == pytest.approx(0.5 * 2 / 4, abs=0.03)
    for sentence in rest:
        assert counts[sentence] / draws == pytest.approx(0.5 * 2 / 4 + 0.5 * 2 / 3, abs=0.03)
    assert all(lengths[length] / draws == pytest.approx(1 / 3, abs=0.03) for length in (1, 2, 3))
    assert (rest[0], rest[1]) in orders and (rest[1], rest[0]) in orders


def test_a_single_sentence_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert sample_sentences("a red square", 3, generator) == "a red square"
    assert torch.equal(generator.get_state(), before)
