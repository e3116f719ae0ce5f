"""Retrieval metrics against hand-written matrices, closed forms and a plain loop; ties, chunks, permutations."""

from itertools import combinations

import numpy as np
import pytest
import torch

from holistic_clip_hf.evaluation.metrics import (
    bootstrap_interval,
    caption_pairs,
    chance_median_rank,
    chance_recall_at,
    distinct_captions,
    median_rank,
    rank_both_directions,
    recall_at,
    retrieval_ranks,
    retrieval_recalls,
    top_candidates,
)

# Four images, eight texts: texts 2i and 2i + 1 belong to image i. Scores are read off: with the identity as text
# embeddings, row i of the matrix is image i's score for each text.
SCORES = torch.tensor(
    [
        [0.9, 0.1, 0.2, 0.3, 0.4, 0.0, 0.0, 0.0],  # best correct 0.9: nothing ahead
        [0.8, 0.7, 0.6, 0.5, 0.0, 0.0, 0.0, 0.0],  # best correct 0.6: two ahead
        [0.5, 0.5, 0.5, 0.5, 0.1, 0.5, 0.5, 0.5],  # best correct 0.5: tied with six others
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.1, 0.2],  # best correct 0.2: six ahead
    ]
)
PAIRS = torch.tensor([[image, 2 * image + half] for image in range(4) for half in range(2)])
# Down each column: how many of the other three images score at least as high.
TEXT_RANKS = [1, 3, 1, 2, 2, 0, 1, 1]


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def random_pairs(queries: int, candidates: int, seed: int) -> torch.Tensor:
    """One to three correct candidates for each query."""
    rng = np.random.default_rng(seed)
    drawn = [(q, c) for q in range(queries) for c in rng.choice(candidates, rng.integers(1, 4), replace=False)]
    return torch.tensor(drawn)


def ranks_by_loop(queries: torch.Tensor, candidates: torch.Tensor, pairs: torch.Tensor) -> list[int]:
    ranks = []
    for index, query in enumerate(queries):
        correct = {int(c) for q, c in pairs if q == index}
        scores = [float(query.double() @ candidate.double()) for candidate in candidates]
        best = max(scores[c] for c in correct)
        ranks.append(sum(1 for c, score in enumerate(scores) if c not in correct and score >= best))
    return ranks


def test_ranks_of_a_matrix_checked_by_eye():
    both = rank_both_directions(SCORES, torch.eye(8), PAIRS)

    assert both["image_to_text"].ranks.tolist() == [0, 2, 6, 6]
    assert both["text_to_image"].ranks.tolist() == TEXT_RANKS
    assert both["image_to_text"].num_correct.tolist() == [2, 2, 2, 2]
    assert both["text_to_image"].num_correct.tolist() == [1] * 8
    assert both["image_to_text"].num_candidates == 8
    assert both["text_to_image"].num_candidates == 4


def test_ranks_equal_a_plain_loop():
    queries, candidates, pairs = unit(23, 6, seed=0), unit(31, 6, seed=1), random_pairs(23, 31, seed=2)

    assert retrieval_ranks(queries, candidates, pairs).tolist() == ranks_by_loop(queries, candidates, pairs)


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 23, 1000])
def test_ranks_do_not_depend_on_chunk_size_even_with_ties(chunk_size):
    candidates = unit(6, 512, seed=1).repeat(5, 1)  # each candidate five times: ties everywhere
    queries, pairs = unit(23, 512, seed=0), random_pairs(23, 30, seed=2)

    expected = retrieval_ranks(queries, candidates, pairs, chunk_size=4)
    assert torch.equal(retrieval_ranks(queries, candidates, pairs, chunk_size=chunk_size), expected)


def test_ranks_follow_a_permutation_of_queries_and_ignore_one_of_candidates():
    queries, candidates, pairs = unit(23, 6, seed=0), unit(31, 6, seed=1), random_pairs(23, 31, seed=2)
    torch.manual_seed(0)
    new_query, new_candidate = torch.randperm(23), torch.randperm(31)  # new_query[i] is the new place of query i
    moved = torch.stack([new_query[pairs[:, 0]], new_candidate[pairs[:, 1]]], dim=1)[torch.randperm(len(pairs))]

    ranks = retrieval_ranks(queries[new_query.argsort()], candidates[new_candidate.argsort()], moved, chunk_size=4)
    assert torch.equal(ranks[new_query], retrieval_ranks(queries, candidates, pairs))


