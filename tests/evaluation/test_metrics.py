"""Recall, median rank, chance and confidence in closed form; equal captions as one text."""

from itertools import combinations

import numpy as np
import pytest
import torch

from holistic_clip_hf.evaluation.ranking import (
    bootstrap_interval,
    caption_pairs,
    chance_average_precision,
    chance_median_rank,
    chance_recall_at,
    distinct_captions,
    mean_per_class,
    median_rank,
    rank_both_directions,
    recall_at,
    retrieval_ranks,
    retrieval_recalls,
)
from reference import RETRIEVAL_PAIRS as PAIRS
from reference import RETRIEVAL_SCORES as SCORES
from reference import random_pairs, unit


def test_equal_captions_are_correct_for_all_their_images():
    texts, pairs = caption_pairs([["a cat"], ["a dog"], [], ["a cat", "asleep", "a cat"]])

    assert texts == ["a cat", "a dog", "asleep"]
    assert sorted(map(tuple, pairs.tolist())) == [(0, 0), (1, 1), (3, 0), (3, 0), (3, 2)]
    text_embeds = torch.eye(3)
    image_embeds = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]])
    both = rank_both_directions(image_embeds, text_embeds, pairs)
    assert both["text_to_image"].num_correct.tolist() == [2, 1, 1]
    assert both["text_to_image"].ranks.tolist() == [0, 0, 3]  # "asleep" ties with all, three of them wrong
    assert both["image_to_text"].num_left_out == 1
    assert both["image_to_text"].num_candidates == 3
    assert both["text_to_image"].num_candidates == 4
    assert both["text_to_image"].num_left_out == 0


def test_distinct_captions_of_a_batch_with_gaps():
    ids = np.array([[7, 8], [9, 0], [8, 7]])
    rows, pairs = distinct_captions(ids, np.array([[1, 1], [1, 0], [1, 1]]))

    assert ids[rows[:, 0], rows[:, 1]].tolist() == [7, 8, 9]
    assert pairs.tolist() == [[0, 0], [0, 1], [1, 2], [2, 1], [2, 0]]
    with pytest.raises(ValueError, match="ids\\[:, None\\]"):
        distinct_captions(torch.arange(3))


def test_recalls_of_both_directions_under_flat_names():
    assert retrieval_recalls(SCORES, torch.eye(8), PAIRS, ks=(1, 5)) == {
        "text_to_image_recall@1": 1 / 8,
        "text_to_image_recall@5": 1.0,
        "image_to_text_recall@1": 0.25,
        "image_to_text_recall@5": 0.5,
    }


def test_recall_and_median_rank():
    assert recall_at(torch.tensor([0, 1, 4, 5, 99])) == {1: 0.2, 5: 0.6, 10: 0.8}
    assert median_rank(torch.tensor([0, 1, 4, 5, 99])) == 5.0
    assert median_rank(torch.tensor([0, 2, 3, 9])) == 3.5


def test_a_mean_per_class_counts_rare_classes_as_much():
    assert mean_per_class(torch.tensor([1, 1, 0, 1, 0]), torch.tensor([4, 4, 4, 4, 9])) == (3 / 4 + 0) / 2
    assert mean_per_class(torch.tensor([True]), torch.tensor([3])) == 1.0


def test_fewer_candidates_than_k_is_all_of_them_and_so_is_chance():
    embeds, pairs = unit(3, 8, seed=0), torch.arange(3)[:, None].expand(-1, 2)
    ranks = retrieval_ranks(embeds, embeds.roll(1, dims=0), pairs)
    assert recall_at(ranks, (3, 10)) == {3: 1.0, 10: 1.0} == chance_recall_at(torch.tensor([1]), 3, (3, 10))


def test_chance_equals_counting_all_draws():
    for candidates, correct, k in ((6, 1, 2), (6, 2, 3), (7, 3, 1), (5, 4, 2)):
        draws = list(combinations(range(candidates), k))
        expected = sum(1 for draw in draws if min(draw) < correct) / len(draws)
        assert chance_recall_at(torch.tensor([correct]), candidates, (k,))[k] == pytest.approx(expected, abs=1e-12)
    mixed = chance_recall_at(torch.tensor([1, 1, 2]), 4, (1, 9))
    assert mixed == {1: pytest.approx((0.25 + 0.25 + 0.5) / 3), 9: 1.0}


def test_chance_of_precision_equals_counting_all_orders():
    for candidates, correct in ((5, 1), (6, 2), (5, 4), (3, 3), (1, 1)):
        found = []
        for places in combinations(range(1, candidates + 1), correct):
            found.append(sum(number / place for number, place in enumerate(places, start=1)) / correct)
        expected = sum(found) / len(found)
        assert chance_average_precision(torch.tensor([correct]), candidates) == pytest.approx(expected, abs=1e-12)


def test_chance_is_what_random_embeddings_reach():
    pairs = random_pairs(2000, 50, seed=5)
    ranks = retrieval_ranks(unit(2000, 64, seed=3), unit(50, 64, seed=4), pairs)
    num_correct = torch.bincount(pairs[:, 0])

    for k, expected in chance_recall_at(num_correct, 50).items():
        assert recall_at(ranks)[k] == pytest.approx(expected, abs=0.03)
    assert chance_median_rank(num_correct, 50) == pytest.approx(median_rank(ranks), abs=2)


def test_chance_median_rank_in_closed_form():
    assert chance_median_rank(torch.tensor([1]), 101) == 51  # uniform over 1 ... 101
    assert chance_median_rank(torch.tensor([4]), 4) == 1
    assert chance_median_rank(torch.tensor([1]), 1) == 1


def test_bootstrap_interval_is_seeded_and_covers_the_mean():
    hits = torch.arange(400) < 100
    low, high = bootstrap_interval(hits, seed=0)

    assert (low, high) == bootstrap_interval(hits, seed=0)
    assert (low, high) != bootstrap_interval(hits, seed=1)
    half_width = 1.96 * (0.25 * 0.75 / 400) ** 0.5  # the normal approximation
    assert low == pytest.approx(0.25 - half_width, abs=0.01)
    assert high == pytest.approx(0.25 + half_width, abs=0.01)
    assert bootstrap_interval(torch.ones(5), seed=0) == (1.0, 1.0)
    narrow = bootstrap_interval(hits, seed=0, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recall_at(torch.tensor([0]), (0, 1)), "`ks` is \\(0, 1\\)"),
        (lambda: recall_at(torch.tensor([], dtype=torch.long)), "at least one"),
        (lambda: chance_recall_at(torch.tensor([0, 1]), 5), "Queries have 0 to 1 correct"),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
