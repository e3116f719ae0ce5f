"""Rivals that need no training, against plain loops and closed forms."""

import math

import pytest
import torch
from torch.nn import functional as F

from training.rivals import (
    WordSearch,
    conditional_scores,
    leading_directions,
    optimised_queries,
    patch_scores,
    reflect,
    tangents,
)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=-1)


def test_tangents_are_as_long_as_the_angle() -> None:
    centre = torch.tensor([0.0, 0.0, 1.0])
    found = tangents(torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.6, 0.8]]), centre)
    expected = [[math.pi / 2, 0, 0], [0, -math.pi / 2, 0], [0, math.acos(0.8), 0]]
    assert found.tolist() == [pytest.approx(each, abs=1e-6) for each in expected]


def test_a_reflection_exchanges_two_vectors_and_keeps_all_lengths() -> None:
    vectors, (start, end) = unit(5, 4), unit(2, 4, seed=1)
    torch.testing.assert_close(reflect(torch.stack([start, end]), start, end), torch.stack([end, start]))
    reflected = reflect(vectors, start, end)
    torch.testing.assert_close(reflected @ reflected.T, vectors @ vectors.T)


def test_conditional_scores_see_the_subspace_alone() -> None:
    """Texts of the perspective differ in the second number alone, images in the third, too."""
    of_perspective = F.normalize(torch.tensor([[1.0, 0.3, 0.0], [1.0, -0.3, 0.0]]), dim=1)
    images = F.normalize(torch.tensor([[1.0, 0.2, 0.9], [1.0, 0.2, -0.9], [1.0, -0.2, 0.9], [1.0, -0.2, -0.9]]), dim=1)
    found = conditional_scores(images, of_perspective, of_perspective, rank=1)
    assert found.tolist() == [pytest.approx([1, 1, -1, -1]), pytest.approx([-1, -1, 1, 1])]


def test_with_all_directions_conditional_scores_are_cosines_of_tangents() -> None:
    images, texts, of_perspective = unit(6, 4), unit(3, 4, seed=1), unit(9, 4, seed=2)
    centre = F.normalize(of_perspective.mean(dim=0), dim=0)
    found = conditional_scores(images, texts, of_perspective, rank=4)
    moved = reflect(images, F.normalize(images.mean(dim=0), dim=0), centre)
    for text, row in zip(tangents(texts, centre), found, strict=True):
        for image, score in zip(tangents(moved, centre), row, strict=True):
            assert float(score) == pytest.approx(float(text @ image / text.norm() / image.norm()))


def test_optimised_queries_follow_the_gradient() -> None:
    """Adam by hand, number by number, on a gradient in closed form: that of a distance is a unit vector."""
    wanted, unwanted = unit(2, 3, 5)
    found = optimised_queries(wanted, unwanted, 4)
    for number in range(3):
        query = wanted[number].tolist()
        first, second = [0.0] * 5, [0.0] * 5
        for step in range(1, 5):
            ahead = [
                [at - to for at, to in zip(query, each[number].tolist(), strict=True)] for each in (wanted, unwanted)
            ]
            near, far = (math.sqrt(sum(part * part for part in each) + 1e-12) for each in ahead)
            for place in range(5):
                slope = 1.2 * ahead[0][place] / near - ahead[1][place] / far
                first[place] = 0.9 * first[place] + 0.1 * slope
                second[place] = 0.999 * second[place] + 0.001 * slope**2
                moved = first[place] / (1 - 0.9**step) / (math.sqrt(second[place] / (1 - 0.999**step)) + 1e-8)
                query[place] -= 0.001 * moved
            length = math.sqrt(sum(part * part for part in query))
            query = [part / length for part in query]
        assert found[number].tolist() == pytest.approx(query, abs=1e-9)
        assert found[number] @ unwanted[number] < wanted[number] @ unwanted[number]


def test_the_patch_that_is_most_alike_decides() -> None:
    patches, texts = unit(4, 3, 5), unit(2, 5, seed=1)
    found = patch_scores(patches, texts)
    for text in range(2):
        for image in range(4):
            best = max(float(patches[image, patch] @ texts[text]) for patch in range(3))
            assert float(found[text, image]) == pytest.approx(best)


def test_leading_directions_keep_what_lies_in_a_plane() -> None:
    plane = unit(2, 6)
    vectors = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) @ plane
    directions = leading_directions(vectors, 2)
    torch.testing.assert_close(vectors @ directions.T @ directions, vectors)
    torch.testing.assert_close(directions @ directions.T, torch.eye(2, dtype=torch.float64))


def test_words_are_weighed_as_okapi_does() -> None:
    captions = ["a red cat", "red red dog on a mat", "bird", ""]
    words = [["red", "cat"], ["red", "red", "dog", "mat"], ["bird"], []]
    average = sum(map(len, words)) / 4
    search = WordSearch(captions)
    for query in ("red cat", "the dog", "bird bird", "fish"):
        for row, said in enumerate(words):
            expected = 0.0
            for word in [each for each in query.split() if each != "the"]:
                having = sum(word in each for each in words)
                count = said.count(word)
                length = 1.2 * (1 - 0.75 + 0.75 * len(said) / average)
                rarity = math.log(1 + (4 - having + 0.5) / (having + 0.5))
                expected += rarity * count * 2.2 / (count + length)
            assert float(search.scores(query)[row]) == pytest.approx(expected), (query, row)