def test_a_collapsed_model_is_never_better_than_chance():
    embeds, pairs = unit(1, 16, seed=0).expand(20, -1), torch.arange(20)[:, None].expand(-1, 2)

    ranks = retrieval_ranks(embeds, embeds, pairs)
    assert ranks.tolist() == [19] * 20
    assert recall_at(ranks, (1, 10)) == {1: 0.0, 10: 0.0}


def test_winning_by_rounding_is_a_tie_and_winning_by_more_is_not():
    query, correct = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    for lead, rank in ((1e-7, 1), (1e-4, 0)):
        other = correct - torch.tensor([[lead, 0.0]])
        for scale in (1.0, 1e3):  # the rule does not depend on how long the vectors are
            candidates = scale * torch.cat([other, correct])
            assert retrieval_ranks(query, candidates, torch.tensor([[0, 1]])).tolist() == [rank]


def test_duplicates_among_the_correct_candidates_do_no_harm():
    embeds = torch.eye(3)[[0, 0, 1, 2]]
    assert retrieval_ranks(embeds[:1], embeds, torch.tensor([[0, 0], [0, 1]])).tolist() == [0]
    assert retrieval_ranks(embeds[:1], embeds, torch.tensor([[0, 0]])).tolist() == [1]


def test_embeddings_may_be_numpy_arrays_or_half_precision():
    assert retrieval_ranks(SCORES.numpy(), np.eye(8), PAIRS.numpy()).tolist() == [0, 2, 6, 6]
    assert retrieval_ranks(SCORES.bfloat16(), torch.eye(8), PAIRS).tolist() == [0, 2, 6, 6]


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


def test_chance_equals_counting_all_draws():
    for candidates, correct, k in ((6, 1, 2), (6, 2, 3), (7, 3, 1), (5, 4, 2)):
        draws = list(combinations(range(candidates), k))
        expected = sum(1 for draw in draws if min(draw) < correct) / len(draws)
        assert chance_recall_at(torch.tensor([correct]), candidates, (k,))[k] == pytest.approx(expected, abs=1e-12)
    mixed = chance_recall_at(torch.tensor([1, 1, 2]), 4, (1, 9))
    assert mixed == {1: pytest.approx((0.25 + 0.25 + 0.5) / 3), 9: 1.0}


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


def test_top_candidates_are_sorted_and_ties_keep_their_order():
    scores = torch.tensor([[0.1, 0.9, 0.9, 0.5], [0.0, 0.0, 0.0, 1.0]])
    assert top_candidates(scores, torch.eye(4), 3).tolist() == [[1, 2, 3], [3, 0, 1]]
    assert top_candidates(scores, torch.eye(4), 3, chunk_size=1).tolist() == [[1, 2, 3], [3, 0, 1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: retrieval_ranks(torch.eye(3), torch.eye(3), torch.tensor([[0, 0], [2, 1]])),
            "1 of 3 queries have no",
        ),
        (lambda: retrieval_ranks(torch.eye(2), torch.full((2, 2), torch.nan), torch.eye(2).long()), "not finite"),
        (lambda: retrieval_ranks(torch.eye(2), torch.eye(3), torch.eye(2).long()), "Queries have width 2"),
        (lambda: retrieval_ranks(torch.eye(2)[None], torch.eye(2), torch.eye(2).long()), "one branch at a time"),
        (lambda: retrieval_ranks(torch.eye(2), torch.eye(2), torch.tensor([[0, 0], [1, 2]])), "do not exist"),
        (
            lambda: retrieval_ranks(torch.eye(2), torch.eye(2), torch.tensor([[0, 0], [1, -1]])),
            "do not exist",
        ),
        (lambda: retrieval_ranks(torch.eye(2), torch.eye(2), torch.arange(2)), "Expected \\(pairs, 2\\)"),
        (
            lambda: retrieval_ranks(torch.eye(1), torch.eye(1), torch.zeros(1, 2).long(), chunk_size=0),
            "`chunk_size` is 0",
        ),
        (lambda: rank_both_directions(torch.eye(2), torch.eye(2), torch.empty(0, 2).long()), "at least one pair"),
        (
            lambda: rank_both_directions(torch.eye(2), torch.eye(2), torch.tensor([[5, 0]])),
            "do not exist; there are 2 and 2",
        ),
        (lambda: recall_at(torch.tensor([0]), (0, 1)), "`ks` is \\(0, 1\\)"),
        (lambda: recall_at(torch.tensor([], dtype=torch.long)), "at least one"),
        (lambda: chance_recall_at(torch.tensor([0, 1]), 5), "Queries have 0 to 1 correct"),
        (lambda: top_candidates(torch.eye(2), torch.eye(2), 3), "`k` is 3"),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
