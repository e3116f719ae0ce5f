# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Several texts in one row of tokens, so that hardly anything is padded.

Captions differ in length by a factor of ten. Padded to the longest, most tokens of a batch are padding. A causal text
tower lets them share rows: each token sees its own text alone, and counts positions from its beginning.

Axes: T texts, L tokens of a text, R rows, S tokens of a row.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class PackedTexts(NamedTuple):
    """T texts in R rows.

    Args:
        input_ids: (R, S); zeros behind the last text of a row.
        position_ids: (R, S), from zero in each text.
        visible: (R, S, S) bool, true where a token (second axis) may see another (third): its own text, up to itself.
        ends: (T, 2), row and place of the last token of each text.
    """

    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor
    ends: Tensor


def pack_texts(input_ids: Tensor, lengths: Tensor, row_length: int) -> PackedTexts:
    """Put texts (T, L), of which the first `lengths` (T,) tokens count, into rows of at least `row_length` tokens.

    The longest first, each into the fullest row that has room for it: hardly more than 11/9 of the fewest rows
    (best-fit decreasing, https://doi.org/10.1137/0203025).
    """
    counts = lengths.tolist()
    row_length = max([row_length, *counts])
    rows, starts = _places(counts, row_length)
    device, num_rows = input_ids.device, max(rows) + 1
    text = torch.arange(len(counts), device=device).repeat_interleave(lengths)
    place = torch.arange(len(text), device=device) - (lengths.cumsum(0) - lengths)[text]
    row, start = (torch.tensor(numbers, device=device) for numbers in (rows, starts))
    where = row[text], start[text] + place
    packed, positions = (input_ids.new_zeros(num_rows, row_length) for _ in range(2))
    owner = input_ids.new_full(
        (num_rows, row_length), -1
    )  # tokens behind the last text see each other: no row is blind
    packed[where], positions[where], owner[where] = input_ids[text, place], place.to(input_ids), text.to(input_ids)
    is_causal = torch.ones(row_length, row_length, dtype=torch.bool, device=device).tril()
    visible = (owner[:, :, None] == owner[:, None]) & is_causal
    return PackedTexts(packed, positions, visible, torch.stack([row, start + lengths - 1], dim=1))


def _places(counts: list[int], row_length: int) -> tuple[list[int], list[int]]:
    """Row and first place of each text."""
    rows, starts = [0] * len(counts), [0] * len(counts)
    rows_with_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    num_rows = 0
    for text in sorted(range(len(counts)), key=lambda text: -counts[text]):
        count = counts[text]
        room = next((room for room in range(count, row_length + 1) if rows_with_room[room]), None)
        if room is None:
            row, room, num_rows = num_rows, row_length, num_rows + 1
        else:
            row = rows_with_room[room].pop()
        rows_with_room[room - count].append(row)
        rows[text], starts[text] = row, row_length - room
    return rows, starts


__all__ = ["PackedTexts", "pack_texts"]
