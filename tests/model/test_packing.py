"""Texts in shared rows: each token once, in order, seeing its own text alone."""

import itertools
import random

import pytest
import torch

from holistic_clip_hf.modeling_holistic_clip import pack_texts


def random_texts(seed: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(40, longest) ids from 1 on, all different, and the lengths that count."""
    lengths = torch.randint(1, longest + 1, (40,), generator=torch.Generator().manual_seed(seed))
    return torch.arange(1, 40 * longest + 1).view(40, longest), lengths


@pytest.mark.parametrize(("seed", "longest", "row_length"), [(0, 12, 30), (1, 30, 30), (2, 9, 4), (3, 1, 5)])
def test_every_token_is_there_once_and_sees_its_own_text_alone(seed: int, longest: int, row_length: int) -> None:
    ids, lengths = random_texts(seed, longest)
    packed = pack_texts(ids, lengths, row_length)
    for text, (row, last) in enumerate(packed.ends.tolist()):
        length = int(lengths[text])
        places = range(last - length + 1, last + 1)
        assert packed.input_ids[row, places].tolist() == ids[text, :length].tolist()
        assert packed.position_ids[row, places].tolist() == list(range(length))
        for place in places:
            assert packed.visible[row, place].nonzero().flatten().tolist() == list(range(places[0], place + 1))
    assert int((packed.input_ids > 0).sum()) == int(lengths.sum())
    assert packed.visible.any(dim=-1).all()


def fewest_rows(counts: list[int], row_length: int) -> int:
    """By trying every assignment of texts to rows."""
    for rows in itertools.count(1):
        for where in itertools.product(range(rows), repeat=len(counts)):
            loads = [0] * rows
            for count, row in zip(counts, where, strict=True):
                loads[row] += count
            if max(loads) <= row_length:
                return rows
    raise AssertionError


def test_hardly_more_rows_than_needed() -> None:
    draw = random.Random(0)
    for _ in range(10):
        counts = [draw.randint(1, 10) for _ in range(7)]
        rows = len(pack_texts(torch.ones(7, 10, dtype=torch.long), torch.tensor(counts), 10).input_ids)
        fewest = fewest_rows(counts, 10)
        assert fewest <= rows <= 11 / 9 * fewest + 1


def test_the_longest_text_goes_first_into_the_fullest_row() -> None:
    lengths = torch.tensor([3, 6, 4, 5])  # 6 and 5 open rows of 9; 4 goes behind the 5, 3 behind the 6
    packed = pack_texts(torch.ones(4, 6, dtype=torch.long), lengths, 9)
    assert packed.ends.tolist() == [[0, 8], [0, 5], [1, 8], [1, 4]]
