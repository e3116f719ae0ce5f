# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Which images may answer: by the values of their columns, and by their ids."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Value = str | int | float | bool


@dataclass(frozen=True)
class Filter:
    """Images that meet every condition.

    Args:
        columns: for each column the value, or a list of values of which one is enough.
        path: a pattern, or several of which one is enough, for the whole image id: `animals/*`. `*` also stands for
            slashes; letters count in their case.

    Raises:
        ValueError: an empty list of values or patterns, which no image could meet.

    Example: `Filter({"artist": ["noto", "twemoji"]}, path="animals/*")`.
    """

    columns: Mapping[str, Value | Sequence[Value]] = field(default_factory=dict)
    path: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, values in {**self.columns, "path": self.path}.items():
            if isinstance(values, Sequence) and len(values) == 0:
                raise ValueError(f"The filter on {name!r} is empty, which no image meets. Leave it out, or fill it.")

    def mask(self, table: pa.Table, columns: Sequence[str]) -> np.ndarray:
        """(rows,) bool: which rows of `table` meet all conditions; `columns` are those that may be asked for.

        Raises:
            ValueError: an unknown column, or a value of another type than the column's.
        """
        mask = np.ones(table.num_rows, dtype=bool)
        for name, values in self.columns.items():
            if name not in columns:
                valid = ", ".join(columns) or "none; name `columns` when you index"
                raise ValueError(f"The index has no column {name!r} to filter by. Valid: {valid}.")
            mask &= _is_one_of(name, table[name], values)
        if self.path is not None:
            patterns = [self.path] if isinstance(self.path, str) else self.path
            matches = re.compile("|".join(translate(pattern) for pattern in patterns)).match
            ids = table["image_id"].to_pylist()
            mask &= np.fromiter((matches(image_id) is not None for image_id in ids), dtype=bool, count=len(ids))
        return mask


def _is_one_of(name: str, column: pa.ChunkedArray, values: Value | Sequence[Value]) -> np.ndarray:
    wanted = [values] if isinstance(values, Value) else list(values)
    try:
        # By way of an array of their own type, so that "2024" from a command line finds the number.
        found = pc.is_in(column, value_set=pa.array(wanted).cast(column.type))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"Column {name!r} holds {column.type}; the filter asks for {wanted}. Match its type."
        ) from error
    return found.to_numpy()
