"""Ranks and precision against hand-written matrices and plain loops; ties, chunks, blocks, permutations."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from holistic_clip_hf.evaluation import ranking
from holistic_clip_hf.evaluation.ranking import (
    average_precision,
    rank_both_directions,
    recall_at,
    retrieval_ranks,
    top_candidates,
)
from reference import RETRIEVAL_PAIRS as PAIRS
from reference import RETRIEVAL_SCORES as SCORES
from reference import random_pairs, unit

# Down each column: how many of the other three images score at least as high.
TEXT_RANKS = [1, 3, 1, 2, 2, 0, 1, 1]


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


def precision_by_loop(queries: torch.Tensor, candidates: torch.Tensor, pairs: torch.Tensor) -> list[float]:
    """The definition: walk down the list, incorrect ones first among equals."""
    found = []
    for index, query in enumerate(queries):
        correct = {int(c) for q, c in pairs if q == index}
        scores = [round(float(query.double() @ candidate.double()), 9) for candidate in candidates]
        order = sorted(range(len(scores)), key=lambda c: (-scores[c], c in correct))
        hits = [place for place, c in enumerate(order, start=1) if c in correct]
        found.append(sum(number / place for number, place in enumerate(hits, start=1)) / len(hits))
    return found


@pytest.mark.parametrize(("chunk_size", "block_size"), [(1, 1), (4, 7), (1000, 1000)])
@pytest.mark.parametrize(("repeats", "most"), [(1, 3), (5, 3), (1, 25), (5, 25)])
def test_average_precision_is_the_walk_down_the_list(chunk_size, block_size, repeats, most, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_SIZE", block_size)
    candidates = unit(30 // repeats, 6, seed=1).repeat(repeats, 1)  # with repeats, ties everywhere
    queries, pairs = unit(23, 6, seed=0), random_pairs(23, 30, seed=2, most=most)
    found = average_precision(queries, candidates, pairs, chunk_size=chunk_size)
    np.testing.assert_allclose(found, precision_by_loop(queries, candidates, pairs), rtol=1e-12)
    both = rank_both_directions(candidates, queries, pairs[:, [1, 0]], chunk_size=chunk_size)["text_to_image"]
    assert both.ranks.tolist() == ranks_by_loop(queries, candidates, pairs)
    assert torch.equal(both.precision, found)


def test_average_precision_is_scikit_learns():
    queries, candidates, pairs = unit(23, 6, seed=0), unit(31, 6, seed=1), random_pairs(23, 31, seed=2, most=9)
    is_right = np.zeros((23, 31), dtype=int)
    is_right[pairs[:, 0], pairs[:, 1]] = 1
    scores = (queries.double() @ candidates.double().T).numpy()
    expected = [average_precision_score(right, row) for right, row in zip(is_right, scores, strict=True)]
    np.testing.assert_allclose(average_precision(queries, candidates, pairs), expected, rtol=1e-12)


def test_one_correct_candidate_has_the_precision_of_its_rank():
    queries, candidates = unit(23, 6, seed=0), unit(31, 6, seed=1)
    pairs = torch.stack([torch.arange(23), torch.arange(23)], dim=1)
    ranks = retrieval_ranks(queries, candidates, pairs)
    torch.testing.assert_close(average_precision(queries, candidates, pairs), 1 / (1 + ranks.double()))


@pytest.mark.parametrize("block_size", [1, 3, 31, 1000])
def test_ranks_do_not_depend_on_the_block_of_candidates(block_size, monkeypatch):
    queries, candidates, pairs = unit(23, 6, seed=0), unit(31, 6, seed=1), random_pairs(23, 31, seed=2)
    monkeypatch.setattr(ranking, "BLOCK_SIZE", block_size)
    assert retrieval_ranks(queries, candidates, pairs).tolist() == ranks_by_loop(queries, candidates, pairs)


def test_a_score_of_its_own_ranks_in_both_directions():
    """The better of two branches: what no single vector can say."""
    branches, texts = unit(24, 6, seed=0).unflatten(0, (12, 2)), unit(20, 6, seed=1)
    pairs = torch.tensor([(image, image) for image in range(12)])
    whole = torch.einsum("nhd,td->nht", branches.double(), texts.double()).amax(dim=1)

    def best(images, texts):
        return torch.einsum("nhd,td->nht", images, texts).amax(dim=1)

    found = rank_both_directions(branches, texts, pairs, score=best, chunk_size=5)
    as_matrix = rank_both_directions(whole, torch.eye(20), pairs)
    for direction in ("text_to_image", "image_to_text"):
        assert torch.equal(found[direction].ranks, as_matrix[direction].ranks)
        torch.testing.assert_close(found[direction].precision, as_matrix[direction].precision)


@pytest.mark.parametrize("block_size", [1, 3, 1000])
def test_top_candidates_are_sorted_and_ties_keep_their_order(block_size, monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_SIZE", block_size)
    scores = torch.tensor([[0.1, 0.9, 0.9, 0.5], [0.0, 0.0, 0.0, 1.0]])
    assert top_candidates(scores, torch.eye(4), 3).tolist() == [[1, 2, 3], [3, 0, 1]]
    assert top_candidates(scores, torch.eye(4), 3, chunk_size=1).tolist() == [[1, 2, 3], [3, 0, 1]]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_score_matrix():
    """20,000 texts against 4,000 images, whose scores would be 640 MB; the benchmark does 500,000 against 100,000."""
    script = Path(__file__).parents[1] / "benchmarks" / "ranking.py"
    command = [sys.executable, str(script), "--memory", "4000", "--threads", "1"]
    ran = subprocess.run(command, cwd=script.parents[2], capture_output=True, text=True, check=True)
    assert int(ran.stdout.split()[-1]) < 200 * 2**20


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
        (lambda: top_candidates(torch.eye(2), torch.eye(2), 3), "`k` is 3"),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
